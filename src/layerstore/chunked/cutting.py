"""Where the data of a file is cut into chunks: by its content alone, at the places where the field's tools cut. Pure.

A run of at least 1024 zeros is a chunk of its own. Other data is cut after each byte at which the rolling checksum of the
64 bytes up to it ends in 16 ones: every 64 KiB or so, and in the same places again behind an insertion. There is no least
and no greatest size. Whatever cuts elsewhere makes right blobs, too, but finds no chunk again in those of others.

Source: containers/storage ``pkg/chunked/compressor`` (``RollsumBits``, ``holesThreshold``), perkeep ``rollsum``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

__all__ = ["HOLE", "Piece", "cut"]

HOLE = 1024                              # zeros in a row, at least, that are a chunk of their own
_HOLE = bytes(HOLE)
_RUN = re.compile(rb"\x00*")
_STEP = 1 << 16                          # bytes looked at at once: what is made of them stays in the processor's cache
_PIECE = 1 << 20

# The checksum is a constant (64 * 63 * 31) and the last byte, twice the one before it, up to 64 times the oldest of the
# window. It ends in 16 ones where that sum, of 16 bits, is _WANTED.
_WINDOW = 64
_WANTED = (0xFFFF - _WINDOW * (_WINDOW - 1) * 31) & 0xFFFF
_WEIGHTS = int.from_bytes(b"".join((n + 1).to_bytes(2, "little") for n in range(_WINDOW)), "little")
_CARRY = _WINDOW * (_WINDOW + 1) // 2 * 255 >> 16   # at most, out of one sum into the next
_LOW, _HIGH = _WANTED & 0xFF, _WANTED >> 8
assert _LOW + _CARRY < 0x100             # so that a carry never changes the high byte of a sum that is wanted


class Piece(NamedTuple):
    """Some of the next data of a file, perhaps none. ``zeros``: of a run of them; ``ends``: the chunk ends with it."""

    data: bytes
    zeros: bool
    ends: bool


def cut(data: Iterable[bytes], is_wanted: Callable[[], bool] = lambda: True) -> Iterator[Piece]:
    """The same *data*, and where it is to be cut. How it came in pieces makes no difference to that.

    Once *is_wanted* says no, it comes without: soon, for data may be cut after each byte.
    """
    roll = _Rolling(is_wanted)
    run = 0                              # zeros that are not handed on yet: too few for a hole, or one that goes on
    for piece in data:
        at = 0
        if run:
            at = _zeros_from(piece, 0)
            run += at
            if at == len(piece):
                continue
            yield from _run(run, roll)
            run = 0
        while at < len(piece):
            hole = piece.find(_HOLE, at)
            if hole < 0:
                end = len(piece) - _zeros_before(piece, at)
                run = len(piece) - end
            else:
                end, after = hole, _zeros_from(piece, hole)
                run = after - hole
            yield from roll.over(piece[at:end])
            if hole < 0 or after == len(piece):
                break
            yield from _run(run, roll)
            run, at = 0, after
    yield from _run(run, roll)


def _run(count: int, roll: _Rolling) -> Iterator[Piece]:
    """A run of *count* zeros, which ended."""
    if count < HOLE:
        yield from roll.over(bytes(count))
        return
    yield Piece(b"", zeros=False, ends=True)
    for start in range(0, count, _PIECE):
        left = count - start
        yield Piece(bytes(min(left, _PIECE)), zeros=True, ends=left <= _PIECE)
    roll.over_hole()


def _zeros_from(data: bytes, at: int) -> int:
    """Where the zeros that begin at *at* end."""
    match = _RUN.match(data, at)
    assert match is not None
    return match.end()


def _zeros_before(data: bytes, at: int) -> int:
    """How many zeros are at the end of *data*, from *at*. They are fewer than a hole has."""
    tail = data[max(at, len(data) - HOLE) :]
    return len(tail) - len(tail.rstrip(b"\0"))


class _Rolling:
    """The checksum over the data of one file: of it all, the last bytes are enough."""

    def __init__(self, is_wanted: Callable[[], bool]) -> None:
        self._is_wanted = is_wanted
        self.over_hole()

    def over_hole(self) -> None:
        self._before = bytes(_WINDOW - 1)

    def over(self, data: bytes) -> Iterator[Piece]:
        for start in range(0, len(data), _STEP):
            step = data[start : start + _STEP]
            if not self._is_wanted():
                yield Piece(step, zeros=False, ends=False)
                continue
            seen = self._before + step
            at = 0
            for end in _ends(seen):
                yield Piece(step[at:end], zeros=False, ends=True)
                at = end
            if at < len(step):
                yield Piece(step[at:], zeros=False, ends=False)
            self._before = seen[1 - _WINDOW :]


def _ends(seen: bytes) -> Iterator[int]:
    """Where to cut in what follows the first 63 bytes of *seen*, counted from there.

    All sums at once: the bytes are the digits, of 16 bits, of one large number, and its product with the number whose
    digits are the weights has the sums as its digits, but for what the one before carries over.
    """
    digits = bytearray(2 * len(seen))
    digits[::2] = seen
    sums = (int.from_bytes(digits, "little") * _WEIGHTS).to_bytes(len(digits) + 2 * _WINDOW + 2, "little")
    high = sums[1 : len(digits) : 2]
    at = high.find(_HIGH, _WINDOW - 1)
    while at >= 0:
        if _LOW <= sums[2 * at] <= _LOW + _CARRY and _sum(seen, at) & 0xFFFF == _WANTED:
            yield at - (_WINDOW - 2)
        at = high.find(_HIGH, at + 1)


def _sum(seen: bytes, at: int) -> int:
    return sum(weight * seen[at + 1 - weight] for weight in range(1, _WINDOW + 1))
