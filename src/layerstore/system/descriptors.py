"""Open descriptors that have an owner from the first moment, so that an interrupt at any line leaks none.

An ``os.open`` whose result is a mere number is lost if KeyboardInterrupt or MemoryError comes between it and the
``try`` that would close it, or in the ``finally`` itself. Nothing belongs here but opening and closing,
and the two ways of opening that everything uses: a directory, and a file that is not there yet; neither follows links.
"""

from __future__ import annotations

import os
from typing import Self

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Descriptor:
    """A descriptor that is closed when it is left, closed or forgotten. As a context manager it gives the number."""

    fd = -1

    def __init__(
        self, name: str | bytes | os.PathLike[str], flags: int, mode: int = 0o600, *, dir_fd: int | None = None,
    ) -> None:
        self.fd = os.open(name, flags | os.O_CLOEXEC, mode, dir_fd=dir_fd)

    @classmethod
    def duplicate(cls, fd: int) -> Self:
        """Another one of the same open file description."""
        made = cls.__new__(cls)
        made.fd = os.dup(fd)
        return made

    def close(self) -> None:
        """Close it, once."""
        if self.fd >= 0:
            # on one line: Python looks for signals after calls, and here no call comes between
            fd, self.fd = self.fd, -1; os.close(fd)  # noqa: E702

    def release(self) -> int:
        """Give the number away, to an owner that closes it."""
        fd, self.fd = self.fd, -1
        return fd

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


__all__ = ["DIRECTORY", "NEW_FILE", "Descriptor"]
