"""Mistakes that a tired engineer could make, planted into the recorded program: this rig must catch each.

``plant`` runs in the recording's child; ``landed`` looks at what was recorded, and a mistake that changed nothing
raises: a control that controls nothing must not be green.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import layerjournal.creating
from crash.persistence.history import History
from layerjournal.effects import Effects
from layerstore.system import faults, fs
from layerstore.targets import parts
from layerstore.targets.layout import LayoutTarget


class NotLandedError(AssertionError):
    """The mistake was planted, and the recording shows nothing of it."""


@dataclass(frozen=True)
class Mistake:
    workload: str
    plant: Callable[[], None]
    landed: Callable[[History], bool]


def _without(left_out: str) -> Callable[[], None]:
    """One sync left out, of a file system or of a directory."""
    def leaving_out(sync: Callable[..., None]) -> Callable[..., None]:
        def skipping(fd: int, *, point: str) -> None:
            if point == left_out:
                with faults.point(point):
                    return
            sync(fd, point=point)

        return skipping

    def plant() -> None:
        fs.sync_filesystem, fs.sync_dir = leaving_out(fs.sync_filesystem), leaving_out(fs.sync_dir)

    return plant


def _without_sync(workload: str, point: str) -> Mistake:
    return Mistake(workload, _without(point), lambda h: not [s for s in h.syncs if s.point == point])


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


def _index_at_once() -> None:
    LayoutTarget._settle = lambda _self: None  # type: ignore[method-assign]


def _archive_at_once() -> None:
    """What a push writes is renamed as soon as it is written."""
    whole = os.fsync

    def fsync(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            whole(fd)

    parts.os = SimpleNamespace(**{**vars(os), "fsync": fsync})  # type: ignore[assignment]


def _in_place() -> None:
    """A replacement takes the place of what is damaged by a plain rename: that is gone."""
    def exchange(src_fd: int, src: str, dst_fd: int, dst: str, *, point: str) -> None:
        with faults.point(point):
            os.rename(src, dst, src_dir_fd=src_fd, dst_dir_fd=dst_fd)

    fs.exchange = exchange


MISTAKES = {
    "no-staging-sync": _without_sync("pull", "stage.sync"),
    "taken-before-it-is-on-disk": _without_sync("partial", "stage.sync"),
    "image-file-told-before-it-is-on-disk": _without_sync("repair-rest", "repair.image.settle"),
    "deleted-before-it-is-on-disk": _without_sync("delete-lost", "delete.sync"),
    "repaired-before-it-is-on-disk": _without_sync("repair", "repair.sync"),
    "repair-told-before-it-is-on-disk": _without_sync("repair", "repair.settle"),
    "put-back-before-it-is-on-disk": _without_sync("repair-whole", "repair.put-back.sync"),
    "side-file-repaired-before-it-is-on-disk": _without_sync("repair-whole", "repair.image.sync"),
    "view-switched-before-it-is-on-disk": _without_sync("view", "view.sync"),
    "view-built-on-what-is-not-on-disk": _without_sync("view-killed", "view.current.sync"),
    "rebuilt-before-it-is-on-disk": _without_sync("rebuild-log", "rebuild.journal.sync"),
    "old-database-gone-with-the-new-name": _without_sync("rebuild-log", "rebuild.sync"),
    "index-before-its-blobs": Mistake(
        "push", _index_at_once, lambda h: not [s for s in h.syncs if s.point == "push.settle.sync"]),
    "archive-before-it-is-on-disk": Mistake(
        "push-archives", _archive_at_once, lambda h: not [s for s in h.syncs if s.point == "push.archive.sync"]),
    "repaired-in-place": Mistake("repair", _in_place, lambda h: not [e for e in h.effects if e.kind == "exchange"]),
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
