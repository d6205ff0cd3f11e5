"""The data of one member on its way into frames of its own, cut into chunks. Knows no tar, and writes no text."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from typing import Any

from layerstore.chunked.cutting import Piece, cut
from layerstore.formats.compression.writing import ZstdFrames
from layerstore.formats.crc64 import crc64

__all__ = ["Content"]

# a chunk: its place in the blob, its size, its place in the file, its digest, and whether it is zeros
_PACKED = struct.Struct("<QQQ32s?")


class Content:
    """The data of one member on its way into frames of its own."""

    def __init__(self, frames: ZstdFrames) -> None:
        self._frames = frames
        self._whole = hashlib.sha256()
        self._crc = self._room = self.size = self.start = self.end = 0
        self._chunks = bytearray()       # until the file's end, when what is said before them is known

    @property
    def digest(self) -> str:
        return f"sha256:{self._whole.hexdigest()}"

    @property
    def crc(self) -> bytes | None:
        return self._crc.to_bytes(8, "big") if self.size else None

    def take(self, data: Iterable[bytes], room: int) -> bool:
        """Write *data*, cut into fewer than *room* chunks. False if they would be as many: the rest is not cut."""
        self.start = self._frames.end()
        chunk = _Chunk(self.start, 0)
        self._room = room
        for piece in cut(data, self._has_room):
            self._add(piece.data)
            if not self._has_room():
                continue
            chunk.add(piece)
            if piece.ends and chunk.size:
                self._chunks += chunk.packed()
                self._room -= 1
                chunk = _Chunk(self._frames.end(), self.size)
        if self._has_room() and chunk.size:
            self._chunks += chunk.packed()
        self.end = self._frames.end()
        return self._has_room()

    def _has_room(self) -> bool:
        return self._room > 0

    def rows(self) -> Iterator[dict[str, Any]]:
        """What a TOC says of each chunk; nothing, if there is but one."""
        if len(self._chunks) <= _PACKED.size:
            return
        for start, size, at, digest, zeros in _PACKED.iter_unpack(self._chunks):
            yield {"offset": start, "chunkSize": size, "chunkOffset": at, "chunkDigest": f"sha256:{digest.hex()}",
                   "chunkType": "zeros" if zeros else ""}

    def _add(self, data: bytes) -> None:
        self._frames.write(data)
        self._whole.update(data)
        self._crc = crc64(data, self._crc)
        self.size += len(data)


class _Chunk:
    def __init__(self, start: int, at: int) -> None:
        self._start, self._at, self.size = start, at, 0
        self._digest, self._zeros = hashlib.sha256(), False

    def add(self, piece: Piece) -> None:
        self._digest.update(piece.data)
        self.size += len(piece.data)
        self._zeros = piece.zeros

    def packed(self) -> bytes:
        return _PACKED.pack(self._start, self.size, self._at, self._digest.digest(), self._zeros)
