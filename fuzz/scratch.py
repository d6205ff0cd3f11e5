"""Where targets write: files and trees in memory, made once a process and used again, since each is used millions of times.

Nothing of the product is imported here, and nothing is asserted.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

BASE = os.environ.get("LAYERSTORE_FUZZ_SCRATCH") or ("/dev/shm" if os.path.isdir("/dev/shm") else None)


class MemoryFile:
    """A file without a name: ``fd``, and ``path`` by which it can be opened again."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("fuzz")
        self.path = f"/proc/self/fd/{self.fd}"

    def holding(self, data: bytes) -> MemoryFile:
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, data, 0)
        return self


class Layer:
    """A layer's directory ``name`` in *parent*, empty but for ``diff/``; its descriptors are open."""

    def __init__(self, name: str, parent: int) -> None:
        os.mkdir(name, 0o700, dir_fd=parent)
        self.dir_fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=parent)
        os.mkdir("diff", 0o755, dir_fd=self.dir_fd)
        self.diff_fd = os.open("diff", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.dir_fd)

    def close(self) -> None:
        os.close(self.diff_fd)
        os.close(self.dir_fd)


@contextmanager
def layer(name: str, parent: int) -> Iterator[Layer]:
    """A layer's directory for as long as it is used."""
    made = Layer(name, parent)
    try:
        yield made
    finally:
        made.close()
        remove(name, parent)


def remove(name: str, parent: int) -> None:
    """Remove a tree. It may hold directories of mode 0."""
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    try:
        empty(fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent)


def empty(fd: int) -> None:
    for each in os.listdir(fd):
        try:
            os.unlink(each, dir_fd=fd)
        except (IsADirectoryError, PermissionError):
            with suppress(NotADirectoryError):
                if stat.S_ISDIR(os.stat(each, dir_fd=fd, follow_symlinks=False).st_mode):
                    os.chmod(each, 0o700, dir_fd=fd)
            remove(each, fd)


class Outside:
    """A directory of our own, removed with the process; the engine ends without a word, and ``supervise`` removes it."""

    def __init__(self) -> None:
        self._made = tempfile.TemporaryDirectory(prefix="layerstore-fuzz-", dir=BASE)
        self.path = self._made.name
        self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
