"""Carrying a repair of one layer out, in an order that a crash cannot hurt; and ending one that a crash interrupted.

What to restore, and from where, is decided in ``repair``. The caller holds the tree's lock, exclusively, all the while. In
order, and what a crash after each step leaves (docs/crash-model.md):

1. txn ``repair``: the mark, with every path that is to change     – nothing has changed: recovery takes the mark away
2. ``repair.mkdir``: ``mending/`` in the layer's directory         – the same, and what is in it is set aside
3. ``repair.write`` …: each replacement made there, compared       – the same
4. ``repair.sync``: one syncfs; only now may one be seen           – the same
5. ``repair.exchange`` (or ``.move``): each takes its place, in    – some paths good, the others as bad as before; the times
   one step; what was there is in ``mending/`` now                   of their directories are put right by recovery
6. ``repair.wear``: attributes, of them and of their directories   – the same
7. ``repair.set-aside``: ``mending/`` moves to ``quarantine/``     – the same
8. ``repair.settle``: the second syncfs                            – the same
9. txn ``mend`` or ``quarantine``, after all paths were compared:  – mended, or quarantined with what is left
   the mark is gone

Nothing is unlinked: what a replacement took the place of is kept as evidence.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any

from layerstore.errors import DamagedError
from layerstore.formats.manifest import NAME as MANIFEST
from layerstore.formats.manifest import ManifestEntry, final_entries, manifest_digest
from layerstore.formats.packed import open_regular
from layerstore.lifecycle.machine import fire, state_of
from layerstore.lifecycle.states import Kind, State, Trigger
from layerstore.opening.handle import Handle
from layerstore.recovery import moving
from layerstore.system import fs
from layerstore.system.descriptors import Descriptor
from layerstore.trees.dirfds import DirFds
from layerstore.trees.wear import wear

__all__ = ["NAME", "end", "mark", "put", "put_aside", "settle", "take_out", "wear_all"]

NAME = "mending"
_DIFF = b"diff/"


# -- the steps -------------------------------------------------------------------------------------------------------


def mark(handle: Handle, txid: str, files: Collection[bytes]) -> bool:
    """Journal the intent. *files* are paths relative to the layer's directory. False: it is not there any more."""
    payload = {"files": sorted(files)}

    def change(txn: Any) -> bool:
        if state_of(txn, Kind.LAYER, txid) not in (State.COMMITTED, State.QUARANTINED):
            return False
        fire(txn, Kind.LAYER, txid, Trigger.REPAIR, txid=txid, payload=payload)
        return True

    return handle.update("repair", change)


def put(mending_fd: int, name: str, dir_fd: int, base: bytes) -> None:
    """Let what is ``mending/<name>`` take the place of *base*; what was there is ``mending/<name>`` then."""
    target = os.fsdecode(base)
    if fs.exists(dir_fd, target):
        fs.exchange(mending_fd, name, dir_fd, target, point="repair.exchange")
    else:
        fs.move(mending_fd, name, dir_fd, target, point="repair.move")


def take_out(mending_fd: int, name: str, dir_fd: int, base: bytes) -> None:
    """Take what should not be there out of the tree."""
    with suppress(FileNotFoundError):
        fs.move(dir_fd, os.fsdecode(base), mending_fd, name, point="repair.move")


def wear_all(handle: Handle, tree_fd: int, digest: str, files: Collection[bytes]) -> None:
    """Give *files*, and the directories that they are in, the attributes that the manifest says; the deepest first.

    Nothing if the manifest is not what it was.
    """
    paths = {each.removeprefix(_DIFF) for each in files if each.startswith(_DIFF)}
    for path in list(paths):
        paths |= set(_parents(path))
    paths |= {b""} if b"diff" in files else set()
    try:
        if not paths or manifest_digest(tree_fd) != digest:
            return
        with Descriptor("diff", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=tree_fd) as diff_fd:
            fds = DirFds(diff_fd)
            try:
                for entry in _entries(tree_fd, paths):
                    _wear(handle, fds, entry)
            finally:
                fds.close()
    except (FileNotFoundError, NotADirectoryError, DamagedError):
        return


