"""What keeps layers from deletion and gives them names: names and named leases."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from layerstore.errors import CallerError, InvalidArgumentError, UnknownImageError
from layerstore.lifecycle import catalog
from layerstore.lifecycle.machine import fire
from layerstore.lifecycle.states import Kind, Trigger
from layerstore.model import check_id
from layerstore.opening.beneath import only_own, over
from layerstore.opening.handle import Handle, new_txid
from layerstore.verbs.names import check_name, check_name_free

_LEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}\Z")


def set_name(handle: Handle, name: str, kind: str, owner: str, *, replace: bool) -> None:
    """Give *name* to a committed image or layer. DuplicateNameError unless free, the same, or *replace*."""
    check_name(name)
    check_id(owner, f"{kind} ID")

    def change(txn: Any) -> None:
        with over(handle, txn) as view:
            (catalog.image if kind == "image" else catalog.layer)(view, owner)
            check_name_free(view, name, owner, replace)
        trigger = Trigger.TAKE if txn.get("names", name) is None else Trigger.MOVE
        fire(txn, Kind.NAME, name, trigger, txid=new_txid(), payload={"kind": kind, "id": owner})

    handle.update("name", change)


def drop_name(handle: Handle, name: str) -> None:
    """Take a name away; what it named stays."""
    only_own(handle, "name", name)

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
        fire(txn, Kind.LEASE, name, Trigger.TAKE, txid=new_txid(), payload=_lease(handle, txn, sorted(set(layer_ids))))

    handle.update("lease", change)


def _lease(handle: Handle, txn: Any, layer_ids: list[str]) -> dict[str, Any]:
    """What a lease of them records. UnknownLayerError, LayerDamagedError if one is not committed."""
    with over(handle, txn) as view:
        for layer_id in layer_ids:
            catalog.layer(view, layer_id)
        beneath = catalog.beneath_of(view, layer_ids)
    return {"layers": layer_ids, **({"beneath": beneath} if beneath else {})}


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
        lease = _lease(handle, txn, wanted)
        if txn.get("leases", name) is not None:
            fire(txn, Kind.LEASE, name, Trigger.DROP, txid=new_txid())
        if wanted:
            fire(txn, Kind.LEASE, name, Trigger.TAKE, txid=new_txid(), payload=lease)

    with handle.read() as view:
        held = view.get("leases", name)
    if (held["layers"] if held is not None else []) != wanted:
        handle.update("lease", change)
