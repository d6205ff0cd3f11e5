"""Any bytes as a layer's manifest are refused by ``DamagedError``, or give clean paths, each once."""

from __future__ import annotations

from fuzz import scratch
from fuzz.packing import packed
from layerstore.errors import DamagedError
from layerstore.formats.manifest import final_entries

_file = scratch.MemoryFile()


def check(data: bytes) -> None:
    _try(data)
    _try(packed(data))   # as if it were the records themselves


def _try(data: bytes) -> None:
    try:
        entries = list(final_entries(_file.holding(data).fd))
    except DamagedError:
        return
    for entry in entries:
        assert not {b".", b".."} & set(entry.path.split(b"/")), entry.path
    paths = [entry.path for entry in entries]
    assert len(paths) == len(set(paths)), "a path that comes twice"
