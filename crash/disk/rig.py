"""Disk, loop device, file system: made, asserted, mounted and taken apart again, in one ``with``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from crash.disk.control import Served, serving
from crash.disk.filesystems import Filesystem, assert_device, assert_mounted, make
from crash.disk.kernel_calls import Loop, mount, mounted_from, unmount


@dataclass
class Stand:
    """A mounted file system on a disk of ours."""

    disk: Served
    fs: Filesystem
    loop: Loop
    directory: str   # where it is mounted

    def mount(self) -> None:
        mount(self.loop.device, self.directory, self.fs.kernel_name, self.fs.options)
        assert_mounted(self.fs, self.directory)

    def unmount(self) -> None:
        unmount(self.directory)


@contextmanager
def standing(
    fs: Filesystem, work: str, *, fill: Callable[[int], None] | None = None,
    prepare: Callable[[Served], None] | None = None,
) -> Iterator[Stand]:
    """A fresh file system, mounted; unmounted at the end. The disk's log is ``work/log``.

    *fill* writes an image onto the device (an open descriptor) instead of mkfs. *prepare* may give the disk orders
    before the file system is mounted.
    """
    served, directory = os.path.join(work, "served"), os.path.join(work, "mounted")
    os.makedirs(directory, exist_ok=True)
    with serving(served, os.path.join(work, "log"), fs.megabytes) as disk:
        with Loop(disk.path, direct=True) as loop:
            if fill is None:
                make(fs, loop.device)
            else:
                fill(loop.fd)
                os.fsync(loop.fd)
            loop.forget_cache()
            assert_device(fs, loop.device)
            if prepare is not None:
                prepare(disk)
            stand = Stand(disk, fs, loop, directory)
            try:
                stand.mount()
                yield stand
            finally:
                with suppress(OSError):   # never mounted, or already unmounted by whoever had to
                    unmount(directory)


def mount_image(fs: Filesystem, loop: Loop, directory: str) -> None:
    """Mount a crash image, and make sure that it is this one: two images of one file system share its uuid."""
    mount(loop.device, directory, fs.kernel_name, fs.options)
    source = mounted_from(directory)
    if source != loop.device:
        unmount(directory)
        raise AssertionError(f"{directory} is mounted from {source}, not from {loop.device}")
