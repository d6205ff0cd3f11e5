"""The lines of a tar-split as the Go tools write it, read as a stream: the tar's own bytes, and where files' data goes.

The format: vbatts/tar-split ``tar/storage``; our writer of it is ``gotarsplit``. What the bytes are is the tar reader's.
"""

from __future__ import annotations

import binascii
import json
import re
from binascii import a2b_base64
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from layerstore.errors import TocError

__all__ = ["Payload", "read_lines"]

_LONGEST = 24 << 20                      # bytes of one line: a segment has the headers between two files, in base64
# what nearly all lines look like: a segment, and a file whose name is as it is in JSON
_SEGMENT = b'{"type":2,"payload":"'
_MEMBER = re.compile(
    rb'\{"type":1,"name":"([ !#-\[\]-~]+)",(?:"size":([1-9]\d{0,17}),)?"payload":(?:"([A-Za-z0-9+/]{11}=)"|null)', re.ASCII)
_FILE, _RAW = 1, 2
_QUOTE = ord('"')


class Payload(NamedTuple):
    """Here *size* bytes of data of the member *name* go, whose CRC-64 (ISO) is *crc* (8 bytes, or None)."""

    name: bytes
    size: int
    crc: bytes | None


def read_lines(pieces: Iterable[bytes]) -> Iterator[bytes | Payload]:
    """What the lines of a tar-split say, in order; it comes as *pieces*, decompressed. TocError where they say nothing."""
    for number, line in enumerate(_lines(pieces)):
        end = b',"position":%d}' % number
        if line.endswith(end):
            quote = len(line) - len(end) - 1
            if line.startswith(_SEGMENT) and quote >= len(_SEGMENT) and line[quote] == _QUOTE:
                try:
                    yield a2b_base64(line[len(_SEGMENT) : quote], strict_mode=True)
                except binascii.Error:
                    yield _other(line, number)
                continue
            match = _MEMBER.match(line)
            if match is not None and match.end() + len(end) == len(line):
                name, size, crc = match.groups()
                yield Payload(name, int(size or 0), a2b_base64(crc) if crc else None)
                continue
        yield _other(line, number)


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
        if len(rest) > _LONGEST:
            raise TocError(f"a line of the tar-split has more than {_LONGEST} bytes")
    if rest:
        yield rest


def _other(line: bytes, number: int) -> bytes | Payload:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _malformed(number, "it is no JSON") from error
    if not isinstance(entry, dict) or entry.get("position", 0) != number or type(entry.get("position", 0)) is not int:
        raise _malformed(number, "it is no object, or out of order")
    kind, payload = entry.get("type"), entry.get("payload")
    data = _base64(payload, number) if payload else None
    if kind == _RAW:
        return data or b""
    size = entry.get("size", 0)
    if kind != _FILE or type(size) is not int or not 0 <= size < 1 << 63 or (data is not None and len(data) != 8):
        raise _malformed(number, "it is neither a segment nor a file")
    return Payload(_name(entry, number), size, data)


def _name(entry: dict[str, Any], number: int) -> bytes:
    name, raw = entry.get("name", ""), entry.get("name_raw")
    if not isinstance(name, str) or bool(name) == bool(raw):
        raise _malformed(number, "it has no name, or two")
    if raw:
        return _base64(raw, number)
    try:
        return name.encode()
    except UnicodeEncodeError as error:
        raise _malformed(number, "its name is no text") from error


def _base64(text: Any, number: int) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise _malformed(number, "its payload is not base64") from error


def _malformed(number: int, why: str) -> TocError:
    return TocError(f"line {number + 1} of the tar-split is malformed: {why}")
