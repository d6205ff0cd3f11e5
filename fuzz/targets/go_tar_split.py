"""Any bytes that are unpacked come again, byte for byte, from the lines for the Go tools and the files of the tree alone.

The reader of that format is written here: positions in order, no name twice, a CRC-64 for every content. Of seven
inputs of eight the headers' sums are set right before they are unpacked.
"""

from __future__ import annotations

import base64
import json
import os

from fuzz import scratch
from fuzz.sums import with_right_sums
from fuzz.targets.unpack import FORM, LIMITS
from layerstore.errors import ArchiveError, LimitExceededError
from layerstore.formats.crc64 import crc64
from layerstore.model import DiffTarget
from layerstore.trees.gotarsplit import lines
from layerstore.trees.unpack import unpack

_FILE, _SEGMENT = 1, 2
_outside = scratch.Outside()
_layer = scratch.Layer("tree", _outside.fd)


def check(data: bytes) -> None:
    tree, data = _layer.emptied(), with_right_sums(data)
    try:
        unpack([data], DiffTarget(tree.dir_fd, tree.diff_fd, overlay_form=FORM, limits=LIMITS), require_end=False)
    except (ArchiveError, LimitExceededError):
        return
    assert rebuilt(b"".join(lines(tree.dir_fd)), tree.diff_fd) == data, "another tar came out"


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
