"""What is done to a file of the journal: bits, bytes, sectors, pages, lengths. By seed and number; nothing else changes.

A number means the same damage to the same bytes, whichever others are tried. What is changed is drawn from the bytes
that are not zero, as a rule: in a database most others are free space, where nothing has an effect.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

PAGE, SECTOR = 4096, 512


@dataclass(frozen=True, slots=True)
class Damage:
    """*what* was done to the file, in words, and what is left of it; None: it is not there any more. *kind*: in a word."""

    what: str
    data: bytes | None
    kind: str = ""

    def apply(self, path: str) -> None:
        if self.data is None:
            os.unlink(path)
            return
        with open(path, "r+b") as file:   # the same file, as a failing disk leaves it
            file.write(self.data)
            file.truncate()


def damage(data: bytes, seed: int, number: int) -> Damage:
    """The damage *number* of *seed* to a file that holds *data*. Something is always another byte than before."""
    draw = random.Random(f"{seed}:{number}")  # noqa: S311 - a draw that can be made again
    kinds = [kind for kind, weight in KINDS.items() for _ in range(weight)]
    while True:
        kind = draw.choice(kinds)
        made = kind(data, draw)
        if made.data != data:
            return replace(made, kind=kind.__name__.strip("_").replace("_", " "))


def _used(data: bytes, draw: random.Random) -> int:
    """Where a byte is that is not zero; once in ten anywhere."""
    while draw.random() > 0.1:
        at = draw.randrange(len(data))
        if data[at]:
            return at
    return draw.randrange(len(data))


def _put(data: bytes, at: int, new: bytes) -> bytes:
    return (data[:at] + new + data[at + len(new):])[:len(data)]


def _bit(data: bytes, draw: random.Random) -> Damage:
    at, bit = _used(data, draw), draw.randrange(8)
    return Damage(f"bit {bit} of byte {at} flipped", _put(data, at, bytes([data[at] ^ 1 << bit])))


def _header_bit(data: bytes, draw: random.Random) -> Damage:
    """In a page's header or the offsets behind it, where little is needed for much."""
    at = draw.randrange(0, len(data), PAGE) + draw.randrange(64)
    at, bit = min(at, len(data) - 1), draw.randrange(8)
    return Damage(f"bit {bit} of byte {at} flipped", _put(data, at, bytes([data[at] ^ 1 << bit])))


def _bytes(data: bytes, draw: random.Random) -> Damage:
    at = _used(data, draw)
    return Damage(f"8 bytes from {at} on are others", _put(data, at, draw.randbytes(8)))


def _sector(data: bytes, draw: random.Random) -> Damage:
    at = _used(data, draw) // SECTOR * SECTOR
    return Damage(f"512 bytes from {at} on are zero", _put(data, at, bytes(SECTOR)))


def _page(data: bytes, draw: random.Random) -> Damage:
    at = _used(data, draw) // PAGE * PAGE
    return Damage(f"page {at // PAGE} is zero", _put(data, at, bytes(PAGE)))


def _exchanged(data: bytes, draw: random.Random) -> Damage:
    """A write that went to the wrong place."""
    at, source = (_used(data, draw) // PAGE * PAGE for _ in range(2))
    return Damage(f"page {at // PAGE} holds page {source // PAGE}", _put(data, at, data[source:source + PAGE]))


def _torn(data: bytes, draw: random.Random) -> Damage:
    """The first part of a page is of another."""
    at, source = (_used(data, draw) // PAGE * PAGE for _ in range(2))
    length = SECTOR * draw.randrange(1, PAGE // SECTOR)
    what = f"the first {length} bytes of page {at // PAGE} are of page {source // PAGE}"
    return Damage(what, _put(data, at, data[source:source + length]))


def _shorter(data: bytes, draw: random.Random) -> Damage:
    """At a page's border, within a page, at either end."""
    length = draw.choice([
        draw.randrange(0, len(data), min(PAGE, len(data))), draw.randrange(len(data)), len(data) - 1, 0,
        min(draw.choice([1, 100, PAGE, 2 * PAGE]), len(data) - 1),
    ])
    return Damage(f"cut to {length} bytes of {len(data)}", data[:length])


def _lost(_data: bytes, _draw: random.Random) -> Damage:
    return Damage("unlinked", None)


KINDS: dict[Callable[[bytes, random.Random], Damage], int] = {   # and how often each
    _bit: 6, _header_bit: 4, _bytes: 3, _sector: 3, _page: 3, _exchanged: 2, _torn: 2, _shorter: 2, _lost: 1,
}
