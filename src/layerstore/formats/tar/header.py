"""One header block of a tar: its checksum and its fields. Pure functions over 512 bytes.

Sources: POSIX pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format" (base-256 numbers); star(5).
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple
from zlib import adler32

from layerstore.errors import ArchiveError

__all__ = [
    "BLOCK", "GNU_MAGIC", "HEADER_ONLY", "TIME_END", "TYPES", "ZERO_BLOCK", "Header", "device", "number", "parse",
    "prefix_of", "verify_checksum",
]

BLOCK = 512
ZERO_BLOCK = bytes(BLOCK)
GNU_MAGIC = b"ustar  \0"
TIME_END = 1 << 63                       # nanoseconds that fit what file systems and manifests can hold

TYPES = {
    b"0": "file", b"\0": "file", b"7": "file", b"S": "file", b"1": "hardlink", b"2": "symlink", b"3": "char",
    b"4": "block", b"5": "dir", b"6": "fifo",
}
# no data follows these, whatever their size field says: Go's reader, and so the whole field, has it that way
HEADER_ONLY = frozenset({"hardlink", "symlink", "char", "block", "dir", "fifo"})

_FIELDS = struct.Struct("100s8s8s8s12s12s8sc100s255x")
# mode, uid, gid, size and time as nearly every archive has them: octal digits to the full width, then NUL or space
_PLAIN = re.compile(rb"([0-7]{7})[ \0]([0-7]{7})[ \0]([0-7]{7})[ \0]([0-7]{11})[ \0]([0-7]{11})[ \0]")


class Header(NamedTuple):
    """The fields of a block, as they are in it: extension headers may say otherwise."""

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    flag: bytes
    link: bytes


def verify_checksum(block: bytes, offset: int) -> None:
    """ArchiveError unless the block's sum is the one that it claims."""
    stored = block[148:156]
    # adler32's low half is 1 + the sum of the bytes while that is below 65521: of 256 bytes it always is
    total = (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF) - 2 - sum(stored) + 256
    if stored == b"%06o\0 " % total:     # as nearly every archive has it
        return
    claimed = number(stored, "checksum", offset)
    if claimed == total:
        return
    signed = sum(memoryview(block[:148] + block[156:]).cast("b")) + 256
    if claimed != signed:                # historic tars summed signed bytes
        raise ArchiveError(f"a header's checksum is {claimed} but should be {total}", offset=offset)


def parse(block: bytes, offset: int) -> Header:
    """The fields of *block*, whose checksum is right. ArchiveError for a number that is none."""
    name, mode, uid, gid, size, mtime, _, flag, link = _FIELDS.unpack_from(block)
    if block[345]:
        _check_prefix(block, offset)
    name, link = prefix_of(block) + name.partition(b"\0")[0], link.partition(b"\0")[0]
    plain = _PLAIN.match(block, 100)
    if plain is not None:
        mode, uid, gid, size, mtime = plain.groups()
        return Header(name, int(mode, 8), int(uid, 8), int(gid, 8), int(size, 8), int(mtime, 8), flag, link)
    return Header(
        name, number(mode, "mode", offset), number(uid, "uid", offset), number(gid, "gid", offset),
        number(size, "size", offset), number(mtime, "mtime", offset, signed=True), flag, link,
    )


def prefix_of(block: bytes) -> bytes:
    """What *block* says of the directory that its name is in, with a slash."""
    if not block[345] or block[257:263] != b"ustar\0":
        return b""
    return block[345 : 476 if _is_star(block) else 500].partition(b"\0")[0] + b"/"


def _is_star(block: bytes) -> bool:
    """Whether it keeps times in the last 24 bytes of the prefix."""
    return block[508:512] == b"tar\0"


def _check_prefix(block: bytes, offset: int) -> None:
    """ArchiveError if readers would disagree about whether, or how far, these bytes are the directory of a name."""
    magic = block[257:265]
    if magic == GNU_MAGIC:               # which has times and a sparse map there; Go before 1.8 wrote prefixes, too
        number(block[345:357], "time of access of GNU's", offset, signed=True)
        if block[357]:
            number(block[357:369], "time of change of GNU's", offset, signed=True)
        return
    if magic[:6] != b"ustar\0":
        raise ArchiveError(f"a name goes on where the format {magic!r} has no place for it", offset=offset)
    if _is_star(block) and 0 not in block[345:476]:
        raise ArchiveError("a prefix that runs into star's times", offset=offset)


def device(block: bytes, offset: int) -> tuple[int, int]:
    """Major and minor number of a device's header."""
    return number(block[329:337], "major", offset), number(block[337:345], "minor", offset)


def number(field: bytes, what: str, offset: int, *, signed: bool = False) -> int:
    """An octal or base-256 header field. Negative only with *signed*."""
    if field[0] & 0x80:
        if field[0] not in (0x80, 0xFF):   # more bits than any field needs: Go takes them, nobody else
            raise ArchiveError(f"a {what} that is not a number: {field!r}", offset=offset)
        value = int.from_bytes(bytes((field[0] & 0x7F,)) + field[1:], "big")
        if field[0] & 0x40:
            value -= 1 << (8 * len(field) - 1)
            if not signed:
                raise ArchiveError(f"a negative {what}: {value}", offset=offset)
        if not -TIME_END <= value < TIME_END:
            raise ArchiveError(f"a {what} beyond 64 bits: {value}", offset=offset)
        return value
    text, _, rest = field.partition(b"\0")
    text = text.strip(b" ")
    if not text:
        if rest.strip(b"\0 "):           # Go reads what follows, GNU tar after one NUL, others a zero
            raise ArchiveError(f"a {what} that begins with NUL: {field!r}", offset=offset)
        return 0
    if not text.isdigit():               # int() would take signs, underscores and inner spaces
        raise ArchiveError(f"a {what} that is not a number: {field!r}", offset=offset)
    try:
        return int(text, 8)
    except ValueError:
        raise ArchiveError(f"a {what} that is not octal: {field!r}", offset=offset) from None
