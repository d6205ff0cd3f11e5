"""Compressed streams in, plain bytes out, in bounded memory; and the zstd writer for our own files.

The only module that imports zlib, isal, lzma, bz2 or zstandard. It knows nothing of tar. What a stream is compressed
with is decided by its first bytes, never by a media type or a file name (media types in the field are often
wrong).

All decoders are loops over *members* or *frames*, because every one-call interface gets something wrong: a
truncated stream read as a short one, junk after the end ignored, or only the first member seen. A stream ends
well only when its last member does, exactly at the last byte.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import zstandard

from layerstore.errors import CompressionError, LimitExceededError
from layerstore.formats.zstdblocks import in_pieces
from layerstore.model import Limits

inflate: Any
try:  # about twice as fast, with the same interface
    from isal import isal_zlib as inflate
except ImportError:  # the extra is not installed
    inflate = zlib

__all__ = ["Decompressed", "Units", "ZstdFrames", "ZstdWriter", "decompressed", "detect", "inflate"]

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"       # after one byte from 0x50 to 0x5f (RFC 8878, 3.1.2)
_XZ = b"\xfd7zXZ\x00"
_BZIP2 = b"BZh"
_LZ4 = b"\x04\x22\x4d\x18"
_MAGIC_LENGTH = 6

_GZIP_WBITS = 31                        # a gzip wrapper and a 32 KiB window (zlib.h, inflateInit2)
_GZIP_RESERVED = 0xE0                   # header flags that must be zero (RFC 1952, 2.3.1.2); ISA-L does not look
_GZIP_SLICE = 32 << 10                  # bytes fed at once: a member's end copies the rest of them
_GZIP_LONG = 512 << 10                  # the same in a member that goes on: what comes out needs no joining
_ZSTD_HEADER = 18                       # bytes of a frame's header at most (RFC 8878, 3.1.1.1)
_ZSTD_APART = 5                         # bytes given alone: a frame given whole libzstd reads by other rules
_ZSTD_WINDOW = 1 << 27                  # what zstd(1) takes without --long; larger frames are refused
_XZ_MEMORY = 1 << 27                    # bytes that decoding may take; xz -9 makes streams that take half of it
_GZIP_OUTPUT = 512 << 10                # its limit for a call: malloc gives back and takes anew what is larger
_PIECE = 1 << 20                        # bytes of a chunk handed on at most
_ENOUGH = 1 << 18                       # bytes of a piece that waits for no more
_RATIO_GRACE = 16 << 20                 # bytes of output before the ratio is looked at


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
        decode = {
            "gzip": self._gunzip, "zstd": self._unzstd, "xz": self._unxz, "bzip2": self._bunzip2,
        }.get(self.compression, self._plain)
        return (yield from _evened(decode(_put_back(head, chunks))))

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
        member: Any = None
        members = 0
        held = b""                      # the beginning of a member's header
        slices = _Slices(chunks, _GZIP_SLICE)
        for data in slices:
            self.bytes_in += len(data)
            rest, held = held + data, b""
            slices.size = min(2 * slices.size, _GZIP_LONG)
            while True:
                if member is None:      # between members: here the stream may end
                    if len(rest) < 4:
                        held = rest
                        break
                    if rest[3] & _GZIP_RESERVED:
                        raise CompressionError(self._broken("gzip", members, "a reserved header flag is set"))
                    member = inflate.decompressobj(_GZIP_WBITS)
                try:
                    output = member.decompress(rest, _GZIP_OUTPUT)
                except inflate.error as error:   # zlib's, or isal's own class of the same name
                    raise CompressionError(self._broken("gzip", members, error)) from error
                self._account(len(output))
                if output:
                    yield output
                if member.eof:
                    rest, member = member.unused_data, None
                    members += 1
                    slices.size = _GZIP_SLICE
                    if len(rest) > _GZIP_SLICE:
                        slices.back(len(rest))
                        self.bytes_in -= len(rest)
                        break
                else:
                    rest = member.unconsumed_tail
                    if not rest and len(output) < _GZIP_OUTPUT:
                        break           # all was taken, and no output is held back
        if member is not None or held or not members:
            raise CompressionError(self._truncated("gzip", members))

    def _unxz(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        lzma = _codec("lzma", "xz")
        return self._streams(
            "xz", chunks, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY), (lzma.LZMAError, EOFError),
        )

    def _bunzip2(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        return self._streams("bzip2", chunks, _codec("bz2", "bzip2").BZ2Decompressor, (OSError, EOFError))

    def _streams(
        self, kind: str, chunks: Iterator[bytes], begin: Callable[[], Any], errors: tuple[type[Exception], ...],
    ) -> Iterator[bytes]:
        """The decoders of Python's own library, which all work alike: one object a stream, with an output limit."""
        stream: Any = None
        whole = 0
        for data in _Slices(chunks, _PIECE):
            self.bytes_in += len(data)
            rest = data
            while rest or (stream is not None and not stream.needs_input):
                stream = stream or begin()
                try:
                    output = stream.decompress(rest, _PIECE)
                except errors as error:
                    raise CompressionError(self._broken(kind, whole, error)) from error
                self._account(len(output))
                if output:
                    yield output
                rest = stream.unused_data if stream.eof else b""
                if stream.eof:
                    stream = None
                    whole += 1
        if stream is not None or not whole:
            raise CompressionError(self._truncated(kind, whole))

    def _unzstd(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        context = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        frame = context.decompressobj()
        frames = made = 0               # whole frames; bytes that the current one has become
        head = b""                      # its beginning
        fresh = True
        pending: list[bytes] = []       # joined here: they are many and small
        size = 0
        for data in in_pieces(chunks):   # zstandard has no output limit
            self.bytes_in += len(data)
            rest = memoryview(data)
            while rest:
                given = rest[:_ZSTD_APART] if fresh else rest
                try:
                    output = frame.decompress(given)
                except zstandard.ZstdError as error:
                    raise CompressionError(self._broken("zstd", frames, error)) from error
                if len(head) < _ZSTD_HEADER:
                    head += given[: _ZSTD_HEADER - len(head)]
                fresh = False
                if output:
                    self._account(len(output))
                    made += len(output)
                    pending.append(output)
                    size += len(output)
                    if size >= _ENOUGH:
                        yield b"".join(pending)
                        pending, size = [], 0
                if not frame.eof:
                    rest = rest[len(given):]
                    continue
                if zstandard.frame_content_size(head) not in (-1, made):   # libzstd looks only if the last block has bytes
                    raise CompressionError(self._broken("zstd", frames, "a frame has not the size that it says"))
                rest = memoryview(frame.unused_data)
                frames += 1
                head, made = b"", 0
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

    def _broken(self, kind: str, whole: int, error: object) -> str:
        return (
            f"the {kind} stream is corrupt, or has junk after its end, near byte {self.bytes_in} "
            f"(after {whole} whole members or frames): {error}"
        )


def decompressed(chunks: Iterable[bytes], *, limits: Limits, compression: str = "auto") -> Decompressed:
    """The plain bytes of *chunks*, lazily, in chunks of 256 KiB to 1 MiB.

    *compression* is ``auto`` (by the first bytes), ``none``, ``gzip`` (any number of members), ``zstd`` (any
    number of frames, skippable ones included), ``xz`` or ``bzip2`` (any number of streams, without padding).
    The result's ``compression`` tells which it was.
    CompressionError if the stream is corrupt, truncated or followed by junk, zeros included;
    LimitExceededError beyond ``limits.max_bytes``, or beyond ``limits.max_ratio`` once 16 MiB came out.
    """
    return Decompressed(chunks, limits, compression)


class Units:
    """Decompresses parts of a blob, each whole frames or members of the *codec* (zstd or gzip), one after another.

    For zstd this is laxer than ``decompressed`` about how a part ends: who uses it knows how many bytes shall come.
    """

    def __init__(self, codec: str) -> None:
        self._context = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW) if codec == "zstd" else None

    def reader(self, pieces: Iterable[bytes]) -> Callable[[int], bytes]:
        """``read(n)`` of what *pieces* decompress to: *n* bytes, fewer at the end. The last reader ends with this call.

        What it reads raises CompressionError. It holds some pieces of output, and for zstd a window, at most.
        """
        if self._context is None:
            return _Source(decompressed(pieces, limits=_UNLIMITED, compression="gzip")).read_all
        reader = self._context.stream_reader(_Source(pieces), read_across_frames=True)   # type: ignore[arg-type]

        def read(size: int) -> bytes:
            try:
                return reader.read(size)
            except zstandard.ZstdError as error:
                raise CompressionError(f"a part of the zstd stream is corrupt: {error}") from error

        return read


