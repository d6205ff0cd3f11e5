"""Plain files' headers, known by those before them: most differ from one that was read only in name, size and checksum.

Kept are answers that the strict reader gave: what a field meant, and that the rest of a block makes a plain file of it.
Nothing is decided here: whatever was not seen before, or is written in any other way, is the strict reader's.
"""

from __future__ import annotations

import re
import struct
from zlib import adler32

from layerstore.formats.tar.header import BLOCK, prefix_of

__all__ = ["PlainHeaders"]

_FIELDS = struct.Struct("100s24s12s12s8s356s")   # name; mode, uid, gid; size; mtime; checksum; the rest
_SUMMED = 148                            # bytes before the checksum: few enough for adler32 to be a sum
_SIZE = re.compile(rb"[0-7]{11}[ \0]")   # as in ``header``: digits to the full width
_MOST = 1_024                            # answers of one kind that are kept


class PlainHeaders:
    """Answers that were given, by the bytes that they were given to."""

    __slots__ = ("_owners", "_rests", "_times")

    def __init__(self) -> None:
        self._owners: dict[bytes, tuple[int, int, int]] = {}
        self._times: dict[bytes, int] = {}
        self._rests: dict[bytes, tuple[int, bytes]] = {}   # what it adds to the checksum, and the prefix of the name

    def learn(self, block: bytes, mode: int, uid: int, gid: int, mtime_ns: int) -> None:
        """*block* is a plain file's, with no word of it overruled, and these are what its fields say."""
        _, owner, _, mtime, _, rest = _FIELDS.unpack(block)
        if max(len(self._owners), len(self._times), len(self._rests)) >= _MOST:
            self._owners, self._times, self._rests = {}, {}, {}
        self._owners[owner] = (mode, uid, gid)
        self._times[mtime] = mtime_ns
        # adler32 begins with 1; the checksum's own eight bytes count as spaces
        self._rests[rest] = (sum(rest) + 8 * 32 - 1, prefix_of(block))

    def read(self, buffer: bytes, at: int) -> tuple[bytes, tuple[int, int, int], int, int] | None:
        """Name, (mode, uid, gid), size and time of the header at *at*; None: it is for the strict reader."""
        if at + BLOCK > len(buffer):
            return None
        name, owner, size, mtime, checksum, rest = _FIELDS.unpack_from(buffer, at)
        known, owned, mtime_ns = self._rests.get(rest), self._owners.get(owner), self._times.get(mtime)
        if known is None or owned is None or mtime_ns is None or _SIZE.match(size) is None:
            return None
        total, prefix = known
        if checksum != b"%06o\0 " % ((adler32(buffer[at : at + _SUMMED]) & 0xFFFF) + total):
            return None
        return prefix + name.partition(b"\0")[0], owned, int(size[:11], 8), mtime_ns
