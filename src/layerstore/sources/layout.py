"""The files of an OCI layout directory.

Symbolic links below the directory are refused, wherever they lead: every blob is checked by its digest, but
following a link would let an image from elsewhere open any file or device of this machine. (The path of the
directory itself is the user's own word and may pass through links.) FIFOs and devices are refused without
waiting for them.
"""

from __future__ import annotations

import os
import stat

from layerstore.errors import SourceError
from layerstore.sources.files import Opened, closed
from layerstore.sources.window import open_window
from layerstore.system.descriptors import Descriptor

__all__ = ["Layout"]

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW


class Layout:
    """A layout directory, held open: it may be renamed. Implements ``Files``; safe to use from threads."""

    def __init__(self, path: str) -> None:
        self.label = path
        try:
            self._dir: Descriptor | None = Descriptor(path, os.O_RDONLY | os.O_DIRECTORY)
        except NotADirectoryError as error:
            raise SourceError(
                f"{path} is not a directory", hint="for one file write oci-archive: or docker-archive:"
            ) from error
        except OSError as error:
            raise SourceError(f"cannot open the image directory {path}: {error.strerror}") from error

    def open(self, name: str) -> Opened | None:
        """As in ``Files``."""
        root = self._dir   # kept open by this reference, should another thread close the layout meanwhile
        if root is None:
            raise closed(self.label)
        try:
            file = self._walk(root, name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SourceError(f"cannot open {name} in {self.label}: {error.strerror}") from error
        status = os.fstat(file.fd)
        if not stat.S_ISREG(status.st_mode):
            raise SourceError(f"{name} in {self.label} is not a regular file")
        return Opened(open_window(file, 0, status.st_size, f"{name} in {self.label}"), status.st_size)

    def close(self) -> None:
        """As in ``Files``."""
        self._dir = None   # closed with the last reference: never while another thread opens something in it

    def _walk(self, at: Descriptor, name: str) -> Descriptor:
        *parents, last = name.split("/")
        for part in parents:
            at = self._step(part, os.O_DIRECTORY, at.fd)
        return self._step(last, os.O_NONBLOCK | os.O_NOCTTY, at.fd)

    def _step(self, name: str, flags: int, at: int) -> Descriptor:
        try:
            return Descriptor(name, _FLAGS | flags, dir_fd=at)
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
