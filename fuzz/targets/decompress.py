"""Any bytes decompress to what the plain library makes of them, or are refused as there; never to more than the limit.

And the pieces in which they come change nothing, nor which of the two gzip decoders there is, but that ISA-L may take a
set of codes that zlib finds incomplete. The first byte chooses the decoder: one of four, or detection. The libraries'
objects are what is compared with, not their one-call functions: those overlook a missing end, or what comes after it.
"""

from __future__ import annotations

import bz2
import lzma
import re
import zlib
from typing import Any

import zstandard

from fuzz.pieces import in_pieces
from layerstore.errors import CompressionError, LimitExceededError
from layerstore.formats import compression
from layerstore.formats.compression import decoders
from layerstore.model import Limits

LIMITS = Limits(max_bytes=1 << 18)
_KINDS = ("gzip", "zstd", "auto", "xz", "bzip2")
_INSTALLED = decoders.inflate
_ZSTD_HEADER = 18                        # bytes at most (RFC 8878, 3.1.1.1)
_INVALID_SET = re.compile(r"invalid (code lengths|literal/lengths|distances) set")   # as zlib says it


def check(data: bytes) -> None:
    kind, body = _KINDS[data[0] % 5] if data else "auto", data[1:]
    one, other = _ours([body], kind), _ours(in_pieces(body, 97), kind)
    assert one == other, "the pieces made a difference"
    if kind == "auto" or not body:
        return
    if kind == "gzip" and _INSTALLED is not zlib:
        isals, (one, why) = one, _by_zlib(body)
        assert isals == one or (isals is not None and _INVALID_SET.search(why)), "ISA-L and zlib do not agree"
    theirs = _theirs(body, kind)
    if theirs is not None and len(theirs) > LIMITS.max_bytes:
        theirs = None
    assert one == theirs, f"{kind}: {_told(one)}, and by the library itself {_told(theirs)}"


def _told(found: bytes | None) -> str:
    return "refused" if found is None else f"{len(found)} bytes"


def _by_zlib(body: bytes) -> tuple[bytes | None, str]:
    decoders.inflate = zlib
    try:
        return _made([body], "gzip")
    finally:
        decoders.inflate = _INSTALLED


def _ours(pieces: list[bytes], kind: str) -> bytes | None:
    return _made(pieces, kind)[0]


def _made(pieces: list[bytes], kind: str) -> tuple[bytes | None, str]:
    """What they become; or why they are refused."""
    out, size = [], 0
    try:
        for piece in compression.decompressed(iter(pieces), limits=LIMITS, compression=kind):
            out.append(piece)
            size += len(piece)
            assert size <= LIMITS.max_bytes, "more came out than the limit allows"
    except (CompressionError, LimitExceededError) as error:
        return None, str(error)
    return b"".join(out), ""


def _theirs(data: bytes, kind: str) -> bytes | None:
    """Member after member, to the very last byte, padding neither. None if the library refuses one, or one has no end."""
    out = b""
    try:
        while data:
            member = _decoder(kind)
            content, at = b"", 0
            while kind == "zstd" and not member.eof and at < min(_ZSTD_HEADER, len(data)):
                content += member.decompress(data[at : at + 1])   # what libzstd has whole it reads by other rules
                at += 1
            rest = data[at:]
            if not member.eof:
                content += member.decompress(rest)
                rest = member.unused_data
            if not member.eof or (kind == "zstd" and zstandard.frame_content_size(data) not in (-1, len(content))):
                return None                 # libzstd overlooks a wrong size now and then
            out += content
            data = rest
    except (zlib.error, zstandard.ZstdError, lzma.LZMAError, OSError, EOFError):
        return None
    return out


def _decoder(kind: str) -> Any:
    if kind == "gzip":
        return zlib.decompressobj(31)
    if kind == "zstd":
        return zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=1 << 27) if kind == "xz" else bz2.BZ2Decompressor()
