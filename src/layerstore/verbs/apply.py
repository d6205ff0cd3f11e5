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
import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import field, replace
from functools import partial
from typing import Any

from layerstore.errors import (
    BusyError,
    DuplicateLayerError,
    DuplicateNameError,
    InvalidArgumentError,
    LayerDamagedError,
    LayerstoreError,
    OutcomeError,
    ParentUnavailableError,
    PendingError,
)
from layerstore.formats.records import as_record
from layerstore.lifecycle import catalog
from layerstore.lifecycle.machine import fire
from layerstore.lifecycle.states import Kind, State, Trigger
from layerstore.model import Image, Layer, SourceImage, check_id, default_layer_id
from layerstore.observe import barrier
from layerstore.opening.beneath import looking, over
from layerstore.opening.handle import Handle, new_txid
from layerstore.recovery import executor
from layerstore.system import fs
from layerstore.values import dataclass
from layerstore.verbs import quota
from layerstore.verbs.checkpoint import checkpoint_if_due
from layerstore.verbs.stage import StagedLayer
from layerstore.verbs.staging import Staging, discard, make_durable, seal_rows

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,254}\Z")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_CLAIM_PATIENCE_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One layer of a batch.

    ``parent`` may be committed, here or in a store beneath, or an earlier member's ID; None for a base layer.
    """

    staged: StagedLayer
    parent: str | None = None
    id: str | None = None
    names: Sequence[str] = ()
    big_data: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class _Member:
    spec: LayerSpec
    staging: Staging
    layer_id: str
    duplicate: bool = False
    given_back: bool = False


class _ConflictError(Exception):
    """Somebody is creating or deleting that ID (a *txid*), or that image (a *batch*): wait, then try again."""

    def __init__(self, what: str, *, txid: str | None = None, batch: str | None = None) -> None:
        super().__init__(what)
        self.txid, self.batch = txid, batch


class _NotDurableError(Exception):
    """Nothing speaks against the claim, but trees of it are not synced yet."""


def check_name(name: str) -> str:
    """Names are 1 to 255 characters of ``[A-Za-z0-9._:/@+-]``, beginning with a letter or digit."""
    if not isinstance(name, str) or not _NAME.match(name):
        raise InvalidArgumentError(f"{name!r} is not a usable name", hint=check_name.__doc__)
    if re.fullmatch(r"[0-9a-f]{64}", name):
        raise InvalidArgumentError(f"the name {name!r} would look like an ID")
    return name


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
    _check_arguments(specs, image_names)
    members: list[_Member] = []
    batch, promised = new_txid(), False
    try:
        for spec in specs:
            members.append(_member(handle, spec))  # noqa: PERF401 - one by one: those before a bad one are given back
        _claim(handle, members, batch, image, image_layers, image_names, replace_names)
        if any(m.spec.big_data and not m.duplicate for m in members):
            _write_big_data(handle, members)
            _promise_apart(handle, members, batch, image, image_layers, image_names, replace_names)
        promised = True
        _finish(handle, members, batch)
    except BaseException as error:
        lies = isinstance(error, fs.SyncError) or (isinstance(error, OSError) and error.errno == errno.EIO)
        if lies and not promised:
            # what was written is unknown, and never tried again: before the roll-back, which would offer just that
            handle.set_poison(f"writing big data failed: {error}")
        if not promised:
            promised = _roll_back(handle, members)
        if promised and isinstance(error, Exception) and not isinstance(error, OutcomeError):
            raise PendingError(f"the batch is durable and will be finished by recovery: {error}") from error
        if isinstance(error, OSError):
            raise fs.host_error(error, "applying a layer") from error
        raise
    finally:
        for member in members:
            if not member.given_back:
                handle.let_go(member.staging.txid)
    with looking(handle) as view:
        layers = [replace(catalog.layer(view, m.layer_id), created=not m.duplicate) for m in members]
        made = None
        if image is not None:
            mine = (view.get("images", image.id) or {}).get("txid") == batch
            made = replace(catalog.image(view, image.id), created=mine)
    for layer in layers:
        handle.observer.event(
            "applied", layer_id=layer.id, txid=layer.txid, parent=layer.parent, diff_id=layer.diff_id,
            bytes=layer.diff_size, entries=layer.entries, created=layer.created,
            image=image.id if image is not None else None, seconds=time.perf_counter() - begun,
        )
    checkpoint_if_due(handle)
    return layers, made


def _check_arguments(specs: Sequence[LayerSpec], image_names: Sequence[str]) -> None:
    names = [check_name(n) for spec in specs for n in spec.names] + [check_name(n) for n in image_names]
    for spec in specs:
        if spec.parent is not None:
            check_id(spec.parent, "parent ID")
        if spec.id is not None:
            check_id(spec.id)
        for key, value in spec.big_data.items():
            if not _KEY.match(key) or not isinstance(value, bytes):
                raise InvalidArgumentError(f"big data {key!r} must have a plain key and bytes as its value")
    if len(set(names)) != len(names):
        raise InvalidArgumentError(f"a name is given twice: {sorted(names)}")


def _member(handle: Handle, spec: LayerSpec) -> _Member:
    taken = set(spec.big_data) & set(spec.staged.output.big_data)
    if taken:
        raise InvalidArgumentError(f"the content brings its own big data {sorted(taken)}")
    staging = spec.staged.take(handle)
    assert staging.output is not None
    return _Member(spec, staging, spec.id or default_layer_id(spec.parent, staging.output.diff_id))


# -- 6. the claim ------------------------------------------------------------------------------------------------


def _claim(
    handle: Handle, members: list[_Member], batch: str, image: SourceImage | None, image_layers: Sequence[str],
    image_names: Sequence[str], replace_names: bool,
) -> None:
    deadline = time.monotonic() + _CLAIM_PATIENCE_SECONDS
    big_data = any(m.spec.big_data for m in members)
    limit = quota.limit_of(handle)

    def claim(txn: Any) -> None:
        _check_image(txn, image)
        with over(handle, txn) as path:
            for member in members:
                member.duplicate = _is_duplicate(path, member)
            fresh = [m for m in members if not m.duplicate]
            _check_claimable(path, members, image, image_layers, image_names, replace_names)
            beneath = catalog.beneath_of(path, [m.spec.parent for m in fresh if m.spec.parent is not None])
        if limit is not None:
            # one that is a duplicate is given up right after this
            quota.check(handle, txn, limit, {m.staging.txid: 0 if m.duplicate else _tar_size(m) for m in members})
        if not all(m.staging.durable for m in fresh):
            raise _NotDurableError
        seal_rows(txn, [m.staging for m in fresh])
        for member in fresh:
            fire(txn, Kind.LAYER, member.staging.txid, Trigger.CLAIM, txid=member.staging.txid, payload={
                "layer_id": member.layer_id, "parent": member.spec.parent, "names": list(member.spec.names),
                "replace_names": replace_names, "batch": batch,
                "big_data": _big_data_digests(member),
                **({"beneath": beneath[str(member.spec.parent)]} if member.spec.parent in beneath else {}),
            })
        for member in members:
            if member.duplicate:
                _name_duplicate(txn, member)
        if not big_data:
            _promise(handle, txn, members, batch, image, image_layers, image_names, replace_names)

    while True:
        try:
            handle.update("claim", claim)
        except _ConflictError as conflict:
            _wait_for(handle, conflict, deadline)
        except _NotDurableError:
            make_durable(handle, [m.staging for m in members if not m.duplicate])
        else:
            return


def _tar_size(member: _Member) -> int:
    assert member.staging.output is not None
    return member.staging.output.diff_size


def _is_duplicate(path: catalog.Reader, member: _Member) -> bool:
    """Whether the ID is there already with the very same content; DuplicateLayerError if with other."""
    found = catalog.tree_of(path, member.layer_id)
    if found is None:
        return False
    txid, row = found
    state, output = State(row["state"]), member.staging.output
    assert output is not None
    if state in (State.CREATING, State.INCOMPLETE, State.DELETING):
        raise _ConflictError(f"layer {member.layer_id}", txid=txid)
    if state is State.QUARANTINED:
        raise LayerDamagedError(
            f"layer {member.layer_id} is there, but quarantined: {row['damage']['why']}", layer_id=member.layer_id,
            files=row["damage"]["files"], hint="delete it ('layerstore rm'), then pull again",
        )
    if member.spec.big_data and row["big_data"] != _big_data_digests(member):
        raise DuplicateLayerError(f"layer {member.layer_id} exists with other big data: {sorted(row['big_data'])}")
    if row["output"]["diff_id"] != output.diff_id or row["parent"] != member.spec.parent:
        raise DuplicateLayerError(
            f"layer {member.layer_id} exists with diffID {row['output']['diff_id']} and parent {row['parent']}; "
            f"asked for was diffID {output.diff_id} and parent {member.spec.parent}",
        )
    return True


def _wait_for(handle: Handle, conflict: _ConflictError, deadline: float) -> None:
    """Until its live holder is done with it; if the holder is dead, bring it to rest ourselves."""
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise BusyError(f"{conflict} is still being created or deleted by another process")
    with suppress(BusyError):
        if conflict.batch is not None:
            executor.finish_batch(handle, conflict.batch, wait=remaining)
        elif conflict.txid is not None:
            executor.resolve(handle, conflict.txid, wait=remaining)
    time.sleep(0.01)


def _check_claimable(
    path: catalog.Reader, members: list[_Member], image: SourceImage | None, image_layers: Sequence[str],
    image_names: Sequence[str], replace_names: bool,
) -> None:
    known: set[str] = set()
    for member in members:
        if member.layer_id in known:
            raise InvalidArgumentError(f"layer {member.layer_id} is twice in one batch")
        parent = member.spec.parent
        if parent is not None and parent not in known:
            _check_parent(path, parent)
        known.add(member.layer_id)
    for layer_id in image_layers:
        if layer_id not in known:
            _check_parent(path, layer_id)
    for member in members:
        for name in member.spec.names:
            check_name_free(path, name, member.layer_id, replace_names)
    for name in image_names if image is not None else ():
        check_name_free(path, name, image.id if image else "", replace_names)


def _check_parent(path: catalog.Reader, parent: str) -> None:
    found = catalog.tree_of(path, parent)
    state = found[1]["state"] if found else "absent"
    if state != State.COMMITTED:
        raise ParentUnavailableError(f"the layer {parent} to stand on is {state}, not committed")


def check_name_free(path: catalog.Reader, name: str, owner: str, replace_names: bool) -> None:
    """DuplicateNameError if *name* belongs to something else, or is claimed by a transaction under way."""
    row = path.get("names", name)
    if row is not None and row["id"] != owner and not replace_names:
        raise DuplicateNameError(f"the name {name!r} belongs to {row['kind']} {row['id']}")
    if path.get("claims", name) is not None:
        raise DuplicateNameError(
            f"the name {name!r} is being given by another transaction", hint="try again when it is done",
        )


def _check_image(txn: Any, image: SourceImage | None) -> None:
    """_ConflictError if another batch has promised the same image and is about to finish it."""
    row = txn.get("images", image.id) if image is not None else None
    if image is not None and row is not None and row["state"] == State.INCOMPLETE:
        raise _ConflictError(f"image {image.id}", batch=row["txid"])


def _name_duplicate(txn: Any, member: _Member) -> None:
    """A layer that was there already gets the names all the same."""
    for name in member.spec.names:
        row = txn.get("names", name)
        if row is None or row["id"] != member.layer_id:
            trigger = Trigger.TAKE if row is None else Trigger.MOVE
            fire(txn, Kind.NAME, name, trigger, txid=new_txid(), payload={"kind": "layer", "id": member.layer_id})


def _promise(
    handle: Handle, txn: Any, members: list[_Member], batch: str, image: SourceImage | None, image_layers: Sequence[str],
    image_names: Sequence[str], replace_names: bool,
) -> None:
    for member in members:
        if not member.duplicate:
            fire(txn, Kind.LAYER, member.staging.txid, Trigger.PROMISE, txid=member.staging.txid)
    if image is None:
        return
    _check_image(txn, image)
    row = txn.get("images", image.id)
    if row is not None and row["state"] == State.COMMITTED:
        return
    with over(handle, txn) as path:
        for name in image_names:
            check_name_free(path, name, image.id, replace_names)
        beneath = catalog.beneath_of(path, image_layers)
    fire(txn, Kind.IMAGE, image.id, Trigger.PROMISE, txid=batch, payload={
        "layers": list(image_layers), "names": list(image_names), "replace_names": replace_names,
        "manifest": image.manifest, "manifest_digest": image.manifest_digest,
        "manifest_media_type": image.manifest_media_type, "config": image.config,
        "config_digest": image.config_digest, **as_record(image.signatures, image.indexes),
        **({"beneath": beneath} if beneath else {}),
    })


def _promise_apart(handle: Handle, *args: Any) -> None:
    while True:
        try:
            handle.update("promise", lambda txn: _promise(handle, txn, *args))
        except _ConflictError as conflict:
            _wait_for(handle, conflict, time.monotonic() + _CLAIM_PATIENCE_SECONDS)
        else:
            return


# -- 7. big data, and rolling back -----------------------------------------------------------------------------------


def _write_big_data(handle: Handle, members: list[_Member]) -> None:
    for member in members:
        if not member.spec.big_data or member.duplicate:
            continue
        tree = handle.lock_fd(member.staging.txid)
        if not fs.exists(tree, "big-data"):
            fs.make_dir(tree, "big-data", point="apply.big-data.mkdir")
        with fs.open_dir("big-data", tree) as directory:
            assert member.staging.output is not None
            for key in fs.names_in(directory):
                if key not in member.staging.output.big_data:   # of an attempt that was rolled back
                    fs.unlink(directory, key, point="apply.big-data.clear")
            for key, value in sorted(member.spec.big_data.items()):
                with barrier(handle.observer, "apply.big-data.write"):
                    fs.write_new(directory, key, value, point="apply.big-data.write", sync=True)
            with barrier(handle.observer, "apply.big-data.sync"):
                fs.sync_dir(directory, point="apply.big-data.sync")
                fs.sync_dir(tree, point="apply.big-data.sync")


def _roll_back(handle: Handle, members: list[_Member]) -> bool:
    """Not promised: what was claimed, back to staged, and the handles are good again. True if it was promised after all.

    What the sync could not make durable was given up, and its handle is used up.
    """
    promised = False
    for member in members:
        txid, state = member.staging.txid, None
        with suppress(LayerstoreError):
            with handle.read() as view:
                state = (view.get("layers", txid) or {}).get("state")
            if state == State.CREATING:
                handle.update("release", partial(_release, txid=txid))
                state = State.STAGED
        if state in (State.STAGING, State.STAGED) and handle.holds(txid):
            member.given_back = True
            member.spec.staged.give_back()
        promised = promised or state in (State.INCOMPLETE, State.COMMITTED)
    return promised


def _release(txn: Any, *, txid: str) -> None:
    row = txn.get("layers", txid)
    if row is not None and row["state"] == State.CREATING:
        fire(txn, Kind.LAYER, txid, Trigger.RELEASE, txid=txid)


# -- 9 and 10. forward -------------------------------------------------------------------------------------------------


def _finish(handle: Handle, members: list[_Member], batch: str) -> None:
    executor.finish_batch(handle, batch, own=frozenset(m.staging.txid for m in members if not m.duplicate))
    for member in members:
        if not member.duplicate:
            handle.let_go(member.staging.txid)   # readers wait for no longer than this
    with suppress(LayerstoreError):
        discard(handle, *(m.staging for m in members if m.duplicate))


def _big_data_digests(member: _Member) -> dict[str, str]:
    return {key: _sha256(value) for key, value in sorted(member.spec.big_data.items())}


def _sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
