"""Looking: what the disk says of one tree, for the planner and for verbs that take a tree over. Changes nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from layerstore.errors import DamagedError
from layerstore.formats import records
from layerstore.lifecycle.states import State
from layerstore.opening.handle import Handle
from layerstore.recovery.planner import Place, TreeFacts
from layerstore.system import flock, fs
from layerstore.trees import spool

Row = dict[str, Any]


def find_tree(handle: Handle, txid: str, row: Mapping[str, Any], *, locked: bool | None = None) -> TreeFacts:
    """Where the tree is, whether somebody else holds it, and whether its side file is right. Changes nothing."""
    places, layer_id, occupant = set(), row.get("layer_id"), None
    if fs.txid_at(handle.dirs["staging"], txid) is not None:
        places.add(Place.STAGING)
    if fs.txid_at(handle.dirs["trash"], txid) is not None:
        places.add(Place.TRASH)
    if layer_id is not None:
        found = fs.txid_at(handle.dirs["layers"], layer_id)
        if found == txid or (found is not None and not places and _is_given_its_txid(handle, row, found)):
            places.add(Place.LAYERS)
        else:
            occupant = found
    right = True
    if places == {Place.LAYERS} and row["state"] in (State.INCOMPLETE, State.COMMITTED):
        right = side_file(handle, "layers", layer_id or "") == records.layer_file(txid, row)
    being_staged = places == {Place.STAGING} and row["state"] == State.STAGING
    filled = being_staged and left_at(handle, txid) is not None
    resumable = being_staged and not filled and spool_at(handle, txid, row) is not None
    if locked is None:
        locked = _is_held(handle, txid, row, places)
    return TreeFacts(
        frozenset(places), locked=locked, side_file_right=right, occupant=occupant, filled=filled, resumable=resumable,
    )


def _is_given_its_txid(handle: Handle, row: Mapping[str, Any], found: str) -> bool:
    """Whether the tree in its place is its own, although it says *found*: a repair of just that was begun."""
    marked = row.get("repair", {}).get("files", ())
    return os.fsencode(fs.TXID_FILE) in marked and (not found or row_of(handle, found) is None)


def left_at(handle: Handle, txid: str) -> Row | None:
    """What the tree ``staging/<txid>`` says of itself, if it was finished. Whether it is whole is another question."""
    try:
        with fs.open_dir(txid, handle.dirs["staging"]) as fd:
            return left_output(fd, txid)
    except (FileNotFoundError, NotADirectoryError):
        return None


def left_output(tree_fd: int, txid: str) -> Row | None:
    """What the file ``output`` of a tree says (``output``, ``filled_ns``).

    None if it is missing, torn or another's. So, too, if the tree's own ``txid`` is: nothing was synced, any of it may be.
    """
    try:
        found = records.read(fs.read_file(tree_fd, records.OUTPUT_FILE), "the side file 'output'")
    except DamagedError:
        return None
    return found if found["txid"] == fs.read_txid(tree_fd) == txid else None


def spool_at(handle: Handle, txid: str, row: Mapping[str, Any]) -> int | None:
    """When the spool of the tree ``staging/<txid>`` was last added to, in ns; None if it cannot be gone on with."""
    try:
        with fs.open_dir(txid, handle.dirs["staging"]) as fd:
            return left_spool(fd, txid, row)
    except (FileNotFoundError, NotADirectoryError):
        return None


def left_spool(tree_fd: int, txid: str, row: Mapping[str, Any]) -> int | None:
    """The same, of a tree that is open. One whose own ``txid`` is torn could not be published, so it is none, too."""
    return spool.kept_ns(tree_fd, row.get("content_key")) if fs.read_txid(tree_fd) == txid else None


def _is_held(handle: Handle, txid: str, row: Mapping[str, Any], places: set[Place]) -> bool:
    """By an owner; for a deletion also by readers. What is at rest is not asked: that would get in readers' way."""
    if Place.STAGING in places:
        return flock.is_locked(handle.dirs["staging"], txid)
    if Place.LAYERS in places and "repair" in row and row["state"] in (State.COMMITTED, State.QUARANTINED):
        return flock.is_locked(handle.dirs["layers"], row["layer_id"])
    if Place.LAYERS in places and row["state"] in (State.INCOMPLETE, State.DELETING):
        return flock.is_locked(handle.dirs["layers"], row["layer_id"], by_readers=row["state"] == State.DELETING)
    return False


def name_of(place: Place, txid: str, layer_id: str | None) -> str:
    return str(layer_id) if place is Place.LAYERS else txid


def side_file(handle: Handle, directory: str, name: str) -> bytes | None:
    try:
        with fs.open_dir(name, handle.dirs[directory]) as fd:
            return fs.read_file(fd, records.LAYER_FILE)
    except FileNotFoundError:
        return None


def row_of(handle: Handle, txid: str) -> Row | None:
    with handle.read() as view:
        return view.get("layers", txid)
