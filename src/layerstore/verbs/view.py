"""A view: the committed images as a read-only containers/storage, for podman and its like, without a copy of content.

In order, under a lock of the view's directory, and what a crash after each step leaves:

1. the directory, and in it ``view.json``: whose it is; synced                 – an empty view
2. ``current``, whoever turned it, is synced; then what it does not list goes  – the view as it was
3. txn ``lease``: what is shown and what is to be shown is held                – the same; more is held than need be
4. directories, locks and links that are always the same                       – the same
5. new images and layers; what is missing of those that are shown, and links to
   trees that are elsewhere now, by rename; then the generation that lists them – the same; removed by step 2 of the next
6. syncfs, of the store's file system too if that is another                   – the same
7. ``current`` is turned to the new generation, by rename; synced              – the old view or the new one, whole
8. what the new generation does not list is removed                            – the new view
9. txn ``lease``: what is shown is held, and no more                           – the new view

Removing: ``current`` first (an empty view), then the rest, ``view.json`` when that is off the disk, then the lease. What
there is to show, and how, is decided by ``containers_storage``; here it is carried out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from layerstore.errors import (
    BeneathMissingError,
    DamagedError,
    InvalidArgumentError,
    LayerDamagedError,
    PrivilegeError,
    UnknownLayerError,
)
from layerstore.formats.containers_storage import plan as planning
from layerstore.formats.containers_storage.documents import ShownImage
from layerstore.formats.containers_storage.names import image_names
from layerstore.formats.containers_storage.plan import Plan, Present
from layerstore.lifecycle import catalog
from layerstore.model import Layer
from layerstore.opening.beneath import looking
from layerstore.opening.handle import Handle
from layerstore.system import flock, fs, kernel, public
from layerstore.verbs import holds, view_files, view_marker
from layerstore.verbs.export import image_documents

__all__ = ["ViewReport", "remove", "view"]

_TRIES = 5


@dataclass(frozen=True, slots=True)
class ViewReport:
    """What a view shows now, by ID, and what of it is new. ``left_out``: images that it cannot show, and why."""

    directory: str
    images: tuple[str, ...]
    layers: tuple[str, ...]
    added: tuple[str, ...] = ()          # layers
    removed: tuple[str, ...] = ()        # layers
    left_out: dict[str, str] = field(default_factory=dict)
    incomplete: tuple[str, ...] = ()     # layers whose trees lack owners, devices or attributes (``Layer.unset``)


def view(handle: Handle, directory: str) -> ViewReport:
    """The verb behind ``Store.view``."""
    handle.check_writable()
    path = _checked(handle, directory)
    with _opened(path) as at:
        lease = view_marker.owned(handle, at, path)
        now = view_files.present(at)
        if now.name is not None:         # one that was killed may have turned it, and left it in the page cache
            fs.sync_dir(at, point="view.current.sync")
        view_files.sweep(at, now)
        plan, left_out = _held(handle, at, now, lease)
        turned = view_files.moved(handle, at, plan)
        if turned or not plan.nothing:
            view_files.make(handle, at, plan, now, turned)
            fs.sync_filesystem(at, point="view.sync")
            if os.fstat(at).st_dev != os.fstat(handle.root_fd).st_dev:   # the names that the view's links lead to
                handle.sync(handle.sync_fd, point="view.store.sync")
        if plan.generation != now.name:
            public.turn_link(at, view_files.CURRENT, f"generations/{plan.generation}", point="view.switch")
            fs.sync_dir(at, point="view.switch.sync")
            view_files.sweep(at, view_files.present(at))
        holds.renew_lease(handle, lease, list(plan.layers))
    return ViewReport(
        path, tuple(plan.images), tuple(plan.layers), tuple(each.id for each in plan.new_layers),
        tuple(sorted(set(now.layers) - set(plan.layers))), left_out,
        tuple(each.id for each in plan.layers.values() if each.unset),
    )


def remove(handle: Handle, directory: str) -> None:
    """The verb behind ``Store.remove_view``."""
    handle.check_writable()
    path = os.path.realpath(directory)
    lease = view_marker.lease_of(path)
    if os.path.isdir(path):
        with _opened(path) as at:
            if fs.names_in(at):
                lease = view_marker.read(handle, at, path)
                view_files.clear(at)
                fs.sync_dir(at, point="view.remove.content.sync")
                fs.unlink(at, view_marker.NAME, point="view.remove.marker")
        with fs.open_dir(os.path.dirname(path)) as parent:
            public.remove_if_empty(parent, os.path.basename(path), point="view.remove.dir")
            fs.sync_dir(parent, point="view.remove.dir.sync")
    elif not _is_held(handle, lease):
        raise InvalidArgumentError(f"there is no view at {path}")
    holds.renew_lease(handle, lease, [])


# -- the directory -----------------------------------------------------------------------------------------------


def _checked(handle: Handle, directory: str) -> str:
    path, root = os.path.realpath(directory), os.path.realpath(handle.root)
    if os.path.commonpath([path, root]) == root:
        raise InvalidArgumentError(f"a view cannot lie inside the store: {path}", hint="choose a directory beside it")
    if not handle.ids.same:
        raise InvalidArgumentError(
            f"the store {root} has a map of ids, which is not this process's",
            hint="make the view in the user namespace in which podman will read it: podman unshare layerstore view …",
        )
    if (handle.overlay_form == "trusted") != kernel.has_trusted_xattrs():
        raise PrivilegeError(
            f"the trees of {root} mark opaque directories by {handle.overlay_form}.* attributes, which a podman run like "
            "this process does not read: it would show deleted files",
            hint="a view is for whoever's store it is: make it as that user (docs/podman.md)",
        )
    return path


@contextmanager
def _opened(path: str) -> Iterator[int]:
    """The directory, made if it is missing, with its lock held."""
    if not os.path.isdir(path):
        with fs.open_dir(os.path.dirname(path)) as parent:
            public.make_dir(parent, os.path.basename(path), point="view.dir")
    with fs.open_dir(path) as at, flock.locked_dir(at):
        yield at


def _is_held(handle: Handle, lease: str) -> bool:
    with handle.read() as snapshot:
        return snapshot.get("leases", lease) is not None


# -- what to show ------------------------------------------------------------------------------------------------


def _held(handle: Handle, at: int, now: Present, lease: str) -> tuple[Plan, dict[str, str]]:
    """The plan, with all that it and the present view show held by the lease."""
    there = view_files.found(at, now)
    for left in reversed(range(_TRIES)):
        images, layers, left_out = _shown(handle)
        plan = planning.to_make(images, layers, now, there)
        try:
            with looking(handle) as snapshot:   # of what is shown, what may still be there
                held = [i for i in now.layers if catalog.is_committed(snapshot, i)]
            holds.renew_lease(handle, lease, [*held, *plan.layers])
        except (UnknownLayerError, LayerDamagedError):   # deleted, or set aside, since it was looked at
            if not left:
                raise
        else:
            break
    return plan, left_out


def _shown(handle: Handle) -> tuple[list[ShownImage], dict[str, Layer], dict[str, str]]:
    """The committed images all of whose layers are committed, those layers, and the other images with the reason."""
    layers: dict[str, Layer] = {}
    left_out: dict[str, str] = {}
    found = []
    with looking(handle) as snapshot:
        for image in catalog.images(snapshot):
            try:
                chain = catalog.layers_of(snapshot, image)
            except (LayerDamagedError, UnknownLayerError, BeneathMissingError) as error:
                left_out[image.id] = str(error)
                continue
            if [each.parent for each in chain] != [None, *image.layers[:-1]][:len(chain)]:
                left_out[image.id] = "a layer of that ID and content stands on others here than where the image is from"
                continue
            found.append((image, chain))
    names = image_names(name for image, _ in found for name in image.names)
    shown = []
    for image, chain in found:
        try:
            manifest, config = image_documents(handle, image.id)
        except DamagedError as error:
            left_out[image.id] = str(error)
            continue
        called = sorted({names[name] for name in image.names if name in names})
        shown.append(ShownImage(image, tuple(called), manifest, config))
        layers.update((layer.id, layer) for layer in chain)
    return shown, layers, left_out
