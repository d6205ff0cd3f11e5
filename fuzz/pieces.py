"""An input in pieces: always the same ones, few enough that their number costs nothing, with seams anywhere."""

from __future__ import annotations

import zlib

_MOST = 16                               # pieces


def in_pieces(data: bytes, longest: int = 509) -> list[bytes]:
    """*data* in at most 16 pieces of equal length, which is 1 to *longest* bytes unless that would make more."""
    step = max(1 + zlib.crc32(data) % longest, -(-len(data) // _MOST))
    return [data[at : at + step] for at in range(0, len(data), step)]


def one_of(data: bytes, count: int) -> bool:
    """Whether what is dear is done for this input: it is for one of *count*, and always for the same ones."""
    return zlib.crc32(data) % count == 0
