"""A layer's tar-split in the format of the Go tools (vbatts/tar-split ``tar/storage``): JSON lines, not compressed.

Type 2 is a segment of the stream's own bytes, type 1 a member with the name that the archive gives it, its size and
the CRC-64 of its data, which is read from the tree. Where a reader of that format would look for data in the wrong
place (a file that was replaced by a later entry, a path through a symbolic link, a sparse file) the data is given as
a segment instead; a name comes as a member once, since those readers refuse a second one.

The checksums are of what the tree has now, rotted or not: whoever wants to be sure compares the digest of what was read
(``export``).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

from layerstore.formats.crc64 import crc64
from layerstore.formats.packed import open_regular
from layerstore.formats.tarsplit import NAME, Member, read_tar_split
from layerstore.trees.assemble import Content

__all__ = ["lines", "member", "segment"]

_FILE, _SEGMENT = 1, 2


def lines(tree_fd: int, told: Callable[[bytes], object]) -> Iterator[bytes]:
    """The lines for the layer whose directory is open as *tree_fd*. DamagedError, OSError as ``assembled``.

    *told*: called with each piece of the layer's tar, in order, all of them before the last line comes.
    """
    with open_regular(NAME, tree_fd) as split_fd, Content(tree_fd, split_fd) as content:
        for position, entry in enumerate(_entries(split_fd, content, told)):
            yield json.dumps({**entry, "position": position}, separators=(",", ":")).encode() + b"\n"


def _entries(split_fd: int, content: Content, told: Callable[[bytes], object]) -> Iterator[dict[str, Any]]:
    seen: set[bytes] = set()
    for number, record in enumerate(read_tar_split(split_fd)):
        if isinstance(record, bytes):
            told(record)
            yield segment(record)
        elif isinstance(record, Member):
            name = b"/".join(part for part in record.name.split(b"/") if part not in (b"", b"."))
            inline = bool(record.size) and (
                name in seen or name != record.path or record.segments is not None
                or content.is_kept(record, number) is not None
            )
            data = _telling(content.of(record, number) if record.size else iter(()), told)
            if name not in seen:
                crc = _checksum(data) if record.size and not inline else None
                yield member(record.name, 0 if inline else record.size, crc)
            seen.add(name)
            yield from map(segment, data)   # nothing is left of what has a checksum


def _telling(pieces: Iterator[bytes], told: Callable[[bytes], object]) -> Iterator[bytes]:
    for piece in pieces:
        told(piece)
        yield piece


def _checksum(pieces: Iterator[bytes]) -> bytes:
    crc = 0
    for piece in pieces:
        crc = crc64(piece, crc)
    return crc.to_bytes(8, "big")


def segment(data: bytes) -> dict[str, Any]:
    """A line's fields but for its ``position``: the stream's own *data*."""
    return {"type": _SEGMENT, "payload": base64.b64encode(data).decode()}


def member(name: bytes, size: int, crc: bytes | None) -> dict[str, Any]:
    """The same of a member with *size* bytes of data, whose checksum is *crc*; *name* is what the archive calls it."""
    entry: dict[str, Any] = {"type": _FILE}
    try:
        entry["name"] = name.decode()
    except UnicodeDecodeError:
        entry["name_raw"] = base64.b64encode(name).decode()
    if size:
        entry["size"] = size
    entry["payload"] = base64.b64encode(crc).decode() if crc is not None else None
    return entry
