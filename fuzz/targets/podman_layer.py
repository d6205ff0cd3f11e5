"""Any bytes as the tar-split of a layer of podman's are refused by a typed error, or give nothing from outside the tree.

What the tree holds is one file; beside it, reachable over links only, lies a secret that must not come out. The bytes are
what a gzip stream holds; as the stream itself they are looked at if they begin like one, and for one input of 16.
"""

from __future__ import annotations

import gzip
import os

from fuzz import scratch
from fuzz.pieces import one_of
from layerstore.errors import InputError
from layerstore.sources.made_again import TreeBlob

_SECRET = b"a secret that no layer may give away"
_outside = scratch.Outside()
_split = scratch.MemoryFile()


def _tree() -> str:
    with open(f"{_outside.path}/secret", "wb") as file:
        file.write(_SECRET)
    tree = f"{_outside.path}/tree"
    os.mkdir(tree)
    with open(f"{tree}/f", "wb") as file:
        file.write(b"data!")
    for name, target in (("up", ".."), ("out", _outside.path), ("root", "/"), ("f-link", "f"), ("s-link", "../secret")):
        os.symlink(target, f"{tree}/{name}")
    os.mkfifo(f"{tree}/fifo")
    return tree


_made = _tree()


def check(data: bytes) -> None:
    whole = data.startswith(b"\x1f\x8b") or one_of(data, 16)
    for text in (gzip.compress(data, 0, mtime=0), data) if whole else (gzip.compress(data, 0, mtime=0),):
        _split.holding(text)
        blob = TreeBlob(_made, _split.path, 0, "the layer")
        out = b""
        try:
            with blob.open() as stream:
                while piece := stream.read(1 << 16):
                    out += piece
        except InputError as error:
            assert len(str(error)) < 20_000, "an error as long as its input"
        assert _SECRET not in out, "a file from outside of the tree"
