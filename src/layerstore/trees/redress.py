"""The attributes of what is extracted: as its archive meant them, as far as this process and the destination can have them.

In this order: chown; then extended attributes (chown clears capabilities), mode (chown clears set-user-ID), time. What
cannot be had is counted, and never an error. A file whose owner could not be set loses its set-user-ID and set-group-ID
bits: they were meant for somebody else. Of extended attributes those are copied that a layer may carry
(``manifest.storable_xattr``); those that only the manifest has are tried. The other way, from an archive into a store, is
``dress``.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from layerstore.formats.manifest import storable_xattr
from layerstore.system import filecaps
from layerstore.system.idmap import IdMap
from layerstore.trees.meant import Meant

__all__ = ["Redresser"]

_SET_ID = stat.S_ISUID | stat.S_ISGID
_NO_XATTRS = frozenset({errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.ENOSYS})
# of what only the manifest has: an ACL that is none, and what was too large for the tree's file system already
_NOT_HERE = _NO_XATTRS | {errno.EINVAL, errno.E2BIG, errno.ERANGE, errno.ENOSPC}


class Redresser:
    """Sets attributes; ``unset`` counts what could not be set. *ids* is the store's map, whose inverse is used."""

    def __init__(self, ids: IdMap) -> None:
        self._ids = ids
        self.unset = 0

    def open_file(self, src: int, dst: int, meant: Meant) -> None:
        """A file or directory that is open as *dst*, made of the layer's, open as *src*."""
        owned = self._chown(meant, lambda uid, gid: os.fchown(dst, uid, gid))
        self._copy_xattrs(src, dst, meant)
        os.fchmod(dst, _mode(meant, owned=owned))
        os.utime(dst, ns=(meant.mtime_ns, meant.mtime_ns))

    def name(self, where: bytes | None, dest: int, name: bytes, meant: Meant) -> None:
        """What cannot be opened: symbolic links and nodes, just made by us at that name. *where* the layer has it."""
        owned = self._chown(
            meant, lambda uid, gid: os.chown(name, uid, gid, dir_fd=dest, follow_symlinks=False)
        )
        self._copy_xattrs(where, b"/proc/self/fd/%d/%b" % (dest, name), meant)
        if meant.kind != stat.S_IFLNK:
            os.chmod(name, _mode(meant, owned=owned), dir_fd=dest)
        os.utime(name, ns=(meant.mtime_ns, meant.mtime_ns), dir_fd=dest, follow_symlinks=False)

    def _chown(self, meant: Meant, call: Callable[[int, int], None]) -> bool:
        if meant.uid is None or meant.gid is None:  # an ID that the store does not map
            self.unset += 1
            return False
        try:
            call(meant.uid, meant.gid)
        except OSError as error:
            # EINVAL: an ID that this user namespace does not map
            if error.errno not in (errno.EPERM, errno.EINVAL):
                raise
            self.unset += 1
            return False
        return True

    def _copy_xattrs(self, src: int | bytes | None, dst: int | bytes, meant: Meant) -> None:
        follow = isinstance(dst, int)    # a descriptor is what it is; a path must not be followed
        names = _names(src) if src is not None else []
        for name in names:
            if storable_xattr(name) and name not in meant.xattrs:
                assert src is not None
                value = os.getxattr(src, name, follow_symlinks=follow)
                self._set_xattr(dst, name, filecaps.from_disk(value, self._ids) if name == filecaps.NAME else value)
        for name, value in meant.xattrs.items():
            self._set_xattr(dst, name, value, _NOT_HERE)

    def _set_xattr(self, dst: int | bytes, name: bytes, value: bytes, expected: frozenset[int] = _NO_XATTRS) -> None:
        try:
            os.setxattr(dst, name, value, follow_symlinks=isinstance(dst, int))
        except OSError as error:
            if error.errno not in expected:
                raise
            self.unset += 1


def _names(src: int | bytes) -> list[bytes]:
    try:
        return [os.fsencode(name) for name in os.listxattr(src, follow_symlinks=isinstance(src, int))]
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return []                    # a file system without them has none to copy
        raise


def _mode(meant: Meant, *, owned: bool) -> int:
    return meant.mode if owned or meant.kind == stat.S_IFDIR else meant.mode & ~_SET_ID
