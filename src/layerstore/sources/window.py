"""Streams over a part of a file, each independent of the others: what a layer is read through. Nothing else.

A window reads with preadv at its own position, so any number of them may run in parallel over one archive.
"""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, BinaryIO, cast

from layerstore.errors import SourceError
from layerstore.system.descriptors import Descriptor

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["open_window", "reopen"]

_BUFFER = 128 << 10   # small reads are gathered; larger ones go straight into the reader's own memory


class _Window(io.RawIOBase):
    def __init__(self, file: Descriptor, offset: int, size: int, label: str) -> None:
        self._file, self._offset, self._size, self._label = file, offset, size, label
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = min(max(start + offset, 0), self._size)
        return self._position

    def fileno(self) -> int:
        raise io.UnsupportedOperation("a window is not the whole of its file")

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        if self._file.fd < 0:
            raise ValueError("read of a closed stream")
        view = memoryview(buffer).cast("B")[: self._size - self._position]
        if not view:
            return 0
        try:
            count = os.preadv(self._file.fd, [view], self._offset + self._position)
        except OSError as error:
            what = f"cannot read {self._label} at byte {self._position}: {error.strerror}"
            raise SourceError(what) from error
        if count == 0:   # an end of file here must never look like the end of a shorter layer
            raise SourceError(
                f"{self._label} shrank while it was read: {self._size} bytes became {self._position}"
            )
        self._position += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def open_window(file: Descriptor, offset: int, size: int, label: str) -> BinaryIO:
    """Return a stream of *size* bytes of *file* from *offset* (both in bytes); it owns *file* and closes it.

    ``read(n)`` gives n bytes unless the window ends, never fewer for another reason. *label* names what is
    read in messages. Raises SourceError when the file cannot be read or turns out to be shorter than the
    window.
    """
    window = _Window(file, offset, size, label)
    # as it is made a BufferedReader asks for the position, and drops whatever that raises: an interrupt, too, if it is
    # Python that answers
    window.__dict__["tell"] = int
    stream = io.BufferedReader(window, _BUFFER)
    del window.__dict__["tell"]
    return cast("BinaryIO", stream)


def reopen(fd: int) -> Descriptor:
    """Return a descriptor of the same file with its own read-ahead, or (without /proc) a duplicate.

    Streams that share one open file description would make the kernel see random access (posix_fadvise(2)).
    """
    try:
        return Descriptor(f"/proc/self/fd/{fd}", os.O_RDONLY)
    except OSError:
        return Descriptor.duplicate(fd)
