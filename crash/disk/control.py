"""Start the disk, talk to it, end it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from crash.disk import daemon
from crash.disk.kernel_calls import unmount

_PATIENCE_SECONDS = 120.0


class Served:
    """A disk that is being served: ``path`` is what a loop device stands on."""

    def __init__(self, directory: str) -> None:
        self.path, self.marks = os.path.join(directory, "disk"), os.path.join(directory, "mark")

    def mark(self, line: bytes | str) -> None:
        """Put *line* into the log. Opened each time: nothing is kept open that a forked child could inherit."""
        fd = os.open(self.marks, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, line.encode() if isinstance(line, str) else line)
        finally:
            os.close(fd)

    def fail(self, what: str, nth: int, *, sticky: bool = False) -> None:
        """Answer the *nth* ``write`` or ``flush`` from now on with EIO; *sticky*: and all that follow."""
        self.mark(f"!fail {what} {nth}{' sticky' if sticky else ''}")

    def lie(self) -> None:
        """Acknowledge flushes from now on, and do nothing."""
        self.mark("!lie")

    def heal(self) -> None:
        self.mark("!heal")

    def counts(self) -> dict[str, int]:
        """How many writes and flushes it served, lied about, failed."""
        fd = os.open(self.marks, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return cast("dict[str, int]", json.loads(os.read(fd, 4096)))
        finally:
            os.close(fd)


@contextmanager
def serving(directory: str, log: str, megabytes: int) -> Iterator[Served]:
    """A disk of so many megabytes, mounted at *directory*; its log in the file *log* is whole when this ends."""
    os.makedirs(directory, exist_ok=True)
    command = [sys.executable, "-I", os.path.abspath(daemon.__file__), directory, log, str(megabytes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "ready":
                raise RuntimeError("the disk does not start")
            try:
                yield Served(directory)
            finally:
                unmount(directory)
            if process.wait(_PATIENCE_SECONDS) != 0:
                raise RuntimeError(f"the disk ended with {process.returncode}")
        finally:
            process.kill()   # if it has not ended by itself: the kernel then fails every request to it
