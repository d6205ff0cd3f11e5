"""``view.json``: whose a view is, and by which lease its store holds what it shows. Nothing else of a view is made here."""

from __future__ import annotations

import json
import os
import re
from hashlib import sha256

from layerstore.errors import InvalidArgumentError
from layerstore.opening import config
from layerstore.opening.handle import Handle
from layerstore.system import fs

__all__ = ["NAME", "lease_of", "owned", "read"]

NAME = "view.json"


def owned(handle: Handle, at: int, path: str) -> str:
    """The lease of the view, which this store's is from now on if it was nobody's."""
    if not fs.exists(at, NAME):
        strange = [name for name in fs.names_in(at) if not _by_a_reader(at, name)]
        if strange:
            raise InvalidArgumentError(
                f"{path} is not a view, and not empty: it has {strange[0]!r}", hint="choose an absent or empty directory",
            )
        marker = {"magic": "layerstore-view", "version": 1, "store": handle.config["uuid"], "lease": lease_of(path),
                  "root": os.path.realpath(handle.root)}
        text = json.dumps(marker, indent=2, sort_keys=True).encode()
        fs.replace_file(at, NAME, text + b"\n", point="view.marker", sync=True)
        fs.sync_dir(at, point="view.marker.sync")   # before anything that would be a stranger's without it
    return read(handle, at, path, moved=False)


def _by_a_reader(at: int, name: str) -> bool:
    """Whether *name* is what podman itself makes in an empty directory that it was told to read."""
    if name == f".{NAME}.new":
        return True
    if name not in ("overlay", "overlay-layers", "overlay-images"):
        return False
    with fs.open_dir(name, at) as own:
        return all(each.endswith(".lock") for each in fs.names_in(own))


def read(handle: Handle, at: int, path: str, *, moved: bool = True) -> str:
    """The view's lease. InvalidArgumentError if it is no view of this store, or of this root (unless *moved*).

    So, too, if it is the view of a store that this one is a copy of (ADR 0024): that is where it was.
    """
    try:
        marker = json.loads(fs.read_file(at, NAME) or b"")
        store, root, lease, version = marker["store"], marker["root"], str(marker["lease"]), marker["version"]
        if marker["magic"] != "layerstore-view" or version != 1:
            raise ValueError(f"magic {marker['magic']!r}, version {version!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidArgumentError(f"{path} is not a view that this layerstore knows: {error}") from error
    if store != handle.config["uuid"]:
        raise InvalidArgumentError(f"{path} is a view of another store: {root}")
    if _is_anothers(handle, store, root):
        raise InvalidArgumentError(
            f"{path} is a view of {root}, which this store is a copy of",
            hint=f"make a view elsewhere; layerstore leases --drop {lease!r} lets go of what this store holds for that one",
        )
    if not moved and root != os.path.realpath(handle.root):
        raise InvalidArgumentError(
            f"the view {path} leads to {root}, where the store is no longer", hint="remove the view, and make it again",
        )
    return lease


def _is_anothers(handle: Handle, uuid: str, root: str) -> bool:
    """Whether the store at *root* is one of that uuid, and not the one that is open."""
    try:
        with fs.open_dir(root) as at:
            text, there, here = fs.read_file(at, config.NAME), os.fstat(at), os.fstat(handle.root_fd)
        found = json.loads(text or b"{}").get("uuid")
    except (FileNotFoundError, NotADirectoryError, ValueError, AttributeError):
        return False
    return bool(found == uuid) and not os.path.samestat(there, here)


def lease_of(path: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9._:/@+-]", "_", path)[-120:]
    return f"view:{readable}@{sha256(os.fsencode(path)).hexdigest()[:12]}"
