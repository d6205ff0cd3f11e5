"""Parts of a blob, decompressed one after another: each whole frames or members, read as its reader wants it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import zstandard

from layerstore.errors import CompressionError
from layerstore.formats.compression import decompressed
from layerstore.formats.compression.decoders import ZSTD_WINDOW
from layerstore.model import Limits

__all__ = ["Units"]

_UNLIMITED = Limits(max_bytes=1 << 62, max_ratio=1 << 62)


class Units:
    """Decompresses parts of a blob, each whole frames or members of the *codec* (zstd or gzip), one after another.

    For zstd this is laxer than ``decompressed`` about how a part ends: who uses it knows how many bytes shall come.
    """

    def __init__(self, codec: str) -> None:
        self._context = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW) if codec == "zstd" else None

    def reader(self, pieces: Iterable[bytes]) -> Callable[[int], bytes]:
        """``read(n)`` of what *pieces* decompress to: *n* bytes, fewer at the end. The last reader ends with this call.

        What it reads raises CompressionError. It holds some pieces of output, and for zstd a window, at most.
        """
        if self._context is None:
            return _Source(decompressed(pieces, limits=_UNLIMITED, compression="gzip")).read_all
        reader = self._context.stream_reader(_Source(pieces), read_across_frames=True)   # type: ignore[arg-type]

        def read(size: int) -> bytes:
            try:
                return reader.read(size)
            except zstandard.ZstdError as error:
                raise CompressionError(f"a part of the zstd stream is corrupt: {error}") from error

        return read


class _Source:
    """Pieces as a file that can be read."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = b""

    def read(self, size: int) -> bytes:
        """Some of the next bytes, at most *size*."""
        piece = self._rest or next(self._pieces, b"")
        self._rest = piece[size:]
        return piece[:size]

    def read_all(self, size: int) -> bytes:
        """The next *size* bytes, fewer at the end."""
        parts = []
        while size and (part := self.read(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)
