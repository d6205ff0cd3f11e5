"""Where the blocks of a zstd stream end, so that no more of them are decompressed at once than memory is meant for.

A block becomes at most 128 KiB, however few bytes it has; but the decoder, given bytes, gives all that they become. Only
headers are looked at, nothing is judged: what is not understood is handed on in pieces so small that they become little,
and the decoder says what is wrong with it. Pure. Source: RFC 8878, 3.1.1 (frames) and 3.1.1.2 (blocks), 3.1.2 (skippable).

Each header takes 0.6 microseconds: some four minutes for a GiB of blocks of nothing, of three bytes each, which no limit
forbids (SECURITY.md says so).
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["FIRST", "header_size", "in_pieces"]

FIRST = 5                                # bytes of a frame's beginning that say how long its header is

_MOST = 8                                # headers in a piece: so it becomes little more than 1 MiB
_UNKNOWN = 512                           # bytes of a piece that is not understood: 16 MiB at most
_MAGIC = 0xFD2FB528
_SKIPPABLE = 0x184D2A5                   # and four bits more
_DICTIONARY = (0, 1, 2, 4)               # bytes of the field by its flag
_SIZE = (0, 2, 4, 8)
_RAW, _RLE, _COMPRESSED = 0, 1, 2


class _Walk:
    """Goes from header to header, over what lies between."""

    def __init__(self) -> None:
        self._next, self._want = self._begin, 4
        self._held = b""                 # the beginning of a header that goes on in the next chunk
        self._tail = 0                   # bytes of a checksum after this frame's last block
        self.skip = 0                    # bytes to the next header

    def header(self, data: bytes, at: int) -> int | None:
        """Take the header at *at*, or what there is of it; where it ends. None if it is none."""
        end = at + self._want - len(self._held)
        self._held += data[at:end]
        if len(self._held) < self._want:
            return len(data)
        header, self._held = self._held, b""
        return end if self._next(header) else None

    def _then(self, step: object, want: int, skip: int = 0) -> bool:
        self._next, self._want, self.skip = step, want, skip   # type: ignore[assignment]
        return True

    def _begin(self, header: bytes) -> bool:
        magic = int.from_bytes(header, "little")
        if magic >> 4 == _SKIPPABLE:
            return self._then(self._skippable, 4)
        return magic == _MAGIC and self._then(self._frame, 1)

    def _skippable(self, header: bytes) -> bool:
        return self._then(self._begin, 4, int.from_bytes(header, "little"))

    def _frame(self, header: bytes) -> bool:
        self._tail = 4 if header[0] & 4 else 0
        return self._then(self._block, 3, _after_flags(header[0]))

    def _block(self, header: bytes) -> bool:
        value = int.from_bytes(header, "little")
        kind, stored = value >> 1 & 3, value >> 3
        if kind == _RLE:
            stored = 1
        elif kind not in (_RAW, _COMPRESSED):
            return False
        if value & 1:
            return self._then(self._begin, 4, stored + self._tail)
        return self._then(self._block, 3, stored)


def _after_flags(flags: int) -> int:
    single = flags >> 5 & 1
    return (1 - single) + _DICTIONARY[flags & 3] + (_SIZE[flags >> 6] or single)


def header_size(first: bytes) -> tuple[int, int, int]:
    """Bytes of the header of the frame whose ``FIRST`` bytes are given; and where in it the number of a dictionary lies.

    Of what is no frame: no more than is given, and no dictionary.
    """
    magic = int.from_bytes(first[:4], "little")
    if magic >> 4 == _SKIPPABLE:
        return 8, 0, 0
    if magic != _MAGIC:
        return FIRST, 0, 0
    start = FIRST + 1 - (first[4] >> 5 & 1)
    return FIRST + _after_flags(first[4]), start, start + _DICTIONARY[first[4] & 3]


def in_pieces(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces that become little."""
    walk: _Walk | None = _Walk()
    for data in chunks:
        if not data:                     # as a source may give it; it is no end
            continue
        start = at = count = 0
        while walk is not None and at < len(data):
            if walk.skip:
                step = min(walk.skip, len(data) - at)
                walk.skip -= step
                at += step
                continue
            if count == _MOST:
                yield data[start:at]
                start, count = at, 0
            end = walk.header(data, at)
            if end is None:
                walk = None
            else:
                at, count = end, count + 1
        for begin in range(start, len(data), len(data) if walk is not None else _UNKNOWN):
            yield data[begin : len(data) if walk is not None else begin + _UNKNOWN]
