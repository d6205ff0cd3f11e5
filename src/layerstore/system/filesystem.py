"""Which file systems a store may live on: probed, not guessed.

ext4, xfs and btrfs carry the full promises. Other local file systems work but are labelled "durability unproven".
Network file systems and FUSE are refused unless asked for by name. Nothing else belongs here.
"""

from __future__ import annotations

import errno
import fcntl
import os
import unicodedata
from dataclasses import dataclass

from layerstore.errors import UnsafeFilesystemError
from layerstore.system import kernel
from layerstore.system.descriptors import Descriptor

# statfs(2) f_type values, from linux/magic.h
PROVEN = {0xEF53: "ext4", 0x58465342: "xfs", 0x9123683E: "btrfs"}
LOCAL = {
    0x794C7630: "overlay", 0x01021994: "tmpfs", 0x858458F6: "ramfs", 0xF2F52010: "f2fs", 0x2FC12FC1: "zfs",
    0xCA451A4E: "bcachefs", 0x3153464A: "jfs",
}
REFUSED = {
    0x6969: "nfs", 0xFF534D42: "cifs", 0xFE534D42: "smb2", 0x517B: "smb", 0x65735546: "fuse", 0x01021997: "9p",
    0x00C36400: "ceph", 0x0BD00BD0: "lustre", 0x47504653: "gpfs", 0x5346414F: "afs", 0x01161970: "gfs2",
    0x7461636F: "ocfs2", 0x19830326: "beegfs", 0x4D44: "vfat", 0x2011BAB0: "exfat", 0x5346544E: "ntfs",
}
READ_ONLY = {0xE0F5E1E2: "erofs", 0x73717368: "squashfs", 0x9660: "iso9660"}


@dataclass(frozen=True, slots=True)
class Filesystem:
    """What a store lives on. ``durability`` is ``proven`` or ``unproven``."""

    name: str
    durability: str


def identify(fd: int) -> str:
    """The name of the file system that holds *fd*; ``unknown(0x…)`` if it is in none of our lists."""
    magic = kernel.filesystem_magic(fd)
    known = {**PROVEN, **LOCAL, **REFUSED, **READ_ONLY}
    return known.get(magic, f"unknown({magic:#x})")


def probe(fd: int, *, allow: tuple[str, ...] = (), functional: bool = False) -> Filesystem:
    """Say what *fd* lives on, or raise UnsafeFilesystemError.

    *allow* names file systems to accept although they are refused or unknown. With *functional*, what
    a store stands on is tried out in the directory: NOREPLACE, flock between two openers, names that differ only in
    case, syncfs.
    """
    name = identify(fd)
    if name not in PROVEN.values() and name not in LOCAL.values() and name not in READ_ONLY.values() and name not in allow:
        raise UnsafeFilesystemError(
            f"the store would be on {name}, which is not known to keep renames, locks and syncs as promised",
            hint=f"use ext4, xfs or btrfs; to use it all the same, allow it by name: allow_filesystem=({name!r},)",
        )
    if functional:
        _try_out(fd, name)
    return Filesystem(name, "proven" if name in PROVEN.values() else "unproven")


def takes_trusted(fd: int) -> bool:
    """Whether opaque directories can be marked by ``trusted.overlay.*`` here: privilege and file system permitting."""
    name = f".probe-{os.urandom(8).hex()}-x"
    os.mkdir(name, 0o700, dir_fd=fd)
    try:
        os.setxattr(f"/proc/self/fd/{fd}/{name}", "trusted.overlay.opaque", b"y")
    except OSError:
        return False
    finally:
        os.rmdir(name, dir_fd=fd)
    return True


def _try_out(fd: int, name: str) -> None:
    token = os.urandom(8).hex()   # a killed probe may have left others
    a, b = f".probe-{token}-a", f".probe-{token}-b"
    made: list[str] = []
    try:
        for each in (a, b):
            os.mkdir(each, 0o700, dir_fd=fd)
            made.append(each)
        try:
            kernel.renameat2(fd, a, fd, b, kernel.RENAME_NOREPLACE)
            raise UnsafeFilesystemError(f"{name} renamed over an existing directory in spite of RENAME_NOREPLACE")
        except FileExistsError:
            pass
        except OSError as error:
            raise UnsafeFilesystemError(f"{name} does not support renameat2(RENAME_NOREPLACE): {error}") from error
        _try_lock(fd, a, name)
        _try_names(fd, token, name)
        try:
            kernel.syncfs(fd)
        except OSError as error:
            if error.errno in (errno.EIO, errno.ENOSPC):
                raise
            raise UnsafeFilesystemError(f"{name} does not support syncfs: {error}") from error
    finally:
        for each in made:
            os.rmdir(each, dir_fd=fd)


def _try_names(fd: int, token: str, name: str) -> None:
    """Two names of a layer must stay two files: ext4 and f2fs can fold case, ZFS also composed and decomposed letters."""
    made = f".probe-{token}-\xe9"
    os.mkdir(made.encode(), 0o700, dir_fd=fd)   # bytes: whatever the locale
    try:
        for other in (made.upper(), unicodedata.normalize("NFD", made)):
            if _found(fd, other):
                raise UnsafeFilesystemError(
                    f"{name} takes {made!r} and {other!r} for one name here: a layer may hold both",
                    hint="use a directory that does not fold case (chattr -F), where names are kept as they are",
                )
    finally:
        os.rmdir(made.encode(), dir_fd=fd)


def _found(fd: int, name: str) -> bool:
    try:
        os.stat(name.encode(), dir_fd=fd, follow_symlinks=False)
    except OSError:   # ENOENT; or EILSEQ and the like, from who does not take the name at all
        return False
    return True


def _try_lock(fd: int, directory: str, name: str) -> None:
    with Descriptor(directory, os.O_RDONLY, dir_fd=fd) as first, Descriptor(directory, os.O_RDONLY, dir_fd=fd) as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            raise UnsafeFilesystemError(f"flock on {name} does not keep two openers apart")
        except BlockingIOError:
            pass
