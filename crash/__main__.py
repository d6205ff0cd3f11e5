"""``python -m crash``: run a rig for as long as it is told.

    python -m crash list
    python -m crash run RIG [--states N] [--seconds S] [--seed N] [--out DIR] [--work DIR] [RIG'S OWN OPTIONS]

A rig is a module ``crash.<name>`` (``RIGS``) with ``states(options) -> Iterator[State]`` and, for options of its
own, ``arguments(parser)``. Exit status 1 if a state violated anything; the command that shows it again is printed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile

from crash.state import collect

RIGS: dict[str, str] = {   # name: module
    "block": "crash.block",
    "calls": "crash.calls",
    "lines": "crash.lines",
    "outside": "crash.outside",
    "points": "crash.points",
    "posix": "crash.posix",
}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m crash", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the rigs")
    run = commands.add_parser("run", help="run one rig")
    rigs = run.add_subparsers(dest="rig", required=True)
    for rig, module in RIGS.items():
        each = rigs.add_parser(rig, help=(importlib.import_module(module).__doc__ or "").split("\n")[0])
        common(each)
        getattr(importlib.import_module(module), "arguments", lambda _p: None)(each)
    options = parser.parse_args(argv)
    if options.command == "list":
        for rig, module in RIGS.items():
            print(f"{rig:12} {(importlib.import_module(module).__doc__ or '').split(chr(10))[0]}")
        return 0
    return run_rig(options)


def common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--states", type=int, help="stop after so many states")
    parser.add_argument("--seconds", type=float, help="stop after so long")
    parser.add_argument("--seed", type=int, default=1, help="of everything that is drawn")
    parser.add_argument("--out", help="a directory for <rig>.jsonl and <rig>.run.json")
    parser.add_argument("--work", help="a directory for stores (default: a temporary one, removed)")
    parser.add_argument("--workload", action="append", help="only these workloads")


def run_rig(options: argparse.Namespace) -> int:
    module = importlib.import_module(RIGS[options.rig])
    path = None
    if options.out:
        os.makedirs(options.out, exist_ok=True)
        path = os.path.join(options.out, f"{options.rig}.jsonl")
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        options.work = work
        tally = collect(module.states(options), path=path, limit=options.states, seconds=options.seconds)
    print(f"{options.rig}: {tally}")
    for state in tally.bad[:5]:
        print(f"  {state.workload} {state.fs} {state.fault}: {state.violations[:3]}\n    again: {state.reproduce}")
    if options.out:
        _note(options, tally.seconds)
    return 1 if tally.bad else 0


def _note(options: argparse.Namespace, seconds: float) -> None:
    """Which commit was run, with what: beside the states."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    asked = {k: v for k, v in vars(options).items() if k not in ("work", "out", "command")}
    with open(os.path.join(options.out, f"{options.rig}.run.json"), "w", encoding="utf-8") as file:
        json.dump({"commit": commit.stdout.strip(), "seconds": round(seconds), "options": asked}, file, indent=1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
