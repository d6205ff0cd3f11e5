"""Garbage: what nothing needs any more. Beside live writers; by the same journal as everything else.

Finished trees that nobody applied within the retention, unfinished ones whose spool nobody went on with, layers that
no image, name, lease, mount or child needs, the trash of acknowledged deletions, and the oldest segments of the log.
Never what a live process holds. What goes is counted before it is removed, and its removal, file by file, keeps to a
rate if there is one: nobody waits for it, since what is removed is hidden by then.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from layerstore.errors import BusyError, HostError, InvalidArgumentError, PendingError
from layerstore.lifecycle import catalog
from layerstore.lifecycle.states import State
from layerstore.opening.handle import Handle
from layerstore.opening.journaling import journal_errors
from layerstore.recovery import looking
from layerstore.system import flock, fs
from layerstore.system.rate import Rate
from layerstore.trees.measure import measure
from layerstore.verbs.checkpoint import checkpoint
from layerstore.verbs.delete import finish_all, promise_unused
from layerstore.verbs.staging import Staging, discard


@dataclass(frozen=True, slots=True)
class GcPolicy:
    """What may go. Seconds: ``retention`` of staged trees, ``grace`` of unreferenced layers since their creation.

    ``segments``: how many segments of the archived log are kept, the newest; at least one, None for all. What was in the
    others is history that nobody can look up any more. ``rate``: files removed a second at most, so that whoever shares
    the disk is not disturbed; None for no limit. A large file counts once more for each 64 MiB that it takes.
    """

    retention: float = 7 * 86_400.0
    grace: float = 3_600.0
    segments: int | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.segments is not None and self.segments < 1:
            raise InvalidArgumentError(
                f"segments={self.segments}: the newest one is always kept", hint="1 or more, or None for all",
            )
        if self.rate is not None and not self.rate > 0:
            raise InvalidArgumentError(
                f"rate={self.rate}: nothing would ever be removed", hint="more than 0 files a second, or None",
            )


@dataclass(frozen=True, slots=True)
class GcReport:
    """What was (or, on a dry run, would be) let go of. ``staged`` are txids; ``emptied`` counts trees and image files.

    ``freed``: bytes that were allocated to all of it; also blocks that stay, because files elsewhere share them (reflinks).
    """

    staged: tuple[str, ...]
    layers: tuple[str, ...]
    deferred: tuple[str, ...]
    emptied: int
    segments: tuple[str, ...] = ()
    freed: int = 0


def collect(handle: Handle, policy: GcPolicy, *, dry_run: bool) -> GcReport:
    """Collect, in order: staged trees; layers, hidden in one transaction; the trash; segments."""
    if dry_run:
        return _plan(handle, policy)
    handle.check_writable()
    staged = _old_staged(handle, policy.retention)
    freed = sum(_size(handle, "staging", txid) for txid in staged)
    pause = pace(policy.rate)
    discarded = [txid for txid in staged if _discard(handle, txid, pause)]
    # all in one transaction, so that what fails afterwards leaves nothing half-collected: the rest is finished later
    promised = handle.update("delete", partial(_promise, now=handle.clock(), grace=policy.grace))
    report = finish_all(handle, promised, wait=0.0)
    freed += measure(handle.dirs["trash"]).allocated
    try:
        emptied = checkpoint(handle, pause=pause).emptied
        freed -= measure(handle.dirs["trash"]).allocated
        dropped, size = _drop(handle, policy.segments)
    except (HostError, OSError) as error:
        if not promised:
            raise
        raise PendingError(f"what was collected is deleted, but its space could not be freed now: {error}") from error
    return GcReport(tuple(discarded), report.layers, report.deferred, emptied, tuple(dropped), max(freed, 0) + size)


def _plan(handle: Handle, policy: GcPolicy) -> GcReport:
    """What ``collect`` would do if nobody did anything meanwhile."""
    staged = _old_staged(handle, policy.retention)
    with handle.read() as view:
        unused = _unused(view, handle.clock(), policy.grace)
        opened = [entry for kind in ("layer", "image") for _, entry in catalog.opened(view, kind)]
        segments = [row["name"] for row in view.segment_rows()]
    gone = sum(entry["state"] == State.GONE for entry in opened)
    segments = segments[:-policy.segments] if policy.segments is not None else []
    freed = sum(_size(handle, "staging", txid) for txid in staged) + sum(_size(handle, "layers", each) for each in unused)
    freed += measure(handle.dirs["trash"]).allocated + sum(_segment_sizes(handle, segments))
    return GcReport(tuple(staged), tuple(unused), (), gone + len(unused), tuple(segments), freed)


def _drop(handle: Handle, keep: int | None) -> tuple[list[str], int]:
    """Drop the log's oldest segments; their names, and how many bytes they had."""
    if keep is None:
        return [], 0
    with handle.read() as view:
        names = [row["name"] for row in view.segment_rows()][:-keep]
    size = sum(_segment_sizes(handle, names))
    with journal_errors(handle.set_poison):
        return handle.journal.drop_segments(keep), size


