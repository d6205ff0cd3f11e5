"""The directories of a tree being made, which are remembered until the archive ends; where they are many, in a file.

An archive comes directory by directory, mostly. So of what it has left behind only the way there is kept in memory: what
a directory has *in* it is put away, the deepest first, into a file without a name beside the tree, and comes back when
somebody asks for ``Dir.children``. Nobody else reads that file, and it is gone with who has it open.

No reason to fail: if it cannot be written, or would become large, all stays in memory as it would without it. Nothing
here knows what a directory is on the disk.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from layerstore.errors import IoError
from layerstore.formats.packed import pack, unpack
from layerstore.system.descriptors import Descriptor
from layerstore.system.room import free_bytes

__all__ = ["MOST_HELD", "Dir", "Meant", "Shelf"]

MOST_HELD = 1 << 16                      # directories in memory, of which each takes some 230 bytes
_MOST_MEANT = 4_096                      # of what is said of directories, to be said once
_NEVER = 1 << 62
_MOST_BYTES = 1 << 30                    # of the file: an archive that goes to and fro writes it again and again
_PIECE = 1 << 20                         # written at once
_CRC_BYTES = 4
_LEAST, _GREATEST = -(1 << 63), (1 << 64) - 1   # of MessagePack's integers; a time may be beyond them

Meant = tuple[int, int, int, Mapping[bytes, bytes]]
# a directory's name, mode, owner and attributes, time, opaque, marked, and where its children are
_Said = tuple[int, int, int, Mapping[bytes, bytes] | None]
_Row = tuple[bytes, _Said | None, int | bytes, bool, list[bytes] | None, int, int]


class Dir:
    """A directory of the tree being made; a small object, because many of them are kept.

    ``meant`` is what an archive's entry says of it: mode, uid, gid, attributes; an object that those have together of
    which the same is said. None as long as only its children needed it. ``mtime_ns`` is its time. ``marked`` are
    whiteouts in it that are marked files. ``inside`` is for the shelf.
    """

    __slots__ = ("inside", "marked", "meant", "mtime_ns", "opaque")

    def __init__(self, *, opaque: bool = False) -> None:
        self.inside: dict[bytes, Dir] | _Away = _NO_CHILDREN
        self.meant: Meant | None = None
        self.mtime_ns = 0
        self.opaque = opaque
        self.marked: set[bytes] | frozenset[bytes] = _NONE

    @property
    def children(self) -> dict[bytes, Dir]:
        """The directories in it, by their names. Not to be added to but by ``add``."""
        found = self.inside
        if isinstance(found, _Away):
            found = self.inside = found.shelf.take(found)
        return found

    def add(self, name: bytes, child: Dir) -> Dir:
        if self.children is _NO_CHILDREN:
            self.inside = {}
        self.children[name] = child
        return child

    def mark(self, name: bytes, *, marked: bool = True) -> None:
        """Remember whether the whiteout *name* is a marked file."""
        if isinstance(self.marked, frozenset):
            self.marked = set()
        (self.marked.add if marked else self.marked.discard)(name)

    def forget_children(self) -> None:
        """For who asks for them no more."""
        self.inside = _NO_CHILDREN

    def in_memory(self) -> dict[bytes, Dir]:
        """The directories in it; none, if they are put away."""
        return _NO_CHILDREN if isinstance(self.inside, _Away) else self.inside


_NO_CHILDREN: dict[bytes, Dir] = {}      # of most directories; never added to
_NONE: frozenset[bytes] = frozenset()    # one for all: each frozenset() is another object, of 216 bytes


class _Away(NamedTuple):
    """A directory's children that are put away: where."""

    shelf: Shelf
    at: int
    length: int


