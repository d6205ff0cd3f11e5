"""The checksums in a tar's headers, set right: else nearly every change of a header ends at its sum, and nothing behind it
is ever reached. Not a reader of tars: where the next header is, is guessed.
"""

from __future__ import annotations

import re
import zlib

_BLOCK = 512
_OCTAL = re.compile(rb"[0-7]{1,11}")
_ZEROS = bytes(_BLOCK)


def with_right_sums(data: bytes) -> bytes:
    """*data*, for seven inputs of eight with right sums in what look like headers; always the same for the same bytes."""
    if zlib.crc32(data) % 8 == 0 or len(data) < _BLOCK:
        return data
    out, at = bytearray(data), 0
    while at + _BLOCK <= len(out):
        block = out[at : at + _BLOCK]
        if block == _ZEROS:
            break
        block[148:156] = b"        "
        # adler32's low half is 1 + the sum of the bytes while that is below 65521: of 256 bytes it always is
        total = (zlib.adler32(block[:256]) & 0xFFFF) + (zlib.adler32(block[256:]) & 0xFFFF) - 2
        out[at + 148 : at + 156] = b"%06o\0 " % total
        size = _OCTAL.match(block, 124)
        at += _BLOCK + (-(-int(size[0], 8) // _BLOCK) * _BLOCK if size is not None else 0)
    return bytes(out)
