"""Carrying out: does what the planner decides, each step under its lock.

The forward steps of apply and delete live here too (``finish_batch``, ``finish_delete``), because recovery does the
very same. Every step is idempotent, re-reads the row under the tree's lock, and takes "further along already" for
success. Every rename is NOREPLACE; nothing that anyone was promised is unlinked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from typing import Any

from layerstore.errors import BusyError, HostError, PendingError
from layerstore.formats import records
from layerstore.lifecycle import catalog
from layerstore.lifecycle.machine import fire, state_of
from layerstore.lifecycle.states import Kind, State, Trigger
from layerstore.opening.handle import Handle
from layerstore.recovery import mending
from layerstore.recovery.looking import Row, find_tree, name_of, row_of
from layerstore.recovery.planner import Do, Place, TreeFacts, decide
from layerstore.system import flock, fs

_SLICE_SECONDS = 0.2
_LOOKS_BEFORE_MISSING = 3   # a tree on its way from one directory to the other can be missed once


# -- bringing one tree to rest -------------------------------------------------------------------------------------


def resolve(handle: Handle, txid: str, *, wait: float | None = None) -> tuple[Do, str] | None:
    """Bring one tree to rest: decide, lock it, decide again, act. Returns what was done; None if nothing was.

    *wait* bounds, in seconds, how long to wait for a live holder of a tree that must be finished (BusyError).
    """
    row = row_of(handle, txid)
    if row is None:
        return None
    facts = find_tree(handle, txid, row)
    do, why = decide(row, facts)
    if do in (Do.LEAVE, Do.DEFER):
        return None if do is Do.LEAVE else (do, why)
    if row["state"] == State.INCOMPLETE:   # with its whole batch, whatever became of this one tree
        finish_batch(handle, row["batch"], wait=wait)
        return do, why
    with ExitStack() as stack:
        found = _lock_where_it_is(handle, stack, txid, wait=wait, point="recover.lock")
        if found is None:
            return None
        row, facts = found
        do, why = decide(row, facts)
        _ACTIONS[do](handle, txid, row, facts, why)
    return do, why


def _lock_where_it_is(
    handle: Handle, stack: ExitStack, txid: str, *, wait: float | None, point: str,
) -> tuple[Row, TreeFacts] | None:
    """Lock the tree in every place that it is found in, then read row and places anew. None: it has no row any more.

    Between the look and the lock somebody else may have moved it: then what was locked, if anything, is not this
    tree, and it is looked for again. So what is returned cannot be moved by anybody else while *stack* is open.
    BusyError after *wait* seconds at one lock.
    """
    while True:
        row = row_of(handle, txid)
        if row is None:
            return None
        locked = set()
        for place in sorted(find_tree(handle, txid, row, locked=False).places):
            name = name_of(place, txid, row.get("layer_id"))
            lock = flock.lock_tree(handle.dirs[place.value], name, wait=wait, point=point)
            if lock is not None:
                stack.enter_context(lock)
                locked.add(place)
        row = row_of(handle, txid)
        if row is None:
            return None
        facts = find_tree(handle, txid, row, locked=False)
        if facts.places <= locked:
            return row, facts
        stack.close()


def _leave(_handle: Handle, _txid: str, _row_: Row, _facts: TreeFacts, _why: str) -> None:
    """Somebody was quicker."""


def _drop_row(handle: Handle, txid: str, row: Row, _facts: TreeFacts, _why: str) -> None:
    trigger = Trigger.SWEEP if row["state"] == State.STAGING else Trigger.DISCARD
    _fire(handle, "recover.drop-row", txid, row, trigger)


def _sweep(handle: Handle, txid: str, row: Row, facts: TreeFacts, why: str) -> None:
    _drop_row(handle, txid, row, facts, why)
    fs.remove_tree(handle.dirs["staging"], txid, point="recover.sweep.unlink")


def _release(handle: Handle, txid: str, row: Row, _facts: TreeFacts, _why: str) -> None:
    _fire(handle, "recover.release", txid, row, Trigger.RELEASE)


def _republish(handle: Handle, txid: str, row: Row, facts: TreeFacts, _why: str) -> None:
    _clear_place(handle, row["layer_id"], facts)
    _publish_tree(handle, txid, row, point="recover.publish")


def _rewrite_side(handle: Handle, txid: str, row: Row, _facts: TreeFacts, _why: str) -> None:
    _write_side_file(handle, "layers", row["layer_id"], records.layer_file(txid, row))


def _finish_delete(handle: Handle, txid: str, row: Row, facts: TreeFacts, _why: str) -> None:
    _move_to_trash(handle, txid, row, facts)
    _fire(handle, "delete.gone", txid, row, Trigger.REMOVE)


def _to_trash(handle: Handle, txid: str, row: Row, facts: TreeFacts, _why: str) -> None:
    _move_to_trash(handle, txid, row, facts)


def _record_gone(handle: Handle, txid: str, row: Row, _facts: TreeFacts, _why: str) -> None:
    _fire(handle, "delete.gone", txid, row, Trigger.REMOVE)


def _end_repair(handle: Handle, txid: str, row: Row, _facts: TreeFacts, _why: str) -> None:
    mending.settle(handle, txid, row)


def _quarantine(handle: Handle, txid: str, row: Row, _facts: TreeFacts, why: str) -> None:
    _fire(handle, "recover.quarantine", txid, row, Trigger.QUARANTINE, {"why": why, "files": []})


def _set_aside_tree(handle: Handle, txid: str, row: Row, facts: TreeFacts, _why: str) -> None:
    for place in sorted(facts.places):
        set_aside(handle, place.value, name_of(place, txid, row.get("layer_id")))
    state = State(row["state"])
    if state is State.CREATING:
        _fire(handle, "recover.release", txid, row, Trigger.RELEASE)
        row = {**row, "state": State.STAGED.value}
    if state in (State.STAGING, State.STAGED, State.CREATING):
        _drop_row(handle, txid, row, facts, _why)
    elif state is State.DELETING:
        _fire(handle, "delete.gone", txid, row, Trigger.REMOVE)


_ACTIONS: dict[Do, Callable[[Handle, str, Row, TreeFacts, str], None]] = {
    Do.LEAVE: _leave, Do.WAIT: _leave, Do.DEFER: _leave, Do.FINISH: _leave, Do.SWEEP: _sweep, Do.DROP_ROW: _drop_row,
    Do.RELEASE: _release, Do.REPUBLISH: _republish, Do.REWRITE_SIDE: _rewrite_side, Do.FINISH_DELETE: _finish_delete,
    Do.RECORD_GONE: _record_gone, Do.TO_TRASH: _to_trash, Do.QUARANTINE: _quarantine, Do.SET_ASIDE: _set_aside_tree,
    Do.END_REPAIR: _end_repair,
}


def _fire(
    handle: Handle, label: str, txid: str, row: Row, trigger: Trigger, payload: Mapping[str, Any] | None = None,
) -> None:
    """One transition, if the row is still in the state that it was decided upon."""

    def change(txn: Any) -> None:
        if state_of(txn, Kind.LAYER, txid) == row["state"]:
            fire(txn, Kind.LAYER, txid, trigger, txid=txid, payload=payload)

    handle.update(label, change)


# -- moving trees --------------------------------------------------------------------------------------------------


def _move_to_trash(handle: Handle, txid: str, row: Row, facts: TreeFacts) -> None:
    for place in (Place.LAYERS, Place.STAGING):
        if place in facts.places:
            fs.move(handle.dirs[place.value], name_of(place, txid, row.get("layer_id")), handle.dirs["trash"], txid,
                    point="delete.rename")


def set_aside(handle: Handle, directory: str, name: str) -> str:
    """Move something that should not be there to ``quarantine/``, as evidence; return its new path."""
    number = 0
    while True:
        target = f"{directory}-{name}-{number}"
        try:
            fs.move(handle.dirs[directory], name, handle.dirs["quarantine"], target, point="recover.set-aside")
        except FileExistsError:
            number += 1
        else:
            return f"quarantine/{target}"


def _clear_place(handle: Handle, layer_id: str, facts: TreeFacts) -> None:
    """Make ``layers/<id>`` free of a tree that is not the one its row names."""
    if facts.occupant is None:
        return
    row = row_of(handle, facts.occupant) if facts.occupant else None
    if row is not None and row["state"] == State.GONE:
        resolve(handle, facts.occupant)
    else:
        set_aside(handle, "layers", layer_id)


def _write_side_file(handle: Handle, directory: str, name: str, content: bytes) -> None:
    """Write a tree's side file unless it is right already: a right one is never touched."""
    with fs.open_dir(name, handle.dirs[directory]) as fd:
        if fs.read_file(fd, records.LAYER_FILE) != content:
            _replace(handle, fd, records.LAYER_FILE, content, point="publish.side-file")


