"""Any bytes as a tar-split are refused by ``DamagedError``, or understood. That tars come out of it again: ``unpack``.

They are what its frame holds; as the frame itself they are looked at if they begin like one, and for one input of 16.
"""

from __future__ import annotations

from fuzz import scratch
from fuzz.packing import MAGIC, packed
from fuzz.pieces import one_of
from layerstore.errors import DamagedError
from layerstore.formats.tarsplit import read_tar_split

_file = scratch.MemoryFile()


def check(data: bytes) -> None:
    _decode(packed(data))
    if data.startswith(MAGIC) or one_of(data, 16):
        _decode(data)


def _decode(data: bytes) -> None:
    try:
        list(read_tar_split(_file.holding(data).fd))
    except DamagedError:
        return
