"""The private file system: ext4 on a file of our own through a loop device with direct I/O, in our own mount namespace.

Two things falsify figures like these (both were seen to): ext4 looks for inodes that were *not* freed lately, so
that extracting again where one has deleted takes many times longer; and a sparse file costs its host an allocation at
every first write. So nothing is ever deleted here: every run gets a new directory, the file system is made again when
it fills, and the file beneath it is written whole once. Everything goes with the process, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crash.disk.kernel_calls import Loop, mount, own_mounts, unmount

from bench import machine

_MKFS = ("mkfs.ext4", "-q", "-F", "-i", "8192", "-m", "0", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0")
_GIB = 1 << 30
_PIECE = bytes(4 << 20)
_SPARE = 32 << 20

# where peers keep caches of their own; within our namespace, those are in memory, and gone afterwards
_STRANGERS_STATE = ("/var/lib/containers",)


class Disk:
    """The file system, mounted at ``path``; ``run`` is a directory in memory, as ``/run`` is."""

    def __init__(self, loop: Loop, path: str, run: str) -> None:
        self._loop, self.path, self.run = loop, path, run
        self._number = 0

    def make(self) -> None:
        """A file system without a past."""
        self.unmount()
        subprocess.run([*_MKFS, self._loop.device], check=True, capture_output=True,
                       env={**os.environ, "PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"})
        self._loop.forget_cache()
        mount(self._loop.device, self.path, "ext4")
        self.settle()

    def holds(self, size: int, inodes: int) -> bool:
        """Whether that much fits when there is nothing else."""
        found = os.statvfs(self.path)
        return found.f_blocks * found.f_frsize >= size + _SPARE and found.f_files >= inodes

    def room_for(self, size: int, inodes: int) -> None:
        """Make the file system again unless that much fits. CannotError if it never does."""
        found = os.statvfs(self.path)
        if found.f_bavail * found.f_frsize < size + _SPARE or found.f_favail < inodes:
            if not self.holds(size, inodes):
                raise machine.CannotError(f"{size >> 20} MiB and {inodes} inodes do not fit into the private file system")
            self.make()

    def new(self) -> str:
        """A directory that was never there before, with one of the same name in ``run``."""
        self._number += 1
        name = f"run-{self._number:05d}"
        os.mkdir(os.path.join(self.run, name))
        os.mkdir(os.path.join(self.path, name))
        return os.path.join(self.path, name)

    def settle(self) -> None:
        """Wait until all that was written is on the device: the next run shall not pay for the last."""
        subprocess.run(["sync", "-f", self.path], check=True)

    def unmount(self) -> None:
        """With all that peers have mounted beneath it."""
        for point in reversed(_mounts_beneath(self.path)):
            unmount(point)


@contextmanager
def private(cache: str, *, gib: float) -> Iterator[Disk]:
    """The disk, empty. CannotError without root, mkfs.ext4, loop devices, or room for the file."""
    machine.need_root()
    machine.need("mkfs.ext4", "sync")
    own_mounts()
    base = Path(cache)
    base.mkdir(parents=True, exist_ok=True)
    file, path, run = base / "disk", base / "mounted", base / "run"
    path.mkdir(exist_ok=True)
    run.mkdir(exist_ok=True)
    lock = _alone(base)
    _written(file, int(gib * _GIB) & ~0xFFFFF)
    mount("none", str(run), "tmpfs")
    for stranger in filter(os.path.isdir, _STRANGERS_STATE):
        mount("none", stranger, "tmpfs")
    try:
        with _loop(file) as loop:
            disk = Disk(loop, str(path), str(run))
            disk.make()
            try:
                yield disk
            finally:
                disk.unmount()
    finally:
        unmount(str(run))
        os.close(lock)


def _alone(base: Path) -> int:
    """A lock on the cache: two file systems on one file would eat each other. CannotError if somebody has it."""
    fd = os.open(base / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise machine.CannotError("another run is under way with this cache") from None
    return fd


def _loop(file: Path) -> Loop:
    try:
        return Loop(str(file), direct=True)
    except OSError as error:
        raise machine.CannotError(f"no loop device: {error.strerror}") from error


def _written(file: Path, size: int) -> None:
    """The file, all of it written, so that its host has nothing left to allocate."""
    if file.exists() and file.stat().st_size == size:
        return
    file.unlink(missing_ok=True)
    free = shutil.disk_usage(file.parent).free
    if size > free - _GIB:
        raise machine.CannotError(f"a disk of {size >> 20} MiB does not fit into {free >> 20} MiB free; see --disk-gib")
    partial = file.with_suffix(".partial")
    with open(partial, "wb", buffering=0) as out:
        out.writelines(_PIECE[:size - done] for done in range(0, size, len(_PIECE)))
        os.fsync(out.fileno())
    partial.rename(file)


def _mounts_beneath(path: str) -> list[str]:
    """Mount points at and beneath *path*, in the order of mounting."""
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        points = [line.split()[4] for line in file]
    return [each for each in points if each == path or each.startswith(path + "/")]
