"""Whiteouts on disk, in the two forms that overlayfs knows: what hides a name that lower layers have.

A character device 0:0; or, where that cannot be made (an overlay, as a container's root is; Linux 6.7), an empty
file with the attribute ``<form>.overlay.whiteout``, in a directory whose ``<form>.overlay.opaque`` is ``x``.
Source: Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories" and "Nesting overlayfs mounts".
"""

from __future__ import annotations

import errno
import os
import stat

from layerstore.system.descriptors import NEW_FILE, Descriptor

__all__ = ["is_whiteout", "make"]

_MARKS = (b"trusted.overlay.whiteout", b"user.overlay.whiteout")
_ABSENT = frozenset({errno.ENODATA, errno.ENOTSUP, errno.EPERM, errno.EACCES})


def make(name: bytes, dir_fd: int, overlay_form: str) -> bool:
    """Make a whiteout of *name*; True if it is an empty file, so that its directory needs the mark ``x``.

    FileExistsError if something is there. PermissionError if neither form can be made.
    """
    try:
        os.mknod(name, stat.S_IFCHR, 0, dir_fd=dir_fd)
    except PermissionError:
        _make_file(name, dir_fd, f"{overlay_form}.overlay.whiteout")
        return True
    return False


def _make_file(name: bytes, dir_fd: int, attribute: str) -> None:
    with Descriptor(name, NEW_FILE, dir_fd=dir_fd) as fd:
        try:
            os.setxattr(fd, attribute, b"y")
        except OSError as error:
            os.unlink(name, dir_fd=dir_fd)
            if error.errno in _ABSENT:
                what = f"neither a device 0:0 nor {attribute} can be made"
                raise PermissionError(errno.EPERM, what, name) from error
            raise


def is_whiteout(found: os.stat_result, name: bytes, dir_fd: int) -> bool:
    """Whether what was *found* at *name* in an overlay's layer is a whiteout. Only empty files are looked into."""
    if stat.S_ISCHR(found.st_mode):
        return found.st_rdev == 0
    if not stat.S_ISREG(found.st_mode) or found.st_size:
        return False
    path = f"/proc/self/fd/{dir_fd}/".encode() + name
    for mark in _MARKS:
        try:
            os.getxattr(path, mark, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _ABSENT:
                raise
        else:
            return True
    return False
