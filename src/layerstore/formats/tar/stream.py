"""The bytes of a tar stream: taken, skipped or read as data, chunk by chunk, without seeking. Knows no headers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from layerstore.errors import ArchiveError
from layerstore.formats.tar.header import BLOCK, ZERO_BLOCK

__all__ = ["Stream"]


class Stream:
    """A cursor over *chunks*. *raw* is told of every byte, in order, but of the data that was read.

    It is told late, so that what follows one another is one piece: when ``tell`` is called, and when a chunk is used up.
    ``left`` bytes of the current entry's data are not read yet, ``padding`` bytes follow them.
    """

    __slots__ = ("_base", "_chunks", "_raw", "_told", "_view", "at", "buffer", "left", "padding")

    def __init__(self, chunks: Iterable[bytes], raw: Callable[[bytes], None]) -> None:
        self._raw = raw
        self._chunks = iter(chunks)
        self.buffer = b""                # the current chunk
        self._view = memoryview(b"")
        self.at = 0                      # position in it
        self._told = 0                   # up to where of it *raw* was told, or data was read
        self._base = 0                   # offset of the chunk in the stream
        self.left = 0
        self.padding = 0

    @property
    def offset(self) -> int:
        """Bytes of the stream consumed so far."""
        return self._base + self.at

    def _refill(self) -> bool:
        """Replace a used-up buffer by the next chunk; False at the end of the stream."""
        self.tell()
        self._base += len(self.buffer)
        self.at = self._told = 0
        for chunk in self._chunks:
            if chunk:
                self.buffer, self._view = chunk, memoryview(chunk)
                return True
        self.buffer, self._view = b"", memoryview(b"")
        return False

    def tell(self) -> None:
        """Tell *raw* of all bytes up to here."""
        if self._told < self.at:
            self._raw(self.buffer[self._told : self.at])
            self._told = self.at

    def at_end(self) -> bool:
        return self.at >= len(self.buffer) and not self._refill()

    def take(self, size: int, what: str) -> bytes:
        """Exactly *size* bytes, contiguous. Only for what is bounded by the caller."""
        end = self.at + size
        if end <= len(self.buffer):
            data = self.buffer[self.at : end]
            self.at = end
            return data
        parts = []
        while size:
            if self.at_end():
                raise ArchiveError(f"the archive ends inside {what}", offset=self.offset)
            part = self.buffer[self.at : self.at + size]
            self.at += len(part)
            size -= len(part)
            parts.append(part)
        return b"".join(parts)

    def whole(self) -> memoryview | None:
        """All data of the current entry if it lies in one chunk and was not begun, else None. Costs no copy."""
        end = self.at + self.left
        if end > len(self.buffer):
            return None
        if self._told < self.at:
            self.tell()
        view = self._view[self.at : end]
        self.at = self._told = end
        self.left = 0
        return view

    def leave_out(self) -> int | None:
        """The current entry's data is not in the stream. How much it is; None, if it is some and the chunk goes on here."""
        left, self.left = self.left, 0
        return left if not left or self.at == len(self.buffer) else None

    def data(self, of: str) -> Iterator[memoryview]:
        """The data of the current entry, piece by piece."""
        while self.left:
            if self.at_end():
                raise ArchiveError(f"the archive ends inside {of}", offset=self.offset)
            self.tell()
            piece = self._view[self.at : self.at + self.left]
            self.at += len(piece)
            self._told = self.at
            self.left -= len(piece)
            yield piece

    def skip_data(self) -> None:
        """Go to what follows the current entry's data, read or not, and its padding."""
        left = self.left + self.padding
        self.left = self.padding = 0
        if self.at + left <= len(self.buffer):   # as nearly always
            self.at += left
            return
        while left:
            step = min(left, len(self.buffer) - self.at)
            self.at += step
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
            rest = self.buffer[self.at :]
            if rest.count(0) != len(rest):
                junk = self.offset + len(rest) - len(rest.lstrip(b"\0"))
                raise ArchiveError("trailing junk after the archive's end marker", offset=junk)
            self.at = len(self.buffer)
        self.tell()
