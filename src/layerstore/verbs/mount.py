"""Mounting and extracting layers and images.

Mounting, in order, and what a crash in each gap leaves:

1. shared locks on the chain's trees; txn ``take``: the row, the layers pinned – nothing is mounted: dropped at open
2. ``uppers/<id>/``: upper and work directories, and the empty one that a single layer needs  – the same
3. mount(2)                                                                   – a mount whose row says ``mounting``
4. txn ``attach``                                                             – a mount

Unmounting: umount(2) · unlink the upper directory · txn ``detach`` and ``drop``. All of it under the lock of
``uppers/``, so that no recovery looks at a mount that is half made.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from layerstore.errors import BusyError, InvalidArgumentError, LayerDamagedError, UnknownMountError
from layerstore.formats.manifest import NAME as MANIFEST
from layerstore.formats.manifest import manifest_digest
from layerstore.formats.packed import open_regular
from layerstore.lifecycle import catalog
from layerstore.lifecycle.machine import fire
from layerstore.lifecycle.states import Kind, Trigger
from layerstore.model import Layer, Mount
from layerstore.opening.beneath import diff_path, looking, open_tree, over
from layerstore.opening.handle import Handle
from layerstore.opening.reading import ReaderLock
from layerstore.recovery import mounting
from layerstore.system import faults, flock, fs
from layerstore.system.idmap import IDENTITY
from layerstore.trees import extract, overlay
from layerstore.trees.meant import Recorded
from layerstore.trees.mounted import is_overlay_mounted


def chain_of(handle: Handle, kind: str, owner: str, *, damaged: bool = False) -> list[Layer]:
    """The layers of an image or of a layer's chain, base first."""
    with looking(handle) as view:
        if kind == "layer":
            return catalog.chain(view, owner, damaged=damaged)
        return catalog.layers_of(view, catalog.image(view, owner), damaged=damaged)


def mount(
    handle: Handle, chain: list[Layer], target: str, *, writable: bool, damaged: bool = False, label: str | None = None,
) -> Mount:
    """Mount a chain at *target*, an existing directory. PrivilegeError says what to do without privilege.

    *label*: its security context (SELinux). What was kept from before a reboot has its own, unless another is given.
    """
    handle.check_writable()
    if label is not None:
        overlay.check_label(label)
    target = os.path.realpath(target)
    if not os.path.isdir(target):
        raise InvalidArgumentError(f"the mount point {target} is not an existing directory", hint="make it first")
    # in this order: who waits for a layer that is being repaired keeps no other mount waiting
    with ReaderLock(handle, [layer.id for layer in chain], damaged=damaged), flock.locked_dir(handle.dirs["uppers"]):
        kept = _resume(handle, chain, target, writable)
        mount_id = kept or _take(handle, chain, target, writable, damaged, label)
        try:
            _attach(handle, mount_id, chain, target, writable, label)
        except BaseException:
            if is_overlay_mounted(target):
                overlay.unmount(target)
            # an upper directory that was there already holds somebody's data; a fresh one holds nothing
            mounting.forget(handle, mount_id, keep_upper=kept is not None)
            raise
    with handle.read() as view:
        return catalog.mount(view, mount_id)


def _resume(handle: Handle, chain: list[Layer], target: str, writable: bool) -> str | None:
    """A kept upper directory for the same chain and target, from before a reboot."""
    if is_overlay_mounted(target):
        raise BusyError(f"something is mounted by overlayfs at {target} already", hint="unmount it first")
    with handle.read() as view:
        for known in catalog.mounts(view):
            if known.target == target and not known.mounted:
                if writable and known.writable and known.layers == tuple(layer.id for layer in chain):
                    _check_recorded(handle, view, known.id)
                    return known.id
                raise BusyError(
                    f"{target} has a kept upper directory of another mount",
                    hint=f"give it up first: layerstore unmount {target}",
                )
            if known.target == target:
                raise BusyError(f"{target} is already a mount of this store", hint="unmount it first")
    return None


def _check_recorded(handle: Handle, own: catalog.Reader, mount_id: str) -> None:
    """BeneathMissingError if the layers of a mount are not those that the upper directory is on top of."""
    row = own.get("mounts", mount_id)
    with over(handle, own) as view:
        for layer_id, recorded in catalog.recorded_beneath(row or {}).items():
            catalog.layer(view, layer_id, damaged=True, recorded=recorded)


def _take(
    handle: Handle, chain: list[Layer], target: str, writable: bool, damaged: bool, label: str | None,
) -> str:
    mount_id = secrets.token_hex(16)

    def change(txn: Any) -> None:
        with over(handle, txn) as view:
            for layer in chain:
                catalog.layer(view, layer.id, damaged=damaged)
            beneath = catalog.beneath_of(view, [layer.id for layer in chain])
        fire(txn, Kind.MOUNT, mount_id, Trigger.TAKE, txid=mount_id, payload={
            "target": target, "layers": [layer.id for layer in chain], "writable": writable,
            **_where(handle), **_labelled(label), **({"beneath": beneath} if beneath else {}),
        })

    handle.update("mount", change)
    return mount_id


