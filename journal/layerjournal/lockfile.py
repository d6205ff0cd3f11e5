"""LMDB's ``lock.mdb`` gets its space on the disk before LMDB maps it.

LMDB makes it sparse and writes to it through a shared mapping. On a full disk the first write to such a page finds no
block, and the kernel ends the process with SIGBUS. So the space is taken beforehand, by an ordinary call that fails
with an ordinary error. On btrfs the file is marked NOCOW while it is empty, or each write would want a new block again.

Only holes are filled, so this may be done to a file that others have mapped; a file that has any length keeps it,
because LMDB takes the number of reader slots from it. A file system without fallocate(2) is left as it is.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from contextlib import suppress

from layerjournal.effects import Descriptor

LOCK_FILE = "lock.mdb"
_SLOT_BYTES, _HEAD_BYTES = 64, 128     # MDB_reader is one cache line; MDB_txninfo without its first slot is two
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS = 0x80086601, 0x40086602
_FS_NOCOW_FL = 0x00800000


def reserve(directory: str, max_readers: int) -> None:
    """Make sure that the lock file in *directory*, made if absent, has its space. OSError as it comes, ENOSPC above all.

    Durability: none is needed; what is in it means nothing after a crash.
    """
    with Descriptor(os.path.join(directory, LOCK_FILE), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644) as fd:
        status = os.fstat(fd)
        if status.st_size and status.st_blocks * 512 >= status.st_size:
            return
        if not status.st_size:
            _no_copy_on_write(fd)
        _allocate(fd, status.st_size or _HEAD_BYTES + max_readers * _SLOT_BYTES)


def _allocate(fd: int, size: int) -> None:
    """fallocate(2) itself: the emulation of posix_fallocate(3) may write over what others have just written."""
    libc = ctypes.CDLL(None, use_errno=True)
    while libc.fallocate(fd, 0, ctypes.c_longlong(0), ctypes.c_longlong(size)) != 0:
        number = ctypes.get_errno()
        if number in (errno.EOPNOTSUPP, errno.ENOSYS):
            return
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number), LOCK_FILE)


def _no_copy_on_write(fd: int) -> None:
    """Where there is such a thing, and only of an empty file: elsewhere there is an error, and nothing to do."""
    with suppress(OSError):
        flags = bytearray(8)
        fcntl.ioctl(fd, _FS_IOC_GETFLAGS, flags)
        wanted = int.from_bytes(flags[:4], "little") | _FS_NOCOW_FL
        fcntl.ioctl(fd, _FS_IOC_SETFLAGS, wanted.to_bytes(8, "little"))
