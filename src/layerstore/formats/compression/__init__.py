"""Compressed streams in, plain bytes out, in bounded memory. What a stream is, and in which pieces it comes out, is here.

``decoders`` has a loop for each kind, and stops a bomb; ``units`` reads parts of a blob, ``writing`` compresses our own
files. Nothing else imports zlib's kin: isal, lzma, bz2 and zstandard. Nothing here knows of tar. What a stream is
compressed with is decided by its first bytes, never by a media type or a file name (media types in the field are often
wrong).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from layerstore.errors import CompressionError
from layerstore.formats.compression.decoders import DECODERS, PIECE, Meter
from layerstore.model import Limits

__all__ = ["Decompressed", "decompressed", "detect", "evened"]

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"       # after one byte from 0x50 to 0x5f (RFC 8878, 3.1.2)
_XZ = b"\xfd7zXZ\x00"
_BZIP2 = b"BZh"
_LZ4 = b"\x04\x22\x4d\x18"
_MAGIC_LENGTH = 6

_ENOUGH = 1 << 18                        # bytes of a piece that waits for no more


def detect(head: bytes) -> str:
    """``gzip``, ``zstd``, ``xz``, ``bzip2`` or ``none`` by the first (at least six) bytes of a stream.

    CompressionError for lz4, which is recognised but not supported.
    Sources: RFC 1952 2.3.1, RFC 8878 3.1, the .xz file format 2.1.1.1.
    """
    if head.startswith(_GZIP):
        return "gzip"
    if head.startswith(_ZSTD) or (head[1:4] == _ZSTD_SKIPPABLE and head[0] & 0xF0 == 0x50):
        return "zstd"
    if head.startswith(_XZ):
        return "xz"
    if head.startswith(_BZIP2):
        return "bzip2"
    if head.startswith(_LZ4):
        raise CompressionError(
            "the stream is lz4-compressed, which is not supported", hint="recompress the layer with gzip or zstd",
        )
    return "none"


class Decompressed:
    """The iterator that ``decompressed`` returns.

    ``compression`` is known once the first chunk was asked for.
    """

    def __init__(self, chunks: Iterable[bytes], limits: Limits, compression: str) -> None:
        self.compression = compression
        self._meter = Meter(limits)
        self._output = self._run(iter(chunks))

    @property
    def bytes_in(self) -> int:
        """Compressed bytes looked at so far."""
        return self._meter.bytes_in

    @property
    def bytes_out(self) -> int:
        """Bytes handed out so far."""
        return self._meter.bytes_out

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._output)

    def _run(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        head = b""
        for chunk in chunks:
            head += chunk
            if len(head) >= _MAGIC_LENGTH:
                break
        if self.compression == "auto":
            self.compression = detect(head)
        decode = DECODERS[self.compression]
        return (yield from evened(decode(self._meter, _put_back(head, chunks))))


def decompressed(chunks: Iterable[bytes], *, limits: Limits, compression: str = "auto") -> Decompressed:
    """The plain bytes of *chunks*, lazily, in chunks that are mostly of 256 KiB to 1 MiB, and never of more than 1.25 MiB.

    *compression* is ``auto`` (by the first bytes), ``none``, ``gzip`` (any number of members), ``zstd`` (any
    number of frames, skippable ones included), ``xz`` or ``bzip2`` (any number of streams, without padding).
    The result's ``compression`` tells which it was.
    CompressionError if the stream is corrupt, truncated or followed by junk, zeros included;
    LimitExceededError beyond ``limits.max_bytes``, or beyond ``limits.max_ratio`` once 16 MiB came out.
    """
    return Decompressed(chunks, limits, compression)


def evened(outputs: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces mostly of 256 KiB to 1 MiB: who takes them works per piece, and holds several.

    The last one, and what lies beside an output that is cut, may be smaller; two together have 1.25 MiB at most.
    """
    pending: list[bytes] = []
    size = 0
    for output in outputs:
        if len(output) > PIECE:        # of zstd, whose output cannot be limited
            yield from pending
            pending, size = [], 0
            for start in range(0, len(output), PIECE):
                yield output[start : start + PIECE]
            continue
        pending.append(output)
        size += len(output)
        if size >= _ENOUGH:
            yield b"".join(pending) if len(pending) > 1 else output
            pending, size = [], 0
    if pending:
        yield b"".join(pending)


def _put_back(head: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    if head:
        yield head
    yield from chunks
