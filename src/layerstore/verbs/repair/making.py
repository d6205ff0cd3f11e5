"""The steps of a plan carried out on one layer, whose lock is held: replacements made beside, synced, exchanged.

The order is ``mending``'s. What cannot be made after all is left as it is, and the look that follows finds it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, suppress

from layerstore.errors import DamagedError, LayerstoreError
from layerstore.formats import records
from layerstore.formats.manifest import KINDS, NODE, OVERRIDE, ManifestEntry
from layerstore.formats.manifest import NAME as MANIFEST
from layerstore.formats.tarsplit import KEPT
from layerstore.formats.tarsplit import NAME as SPLIT
from layerstore.model import Layer
from layerstore.opening.handle import Handle
from layerstore.recovery import mending
from layerstore.system import faults, fs
from layerstore.system.descriptors import Descriptor
from layerstore.system.removing import remove_tree
from layerstore.trees import whiteouts
from layerstore.trees.dirfds import DirFds
from layerstore.trees.wear import wear
from layerstore.verbs.repair.plan import Do, Known, Step, file_of
from layerstore.verbs.repair.supply import Supply

__all__ = ["CHANGES", "carry_out"]

_MAKES = frozenset({Do.RESTORE, Do.MAKE, Do.LINK, Do.REWRITE, Do.COPY})
CHANGES = _MAKES | {Do.TAKE_OUT, Do.WEAR}
_DIFF = b"diff/"


class _CannotError(Exception):
    """This one path cannot be restored now."""


def carry_out(handle: Handle, layer: Layer, tree_fd: int, steps: list[Step], known: Known, supply: Supply) -> str | None:
    """Steps 2 to 8 of ``mending``: where what was replaced is kept. Raised before the first exchange: it is as it was."""
    making = _Making(handle, layer, tree_fd, known, supply)
    mending.put_aside(handle, tree_fd, layer.id)             # what another repair left
    fs.make_dir(tree_fd, mending.NAME, point="repair.mkdir")
    with fs.open_dir(mending.NAME, tree_fd) as own:
        try:
            made = making.make_all(own, steps)
            handle.sync(tree_fd, point="repair.sync")
        except BaseException:
            with suppress(LayerstoreError, OSError):
                remove_tree(tree_fd, mending.NAME, point="repair.clear.unlink")   # only what was made just now
            raise
        making.exchange_all(own, made)
        making.take_out_all(own, [step for step in steps if step.do is Do.TAKE_OUT], len(steps))
    mending.wear_all(handle, tree_fd, layer.manifest_digest, [os.fsencode(step.path) for step in steps])
    aside = mending.put_aside(handle, tree_fd, layer.id)
    handle.sync(tree_fd, point="repair.settle")
    return aside


class _Making:
    def __init__(self, handle: Handle, layer: Layer, tree_fd: int, known: Known, supply: Supply) -> None:
        self._handle, self._layer, self._tree_fd, self._known, self._supply = handle, layer, tree_fd, known, supply
        self._names: dict[bytes, str] = {}   # path in the layer's directory -> its replacement in mending/

    def make_all(self, own: int, steps: list[Step]) -> list[tuple[str, bytes]]:
        """Every replacement, complete: its name, and the path that it is for."""
        made = []
        for number, step in enumerate(steps):
            if step.do not in _MAKES:
                continue
            name, path = str(number), os.fsencode(step.path)
            try:
                self._make(own, name, path, step)
            except _CannotError:
                with suppress(FileNotFoundError):
                    fs.unlink(own, name, point="repair.clear.unlink")   # torn, and nobody's
                continue
            self._names[path] = name
            made.append((name, path))
        return made

    def _make(self, own: int, name: str, path: bytes, step: Step) -> None:
        if step.do is Do.REWRITE:
            fs.write_new(own, name, self._side_file(step.path), point="repair.write")
        elif step.do is Do.COPY:
            pieces = self._supply.part(step.path)
            if pieces is None or self._write(own, name, pieces()) != self._meant(step.path):
                raise _CannotError
        elif not path.startswith(_DIFF) and path != b"diff":
            self._restore(own, name, self._known.kept[step.path])
        else:
            entry = (self._known.entries or {})[path.removeprefix(_DIFF) if path != b"diff" else b""]
            self._entry(own, name, entry)
            if entry.type != "hardlink":
                wear(own, name.encode(), entry, form=self._handle.overlay_form, ids=self._handle.ids, point="repair.write")

    def _entry(self, own: int, name: str, entry: ManifestEntry) -> None:
        if entry.type == "hardlink":
            self._link(own, name, file_of(self._known.entries or {}, entry).path)
        elif entry.unset & NODE:
            if entry.unset & OVERRIDE:
                fs.write_new(own, name, b"", point="repair.write")
        elif entry.type == "file":
            assert entry.sha256 is not None
            if entry.size:
                self._restore(own, name, entry.sha256)
            else:
                fs.write_new(own, name, b"", point="repair.write")
        elif entry.type == "dir":
            fs.make_dir(own, name, point="repair.write")
        elif entry.type == "symlink":
            fs.make_symlink(entry.linkname, own, name, point="repair.write")
        elif entry.type == "whiteout":
            with faults.point("repair.write"):
                whiteouts.make(name.encode(), own, self._handle.overlay_form)
        else:
            fs.make_node(own, name, KINDS[entry.type], os.makedev(entry.devmajor, entry.devminor), point="repair.write")

    def _link(self, own: int, name: str, target: bytes) -> None:
        replaced = self._names.get(_DIFF + target)
        if replaced is not None:
            fs.keep_as(own, replaced, own, name, point="repair.write")
            return
        try:
            with self._parent(_DIFF + target) as (dir_fd, base):
                if stat.S_ISDIR(os.stat(base, dir_fd=dir_fd, follow_symlinks=False).st_mode):
                    raise _CannotError   # it could not be restored
                fs.keep_as(dir_fd, base, own, name, point="repair.write")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _CannotError from error

    def _restore(self, own: int, name: str, digest: bytes) -> None:
        for pieces in self._supply.contents(digest):
            try:
                if self._write(own, name, pieces()) == digest:
                    return
            except DamagedError:
                pass                     # rotten there, too
            fs.unlink(own, name, point="repair.clear.unlink")
        raise _CannotError

    def _write(self, own: int, name: str, pieces: Iterator[bytes]) -> bytes:
        """All *pieces* as a new file; their digest."""
        digest = hashlib.sha256()

        def hashed() -> Iterator[bytes]:
            for piece in pieces:
                digest.update(piece)
                yield piece

        fs.write_pieces(own, name, hashed(), point="repair.write")
        return digest.digest()

    def _meant(self, path: str) -> bytes | None:
        """The digest of a part of the layer, by its row; of what is kept beside the tree by its tar-split."""
        known = {MANIFEST: self._layer.manifest_digest, SPLIT: self._layer.tar_split_digest}.get(path)
        return bytes.fromhex(known.removeprefix("sha256:")) if known else self._known.kept.get(path)

    def _side_file(self, name: str) -> bytes:
        if name == fs.TXID_FILE:
            return self._layer.txid.encode()
        with self._handle.read() as view:
            row = view.get("layers", self._layer.txid)
        assert row is not None
        return records.layer_file(self._layer.txid, row)

    def exchange_all(self, own: int, made: list[tuple[str, bytes]]) -> None:
        """Each into its place; those of directories before what is in them."""
        if any(path.startswith(f"{KEPT}/".encode()) for _, path in made):
            self._room_for_kept(own)
        for name, path in made:
            with suppress(FileNotFoundError, NotADirectoryError), self._parent(path) as (dir_fd, base):
                mending.put(own, name, dir_fd, base)

    def _room_for_kept(self, own: int) -> None:
        try:
            there = stat.S_ISDIR(os.stat(KEPT, dir_fd=self._tree_fd, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            there = False
        if not there:
            mending.take_out(own, KEPT, self._tree_fd, KEPT.encode())
            fs.make_dir(self._tree_fd, KEPT, point="repair.move")

    def take_out_all(self, own: int, steps: list[Step], number: int) -> None:
        for step in steps:
            with suppress(FileNotFoundError, NotADirectoryError), self._parent(os.fsencode(step.path)) as (dir_fd, base):
                mending.take_out(own, str(number), dir_fd, base)
            number += 1

    def _parent(self, path: bytes) -> _Parent:
        return _Parent(self._tree_fd, path)


class _Parent(ExitStack):
    """The directory of *path* below the layer's, opened now, and the last component: for a ``with``."""

    def __init__(self, tree_fd: int, path: bytes) -> None:
        super().__init__()
        self._tree_fd, self._path = tree_fd, path

    def __enter__(self) -> tuple[int, bytes]:  # type: ignore[override]
        super().__enter__()
        parent, _, base = self._path.rpartition(b"/")
        if not parent:
            return self._tree_fd, base
        try:
            root = self.enter_context(Descriptor(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._tree_fd))
            fds = DirFds(root)
            self.callback(fds.close)
            return fds.get(parent), base
        except BaseException:
            self.close()
            raise
