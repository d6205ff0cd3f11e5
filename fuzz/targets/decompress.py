"""Any bytes decompress to what the plain library makes of them, or are refused; never to more than the limit.

And the pieces in which they come change nothing. The first byte chooses the decoder: one of four, or detection.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib

import zstandard

from fuzz.pieces import in_pieces
from layerstore.errors import CompressionError, LimitExceededError
from layerstore.formats.compression import decompressed
from layerstore.model import Limits

LIMITS = Limits(max_bytes=1 << 18)
_KINDS = ("gzip", "zstd", "auto", "xz", "bzip2")


def check(data: bytes) -> None:
    kind, body = _KINDS[data[0] % 5] if data else "auto", data[1:]
    one, other = _ours([body], kind), _ours(in_pieces(body, 97), kind)
    assert one == other, "the pieces made a difference"
    if one is None or kind == "auto":
        return
    theirs = {"gzip": _gunzip, "zstd": _unzstd, "xz": lzma.decompress, "bzip2": bz2.decompress}[kind](body)
    assert one == theirs, f"{kind}: {len(one)} bytes, and by the library itself {len(theirs)}"


def _ours(pieces: list[bytes], kind: str) -> bytes | None:
    out, size = [], 0
    try:
        for piece in decompressed(iter(pieces), limits=LIMITS, compression=kind):
            out.append(piece)
            size += len(piece)
            assert size <= LIMITS.max_bytes, "more came out than the limit allows"
    except (CompressionError, LimitExceededError):
        return None
    return b"".join(out)


def _gunzip(data: bytes) -> bytes:
    out = b""
    while data:
        member = zlib.decompressobj(31)
        out += member.decompress(data)
        assert member.eof, "accepted, though zlib does not see the member's end"
        data = member.unused_data
    return out


def _unzstd(data: bytes) -> bytes:
    reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(io.BytesIO(data), read_across_frames=True)
    return reader.readall()
