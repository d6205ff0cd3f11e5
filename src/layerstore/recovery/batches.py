"""A promised batch, forward: every tree into its place, then one transaction that makes all of it visible.

What the apply verb does when it has promised, and recovery in its stead. Every step is idempotent, re-reads the rows
under the trees' locks, and takes "further along already" for success.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

from layerstore.errors import BusyError
from layerstore.formats import records
from layerstore.lifecycle import catalog
from layerstore.lifecycle.machine import fire
from layerstore.lifecycle.states import Kind, State, Trigger
from layerstore.opening.handle import Handle
from layerstore.recovery import moving
from layerstore.recovery.acting import clear_place
from layerstore.recovery.looking import Row, find_tree, row_of
from layerstore.recovery.planner import Place
from layerstore.system import flock, fs

__all__ = ["batch_members", "finish_batch", "write_image_file"]

_SLICE_SECONDS = 0.2
_LOOKS_BEFORE_MISSING = 3   # a tree on its way from one directory to the other can be missed once


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
        clear_place(handle, row["layer_id"], facts)
        moving.publish_tree(handle, txid, row, point="publish.rename")
        return True
    if facts.places == {Place.LAYERS}:
        moving.write_side_file(handle, "layers", row["layer_id"], records.layer_file(txid, row))
        return True
    return False


def write_image_file(handle: Handle, image_id: str, promise: Mapping[str, Any]) -> None:
    """The image's side file, from its promise; under the directory's lock, because an image has no tree to lock."""
    content = records.image_file(image_id, promise)
    with flock.locked_dir(handle.dirs["images"]):
        if fs.read_file(handle.dirs["images"], image_id) != content:
            moving.replace_side_file(handle, handle.dirs["images"], image_id, content, point="publish.image-file")


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
