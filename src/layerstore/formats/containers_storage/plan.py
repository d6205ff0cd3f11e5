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

A generation is called by the digest of its documents, so a refresh that changes nothing does nothing; one that lost
something is replaced by one with ``-again`` in its name, or without. What no generation lists is not seen by podman: it is
made before the switch and taken away after it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from layerstore.formats.containers_storage.documents import ShownImage, image_record, layer_record, read_list, text_of
from layerstore.formats.containers_storage.names import big_data_file, link_name
from layerstore.model import Layer

__all__ = [
    "DIRECTORIES", "GENERATED", "LINKS", "LOCKS", "Plan", "Present", "keep", "lower_of", "places", "pool_name", "present",
    "to_make",
]

GENERATED = ("layers.json", "images.json")
DIRECTORIES = ("generations", "images", "overlay", "overlay/l", "overlay-layers", "overlay-images")
LINKS = {"overlay-layers/layers.json": "../current/layers.json", "overlay-images/images.json": "../current/images.json"}
LOCKS = ("overlay-layers/layers.lock", "overlay-images/images.lock")


@dataclass(frozen=True, slots=True)
class Present:
    """What the current generation lists: records by ID. ``right``: its documents are those that its name speaks of."""

    name: str | None = None
    layers: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    images: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    right: bool = True


@dataclass(frozen=True, slots=True)
class Plan:
    """The generation to come, and what has to be made before it can be switched to.

    ``new_layers`` and ``new_images`` lack something, perhaps all. ``nothing``: all is as it is to be.
    """

    generation: str
    documents: Mapping[str, bytes]
    layers: Mapping[str, Layer]
    images: Mapping[str, ShownImage]
    new_layers: tuple[Layer, ...]
    new_images: tuple[ShownImage, ...]
    nothing: bool


def present(name: str | None, documents: Mapping[str, bytes | None]) -> Present:
    """What a generation of that name lists. One that cannot be understood, or is not there, lists nothing."""
    if name is None:
        return Present()
    try:
        layers, images = (read_list(documents[each]) for each in GENERATED)
        for each in images.values():
            _pool_of(each)
    except (ValueError, KeyError, TypeError, AttributeError):
        return Present()
    return Present(name, layers, images, right=name in _names(documents))


def to_make(images: Sequence[ShownImage], layers: Mapping[str, Layer], now: Present, there: frozenset[str]) -> Plan:
    """The plan that leads to *images*, which stand on *layers*. *there*: the paths in ``places`` of *now*."""
    by_id = {each.image.id: each for each in sorted(images, key=lambda each: each.image.id)}
    listed = {layer_id: layer_record(layers[layer_id]) for layer_id in sorted(layers)}
    records = [image_record(each) for each in by_id.values()]
    documents = {"layers.json": text_of(list(listed.values())), "images.json": text_of(records)}
    names = _names(documents)
    whole = now.right and now.name in names and there.issuperset(_of_generation(now.name, by_id))
    new_layers = tuple(layers[i] for i, record in listed.items()
                       if now.layers.get(i) != record or not there.issuperset(_of_layer(layers[i])))
    new_images = tuple(each for each in by_id.values() if not there.issuperset(_of_image(each)))
    name = now.name if whole and now.name else next(each for each in names if each != now.name)
    return Plan(
        name, documents, dict(layers), by_id, new_layers, new_images,
        nothing=whole and not new_layers and not new_images and there.issuperset((*DIRECTORIES, *LINKS, *LOCKS)),
    )


def _names(documents: Mapping[str, bytes | None]) -> tuple[str, str]:
    """What a generation with these documents may be called."""
    text = b"\0".join(documents[each] or b"" for each in GENERATED)
    name = hashlib.sha256(text).hexdigest()[:16]
    return name, f"{name}-again"


# -- what has to be where ------------------------------------------------------------------------------------------


def places(now: Present) -> list[str]:
    """The directories of a view in which everything lies that is known by its name, and what that lies in."""
    pools = [f"images/{pool}" for each in now.images.values() if (pool := _pool_of(each)) is not None]
    own = [] if now.name is None else [f"generations/{now.name}", f"generations/{now.name}/images"]
    return [".", *DIRECTORIES, *(f"overlay/{each}" for each in now.layers), *pools, *own]


def _of_layer(layer: Layer) -> list[str]:
    own = ["diff", "link"] + (["lower", "lower-layers"] if layer.parent is not None else [])
    split = [f"overlay-layers/{layer.id}.tar-split.gz"] if layer.tar_split_digest is not None else []
    return [*(f"overlay/{layer.id}/{each}" for each in own), f"overlay/l/{link_name(layer.id)}", *split]


def _of_image(shown: ShownImage) -> list[str]:
    pool = f"images/{pool_name(shown)}"
    return [f"overlay-images/{shown.image.id}", *(f"{pool}/{big_data_file(key)}" for key in shown.big_data())]


def _of_generation(name: str, images: Iterable[str]) -> list[str]:
    return [f"generations/{name}/{each}" for each in (*GENERATED, *(f"images/{each}" for each in images))]


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
