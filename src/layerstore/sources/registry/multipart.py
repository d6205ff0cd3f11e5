"""Several ranges in one response: ``Content-Range`` and ``multipart/byteranges`` (RFC 9110 §14.4, §14.6), read strictly.

The parts must be those asked for, in that order. A server may legally merge or reorder them: that is ``Odd``, and the rest
is then asked for range by range.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from layerstore.sources.registry.failures import Broken
from layerstore.sources.registry.transport import Reply

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["PIECE", "Odd", "boundary_of", "content_range", "parts", "pieces"]

PIECE = 1 << 20
_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)\Z")
_BOUNDARY = re.compile(r'multipart/byteranges\s*;(?:[^"]*;)?\s*boundary=(?:"([^"]{1,70})"|([^\s";]{1,70}))', re.IGNORECASE)
_LINE = 1024             # bytes of a line between the parts
_LINES = 24              # of them before the data of a part
_BUFFER = 64 << 10


class _Reads(Protocol):
    def read(self, count: int, /) -> bytes: ...


class Short(Broken):
    """It ended too early, although the server says that this is all."""


class Odd(Exception):  # noqa: N818 - never leaves this package
    """Not the parts that were asked for."""


def content_range(text: str, size: int) -> tuple[int, int] | None:
    """First byte and one past the last of a ``Content-Range`` of something of *size* bytes; None for another."""
    match = _RANGE.match(text.strip())
    if match is None or match[3] not in ("*", str(size)):
        return None
    return int(match[1]), int(match[2]) + 1


def boundary_of(content_type: str) -> str | None:
    """The boundary of a multipart response; None if it is none."""
    match = _BOUNDARY.match(content_type.strip())
    return (match[1] or match[2]) if match else None


def pieces(stream: _Reads, start: int, end: int, url: str) -> Iterator[tuple[int, bytes]]:
    """The bytes that belong at *start* to *end*, as ``BlobSource.ranges`` gives them. Broken if there are fewer."""
    while start < end:
        piece = stream.read(min(PIECE, end - start))
        if not piece:
            raise Short(f"GET {url}: it ended {end - start} bytes early", url)
        yield start, piece
        start += len(piece)


def parts(reply: Reply, boundary: str, wanted: Sequence[tuple[int, int]], size: int) -> Iterator[tuple[int, bytes]]:
    """The pieces of *wanted*, (start, end) in bytes of a blob of *size*. Odd for any other part; Broken."""
    stream = io.BufferedReader(_Body(reply), _BUFFER)
    for start, end in wanted:
        if _next_part(stream, f"--{boundary}".encode(), size) != (start, end):
            raise Odd
        try:
            yield from pieces(stream, start, end, reply.url)
        except Short:
            raise Odd from None


def _next_part(stream: io.BufferedReader[_Body], delimiter: bytes, size: int) -> tuple[int, int] | None:
    """Read a delimiter and the headers after it; what range of so many bytes the part says that it is."""
    found, inside = None, False
    for _ in range(_LINES):
        line = stream.readline(_LINE)
        if not line.endswith(b"\n"):
            raise Odd
        line = line.rstrip()
        if not inside:
            inside = line == delimiter
            if line and not inside:   # data that belongs to nobody, or the last delimiter
                raise Odd
        elif not line:
            return found
        elif line[:14].lower() == b"content-range:":
            found = content_range(line[14:].decode("latin-1"), size)
    raise Odd


class _Body(io.RawIOBase):
    def __init__(self, reply: Reply) -> None:
        self._reply = reply

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self._reply.read(len(view))
        view[: len(data)] = data
        return len(data)
