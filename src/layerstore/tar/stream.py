"""The bytes of a tar stream: taken, skipped or read as data, chunk by chunk, without seeking. Knows no headers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from layerstore.errors import ArchiveError
from layerstore.tar.header import BLOCK, ZERO_BLOCK

__all__ = ["Stream"]


class Stream:
    """A cursor over *chunks*. *raw* is told of every byte, in order, but of the data that was read.

    ``left`` bytes of the current entry's data are not read yet, ``padding`` bytes follow them.
    """

    def __init__(self, chunks: Iterable[bytes], raw: Callable[[bytes], None]) -> None:
        self._raw = raw
        self._chunks = iter(chunks)
        self._buffer = b""
        self._view = memoryview(b"")
        self._at = 0                     # position in the buffer
        self._base = 0                   # offset of the buffer in the stream
        self.left = 0
        self.padding = 0

    @property
    def offset(self) -> int:
        """Bytes of the stream consumed so far."""
        return self._base + self._at

    def _refill(self) -> bool:
        """Replace a used-up buffer by the next chunk; False at the end of the stream."""
        self._base += len(self._buffer)
        self._at -= len(self._buffer)
        for chunk in self._chunks:
            if chunk:
                self._buffer, self._view = chunk, memoryview(chunk)
                return True
        self._buffer, self._view = b"", memoryview(b"")
        return False

    def at_end(self) -> bool:
        return self._at >= len(self._buffer) and not self._refill()

    def take(self, size: int, what: str) -> bytes:
        """Exactly *size* bytes, contiguous. Only for what is bounded by the caller."""
        end = self._at + size
        if end <= len(self._buffer):
            data = self._buffer[self._at : end]
            self._at = end
            self._raw(data)
            return data
        parts = []
        while size:
            if self.at_end():
                raise ArchiveError(f"the archive ends inside {what}", offset=self.offset)
            part = self._buffer[self._at : self._at + size]
            self._at += len(part)
            size -= len(part)
            parts.append(part)
            self._raw(part)
        return b"".join(parts)

    def whole(self) -> memoryview | None:
        """All data of the current entry if it lies in one chunk and was not begun, else None. Costs no copy."""
        end = self._at + self.left
        if end > len(self._buffer):
            return None
        view = self._view[self._at : end]
        self._at, self.left = end, 0
        return view

    def data(self, of: str) -> Iterator[memoryview]:
        """The data of the current entry, piece by piece."""
        while self.left:
            if self.at_end():
                raise ArchiveError(f"the archive ends inside {of}", offset=self.offset)
            piece = self._view[self._at : self._at + self.left]
            self._at += len(piece)
            self.left -= len(piece)
            yield piece

    def skip_data(self) -> None:
        """Go to what follows the current entry's data, read or not, and its padding."""
        left = self.left + self.padding
        self.left = self.padding = 0
        while left:
            step = min(left, len(self._buffer) - self._at)
            self._raw(self._buffer[self._at : self._at + step])
            self._at += step
            left -= step
            if left and not self._refill():
                raise ArchiveError("the archive ends inside an entry's data or padding", offset=self.offset)

    def finish(self, *, blocks: int, require_end: bool) -> None:
        """Consume what follows *blocks* zero blocks. Only zeros may."""
        if blocks == 1 and not self.at_end():
            if self.take(BLOCK, "its end marker") != ZERO_BLOCK:
                raise ArchiveError("data after a lone zero block", offset=self.offset - BLOCK)
            blocks = 2
        if blocks < 2 and require_end:
            raise ArchiveError("the archive has no end marker: it may be truncated", offset=self.offset)
        while not self.at_end():
            rest = self._buffer[self._at :]
            if rest.count(0) != len(rest):
                junk = self.offset + len(rest) - len(rest.lstrip(b"\0"))
                raise ArchiveError("trailing junk after the archive's end marker", offset=junk)
            self._raw(rest)
            self._at = len(self._buffer)