class _Source:
    """Pieces as a file that can be read."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = b""

    def read(self, size: int) -> bytes:
        """Some of the next bytes, at most *size*."""
        piece = self._rest or next(self._pieces, b"")
        self._rest = piece[size:]
        return piece[:size]

    def read_all(self, size: int) -> bytes:
        """The next *size* bytes, fewer at the end."""
        parts = []
        while size and (part := self.read(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


_UNLIMITED = Limits(max_bytes=1 << 62, max_ratio=1 << 62)


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


class ZstdFrames:
    """Compress into a row of frames, each ended by ``end``, and hand them to *sink*. ``size``: bytes handed on.

    What comes out depends on what goes in, not on its pieces. A frame of up to 1 MiB says its size; of a larger one so
    much is held. Durability: none here; the sink's owner syncs.
    """

    def __init__(self, sink: Callable[[bytes], object], *, level: int = 3) -> None:
        self._sink = sink
        self._context = zstandard.ZstdCompressor(level=level)
        self._unsized = zstandard.ZstdCompressor(level=level, write_content_size=False)
        self._frame: Any = None          # of a large one, begun
        self._pending: list[bytes] = []
        self._held = self.size = 0

    def write(self, data: bytes) -> None:
        if not data:
            return
        self._pending.append(data)
        self._held += len(data)
        if self._held > _PIECE:
            held = b"".join(self._pending)
            self._frame = self._frame or self._unsized.compressobj()
            whole = len(held) - (len(held) % _PIECE or _PIECE)
            for start in range(0, whole, _PIECE):
                self._put(self._frame.compress(held[start : start + _PIECE]))
            self._pending, self._held = [held[whole:]], len(held) - whole

    def end(self) -> int:
        """End the frame, if one was begun; the place of what is written next."""
        held = b"".join(self._pending)
        self._pending, self._held = [], 0
        if self._frame is not None:
            self._put(self._frame.compress(held))
            self._put(self._frame.flush())
            self._frame = None
        elif held:
            self._put(self._context.compress(held))
        return self.size

    def _put(self, data: bytes) -> None:
        if data:
            self.size += len(data)
            self._sink(data)


def _codec(module: str, kind: str) -> Any:
    """A module of Python's own library that some builds of Python lack."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise CompressionError(
            f"the stream is {kind}-compressed, and this Python was built without {module}",
            hint="recompress the layer with gzip or zstd, or use another Python",
        ) from error


def _evened(outputs: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of 256 KiB to 1 MiB: who takes them works per piece, and holds several."""
    pending: list[bytes] = []
    size = 0
    for output in outputs:
        if len(output) > _PIECE:        # of zstd, whose output cannot be limited
            yield from pending
            pending, size = [], 0
            for start in range(0, len(output), _PIECE):
                yield output[start : start + _PIECE]
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


class _Slices:
    """Chunks in slices of ``size`` bytes at most, which may be changed between two of them."""

    def __init__(self, chunks: Iterator[bytes], size: int) -> None:
        self._chunks, self.size = chunks, size
        self._at = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self._at = 0
            while self._at < len(chunk):
                start, self._at = self._at, min(self._at + self.size, len(chunk))
                yield chunk[start : self._at]   # all of it costs no copy

    def back(self, size: int) -> None:
        """Give the last *size* bytes of the last slice once more."""
        self._at -= size
