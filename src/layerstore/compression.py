"""Compressed streams in, plain bytes out, in bounded memory; and the zstd writer for our own files.

The only module that imports zlib, isal or zstandard. It knows nothing of tar. What a stream is compressed
with is decided by its first bytes, never by a media type or a file name (media types in the field are often
wrong).

Both decoders are loops over *members* or *frames*, because every one-call interface gets something wrong: a
truncated stream read as a short one, junk after the end ignored, or only the first member seen. A stream ends
well only when its last member does, exactly at the last byte.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import zstandard

from layerstore.errors import CompressionError, LimitExceededError
from layerstore.model import Limits

inflate: Any
try:  # about twice as fast, with the same interface
    from isal import isal_zlib as inflate
except ImportError:  # the extra is not installed
    inflate = zlib

__all__ = ["Decompressed", "ZstdWriter", "decompressed", "detect", "inflate"]

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"       # after one byte from 0x50 to 0x5f (RFC 8878, 3.1.2)
_REFUSED = {b"\xfd7zXZ\x00": "xz", b"BZh": "bzip2", b"\x04\x22\x4d\x18": "lz4"}
_MAGIC_LENGTH = 6

_GZIP_WBITS = 31                        # a gzip wrapper and a 32 KiB window (zlib.h, inflateInit2)
_GZIP_SLICE = 32 << 10                  # a member's end copies the rest of what was fed
_ZSTD_SLICE = 512                       # zstandard has no output limit; 512 bytes make at most 16 MiB
_ZSTD_WINDOW = 1 << 27                  # what zstd(1) takes without --long; larger frames are refused
_PIECE = 1 << 20                        # bytes of a chunk handed on; gzip's output limit for a call
_RATIO_GRACE = 16 << 20                 # bytes of output before the ratio is looked at


def detect(head: bytes) -> str:
    """``gzip``, ``zstd`` or ``none`` by the first (at least six) bytes of a stream.

    CompressionError for formats that are recognised but not supported (xz, bzip2, lz4).
    Sources: RFC 1952 2.3.1, RFC 8878 3.1.
    """
    if head.startswith(_GZIP):
        return "gzip"
    if head.startswith(_ZSTD) or (head[1:4] == _ZSTD_SKIPPABLE and head[0] & 0xF0 == 0x50):
        return "zstd"
    for magic, name in _REFUSED.items():
        if head.startswith(magic):
            raise CompressionError(
                f"the stream is {name}-compressed, which is not supported",
                hint="recompress the layer with gzip or zstd",
            )
    return "none"


class Decompressed:
    """The iterator that ``decompressed`` returns.

    ``compression`` is known once the first chunk was asked for.
    """

    def __init__(self, chunks: Iterable[bytes], limits: Limits, compression: str) -> None:
        self.compression = compression
        self.bytes_in = 0               # compressed bytes looked at so far
        self.bytes_out = 0              # bytes handed out so far
        self._limits = limits
        self._output = self._run(iter(chunks))

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
        if self.compression == "gzip":
            pieces = self._gunzip(_put_back(head, chunks))
        elif self.compression == "zstd":
            pieces = self._unzstd(_put_back(head, chunks))
        else:
            pieces = self._plain(_put_back(head, chunks))
        return (yield from pieces)

    def _account(self, produced: int) -> None:
        """Count *produced* more bytes of output, and stop a bomb before it is handed on."""
        self.bytes_out += produced
        if self.bytes_out > self._limits.max_bytes:
            raise LimitExceededError(
                "the uncompressed layer is too large in bytes",
                limit="max_bytes",
                maximum=self._limits.max_bytes,
            )
        if self.bytes_out > _RATIO_GRACE and self.bytes_out > self.bytes_in * self._limits.max_ratio:
            raise LimitExceededError(
                f"{self.bytes_in} compressed bytes became {self.bytes_out}: the ratio is suspicious",
                limit="max_ratio", maximum=self._limits.max_ratio,
            )

    def _plain(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self.bytes_in += len(chunk)
            self._account(len(chunk))
            if chunk:
                yield chunk

    def _gunzip(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        member = inflate.decompressobj(_GZIP_WBITS)
        members = 0
        fresh = True                    # nothing was fed to this member yet: here the stream may end
        for data in _slices(chunks, _GZIP_SLICE):
            self.bytes_in += len(data)
            rest = data
            while rest or not fresh:
                try:
                    output = member.decompress(rest, _PIECE)
                except Exception as error:  # zlib.error, or isal's own class of the same name
                    raise CompressionError(self._broken("gzip", members, error)) from error
                fresh = False
                self._account(len(output))
                if output:
                    yield output
                if member.eof:
                    rest = member.unused_data
                    members += 1
                    member, fresh = inflate.decompressobj(_GZIP_WBITS), True
                else:
                    rest = member.unconsumed_tail
                    if not rest and len(output) < _PIECE:
                        break           # all was taken, and no output is held back
        if not fresh or not members:
            raise CompressionError(self._truncated("gzip", members))

    def _unzstd(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        context = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        frame = context.decompressobj()
        frames = 0
        fresh = True
        pending: list[bytes] = []       # small outputs are joined: what comes after works per chunk
        size = 0
        for data in _slices(chunks, _ZSTD_SLICE):
            self.bytes_in += len(data)
            rest: bytes = data
            while rest:
                try:
                    output = frame.decompress(rest)
                except zstandard.ZstdError as error:
                    raise CompressionError(self._broken("zstd", frames, error)) from error
                fresh = False
                if output:
                    self._account(len(output))
                    pending.append(output)
                    size += len(output)
                    if size >= _PIECE:
                        yield b"".join(pending)
                        pending, size = [], 0
                if not frame.eof:
                    break
                rest = frame.unused_data
                frames += 1
                frame, fresh = context.decompressobj(), True
        if not fresh or not frames:
            raise CompressionError(self._truncated("zstd", frames))
        if pending:
            yield b"".join(pending)

    def _truncated(self, kind: str, whole: int) -> str:
        return (
            f"the {kind} stream ends after {self.bytes_in} bytes inside its member or frame number "
            f"{whole + 1}: truncated, or with junk after its end"
        )

    def _broken(self, kind: str, whole: int, error: Exception) -> str:
        return (
            f"the {kind} stream is corrupt, or has junk after its end, near byte {self.bytes_in} "
            f"(after {whole} whole members or frames): {error}"
        )


def decompressed(chunks: Iterable[bytes], *, limits: Limits, compression: str = "auto") -> Decompressed:
    """The plain bytes of *chunks*, lazily, in chunks of about 1 MiB (at most some 17 MiB).

    *compression* is ``auto`` (by the first bytes), ``none``, ``gzip`` (any number of members) or ``zstd``
    (any number of frames, skippable ones included). The result's ``compression`` tells which it was.
    CompressionError if the stream is corrupt, truncated or followed by junk, zeros included;
    LimitExceededError beyond ``limits.max_bytes``, or beyond ``limits.max_ratio`` once 16 MiB came out.
    """
    return Decompressed(chunks, limits, compression)


class ZstdWriter:
    """Compress what is written and hand it to *sink*, bytes by bytes. One frame, with a content checksum.

    Durability: none here; the sink's owner syncs.
    """

    def __init__(self, sink: Callable[[bytes], object], *, level: int = 3) -> None:
        compressor = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=False)
        self._frame = compressor.compressobj()
        self._sink = sink

    def write(self, data: bytes) -> None:
        output = self._frame.compress(data)
        if output:
            self._sink(output)

    def close(self) -> None:
        """End the frame. Nothing may be written after it."""
        self._sink(self._frame.flush())


def _put_back(head: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    if head:
        yield head
    yield from chunks


def _slices(chunks: Iterator[bytes], size: int) -> Iterator[bytes]:
    for chunk in chunks:
        if len(chunk) <= size:
            if chunk:
                yield chunk
        else:
            for start in range(0, len(chunk), size):
                yield chunk[start : start + size]
