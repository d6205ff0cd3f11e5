"""A layer's tar-split in the format of the Go tools (vbatts/tar-split ``tar/storage``): JSON lines, not compressed.

Type 2 is a segment of the stream's own bytes, type 1 a member with the name that the archive gives it, its size and
the CRC-64 of its data, which is read from the tree. Where a reader of that format would look for data in the wrong
place (a file that was replaced by a later entry, a path through a symbolic link, a sparse file) the data is given as
a segment instead; a name comes as a member once, since those readers refuse a second one.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

from layerstore.formats.crc64 import crc64
from layerstore.formats.packed import open_regular
from layerstore.formats.tarsplit import NAME, Member, read_tar_split
from layerstore.trees.assemble import Content

__all__ = ["lines", "member", "segment"]

_FILE, _SEGMENT = 1, 2


def lines(tree_fd: int) -> Iterator[bytes]:
    """The lines for the layer whose directory is open as *tree_fd*. DamagedError, OSError as ``assembled``."""
    with open_regular(NAME, tree_fd) as split_fd, Content(tree_fd, split_fd) as content:
        for position, entry in enumerate(_entries(split_fd, content)):
            yield json.dumps({**entry, "position": position}, separators=(",", ":")).encode() + b"\n"


def _entries(split_fd: int, content: Content) -> Iterator[dict[str, Any]]:
    seen: set[bytes] = set()
    for number, record in enumerate(read_tar_split(split_fd)):
        if isinstance(record, bytes):
            yield segment(record)
        elif isinstance(record, Member):
            name = b"/".join(part for part in record.name.split(b"/") if part not in (b"", b"."))
            inline = bool(record.size) and (
                name in seen or name != record.path or record.segments is not None
                or content.is_kept(record, number) is not None
            )
            if name not in seen:
                crc = None if inline else _checksum(record, content, number)
                yield member(record.name, 0 if inline else record.size, crc)
            seen.add(name)
            if inline:
                yield from map(segment, content.of(record, number))


def _checksum(member: Member, content: Content, number: int) -> bytes | None:
    if not member.size:
        return None
    crc = 0
    for piece in content.of(member, number):
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
