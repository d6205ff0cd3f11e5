"""Any bytes as a layer's manifest are refused by ``DamagedError``, or give clean paths, each once."""

from __future__ import annotations

import os
import tempfile

from layerstore.compression import ZstdWriter
from layerstore.errors import DamagedError
from layerstore.manifest import final_entries

_BASE = "/dev/shm" if os.path.isdir("/dev/shm") else None


def check(data: bytes) -> None:
    _try(data)
    packed: list[bytes] = []
    writer = ZstdWriter(packed.append, level=1)
    writer.write(data)
    writer.close()
    _try(b"".join(packed))   # as if it were the records themselves


def _try(data: bytes) -> None:
    with tempfile.TemporaryFile(dir=_BASE) as file:
        file.write(data)
        file.flush()
        try:
            entries = list(final_entries(file.fileno()))
        except DamagedError:
            return
    for entry in entries:
        assert not {b".", b".."} & set(entry.path.split(b"/")), entry.path
