"""Carrying out: brings to rest what a crash, or somebody else, left, each thing under its lock.

The steps are in ``acting`` (one tree), ``batches`` (a promised batch) and ``moving`` (their effects on the disk). A
deletion's second half is here, too, because recovery does the very same.
"""

from __future__ import annotations

from contextlib import ExitStack

from layerstore.errors import BusyError, HostError, PendingError
from layerstore.lifecycle.states import State
from layerstore.opening.handle import Handle
from layerstore.recovery import acting, moving
from layerstore.recovery.batches import finish_batch
from layerstore.recovery.looking import find_tree, row_of
from layerstore.recovery.planner import Do, decide
from layerstore.system import flock, fs
from layerstore.system.removing import remove_tree

__all__ = ["finish_delete", "remove_stray", "resolve", "resolve_deleting"]


def resolve(handle: Handle, txid: str, *, wait: float | None = None) -> tuple[Do, str] | None:
    """Bring one tree to rest: decide, lock it, decide again, act. Returns what was done; None if nothing was.

    *wait* bounds, in seconds, how long to wait for a live holder of a tree that must be finished (BusyError).
    """
    row = row_of(handle, txid)
    if row is None:
        return None
    if row["state"] == State.INCOMPLETE:   # with its whole batch, whatever became of this one tree
        decided = decide(row, find_tree(handle, txid, row))
        finish_batch(handle, row["batch"], wait=wait)
        return decided
    return acting.bring_to_rest(handle, txid, row, wait=wait)


def finish_delete(handle: Handle, txid: str, *, wait: float) -> bool:
    """Carry a promised deletion out. False if readers hold the tree longer than *wait* seconds: it stays hidden.

    Errors after the promise are PendingError: the next open finishes it.
    """
    try:
        done = resolve_deleting(handle, txid, wait=wait)
    except (HostError, OSError) as error:
        raise PendingError(f"the deletion of {txid} is promised, but could not be finished now: {error}") from error
    return done


def resolve_deleting(handle: Handle, txid: str, *, wait: float) -> bool:
    row = row_of(handle, txid)
    if row is None or row["state"] != State.DELETING:
        return True
    with ExitStack() as stack:
        try:
            found = acting.lock_where_it_is(handle, stack, txid, wait=wait, point="delete.lock")
        except BusyError:
            return False
        if found is not None and found[0]["state"] == State.DELETING:
            acting.act(handle, txid, *found)
    return True


def remove_stray(handle: Handle, path: str) -> bool:
    """Remove what no row knows, under its lock, after looking once more. False if it is alive after all."""
    directory, name = path.split("/", 1)
    if directory == "images":
        return _remove_stray_file(handle, name)
    try:
        lock = flock.lock_tree(handle.dirs[directory], name, wait=0.0, point="recover.lock")
    except BusyError:
        return False
    except NotADirectoryError:
        lock = None
    try:
        table = "mounts" if directory == "uppers" else "layers"
        with handle.read() as view:
            if view.get(table, name) is not None:
                return False
        remove_tree(handle.dirs[directory], name, point="recover.stray.unlink")
    finally:
        if lock is not None:
            lock.close()
    return True


def _remove_stray_file(handle: Handle, name: str) -> bool:
    with flock.locked_dir(handle.dirs["images"]):
        image_id = name.removeprefix(".").removesuffix(".new")
        with handle.read() as view:
            row = view.get("images", image_id)
        if row is not None and not (name.startswith(".") and row["state"] != State.INCOMPLETE):
            return False
        try:
            fs.unlink(handle.dirs["images"], name, point="recover.stray.unlink")
        except IsADirectoryError:        # nothing of ours makes one here
            moving.set_aside(handle, "images", name)
    return True
