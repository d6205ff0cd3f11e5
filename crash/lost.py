"""Workloads in which the database was lost or damaged, and is rebuilt. What a crash leaves is rebuilt again, if need be."""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial

import layerstore
from crash import workloads as w
from crash.beside.common import compared, told
from crash.workloads import Images, Workload, drop, pull, put
from layerjournal import pages
from layerstore.errors import InvalidArgumentError
from layerstore.store import Store
from layerstore.testing import Ledger, image, layer, name, still_clock

SNAPSHOT = "snapshot"
WRONG = b"born_nomed"
DATABASE = "database"


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
        Workload("rebuild-log", partial(damaged, images), _rebuild, kept, mend, handle=False),
    ]
    return {each.name: each for each in made}


def deleted(images: Images) -> dict[str, Workload]:
    """``delete-lost``: layers and an image are deleted, and what loses the power loses the database as well.

    Nothing settles the deletions: a move that was not on disk when they were told of brings a layer back. The image has
    one layer: of a chain of which a loss of power undid some moves the rebuild says that a part was lost.
    """
    def prepare(root: str, ledger: Ledger) -> None:
        with layerstore.open(root) as store:
            put(store, ledger, w.BASE, w.BASE_ID, names=("base",))
            put(store, ledger, w.DOOMED, w.DOOMED_ID, names=("doomed",))
            pull(store, ledger, images.large, "app")
            store.checkpoint(archive=True)       # so that the archive knows of them, and the log alone of their end
        w.settle(root)

    def run(root: str, ledger: Ledger) -> None:
        what = images.large
        gone = [image(what.id, None), name("app", "image", None), *(layer(each, None) for each in what.layer_ids())]
        with layerstore.open(root) as store:
            drop(store, ledger, w.DOOMED_ID, "doomed")
            with ExitStack() as each_alone:      # with the log goes what made them one
                for fact in gone:
                    each_alone.enter_context(ledger.asking(fact))
                store.delete_image(what.id)

    def lose_and_mend(root: str) -> None:
        """Once: what was rebuilt is not lost again."""
        if not any(each.startswith("journal-data") for each in os.listdir(os.path.join(root, "quarantine"))):
            with open(os.path.join(root, "journal", "data.mdb"), "r+b") as file:
                file.write(bytes(os.fstat(file.fileno()).st_size))
        mend(root)

    return {"delete-lost": Workload("delete-lost", prepare, run, w._ensure((w.BASE, w.BASE_ID, None)), lose_and_mend)}


def telling(made: dict[str, Workload]) -> dict[str, Workload]:
    """The same, for rigs that look before the store is opened: whoever was told that it is rebuilt finds it so."""
    def told_of(workload: Workload) -> Workload:
        def run(root: str, ledger: Ledger) -> None:
            with ledger.asking(told(DATABASE, "sound")):
                workload.run(root, ledger)

        return replace(workload, run=run, look=_look)

    return {each: told_of(workload) for each, workload in made.items()}


def _look(root: str, lines: list[bytes]) -> list[str]:
    path = os.path.join(root, "journal", "data.mdb")
    sound = os.path.exists(path) and not pages.damage(path) and WRONG not in _content(path)
    return compared(DATABASE, lambda: told(DATABASE, "sound" if sound else None), lines)


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
    for stray in ("f" * 64, "e" * 64):   # what no record and no side file tells of
        os.mkdir(os.path.join(root, "layers", stray))
    with open(os.path.join(root, "images", "f" * 64), "wb") as file:
        file.write(b"torn")
    os.unlink(os.path.join(root, "journal", "data.mdb"))
    w.settle(root)   # what was lost before the rebuild, and the database with it, nothing is left to tell of


def damaged(images: Images, root: str, ledger: Ledger) -> None:
    """Every row of a layer is wrong, and the log is right."""
    work(images, root, ledger)
    path = os.path.join(root, "journal", "data.mdb")
    data = _content(path)
    with open(path, "wb") as file:
        file.write(data.replace(b"born_named", WRONG))
    w.settle(root)   # what was lost before the rebuild, and the database with it, nothing is left to tell of


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _rebuild(root: str, _ledger: Ledger | None) -> None:
    layerstore.rebuild(root, clock=still_clock)


def _rebuild_from(root: str, _ledger: Ledger | None) -> None:
    layerstore.rebuild(root, source=os.path.join(os.path.dirname(root), SNAPSHOT), clock=still_clock)
