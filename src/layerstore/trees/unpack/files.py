"""Making one regular file: created, written, hashed, dressed, closed. Its system calls are all here.

How many they are, and why each, is in the table of ``unpack``. It is made durable with its whole tree, later.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from layerstore.formats.tar import Entry
from layerstore.system.descriptors import NEW_FILE, Descriptor
from layerstore.system.kernel import start_writeback
from layerstore.trees.dress import Dresser
from layerstore.trees.unpack.hashing import Hasher

__all__ = ["SMALL", "Births", "NewFile", "make", "make_from"]

SMALL = 1 << 18
"""Bytes of a file that threads and processes make: written at once, and without a look for holes."""
_BORN = 0o777                            # of a mode: what open(2) sets, and no later write or chown takes away
_MUCH = 8 << 20                          # bytes of one file that are worth writing to the disk meanwhile
_HOLE = 1 << 16                          # bytes, and their alignment in the file: zeros that are worth a hole
_ZEROS = memoryview(bytes(1 << 20))
_ZERO = bytes(_HOLE)


class Births:
    """With what owner and mode a file is born here; the first of each mode is looked at, the others are like it.

    The umask, a default ACL, a set-group-ID bit and mount options decide it: for all directories of a tree alike, since
    one process makes them, each in the other. May be asked by several threads.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, int, int]] = {}
        # (mode, uid, gid) of files that are born as they shall be
        self.right: set[tuple[object, ...]] = set()

    @staticmethod
    def mode(mode: int) -> int:
        """The mode to create a file with that shall have *mode*: its own, if its owner can then write it."""
        return mode if mode & ~_BORN == 0 and mode & 0o600 == 0o600 else 0o600

    def of(self, fd: int, mode: int) -> tuple[int, int, int]:
        """Owner, group and mode of the file that was just created as *fd*, to have *mode*."""
        mode = self.mode(mode)
        known = self._known.get(mode)
        if known is None:
            found = os.fstat(fd)
            known = self._known[mode] = (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode))
        return known


class NewFile:
    """A file to be made in the directory *dir_fd* (kept open by *owner*), and, once ``done``, what came of it."""

    error: BaseException | None
    __slots__ = ("data", "digest", "dir_fd", "done", "entry", "error", "name", "owner", "path", "unset")

    def __init__(
        self, dir_fd: int, owner: Descriptor | None, name: bytes, path: bytes, entry: Entry, data: memoryview
    ) -> None:
        self.dir_fd, self.owner, self.name, self.path = dir_fd, owner, name, path
        self.entry, self.data = entry, data
        self.digest, self.unset, self.done, self.error = b"", 0, False, None


def make(file: NewFile, dress: Dresser, births: Births) -> None:
    """Make *file*; OSError as the system has it, FileExistsError above all."""
    entry, data = file.entry, file.data
    attributes = entry[2:5]              # mode, uid and gid
    with Descriptor(file.name, NEW_FILE, births.mode(entry.mode), dir_fd=file.dir_fd) as fd:
        if len(data) <= SMALL:
            _write(fd, data)
        else:
            writer = _Writer(fd)
            writer.write(data)
            writer.finish()
        file.digest = hashlib.sha256(data).digest()
        if attributes in births.right and not entry.xattrs:
            file.unset = dress.time(fd, entry.mtime_ns)
        else:
            born = births.of(fd, entry.mode)
            file.unset = dress.open_file(fd, entry, born=born)
            if dress.leaves(born, *attributes):
                births.right.add(attributes)


def make_from(
    dir_fd: int, name: bytes, entry: Entry, data: Iterator[memoryview], dress: Dresser, births: Births,
    check: Callable[[], None], hasher: Hasher | None = None,
) -> tuple[bytes, int]:
    """Make a file of pieces; digest and bits of what could not be set. *check* is called between them, and may raise.

    *hasher* hashes them meanwhile, if given.
    """
    digest = hashlib.sha256()
    with Descriptor(name, NEW_FILE, births.mode(entry.mode), dir_fd=dir_fd) as fd:
        born = births.of(fd, entry.mode)
        if entry.sparse is not None:
            _write_sparse(fd, entry, data, digest, check)
        else:
            update = digest.update if hasher is None else partial(hasher.add, digest)
            writer = _Writer(fd)
            waiting = 0
            for piece in data:
                check()
                update(piece)
                waiting += writer.write(piece)
                if waiting >= _MUCH:
                    start_writeback(fd)
                    waiting = 0
            writer.finish()
            if hasher is not None:
                hasher.settle()
        return digest.digest(), dress.open_file(fd, entry, born=born)


class _Writer:
    """Writes a new, empty file from its beginning, and leaves out zeros: they become holes, wherever they came from.

    What is looked at are the aligned blocks of the file, and their parts in each piece: what is not written reads as
    zeros, whatever lies beside it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._at = self._position = 0    # where the next piece belongs; where the descriptor is

    def write(self, piece: memoryview) -> int:
        """The next *piece*; how many bytes of it were written."""
        base, size = self._at, len(piece)
        self._at += size
        written = start = 0
        for part in (0, *range(-base % _HOLE or _HOLE, size, _HOLE)):
            if piece[part]:              # as nearly always
                continue
            end = min(size, part + _HOLE - (base + part) % _HOLE)
            if _is_zero(piece[part:end]):
                written += self._put(piece[start:part], base + start)
                start = end
        return written + self._put(piece[start:], base + start)

    def _put(self, data: memoryview, at: int) -> int:
        if data:
            if at != self._position:
                os.lseek(self._fd, at, os.SEEK_SET)
            _write(self._fd, data)
            self._position = at + len(data)
        return len(data)

    def finish(self) -> None:
        """All was given: the file gets its size."""
        if self._position != self._at:
            os.ftruncate(self._fd, self._at)


def _is_zero(part: memoryview) -> bool:
    """Two bytes tell it of nearly all that is not zero, though it begins with one; only the rest is copied and compared."""
    return not (part[-1] or part[len(part) // 2]) and bytes(part) == _ZERO[: len(part)]


def _write_sparse(
    fd: int, entry: Entry, data: Iterator[memoryview], digest: Any, check: Callable[[], None]
) -> None:
    """Write the segments where they belong, with holes between; hash it all as it will be read."""
    assert entry.sparse is not None
    at = 0
    piece = memoryview(b"")
    for start, length in entry.sparse:
        _hash_zeros(digest, start - at, check)
        at = start
        while at < start + length:
            if not piece:
                piece = next(data)
            part = piece[: start + length - at]
            piece = piece[len(part) :]
            digest.update(part)
            os.lseek(fd, at, os.SEEK_SET)
            _write(fd, part)
            at += len(part)
    _hash_zeros(digest, entry.size - at, check)
    os.ftruncate(fd, entry.size)


def _hash_zeros(digest: Any, count: int, check: Callable[[], None]) -> None:
    while count > 0:
        check()
        digest.update(_ZEROS[:count])
        count -= len(_ZEROS)


def _write(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]
