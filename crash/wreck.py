"""A wreck: a store on which several processes were at work at once, each killed at a fault point of its own.

What the next open finds is everything in flight together, in every state of the table. For rigs that are about
recovery itself.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial

import layerstore
from crash import workloads as w
from crash.workloads import drop, put, stage
from layerstore import LayerSpec
from layerstore.store import Store
from layerstore.system import faults
from layerstore.testing import FaultNotReachedError, Ledger, layer, name, start_child

Part = Callable[[Store, Ledger], object]


def wreck(root: str, ledger: Ledger) -> None:
    """Make one at *root*, which must not exist."""
    with layerstore.open(root) as store:
        put(store, ledger, w.BASE, w.BASE_ID, names=("base",))
        put(store, ledger, w.DOOMED, w.DOOMED_ID, names=("doomed",))
        put(store, ledger, w.FOUR, "4" * 64)
        left = stage(store, w.LEFT)
        left.seal()
        left.release()
    parts: list[tuple[Part, str, str]] = [
        (lambda each, told: drop(each, told, w.DOOMED_ID, "doomed"), "txn.delete", "after"),
        (lambda each, _told: stage(each, w.FIVE), "stage.output", "before"),
        (lambda each, told: put(each, told, w.THREE, "3" * 64), "stage.sync", "before"),
        (lambda each, _told: each.checkpoint(archive=True), "archive.rename", "after"),
        (lambda each, told: drop(each, told, "4" * 64), "txn.delete.gone", "after"),
        (_with_big_data, "apply.big-data.write", "after"),
        (_batch, "publish.rename", "after"),
    ]
    _stop_all(root, ledger, parts)


def _with_big_data(store: Store, ledger: Ledger) -> None:
    put(store, ledger, w.TOP, w.TOP_ID, parent=w.BASE_ID, big_data={"key": b"value"})


def _batch(store: Store, ledger: Ledger) -> None:
    facts = [layer(w.FIRST_ID, w.ONE.diff_id), layer(w.SECOND_ID, w.TWO.diff_id), name("pair", "layer", w.SECOND_ID)]
    with stage(store, w.ONE) as one, stage(store, w.TWO) as two, ledger.asking(*facts):
        store.apply_batch([
            LayerSpec(one, id=w.FIRST_ID), LayerSpec(two, id=w.SECOND_ID, parent=w.FIRST_ID, names=("pair",)),
        ])


def _stop_all(root: str, ledger: Ledger, parts: list[tuple[Part, str, str]]) -> None:
    """Each part in a process of its own, with the store open in all before any begins; then kill all where they are."""
    pids = []
    for part, point, when in parts:
        pid = start_child(partial(_stopped_at, root, ledger, part, point, when))
        pids.append(pid)
        _await_stop(pid, "with the store open")
    for pid, (_part, point, when) in zip(pids, parts, strict=True):
        os.kill(pid, signal.SIGCONT)
        _await_stop(pid, f"at {point}:{when}")
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _stopped_at(root: str, ledger: Ledger, part: Part, point: str, when: str) -> None:
    with layerstore.open(root) as store:
        os.kill(os.getpid(), signal.SIGSTOP)
        faults.install(faults.parse(f"{point}:{when}:stop"))
        part(store, ledger.shared())


def _await_stop(pid: int, where: str) -> None:
    status = os.waitpid(pid, os.WUNTRACED)[1]
    if not os.WIFSTOPPED(status):
        raise FaultNotReachedError(f"a part of the wreck did not stop {where}: wait status {status:#x}")
