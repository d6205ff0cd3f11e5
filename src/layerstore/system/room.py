"""What is left on a file system for an ordinary process, in bytes and in inodes, and whether that is enough. No effects.

What a store keeps free of it, and for whom, is its ``reserve``'s.
"""

from __future__ import annotations

import os

from layerstore.errors import NoInodesError, NoSpaceError

__all__ = ["check_inodes", "free_bytes", "free_inodes", "has_bytes"]

_HAS_BYTES = 1 << 20     # so many that who is told that there is no space was not refused for want of them


def free_bytes(where: int | bytes) -> int:
    """What an ordinary process may still write on the file system of *where*, a descriptor or a path."""
    status = _status(where)
    return status.f_bavail * status.f_frsize


def has_bytes(where: int | bytes) -> bool:
    """Whether a file system has bytes left, so that they are not what it lacks, if it lacks anything."""
    return free_bytes(where) >= _HAS_BYTES


def free_inodes(fd: int) -> int | None:
    """How many files an ordinary process may still make on *fd*'s; None where no number is told (btrfs).

    Where inodes are made as they are needed, but for btrfs, that is what the free bytes allow: XFS, ZFS, f2fs, bcachefs.
    """
    status = _status(fd)
    return status.f_favail if status.f_files else None


def check_inodes(fd: int, files: int, what: str) -> None:
    """An error, which begins with *what* needs them, if not so many *files* may still be made on *fd*'s file system.

    NoInodesError; NoSpaceError where there are no bytes either (``has_bytes``): that may be all that the inodes lack.
    """
    free = free_inodes(fd)
    if free is None or files <= free:
        return
    if has_bytes(fd):
        raise NoInodesError(f"{what} {files} inodes, and {free} are free", needed=files, free=free)
    left, least = free_bytes(fd), files * _status(fd).f_frsize
    raise NoSpaceError(
        f"{what} {files} inodes, and there is no space for them: {left} bytes are free",
        needed=least if least > left else None, free=left,
    )


def _status(where: int | bytes) -> os.statvfs_result:
    return os.fstatvfs(where) if isinstance(where, int) else os.statvfs(where)   # only the former is tried again on EINTR
