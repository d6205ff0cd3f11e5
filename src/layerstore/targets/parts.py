"""Files that are at their name only when they are whole and on disk, however many processes write files of that name.

Here are the names, locks and order of that only; what is in the files is their writers'.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from layerstore.system import faults
from layerstore.system.descriptors import Descriptor

__all__ = ["Part", "is_part", "replacing", "sweep", "write_document"]

_PART = re.compile(r"\.[0-9a-f]{16}\.part\Z")


class Part:
    """A file that nobody else writes, beside the place that it is for: write ``file``, then ``put`` it there.

    A context manager; left without ``put`` the file is removed. Who writes one has its lock: one that nobody has the lock
    of was left by a crash, and ``sweep`` removes it.
    """

    file: BinaryIO

    def __init__(self, path: str, *, point: str) -> None:
        self._path, self._point, self._name = path, point, ""

    def put(self, path: str | None = None) -> None:
        """Show it, once it is on disk, in place of what is there: as *path*, beside it, or (None) where it is for."""
        path = self._path if path is None else path
        self.file.flush()
        with faults.point(f"{self._point}.sync"):
            os.fsync(self.file.fileno())
        with faults.point(f"{self._point}.rename"):
            os.replace(self._name, path)   # while it is locked
        self._name = ""
        _sync_parent(path, point=self._point)

    def __enter__(self) -> Part:
        try:
            while True:
                self._name = f"{self._path}.{os.urandom(8).hex()}.part"
                try:
                    self.file = open(self._name, "xb")   # closed in ``__exit__``
                except FileExistsError:
                    continue
                if _locked(self.file.fileno(), fcntl.LOCK_EX) is not False and os.fstat(self.file.fileno()).st_nlink:
                    return self
                self.file.close()   # whoever sweeps was here before it had its lock
        except BaseException:
            self._remove()
            raise

    def __exit__(self, *_exc: object) -> None:
        try:
            self._remove()
        finally:
            self.file.close()

    def _remove(self) -> None:
        name, self._name = self._name, ""
        if name:
            with suppress(FileNotFoundError):
                os.unlink(name)


@contextmanager
def replacing(path: str, *, point: str) -> Iterator[BinaryIO]:
    """A file to be written, which takes the place of *path* when all is well and on disk (``Part``)."""
    with Part(path, point=point) as part:
        yield part.file
        part.put()


def write_document(path: str, data: bytes, *, point: str) -> None:
    """Put a small file in its place."""
    with replacing(path, point=point) as file:
        file.write(data)


def sweep(directory: str, name: str = "") -> None:
    """Remove what crashes have left of ``Part`` in *directory*, of the file *name* only if one is given."""
    names: list[str] = []
    with suppress(OSError):   # whether it can be written to, writing tells
        names = os.listdir(directory)
    for each in names:
        if not is_part(each, name):
            continue
        path = os.path.join(directory, each)
        with (
            suppress(OSError),   # somebody else's, or gone
            Descriptor(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK) as fd,
        ):
            if _locked(fd, fcntl.LOCK_EX | fcntl.LOCK_NB) and os.path.samestat(os.fstat(fd), os.lstat(path)):
                with faults.point("push.sweep"):
                    os.unlink(path)


def is_part(name: str, of: str = "") -> bool:
    """Whether a file of that name is a ``Part``; of the file *of* only, if one is given."""
    found = _PART.search(name)
    return found is not None and of in ("", name[: found.start()])


def _locked(fd: int, how: int) -> bool | None:
    """Whether the file's lock was had; None where there are no locks."""
    try:
        fcntl.flock(fd, how)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _sync_parent(path: str, *, point: str) -> None:
    fd = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with faults.point(f"{point}.parent.sync"):
            os.fsync(fd)
    finally:
        os.close(fd)
