"""``python -m crash``: run rigs for as long as they are told, and report what they found.

    python -m crash list
    python -m crash run RIG [--states N] [--seconds S] [--seed N] [--out DIR] [--work DIR] [RIG'S OWN OPTIONS]
    python -m crash all [--states N] [--seconds S] [--seed N] [--out DIR]     every rig in turn, the budget split
    python -m crash report --out DIR [--figures FILE.md] [--summary FILE.json]   one page of all that is in DIR
    python -m crash figures FILE.json FILE.md                                 the page of figures, from a summary
    python -m crash show DIR RIG N [--again]                                  one state in full

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
from typing import Any

from crash.report import show as showing
from crash.state import collect
from crash.state import commit as at_commit

RIGS: dict[str, str] = {   # name: module
    "block": "crash.block",
    "calls": "crash.calls",
    "corruption": "crash.corruption",
    "database": "crash.database",
    "device": "crash.device",
    "failing": "crash.failing",
    "lines": "crash.lines",
    "outside": "crash.outside",
    "points": "crash.points",
    "posix": "crash.posix",
    "schedule": "crash.schedule",
    "sequences": "crash.sequences",
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
    common(commands.add_parser("all", help="run every rig in turn, the budget split between them"))
    report = commands.add_parser("report", help="one page of all that was explored")
    report.add_argument("--out", required=True, help="the directory with the rigs' lines; the report goes there, too")
    report.add_argument("--figures", help="a page of figures in markdown, to this file")
    report.add_argument("--summary", help="the figures alone, as JSON, to this file")
    figures = commands.add_parser("figures", help="the page of figures in markdown, from a summary")
    figures.add_argument("summary")
    figures.add_argument("page")
    show = commands.add_parser("show", help="one explored state in full")
    show.add_argument("directory")
    show.add_argument("rig")
    show.add_argument("number", type=int)
    show.add_argument("--again", action="store_true", help="run the command that makes it again")
    options = parser.parse_args(argv)
    if options.command == "all":
        return run_all(options)
    if options.command == "report":
        return make_report(options)
    if options.command == "figures":
        return make_figures(options)
    if options.command == "show":
        return showing.show(options.directory, options.rig, options.number, again=options.again)
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


def run_all(options: argparse.Namespace) -> int:
    """Every rig in a process of its own, one after the other; 1 if any of them failed."""
    share = {"--states": options.states and max(1, options.states // len(RIGS)),
             "--seconds": options.seconds and options.seconds / len(RIGS),
             "--seed": options.seed, "--out": options.out, "--work": options.work}
    given = [text for name, value in share.items() if value is not None for text in (name, str(value))]
    given += [text for name in options.workload or () for text in ("--workload", name)]
    failed = [
        rig for rig in RIGS
        if subprocess.run([sys.executable, "-m", "crash", "run", rig, *given], check=False).returncode != 0
    ]
    print(f"failed: {', '.join(failed)}" if failed else "no rig found anything")
    return 1 if failed else 0


def make_report(options: argparse.Namespace) -> int:
    """Write the report; 1 if there is a violation in it, each printed with the command that shows it again."""
    from crash.report import gather, pages, summary  # noqa: PLC0415 - the rigs run without what only the report needs

    report = gather.gather(options.out, RIGS)
    pages.write(report, options.out, figures=options.figures)
    if options.summary:
        summary.save(summary.summary(report), options.summary)
    for rig in report.rigs:
        for state in rig.violations:
            print(f"VIOLATION {rig.name} {state['number']}: {state['workload']} {state['fs']} {state['fault']}: "
                  f"{state['violations'][0]}\n    seed {state['seed']}; again: {state['reproduce']}")
    print(f"{report.states} states, {report.violations} violations: {os.path.join(options.out, 'report.html')}")
    return 1 if report.violations else 0


def make_figures(options: argparse.Namespace) -> int:
    """Write the page of figures of a summary that was kept."""
    from crash.report import pages  # noqa: PLC0415 - as for the report

    with open(options.summary, encoding="utf-8") as file:
        pages.write_figures(json.load(file), options.page)
    return 0


def _note(options: argparse.Namespace, seconds: float) -> None:
    """Which commit was run, with what: beside the states. Lines are appended, so the runs' seconds are added up."""
    commit = at_commit()
    asked = {k: v for k, v in vars(options).items() if k not in ("work", "out", "command")}
    path = os.path.join(options.out, f"{options.rig}.run.json")
    before: dict[str, Any] = {}
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            before = json.load(file)
    commits = list(dict.fromkeys([*before.get("commit", "").split(), commit]))
    runs = [*before.get("runs", []), {"commit": commit, "seconds": round(seconds), "options": asked}]
    with open(path, "w", encoding="utf-8") as file:
        total = sum(each["seconds"] for each in runs)
        json.dump({"commit": " ".join(commits), "seconds": total, "options": asked, "runs": runs}, file, indent=1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
