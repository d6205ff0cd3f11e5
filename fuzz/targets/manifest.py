"""Any bytes as a layer's manifest are refused by ``DamagedError``, or give clean paths, each once.

They are what its frame holds; as the frame itself they are looked at if they begin like one, and for one input of 16.
"""

from __future__ import annotations

from fuzz import scratch
from fuzz.packing import MAGIC, packed
from fuzz.pieces import one_of
from layerstore.errors import DamagedError
from layerstore.formats.manifest import final_entries

_file = scratch.MemoryFile()


def check(data: bytes) -> None:
    _try(packed(data))
    if data.startswith(MAGIC) or one_of(data, 16):
        _try(data)


def _try(data: bytes) -> None:
    try:
        entries = list(final_entries(_file.holding(data).fd))
    except DamagedError:
        return
    for entry in entries:
        assert not {b".", b".."} & set(entry.path.split(b"/")), entry.path
    paths = [entry.path for entry in entries]
    assert len(paths) == len(set(paths)), "a path that comes twice"
