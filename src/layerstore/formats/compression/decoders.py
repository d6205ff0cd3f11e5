"""The loops that decompress: one for each kind of stream, over its *members* or *frames*.

Because every one-call interface gets something wrong: a truncated stream read as a short one, junk after the end ignored,
or only the first member seen. A stream ends well only when its last member does, exactly at the last byte.

One thing depends on whether ISA-L is there: it takes a block whose codes do not use up all that their lengths allow, which
zlib refuses and no compressor writes. What the block says is certain all the same, and so what comes out.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import zstandard

from layerstore.errors import CompressionError, LimitExceededError
from layerstore.formats.zstdblocks import FIRST, header_size, in_pieces
from layerstore.model import Limits

inflate: Any
try:  # about twice as fast, with the same interface
    from isal import isal_zlib as inflate
except ImportError:  # the extra is not installed
    inflate = zlib

__all__ = ["DECODERS", "PIECE", "ZSTD_WINDOW", "Meter", "inflate"]

_GZIP_WBITS = 31                        # a gzip wrapper and a 32 KiB window (zlib.h, inflateInit2)
_GZIP_RESERVED = 0xE0                   # header flags that must be zero (RFC 1952, 2.3.1.2); ISA-L does not look
# flags of headers that ISA-L reads right in whatever pieces they come: with one of FEXTRA, FNAME and FCOMMENT, and no FHCRC
_GZIP_ISALS = frozenset({0, 0x04, 0x08, 0x10})
_GZIP_FIELDS = 0x1E
_GZIP_SLICE = 32 << 10                  # bytes fed at once: a member's end copies the rest of them
_GZIP_LONG = 512 << 10                  # the same in a member that goes on: what comes out needs no joining
_GZIP_OUTPUT = 512 << 10                # its limit for a call: malloc gives back and takes anew what is larger
ZSTD_WINDOW = 1 << 27                   # what zstd(1) takes without --long, and as much memory; larger frames are refused
_XZ_MEMORY = 1 << 27                    # bytes that decoding may take; xz -9 makes streams that take half of it
PIECE = 1 << 20                         # bytes of a chunk handed on at most
_RATIO_GRACE = 16 << 20                 # bytes of output before the ratio is looked at


class Meter:
    """What went in and what came out of one stream, in bytes; it stops a bomb, and says where a stream is broken."""

    def __init__(self, limits: Limits) -> None:
        self.bytes_in = self.bytes_out = 0
        self._limits = limits

    def account(self, produced: int) -> None:
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

    def truncated(self, kind: str, whole: int) -> str:
        return (
            f"the {kind} stream ends after {self.bytes_in} bytes inside its member or frame number "
            f"{whole + 1}: truncated, or with junk after its end"
        )

    def broken(self, kind: str, whole: int, error: object) -> str:
        return (
            f"the {kind} stream is corrupt, or has junk after its end, near byte {self.bytes_in} "
            f"(after {whole} whole members or frames): {error}"
        )


def _plain(meter: Meter, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """What is not compressed, as it comes."""
    for chunk in chunks:
        meter.bytes_in += len(chunk)
        meter.account(len(chunk))
        if chunk:
            yield chunk


def _gunzip(meter: Meter, chunks: Iterator[bytes]) -> Iterator[bytes]:
    member: Any = None
    members = 0
    held = b""                      # the beginning of a member's header
    slices = _Slices(chunks, _GZIP_SLICE)
    for data in slices:
        meter.bytes_in += len(data)
        rest, held = held + data, b""
        slices.size = min(2 * slices.size, _GZIP_LONG)
        while True:
            if member is None:      # between members: here the stream may end
                if len(rest) < 4:
                    held = rest
                    break
                if rest[3] & _GZIP_RESERVED:
                    raise CompressionError(meter.broken("gzip", members, "a reserved header flag is set"))
                member = (inflate if rest[3] & _GZIP_FIELDS in _GZIP_ISALS else zlib).decompressobj(_GZIP_WBITS)
            try:
                output = member.decompress(rest, _GZIP_OUTPUT)
            except (zlib.error, inflate.error) as error:   # isal's is a class of its own
                raise CompressionError(meter.broken("gzip", members, error)) from error
            meter.account(len(output))
            if output:
                yield output
            if member.eof:
                rest, member = member.unused_data, None
                members += 1
                slices.size = _GZIP_SLICE
                if len(rest) > _GZIP_SLICE:
                    slices.back(len(rest))
                    meter.bytes_in -= len(rest)
                    break
            else:
                rest = member.unconsumed_tail
                if not rest and len(output) < _GZIP_OUTPUT:
                    break           # all was taken, and no output is held back
    if member is not None or held or not members:
        raise CompressionError(meter.truncated("gzip", members))


def _unxz(meter: Meter, chunks: Iterator[bytes]) -> Iterator[bytes]:
    lzma = _codec("lzma", "xz")
    return _streams(
        meter, "xz", chunks, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY), (lzma.LZMAError, EOFError),
    )


def _bunzip2(meter: Meter, chunks: Iterator[bytes]) -> Iterator[bytes]:
    return _streams(meter, "bzip2", chunks, _codec("bz2", "bzip2").BZ2Decompressor, (OSError, EOFError))


def _streams(
    meter: Meter, kind: str, chunks: Iterator[bytes], begin: Callable[[], Any], errors: tuple[type[Exception], ...],
) -> Iterator[bytes]:
    """The decoders of Python's own library, which all work alike: one object a stream, with an output limit."""
    stream: Any = None
    whole = 0
    for data in _Slices(chunks, PIECE):
        meter.bytes_in += len(data)
        rest = data
        while rest or (stream is not None and not stream.needs_input):
            stream = stream or begin()
            try:
                output = stream.decompress(rest, PIECE)
            except errors as error:
                raise CompressionError(meter.broken(kind, whole, error)) from error
            meter.account(len(output))
            if output:
                yield output
            rest = stream.unused_data if stream.eof else b""
            if stream.eof:
                stream = None
                whole += 1
    if stream is not None or not whole:
        raise CompressionError(meter.truncated(kind, whole))