def _attach(
    handle: Handle, mount_id: str, chain: list[Layer], target: str, writable: bool, label: str | None,
) -> None:
    uppers = os.path.join(handle.root, "uppers", mount_id)
    upper = work = None
    if not fs.exists(handle.dirs["uppers"], mount_id):
        fs.make_dir(handle.dirs["uppers"], mount_id, point="mount.upper.mkdir")
        with fs.open_dir(mount_id, handle.dirs["uppers"]) as own:
            for name in ("empty", "upper", "work"):
                fs.make_dir(own, name, point="mount.upper.mkdir", mode=0o755)
            _give_to_containers_root(handle, own)
    if writable:
        upper, work = os.path.join(uppers, "upper"), os.path.join(uppers, "work")
    if label is None:
        with handle.read() as view:
            label = catalog.mount(view, mount_id).label
    lowers = [diff_path(handle, layer.id) for layer in reversed(chain)]
    with faults.point("mount.attach"):
        overlay.mount_overlay(
            lowers, target, upper=upper, work=work, overlay_form=handle.overlay_form,
            empty_dir=os.path.join(uppers, "empty"), label=label,
        )
    handle.update("mounted", lambda txn: fire(
        txn, Kind.MOUNT, mount_id, Trigger.ATTACH, txid=mount_id,
        payload={**_where(handle), **_labelled(label), "kept": False},
    ))


def _labelled(label: str | None) -> dict[str, str]:
    """The key of a row that has one: a row without a label is as rows were before there were any."""
    return {} if label is None else {"label": label}


def _where(handle: Handle) -> dict[str, Any]:
    """What tells a mount's row where the mount may be looked for."""
    return {
        "boot_id": mounting.boot_id(), "namespace": mounting.namespace(), "uppers": mounting.uppers_of(handle),
    }


def _give_to_containers_root(handle: Handle, own: int) -> None:
    """The root of a writable mount is the upper directory: in a store with a map of ids it is the container's."""
    uid, gid = handle.ids.uid(0), handle.ids.gid(0)
    if handle.ids != IDENTITY and uid is not None and gid is not None:
        with suppress(PermissionError):
            os.chown("upper", uid, gid, dir_fd=own)


def unmount(handle: Handle, target: str, *, keep_upper: bool = False) -> None:
    """Unmount what this store mounted at *target*. The upper directory of a writable one goes, unless kept."""
    handle.check_writable()
    target = os.path.realpath(target)
    with flock.locked_dir(handle.dirs["uppers"]):
        with handle.read() as view:
            known = next((m for m in catalog.mounts(view) if m.target == target), None)
            row = None if known is None else view.get("mounts", known.id)
        if known is None or row is None:
            raise UnknownMountError(f"nothing of this store is mounted at {target}")
        with _not_being_committed(handle, known.id, target):
            if mounting.mounted_here(handle, row):
                with faults.point("mount.detach"):
                    overlay.unmount(target)
            mounting.forget(handle, known.id, keep_upper=keep_upper)


@contextmanager
def _not_being_committed(handle: Handle, mount_id: str, target: str) -> Iterator[None]:
    """Who commits reads the upper directory, and holds it shared: it must not go, nor half of it, meanwhile."""
    try:
        lock = flock.lock_tree(handle.dirs["uppers"], mount_id, wait=0.0, point="unmount.lock")
    except BusyError as error:
        raise BusyError(f"the mount at {target} is being committed", hint="try again when that is done") from error
    with lock or nullcontext():
        yield


def mounts(handle: Handle) -> list[Mount]:
    with handle.read() as view:
        return list(catalog.mounts(view))


def extract_chain(
    handle: Handle, chain: list[Layer], directory: str, progress: Callable[[int], None] | None = None, *,
    damaged: bool = False,
) -> extract.ExtractReport:
    """Copy a chain's merged content into an absent or empty *directory*, for users who cannot mount."""
    handle.check_usable()
    with ReaderLock(handle, [layer.id for layer in chain], damaged=damaged):
        diffs = [diff_path(handle, layer.id) for layer in chain]
        return extract.extract_chain(
            diffs, directory, progress=progress, overlay_form=handle.overlay_form, ids=handle.ids,
            recorded=[_recorded(handle, layer) for layer in chain],
        )


def _recorded(handle: Handle, layer: Layer) -> Recorded | None:
    """What a layer's tree is meant to be, if whoever made it could not make it all so."""
    if not layer.unset:
        return None
    with open_tree(handle, layer.id) as tree_fd:
        if manifest_digest(tree_fd) != layer.manifest_digest:
            raise LayerDamagedError(f"the manifest of layer {layer.id} is not what it was", layer_id=layer.id)
        with open_regular(MANIFEST, tree_fd) as fd:
            return Recorded(fd, handle.ids)

