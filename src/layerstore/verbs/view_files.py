"""The files of a view: making them and taking them away, by fault points of their own.

What there is to make is decided by ``containers_storage``, and when by ``view``. What is missing of what is shown is put
there file by file, each whole or not at all: podman may be reading the rest.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator, Mapping

from layerstore.formats.containers_storage import plan as planning
from layerstore.formats.containers_storage.documents import ShownImage, layer_record
from layerstore.formats.containers_storage.names import big_data_file, link_name
from layerstore.formats.containers_storage.plan import GENERATED, Plan, Present
from layerstore.model import Layer
from layerstore.opening.beneath import diff_path
from layerstore.opening.handle import Handle
from layerstore.system import fs, public
from layerstore.system.removing import remove_tree
from layerstore.verbs.export import go_tar_split

__all__ = ["CURRENT", "clear", "found", "make", "moved", "present", "sweep"]

CURRENT = "current"
_GZIP = 31                               # zlib.h, deflateInit2: a gzip wrapper, without a time


def present(at: int) -> Present:
    """What the current generation lists. OSError if that cannot be told: then nothing may be taken for unlisted."""
    try:
        name = os.path.basename(os.readlink(CURRENT, dir_fd=at))
    except FileNotFoundError:
        return Present()
    return planning.present(name, {each: fs.read_file(at, f"generations/{name}/{each}") for each in GENERATED})


def found(at: int, now: Present) -> frozenset[str]:
    """The paths of all that lies in the view: what its current generation lacks is not among them."""
    return frozenset(
        os.path.normpath(f"{place}/{name}") for place in planning.places(now) for name in fs.names_in_or_none(at, place)
    )


def sweep(at: int, now: Present) -> None:
    """Remove what nobody lists: of a refresh that was interrupted, or of an earlier generation."""
    for directory, names in planning.keep(now).items():
        if fs.exists(at, directory):
            with fs.open_dir(directory, at) as own:
                for name in fs.names_in(own):
                    if name not in names:
                        remove_tree(own, name, point="view.sweep")


def moved(handle: Handle, at: int, plan: Plan) -> dict[str, str]:
    """Of the layers whose link is there, those that it leads elsewhere than to their tree, and where that is."""
    trees = {each: _tree_of(handle, each) for each in sorted(plan.layers)}
    return {each: tree for each, tree in trees.items() if _leads_to(at, each) not in (None, tree)}


def _tree_of(handle: Handle, layer_id: str) -> str:
    """Where the link of a layer has to lead: absolute, drivers/overlay refuses others."""
    return os.path.realpath(diff_path(handle, layer_id))


def _leads_to(at: int, layer_id: str) -> str | None:
    try:
        return os.readlink(f"overlay/{layer_id}/diff", dir_fd=at)
    except FileNotFoundError:
        return None


def make(handle: Handle, at: int, plan: Plan, now: Present, turned: Mapping[str, str]) -> None:
    """What *plan* needs and the view has not, and last the generation. What is new is not seen before the switch.

    But what was lost of what is shown comes back one by one, and so are links of layers *turned*: a store beneath is
    elsewhere now, and what it has the same.
    """
    _skeleton(at)
    pools = planning.keep(now)["images"]
    for image in plan.new_images:
        _make_image(at, image, shown=planning.pool_name(image) in pools)
    for layer in plan.new_layers:
        if layer.id in now.layers and now.layers[layer.id] != layer_record(layer):
            _clear_layer(at, layer.id)   # its ID is another layer's by now
        _make_layer(handle, at, layer, plan, shown=layer.id in now.layers)
    for layer_id, tree in turned.items():
        with fs.open_dir(f"overlay/{layer_id}", at) as own:
            public.turn_link(own, "diff", tree, point="view.turn")
    if plan.generation != now.name:
        _make_generation(at, plan)


def _skeleton(at: int) -> None:
    for name in planning.DIRECTORIES:
        if not fs.exists(at, name):
            public.make_dir(at, name, point="view.mkdir")
    for name in planning.LOCKS:          # podman opens them, and could not make them where the view is read-only
        if not fs.exists(at, name):
            public.write_pieces(at, name, [], point="view.file")
    for name, target in planning.LINKS.items():
        _link(at, name, target, shown=True)


def _make_image(at: int, image: ShownImage, *, shown: bool) -> None:
    pool = f"images/{planning.pool_name(image)}"
    public.make_dir(at, pool, point="view.mkdir")
    for key, data in image.big_data().items():
        _file(at, pool, big_data_file(key), [data], shown=shown)
    _link(at, f"overlay-images/{image.image.id}", f"../current/images/{image.image.id}", shown=True)


def _clear_layer(at: int, layer_id: str) -> None:
    for name in (f"overlay/l/{link_name(layer_id)}", f"overlay-layers/{layer_id}.tar-split.gz", f"overlay/{layer_id}"):
        remove_tree(at, name, point="view.sweep")


def _make_layer(handle: Handle, at: int, layer: Layer, plan: Plan, *, shown: bool) -> None:
    own, tree = f"overlay/{layer.id}", _tree_of(handle, layer.id)
    public.make_dir(at, own, point="view.mkdir")
    _link(at, f"{own}/diff", tree, shown=shown)
    _file(at, own, "link", [link_name(layer.id).encode()], shown=shown)
    below = planning.lower_of(layer, plan.layers)
    if below:
        links = ":".join(f"l/{link_name(each)}" for each in below).encode()
        _file(at, own, "lower", [links], shown=shown)
        _file(at, own, "lower-layers", [":".join(below).encode()], shown=shown)
    _link(at, f"overlay/l/{link_name(layer.id)}", f"../{layer.id}/diff", shown=shown)
    if layer.tar_split_digest is not None:
        split = _tar_split(handle, layer)   # not begun, if it is there
        _file(at, "overlay-layers", f"{layer.id}.tar-split.gz", split, shown=shown, point="view.tar-split")


def _tar_split(handle: Handle, layer: Layer) -> Iterator[bytes]:
    with go_tar_split(handle, layer.id) as lines:
        yield from _gzipped(lines)


def _make_generation(at: int, plan: Plan) -> None:
    own = f"generations/{plan.generation}"
    public.make_dir(at, own, point="view.mkdir")
    for name, text in plan.documents.items():
        public.write_pieces(at, f"{own}/{name}", [text], point="view.file")
    public.make_dir(at, f"{own}/images", point="view.mkdir")
    for image_id, shown in plan.images.items():
        _link(at, f"{own}/images/{image_id}", f"../../../images/{planning.pool_name(shown)}")


def _link(at: int, name: str, target: str, *, shown: bool = False) -> None:
    if not shown or not fs.exists(at, name):
        fs.make_symlink(os.fsencode(target), at, name, point="view.link")


def _file(at: int, directory: str, name: str, pieces: Iterable[bytes], *, shown: bool, point: str = "view.file") -> None:
    """A file of something that is *shown*, if it lacks it; else one that nobody takes for whole before the switch."""
    path = f"{directory}/{name}"
    if not shown:
        public.write_pieces(at, path, pieces, point=point)
    elif not fs.exists(at, path):
        with fs.open_dir(directory, at) as own:
            public.put_file(own, name, pieces, point="view.restore")


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
        remove_tree(at, name, point="view.remove")