class Shelf:
    """Where children are put away, on the file system of *dir_fd*, of which *keep_free* bytes are to stay free.

    ``held`` counts the directories in memory; if they are more than ``most``, it is time to ``put_away``. ``close`` it.
    """

    def __init__(self, dir_fd: int, keep_free: int = 0) -> None:
        self.held, self.most = 0, MOST_HELD
        self._dir_fd, self._keep_free = dir_fd, keep_free
        self._file: Descriptor | None = None
        self._written, self._given_up = 0, False
        self._waiting = bytearray()      # to be written behind that
        self._said: dict[tuple[int, int, int], Meant] = {}

    def meant(self, mode: int, uid: int, gid: int, xattrs: Mapping[bytes, bytes]) -> Meant:
        """An object that says so, one for all of which it is said."""
        if xattrs:
            return mode, uid, gid, xattrs
        if len(self._said) >= _MOST_MEANT:
            self._said = {}
        return self._said.setdefault((mode, uid, gid), (mode, uid, gid, xattrs))

    def put_away(self, way: Sequence[Dir]) -> None:
        """All that is in directories but those on *way*, from the root down to where the archive is.

        Of those that are put away nobody may keep any: what comes back is another object.
        """
        kept = {id(node) for node in way}
        for node in way:
            for child in node.children.values():
                if id(child) not in kept:
                    self._put_away(child)
        self.held = sum(len(node.children) for node in way)
        # a directory that has very many is not to be passed over for each of them
        self.most = _NEVER if self._given_up else max(MOST_HELD, 2 * self.held)

    def _put_away(self, top: Dir) -> None:
        """What is in *top*, the deepest first. Not recursive: depth is the archive's choice."""
        stack = [(top, iter(top.in_memory().values()))]
        while stack and self._has_room():
            node, children = stack[-1]
            child = next(children, None)
            if child is not None:
                stack.append((child, iter(child.in_memory().values())))
                continue
            stack.pop()
            found = node.in_memory()
            if found:
                node.inside = self._put(found)

    def _has_room(self) -> bool:
        """Whether more may be put away; if not, that is for good."""
        if self._written + len(self._waiting) >= _MOST_BYTES or (len(self._waiting) >= _PIECE and not self._write()):
            self._given_up = True
        return not self._given_up

    def _put(self, children: dict[bytes, Dir]) -> _Away:
        data = pack([_row(name, node) for name, node in children.items()])
        at = self._written + len(self._waiting)
        self._waiting += zlib.crc32(data).to_bytes(_CRC_BYTES, "little") + data
        return _Away(self, at, _CRC_BYTES + len(data))

    def _write(self) -> bool:
        """Write what waits; what could not be written waits on."""
        try:
            if free_bytes(self._dir_fd) < 2 * self._keep_free:
                return False
            if self._file is None:
                self._file = Descriptor(".", os.O_TMPFILE | os.O_RDWR, dir_fd=self._dir_fd)
            done = 0
            with memoryview(self._waiting) as waiting:
                while done < len(waiting):
                    done += os.pwrite(self._file.fd, waiting[done:], self._written + done)
        except OSError:                  # a full disk, a file system without O_TMPFILE, …
            return False
        self._written += len(self._waiting)
        self._waiting = bytearray()
        return True

    def take(self, away: _Away) -> dict[bytes, Dir]:
        """The children again. Raises IoError if the disk gives something else than was put away."""
        data = self._read(away.at, away.length)
        packed = data[_CRC_BYTES:]
        if len(data) != away.length or zlib.crc32(packed).to_bytes(_CRC_BYTES, "little") != data[:_CRC_BYTES]:
            raise IoError("the disk gave back something else than was put away of a layer's directories")
        rows: Iterable[_Row] = unpack(packed)
        children = {row[0]: self._node(row) for row in rows}
        self.held += len(children)
        return children

    def _read(self, at: int, length: int) -> bytes:
        if at >= self._written or self._file is None:
            return bytes(self._waiting[at - self._written : at - self._written + length])
        return os.pread(self._file.fd, length, at)

    def _node(self, row: _Row) -> Dir:
        _, meant, mtime_ns, opaque, marked, at, length = row
        node = Dir(opaque=opaque)
        if meant is not None:
            node.meant = self.meant(*meant[:3], meant[3] or _NO_XATTRS)
        node.mtime_ns = int(mtime_ns)
        if marked is not None:
            node.marked = set(marked)
        if length:
            node.inside = _Away(self, at, length)
        return node

    def close(self) -> None:
        """Give the file back. May be called again."""
        if self._file is not None:
            self._file.close()


_NO_XATTRS: Mapping[bytes, bytes] = {}


def _row(name: bytes, node: Dir) -> _Row:
    """What is put away of *node*, whose own children are put away, or there are none."""
    away, meant = node.inside, node.meant
    at, length = (away.at, away.length) if isinstance(away, _Away) else (0, 0)
    said = None if meant is None else (*meant[:3], dict(meant[3]) or None)
    mtime_ns: int | bytes = node.mtime_ns
    if not _LEAST <= node.mtime_ns <= _GREATEST:
        mtime_ns = str(node.mtime_ns).encode()
    return name, said, mtime_ns, node.opaque, list(node.marked) or None, at, length
