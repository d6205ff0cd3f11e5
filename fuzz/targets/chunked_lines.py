"""Any bytes as a tar-split's lines are refused by ``TocError``, or are what a plain JSON parser makes of each line.

It does not matter in which pieces they come.
"""

from __future__ import annotations

import base64
import json

from fuzz.pieces import in_pieces
from layerstore.chunked.golines import Payload, read_lines
from layerstore.errors import TocError


def check(data: bytes) -> None:
    found = _read([data])
    assert _read(in_pieces(data, 13)) == found, "what they are depends on the pieces that they come in"
    if found is None:
        return
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    assert len(lines) == len(found)
    for number, (line, read) in enumerate(zip(lines, found, strict=True)):
        entry = json.loads(line)
        assert entry.get("position", 0) == number, "positions out of order"
        payload = base64.b64decode(entry["payload"], validate=True) if entry.get("payload") else None
        if isinstance(read, bytes):
            assert (entry["type"], payload or b"") == (2, read)
        else:
            assert isinstance(read, Payload)
            assert (entry["type"], entry.get("size", 0), payload) == (1, read.size, read.crc)
            raw = entry.get("name_raw")
            assert read.name == (base64.b64decode(raw, validate=True) if raw else entry["name"].encode())


def _read(pieces: list[bytes]) -> list[bytes | Payload] | None:
    try:
        return list(read_lines(pieces))
    except TocError as error:
        assert len(str(error)) < 2_000, "an error as long as its input"
        return None
