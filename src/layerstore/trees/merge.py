"""The merged view of a chain of layer trees, copied into an open directory: what each path is, and what hides what.

It is walked from the top: at each path the topmost layer that has something there decides, and every file is copied once:
its content by ``copying``, its attributes by ``redress``. The result is that of laying the layers over each other in
order, and of an overlay mount:

* a device 0:0 hides what lower layers have there; an opaque directory hides all that they have beneath it;
* a directory on a directory merges, with the upper one's owner, mode, times and attributes; all else
  replaces, also a directory a symbolic link. Below what replaced a directory, still lower directories of that
  name stay hidden;
* files that are one file in a layer stay one file, as far as they are visible; never across layers;
* holes stay holes; where the file system can share blocks (copy_file_range(2) on xfs and btrfs) it does.

Every open names a single component relative to a descriptor, with O_NOFOLLOW: no symbolic link, of whatever
layer, is ever followed. Few descriptors are open at a time, however many layers there are.

Ids are the archive's again, by the inverse of the store's map. Where a layer's maker could not set an owner or make a
device, what it is meant to be is taken from its record (``meant``).
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from layerstore.errors import IoError
from layerstore.system import faults
from layerstore.system.descriptors import DIRECTORY, NEW_FILE
from layerstore.system.idmap import IdMap
from layerstore.trees.copying import Copier
from layerstore.trees.dirfds import DirFds
from layerstore.trees.meant import Meant, Recorded, as_found
from layerstore.trees.redress import Redresser
from layerstore.trees.whiteouts import is_whiteout

__all__ = ["Merger"]

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # NONBLOCK: should it be a fifo after all
_OPEN_SOURCES = 64                       # descriptors of layers' directories
_CHUNK = 8 << 20                         # bytes copied between two calls of progress


class _Sources:
    """The layers' directories, opened component by component; a bounded cache of them.

    A descriptor stays open until the next call of ``get``.
    """

    def __init__(self, diffs: Sequence[str]) -> None:
        self._diffs = diffs
        self._open: OrderedDict[tuple[int, bytes], int] = OrderedDict()

    def get(self, layer: int, path: bytes) -> int:
        missing = []                     # from the path up to its nearest open ancestor
        at: bytes | None = path
        fd = None
        while at is not None:
            fd = self._open.get((layer, at))
            if fd is not None:
                self._open.move_to_end((layer, at))
                break
            missing.append(at)
            at = at.rpartition(b"/")[0] if at else None
        for each in reversed(missing):
            if fd is None:
                fd = os.open(self._diffs[layer], DIRECTORY)
            else:
                fd = os.open(each.rpartition(b"/")[2], DIRECTORY, dir_fd=fd)
            self._open[layer, each] = fd
            if len(self._open) > _OPEN_SOURCES:
                os.close(self._open.popitem(last=False)[1])
        assert fd is not None
        return fd

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


@dataclass(frozen=True, slots=True)
class _Directory:
    """A directory of the result, and the layers that make it up: topmost first, whose attributes it has."""

    path: bytes
    layers: tuple[int, ...]


class Merger:
    """One merging. ``at`` is the path that it is at; ``entries`` counts the paths made, but for the root."""

    def __init__(
        self, diffs: Sequence[str], dest_fd: int, progress: Callable[[int], None], overlay_form: str | None,
        recorded: Sequence[Recorded | None], ids: IdMap,
    ) -> None:
        self._recorded, self._ids = recorded, ids
        self._sources = _Sources(diffs)
        self._dest = DirFds(dest_fd)
        self._top_first = tuple(reversed(range(len(diffs))))
        self._copier, self._redress = Copier(progress, _CHUNK), Redresser(ids)
        forms = ("trusted", "user") if overlay_form is None else (overlay_form,)
        self._opaque = [f"{form}.overlay.opaque" for form in forms]
        self._links: dict[tuple[int, int, int], bytes | None] = {}  # None: what could not be made
        self.entries = 0
        self.at = b""

    @property
    def copied(self) -> int:
        """Bytes of files' content, without holes."""
        return self._copier.bytes

    @property
    def unset(self) -> int:
        """Owners, devices and attributes that could not be had here."""
        return self._redress.unset

    def run(self) -> None:
        made = []                        # every directory, before those in it
        todo = [_Directory(b"", self._top_first)]
        while todo:
            directory = todo.pop()
            if directory.path:
                self._make_dir(directory.path)
            made.append((directory.path, directory.layers[0]))
            todo.extend(self._fill(directory))
        while made:                      # deepest first, and last of all: a mode may forbid to enter
            self._finish_dir(*made.pop())

    def close(self) -> None:
        self._sources.close()
        self._dest.close()

    # -- the merged view -------------------------------------------------------------------------------------

    def _fill(self, directory: _Directory) -> list[_Directory]:
        """Copy what a directory holds but for its directories; return these."""
        dirs: dict[bytes, list[int]] = {}
        closed: set[bytes] = set()       # names at which lower layers have no say any more
        for layer in directory.layers:
            self.at = directory.path
            source = self._sources.get(layer, directory.path)
            with os.scandir(source) as listing:
                entries = sorted((os.fsencode(entry.name), entry) for entry in listing)
            for name, entry in entries:
                if name in closed:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    dirs.setdefault(name, []).append(layer)
                    continue
                closed.add(name)
                if name not in dirs:
                    self._copy(layer, source, directory.path, name, entry)
            for name, meant in self._absent(layer, directory.path):
                if name not in closed and name not in dirs:
                    self.entries += self._node(directory.path, name, meant, None)
                closed.add(name)
            if layer != directory.layers[-1] and self._is_opaque(source):
                break
        return [_Directory(_join(directory.path, name), tuple(layers)) for name, layers in dirs.items()]

    def _is_opaque(self, fd: int) -> bool:
        for name in self._opaque:
            try:
                if os.getxattr(fd, name) == b"y":
                    return True
            except OSError as error:
                if error.errno not in (errno.ENODATA, errno.ENOTSUP):
                    raise
        return False

    # -- one entry -------------------------------------------------------------------------------------------

    def _copy(self, layer: int, source: int, parent: bytes, name: bytes, entry: os.DirEntry[str]) -> None:
        found = entry.stat(follow_symlinks=False)
        if is_whiteout(found, name, source):
            return                       # a whiteout: that nothing is made is its whole effect
        path = self.at = _join(parent, name)
        faults.before("extract.entry")
        if found.st_nlink == 1:
            made = self._make(layer, source, parent, name, found)
        else:
            group = (layer, found.st_dev, found.st_ino)
            if group in self._links:
                made = self._link(self._links[group], parent, name)
            else:
                made = self._make(layer, source, parent, name, found)
                self._links[group] = path if made else None
        self.entries += made
        faults.after("extract.entry")

    def _make(self, layer: int, source: int, parent: bytes, name: bytes, found: os.stat_result) -> bool:
        where = b"/proc/self/fd/%d/%b" % (source, name)
        meant = self._meant(layer, found, where)
        if meant.kind == stat.S_IFREG:
            self._file(source, self._dest.get(parent), name, found, meant)
        elif meant.kind == stat.S_IFLNK:
            dest = self._dest.get(parent)
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=dest)
            self._redress.name(where, dest, name, meant)
        else:
            return self._node(parent, name, meant, where)
        return True

    def _node(self, parent: bytes, name: bytes, meant: Meant, where: bytes | None) -> bool:
        """Make a device or fifo; *where* the layer has it, if it does. False if this process may not."""
        dest = self._dest.get(parent)
        try:
            os.mknod(name, meant.kind | 0o600, meant.rdev, dir_fd=dest)
        except PermissionError:
            if meant.kind not in (stat.S_IFCHR, stat.S_IFBLK):
                raise
            self._redress.unset += 1
            return False
        self._redress.name(where, dest, name, meant)
        return True

    def _meant(self, layer: int, found: os.stat_result, where: int | bytes) -> Meant:
        recorded = self._recorded[layer]
        return as_found(found, self._ids) if recorded is None else recorded.of(self.at, found, where)

    def _absent(self, layer: int, directory: bytes) -> list[tuple[bytes, Meant]]:
        recorded = self._recorded[layer]
        return [] if recorded is None else recorded.absent(directory)

    def _link(self, first: bytes | None, parent: bytes, name: bytes) -> bool:
        if first is None:
            self._redress.unset += 1
            return False
        first_parent, _, first_name = first.rpartition(b"/")
        first_fd = os.dup(self._dest.get(first_parent))  # the next directory opened may close this one
        try:
            dest = self._dest.get(parent)
            os.link(first_name, name, src_dir_fd=first_fd, dst_dir_fd=dest, follow_symlinks=False)
        finally:
            os.close(first_fd)
        return True

    def _make_dir(self, path: bytes) -> None:
        self.at = path
        parent, _, name = path.rpartition(b"/")
        faults.before("extract.entry")
        os.mkdir(name, 0o700, dir_fd=self._dest.get(parent))
        faults.after("extract.entry")
        self.entries += 1

    def _finish_dir(self, path: bytes, layer: int) -> None:
        self.at = path
        source = self._sources.get(layer, path)
        self._redress.open_file(source, self._dest.get(path), self._meant(layer, os.fstat(source), source))

    # -- content ---------------------------------------------------------------------------------------------

    def _file(self, source: int, dest: int, name: bytes, found: os.stat_result, meant: Meant) -> None:
        src = os.open(name, _READ, dir_fd=source)
        try:
            if not os.path.samestat(os.fstat(src), found):
                raise IoError(f"the layer's file {os.fsdecode(self.at)!r} was replaced while it was read")
            dst = os.open(name, NEW_FILE, 0o600, dir_fd=dest)
            try:
                if found.st_size:
                    self._copier.copy(src, dst, found, self.at)
                self._redress.open_file(src, dst, meant)
            finally:
                os.close(dst)
        finally:
            os.close(src)


def _join(parent: bytes, name: bytes) -> bytes:
    return parent + b"/" + name if parent else name