def _replace(handle: Handle, fd: int, name: str, content: bytes, *, point: str) -> None:
    """Write a side file; if a directory is in its place, where nobody puts one, aside with that."""
    try:
        fs.replace_file(fd, name, content, point=point)
    except IsADirectoryError:
        txid = fs.read_txid(fd) or "images"
        with suppress(FileExistsError):
            fs.move(fd, name, handle.dirs["quarantine"], f"{txid}-{name}-{handle.clock()}", point="recover.set-aside")
        fs.replace_file(fd, name, content, point=point)


def _publish_tree(handle: Handle, txid: str, row: Row, *, point: str) -> None:
    _write_side_file(handle, "staging", txid, records.layer_file(txid, row))
    fs.move(handle.dirs["staging"], txid, handle.dirs["layers"], row["layer_id"], point=point)


# -- a batch, forward ------------------------------------------------------------------------------------------------


def batch_members(view: Any, batch: str) -> tuple[dict[str, Row], dict[str, Row]]:
    """The promised, uncommitted layers and images of *batch*, by txid and image ID."""
    layers, images = {}, {}
    for key, entry in view.scan("open"):
        if entry["state"] != State.INCOMPLETE:
            continue
        kind, _, name = key.partition(":")
        row = view.get("layers" if kind == "layer" else "images", name)
        if kind == "layer" and row["batch"] == batch:
            layers[name] = row
        elif kind == "image" and row["txid"] == batch:
            images[name] = row
    return layers, images


