"""Maps of sparse files: what of them is data, in the old GNU header, its extensions, and PAX 1.0's lines. No I/O.

*take* gives the next bytes of the stream. Source: GNU tar manual, "Storing Sparse Files" and "Old GNU Format".
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from layerstore.errors import ArchiveError, LimitExceededError
from layerstore.formats.tar import pax
from layerstore.formats.tar.header import BLOCK, number

__all__ = ["Segments", "checked", "in_data", "old_gnu"]

Segments = tuple[tuple[int, int], ...]
Take = Callable[[int, str], bytes]

_SLOT = struct.Struct("12s12s")


def old_gnu(header: bytes, take: Take, offset: int, maximum: int) -> Segments:
    """The segments of a type-S header and of the extension blocks after it, at most *maximum* bytes of them."""
    found: list[tuple[int, int]] = []
    block, start, slots, more = header, 386, 4, header[482]
    taken = 0
    ended = False                        # readers end at the first slot that is not used
    while True:
        for i in range(slots):
            raw_at, raw_length = _SLOT.unpack_from(block, start + i * 24)
            if raw_at[0] and raw_length[0] and not ended:
                at = number(raw_at, "sparse offset", offset)
                found.append((at, number(raw_length, "sparse size", offset)))
            elif raw_at[0] or raw_length[0]:
                raise ArchiveError("a sparse map with a gap", offset=offset)
            else:
                ended = True
        if not more:
            return tuple(found)
        if ended:
            raise ArchiveError("a sparse map that goes on after its end", offset=offset)
        taken += BLOCK
        if taken > maximum:
            raise _too_long(offset, maximum)
        block = take(BLOCK, "a sparse map")
        start, slots, more = 0, 21, block[504]


def in_data(take: Take, left: int, offset: int, maximum: int) -> tuple[Segments, int]:
    """The segments of a PAX 1.0 file, decimal lines before its data; and how many of its *left* bytes they took."""
    text = bytearray()
    lines, wanted = 0, -1                # the first line says how many follow
    while wanted < 0 or lines < wanted:
        if left - len(text) < BLOCK:
            raise ArchiveError("a sparse map that does not end", offset=offset)
        if len(text) + BLOCK > maximum:
            raise _too_long(offset, maximum)
        block = take(BLOCK, "a sparse map")
        text += block
        lines += block.count(b"\n")
        if wanted < 0 and lines:
            wanted = 1 + 2 * pax.decimal(bytes(text.partition(b"\n")[0]), "sparse count", offset)
    numbers = [pax.decimal(line, "sparse map", offset) for line in bytes(text).split(b"\n")[1:wanted]]
    return tuple(zip(numbers[::2], numbers[1::2], strict=True)), len(text)


def _too_long(offset: int, maximum: int) -> LimitExceededError:
    return LimitExceededError(f"the sparse map at offset {offset} is too long", limit="max_pax_record", maximum=maximum)


def checked(segments: Segments, size: int, stored: int, offset: int) -> Segments:
    """*segments* without empty ones, if they are in order, within *size* and *stored* bytes together."""
    end = total = 0
    for at, length in segments:
        if at < end or at + length > size:
            raise ArchiveError(f"a sparse map out of order or beyond {size} bytes: {at}+{length}", offset=offset)
        end = at + length
        total += length
    if total != stored:
        raise ArchiveError(f"a sparse map of {total} bytes with {stored} bytes of data", offset=offset)
    return tuple((at, length) for at, length in segments if length)
