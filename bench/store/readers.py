"""Measure 2: how long a reader takes, and whether it waits for a lock, while writers stage and apply without a pause.

Latency: one reader process, rounds of every way of reading, beside 0, 1 and 4 writers. On a machine with fewer cores
than processes a reader also waits for the processor, which is no lock: the same with as many processes that only
compute shows how much. Lock waits are counted in runs of their own, under strace; see ``tracing`` for what one is.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.store import stores, tracing
from bench.store.figures import summary

BESIDE = (("nobody", "", 0), ("1 writer", "write", 1), ("4 writers", "write", 4), ("4 that compute", "spin", 4))


def measure(root: str, *, rounds: int, traced_rounds: int) -> dict[str, Any]:
    """The figures for the store at *root*, to which the writers add."""
    found: dict[str, Any] = {}
    for name, verb, count in BESIDE:
        with beside(root, verb, count, f"timed {name}") as made:
            taken = json.loads(stores.run("read", root, rounds))
        found[name] = {"ways": {way: summary(samples) for way, samples in taken.items()}, "commits": sum(made)}
        if verb != "spin":
            with beside(root, verb, count, f"traced {name}") as made:
                calls, _ = tracing.run(
                    stores.worker("read", root, traced_rounds), tracing.LOCKS, env=stores.environment())
            counted = tracing.between_marks(calls)
            found[name]["traced"] = {
                "rounds": traced_rounds, "flocks": sum(call.name == "flock" for call in counted),
                "futexes": sum(call.name.startswith("futex") for call in counted),
                "waits": tracing.lock_waits(calls), "commits": sum(made),
            }
    return found


@contextmanager
def beside(root: str, verb: str, count: int, salt: str) -> Iterator[list[int]]:
    """*count* workers that go on until it is left; then the list says how many commits each made."""
    made: list[int] = []
    working = [
        subprocess.Popen(stores.worker(verb, root, f"{salt} {n}"), env=stores.environment(), stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, text=True)
        for n in range(count)
    ]
    try:
        for each in working:
            assert each.stdout is not None
            each.stdout.readline()
        yield made
    finally:
        for each in working:
            assert each.stdin is not None
            each.stdin.close()
            each.stdin = None
        made += [int(each.communicate()[0]) for each in working]
