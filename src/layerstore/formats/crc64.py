"""CRC-64 as Go's ``hash/crc64`` has it with its ISO table: what tar-split lines carry for each file.

By the wheel ``fastcrc`` (the extra ``export``) where it is installed, else with Python's long integers: some hundred times
slower than that, and forty times faster than byte by byte.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["crc64"]

_ALL = 0xFFFF_FFFF_FFFF_FFFF
_PIECE = 1 << 16                         # bytes at once: the numbers stay in the processor's cache


def _plain(data: bytes, initial: int = 0) -> int:
    with memoryview(data) as view:
        for start in range(0, len(view), _PIECE):
            initial = _folded(view[start : start + _PIECE], initial)
    return initial


def _folded(data: memoryview, initial: int) -> int:
    """The remainder of *data*, as a polynomial over GF(2), by x^64 + x^4 + x^3 + x + 1 (ISO 3309).

    Modulo it x^64 is x^4 + x^3 + x + 1 = (x + 1)(x^3 + 1). Squaring is linear there, so for each power of two k also
    x^64k is (x^k + 1)(x^3k + 1): what lies more than 64k bits from the end is added to the rest by two shifts. The
    first bit of the data, and the lowest of the number, is the highest power.
    """
    value = int.from_bytes(data, "little") ^ initial ^ _ALL
    width = 8 * len(data) + 64           # with the 64 zeros that a CRC appends
    while width > 64:
        k = 1 << ((width - 1) // 64).bit_length() - 1   # the largest for which 64 k is less than the width
        over = width - 64 * k
        head, value = value & (1 << over) - 1, value >> over
        head ^= head << k
        head ^= head << 3 * k
        behind = 60 * k - over           # what the head, now 4 k longer, is shorter than the rest
        value = head << behind ^ value if behind > 0 else head ^ value << -behind
        width = 64 * k + max(0, -behind)
    return value ^ _ALL


crc64: Callable[[bytes, int], int]
"""``crc64(data, before)``: of *data*, following what has the checksum *before* (0: nothing)."""

try:
    from fastcrc import crc64 as _fast
except ImportError:   # the extra is not installed
    crc64 = _plain
else:
    crc64 = _fast.go_iso
