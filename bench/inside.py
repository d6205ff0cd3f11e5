"""One ``layerstore`` command, watched from inside its process: when its layer was unpacked, and who computed how long.

    python -P bench/inside.py REPORT ARGUMENT...

runs the command line with these arguments, as ever, and writes JSON to REPORT: ``watched_from`` (``c/stopwatch.c`` says it),
``begun`` and ``ended``, when the differ was called and when it was done, in seconds of CLOCK_MONOTONIC; seconds of processor
time: of the main thread before, meanwhile and after (``start``, ``pipeline``, ``end``), of the other ``threads`` by their
names, and of the ``children`` that were waited for. A program of its own, which imports little: it
shall not start slower than what it watches.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from typing import Any


def main(report: str, *arguments: str) -> int:
    """Run it; its exit status."""
    from layerstore.cli import program as command  # noqa: PLC0415 - what is measured begins here

    found: dict[str, Any] = {"watched_from": float(os.environ["STOPWATCH_BEGUN"]), "threads": _watch_threads()}
    _watch_differ(found)
    status = command(list(arguments))
    found["end"] = time.thread_time() - found.pop("until")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    found["children"] = used.ru_utime + used.ru_stime
    with open(report, "w", encoding="ascii") as file:
        json.dump(found, file)
    return status


def _watch_threads() -> dict[str, float]:
    """What each thread will have spent at its end, by its name; those of one name together."""
    spent: dict[str, float] = {}
    run = threading.Thread.run

    def watched(thread: threading.Thread) -> None:
        try:
            run(thread)
        finally:
            spent[thread.name] = spent.get(thread.name, 0.0) + time.thread_time()

    threading.Thread.run = watched   # type: ignore[method-assign] - for this program only
    return spent


def _watch_differ(found: dict[str, Any]) -> None:
    from layerstore.differs import TarDiffer  # noqa: PLC0415 - the command would import it

    apply_diff = TarDiffer.apply_diff

    def watched(differ: TarDiffer, target: Any) -> Any:
        found["begun"], before = time.monotonic(), time.thread_time()
        try:
            return apply_diff(differ, target)
        finally:
            found["ended"], found["until"] = time.monotonic(), time.thread_time()
            found["start"], found["pipeline"] = before, found["until"] - before

    TarDiffer.apply_diff = watched   # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