def _segment_sizes(handle: Handle, names: list[str]) -> list[int]:
    sizes = []
    with fs.open_dir("journal", handle.root_fd) as journal, fs.open_dir("segments", journal) as segments:
        for name in names:
            with suppress(FileNotFoundError):
                sizes.append(os.stat(name, dir_fd=segments).st_blocks * 512)
    return sizes


def _size(handle: Handle, directory: str, name: str) -> int:
    """Bytes allocated to a tree; 0 if it is not there any more."""
    try:
        with fs.open_dir(name, handle.dirs[directory]) as fd:
            return os.fstat(fd).st_blocks * 512 + measure(fd).allocated
    except FileNotFoundError:
        return 0


def pace(rate: float | None) -> Callable[..., None]:
    """Called before each file that is removed: waits, so that there are no more than *rate* a second."""
    return Rate(rate, time.monotonic, time.sleep).take


def _promise(txn: Any, *, now: int, grace: float) -> list[tuple[str, str]]:
    return promise_unused(txn, _unused(txn, now, grace))


def _unused(view: Any, now: int, grace: float) -> list[str]:
    """Old layers that no name, image, lease, mount or remaining child needs: children before their parents."""
    parents = {
        layer.id: layer.parent for layer in catalog.layers(view, damaged=False)
        if not layer.names and now - layer.created_ns >= grace * 1e9
    }
    going: dict[str, None] = {}
    looked = list(parents)
    while looked:   # at all, then at the parents of those that go: each layer once, and once for each child at most
        free = [each for each in dict.fromkeys(looked) if _users_go(view, each, going)]
        going.update(dict.fromkeys(free))
        looked = [parent for each in free if (parent := parents[each]) in parents and parent not in going]
    return list(going)


def _users_go(view: Any, layer_id: str, going: Container[str]) -> bool:
    return all(user.removeprefix("child ") in going for user in catalog.users(view, layer_id))


def _old_staged(handle: Handle, retention: float) -> list[str]:
    now = handle.clock()
    with handle.read() as view:
        rows = [
            (txid, view.get("layers", txid)) for txid, entry in catalog.opened(view, "layer")
            if entry["state"] in (State.STAGING, State.STAGED)
        ]
    found = []
    for txid, row in rows:
        if row is not None and not handle.holds(txid):
            finished = _finished_ns(handle, txid, row)
            old = finished is not None and now - finished >= retention * 1e9
            if old and not flock.is_locked(handle.dirs["staging"], txid):
                found.append(txid)
    return found


def _finished_ns(handle: Handle, txid: str, row: dict[str, Any]) -> int | None:
    """When the tree was finished, staged or only filled, or its spool last added to; None if it is none of these."""
    if row["state"] == State.STAGED:
        return int(row.get("sealed_ns", 0))
    if row["state"] != State.STAGING:
        return None
    left = looking.left_at(handle, txid)
    return int(left["filled_ns"]) if left is not None else looking.spool_at(handle, txid, row)


def _discard(handle: Handle, txid: str, pause: Callable[[int], None]) -> bool:
    """Under the tree's lock, if it is still left finished. False if somebody adopted it meanwhile."""
    try:
        lock = flock.lock_tree(handle.dirs["staging"], txid, wait=0.0, point="gc.lock")
    except BusyError:
        return False
    if lock is None:
        return False
    handle.hold(txid, lock)
    with handle.read() as view:
        row: dict[str, Any] | None = view.get("layers", txid)
    if row is None or _finished_ns(handle, txid, row) is None:
        handle.let_go(txid)
        return False
    discard(handle, Staging(txid, row["content_key"], lock), pause=pause)
    return True
