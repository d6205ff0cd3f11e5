"""Small seeded mutations, for the ordinary test run: no engine, no coverage, the same inputs every time."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF)


def mutations(seeds: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """*count* inputs made from *seeds*: a few bytes changed, cut, doubled, or two seeds joined."""
    draw = random.Random(seed)
    for _ in range(count):
        data = bytearray(draw.choice(seeds))
        for _ in range(draw.randint(1, 4)):
            draw.choice((_byte, _bit, _cut, _double, _splice))(data, draw, seeds)
        yield bytes(data)


def _byte(data: bytearray, draw: random.Random, _seeds: Sequence[bytes]) -> None:
    if data:
        data[draw.randrange(len(data))] = draw.choice(_NUMBERS)


def _bit(data: bytearray, draw: random.Random, _seeds: Sequence[bytes]) -> None:
    if data:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _cut(data: bytearray, draw: random.Random, _seeds: Sequence[bytes]) -> None:
    start = draw.randrange(len(data) + 1)
    del data[start : start + draw.choice((1, 2, 512, len(data)))]


def _double(data: bytearray, draw: random.Random, _seeds: Sequence[bytes]) -> None:
    start = draw.randrange(len(data) + 1) // 512 * 512
    data[start:start] = data[start : start + 512]


def _splice(data: bytearray, draw: random.Random, seeds: Sequence[bytes]) -> None:
    other = draw.choice(seeds)
    data[draw.randrange(len(data) + 1) :] = other[draw.randrange(len(other) + 1) :]
