"""A reader of the tar-split of the Go tools, as simple as the format: positions in order, no name twice, a CRC-64 for every
content. ``layerstore.trees.gotarsplit``, which writes it, is not used.
"""

from __future__ import annotations

import base64
import json
import os

from layerstore.formats.crc64 import crc64

_FILE, _SEGMENT = 1, 2


def rebuilt(text: bytes, diff_fd: int) -> bytes:
    """What a reader of the format makes of the lines and the files below *diff_fd*."""
    out, names = b"", set()
    for number, line in enumerate(text.splitlines()):
        entry = json.loads(line)
        assert entry["position"] == number, "positions out of order"
        if entry["type"] == _SEGMENT:
            out += base64.b64decode(entry["payload"], validate=True)
            continue
        assert entry["type"] == _FILE
        name = entry["name"].encode() if "name" in entry else base64.b64decode(entry["name_raw"])
        clean = os.path.normpath(name).lstrip(b"/")
        assert clean not in names, "a name that comes twice is refused by readers of this format"
        names.add(clean)
        if entry.get("size"):
            data = _content(clean, diff_fd)
            assert len(data) == entry["size"], "a file of another size"
            assert base64.b64decode(entry["payload"]) == crc64(data, 0).to_bytes(8, "big"), "another checksum"
            out += data
        else:
            assert entry["payload"] is None
    return out


def _content(path: bytes, diff_fd: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=diff_fd)
    with open(fd, "rb", buffering=0) as file:
        return file.read()
