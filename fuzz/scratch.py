"""Where targets write: files and trees in memory, made once a process and used again, since each is used millions of times.

Nothing of the product is imported here, and nothing is asserted.
"""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress

BASE = os.environ.get("LAYERSTORE_FUZZ_SCRATCH") or ("/dev/shm" if os.path.isdir("/dev/shm") else None)


class MemoryFile:
    """A file without a name: ``fd``, and ``path`` by which it can be opened again."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("fuzz")
        self.path = f"/proc/self/fd/{self.fd}"
        self._length = 0

    def holding(self, data: bytes) -> MemoryFile:
        os.pwrite(self.fd, data, 0)
        if len(data) < self._length:     # to zero first would give its page away every time
            os.ftruncate(self.fd, len(data))
        self._length = len(data)
        return self


class Layer:
    """A layer's directory ``name`` in *parent*, with ``diff/``; its descriptors are open. It is used again and again."""

    def __init__(self, name: str, parent: int) -> None:
        os.mkdir(name, 0o700, dir_fd=parent)
        self.dir_fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=parent)
        self._names: list[str] | None = None
        self._make_diff()

    def _make_diff(self) -> None:
        os.mkdir("diff", 0o755, dir_fd=self.dir_fd)
        self.diff_fd = os.open("diff", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.dir_fd)
        self._first = self._looks()

    def _looks(self) -> tuple[int, ...]:
        status = os.fstat(self.diff_fd)
        return status.st_mode, status.st_uid, status.st_gid

    def names(self) -> list[str]:
        """What is in it now, remembered until it is emptied."""
        self._names = os.listdir(self.dir_fd)
        return self._names

    def emptied(self) -> Layer:
        """Itself, with nothing in it but ``diff/``, which has nothing in it either and looks as when it was made."""
        for name in self._names if self._names is not None else self.names():
            if name == "kept":
                remove(name, self.dir_fd)
            elif name != "diff":
                os.unlink(name, dir_fd=self.dir_fd)
        if os.listdir(self.diff_fd) or self._looks() != self._first or os.listxattr(self.diff_fd):
            os.fchmod(self.diff_fd, 0o700)   # it may have got any mode
            os.close(self.diff_fd)
            remove("diff", self.dir_fd)
            self._make_diff()
        self._names = None
        return self


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
