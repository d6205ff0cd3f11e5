"""Planted mistakes that ``failing`` must catch. Named by ``--sabotage``; each patches the product in its process."""

from __future__ import annotations

from typing import Any

from layerjournal import engine, lockfile
from layerstore import calling
from layerstore.opening.handle import Handle
from layerstore.system import fs
from layerstore.verbs import open as opening


def retries_after_eio() -> None:
    """A failed syncfs is tried once more: the second time it succeeds."""
    original = fs.sync_filesystem

    def sync(fd: int, *, point: str) -> None:
        try:
            original(fd, point=point)
        except OSError:
            original(fd, point=point)

    fs.sync_filesystem = sync


def forgets_the_poison() -> None:
    """A handle goes on after a sync that failed."""
    Handle.set_poison = lambda *_: None  # type: ignore[method-assign]


def lets_errors_out() -> None:
    """Errors of the machine are not translated."""
    def bare(error: OSError, _doing: str) -> Any:
        return error

    for each in (fs, opening, calling):
        each.host_error = bare  # type: ignore[attr-defined]


def never_looks_for_dead_readers() -> None:
    engine._READERS_EVERY = 1 << 60


def lets_the_lock_file_be_sparse() -> None:
    lockfile.reserve = lambda *_: None
