"""The system calls that the block-level rigs live on: mount, unmount, loop devices, a mount namespace of one's own.

By ctypes and ioctl, because a crash state costs one of each and a subprocess would cost more than the state. Only thin
wrappers belong here; errors are ``OSError``.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import struct
import time

_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE, _LOOP_CLR_FD = 0x4C82, 0x4C0A, 0x4C01
_LO_FLAGS_AUTOCLEAR, _LO_FLAGS_DIRECT_IO = 4, 16
_BLKFLSBUF = 0x1261
_CLONE_NEWNS = 0x00020000
_CLONE_NEWNET = 0x40000000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_PR_SET_PDEATHSIG = 1
_BUSY_TRIES, _BUSY_PAUSE = 2000, 0.005

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def own_mounts() -> None:
    """Give this process a mount namespace of its own, from which nothing gets out.

    Without it another process's namespace may keep a file system mounted that was unmounted here, and the next mount
    of the same device returns the old superblock. All mounts in it vanish with its last process.
    """
    _check(_libc.unshare(_CLONE_NEWNS), "unshare")
    mount("none", "/", None, flags=_MS_REC | _MS_PRIVATE)


def own_network() -> None:
    """Give this process a network of its own: a loopback that is down, and nothing else. Threads that were there stay."""
    _check(_libc.unshare(_CLONE_NEWNET), "unshare")


def enter_network(fd: int) -> None:
    """Let this process have the network of *fd*, an open ``/proc/PID/ns/net``. Threads that were there stay."""
    _check(_libc.setns(fd, _CLONE_NEWNET), "setns")


def die_with_parent() -> None:
    """SIGKILL for this process when its parent ends, however it ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")


def mount(source: str, target: str, fstype: str | None, options: str = "", *, flags: int = 0) -> None:
    _check(_libc.mount(
        source.encode(), target.encode(), fstype.encode() if fstype else None, ctypes.c_ulong(flags), options.encode(),
    ), target)


def unmount(target: str) -> None:
    """Unmount, truly: never lazily, because a lazy unmount leaves the file system alive behind our back."""
    for _ in range(_BUSY_TRIES):
        if _libc.umount2(target.encode(), 0) == 0:
            return
        number = ctypes.get_errno()
        if number != errno.EBUSY:
            raise OSError(number, os.strerror(number), target)
        time.sleep(_BUSY_PAUSE)
    raise OSError(errno.EBUSY, "still in use", target)


def mounted_from(target: str) -> str:
    """The device that is mounted at *target*, from the kernel's own table."""
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            if left.split()[4] == target:
                return right.split()[1]
    raise LookupError(f"{target} is not mounted")


class Loop:
    """A loop device on a file. Clears itself when its last user closes it, even if we are killed."""

    def __init__(self, path: str, *, direct: bool = False) -> None:
        flags = _LO_FLAGS_AUTOCLEAR | (_LO_FLAGS_DIRECT_IO if direct else 0)
        info = bytearray(232)
        struct.pack_into("<I", info, 52, flags)
        backing = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            self.fd, self.device = _configure(control, struct.pack("<II", backing, 512) + bytes(info) + bytes(64))
        finally:
            os.close(backing)
            os.close(control)

    def forget_cache(self) -> None:
        """Write back and drop what the kernel caches of the device."""
        fcntl.ioctl(self.fd, _BLKFLSBUF)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)   # the last one: the device clears itself
            self.fd = -1

    def __enter__(self) -> Loop:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _configure(control: int, config: bytes) -> tuple[int, str]:
    while True:
        device = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
        fd = -1
        try:
            fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            fcntl.ioctl(fd, _LOOP_CONFIGURE, config)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            if error.errno not in (errno.EBUSY, errno.ENXIO):   # somebody else was quicker; and is done with it already
                raise
        else:
            return fd, device
