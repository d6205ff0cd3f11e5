"""Compressing our own files: zstd alone, in one frame or in a row of them. Reading them is the package's other half."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import zstandard

__all__ = ["ZstdFrames", "ZstdWriter"]

_PIECE = 1 << 20                        # bytes that a frame which says its size has at most


class ZstdWriter:
    """Compress what is written and hand it to *sink*, bytes by bytes. One frame, with a content checksum.

    Durability: none here; the sink's owner syncs.
    """

    def __init__(self, sink: Callable[[bytes], object], *, level: int = 3) -> None:
        compressor = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=False)
        self._frame = compressor.compressobj()
        self._sink = sink

    def write(self, data: bytes) -> None:
        output = self._frame.compress(data)
        if output:
            self._sink(output)

    def close(self) -> None:
        """End the frame. Nothing may be written after it."""
        self._sink(self._frame.flush())


class ZstdFrames:
    """Compress into a row of frames, each ended by ``end``, and hand them to *sink*. ``size``: bytes handed on.

    What comes out depends on what goes in, not on its pieces. A frame of up to 1 MiB says its size; of a larger one so
    much is held. Durability: none here; the sink's owner syncs.
    """

    def __init__(self, sink: Callable[[bytes], object], *, level: int = 3) -> None:
        self._sink = sink
        self._context = zstandard.ZstdCompressor(level=level)
        self._unsized = zstandard.ZstdCompressor(level=level, write_content_size=False)
        self._frame: Any = None          # of a large one, begun
        self._pending: list[bytes] = []
        self._held = self.size = 0

    def write(self, data: bytes) -> None:
        if not data:
            return
        self._pending.append(data)
        self._held += len(data)
        if self._held > _PIECE:
            held = b"".join(self._pending)
            self._frame = self._frame or self._unsized.compressobj()
            whole = len(held) - (len(held) % _PIECE or _PIECE)
            for start in range(0, whole, _PIECE):
                self._put(self._frame.compress(held[start : start + _PIECE]))
            self._pending, self._held = [held[whole:]], len(held) - whole

    def end(self) -> int:
        """End the frame, if one was begun; the place of what is written next."""
        held = b"".join(self._pending)
        self._pending, self._held = [], 0
        if self._frame is not None:
            self._put(self._frame.compress(held))
            self._put(self._frame.flush())
            self._frame = None
        elif held:
            self._put(self._context.compress(held))
        return self.size

    def _put(self, data: bytes) -> None:
        if data:
            self.size += len(data)
            self._sink(data)
