"""Mistakes planted to see that the rig sees them: each is what a tired engineer could have left out.

``RECORDED`` are run in the process whose writes are recorded, ``JUDGED`` in the one that recovers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from layerjournal import engine
from layerjournal.effects import Effects
from layerstore.lifecycle.states import State
from layerstore.recovery import recover
from layerstore.recovery.planner import Subjects
from layerstore.system import faults, fs, kernel


def _without_sync(*left_out: str) -> Callable[[], None]:
    def sync_filesystem(fd: int, *, point: str) -> None:
        with faults.point(point):
            if point not in left_out:
                kernel.syncfs(fd)

    def plant() -> None:
        fs.sync_filesystem = sync_filesystem

    return plant


def _database_at_once() -> None:
    """Nothing of the new database is on disk when it takes the name of the old one."""
    open_ = engine.lmdb.open

    def open_unsynced(path: bytes, **options: Any) -> Any:
        return open_(path, **options | {"sync": b"/rebuild/" not in path})

    def sync_path(self: Effects, _path: str, *, point: str) -> None:
        with self.point(point):
            pass

    engine.lmdb = SimpleNamespace(**{**vars(engine.lmdb), "open": open_unsynced})
    Effects.sync_path = sync_path  # type: ignore[method-assign]
    _without_sync("rebuild.sync")()


def _trust_committed() -> None:
    """A rename is made durable by nothing but recovery, which does it again; this one believes the row."""
    gather = recover.gather

    def trusting(*args: object) -> Subjects:
        found = gather(*args)   # type: ignore[arg-type]
        ended = (State.COMMITTED, State.GONE)
        layers = {txid: row for txid, row in found.layers.items() if row["state"] not in ended}
        images = {key: row for key, row in found.images.items() if row["state"] not in ended}
        return replace(found, layers=layers, redo=frozenset(), images=images, redo_images=frozenset())

    recover.gather = trusting   # type: ignore[assignment]


RECORDED: dict[str, Callable[[], None]] = {
    # each of them alone the next one makes up for, on these file systems; ``posix`` tells
    "what is put back is told before it syncs": _without_sync(
        "repair.put-back.sync", "repair.settle", "repair.image.sync", "repair.image.settle"),
    "staging without its sync": _without_sync("stage.sync"),
    "a checkpoint without its sync": _without_sync("checkpoint.sync"),
    "a repair that exchanges before it syncs": _without_sync("repair.sync"),
    "a repair that is told before it syncs": _without_sync("repair.settle"),
    "a view that is switched before it syncs": _without_sync("view.sync"),
    "a database that gets its name before it syncs": _database_at_once,
}
JUDGED: dict[str, Callable[[], None]] = {
    "recovery does not redo what is committed": _trust_committed,
}
