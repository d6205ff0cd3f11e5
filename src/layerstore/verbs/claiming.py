"""The claim and the promise of a batch: what it may have of the catalog, decided within the transaction and nowhere else.

Every tree sealed, every ID and name claimed, parents pinned; what is in the store already is found to be a duplicate.
Whoever is in the way is waited for, or, if its process is dead, brought to rest. Nothing here touches a tree; the order of
the steps is ``apply``'s.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from layerstore.errors import (
    BusyError,
    DuplicateLayerError,
    InvalidArgumentError,
    LayerDamagedError,
    ParentUnavailableError,
)
from layerstore.formats.records import as_record
from layerstore.lifecycle import catalog
from layerstore.lifecycle.machine import fire
from layerstore.lifecycle.states import Kind, State, Trigger
from layerstore.model import SourceImage
from layerstore.opening.beneath import over
from layerstore.opening.handle import Handle, new_txid
from layerstore.recovery import batches, executor
from layerstore.verbs import quota
from layerstore.verbs.batch import Batch, Member
from layerstore.verbs.names import check_name_free
from layerstore.verbs.staging import make_durable, seal_rows

_PATIENCE_SECONDS = 300.0


class _ConflictError(Exception):
    """Somebody is creating or deleting that ID (a *txid*), or that image (a *batch*): wait, then try again."""

    def __init__(self, what: str, *, txid: str | None = None, batch: str | None = None) -> None:
        super().__init__(what)
        self.txid, self.batch = txid, batch


class _NotDurableError(Exception):
    """Nothing speaks against the claim, but trees of it are not synced yet."""


def claim(handle: Handle, batch: Batch) -> None:
    """Claim all of it, in one transaction; with no big data still to be written, promise it in the same one.

    Trees that are not durable yet are made so, once nothing else speaks against the claim.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    limit = quota.limit_of(handle)
    while True:
        try:
            handle.update("claim", lambda txn: _claim(handle, txn, batch, limit))
        except _ConflictError as conflict:
            _wait_for(handle, conflict, deadline)
        except _NotDurableError:
            make_durable(handle, [each.staging for each in batch.fresh()])
        else:
            return


