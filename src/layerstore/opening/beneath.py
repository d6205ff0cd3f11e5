"""Stores beneath: finding them, recording them, opening them read-only, and the one path on which all is looked up.

Verbs that read ask here for rows (``looking``, ``over``) and for where a layer's tree is (``home``, ``open_tree``,
``diff_path``); nothing else knows that there are several stores. Nothing here writes into one beneath. ADR 0026.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from layerstore.errors import AlreadyOpenError, BeneathError, BusyError, InvalidArgumentError, LayerstoreError
from layerstore.lifecycle import catalog
from layerstore.lifecycle.stacked import Stacked
from layerstore.model import StoreBeneath
from layerstore.opening.config import NAME, read_config, stores_beneath, text_with
from layerstore.opening.handle import Handle
from layerstore.system import filesystem, flock, fs
from layerstore.system.descriptors import Descriptor

__all__ = [
    "attach", "diff_path", "form_of", "found_at", "home", "home_of_image", "looking", "only_own", "open_tree", "over",
    "record",
]


# -- the path --------------------------------------------------------------------------------------------------------


@contextmanager
def looking(handle: Handle) -> Iterator[catalog.Reader]:
    """A consistent snapshot of the store's catalog, and of those beneath. Takes no lock that a writer holds."""
    with handle.read() as own, over(handle, own) as path:
        yield path


@contextmanager
def over(handle: Handle, own: catalog.Reader) -> Iterator[catalog.Reader]:
    """The same over the catalog *own* of a transaction that is under way."""
    if not handle.beneath and not handle.absent:
        yield own
        return
    with ExitStack() as stack:
        views = [(str(each.config["uuid"]), stack.enter_context(each.read())) for each in handle.beneath]
        yield Stacked(own, views, {each.uuid: f"{each.path}: {each.missing}" for each in handle.absent})


def store_of(handle: Handle, uuid: str | None) -> Handle:
    """Whoever has what says that it is of the store *uuid* (None: the store's own)."""
    return handle if uuid is None else next(each for each in handle.beneath if each.config["uuid"] == uuid)


def home_of_image(handle: Handle, image_id: str) -> Handle:
    """In which store a committed image's side file is."""
    if not handle.beneath:
        return handle
    with looking(handle) as view:
        return store_of(handle, catalog.image(view, image_id).store)


def home(handle: Handle, layer_id: str) -> Handle:
    """In which store the layer's tree is. The store itself, if it is in none."""
    if not handle.beneath:
        return handle
    with looking(handle) as view:
        found = catalog.beneath_of(view, [layer_id]).get(layer_id)
    return store_of(handle, None if found is None else found["store"])


def open_tree(handle: Handle, layer_id: str) -> Descriptor:
    """The directory of the layer's tree. FileNotFoundError."""
    return fs.open_dir(layer_id, home(handle, layer_id).dirs["layers"])


def diff_path(handle: Handle, layer_id: str) -> str:
    """The path of the layer's ``diff`` directory."""
    return os.path.join(home(handle, layer_id).root, "layers", layer_id, "diff")


def only_own(handle: Handle, kind: str, key: str) -> None:
    """BeneathError if the *kind* (image, layer or name) *key* is to be found beneath only."""
    if handle.beneath:
        with looking(handle) as view:
            row = view.get({"image": "images", "layer": "ids", "name": "names"}[kind], key)
        if row is not None and "store" in row:
            raise BeneathError(f"the {kind} {key} is in the store {row['store']} beneath, which is only read")


# -- opening ---------------------------------------------------------------------------------------------------------


def found_at(paths: Sequence[str | os.PathLike[str]]) -> list[StoreBeneath]:
    """The stores at *paths*. InvalidArgumentError if there is none, or one twice; HostError if one cannot be read."""
    found = [StoreBeneath(_config_at(path)["uuid"], path) for path in map(os.path.abspath, paths)]
    if len({each.uuid for each in found}) != len(found):
        raise InvalidArgumentError("of the stores beneath two are the same, or copies of one", hint="name each once")
    return found


def form_of(found: Sequence[StoreBeneath]) -> str | None:
    """The overlay form that a new store has to have above them; None: any."""
    return str(_config_at(found[0].path)["overlay_form"]) if found else None


