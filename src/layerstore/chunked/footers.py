"""The last bytes of a blob, which say where its table of contents lies: read, and of zstd:chunked written. Pure.

Sources: containers/storage ``pkg/chunked/internal/minimal`` (64 bytes in a skippable frame; 40 until 2022, without the
tar-split), RFC 8878 3.1.2; containerd/stargz-snapshotter ``docs/estargz.md`` (an empty gzip member of 51 bytes whose extra
field has the offset; 47 in the older stargz, without a subfield's header), RFC 1952 2.3.1.1.
"""

from __future__ import annotations

import re
import struct

from layerstore.chunked.annotations import KIND, Position, position_in
from layerstore.errors import TocError

__all__ = ["FRAME", "STARGZ_MOST", "ZSTD_MOST", "skippable", "stargz", "zstd", "zstd_footer"]

ZSTD_MOST = 8 + 64                       # bytes of the blob's end that are looked at
STARGZ_MOST = 51
FRAME = 8                                # bytes of a skippable frame before what is in it
_SKIPPABLE = b"\x50\x2a\x4d\x18"
_MAGIC, _OLDER_MAGIC = b"GNUlInUx", b"GnUlInUx"   # a case that was changed with the form, on purpose or not

# magic, deflate, "there is an extra field", no time; what made it, and where, is nobody's business
_HEAD = rb"\x1f\x8b\x08\x04\x00{4}.{2}"
_EMPTY = rb"\x01\x00\x00\xff\xff\x00{8}\Z"
_STARGZ = re.compile(_HEAD + rb"\x1a\x00SG\x16\x00([0-9a-f]{16})STARGZ" + _EMPTY, re.DOTALL)
_OLDER = re.compile(_HEAD + rb"\x16\x00([0-9a-f]{16})STARGZ" + _EMPTY, re.DOTALL)


def zstd(end: bytes, blob_size: int) -> tuple[Position, Position | None]:
    """Where a zstd:chunked blob has its TOC and, if it has one, its tar-split. *end* is its last 72 bytes, or all.

    TocError if there is no footer, or it says what cannot be; Unsuitable as in ``annotations.position_in``.
    """
    for size, magic in ((64, _MAGIC), (40, _OLDER_MAGIC)):
        footer = end[-size:]
        if len(footer) == size and footer.endswith(magic) and end[:-size].endswith(_SKIPPABLE + struct.pack("<I", size)):
            numbers = list(struct.unpack(f"<{size // 8 - 1}Q", footer[:-8]))
            toc = position_in(numbers[:4], blob_size)
            rest = numbers[4:]
            return toc, position_in(rest, blob_size) if any(rest) else None
    raise TocError("the layer announces a table of contents, but its blob has no footer that says where it is")


def skippable(size: int) -> bytes:
    """What comes before *size* bytes that a reader of zstd skips. ValueError for 4 GiB and more."""
    if size >> 32:
        raise ValueError(f"{size} bytes in one skippable frame")
    return _SKIPPABLE + struct.pack("<I", size)


def zstd_footer(toc: Position, tar_split: Position) -> bytes:
    """The end of a zstd:chunked blob, as ``zstd`` reads it."""
    footer = struct.pack("<7Q", *toc, KIND, *tar_split) + _MAGIC
    return skippable(len(footer)) + footer


def stargz(end: bytes, blob_size: int) -> tuple[int, int]:
    """Where an eStargz blob has the member with its TOC: (offset, bytes). *end* is its last 51 bytes, or all.

    TocError if there is no footer, or it points outside the blob.
    """
    for form, size in ((_STARGZ, 51), (_OLDER, 47)):
        match = form.match(end[-size:])
        if match is not None:
            offset = int(match[1], 16)
            if offset >= blob_size - size:
                raise TocError(f"the layer's footer points to {offset}, in a blob of {blob_size} bytes")
            return offset, blob_size - size - offset
    raise TocError("the layer announces a table of contents, but its blob has no footer that says where it is")
