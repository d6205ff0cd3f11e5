"""Dressing: owner, extended attributes, mode and times of what an archive has just made us make.

In this order: chown clears setuid bits and capabilities, so attributes and mode come after it; times last. What an
ordinary user, or the file system, cannot have is told as bits of ``manifest``'s *unset*, and never an error.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from layerstore.manifest import OWNER, TIME, XATTR, storable_xattr
from layerstore.tar import Entry, os_text

__all__ = ["Dresser", "entry_text"]

_SAFE_SECONDS = 1 << 31                  # every file system holds times this far from 1970
_XATTR_UNSUPPORTED = frozenset({errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.ENOSYS})


class Dresser:
    """Sets attributes as this process may. Each method returns the bits of what could not be set."""

    def __init__(self) -> None:
        self._owner = (os.geteuid(), os.getegid())
        self._privileged = self._owner[0] == 0

    def open_file(self, fd: int, entry: Entry) -> int:
        """A file or directory that is open as *fd*."""
        unset = self._chown(entry, lambda: os.fchown(fd, entry.uid, entry.gid))
        if entry.xattrs:
            unset |= _set_xattrs(fd, entry)
        os.fchmod(fd, entry.mode)
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        if _is_safe(entry):
            return unset
        return unset | (0 if os.fstat(fd).st_mtime_ns == entry.mtime_ns else TIME)

    def name(self, dir_fd: int, base: bytes, entry: Entry) -> int:
        """What cannot be opened: links and device nodes, just made by us at that name."""
        unset = self._chown(
            entry, lambda: os.chown(base, entry.uid, entry.gid, dir_fd=dir_fd, follow_symlinks=False),
        )
        if entry.xattrs:
            unset |= _set_xattrs(f"/proc/self/fd/{dir_fd}/".encode() + base, entry)
        if entry.type != "symlink":
            os.chmod(base, entry.mode, dir_fd=dir_fd)
        os.utime(base, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=dir_fd, follow_symlinks=False)
        if _is_safe(entry):
            return unset
        found = os.stat(base, dir_fd=dir_fd, follow_symlinks=False)
        return unset | (0 if found.st_mtime_ns == entry.mtime_ns else TIME)

    def _chown(self, entry: Entry, call: Callable[[], None]) -> int:
        if not self._privileged and (entry.uid, entry.gid) != self._owner:
            return OWNER
        try:
            call()
        except OSError as error:
            # EINVAL: an ID that this user namespace does not map
            if error.errno not in (errno.EPERM, errno.EINVAL):
                raise
            return OWNER
        return 0


def _is_safe(entry: Entry) -> bool:
    return -_SAFE_SECONDS <= entry.mtime_ns // 1_000_000_000 < _SAFE_SECONDS


def _set_xattrs(where: int | bytes, entry: Entry) -> int:
    unset = 0
    for name, value in entry.xattrs.items():
        if not storable_xattr(name):
            continue
        try:
            if isinstance(where, int):
                os.setxattr(where, name, value)
            else:
                os.setxattr(where, name, value, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _XATTR_UNSUPPORTED:
                text = f"setting {os_text(name)} ({len(value)} bytes) on {entry_text(entry)}: {error.strerror}"
                raise OSError(error.errno, text) from error
            unset = XATTR
    return unset


def entry_text(entry: Entry) -> str:
    """An entry's name, for a message."""
    return repr(os_text(entry.name))