def promise(handle: Handle, batch: Batch) -> None:
    """Promise what is claimed, in a transaction of its own: its big data had to be written in between."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            handle.update("promise", lambda txn: _promise(handle, txn, batch))
        except _ConflictError as conflict:
            _wait_for(handle, conflict, deadline)
        else:
            return


def release(txn: Any, txid: str) -> None:
    """Back to ``staged``, if it is claimed and not promised."""
    row = txn.get("layers", txid)
    if row is not None and row["state"] == State.CREATING:
        fire(txn, Kind.LAYER, txid, Trigger.RELEASE, txid=txid)


# -- within the transaction ----------------------------------------------------------------------------------------


def _claim(handle: Handle, txn: Any, batch: Batch, limit: int | None) -> None:
    _check_image(txn, batch.image)
    with over(handle, txn) as path:
        for each in batch.members:
            each.duplicate = _is_duplicate(path, each)
        fresh = list(batch.fresh())
        _check_claimable(path, batch)
        beneath = catalog.beneath_of(path, [each.spec.parent for each in fresh if each.spec.parent is not None])
    if limit is not None:
        # one that is a duplicate is given up right after this
        sizes = {each.txid: 0 if each.duplicate else each.output.diff_size for each in batch.members}
        quota.check(handle, txn, limit, sizes)
    if not all(each.staging.durable for each in fresh):
        raise _NotDurableError
    seal_rows(txn, [each.staging for each in fresh])
    for each in fresh:
        fire(txn, Kind.LAYER, each.txid, Trigger.CLAIM, txid=each.txid, payload={
            "layer_id": each.layer_id, "parent": each.spec.parent, "names": list(each.spec.names),
            "replace_names": batch.replace_names, "batch": batch.id, "big_data": each.big_data_digests(),
            **({"beneath": beneath[str(each.spec.parent)]} if each.spec.parent in beneath else {}),
        })
    for each in batch.members:
        if each.duplicate:
            _name_duplicate(txn, each)
    if not batch.has_big_data:
        _promise(handle, txn, batch)


def _is_duplicate(path: catalog.Reader, member: Member) -> bool:
    """Whether the ID is there already with the very same content; DuplicateLayerError if with other."""
    found = catalog.tree_of(path, member.layer_id)
    if found is None:
        return False
    txid, row = found
    state, output = State(row["state"]), member.output
    if state in (State.CREATING, State.INCOMPLETE, State.DELETING):
        raise _ConflictError(f"layer {member.layer_id}", txid=txid)
    if state is State.QUARANTINED:
        raise LayerDamagedError(
            f"layer {member.layer_id} is there, but quarantined: {row['damage']['why']}", layer_id=member.layer_id,
            files=row["damage"]["files"], hint="delete it ('layerstore rm'), then pull again",
        )
    if member.spec.big_data and row["big_data"] != member.big_data_digests():
        raise DuplicateLayerError(f"layer {member.layer_id} exists with other big data: {sorted(row['big_data'])}")
    if row["output"]["diff_id"] != output.diff_id or row["parent"] != member.spec.parent:
        raise DuplicateLayerError(
            f"layer {member.layer_id} exists with diffID {row['output']['diff_id']} and parent {row['parent']}; "
            f"asked for was diffID {output.diff_id} and parent {member.spec.parent}",
        )
    return True


def _check_claimable(path: catalog.Reader, batch: Batch) -> None:
    known: set[str] = set()
    for each in batch.members:
        if each.layer_id in known:
            raise InvalidArgumentError(f"layer {each.layer_id} is twice in one batch")
        parent = each.spec.parent
        if parent is not None and parent not in known:
            _check_parent(path, parent)
        known.add(each.layer_id)
    for layer_id in batch.image_layers:
        if layer_id not in known:
            _check_parent(path, layer_id)
    for each in batch.members:
        for name in each.spec.names:
            check_name_free(path, name, each.layer_id, batch.replace_names)
    if batch.image is not None:
        for name in batch.image_names:
            check_name_free(path, name, batch.image.id, batch.replace_names)


def _check_parent(path: catalog.Reader, parent: str) -> None:
    found = catalog.tree_of(path, parent)
    state = found[1]["state"] if found else "absent"
    if state != State.COMMITTED:
        raise ParentUnavailableError(f"the layer {parent} to stand on is {state}, not committed")


def _check_image(txn: Any, image: SourceImage | None) -> None:
    """_ConflictError if another batch has promised the same image and is about to finish it."""
    row = txn.get("images", image.id) if image is not None else None
    if image is not None and row is not None and row["state"] == State.INCOMPLETE:
        raise _ConflictError(f"image {image.id}", batch=row["txid"])


def _name_duplicate(txn: Any, member: Member) -> None:
    """A layer that was there already gets the names all the same."""
    for name in member.spec.names:
        row = txn.get("names", name)
        if row is None or row["id"] != member.layer_id:
            trigger = Trigger.TAKE if row is None else Trigger.MOVE
            fire(txn, Kind.NAME, name, trigger, txid=new_txid(), payload={"kind": "layer", "id": member.layer_id})


def _promise(handle: Handle, txn: Any, batch: Batch) -> None:
    for each in batch.fresh():
        fire(txn, Kind.LAYER, each.txid, Trigger.PROMISE, txid=each.txid)
    image = batch.image
    if image is None:
        return
    _check_image(txn, image)
    row = txn.get("images", image.id)
    if row is not None and row["state"] == State.COMMITTED:
        return
    with over(handle, txn) as path:
        for name in batch.image_names:
            check_name_free(path, name, image.id, batch.replace_names)
        beneath = catalog.beneath_of(path, batch.image_layers)
    fire(txn, Kind.IMAGE, image.id, Trigger.PROMISE, txid=batch.id, payload={
        "layers": list(batch.image_layers), "names": list(batch.image_names), "replace_names": batch.replace_names,
        "manifest": image.manifest, "manifest_digest": image.manifest_digest,
        "manifest_media_type": image.manifest_media_type, "config": image.config,
        "config_digest": image.config_digest, **as_record(image.signatures, image.indexes),
        **({"beneath": beneath} if beneath else {}),
    })


# -- who is in the way ---------------------------------------------------------------------------------------------


def _wait_for(handle: Handle, conflict: _ConflictError, deadline: float) -> None:
    """Until its live holder is done with it; if the holder is dead, bring it to rest ourselves."""
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise BusyError(f"{conflict} is still being created or deleted by another process")
    with suppress(BusyError):
        if conflict.batch is not None:
            batches.finish_batch(handle, conflict.batch, wait=remaining)
        elif conflict.txid is not None:
            executor.resolve(handle, conflict.txid, wait=remaining)
    time.sleep(0.01)
