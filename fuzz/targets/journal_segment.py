"""Any bytes are refused as a segment by a typed error, or give all the records and rows that their header promises.

They are what its frame holds. As the frame, or as the whole file, they are looked at if they begin like one, and for one
input of 16.
"""

from __future__ import annotations

import hashlib

from fuzz import scratch
from fuzz.packing import MAGIC, packed
from fuzz.pieces import one_of
from layerjournal import segment
from layerjournal.errors import RecordError, SegmentError

_file = scratch.MemoryFile()


def check(data: bytes) -> None:
    _try(_sealed(packed(data)))
    also = one_of(data, 16)
    if also or data.startswith(MAGIC):
        _try(_sealed(data))
    if also or data.startswith(segment.MAGIC):
        _try(data)


def _sealed(frame: bytes) -> bytes:
    body = segment.MAGIC + frame
    return body + hashlib.sha256(body).digest()


def _try(data: bytes) -> None:
    try:
        loaded = segment.load(_file.holding(data).path)
        records, rows = list(loaded.records()), loaded.snapshot()
    except (SegmentError, RecordError):
        return
    assert len(records) == loaded.record_count
    assert sum(map(len, rows.values())) == loaded.row_count
