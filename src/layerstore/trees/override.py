"""``user.containers.override_stat``: what a file is meant to be where this process may not make it so.

The field's own attribute (containers/storage writes it under ``force_mask``; fuse-overlayfs shows files as it says, in a
layer whose root has it, too). Its value is ``uid:gid:mode:type``: decimal, decimal, four or more octal digits, and one of
file, dir, symlink, pipe, socket, block-MAJOR-MINOR, char-MAJOR-MINOR. Ids are the archive's. Only regular files and
directories can carry it (xattr(7)). It is never taken from an archive (``manifest.storable_xattr``). Nothing belongs
here but its format, writing it, and reading it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import NamedTuple, Protocol

__all__ = ["NAME", "Stat", "Subject", "parse", "readable", "value", "write"]

NAME = b"user.containers.override_stat"
_TYPES = {
    "file": stat.S_IFREG, "dir": stat.S_IFDIR, "symlink": stat.S_IFLNK, "pipe": stat.S_IFIFO, "socket": stat.S_IFSOCK,
    "block": stat.S_IFBLK, "char": stat.S_IFCHR,
}
_WORDS = {"fifo": "pipe"}                # the manifest's word for it: the attribute's
# ENOSPC: ext4 has room for some 4 KiB of attributes; a disk that is really full tells whoever writes next
_UNSUPPORTED = frozenset({errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOSPC, errno.E2BIG})
_FORMAT = re.compile(
    r"(\d{1,10}):(\d{1,10}):0*([0-7]{1,4}):(?:(file|dir|symlink|pipe|socket)|(block|char)-(\d{1,10})-(\d{1,10}))", re.ASCII,
)


class Subject(Protocol):
    """Of whatever has these: an archive's entry, a manifest's."""

    @property
    def type(self) -> str: ...
    @property
    def mode(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def devmajor(self) -> int: ...
    @property
    def devminor(self) -> int: ...


class Stat(NamedTuple):
    """What the attribute says: ``kind`` as in stat(2)'s S_IFMT, ``mode`` the twelve bits below it."""

    uid: int
    gid: int
    mode: int
    kind: int
    rdev: int = 0


def value(entry: Subject) -> bytes:
    """What the attribute says of *entry*."""
    word = _WORDS.get(entry.type, entry.type)
    device = f"-{entry.devmajor}-{entry.devminor}" if entry.type in ("char", "block") else ""
    return f"{entry.uid}:{entry.gid}:{entry.mode:04o}:{word}{device}".encode()


def parse(data: bytes) -> Stat | None:
    """What *data* says; None if it is not of the form that ``value`` has."""
    found = _FORMAT.fullmatch(data.decode("ascii", "replace"))
    if found is None:
        return None
    uid, gid, mode, plain, device, major, minor = found.groups()
    rdev = os.makedev(int(major), int(minor)) if device else 0
    return Stat(int(uid), int(gid), int(mode, 8), _TYPES[plain or device], rdev)


def write(fd: int, entry: Subject) -> bool:
    """Set it on the file or directory open as *fd*; False where there are no such attributes."""
    try:
        os.setxattr(fd, NAME, value(entry))
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return False
    return True


def readable(kind: str, mode: int) -> int:
    """*mode* with what its owner needs to read the file, or to list and enter the directory."""
    return mode | (0o500 if kind == "dir" else 0o400)
