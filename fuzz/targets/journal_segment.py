"""Any bytes are refused as a segment by a typed error, or give all the records and rows that their header promises."""

from __future__ import annotations

import hashlib
import os
import tempfile

from layerjournal import segment
from layerjournal.errors import RecordError, SegmentError

_BASE = "/dev/shm" if os.path.isdir("/dev/shm") else None


def check(data: bytes) -> None:
    _try(data)
    body = segment.MAGIC + data
    _try(body + hashlib.sha256(body).digest())   # magic and digest fit: what is between is looked at


def _try(data: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=_BASE, suffix=".seg") as file:
        file.write(data)
        file.flush()
        try:
            loaded = segment.load(file.name)
            records, rows = list(loaded.records()), loaded.snapshot()
        except (SegmentError, RecordError):
            return
        assert len(records) == loaded.record_count
        assert sum(map(len, rows.values())) == loaded.row_count
