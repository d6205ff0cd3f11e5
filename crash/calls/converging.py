"""When two catalogs are the same but for the time of day: what "converges to the same dump" means here.

Rows hold the wall time of the record that made them. A recovery that was killed and begun again makes its records
later; everything else, sequence numbers included, must be as if it had not been.
"""

from __future__ import annotations

import io
from typing import Any

import msgpack


def timeless(dump: bytes) -> list[Any]:
    """A canonical dump without wall times."""
    return [_without_times(each) for each in msgpack.Unpacker(io.BytesIO(dump), strict_map_key=False)]


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if not str(k).endswith("_ns")}
    if isinstance(value, list):
        return [_without_times(each) for each in value]
    return value