def finish_batch(
    handle: Handle, batch: str, *, wait: float | None = None, own: frozenset[str] = frozenset(),
) -> None:
    """Finish a promised batch: every tree into its place, then one transaction for all of it.

    *own* are the members whose locks the caller holds (it staged them); all others are taken here, in the order of
    txids. A lock that is held means that its holder finishes, be it another thread of this process; so this waits,
    and finds nothing left to do. BusyError after *wait* seconds.
    """
    deadline = None if wait is None else time.monotonic() + wait
    with ExitStack() as stack:
        with handle.read() as view:
            members, _ = batch_members(view, batch)
        for txid in sorted(members):
            if txid not in own:
                _lock_member(handle, stack, txid, deadline)
        with handle.read() as view:
            members, images = batch_members(view, batch)
        missing = {txid for txid, row in sorted(members.items()) if not _into_place(handle, txid, row)}
        for image_id, row in sorted(images.items()):
            if not missing:
                write_image_file(handle, image_id, row)
        handle.update("commit", lambda txn: _commit(txn, batch, missing))


def _lock_member(handle: Handle, stack: ExitStack, txid: str, deadline: float | None) -> None:
    """Lock a promised tree wherever it is; done, too, when it is promised no longer, or nowhere to be found."""
    missed = 0
    while missed < _LOOKS_BEFORE_MISSING:
        row = row_of(handle, txid)
        if row is None or row["state"] != State.INCOMPLETE:
            return   # somebody finished it; readers may hold it by now, and must not be waited for
        if deadline is not None and time.monotonic() > deadline:
            raise BusyError(f"layer {row['layer_id']} is still being finished by another process or thread")
        missed += 1
        for directory, name in (("staging", txid), ("layers", row["layer_id"])):
            try:
                lock = flock.lock_tree(handle.dirs[directory], name, wait=_SLICE_SECONDS, point="recover.lock")
            except BusyError:
                missed = 0
                break
            if lock is not None:
                if fs.read_txid(lock.fd) == txid:
                    stack.enter_context(lock)
                    return
                lock.close()


def _into_place(handle: Handle, txid: str, row: Row) -> bool:
    """Side file, then rename. False if the tree is nowhere, or somewhere it cannot be."""
    facts = find_tree(handle, txid, row, locked=False)
    if facts.places == {Place.STAGING}:
        _clear_place(handle, row["layer_id"], facts)
        _publish_tree(handle, txid, row, point="publish.rename")
        return True
    if facts.places == {Place.LAYERS}:
        _write_side_file(handle, "layers", row["layer_id"], records.layer_file(txid, row))
        return True
    return False


def write_image_file(handle: Handle, image_id: str, promise: Mapping[str, Any]) -> None:
    """The image's side file, from its promise; under the directory's lock, because an image has no tree to lock."""
    content = records.image_file(image_id, promise)
    with flock.locked_dir(handle.dirs["images"]):
        if fs.read_file(handle.dirs["images"], image_id) != content:
            _replace(handle, handle.dirs["images"], image_id, content, point="publish.image-file")


def _commit(txn: Any, batch: str, missing: Iterable[str]) -> None:
    """One moment of visibility for the whole batch. Members found further along already are left as they are."""
    layers, images = batch_members(txn, batch)
    for txid in sorted(layers):
        if txid in missing:
            payload = {"why": "promised, but its tree was not to be found", "files": []}
            fire(txn, Kind.LAYER, txid, Trigger.QUARANTINE, txid=txid, payload=payload)
        else:
            fire(txn, Kind.LAYER, txid, Trigger.COMMIT, txid=txid)
    for image_id, row in sorted(images.items()):
        beneath = row.get("beneath", {})   # looked at when it was promised: recovery asks no other store
        whole = all(layer_id in beneath or catalog.is_committed(txn, layer_id) for layer_id in row["layers"])
        fire(txn, Kind.IMAGE, image_id, Trigger.COMMIT if whole else Trigger.ABANDON, txid=batch)


# -- deleting --------------------------------------------------------------------------------------------------------


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
            found = _lock_where_it_is(handle, stack, txid, wait=wait, point="delete.lock")
        except BusyError:
            return False
        if found is not None and found[0]["state"] == State.DELETING:
            row, facts = found
            do, why = decide(row, facts)
            _ACTIONS[do](handle, txid, row, facts, why)
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
        fs.remove_tree(handle.dirs[directory], name, point="recover.stray.unlink")
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
            set_aside(handle, "images", name)
    return True
