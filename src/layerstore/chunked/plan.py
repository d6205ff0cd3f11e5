"""What of a blob is fetched, and what is taken from elsewhere: decided here, and done by the differ. Pure.

Ranges that lie near each other become one: the bytes between them are fetched for nothing. But a range costs bytes, too,
those that say which it is, so a gap that is shorter is always closed. Others, by what a request costs: a round trip of
20 ms at 50 Mbit/s is 128 KiB, so no longer gap is ever closed; and what goes over the wire beside what is needed, gaps
and what is said of ranges, stays under 4 % of that where it can, so that a partial pull stays within 5 % of the least.
Smallest gaps first: they spare most ranges for their bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from layerstore.chunked.layout import Chunk, File, Gap

__all__ = ["Fetch", "Local", "Part", "Plan", "Zeros", "make_plan", "merged", "wanted"]

_NEVER = 128 << 10                       # bytes between two ranges
_WASTE = 25                              # one byte in as many of those needed
_RANGE = 180                             # bytes a range costs: in the request, and of its part's headers (RFC 9110 §14.6)
_WASTE_LEAST = 4 << 10                   # bytes, of a small layer
_new = tuple.__new__                     # what a NamedTuple does, too, in twice the time: one is made per chunk


class Fetch(NamedTuple):
    """A unit of the blob. ``pieces``: what it decompresses to, (bytes, digest or None); ``exact``: and nothing else."""

    start: int
    length: int
    pieces: tuple[tuple[int, bytes | None], ...]
    exact: bool


class Local(NamedTuple):
    """Content that is here; ``instead`` is fetched if it turns out to be damaged. ``path`` is given for whole files."""

    digest: bytes
    size: int
    instead: tuple[Fetch, ...]
    path: bytes | None = None


class Zeros(NamedTuple):
    """So many bytes that are zero."""

    size: int


Part = Fetch | Local | Zeros


class Plan(NamedTuple):
    """``parts`` in the order of the tar, ``ranges`` of the blob (start, length) that the fetched ones need, in order."""

    parts: list[Part]
    ranges: list[tuple[int, int]]

    @property
    def spared(self) -> int:
        """Bytes of the blob that need not be fetched because what is in them is here (a few come along in a range)."""
        return sum(each.length for part in self.parts if isinstance(part, Local) for each in part.instead)


def wanted(items: Iterable[File | Gap]) -> tuple[set[bytes], dict[bytes, tuple[bytes, int, int]]]:
    """The digests that are worth looking for: of files, and of chunks of files that have several.

    And where these lie: path, offset and length.
    """
    found: set[bytes] = set()
    where: dict[bytes, tuple[bytes, int, int]] = {}
    for item in items:
        if not isinstance(item, File):
            continue
        if item.digest is not None:
            found.add(item.digest)
        if len(item.chunks) > 1 or item.digest is None:
            at = item.at
            for chunk in item.chunks:
                if chunk.digest is not None and not chunk.zeros:
                    where[chunk.digest] = (item.path, at, chunk.size)
                at += chunk.size
    return found | where.keys(), where


def make_plan(items: Iterable[File | Gap], found: Mapping[bytes, int]) -> Plan:
    """How to get all of *items*, given that content with the digests in *found*, of so many bytes each, is here."""
    parts: list[Part] = []
    for item in items:
        if isinstance(item, Gap):
            parts.append(Fetch(item.start, item.length, item.pieces, exact=False))
        elif item.digest is not None and found.get(item.digest) == item.size and not all(c.zeros for c in item.chunks):
            parts.append(Local(item.digest, item.size, tuple(_fetch(c) for c in item.chunks), item.path))
        else:
            parts.extend(_part(chunk, found) for chunk in item.chunks)
    return Plan(parts, merged([(part.start, part.length) for part in parts if isinstance(part, Fetch)]))


def _part(chunk: Chunk, found: Mapping[bytes, int]) -> Part:
    if chunk.zeros:
        return Zeros(chunk.size)
    if chunk.digest is not None and found.get(chunk.digest) == chunk.size:
        return Local(chunk.digest, chunk.size, (_fetch(chunk),))
    return _fetch(chunk)


def _fetch(chunk: Chunk) -> Fetch:
    start, length, size, digest, _ = chunk
    return _new(Fetch, (start, length, ((size, digest),), True))


def merged(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """*ranges*, ascending and apart, with those made one whose gaps cost less than another request would."""
    budget = max(sum(length for _, length in ranges) // _WASTE, _WASTE_LEAST) - _RANGE * len(ranges)
    gaps = sorted(
        (after[0] - sum(before), number)
        for number, (before, after) in enumerate(itertools.pairwise(ranges))
    )
    closed: set[int] = set()
    for gap, number in gaps:
        budget -= gap - _RANGE
        if gap > _NEVER or (gap > _RANGE and budget < 0):
            break
        closed.add(number)
    found: list[tuple[int, int]] = []
    for number, (start, length) in enumerate(ranges):
        if found and number - 1 in closed:
            begin = found[-1][0]
            found[-1] = (begin, start + length - begin)
        else:
            found.append((start, length))
    return found
