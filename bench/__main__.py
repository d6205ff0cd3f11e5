"""``python -m bench``: run the measures, keep what they found as JSON, write the page.

    python -m bench list
    python -m bench run MEASURE [--out DIR] [--cache DIR] [--quick] [MEASURE'S OWN OPTIONS]
    python -m bench all [--out DIR] [--cache DIR] [--quick]       every measure in turn
    python -m bench page --out DIR [--page docs/performance.md]   the page again, from what lies in DIR

``run`` and ``all`` write the page too, to ``OUT/performance.md``, or where ``--page`` says. Only the command line lives here.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from bench import machine
from bench.page import promised_of, write_page

MEASURES: dict[str, str] = {   # name: module; the order of the page
    "unpack": "bench.unpack",
    "image": "bench.image",
    "partial": "bench.partial",
    "network": "bench.network",
    "memory": "bench.memory",
    "dedup": "bench.dedup",
    "check": "bench.checking",
    "store": "bench.growing",
    "open": "bench.opening",
    "forks": "bench.forks",
    "profile": "bench.profile",
}


def main(argv: list[str]) -> int:
    options = parser().parse_args(argv)
    if options.command == "list":
        for name in MEASURES:
            print(f"{name:10s} {first_line(name)}")
        return 0
    os.makedirs(options.out, exist_ok=True)
    names = {"run": [getattr(options, "measure", "")], "all": list(MEASURES), "page": []}[options.command]
    failed = [name for name in names if not _run(name, options)]
    page = options.page or os.path.join(options.out, "performance.md")
    write_page(Path(options.out), Path(page), MEASURES)
    print(f"written: {page}")
    return 1 if failed else 0


def _run(name: str, options: argparse.Namespace) -> bool:
    begun = time.monotonic()
    print(f"== {name}: {first_line(name)}", flush=True)
    module = importlib.import_module(MEASURES[name])
    own = argparse.ArgumentParser(add_help=False)
    module.arguments(own)
    given = argparse.Namespace(**{**vars(own.parse_args([])), **vars(options)})
    result: dict[str, Any] = {"measure": name, "quick": options.quick, "machine": machine.facts()}
    path = Path(options.out, f"{name}.json")
    kept: dict[str, Any] = {}

    def keep(part: dict[str, Any]) -> None:
        kept.update(part, unfinished="stopped")
        path.write_text(json.dumps({**result, **kept}, indent=1) + "\n")

    given.keep = keep
    try:
        result.update(module.measure(given))
    except machine.CannotError as error:
        print(f"   cannot be measured here: {error}")
        result.update({**kept, "unfinished": str(error)} if kept else {"cannot": str(error)})
    result["seconds"] = round(time.monotonic() - begun, 1)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"   {result['seconds']:.0f} s, {path}", flush=True)
    for what, target, measured, reached in [] if "cannot" in result else promised_of(MEASURES[name], result):
        print(f"   {'reached    ' if reached else 'NOT REACHED'} {what} {target}: {measured}", flush=True)
    return not {"cannot", "unfinished"} & result.keys()


def first_line(name: str) -> str:
    return (importlib.import_module(MEASURES[name]).__doc__ or "").split("\n")[0]


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").split("\n")[0])
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the measures")
    run = commands.add_parser("run", help="one measure").add_subparsers(dest="measure", required=True)
    for name, module in MEASURES.items():
        each = run.add_parser(name, help=first_line(name))
        common(each)
        importlib.import_module(module).arguments(each)
    common(commands.add_parser("all", help="every measure in turn"))
    page = commands.add_parser("page", help="the page again, from the results in --out")
    page.add_argument("--out", default="bench-out")
    page.add_argument("--page")
    return top


def common(each: argparse.ArgumentParser) -> None:
    each.add_argument("--out", default="bench-out", help="where results, page and pictures go (default: %(default)s)")
    each.add_argument("--page", help="where the page goes (default: OUT/performance.md)")
    each.add_argument("--cache", default=default_cache(), help="layers, tools and the disk's file (default: %(default)s)")
    each.add_argument("--quick", action="store_true", help="fewer rounds and layers: a look, not a figure to publish")


def default_cache() -> str:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "layerstore-bench")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
