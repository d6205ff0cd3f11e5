"""CRC-64 as Go's ``hash/crc64`` has it with its ISO table: what tar-split lines carry for each file.

By the wheel ``fastcrc`` (the extra ``export``) where it is installed, else in plain Python, some thousand times slower.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["crc64"]

_POLYNOMIAL = 0xD800000000000000         # reflected (ISO 3309)
_ALL = 0xFFFF_FFFF_FFFF_FFFF


def _table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
        table.append(crc)
    return table


_TABLE = _table()


def _plain(data: bytes, initial: int = 0) -> int:
    crc = initial ^ _ALL
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ _ALL


crc64: Callable[[bytes, int], int]
"""``crc64(data, before)``: of *data*, following what has the checksum *before* (0: nothing)."""

try:
    from fastcrc import crc64 as _fast
except ImportError:   # the extra is not installed
    crc64 = _plain
else:
    crc64 = _fast.go_iso
