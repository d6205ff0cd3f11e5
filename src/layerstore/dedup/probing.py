"""Chunks of layers whose index knows whole files only: looked for in the file of the same path, at the same offset.

A rebuilt image often has files that differ in a few bytes, as ``.pyc`` files do in the time that they embed; then the
chunks behind them lie where they lay. What is found is hashed here, once; whoever takes it hashes it again (ADR 0022).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from layerstore.dedup.places import Source, digest_of
from layerstore.errors import DamagedError
from layerstore.formats.digests import Found, Reader

__all__ = ["Budget", "Chunks", "Wanted", "by_path", "in_common", "probe"]

Wanted = tuple[bytes, int, int]          # path, offset and length that a digest has in the blob
Chunks = Mapping[bytes, list[tuple[int, int, bytes]]]   # by path: offset, length, digest
_MISSES = 4                              # chunks of a file that are not there: then its content has moved


class Budget:
    """Bytes that may yet be read, of all layers together, whether anything is found in them or not."""

    def __init__(self, left: int) -> None:
        self.left = left

    def spend(self, count: int) -> bool:
        """False, and nothing is spent, if *count* is more than is left."""
        if count > self.left:
            return False
        self.left -= count
        return True


def by_path(wanted: Iterable[tuple[bytes, Wanted]]) -> Chunks:
    """The *wanted* digests by the path that they have in the blob, in the order of their offsets."""
    found: dict[bytes, list[tuple[int, int, bytes]]] = {}
    for digest, (path, offset, length) in wanted:
        found.setdefault(path, []).append((offset, length, digest))
    for chunks in found.values():
        chunks.sort()
    return found


def in_common(reader: Reader, wanted: Chunks) -> int:
    """How many of the files that are *wanted* the layer of *reader* has, and knows as a whole only."""
    return sum(len(block.whole_files() & wanted.keys()) for block in reader.paths())


def probe(reader: Reader, source: Callable[[], Source | None], wanted: Chunks, budget: Budget) -> Iterator[Found]:
    """What of *wanted* is found in the layer of *reader* and *source*, which is asked for when it is needed."""
    for block in reader.paths():
        for path in block.whole_files() & wanted.keys():
            held = source()
            if held is None or not budget.left:
                return
            yield from _file(held, path, wanted[path], budget)


def _file(source: Source, path: bytes, wanted: list[tuple[int, int, bytes]], budget: Budget) -> Iterator[Found]:
    """The chunks of one file that are where they are wanted."""
    misses = 0
    try:
        file, size = source.open(path)
        with file as fd:
            for offset, length, digest in wanted:
                if offset + length > size or misses >= _MISSES:
                    return
                if not budget.spend(length):
                    continue
                if digest_of(fd, offset, length) == digest:
                    yield Found(digest, path, offset, length)
                else:
                    misses += 1
    except (OSError, DamagedError):      # not there, no file, not to be read: then it is fetched
        return
