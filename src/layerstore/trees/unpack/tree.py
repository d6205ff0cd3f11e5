"""Where entries go: the directories of a tree being made, how a path leads to one, and what must make room.

Knows nothing of kinds of entries but directories; what it looks up on the disk it settles first.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

from layerstore.errors import ArchiveError, LimitExceededError
from layerstore.formats.manifest import ManifestEntry
from layerstore.formats.tar import Entry, os_text
from layerstore.formats.tar.names import NAME_MAX, show
from layerstore.model import DiffTarget
from layerstore.system.removing import remove_tree
from layerstore.trees.dirfds import DirFds
from layerstore.trees.dress import entry_text
from layerstore.trees.unpack.nodes import Dir, Shelf
from layerstore.trees.unpack.records import Records
from layerstore.trees.whiteouts import is_whiteout

__all__ = ["Tree", "deepest_first", "join"]

_MOST_KNOWN = 4_096                      # directories that are found by their paths at once
_MAX_LINKS = 40                          # symbolic links in one path, as in the kernel (path_resolution(7))


class Tree:
    """The tree, by its directories. Files and links are on the disk only; ``absent``: devices that nothing stands for."""

    def __init__(self, target: DiffTarget, records: Records) -> None:
        self.limits = target.limits
        self.records = records
        self.fds = DirFds(target.diff_fd)
        self.root = Dir()
        self.shelf = Shelf(target.dir_fd, target.keep_free)
        self.absent: dict[bytes, ManifestEntry] = {}
        # the last parent: its name in the archive, its real path, its node
        self._resolved: tuple[bytes, bytes, Dir] = (b"", b"", self.root)
        # directories by their real paths, no link on the way: they stay what they are until one is removed
        self._known: dict[bytes, Dir] = {b"": self.root}
        self._made = self._directories = 0

    def settle(self, path: bytes | None = None) -> None:
        """Wait until the file at *path*, or every file, is made and its record written."""
        raise NotImplementedError

    def count(self) -> None:
        self._made += 1
        if self._made > self.limits.max_entries:
            raise LimitExceededError(
                "the archive has too many entries, with the directories that they imply", limit="max_entries",
                maximum=self.limits.max_entries,
            )

    def new_dir(self, *, opaque: bool = False) -> Dir:
        """The node of a directory that is about to be made."""
        self._directories += 1
        if self._directories > self.limits.max_directories:
            raise LimitExceededError(
                "the archive has too many directories, with those that it implies", limit="max_directories",
                maximum=self.limits.max_directories,
            )
        self.shelf.held += 1
        return Dir(opaque=opaque)

    def put_away(self) -> None:
        """Have only those directories in memory that lead to the last parent, and those in them. Between two entries."""
        way = [self.root]
        for name in filter(None, self._resolved[1].split(b"/")):
            way.append(way[-1].children[name])
        self._forget_ways()
        self.shelf.put_away(way)

    # -- the way to a directory ---------------------------------------------------------------------------

    def parent(self, path: bytes, entry: Entry) -> tuple[bytes, Dir]:
        """The real path and node of the directory *path*, which is made if it is missing."""
        if path == self._resolved[0]:
            _, real, node = self._resolved
            if len(real) > len(path):
                self._check_length(len(real) + len(entry.name) - len(path), entry)
            return real, node
        known = self._known.get(path)
        if known is None:
            known = self._below_known(path)
        real, node = (path, known) if known is not None else self.walk(path, entry, make=True)
        self._resolved = (path, real, node)
        if real == path:                 # so no link was on the way
            self._known[path] = node
        else:
            self._check_length(len(real) + len(entry.name) - len(path), entry)
        return real, node

    def _check_length(self, length: int, entry: Entry) -> None:
        """Where *entry* really lies is a path, too; how long its name may be, the reader saw to."""
        if length > self.limits.max_path_length:
            raise LimitExceededError(
                f"by way of symbolic links the path of {entry_text(entry)} is too long", limit="max_path_length",
                maximum=self.limits.max_path_length,
            )

    def _below_known(self, path: bytes) -> Dir | None:
        """The directory *path*, if it is there and its parent is known."""
        if len(self._known) >= _MOST_KNOWN:
            self._forget_ways()
        parent, _, name = path.rpartition(b"/")
        above = self._known.get(parent)
        return above.children.get(name) if above is not None else None

    def _forget_ways(self) -> None:
        """No way is known any more but that to the root: a directory, or a link that one led through, is going away."""
        self._resolved = (b"", b"", self.root)
        self._known = {b"": self.root}

    def walk(self, path: bytes, entry: Entry, *, make: bool) -> tuple[bytes, Dir]:
        """The same by following every component; without *make* nothing is made, and what lacks is refused."""
        trail: list[tuple[bytes, Dir]] = [(b"", self.root)]
        todo = [(part, make) for part in reversed(path.split(b"/"))] if path else []
        links = 0
        while todo:
            name, may_make = todo.pop()
            if name == b"..":            # only from a link's target; above the root is the root
                if len(trail) > 1:
                    trail.pop()
                continue
            if name in (b"", b"."):
                continue
            real, node = trail[-1]
            child_path = join(real, name)
            self._check_length(len(child_path), entry)
            child = node.children.get(name)
            if child is None:
                made = self._enter(real, node, name, child_path, entry, make=may_make)
                if isinstance(made, bytes):
                    links += 1
                    if links > _MAX_LINKS:
                        raise ArchiveError(f"too many symbolic links: {entry_text(entry)}", offset=entry.offset)
                    if made.startswith(b"/"):
                        del trail[1:]
                    todo.extend((part, False) for part in reversed(made.split(b"/")))
                    continue
                child = made
            if len(trail) > self.limits.max_depth:
                raise LimitExceededError(
                    f"by way of symbolic links {entry_text(entry)} lies too deep", limit="max_depth",
                    maximum=self.limits.max_depth,
                )
            trail.append((child_path, child))
        return trail[-1]

    def _enter(self, real: bytes, node: Dir, name: bytes, path: bytes, entry: Entry, *, make: bool) -> Dir | bytes:
        """Make the missing directory *name* in *real*; or return the target of the link that is there."""
        if len(name) > NAME_MAX:         # only a link's target: the reader saw to the names of entries
            raise ArchiveError(
                f"{entry_text(entry)} leads by a symbolic link to {show(path)}, a component of which is longer than "
                f"{NAME_MAX} bytes", offset=entry.offset,
            )
        self.settle(path)
        dir_fd = self.fds.get(real)
        try:
            found: os.stat_result | None = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            found = None
        if found is not None and stat.S_ISLNK(found.st_mode):
            return os.readlink(name, dir_fd=dir_fd)
        hidden = found is not None and is_whiteout(found, name, dir_fd)
        if (found is not None and not hidden) or path in self.absent:
            raise ArchiveError(
                f"{entry_text(entry)} lies beneath {os_text(path)!r}, which is not a directory",
                offset=entry.offset,
            )
        if not make:
            raise ArchiveError(
                f"{entry_text(entry)} leads to {os_text(path)!r}, which is not in this layer", offset=entry.offset
            )
        if hidden:
            os.unlink(name, dir_fd=dir_fd)
            node.mark(name, marked=False)
            self.records.replaced()
        self.count()                     # one name may imply hundreds of directories
        child = self.new_dir(opaque=hidden)
        os.mkdir(name, 0o700, dir_fd=dir_fd)
        return node.add(name, child)

    # -- making room --------------------------------------------------------------------------------------

    def create(self, real: bytes, base: bytes, make: Callable[[int], Any]) -> Any:
        """Call ``make(dir_fd)``; if the name is taken, by no directory, make room and call it again."""
        self.settle(join(real, base))
        if self.absent and join(real, base) in self.absent:
            self.make_room(real, base)
        try:
            return make(self.fds.get(real))
        except FileExistsError:
            self.make_room(real, base)
            return make(self.fds.get(real))

    def is_hidden(self, real: bytes, base: bytes) -> bool:
        """Whether a whiteout is there."""
        if join(real, base) in self.absent:
            return False
        dir_fd = self.fds.get(real)
        return is_whiteout(os.stat(base, dir_fd=dir_fd, follow_symlinks=False), base, dir_fd)

    def make_room(self, real: bytes, base: bytes) -> None:
        """Remove the file that an earlier entry put there."""
        self.settle()                    # what is kept of it is written down at this place of the archive
        self.records.write_raw()
        self.take_away(real, base)

    def take_away(self, real: bytes, base: bytes) -> None:
        """The same, of a file whose own record is the next to be written."""
        self._forget_ways()
        self.records.replaced()
        path = join(real, base)
        if self.absent.pop(path, None) is not None:
            return
        self._remove(self.fds.get(real), base, path)

    def _remove(self, dir_fd: int, name: bytes, path: bytes) -> None:
        """Unlink what is no directory; a file with content is kept: the tar cannot be made again without it."""
        found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        if stat.S_ISREG(found.st_mode) and found.st_size:
            self.records.keep(dir_fd, name, path)
        else:
            os.unlink(name, dir_fd=dir_fd)

    def clear_dir(self, entry: Entry, real: bytes, node: Dir, base: bytes) -> None:
        """Remove a directory: something that is none takes its place."""
        path = join(real, base)
        if entry.type == "hardlink" and (entry.linkname + b"/").startswith(path + b"/"):
            raise ArchiveError(f"{entry_text(entry)} is a hard link to what it would replace", offset=entry.offset)
        self.settle()
        self.records.write_raw()
        self._forget_ways()
        self._keep_beneath(path, node.children[base])
        self.fds.forget(path)
        remove_tree(self.fds.get(real), os.fsdecode(base), point="unpack.replace")
        del node.children[base]
        for absent in [p for p in self.absent if p.startswith(path + b"/")]:
            del self.absent[absent]
        self.records.gone(path)

    def _keep_beneath(self, path: bytes, node: Dir) -> None:
        for directory, _node in deepest_first(node):
            where = join(path, directory) if directory else path
            dir_fd = self.fds.get(where)
            for name in sorted(map(os.fsencode, os.listdir(dir_fd))):
                if stat.S_ISREG(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
                    self._remove(dir_fd, name, join(where, name))


def deepest_first(root: Dir) -> Iterator[tuple[bytes, Dir]]:
    """Every directory after all that it holds, which is forgotten then. Iterative: depth is the archive's choice."""
    stack: list[tuple[bytes, Dir, Iterator[tuple[bytes, Dir]]]] = [(b"", root, iter(root.children.items()))]
    while stack:
        path, node, children = stack[-1]
        child = next(children, None)
        if child is None:
            stack.pop()
            node.forget_children()
            yield path, node
        else:
            stack.append((join(path, child[0]), child[1], iter(child[1].children.items())))


def join(parent: bytes, name: bytes) -> bytes:
    return parent + b"/" + name if parent else name