def _entries(tree_fd: int, paths: Collection[bytes]) -> list[ManifestEntry]:
    """Deepest first: to give something a name changes its directory's time."""
    with open_regular(MANIFEST, tree_fd) as fd:
        found = [entry for entry in final_entries(fd) if entry.path in paths]
    return sorted(found, key=lambda entry: (-entry.path.count(b"/") if entry.path else 1, entry.path))


def _wear(handle: Handle, fds: DirFds, entry: ManifestEntry) -> None:
    parent, _, base = entry.path.rpartition(b"/")
    with suppress(FileNotFoundError, NotADirectoryError):   # what could not be restored has no attributes
        wear(fds.get(parent), base or b".", entry, form=handle.overlay_form, ids=handle.ids, point="repair.wear")


def _parents(path: bytes) -> Iterator[bytes]:
    while path:
        path = path.rpartition(b"/")[0]
        yield path


def put_aside(handle: Handle, tree_fd: int, layer_id: str) -> str | None:
    """Move ``mending/`` to ``quarantine/``: its path there; None if there is none."""
    try:
        return moving.aside(handle, tree_fd, NAME, f"mending-{layer_id}", point="repair.set-aside")
    except FileNotFoundError:
        return None


def end(handle: Handle, txid: str, damage: Mapping[str, Any] | None, *, label: str) -> None:
    """Take the mark away. *damage* (``why``, ``files``) is what is left of it: quarantined; None: it is whole."""
    def change(txn: Any) -> None:
        row = txn.get("layers", txid)
        if row is None or "repair" not in row:
            return                       # somebody was quicker, or it is being deleted
        if damage is None:
            fire(txn, Kind.LAYER, txid, Trigger.MEND, txid=txid)
        else:
            fire(txn, Kind.LAYER, txid, Trigger.QUARANTINE, txid=txid, payload=damage)

    handle.update(label, change)


def end_as_it_was(handle: Handle, txid: str, row: Mapping[str, Any], *, label: str) -> None:
    """Take the mark away; the layer is in the state that it was in before, by its *row*."""
    damage = row.get("damage")
    end(handle, txid, None if damage is None else {"why": damage["why"], "files": damage["files"]}, label=label)


# -- after a crash ---------------------------------------------------------------------------------------------------


def settle(handle: Handle, txid: str, row: Mapping[str, Any]) -> None:
    """End a repair that was interrupted; the tree's lock is held. What was exchanged stays.

    A ``txid`` that was to be mended is written: else the next to recover would not know the tree for its own. The layer is
    in the state that it was in; what is still damaged the next check finds.
    Durability: when it returns, everything that was exchanged is on disk, and the mark is gone.
    """
    try:
        tree = Descriptor(row["layer_id"], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle.dirs["layers"])
    except (FileNotFoundError, NotADirectoryError):
        pass                             # a whole tree was to be put back, and is not there yet
    else:
        _settle_tree(handle, tree, txid, row)
    end_as_it_was(handle, txid, row, label="recover.mend")


def _settle_tree(handle: Handle, tree: Descriptor, txid: str, row: Mapping[str, Any]) -> None:
    with tree as tree_fd:
        _give_txid(tree_fd, txid, row["repair"]["files"])
        wear_all(handle, tree_fd, row["output"]["manifest_digest"], row["repair"]["files"])
        put_aside(handle, tree_fd, row["layer_id"])
        handle.sync(tree_fd, point="repair.settle")


def _give_txid(tree_fd: int, txid: str, files: Collection[bytes]) -> None:
    # txid/.: a directory in its place cannot be replaced by a file, and is left
    wrong = fs.read_txid(tree_fd) != txid and not fs.has_entry(tree_fd, fs.TXID_FILE, ".")
    if wrong and os.fsencode(fs.TXID_FILE) in files:
        fs.replace_file(tree_fd, fs.TXID_FILE, txid.encode(), point="repair.txid")
