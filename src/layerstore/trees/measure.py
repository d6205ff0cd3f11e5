"""What a tree takes: walked over no symbolic link, every inode once; and what blocks it shares (FIEMAP).

Reads only. What the numbers are told of, and in which words, is ``space``'s (the disk) and ``usage``'s (images).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from layerstore.formats.packed import open_regular
from layerstore.system.descriptors import Descriptor
from layerstore.trees.dirfds import DirFds

__all__ = ["Measured", "measure"]

_FIEMAP = 0xC020660B                     # FS_IOC_FIEMAP, linux/fs.h
_HEADER = struct.Struct("=QQIIII")       # start, length, flags, mapped extents, room for extents, reserved
_EXTENT = struct.Struct("=QQQ16xI12x")   # logical, physical, length, flags; linux/fiemap.h
_LAST, _SHARED = 0x1, 0x2000             # FIEMAP_EXTENT_*
_EXTENTS = 128                           # asked for at once
_BLOCK = 512                             # bytes of st_blocks (stat(2))
_DENIED = frozenset({errno.EACCES, errno.EPERM})


@dataclass(slots=True)
class Measured:
    """In bytes: content of regular files; blocks; those of them that another file has, too. Directories not to be read."""

    logical: int = 0
    allocated: int = 0
    reflinked: int = 0
    unread: int = 0


def measure(dir_fd: int, *, content: bytes = b"", reflinked_from: int | None = None) -> Measured:
    """Measure what is below the directory *dir_fd*, which is not counted itself.

    Args:
        dir_fd: the directory; it stays the caller's.
        content: only files below this path count as ``logical``.
        reflinked_from: files of so many bytes are asked for shared blocks; None: none is. Each question costs an open.

    What goes meanwhile is left out. Holes are not counted as allocated, nor what the file system saves by compression.

    """
    result = Measured()
    seen: set[tuple[int, int]] = set()   # files of several names
    with closing(DirFds(dir_fd, capacity=2)) as directories:
        waiting = [b""]
        while waiting:
            path = waiting.pop()
            counts = not content or path == content or path.startswith(content + b"/")
            try:
                fd = directories.get(path)
                for name, found in _entries(fd):
                    if stat.S_ISDIR(found.st_mode):
                        waiting.append(path + b"/" + name if path else name)
                    elif found.st_nlink > 1:
                        if (found.st_dev, found.st_ino) in seen:
                            continue
                        seen.add((found.st_dev, found.st_ino))
                    _add(result, name, fd, found, counts, reflinked_from)
            except OSError as error:
                result.unread += error.errno in _DENIED
    return result


def _entries(dir_fd: int) -> Iterator[tuple[bytes, os.stat_result]]:
    with Descriptor(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=dir_fd) as own:   # with a position of its own
        names = os.listdir(own)
    for name in names:
        try:
            yield os.fsencode(name), os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            continue                     # gone meanwhile


def _add(
    result: Measured, name: bytes, dir_fd: int, found: os.stat_result, counts: bool, reflinked_from: int | None,
) -> None:
    allocated = found.st_blocks * _BLOCK
    result.allocated += allocated
    if stat.S_ISREG(found.st_mode) and counts:
        result.logical += found.st_size
        if reflinked_from is not None and found.st_size >= reflinked_from:
            result.reflinked += min(_shared(name, dir_fd), allocated)


def _shared(name: bytes, dir_fd: int) -> int:
    """Bytes of the file's blocks that another file has, too; 0 where that cannot be asked."""
    total = at = 0
    try:
        with open_regular(name, dir_fd) as fd:
            while True:
                asked = bytearray(_HEADER.size + _EXTENTS * _EXTENT.size)
                _HEADER.pack_into(asked, 0, at, (1 << 64) - 1 - at, 0, 0, _EXTENTS, 0)
                fcntl.ioctl(fd, _FIEMAP, asked)
                mapped = _HEADER.unpack_from(asked)[3]
                for n in range(mapped):
                    logical, _physical, length, flags = _EXTENT.unpack_from(asked, _HEADER.size + n * _EXTENT.size)
                    total += length if flags & _SHARED else 0
                    at = logical + length
                    if flags & _LAST:
                        return total
                if not mapped:
                    return total
    except OSError:
        return total
