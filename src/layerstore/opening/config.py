"""``store.json``: what a store is, and what a reader must know before it touches anything (docs/on-disk.md)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from layerstore.errors import DamagedError, InvalidArgumentError, UnsupportedFormatError
from layerstore.model import StoreBeneath
from layerstore.system import fs, idmap
from layerstore.system.idmap import IDENTITY, IdMap
from layerstore.system.privilege import own_map

__all__ = ["FORMAT", "NAME", "ids_of", "read_config", "stores_beneath", "text_of", "text_with"]

NAME = "store.json"
MAGIC = "layerstore"
FORMAT = (1, 1)
COMPATIBLE = ("image-signatures", "mount-labels")   # keys that may be in rows, and that who does not know them leaves alone
KNOWN_FEATURES = frozenset({"beneath", "id-map", *COMPATIBLE})


def text_of(own: dict[str, Any], uuid: str) -> bytes:
    """The file of a new store: *own* is its form, *uuid* its journal's."""
    incompatible = ["id-map"] if "id_map" in own else []
    features = {"compatible": list(COMPATIBLE), "read_only_compatible": [], "incompatible": incompatible}
    config = {**own, "magic": MAGIC, "uuid": uuid, "format": list(FORMAT), "features": features}
    return _text(config)


def _text(config: Mapping[str, Any]) -> bytes:
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def text_with(config: Mapping[str, Any], beneath: Sequence[StoreBeneath]) -> bytes:
    """The file *config* with these stores beneath. The feature stays, whatever the list: rows may speak of them."""
    features = {**config["features"]}
    features["incompatible"] = sorted({*features["incompatible"], "beneath"})
    stores = [{"uuid": each.uuid, "path": each.path} for each in beneath]
    return _text({**config, "features": features, "beneath": stores})


def stores_beneath(config: Mapping[str, Any]) -> list[StoreBeneath]:
    """The stores beneath, in the order in which they are looked through."""
    return [StoreBeneath(each["uuid"], each["path"]) for each in config.get("beneath", ())]


def ids_of(config: Mapping[str, Any]) -> IdMap:
    """Which ids stand for the archives', as this process sees them on disk: by way of its own user namespace."""
    recorded = config.get("id_map")
    if recorded is None:
        return IDENTITY
    return IdMap(*(idmap.seen_from(idmap.checked(recorded[kind]), own_map(kind)) for kind in ("uid", "gid")))


def read_config(root_fd: int, root: str, *, readonly: bool) -> dict[str, Any]:
    """What the store at *root* says of itself.

    InvalidArgumentError if there is none; DamagedError; UnsupportedFormatError if it is not for this version.
    """
    data = fs.read_file(root_fd, NAME, maximum=65_536)
    if data is None:
        raise InvalidArgumentError(f"{root} is not a layerstore (no store.json)", hint="create one: layerstore.open(root)")
    try:
        config: dict[str, Any] = json.loads(data)
        if config["magic"] != MAGIC or not isinstance(config["uuid"], str):
            raise ValueError("not a layerstore's")
        if config["overlay_form"] not in ("trusted", "user"):
            raise ValueError(f"overlay_form {config['overlay_form']!r}")
        if "id_map" in config:
            for kind in ("uid", "gid"):
                idmap.checked(config["id_map"][kind])
        for each in stores_beneath(config):
            if not isinstance(each.uuid, str) or not isinstance(each.path, str) or not os.path.isabs(each.path):
                raise ValueError(f"a store beneath: {each}")
        major = int(config["format"][0])
        unknown = unknown_features(config)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DamagedError(f"{root}/store.json cannot be understood: {error}") from error
    if major > FORMAT[0] or unknown.get("incompatible"):
        raise UnsupportedFormatError(
            f"the store {root} has format {config['format']} and features {unknown.get('incompatible')}; "
            f"this layerstore reads format {FORMAT[0]}",
        )
    if unknown.get("read_only_compatible") and not readonly:
        raise UnsupportedFormatError(
            f"the store {root} uses features that this layerstore can only read: {unknown['read_only_compatible']}",
            hint="open it read-only (readonly=True), or use a newer layerstore",
        )
    return config


def unknown_features(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """What a newer layerstore put into the store that this one does not know, by kind."""
    features = config["features"]
    return {kind: sorted(set(features[kind]) - KNOWN_FEATURES) for kind in features}
