"""What a view must come to hold, and what must be made for it: decided from what is committed and what is there. No I/O.

A view is a directory of ours that podman reads::

    view.json                      whose it is, and the lease that keeps what it shows
    current -> generations/<g>     the one switch: everything below that can change is reached through it
    generations/<g>/               layers.json  images.json  images/<id> -> ../../../images/<id>.<m>
    images/<id>.<m>/               manifest and config of an image; m is the beginning of its manifest's digest
    overlay/<id>/                  diff -> the store's tree   link   lower   lower-layers
    overlay/l/<link>               -> ../<id>/diff
    overlay-layers/                layers.lock  layers.json -> ../current/layers.json   <id>.tar-split.gz
    overlay-images/                images.lock  images.json -> ../current/images.json   <id> -> ../current/images/<id>

A generation is called by the digest of its documents, so a refresh that changes nothing does nothing. What no generation
lists is not seen by podman: it is made before the switch and taken away after it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from layerstore.formats.containers_storage.documents import ShownImage, image_record, layer_record, read_list, text_of
from layerstore.formats.containers_storage.names import link_name
from layerstore.model import Layer

__all__ = ["GENERATED", "Plan", "Present", "keep", "lower_of", "pool_name", "present", "to_make"]

GENERATED = ("layers.json", "images.json")


@dataclass(frozen=True, slots=True)
class Present:
    """What the current generation lists: records by ID."""

    name: str | None = None
    layers: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    images: Mapping[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """The generation to come, and what has to be made before it can be switched to."""

    generation: str
    documents: Mapping[str, bytes]
    layers: Mapping[str, Layer]
    images: Mapping[str, ShownImage]
    new_layers: tuple[Layer, ...]
    new_images: tuple[ShownImage, ...]


def present(name: str | None, documents: Mapping[str, bytes | None]) -> Present:
    """What a generation of that name lists. One that cannot be understood, or is not there, lists nothing."""
    if name is None:
        return Present()
    try:
        return Present(name, read_list(documents["layers.json"]), read_list(documents["images.json"]))
    except (ValueError, KeyError, TypeError):
        return Present()


def to_make(images: Sequence[ShownImage], layers: Mapping[str, Layer], now: Present, there: frozenset[str]) -> Plan:
    """The plan that leads to *images*, which stand on *layers*. *there*: the layers that lie in the view, whole or not."""
    by_id = {each.image.id: each for each in sorted(images, key=lambda each: each.image.id)}
    listed = {layer_id: layer_record(layers[layer_id]) for layer_id in sorted(layers)}
    records = [image_record(each) for each in by_id.values()]
    documents = {"layers.json": text_of(list(listed.values())), "images.json": text_of(records)}
    name = hashlib.sha256(documents["layers.json"] + b"\0" + documents["images.json"]).hexdigest()[:16]
    return Plan(
        name, documents, dict(layers), by_id,
        tuple(layers[i] for i, record in listed.items() if now.layers.get(i) != record or i not in there),
        tuple(each for each, record in zip(by_id.values(), records, strict=True)
              if _pool_of(now.images.get(each.image.id)) != _pool_of(record)),
    )


def keep(now: Present) -> dict[str, frozenset[str]]:
    """By directory of a view, the names that belong to what it lists; anything else there may go."""
    return {
        "overlay": frozenset(now.layers) | {"l"},
        "overlay/l": frozenset(map(link_name, now.layers)),
        "overlay-layers": frozenset(f"{i}.tar-split.gz" for i in now.layers) | {"layers.lock", "layers.json"},
        "overlay-images": frozenset(now.images) | {"images.lock", "images.json"},
        "images": frozenset(pool for each in now.images.values() if (pool := _pool_of(each)) is not None),
        "generations": frozenset() if now.name is None else frozenset({now.name}),
    }


def lower_of(layer: Layer, layers: Mapping[str, Layer]) -> list[str]:
    """The IDs of a layer's ancestors, the nearest first."""
    found, parent = [], layer.parent
    while parent is not None:
        found.append(parent)
        parent = layers[parent].parent
    return found


def pool_name(shown: ShownImage) -> str:
    """Where an image's documents lie below ``images/``: another manifest is another place."""
    return f"{shown.image.id}.{shown.image.manifest_digest.removeprefix('sha256:')[:16]}"


def _pool_of(record: Mapping[str, Any] | None) -> str | None:
    return None if record is None else f"{record['id']}.{record['digest'].removeprefix('sha256:')[:16]}"
