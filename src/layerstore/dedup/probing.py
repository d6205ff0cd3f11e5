"""Chunks of layers whose index knows whole files only: looked for in the file of the same path, at the same offset.

A rebuilt image often has files that differ in a few bytes, as ``.pyc`` files do in the time that they embed; then the
chunks behind them lie where they lay. What is found is hashed here, once; whoever takes it hashes it again (ADR 0022).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping

from layerstore.dedup.places import Source
from layerstore.errors import DamagedError
from layerstore.formats.digests import Found, Reader

__all__ = ["Wanted", "probe"]

Wanted = tuple[bytes, int, int]          # path, offset and length that a digest has in the blob
_MISSES = 4                              # chunks of a file that are not there: then its content has moved


def probe(
    reader: Reader, source: Callable[[], Source | None], wanted: Mapping[bytes, Wanted], budget: int,
) -> Iterator[Found]:
    """What of *wanted* is found in the layer of *reader* and *source*, reading at most *budget* bytes there."""
    by_path: dict[bytes, list[tuple[int, int, bytes]]] = {}
    for digest, (path, offset, length) in wanted.items():
        by_path.setdefault(path, []).append((offset, length, digest))
    for block in reader.paths():
        for path in block.whole_files() & by_path.keys():
            held = source()
            if held is None or budget <= 0:
                return
            for found, cost in _file(held, path, sorted(by_path[path])):
                budget -= cost
                if found is not None:
                    yield found
                if budget <= 0:
                    return


def _file(source: Source, path: bytes, wanted: list[tuple[int, int, bytes]]) -> Iterator[tuple[Found | None, int]]:
    """The chunks of one file that are where they are wanted, and what each look cost in bytes."""
    misses = 0
    try:
        file, size = source.open(path)
        with file as fd:
            for offset, length, digest in wanted:
                if offset + length > size or misses >= _MISSES:
                    return
                if hashlib.sha256(os.pread(fd, length, offset)).digest() == digest:
                    yield Found(digest, path, offset, length), length
                else:
                    misses += 1
                    yield None, length
    except (OSError, DamagedError):      # not there, no file, not to be read: then it is fetched
        return
