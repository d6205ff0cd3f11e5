"""The Linux calls that Python's ``os`` lacks, by ctypes. One function a call; errors are ``OSError``.

Only thin wrappers belong here: no policy, no retries, no fault points (those are ``fs``'s).
``CDLL(None)`` is used on purpose: an interposed libc (a test's shim) then sees these calls too.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import partial

AT_FDCWD = -100
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
FSOPEN_CLOEXEC = 0x1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
FSMOUNT_CLOEXEC = 0x1
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NODEV = 0x4
MOVE_MOUNT_F_EMPTY_PATH = 0x4
CLONE_FS = 0x200
_SYS_MOVE_MOUNT, _SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 429, 430, 431, 432  # the same everywhere but on alpha
_SYS_OPENAT2 = 437
FICLONE = 0x40049409  # ioctl_ficlone(2); linux/fs.h
RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 0x1, 0x2, 0x4, 0x8
_INITIAL_USER_NS = 0xEFFFFFFD  # its inode in nsfs: PROC_USER_INIT_INO, linux/proc_ns.h

_SYNC_FILE_RANGE_WRITE = 0x2

_libc = ctypes.CDLL(None, use_errno=True)
_sync_file_range = getattr(_libc, "sync_file_range", None)


def _check(result: int, what: str | bytes | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def syncfs(fd: int) -> None:
    """Write back the whole file system that holds *fd*; report write-back errors since *fd* was opened.

    Source: syncfs(2); errors are reported once per open file description since Linux 5.8.
    """
    _check(_libc.syncfs(fd))


def renameat2(src_fd: int, src: str, dst_fd: int, dst: str, flags: int = 0) -> None:
    """rename(2) relative to directory descriptors, with its flags."""
    _check(_libc.renameat2(src_fd, os.fsencode(src), dst_fd, os.fsencode(dst), ctypes.c_uint(flags)), dst)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def openat2(dir_fd: int, path: bytes, flags: int, resolve: int) -> Callable[[], int]:
    """What opens *path* relative to *dir_fd*, with rules for the way (``RESOLVE_*``), when it is called: see ``checked``.

    Prepared, because a number that a function of Python's returns is lost if an interrupt comes between: called, it is
    one step of C. Source: openat2(2), Linux 5.6. EXDEV: the way leads out of *dir_fd*; ELOOP: over a symbolic link.
    """
    how = _OpenHow(flags, 0, resolve)
    return partial(_libc.syscall, _SYS_OPENAT2, dir_fd, path, ctypes.byref(how), ctypes.sizeof(how))


def start_writeback(fd: int) -> None:
    """Begin to write what the disk lacks of the file *fd*, and wait for none of it.

    A hint: it makes nothing durable, and its errors are told by the sync that does. Source: sync_file_range(2),
    SYNC_FILE_RANGE_WRITE alone.
    """
    if _sync_file_range is not None:     # not every libc has it
        _sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), ctypes.c_uint(_SYNC_FILE_RANGE_WRITE))


def checked(result: int, what: bytes) -> None:
    """OSError if the call that was made last in this thread gave a negative *result*."""
    _check(result, what)


class _Statfs(ctypes.Structure):
    _fields_ = (
        ("f_type", ctypes.c_long), ("f_bsize", ctypes.c_long), ("f_blocks", ctypes.c_ulong),
        ("f_bfree", ctypes.c_ulong), ("f_bavail", ctypes.c_ulong), ("f_files", ctypes.c_ulong),
        ("f_ffree", ctypes.c_ulong), ("f_fsid", ctypes.c_int * 2), ("f_namelen", ctypes.c_long),
        ("f_frsize", ctypes.c_long), ("f_flags", ctypes.c_long), ("f_spare", ctypes.c_long * 4),
    )


def filesystem_magic(fd: int) -> int:
    """The f_type of the file system that holds *fd* (statfs(2)), 0xEF53 for ext4."""
    buffer = _Statfs()
    _check(_libc.fstatfs(fd, ctypes.byref(buffer)))
    return int(buffer.f_type) & 0xFFFFFFFF


def mount(source: str, target: str, fstype: str | None, flags: int, data: str | None) -> None:
    """mount(2)."""
    _check(
        _libc.mount(
            os.fsencode(source), os.fsencode(target), fstype.encode() if fstype else None,
            ctypes.c_ulong(flags), os.fsencode(data) if data else None,
        ),
        target,
    )


def umount2(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), flags), target)


def has_trusted_xattrs() -> bool:
    """Whether this process has the privilege that trusted.* attributes need: tried out on a file in memory.

    Without it they are invisible, and no error says so. In a user namespace nobody has it (xattr(7)).
    """
    try:
        probe = open(os.memfd_create("xattr-probe"), "rb", buffering=0)  # noqa: SIM115 - closed below, or when it is forgotten
    except (OSError, AttributeError):    # a Python built with a glibc before 2.27 lacks it
        return _is_initial_root()
    with probe:
        try:
            os.setxattr(probe.fileno(), "trusted.probe", b"")
        except PermissionError:
            return False
        except OSError:  # a kernel whose tmpfs has no such attributes
            return _is_initial_root()
    return True


def _is_initial_root() -> bool:
    try:
        return os.geteuid() == 0 and os.stat("/proc/self/ns/user").st_ino == _INITIAL_USER_NS
    except OSError:
        return False


def unshare(flags: int) -> None:
    """Stop sharing with other threads. CLONE_FS needs no privilege and touches the calling thread only."""
    _check(_libc.unshare(ctypes.c_int(flags)))


# -- the mount API of Linux 5.2: a mount is made aside, set up piece by piece, put in place whole ------------


def fsopen(fstype: str, flags: int = FSOPEN_CLOEXEC) -> int:
    """Return a descriptor to set up a new file system by. ENOSYS before Linux 5.2, ENODEV: unknown type."""
    return int(_check(_libc.syscall(_SYS_FSOPEN, fstype.encode(), ctypes.c_uint(flags)), fstype))


def fsconfig(fd: int, command: int, key: str | None = None, value: bytes | None = None) -> None:
    """Set one parameter (a string of at most 255 bytes, or a flag), or run FSCONFIG_CMD_CREATE."""
    name = key.encode() if key is not None else None
    _check(_libc.syscall(_SYS_FSCONFIG, fd, ctypes.c_uint(command), name, value, 0), key)


def fsmount(fd: int, attributes: int = 0, flags: int = FSMOUNT_CLOEXEC) -> int:
    """Give a descriptor of a mount that is nowhere yet; closing it undoes it."""
    return int(_check(_libc.syscall(_SYS_FSMOUNT, fd, ctypes.c_uint(flags), ctypes.c_uint(attributes))))


def move_mount(fd: int, target: str) -> None:
    """Put the mount *fd* at *target*."""
    path, flags = os.fsencode(target), ctypes.c_uint(MOVE_MOUNT_F_EMPTY_PATH)
    _check(_libc.syscall(_SYS_MOVE_MOUNT, fd, b"", AT_FDCWD, path, flags), target)


def fs_messages(fd: int) -> list[str]:
    """What the kernel has to say of the last failing call on *fd* of fsopen(2), oldest first."""
    lines: list[str] = []
    while len(lines) < 8:
        try:
            line = os.read(fd, 4096)
        except OSError:  # ENODATA: no more; or a kernel without messages
            break
        lines.append(line.decode("utf-8", "replace").strip())
    return lines