class _ZstdHeader:
    """The header of a zstd frame, which libzstd is given alone.

    For at its end libzstd looks whether the rest of what it was given is a whole frame, and reads that by other rules; and
    it takes for the frame what is only the end of its header, if that looks like one.
    """

    def __init__(self) -> None:
        self.bytes = b""
        self._size, self._dictionary = FIRST, slice(0)

    def next(self, rest: memoryview) -> memoryview:
        """What of *rest* is to be given now. ValueError if the frame wants a dictionary."""
        if len(self.bytes) == self._size:
            return rest
        given = rest[: self._size - len(self.bytes)]
        self.bytes += given
        if len(self.bytes) == FIRST:
            self._size, start, end = header_size(self.bytes)
            self._dictionary = slice(start, end)
        elif len(self.bytes) == self._size and any(self.bytes[self._dictionary]):
            raise ValueError("a frame wants a dictionary, of which layers have none")
        return given


def _unzstd(meter: Meter, chunks: Iterator[bytes]) -> Iterator[bytes]:
    context = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
    frame, header = context.decompressobj(), _ZstdHeader()
    frames = made = 0               # whole frames; bytes that the current one has become
    for data in in_pieces(chunks):   # zstandard has no output limit
        meter.bytes_in += len(data)
        rest = memoryview(data)
        while rest:
            try:
                given = header.next(rest)
                output = frame.decompress(given)
            except (zstandard.ZstdError, ValueError) as error:
                raise CompressionError(meter.broken("zstd", frames, error)) from error
            if output:
                meter.account(len(output))
                made += len(output)
                yield output
            if not frame.eof:
                rest = rest[len(given):]
                continue
            rest = rest[len(given) - len(frame.unused_data):]
            # libzstd looks only if the last block has bytes
            if zstandard.frame_content_size(header.bytes) not in (-1, made):
                raise CompressionError(meter.broken("zstd", frames, "a frame has not the size that it says"))
            frames += 1
            frame, header, made = context.decompressobj(), _ZstdHeader(), 0
    if header.bytes or not frames:
        raise CompressionError(meter.truncated("zstd", frames))


def _codec(module: str, kind: str) -> Any:
    """A module of Python's own library that some builds of Python lack."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise CompressionError(
            f"the stream is {kind}-compressed, and this Python was built without {module}",
            hint="recompress the layer with gzip or zstd, or use another Python",
        ) from error


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


DECODERS: Mapping[str, Callable[[Meter, Iterator[bytes]], Iterator[bytes]]] = {
    "gzip": _gunzip, "zstd": _unzstd, "xz": _unxz, "bzip2": _bunzip2, "none": _plain,
}
