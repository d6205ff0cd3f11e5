"""Copying one file's content between two descriptors: holes stay holes, and blocks are shared where they can be.

Knows neither names nor attributes. copy_file_range(2) where the kernel and the file systems have it, else read and write.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from layerstore.errors import IoError

__all__ = ["Copier"]

_BUFFER = 1 << 20                        # bytes, where the kernel cannot copy by itself
_NO_KERNEL_COPY = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})


class Copier:
    """Copies files; ``bytes`` counts what was copied. *progress* is told of each piece, of at most *piece* bytes."""

    def __init__(self, progress: Callable[[int], None], piece: int) -> None:
        self._progress, self._piece = progress, piece
        self._kernel_copies = True
        self.bytes = 0

    def copy(self, src: int, dst: int, found: os.stat_result, what: bytes) -> None:
        """Fill the empty file *dst* with the content of *src*, whose status is *found*; *what* is its name, for errors.

        IoError if it ends early. Durability: none.
        """
        size = found.st_size
        if found.st_blocks * 512 >= size:
            self._segment(src, dst, 0, size, what)
            return
        at = 0
        while at < size:
            try:
                start = os.lseek(src, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # a hole up to the end
                    break
                if error.errno != errno.EINVAL:
                    raise
                self._segment(src, dst, at, size, what)  # a file system that does not tell
                return
            at = os.lseek(src, start, os.SEEK_HOLE)
            self._segment(src, dst, start, min(at, size), what)
        os.ftruncate(dst, size)

    def _segment(self, src: int, dst: int, start: int, end: int, what: bytes) -> None:
        """Copy the bytes from *start* to *end*."""
        while start < end:
            count = self._some(src, dst, start, min(end - start, self._piece))
            if not count:
                raise IoError(f"the layer's file {os.fsdecode(what)!r} became shorter while it was read")
            start += count
            self.bytes += count
            self._progress(count)

    def _some(self, src: int, dst: int, offset: int, count: int) -> int:
        if self._kernel_copies:
            try:
                copied = os.copy_file_range(src, dst, count, offset, offset)
            except OSError as error:
                if error.errno not in _NO_KERNEL_COPY:
                    raise
                self._kernel_copies = False  # other file systems, an old kernel: it will not be otherwise
            else:
                if copied:               # some kernels say 0 where they cannot: let read(2) decide
                    return copied
        data = os.pread(src, min(count, _BUFFER), offset)
        view = memoryview(data)
        while view:
            written = os.pwrite(dst, view, offset)
            view, offset = view[written:], offset + written
        return len(data)
