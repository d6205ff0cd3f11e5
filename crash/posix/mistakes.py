"""Mistakes that a tired engineer could make, planted into the recorded program: this rig must catch each.

``plant`` runs in the recording's child; ``landed`` looks at what was recorded, and a mistake that changed nothing
raises: a control that controls nothing must not be green.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import layerjournal.creating
from crash.persistence.history import History
from layerjournal.effects import Effects
from layerstore.system import faults, fs


class NotLandedError(AssertionError):
    """The mistake was planted, and the recording shows nothing of it."""


@dataclass(frozen=True)
class Mistake:
    workload: str
    plant: Callable[[], None]
    landed: Callable[[History], bool]


def _no_staging_sync() -> None:
    whole = fs.sync_filesystem

    def skipping(fd: int, *, point: str) -> None:
        if point == "stage.sync":
            with faults.point(point):
                return
        whole(fd, point=point)

    fs.sync_filesystem = skipping


def _no_directory_sync() -> None:
    def skip(_fd: int, *, point: str) -> None:
        with faults.point(point):
            pass

    whole = Effects.sync_path

    def files_only(self: Effects, path: str, *, point: str) -> None:
        if os.path.isdir(path):
            with self.point(point):
                return
        whole(self, path, point=point)

    fs.sync_dir = skip
    Effects.sync_path = files_only  # type: ignore[method-assign]


def _journal_in_place() -> None:
    @contextmanager
    def here(path: str, effects: Effects) -> Iterator[str]:
        effects.make_dir(path, point="journal.create.mkdir")
        yield path

    layerjournal.creating._aside = here
    layerjournal.creating._publish = lambda aside, _path, effects: effects.sync_path(aside, point="journal.create.sync")


MISTAKES = {
    "no-staging-sync": Mistake(
        "pull", _no_staging_sync, lambda h: not [s for s in h.syncs if s.point == "stage.sync"]),
    "no-directory-sync": Mistake(
        "checkpoint", _no_directory_sync, lambda h: not [s for s in h.syncs if s.op == "fsync" and _is_dir(h, s.node)]),
    "journal-in-place": Mistake(
        "create", _journal_in_place, lambda h: "journal.create.rename" not in h.points),
}


def _is_dir(history: History, node: int | None) -> bool:
    return node is not None and (node == 0 or (history.born.get(node) or history.base[node]).kind == "dir")


def check(name: str, history: History) -> None:
    """NotLandedError unless the recording shows that the mistake was made."""
    if not MISTAKES[name].landed(history):
        raise NotLandedError(f"{name} changed nothing in what was recorded")


__all__ = ["MISTAKES", "Mistake", "NotLandedError", "check"]
