"""LMDB's map is full, and must grow; and another process grows it while this one has the journal open.

The journal is opened with a map of a few pages instead of a gigabyte. Each state asserts that the map was full, or
was found grown, as often as it is there to show.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator

import layerstore
from crash import content
from crash.shim.scene import NotLandedError
from crash.state import State, outcome_of
from crash.workloads import BASE_ID, ONE, TWO, Images, Workload, build, put
from layerjournal import Journal
from layerjournal.engine import Engine
from layerstore.store import Store
from layerstore.testing.children import start_child, telling
from layerstore.testing.ledger import Ledger, read_ledger
from layerstore.testing.oracle import examine

SMALL = 1 << 16
"""A map of 16 pages: less than any workload needs."""
NAMES = 60
"""Transactions that outgrow it."""


def states(options: argparse.Namespace) -> Iterator[State]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as work:
        workloads = build(Images(os.path.join(work, "images")))
        for name, workload in workloads.items():
            if not options.workload or name in options.workload:
                yield telling(lambda w=workload: full(work, w))  # type: ignore[misc]
        for name in VERBS:
            if not options.workload or name in options.workload:
                yield telling(lambda n=name: grown_by_another(work, n))  # type: ignore[misc]


def small_maps() -> Counter[str]:
    """From now on journals open with a small map; how often it had to grow, or was adopted."""
    seen: Counter[str] = Counter()
    for opener in (Journal.open, Journal.create):
        opener.__func__.__kwdefaults__["map_size"] = SMALL  # type: ignore[attr-defined]

    def counting(name: str, original: Callable[..., None]) -> Callable[..., None]:
        def call(*args: object) -> None:
            seen[name] += 1
            original(*args)

        return call

    for name in ("_grow", "_adopt_map"):
        setattr(Engine, name, counting(name, getattr(Engine, name)))
    return seen


def full(work: str, workload: Workload) -> State:
    """A whole workload in a map that is full again and again: nobody notices."""
    seen = small_maps()
    root, lines = os.path.join(work, f"full-{workload.name}"), os.path.join(work, f"full-{workload.name}.ledger")
    ledger = Ledger.to_file(lines)
    workload.prepare(root, ledger)
    workload.run(root, ledger)
    if not seen["_grow"]:
        raise NotLandedError(f"{workload.name} fits into {SMALL} bytes: the map was never full")
    return _state(f"full-{workload.name}", root, lines, "the map is full", {"grown": seen["_grow"]}, workload.again)


def grown_by_another(work: str, verb: str) -> State:
    """This process has the store open; another one grows the map; then this one does *verb*."""
    seen = small_maps()
    root, lines = os.path.join(work, f"other-{verb}"), os.path.join(work, f"other-{verb}.ledger")
    ledger = Ledger.to_file(lines)
    begin, grown = os.pipe(), os.pipe()

    def other() -> None:
        os.read(begin[0], 1)
        with layerstore.open(root) as store:
            for number in range(NAMES):
                store.set_name(f"n{number}", BASE_ID)
        os.write(grown[1], b"g" if seen["_grow"] else b"-")

    child = start_child(other)   # forked before this process opens the store
    with layerstore.open(root) as store:
        put(store, ledger, ONE, BASE_ID)
        before = seen["_adopt_map"]
        os.write(begin[1], b"b")
        if os.read(grown[0], 1) != b"g":
            raise NotLandedError("the other process did not have to grow the map")
        VERBS[verb](store, ledger)
        if seen["_adopt_map"] == before:
            raise NotLandedError(f"{verb} did not find the map grown")
    if os.waitpid(child, 0)[1] != 0:
        raise AssertionError("the other process failed")
    return _state(verb, root, None, "the map was grown by another process", {"adopted": seen["_adopt_map"]}, None)


def _list(store: Store, _ledger: Ledger) -> None:
    if [each.id for each in store.layers()] != [BASE_ID] or store.resolve("n1") != ("layer", BASE_ID):
        raise AssertionError("what the other process committed is not seen")


def _delete(store: Store, _ledger: Ledger) -> None:
    for number in range(NAMES):
        store.drop_name(f"n{number}")
    store.delete_layer(BASE_ID)


VERBS: dict[str, Callable[[Store, Ledger], object]] = {
    "list": _list,
    "name": lambda store, _ledger: store.set_name("mine", BASE_ID),
    "apply": lambda store, ledger: put(store, ledger, TWO, "1" * 64, parent=BASE_ID),
    "delete": _delete,
    "checkpoint": lambda store, _ledger: store.checkpoint(archive=True),
    "check": lambda store, _ledger: store.check(content=True),
}


def _state(
    workload: str, root: str, lines: str | None, fault: str, details: dict[str, object],
    again: Callable[[Store], object] | None,
) -> State:
    verdict = examine(root, expect=read_ledger(lines) if lines else None, trees=content.TREES, again=again)
    return State(
        rig="failing", workload=workload, fault=fault, outcome=outcome_of(verdict.happened, verdict.violations),
        violations=verdict.violations, redo=bool(verdict.redo), fs="tmpfs", details=details,
        reproduce=f"python -m crash run failing --scenario growing --workload {workload.removeprefix('full-')}",
    )
