"""Whose bytes they are: layers walked and measured, and what they take told of the images that have them. Reads only.

``space`` is of the store as a whole, against its disk and its quota, and walks no layer; this is of its images and layers.
What the words mean is in ``ImageUsage`` and ``Usage``; how one tree is measured is ``measure``'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from layerstore.dedup.places import CLONED_FROM
from layerstore.errors import BusyError, LayerDamagedError, UnknownLayerError
from layerstore.lifecycle import catalog
from layerstore.lifecycle.states import State
from layerstore.model import Image, Layer
from layerstore.opening.handle import Handle
from layerstore.opening.reading import ReaderLock
from layerstore.system import fs
from layerstore.trees.measure import Measured, measure

__all__ = ["ImageUsage", "Usage", "usage"]

_TELL_SHARED = ("xfs", "btrfs")          # file systems that share blocks, and say of which files


@dataclass(frozen=True, slots=True)
class ImageUsage:
    """What one image uses, in bytes.

    ``logical``: its files' content, each file once for each layer that has it. ``allocated``: the blocks of its layers'
    trees, side files and directories too. ``unique`` is the part of ``allocated`` in layers that no other image has,
    ``shared`` the rest. ``reclaimable`` is what deleting the image frees for certain: layers that no other image, name,
    lease, mount or foreign child uses, without ``reflinked``. ``reflinked``: the part of ``allocated`` whose blocks
    another file has, too; None where the file system does not say.
    """

    id: str
    names: tuple[str, ...]
    layers: int
    logical: int
    allocated: int
    unique: int
    shared: int
    reclaimable: int
    reflinked: int | None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a store's images and layers use, in bytes; every layer once.

    ``logical``, ``allocated`` and ``reflinked`` as in ``ImageUsage``, of all layers. ``unique`` is the part of
    ``allocated`` in layers of one image, ``shared`` in those of several, ``loose`` in those of none. ``reclaimable``:
    what collecting garbage frees for certain of them, whatever their age: layers that nothing uses, without
    ``reflinked``, and the trees of deleted ones in the trash. ``unread`` counts directories that this process may not
    read, and layers that were being deleted or are not in their place: nothing of them is counted.
    """

    images: tuple[ImageUsage, ...]
    layers: int
    logical: int
    allocated: int
    unique: int
    shared: int
    loose: int
    reclaimable: int
    reflinked: int | None
    unread: int


def usage(handle: Handle) -> Usage:
    """Measure the store; the verb behind ``Store.usage``. Each layer is held, by a reader's lock, while it is walked."""
    handle.check_usable()
    with handle.read() as view:          # one snapshot: whom each layer belongs to
        layers, images = {layer.id: layer for layer in catalog.layers(view)}, list(catalog.images(view))
        users = {layer.id: _users(view, layer) for layer in layers.values()}
    tells = handle.filesystem.name in _TELL_SHARED
    found = {layer_id: _layer(handle, layer_id, tells) for layer_id in layers}
    trees = {layer_id: tree or Measured() for layer_id, tree in found.items()}
    trash = measure(handle.dirs["trash"])
    committed = {layer_id: layer for layer_id, layer in layers.items() if layer.state == State.COMMITTED}
    times = Counter(layer_id for image in images for layer_id in set(image.layers))
    unique, shared, loose = (
        sum(tree.allocated for layer_id, tree in trees.items() if min(times[layer_id], 2) == n) for n in (1, 2, 0)
    )
    return Usage(
        images=tuple(_image(image, layers, trees, times, users, tells) for image in images), layers=len(layers),
        logical=sum(tree.logical for tree in trees.values()),
        allocated=sum(tree.allocated for tree in trees.values()), unique=unique, shared=shared, loose=loose,
        reclaimable=sum(_own(trees[layer_id]) for layer_id in _free(committed, users)) + trash.allocated,
        reflinked=sum(tree.reflinked for tree in trees.values()) if tells else None,
        unread=list(found.values()).count(None) + sum(tree.unread for tree in (*trees.values(), trash)),
    )


def _layer(handle: Handle, layer_id: str, tells: bool) -> Measured | None:
    try:
        with (ReaderLock(handle, [layer_id], damaged=True, wait=0.0),
              fs.open_dir(layer_id, handle.dirs["layers"]) as fd):
            return measure(fd, content=b"diff", reflinked_from=CLONED_FROM if tells else None)
    except (UnknownLayerError, LayerDamagedError, BusyError, FileNotFoundError):
        return None                      # deleted meanwhile, or about to be; or what is left of it is not here


def _users(view: catalog.Reader, layer: Layer) -> set[tuple[str, str]]:
    """What keeps the layer: (kind, which) pairs; a child is named by its own ID."""
    prefix = f"{layer.id}/"
    found = {("name", name) for name in layer.names}
    for key, _ in view.scan("users", prefix):
        kind, _, who = key.removeprefix(prefix).partition("/")
        found.add((kind, who))
    return found


def _own(tree: Measured) -> int:
    """What removing the tree frees for certain."""
    return tree.allocated - tree.reflinked


def _free(
    layers: Mapping[str, Layer], users: Mapping[str, Collection[tuple[str, str]]], image_id: str | None = None,
) -> list[str]:
    """Those of *layers* that nothing keeps but that image, or others of them that are free: children first."""
    left = {layer_id: set(users[layer_id]) - {("image", image_id)} for layer_id in layers}
    free = [layer_id for layer_id, kept_by in left.items() if not kept_by]
    for layer_id in free:                # grows as it goes
        parent = layers[layer_id].parent
        if parent in left:
            left[parent].discard(("child", layer_id))
            if not left[parent]:
                free.append(parent)
    return free


def _image(
    image: Image, layers: Mapping[str, Layer], trees: Mapping[str, Measured], times: Counter[str],
    users: Mapping[str, Collection[tuple[str, str]]], tells: bool,
) -> ImageUsage:
    own = {layer_id: layers[layer_id] for layer_id in image.layers if layer_id in layers}
    allocated = sum(trees[layer_id].allocated for layer_id in own)
    unique = sum(trees[layer_id].allocated for layer_id in own if times[layer_id] == 1)
    return ImageUsage(
        id=image.id, names=image.names, layers=len(own), logical=sum(trees[layer_id].logical for layer_id in own),
        allocated=allocated, unique=unique, shared=allocated - unique,
        reclaimable=sum(_own(trees[layer_id]) for layer_id in _free(own, users, image.id)),
        reflinked=sum(trees[layer_id].reflinked for layer_id in own) if tells else None,
    )
