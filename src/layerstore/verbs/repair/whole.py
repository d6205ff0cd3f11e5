"""A whole tree that is gone from ``layers/`` is put back from its source, staged as for a pull. For the rest, ``making``.

In order, and what a crash after each step leaves (docs/crash-model.md):

1. the source's tree, in ``staging/`` under its own lock: only     – as it was: recovery sweeps it, or keeps it for whoever
   one that has the manifest that the row has                         stages its content next
2. txn ``repair``: the mark; the staged tree has no row any more   – a layer without a tree is quarantined, as it always is;
                                                                      the staged one is a stray
3. ``repair.put-back.side-file``: ``txid`` and ``layer``, by the   – the same
   row, into it
4. ``repair.put-back.sync``: one syncfs                            – the same
5. what nobody owns in its place is set aside                      – the same, and evidence
6. ``repair.put-back.rename``: into its place, its lock with it    – whole, and marked: recovery takes the mark away
7. ``repair.settle``: the second syncfs                            – the same; after a loss of power before it perhaps as 2

5 and 6 are done under the lock of ``layers/``: of two who put one back, one finds the other's. What follows is as after
any repair: it is looked at, and txn ``mend`` or ``quarantine`` ends it. Who recovers meanwhile may have quarantined a
layer whose tree he did not find, or ended the mark; it is marked anew then.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from layerstore.errors import LayerstoreError
from layerstore.formats import records
from layerstore.lifecycle.machine import fire, state_of
from layerstore.lifecycle.states import Kind, State, Trigger
from layerstore.model import DiffOutput, Layer
from layerstore.opening.handle import Handle
from layerstore.recovery import looking, mending, moving
from layerstore.system import flock, fs
from layerstore.trees import spool
from layerstore.verbs import staging
from layerstore.verbs.staging import Staging

__all__ = ["is_it", "put_back"]

_ALIVE = (State.COMMITTED, State.QUARANTINED)


def is_it(layer: Layer, output: DiffOutput) -> bool:
    """Whether a staged tree is to the byte what the row says."""
    split = layer.tar_split_digest
    return output.manifest_digest == layer.manifest_digest and split in (None, output.tar_split_digest)


@contextmanager
def put_back(handle: Handle, layer: Layer, tree: Staging, evidence: list[str]) -> Iterator[int | None]:
    """Put *tree*, which is used up, into its place: its directory, locked while inside. Whoever enters ends the mark.

    None if another tree is there by now, or the layer is being deleted. What is raised before it is in its place leaves
    the layer in the state that it was in. Durability: as at the top of this module.
    """
    placed = marked = False
    try:
        marked = handle.update("repair", lambda txn: _mark(txn, layer, tree))
        if marked:
            fd = handle.lock_fd(tree.txid)
            _dress(handle, layer, fd)
            handle.sync(fd, point="repair.put-back.sync")
            placed = _into_place(handle, layer, tree, evidence)
    finally:
        if not placed:
            with suppress(LayerstoreError, OSError):
                if marked:
                    _take_back(handle, layer)
                staging.discard(handle, tree)   # only what was made just now
            handle.let_go(tree.txid)
    try:
        if placed:
            handle.sync(fd, point="repair.settle")
        yield fd if placed else None
    finally:
        handle.let_go(tree.txid)


def _mark(txn: Any, layer: Layer, tree: Staging) -> bool:
    if state_of(txn, Kind.LAYER, layer.txid) not in _ALIVE:
        return False
    fire(txn, Kind.LAYER, layer.txid, Trigger.REPAIR, txid=layer.txid, payload={"files": [b""]})
    staging.forget(txn, tree.txid)
    return True


def _take_back(handle: Handle, layer: Layer) -> None:
    row = looking.row_of(handle, layer.txid)
    if row is not None and "repair" in row:
        mending.end_as_it_was(handle, layer.txid, row, label="recover.mend")


def _dress(handle: Handle, layer: Layer, fd: int) -> None:
    """It is no longer the tree that was staged."""
    row = looking.row_of(handle, layer.txid)
    if row is None or row["state"] not in _ALIVE:
        return                           # being deleted: what follows finds that out
    for name, data in ((fs.TXID_FILE, layer.txid.encode()), (records.LAYER_FILE, records.layer_file(layer.txid, row))):
        fs.replace_file(fd, name, data, point="repair.put-back.side-file")
    for name in (records.OUTPUT_FILE, spool.NAME):
        fs.unlink(fd, name, point="repair.clear.unlink")


def _into_place(handle: Handle, layer: Layer, tree: Staging, evidence: list[str]) -> bool:
    """Where nothing is, or what nobody owns. False: somebody was quicker."""
    trees = handle.dirs["layers"]
    with flock.locked_dir(trees):
        there = fs.txid_at(trees, layer.id)
        row = looking.row_of(handle, layer.txid)
        if row is None or row["state"] not in _ALIVE or there == layer.txid:
            return False
        if there and looking.row_of(handle, there) is not None:
            return False                 # another layer's, by damage; or of one that has this ID by now
        if there is not None:
            evidence.append(moving.set_aside(handle, "layers", layer.id))
        fs.move(handle.dirs["staging"], tree.txid, trees, layer.id, point="repair.put-back.rename")
    return True
