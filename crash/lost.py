"""Workloads in which the database was lost or damaged, and is rebuilt. What a crash leaves is rebuilt again, if need be."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial

import layerstore
from crash import workloads as w
from crash.workloads import Images, Workload, drop, pull, put
from layerstore.errors import InvalidArgumentError
from layerstore.store import Store
from layerstore.system import fs
from layerstore.testing import Ledger, still_clock

SNAPSHOT = "snapshot"
WRONG = b"born_nomed"


def build(images: Images) -> dict[str, Workload]:
    """``rebuild``: from archive and disk; ``rebuild-from``: from a snapshot, too; ``rebuild-log``: from the log."""
    ensure = w._ensure((w.BASE, w.BASE_ID, None), (w.TOP, w.TOP_ID, w.BASE_ID))

    def kept(store: Store) -> None:
        ensure(store)
        quarantine = os.path.join(store.root, "quarantine")
        names = [each for each in os.listdir(quarantine) if each.startswith("journal-data.mdb")]
        assert any(WRONG in _content(os.path.join(quarantine, each)) for each in names), "the old database is not kept"

    made = [
        Workload("rebuild", partial(_lost, images), _rebuild, ensure, mend, handle=False),
        Workload("rebuild-from", partial(_lost, images), _rebuild_from, ensure, mend, handle=False),
        Workload("rebuild-log", partial(_altered, images), _rebuild, kept, mend, handle=False),
    ]
    return {each.name: each for each in made}


def mend(root: str) -> None:
    """What the error says: rebuild. A database that is sound is left as it is."""
    with suppress(InvalidArgumentError):
        _rebuild(root, None)


def work(images: Images, root: str, ledger: Ledger) -> None:
    """A store with two archived segments, and work of all kinds after them; a snapshot of its middle."""
    with layerstore.open(root) as store:
        put(store, ledger, w.BASE, w.BASE_ID, names=("base",))
        store.checkpoint(archive=True)
        put(store, ledger, w.DOOMED, w.DOOMED_ID, names=("doomed",))
        store.checkpoint(archive=True)
        put(store, ledger, w.TOP, w.TOP_ID, parent=w.BASE_ID, names=("top",), big_data={"key": b"value"})
        drop(store, ledger, w.DOOMED_ID, "doomed")
        store.snapshot(os.path.join(os.path.dirname(root), SNAPSHOT))
        pull(store, ledger, images.first, "app")
        put(store, ledger, w.AGAIN, w.DOOMED_ID)
        w.stage(store, w.LEFT).release()


def _lost(images: Images, root: str, ledger: Ledger) -> None:
    work(images, root, ledger)
    for name in ("f" * 64, "e" * 64):   # what no record and no side file tells of
        os.mkdir(os.path.join(root, "layers", name))
    with open(os.path.join(root, "images", "f" * 64), "wb") as file:
        file.write(b"torn")
    os.unlink(os.path.join(root, "journal", "data.mdb"))
    _settle(root)


def _altered(images: Images, root: str, ledger: Ledger) -> None:
    """Every row of a layer is wrong, and the log is right."""
    work(images, root, ledger)
    path = os.path.join(root, "journal", "data.mdb")
    data = _content(path)
    with open(path, "wb") as file:
        file.write(data.replace(b"born_named", WRONG))
    _settle(root)


def _settle(root: str) -> None:
    """All of it is on disk: what a loss of power takes away is the rebuild's. (What it took before that, and the database
    with it, nothing is left to tell of.)
    """
    with fs.open_dir(root) as fd:
        fs.sync_filesystem(fd, point="lost.settle")


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _rebuild(root: str, _ledger: Ledger | None) -> None:
    layerstore.rebuild(root, clock=still_clock)


def _rebuild_from(root: str, _ledger: Ledger | None) -> None:
    layerstore.rebuild(root, source=os.path.join(os.path.dirname(root), SNAPSHOT), clock=still_clock)
