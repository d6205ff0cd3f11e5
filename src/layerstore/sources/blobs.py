"""A layer's blob that lies on this machine, in a layout or an archive: read from any place, as ``partial`` wants it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from layerstore.errors import SourceError

__all__ = ["LocalBlob"]

_PIECE = 1 << 20


class LocalBlob:
    """Implements ``BlobSource``.

    Args:
        opener: gives a fresh stream of the whole, which can be told to ``seek``.
        size: of the whole, in bytes.
        label: what it is called in messages.

    Durability: reads only.

    """

    remote = False

    def __init__(self, opener: Callable[[], BinaryIO], size: int, label: str) -> None:
        self._opener, self.size, self.label = opener, size, label

    def open(self, offset: int = 0) -> BinaryIO:
        """As in ``BlobSource``."""
        stream = self._opener()
        if offset:
            stream.seek(offset)
        return stream

    def ranges(self, wanted: Sequence[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
        """As in ``BlobSource``."""
        with self.open() as stream:
            for start, length in wanted:
                stream.seek(start)
                for at in range(start, start + length, _PIECE):
                    size = min(_PIECE, start + length - at)
                    piece = stream.read(size)
                    if len(piece) != size:
                        raise SourceError(f"{self.label} ends {size - len(piece)} bytes early, at {at + len(piece)}")
                    yield at, piece
