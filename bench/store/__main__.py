"""``python -m bench.store``: measure, write the figures as JSON, and make the page from them.

    python -m bench.store --json figures.json --page docs/performance-store.md     all of it; about ten minutes
    python -m bench.store --small                                                  a try, of no use as figures
    python -m bench.store --from figures.json --page docs/performance-store.md     the page again
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench.store import commit, figures, ground, neighbour, page, readers, recovery, startup, stores

MEASURES = ("commit", "readers", "recovery", "startup", "neighbour")
FULL: dict[str, Any] = {
    "sizes": (10, 100, 1_000, 10_000, 20_000), "commit_rounds": 60, "reader_rounds": 300, "traced_rounds": 30,
    "counts": (0, 1, 10, 100), "recovery_rounds": 4, "startup_rounds": 20, "files": 20_000,
    "neighbour_rounds": {"ext4": 5, "xfs": 3},
}
SMALL: dict[str, Any] = {
    "sizes": (10, 100, 300), "commit_rounds": 7, "reader_rounds": 20, "traced_rounds": 5,
    "counts": (0, 1, 10), "recovery_rounds": 2, "startup_rounds": 3, "files": 500,
    "neighbour_rounds": {"ext4": 1, "xfs": 1},
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.store", description="What a store costs as it grows.")
    parser.add_argument("--measure", default=",".join(MEASURES), help="which, with commas between them")
    parser.add_argument("--small", action="store_true", help="small sizes and few rounds: to try it")
    parser.add_argument("--dir", default=tempfile.gettempdir(), help="where the file systems' images lie: a real disk")
    parser.add_argument("--json", help="write the figures there, beside those of other measures (default: standard output)")
    parser.add_argument("--from", dest="given", help="do not measure: take the figures of this file")
    parser.add_argument("--page", help="write the page there")
    options = parser.parse_args()
    wanted = options.measure.split(",")
    if not set(wanted) <= set(MEASURES):
        parser.error(f"the measures are {', '.join(MEASURES)}")
    if options.given:
        with open(options.given, encoding="utf-8") as file:
            found = json.load(file)
    else:
        ground.enter_namespace()
        found = measure(wanted, SMALL if options.small else FULL, options.dir, options.json)
        if options.json is None:
            sys.stdout.write(json.dumps(found, indent=1) + "\n")
    if options.page:
        _write(options.page, page.page(found))


def measure(wanted: list[str], sizes: dict[str, Any], directory: str, path: str | None = None) -> dict[str, Any]:
    """All the figures that are *wanted*; at *path* as soon as there are any, beside those of other measures there."""
    begun = time.monotonic()
    found: dict[str, Any] = {}
    if path is not None and os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    found.update(machine=figures.machine(), privileged=os.geteuid() == 0)
    for name, result in _each(wanted, sizes, directory, lambda what: _say(what, begun)):
        found[name] = result
        if path is not None:
            _write(path, json.dumps(found, indent=1) + "\n")
    _say("done", begun)
    return found


def _each(
    wanted: list[str], sizes: dict[str, Any], directory: str, say: Callable[[str], None],
) -> Iterator[tuple[str, dict[str, Any]]]:
    if set(wanted) - {"neighbour"}:
        with ground.ground(directory) as where:
            say("filling")
            roots = stores.grow(sizes["sizes"], where)
            least, middle, most = min(roots), sorted(roots)[len(roots) // 2], max(roots)
            measures: dict[str, Callable[[], dict[str, Any]]] = {   # what deletes comes last: see ``ground``
                "startup": lambda: startup.measure(
                    {size: roots[size] for size in (least, most)}, rounds=sizes["startup_rounds"]),
                "commit": lambda: commit.measure(
                    roots, where, rounds=sizes["commit_rounds"], peer_sizes=sorted(roots)),
                "readers": lambda: {"layers": middle, "beside": readers.measure(
                    roots[middle], rounds=sizes["reader_rounds"], traced_rounds=sizes["traced_rounds"])},
                "recovery": lambda: recovery.measure(
                    {least: fresh, most: roots[most]}, counts=sizes["counts"], rounds=sizes["recovery_rounds"]),
            }
            fresh = stores.copy(roots[least], f"{where}/for-recovery")
            for name, make in measures.items():
                if name in wanted:
                    say(name)
                    yield name, make()
    if "neighbour" in wanted:
        on: dict[str, Any] = {}
        for kind, rounds in sizes["neighbour_rounds"].items():
            say(f"neighbour on {kind}")
            with ground.ground(directory, kind) as where:
                on[kind] = neighbour.measure(where, files=sizes["files"], rounds=rounds)
        yield "neighbour", {"files": sizes["files"], "on": on}


def _say(what: str, begun: float) -> None:
    print(f"{time.monotonic() - begun:6.0f} s  {what}", file=sys.stderr, flush=True)


def _write(path: str | None, text: str) -> None:
    if path is None:
        sys.stdout.write(text)
        return
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


if __name__ == "__main__":
    main()
