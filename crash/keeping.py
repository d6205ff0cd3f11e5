"""Looking after a store: ``check``, whose reads may fail and whose notes are torn, and ``gc-segments``.

What may live here: the two workloads, and what a check may find in the store that they make: the one file that was
damaged on purpose, and nothing else, whatever goes on beside it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any

import layerstore
from crash import workloads as w
from crash.repairing import flip
from crash.workloads import Images, Workload, pull, put
from layerstore.store import Store
from layerstore.testing import Ledger, layer
from layerstore.testing.ledger import Facts

__all__ = ["NAMES", "build", "look", "prepare"]

NAMES = ("check", "gc-segments")
DAMAGE: Facts = {f"damage:{w.TOP_ID}/only-a2/data": "bad"}
_MACHINES = tuple(os.strerror(each) for each in (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE))
_CHECKS: tuple[Mapping[str, Any], ...] = (   # the second writes notes, which the third goes by, and the fourth adds to
    {}, {"content": True, "note": True}, {"content": True, "since_ns": 1}, {"depth": "metadata", "budget": 0.0},
)


def build(images: Images) -> dict[str, Workload]:
    """The workloads, by name."""
    def prepare_(root: str, ledger: Ledger) -> None:
        prepare(root, ledger, images)

    made = [
        Workload("check", prepare_, _check, _again),
        Workload("gc-segments", _with_segments, _collect, _collect_again),
    ]
    return {each.name: each for each in made}


def prepare(root: str, ledger: Ledger, images: Images) -> None:
    """A store with layers that are covered by a checkpoint and such that are not, and one in which a file is bad."""
    with layerstore.open(root) as store:
        put(store, ledger, w.BASE, w.BASE_ID, names=("base",))
        put(store, ledger, w.TWO, w.TOP_ID, names=("ill",))
        store.checkpoint(archive=True)
        pull(store, ledger, images.first, "app")
    flip(os.path.join(root, "layers", w.TOP_ID, "diff", "only-a2", "data"))
    w.settle(root)
    with ledger.asking(DAMAGE):
        pass


def look(store: Store, **options: Any) -> Facts:
    """What a check finds, without what is being done just now, and what it says that the machine did not let it read."""
    report = store.check(workers=1, **options)
    return {
        f"damage:{each.subject}/{each.path}": "bad" for each in report.findings
        if each.code != "pending-recovery" and not any(said in each.message for said in _MACHINES)
    }


def _check(root: str, _ledger: Ledger) -> None:
    with layerstore.open(root) as store:
        for options in _CHECKS:
            found = look(store, **options)
            assert found.keys() <= DAMAGE.keys(), f"a check with {options} found {sorted(found)}"


def _again(store: Store) -> None:
    for options in _CHECKS[:2]:
        found = look(store, **options)
        assert found == (DAMAGE if options else {}), f"a check with {options} found {sorted(found)}"
    store.repair()
    store.delete_layer(w.TOP_ID)


def _with_segments(root: str, ledger: Ledger) -> None:
    with layerstore.open(root) as store:
        put(store, ledger, w.BASE, w.BASE_ID, names=("base",))
        store.checkpoint(archive=True)
        put(store, ledger, w.DOOMED, w.DOOMED_ID, names=("doomed",))
        store.checkpoint(archive=True)
        put(store, ledger, w.ONE, w.FIRST_ID)
        store.checkpoint(archive=True)


def _collect(root: str, ledger: Ledger) -> None:
    with layerstore.open(root) as store, ledger.asking(layer(w.FIRST_ID, None)):
        store.collect_garbage(retention=0, grace=0, segments=1)


def _collect_again(store: Store) -> None:
    """A crash may leave segments without a row, which the next archive removes."""
    with w.stage(store, w.THREE) as staged:
        store.apply_staged_layer(staged, id=w.SECOND_ID)
    store.checkpoint(archive=True)
    store.collect_garbage(retention=0, grace=0, segments=1)
    left = os.listdir(os.path.join(store.root, "journal", "segments"))
    assert len(left) == 1, f"of the archived log {sorted(left)} are left"
