"""Garbage: what nothing needs any more. Beside live writers; by the same journal as everything else.

Finished trees that nobody applied within the retention, unfinished ones whose spool nobody went on with, layers that
no image, name, lease, mount or child needs, and the trash of acknowledged deletions. Never what a live process holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from layerstore import catalog, executor, fs
from layerstore.checkpoint import checkpoint
from layerstore.delete import finish_all, promise_unused
from layerstore.errors import BusyError, HostError, PendingError
from layerstore.handle import Handle
from layerstore.staging import Staging, discard
from layerstore.states import State


@dataclass(frozen=True, slots=True)
class GcReport:
    """What was (or, on a dry run, would be) let go of. ``staged`` are txids; ``emptied`` counts trees unlinked."""

    staged: tuple[str, ...]
    layers: tuple[str, ...]
    deferred: tuple[str, ...]
    emptied: int


def collect(handle: Handle, *, retention: float, grace: float, dry_run: bool) -> GcReport:
    """Collect. *retention* and *grace* are seconds: for staged trees, and for unreferenced layers since creation."""
    if not dry_run:
        handle.check_writable()
    staged = _old_staged(handle, retention)
    if dry_run:
        with handle.read() as view:
            return GcReport(tuple(staged), tuple(_unreferenced(view, handle.clock(), grace)), (), 0)
    discarded = [txid for txid in staged if _discard(handle, txid)]
    promised = handle.update("delete", partial(_promise, now=handle.clock(), grace=grace))
    report = finish_all(handle, promised, wait=0.0)
    try:
        emptied = checkpoint(handle).emptied
    except (HostError, OSError) as error:
        if not promised:
            raise
        raise PendingError(f"what was collected is deleted, but its space could not be freed now: {error}") from error
    return GcReport(tuple(discarded), report.layers, report.deferred, emptied)


def _promise(txn: Any, *, now: int, grace: float) -> list[tuple[str, str]]:
    """All in one transaction, so that what fails afterwards leaves nothing half-collected: the rest is finished later."""
    promised: list[tuple[str, str]] = []
    while found := promise_unused(txn, _unreferenced(txn, now, grace)):   # a parent is free once its children are gone
        promised += found
    return promised


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
            if old and not fs.is_locked(handle.dirs["staging"], txid):
                found.append(txid)
    return found


def _finished_ns(handle: Handle, txid: str, row: dict[str, Any]) -> int | None:
    """When the tree was finished, staged or only filled, or its spool last added to; None if it is none of these."""
    if row["state"] == State.STAGED:
        return int(row.get("sealed_ns", 0))
    if row["state"] != State.STAGING:
        return None
    left = executor.left_at(handle, txid)
    return int(left["filled_ns"]) if left is not None else executor.spool_at(handle, txid, row)


def _discard(handle: Handle, txid: str) -> bool:
    """Under the tree's lock, if it is still left finished. False if somebody adopted it meanwhile."""
    try:
        lock = fs.lock_tree(handle.dirs["staging"], txid, wait=0.0, point="gc.lock")
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
    discard(handle, Staging(txid, row["content_key"], lock))
    return True


def _unreferenced(view: Any, now: int, grace: float) -> list[str]:
    return [
        layer.id for layer in catalog.layers(view, damaged=False)
        if not layer.names and now - layer.created_ns >= grace * 1e9 and not catalog.users(view, layer.id)
    ]