def _config_at(path: str) -> dict[str, Any]:
    try:
        with fs.open_dir(os.path.realpath(path)) as root_fd:
            return read_config(root_fd, path, readonly=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InvalidArgumentError(f"there is no store at {path}", hint="a store beneath must be there") from error
    except OSError as error:
        raise fs.host_error(error, f"opening the store at {path} beneath") from error


def record(root: str, found: Sequence[StoreBeneath]) -> None:
    """Write down in the store at *root* which stores are beneath it from now on. BusyError while it is in use.

    InvalidArgumentError if one of them cannot be: then nothing is written, for the feature stays.

    Durability: on disk when this returns; a crash before leaves the old list or the new one.
    """
    with fs.open_dir(root) as root_fd:
        if stores_beneath(read_config(root_fd, root, readonly=False)) == list(found):
            return
        flock.lock_root(root_fd, exclusive=True, wait=10.0)
        config = read_config(root_fd, root, readonly=False)
        for each in found:
            _check_fits(config, root, _config_at(each.path), each)
        fs.replace_file(root_fd, NAME, text_with(config, found), point="beneath.config", sync=True)
        fs.sync_dir(root_fd, point="beneath.root.sync")


def attach(handle: Handle, given: Sequence[StoreBeneath] | None) -> None:
    """Open the stores beneath *handle*: those *given*, else those recorded. What is recorded and is not there is absent.

    Not there is what cannot be opened now nor a moment later: BusyError, and what this process lacks, are raised.
    """
    for each in stores_beneath(handle.config) if given is None else given:
        try:
            handle.beneath.append(_opened(handle, each))
        except (LayerstoreError, OSError) as error:
            if given is not None or isinstance(error, AlreadyOpenError | BusyError) or _is_ours(error):
                raise
            why = "there is nothing" if isinstance(error, FileNotFoundError) else str(error)
            handle.absent.append(StoreBeneath(each.uuid, each.path, why))


def _is_ours(error: BaseException) -> bool:
    """Whether this process or machine lacks something, which says nothing of the store."""
    causes = (error, error.__cause__)
    return any(isinstance(each, OSError) and each.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM) for each in causes)


class _Beneath(Handle):
    """A store that is open read-only beneath one store of this process, or several: ``above``.

    Weakly, so that an opening that was interrupted keeps none open; what it left is taken up by the next one.
    """

    def __init__(self, path: str, allow: tuple[str, ...], *, locks: bool) -> None:
        self.above: weakref.WeakSet[Handle] = weakref.WeakSet()
        super().__init__(path, readonly=True, allow_filesystem=allow, observer=None, clock=lambda: 0, locks=locks)

    def let_go_by(self, above: Handle) -> None:
        with _guard:
            self.above.discard(above)
            if not self.above:
                self.close()


_guard = threading.RLock()
_shared: dict[str, _Beneath] = {}
_opening: dict[str, threading.RLock] = {}   # by path: who opens a store may have to wait for whoever rebuilds it


def _after_fork_in_child() -> None:
    global _guard  # noqa: PLW0603 - another thread of the parent may have held it
    _guard = threading.RLock()
    _opening.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _opened(above: Handle, wanted: StoreBeneath) -> Handle:
    """The store *wanted*, if it fits beneath *above*."""
    path = os.path.realpath(wanted.path)   # now: a link may have been turned since it was recorded
    with _guard:
        alone = _opening.setdefault(path, threading.RLock())
    with alone:
        known = _open_already(path, above)
        if known is None:
            known = _shared[path] = _open(path)
            known.above.add(above)
    try:
        _check_fits(above.config, above.root, known.config, wanted)
    except BaseException:
        known.let_go_by(above)
        raise
    return known


def _open_already(path: str, above: Handle) -> _Beneath | None:
    """The store at *path*, if it is open in this process: beneath *above*, too, from now on."""
    with _guard:                       # or who lets go of it would close it meanwhile
        known = _shared.get(path)
        if known is None or known.closed or known.pid != os.getpid() or not _is_still_there(known):
            return None
        known.above.add(above)
        return known


def _open(path: str) -> _Beneath:
    with fs.open_dir(path) as root_fd:
        name = filesystem.identify(root_fd)
    return _Beneath(path, (name,), locks=name not in filesystem.REFUSED.values())


def _is_still_there(known: Handle) -> bool:
    """Whether its path still leads to it: something else may be mounted there by now."""
    try:
        now = os.stat(known.root)
    except OSError:
        return False
    return (now.st_dev, now.st_ino) == known.key


def _check_fits(above: Mapping[str, Any], root: str, below: Mapping[str, Any], wanted: StoreBeneath) -> None:
    """InvalidArgumentError unless *below*, the config of what is where *wanted* is, fits beneath the store at *root*."""
    uuid = below["uuid"]
    if uuid != wanted.uuid:
        raise InvalidArgumentError(f"the store at {wanted.path} is {uuid}, and not {wanted.uuid}")
    if uuid == above["uuid"]:
        raise InvalidArgumentError(
            f"{wanted.path} is the store {root} itself, or a copy of it", hint="only another store can be beneath it",
        )
    for key, what in (("overlay_form", "overlay form"), ("id_map", "map of ids")):
        if below.get(key) != above.get(key):
            raise InvalidArgumentError(
                f"the store at {wanted.path} has the {what} {below.get(key)}, and {root} has {above.get(key)}: "
                "no mount could show both",
                hint="make the upper store with the same (layerstore create --overlay-form, --uid-map)",
            )
