"""The files of a view: making them and taking them away, by fault points of their own.

What there is to make is decided by ``containers_storage``, and when by ``view``.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator, Mapping

from layerstore.formats.containers_storage import plan as planning
from layerstore.formats.containers_storage.documents import ShownImage
from layerstore.formats.containers_storage.names import big_data_file, link_name
from layerstore.formats.containers_storage.plan import GENERATED, Plan, Present
from layerstore.model import Layer
from layerstore.opening.beneath import diff_path
from layerstore.opening.handle import Handle
from layerstore.system import fs
from layerstore.verbs.export import go_tar_split

__all__ = ["CURRENT", "clear", "make", "moved", "present", "sweep"]

CURRENT = "current"
_DIRECTORIES = ("generations", "images", "overlay", "overlay/l", "overlay-layers", "overlay-images")
_LINKS = {"overlay-layers/layers.json": "../current/layers.json", "overlay-images/images.json": "../current/images.json"}
_LOCKS = ("overlay-layers/layers.lock", "overlay-images/images.lock")
_GZIP = 31                               # zlib.h, deflateInit2: a gzip wrapper, without a time


def present(at: int) -> Present:
    """What the current generation lists."""
    try:
        name = os.path.basename(os.readlink(CURRENT, dir_fd=at))
    except OSError:
        return Present()
    return planning.present(name, {each: fs.read_file(at, f"generations/{name}/{each}") for each in GENERATED})


def sweep(at: int, now: Present) -> None:
    """Remove what nobody lists: of a refresh that was interrupted, or of an earlier generation."""
    for directory, names in planning.keep(now).items():
        if fs.exists(at, directory):
            with fs.open_dir(directory, at) as own:
                for name in fs.names_in(own):
                    if name not in names:
                        fs.remove_tree(own, name, point="view.sweep")


def moved(handle: Handle, at: int, plan: Plan) -> dict[str, str]:
    """Of the layers that are not to be made, those whose link leads elsewhere than to their tree, and where that is."""
    kept = set(plan.layers) - {each.id for each in plan.new_layers}
    trees = {each: _tree_of(handle, each) for each in sorted(kept)}
    return {each: tree for each, tree in trees.items() if _leads_to(at, each) != tree}


def _tree_of(handle: Handle, layer_id: str) -> str:
    """Where the link of a layer has to lead: absolute, drivers/overlay refuses others."""
    return os.path.realpath(diff_path(handle, layer_id))


def _leads_to(at: int, layer_id: str) -> str | None:
    try:
        return os.readlink(f"overlay/{layer_id}/diff", dir_fd=at)
    except OSError:
        return None


def make(handle: Handle, at: int, plan: Plan, now: Present, turned: Mapping[str, str]) -> None:
    """What *plan* needs and *now* has not, and last the generation. Nothing of it is seen before the switch.

    But for links of layers that are shown, *turned* one by one: a store beneath is elsewhere now, and what it has the same.
    """
    if now.name is None:
        _skeleton(at)
    for image in plan.new_images:
        _make_image(at, image, linked=image.image.id in now.images)
    for layer in plan.new_layers:
        if layer.id in now.layers:       # somebody took it out of the view, or its ID is another layer's by now
            _clear_layer(at, layer.id)
        _make_layer(handle, at, layer, plan)
    for layer_id, tree in turned.items():
        with fs.open_dir(f"overlay/{layer_id}", at) as own:
            fs.turn_link(own, "diff", tree, point="view.turn")
    if plan.generation != now.name:
        _make_generation(at, plan)


def _skeleton(at: int) -> None:
    for name in _DIRECTORIES:
        fs.make_public_dir(at, name, point="view.mkdir")
    for name in _LOCKS:                  # podman opens them, and could not make them where the view is read-only
        if not fs.exists(at, name):
            fs.write_pieces(at, name, [], point="view.file", public=True)
    for name, target in _LINKS.items():
        if not fs.exists(at, name):
            _link(at, name, target)


def _make_image(at: int, shown: ShownImage, *, linked: bool) -> None:
    pool = f"images/{planning.pool_name(shown)}"
    fs.make_public_dir(at, pool, point="view.mkdir")
    for key, data in shown.big_data().items():
        fs.write_pieces(at, f"{pool}/{big_data_file(key)}", [data], point="view.file", public=True)
    if not linked:
        _link(at, f"overlay-images/{shown.image.id}", f"../current/images/{shown.image.id}")


def _clear_layer(at: int, layer_id: str) -> None:
    for name in (f"overlay/l/{link_name(layer_id)}", f"overlay-layers/{layer_id}.tar-split.gz", f"overlay/{layer_id}"):
        fs.remove_tree(at, name, point="view.sweep")


def _make_layer(handle: Handle, at: int, layer: Layer, plan: Plan) -> None:
    own = f"overlay/{layer.id}"
    fs.make_public_dir(at, own, point="view.mkdir")
    _link(at, f"{own}/diff", _tree_of(handle, layer.id))
    fs.write_pieces(at, f"{own}/link", [link_name(layer.id).encode()], point="view.file", public=True)
    below = planning.lower_of(layer, plan.layers)
    if below:
        links = ":".join(f"l/{link_name(each)}" for each in below).encode()
        fs.write_pieces(at, f"{own}/lower", [links], point="view.file", public=True)
        fs.write_pieces(at, f"{own}/lower-layers", [":".join(below).encode()], point="view.file", public=True)
    _link(at, f"overlay/l/{link_name(layer.id)}", f"../{layer.id}/diff")
    if layer.tar_split_digest is not None:
        with go_tar_split(handle, layer.id) as lines:
            name = f"overlay-layers/{layer.id}.tar-split.gz"
            fs.write_pieces(at, name, _gzipped(lines), point="view.tar-split", public=True)


def _make_generation(at: int, plan: Plan) -> None:
    own = f"generations/{plan.generation}"
    fs.make_public_dir(at, own, point="view.mkdir")
    for name, text in plan.documents.items():
        fs.write_pieces(at, f"{own}/{name}", [text], point="view.file", public=True)
    fs.make_public_dir(at, f"{own}/images", point="view.mkdir")
    for image_id, shown in plan.images.items():
        _link(at, f"{own}/images/{image_id}", f"../../../images/{planning.pool_name(shown)}")


def _link(at: int, name: str, target: str) -> None:
    fs.make_symlink(os.fsencode(target), at, name, point="view.link")


def _gzipped(pieces: Iterable[bytes]) -> Iterator[bytes]:
    stream = zlib.compressobj(6, zlib.DEFLATED, _GZIP)
    for piece in pieces:
        yield stream.compress(piece)
    yield stream.flush()


def clear(at: int) -> None:
    """Take away all that a view shows, so that it is an empty one from the first step on."""
    fs.unlink(at, CURRENT, point="view.remove.switch")
    fs.sync_dir(at, point="view.remove.sync")
    for name in ("overlay-images", "overlay-layers", "overlay", "images", "generations", f".{CURRENT}.new"):
        fs.remove_tree(at, name, point="view.remove")
