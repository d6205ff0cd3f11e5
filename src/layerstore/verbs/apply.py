"""Applying: staged trees become committed layers, all or none, in the order that docs/crash-model.md gives.

5. one syncfs for all trees of the batch that are not durable yet, once nothing speaks against the claim
6. txn ``claim``: every tree sealed, every ID and name of the batch claimed, parents pinned; duplicates are decided here
   and nowhere else
7. only if the caller gave big data: write it into the trees, fsync each file
8. txn ``promise``, durable: **the commit point** (in one transaction with 6 where 7 is empty)
9. side file, then rename ``staging/<txid>`` → ``layers/<id>``, for each
10. txn ``commit``: one moment of visibility for layers, names and image

Before 6 a crash or an error leaves the trees as they were, filled; before 8 it rolls back to ``staged``. From 8 on
everything goes forward: an error is PendingError.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from layerstore.errors import LayerstoreError, OutcomeError, PendingError
from layerstore.lifecycle import catalog
from layerstore.lifecycle.states import State
from layerstore.model import Image, Layer, SourceImage
from layerstore.observe import barrier
from layerstore.opening.beneath import looking
from layerstore.opening.handle import Handle, new_txid
from layerstore.recovery import batches
from layerstore.system import fs
from layerstore.verbs.batch import Batch, LayerSpec, check_arguments, take
from layerstore.verbs.checkpoint import checkpoint_if_due
from layerstore.verbs.claiming import claim, promise, release
from layerstore.verbs.staging import discard


def apply_batch(
    handle: Handle, specs: Sequence[LayerSpec], *, image: SourceImage | None = None,
    image_layers: Sequence[str] = (), image_names: Sequence[str] = (), replace_names: bool = False,
) -> tuple[list[Layer], Image | None]:
    """Apply a batch; with *image*, make it visible in the same transaction, over *image_layers* (base first).

    Layers that are committed already with the same content and parent are returned with ``created=False``.
    Durability: when it returns, everything is durable and visible, by one syncfs and two durable transactions, however
    many layers there are (one more, and the files' own syncs, with big data of the caller's). After a crash before
    step 8 nothing is; after it, everything will be. Raises the claim's errors (nothing happened) or PendingError (it
    will be finished).
    """
    handle.check_writable()
    begun = time.perf_counter()
    check_arguments(specs, image_names)
    batch, promised = Batch(new_txid(), [], image, image_layers, image_names, replace_names), False
    try:
        for spec in specs:
            batch.members.append(take(handle, spec))  # one by one: those before a bad one are given back
        claim(handle, batch)
        if batch.has_big_data:
            _write_big_data(handle, batch)
            promise(handle, batch)
        promised = True
        _finish(handle, batch)
    except BaseException as error:
        lies = isinstance(error, fs.SyncError) or (isinstance(error, OSError) and error.errno == errno.EIO)
        if lies and not promised:
            # what was written is unknown, and never tried again: before the roll-back, which would offer just that
            handle.set_poison(f"writing big data failed: {error}")
        if not promised:
            promised = _roll_back(handle, batch)
        if promised and isinstance(error, Exception) and not isinstance(error, OutcomeError):
            raise PendingError(f"the batch is durable and will be finished by recovery: {error}") from error
        if isinstance(error, OSError):
            raise fs.host_error(error, "applying a layer", at=handle.root_fd) from error
        raise
    finally:
        for each in batch.members:
            if not each.given_back:
                handle.let_go(each.txid)
    layers, made = _outcome(handle, batch, begun)
    checkpoint_if_due(handle)
    return layers, made


def _outcome(handle: Handle, batch: Batch, begun: float) -> tuple[list[Layer], Image | None]:
    """What the batch is now, which the observer is told of."""
    image = batch.image
    with looking(handle) as view:
        layers = [replace(catalog.layer(view, each.layer_id), created=not each.duplicate) for each in batch.members]
        made = None
        if image is not None:
            mine = (view.get("images", image.id) or {}).get("txid") == batch.id
            made = replace(catalog.image(view, image.id), created=mine)
    for layer in layers:
        handle.observer.event(
            "applied", layer_id=layer.id, txid=layer.txid, parent=layer.parent, diff_id=layer.diff_id,
            bytes=layer.diff_size, entries=layer.entries, created=layer.created,
            image=image.id if image is not None else None, seconds=time.perf_counter() - begun,
        )
    return layers, made


# -- 7. big data, and rolling back -----------------------------------------------------------------------------------


def _write_big_data(handle: Handle, batch: Batch) -> None:
    for member in batch.fresh():
        if not member.spec.big_data:
            continue
        tree = handle.lock_fd(member.txid)
        if not fs.exists(tree, "big-data"):
            fs.make_dir(tree, "big-data", point="apply.big-data.mkdir")
        with fs.open_dir("big-data", tree) as directory:
            for key in fs.names_in(directory):
                if key not in member.output.big_data:   # of an attempt that was rolled back
                    fs.unlink(directory, key, point="apply.big-data.clear")
            for key, value in sorted(member.spec.big_data.items()):
                with barrier(handle.observer, "apply.big-data.write"):
                    fs.write_new(directory, key, value, point="apply.big-data.write", sync=True)
            with barrier(handle.observer, "apply.big-data.sync"):
                fs.sync_dir(directory, point="apply.big-data.sync")
                fs.sync_dir(tree, point="apply.big-data.sync")


def _roll_back(handle: Handle, batch: Batch) -> bool:
    """Not promised: what was claimed, back to staged, and the handles are good again. True if it was promised after all.

    What the sync could not make durable was given up, and its handle is used up.
    """
    promised = False
    for member in batch.members:
        txid, state = member.txid, None
        with suppress(LayerstoreError):
            with handle.read() as view:
                state = (view.get("layers", txid) or {}).get("state")
            if state == State.CREATING:
                handle.update("release", partial(release, txid=txid))
                state = State.STAGED
        if state in (State.STAGING, State.STAGED) and handle.holds(txid):
            member.given_back = True
            member.spec.staged.give_back()
        promised = promised or state in (State.INCOMPLETE, State.COMMITTED)
    return promised


# -- 9 and 10. forward -------------------------------------------------------------------------------------------------


def _finish(handle: Handle, batch: Batch) -> None:
    batches.finish_batch(handle, batch.id, own=frozenset(each.txid for each in batch.fresh()))
    for member in batch.fresh():
        handle.let_go(member.txid)   # readers wait for no longer than this
    with suppress(LayerstoreError):
        discard(handle, *(each.staging for each in batch.members if each.duplicate))
