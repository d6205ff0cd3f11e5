"""Deleting layers and images.

Layer, in order, and what a crash after each step leaves:

1. txn ``delete``: hidden; children, images, leases, mounts were checked in the same transaction – finished at open
2. exclusive lock of the tree (readers hold it shared), looked at again                          – the same
3. rename (NOREPLACE) into ``trash/<txid>``                                                       – the same
4. txn ``gone``: the ID is free                                                                   – redone if 3 was lost
5. ``delete.sync``: both directories of 3, once for all: acknowledged (ADR 0029)                  – on disk, also unrecorded
6. unlinked once a checkpoint covers it

An image: txn ``delete`` hides it and, in the same transaction, promises the deletion of every layer that nothing
else uses; then each of those layers as above, children first.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from layerstore.errors import InUseError, PendingError, UnknownImageError, UnknownLayerError
from layerstore.lifecycle import catalog
from layerstore.lifecycle.machine import fire
from layerstore.lifecycle.states import Kind, State, Trigger
from layerstore.model import check_id
from layerstore.observe import barrier
from layerstore.opening.beneath import only_own
from layerstore.opening.handle import Handle
from layerstore.recovery import executor
from layerstore.system import fs
from layerstore.verbs.checkpoint import checkpoint_if_due


@dataclass(frozen=True, slots=True)
class DeleteReport:
    """What a delete did. ``deferred``: layers that are hidden, but whose trees live readers still hold."""

    layers: tuple[str, ...]
    deferred: tuple[str, ...] = ()
    image: str | None = None


def delete_layer(handle: Handle, layer_id: str, *, wait: float) -> DeleteReport:
    """Delete one committed or quarantined layer. UnknownLayerError; BeneathError; InUseError, naming the users."""
    handle.check_writable()
    check_id(layer_id)
    only_own(handle, "layer", layer_id)
    txid = handle.update("delete", lambda txn: _promise_layer(txn, layer_id))
    report = _finish(handle, [(txid, layer_id)], wait=wait, image=None)
    _settle(handle, report)
    checkpoint_if_due(handle)
    return report


def delete_image(handle: Handle, image_id: str, *, wait: float, keep_layers: bool = False) -> DeleteReport:
    """Delete an image, and (unless *keep_layers*) the layers that nothing else uses. UnknownImageError."""
    handle.check_writable()
    check_id(image_id, "image ID")
    only_own(handle, "image", image_id)

    def promise(txn: Any) -> list[tuple[str, str]]:
        row = txn.get("images", image_id)
        if row is None or row["state"] != State.COMMITTED:
            raise UnknownImageError(f"there is no image {image_id}")
        fire(txn, Kind.IMAGE, image_id, Trigger.DELETE, txid=row["txid"])
        return [] if keep_layers else promise_unused(txn, row["layers"][::-1])

    promised = handle.update("delete", promise)
    report = _finish(handle, promised, wait=wait, image=image_id)
    _settle(handle, report)
    checkpoint_if_due(handle)
    return report


def promise_unused(txn: Any, layer_ids: list[str]) -> list[tuple[str, str]]:
    """Promise the deletion of those of *layer_ids* (children before parents) that nothing uses and no name holds."""
    promised = []
    for layer_id in layer_ids:
        found = catalog.tree_of(txn, layer_id)
        if found is None or found[1]["state"] not in (State.COMMITTED, State.QUARANTINED):
            continue
        if catalog.users(txn, layer_id) or any(True for _ in txn.scan("named", f"{layer_id}/")):
            continue
        fire(txn, Kind.LAYER, found[0], Trigger.DELETE, txid=found[0])
        promised.append((found[0], layer_id))
    return promised


def _promise_layer(txn: Any, layer_id: str) -> str:
    found = catalog.tree_of(txn, layer_id)
    if found is None or found[1]["state"] not in (State.COMMITTED, State.QUARANTINED):
        raise UnknownLayerError(f"there is no committed layer {layer_id}")
    users = catalog.users(txn, layer_id)
    if users:
        raise InUseError(f"layer {layer_id} is used by {', '.join(users[:4])}{' …' if len(users) > 4 else ''}")
    fire(txn, Kind.LAYER, found[0], Trigger.DELETE, txid=found[0])
    return found[0]


def finish_all(handle: Handle, promised: list[tuple[str, str]], *, wait: float) -> DeleteReport:
    """Carry promised deletions out; for ``gc``."""
    return _finish(handle, promised, wait=wait, image=None)


def _finish(handle: Handle, promised: list[tuple[str, str]], *, wait: float, image: str | None) -> DeleteReport:
    begun, size = time.perf_counter(), _bytes(handle, promised)
    deferred = [layer_id for txid, layer_id in promised if not executor.finish_delete(handle, txid, wait=wait)]
    done = [layer_id for _, layer_id in promised if layer_id not in deferred]
    handle.observer.event(
        "deleted", layers=done, deferred=deferred, image=image, seconds=time.perf_counter() - begun,
        bytes=sum(size.get(each, 0) for each in done),
    )
    return DeleteReport(tuple(done), tuple(deferred), image)


def _settle(handle: Handle, report: DeleteReport) -> None:
    """Have the moves to ``trash/`` on disk: a loss of power that takes the database with them would bring layers back.

    PendingError: they are deleted all the same, and the next open does again what was lost. The handle is poisoned then.
    """
    if not report.layers:
        return
    try:
        with barrier(handle.observer, "delete.sync"):
            for directory in ("layers", "trash"):
                fs.sync_dir(handle.dirs[directory], point="delete.sync")
    except OSError as error:
        handle.set_poison(f"fsync failed: {error}")
        raise PendingError(f"what was deleted is gone, but was not made durable in its directories: {error}") from error


def _bytes(handle: Handle, promised: list[tuple[str, str]]) -> dict[str, int]:
    """How large the layers are whose deletion was promised, for whoever watches."""
    if not handle.watched:
        return {}
    with handle.read() as view:
        rows = [(layer_id, view.get("layers", txid)) for txid, layer_id in promised]
    return {layer_id: row["output"]["diff_size"] for layer_id, row in rows if row is not None and "output" in row}
