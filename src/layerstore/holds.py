"""What keeps layers from deletion and gives them names: names, named leases, reader locks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from layerstore import catalog, fs
from layerstore.apply import check_name, check_name_free
from layerstore.errors import CallerError, InvalidArgumentError, UnknownImageError, UnknownLayerError
from layerstore.handle import Handle, new_txid
from layerstore.lifecycle import fire
from layerstore.model import check_id
from layerstore.states import Kind, Trigger

_LEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}\Z")


def set_name(handle: Handle, name: str, kind: str, owner: str, *, replace: bool) -> None:
    """Give *name* to a committed image or layer. DuplicateNameError unless free, the same, or *replace*."""
    check_name(name)
    check_id(owner, f"{kind} ID")

    def change(txn: Any) -> None:
        (catalog.image if kind == "image" else catalog.layer)(txn, owner)
        check_name_free(txn, name, owner, replace)
        trigger = Trigger.TAKE if txn.get("names", name) is None else Trigger.MOVE
        fire(txn, Kind.NAME, name, trigger, txid=new_txid(), payload={"kind": kind, "id": owner})

    handle.update("name", change)


def drop_name(handle: Handle, name: str) -> None:
    """Take a name away; what it named stays."""
    def change(txn: Any) -> None:
        if txn.get("names", name) is None:
            raise UnknownImageError(f"there is no name {name!r}")
        fire(txn, Kind.NAME, name, Trigger.DROP, txid=new_txid())

    handle.update("name", change)


def take_lease(handle: Handle, name: str, layer_ids: Sequence[str]) -> None:
    """Hold layers by a named lease, until it is dropped, by whatever process."""
    if not _LEASE.match(name):
        raise InvalidArgumentError(f"{name!r} is not a usable lease name")
    for layer_id in layer_ids:
        check_id(layer_id)

    def change(txn: Any) -> None:
        if txn.get("leases", name) is not None:
            raise CallerError(f"there is a lease {name!r} already", hint="drop it first, or choose another name")
        for layer_id in layer_ids:
            catalog.layer(txn, layer_id)
        fire(txn, Kind.LEASE, name, Trigger.TAKE, txid=new_txid(), payload={"layers": sorted(set(layer_ids))})

    handle.update("lease", change)


def drop_lease(handle: Handle, name: str) -> None:
    def change(txn: Any) -> None:
        if txn.get("leases", name) is None:
            raise CallerError(f"there is no lease {name!r}", hint="list them with Store.leases()")
        fire(txn, Kind.LEASE, name, Trigger.DROP, txid=new_txid())

    handle.update("lease", change)


def renew_lease(handle: Handle, name: str, layer_ids: Sequence[str]) -> None:
    """Let the lease *name* hold just *layer_ids*, in one transaction: none of them is free meanwhile. None: no lease.

    UnknownLayerError, LayerDamagedError if one of them is not committed; then the lease is as it was.
    """
    wanted = sorted(set(layer_ids))

    def change(txn: Any) -> None:
        for layer_id in wanted:
            catalog.layer(txn, layer_id)
        if txn.get("leases", name) is not None:
            fire(txn, Kind.LEASE, name, Trigger.DROP, txid=new_txid())
        if wanted:
            fire(txn, Kind.LEASE, name, Trigger.TAKE, txid=new_txid(), payload={"layers": wanted})

    with handle.read() as view:
        held = view.get("leases", name)
    if (held["layers"] if held is not None else []) != wanted:
        handle.update("lease", change)


class ReaderLock:
    """Shared locks on the trees of layers: while held, they can be hidden, but not moved or unlinked.

    Held by this process alone, and gone when it dies; a lease is for longer. Takes no lock that a writer holds
    while it syncs: only a deletion takes the tree's lock exclusively. *wait* seconds for it, then BusyError.
    """

    def __init__(self, handle: Handle, layer_ids: Sequence[str], *, damaged: bool = False, wait: float = 30.0) -> None:
        self._stack, self._wait = ExitStack(), wait
        try:
            for layer_id in layer_ids:
                self._lock(handle, layer_id, damaged)
        except BaseException:
            self._stack.close()
            raise

    def _lock(self, handle: Handle, layer_id: str, damaged: bool) -> None:
        lock = fs.lock_tree(handle.dirs["layers"], layer_id, shared=True, wait=self._wait, point="reader.lock")
        if lock is not None:
            self._stack.enter_context(lock)
        with handle.read() as view:   # looked at again under the lock: it may have been deleted meanwhile
            here = catalog.layer(view, layer_id, damaged=damaged)
        if lock is None or fs.read_txid(lock.fd) != here.txid:
            raise UnknownLayerError(f"the tree of layer {layer_id} is not in its place", hint="run 'layerstore check'")

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> ReaderLock:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
