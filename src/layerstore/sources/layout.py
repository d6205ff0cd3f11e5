"""The files of an OCI layout directory.

Symbolic links below the directory are refused, wherever they lead: every blob is checked by its digest, but
following a link would let an image from elsewhere open any file or device of this machine. (The path of the
directory itself is the user's own word and may pass through links.) FIFOs and devices are refused without
waiting for them.
"""

from __future__ import annotations

import os
import stat
import threading

from layerstore.errors import SourceError
from layerstore.sources.files import Opened, closed
from layerstore.sources.window import open_window

__all__ = ["Layout"]

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW


class Layout:
    """A layout directory, held open: it may be renamed. Implements ``Files``; safe to use from threads."""

    def __init__(self, path: str) -> None:
        self.label = path
        self._lock = threading.Lock()   # a descriptor closed by one thread must not be reused under another
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        except NotADirectoryError as error:
            raise SourceError(
                f"{path} is not a directory", hint="for one file write oci-archive: or docker-archive:"
            ) from error
        except OSError as error:
            raise SourceError(f"cannot open the image directory {path}: {error.strerror}") from error

    def open(self, name: str) -> Opened | None:
        """As in ``Files``."""
        with self._lock:
            if self._fd < 0:
                raise closed(self.label)
            try:
                fd = self._walk(name)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise SourceError(f"cannot open {name} in {self.label}: {error.strerror}") from error
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise SourceError(f"{name} in {self.label} is not a regular file")
        return Opened(open_window(fd, 0, status.st_size, f"{name} in {self.label}"), status.st_size)

    def close(self) -> None:
        """As in ``Files``."""
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _walk(self, name: str) -> int:
        *parents, last = name.split("/")
        at = self._fd
        try:
            for part in parents:
                below = self._step(part, os.O_DIRECTORY, at)
                if at != self._fd:
                    os.close(at)
                at = below
            return self._step(last, os.O_NONBLOCK | os.O_NOCTTY, at)
        finally:
            if at != self._fd:
                os.close(at)

    def _step(self, name: str, flags: int, at: int) -> int:
        try:
            return os.open(name, _FLAGS | flags, dir_fd=at)
        except OSError:
            if self._is_link(name, at):
                raise SourceError(
                    f"{name} in {self.label} is a symbolic link, which is not followed",
                    hint="copy the image with its links resolved: cp -rL",
                ) from None
            raise

    @staticmethod
    def _is_link(name: str, at: int) -> bool:
        try:
            return stat.S_ISLNK(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode)
        except OSError:
            return False
