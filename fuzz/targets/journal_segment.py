"""Any bytes are refused as a segment by a typed error, or give all the records and rows that their header promises."""

from __future__ import annotations

import hashlib

from fuzz import scratch
from layerjournal import segment
from layerjournal.errors import RecordError, SegmentError

_file = scratch.MemoryFile()


def check(data: bytes) -> None:
    _try(data)
    body = segment.MAGIC + data
    _try(body + hashlib.sha256(body).digest())   # magic and digest fit: what is between is looked at


def _try(data: bytes) -> None:
    try:
        loaded = segment.load(_file.holding(data).path)
        records, rows = list(loaded.records()), loaded.snapshot()
    except (SegmentError, RecordError):
        return
    assert len(records) == loaded.record_count
    assert sum(map(len, rows.values())) == loaded.row_count
