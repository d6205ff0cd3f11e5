"""Any bytes, in whatever chunks, are read as the same entries and data, or refused by the same typed error.

And what is accepted was consumed to its last byte, has clean relative names, and no more data than it came with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from layerstore.errors import ArchiveError, LimitExceededError
from layerstore.formats.tar import Entry, TarReader
from layerstore.model import Limits

LIMITS = Limits(max_entries=2_000, max_bytes=64 << 20, max_pax_record=1 << 16)


def check(data: bytes) -> None:
    whole = _read(data, len(data) or 1)
    step = 1 + len(data) % 1021
    assert _read(data, step) == whole, f"read in chunks of {step} bytes it is something else"


def _read(data: bytes, step: int) -> tuple[str, list[tuple[Entry, str]]]:
    found: list[tuple[Entry, str]] = []
    reader = TarReader((data[at : at + step] for at in range(0, len(data), step)), LIMITS, require_end=False)
    try:
        for entry in reader:
            found.append((entry, _digest(reader.read_data(entry), len(data))))
            _look(entry)
    except (ArchiveError, LimitExceededError) as error:
        return f"{type(error).__name__}: {error}", found
    assert reader.offset == len(data), f"{reader.offset} of {len(data)} bytes were consumed"
    return "", found


def _digest(pieces: Iterator[memoryview], most: int) -> str:
    digest, size = hashlib.sha256(), 0
    for piece in pieces:
        digest.update(piece)
        size += len(piece)
    assert size <= most, "more data than there are bytes"
    return digest.hexdigest()


def _look(entry: Entry) -> None:
    parts = entry.name.split(b"/") if entry.name else []
    assert not {b"", b".", b".."} & set(parts), f"an unclean name: {entry.name!r}"
    assert b"\0" not in entry.name + entry.linkname, "a NUL in a name"
    assert 0 <= entry.mode <= 0o7777, f"mode {entry.mode:o}"
    assert entry.size >= 0, "a negative size"
    if entry.sparse is not None:
        ends = [0, *(at + length for at, length in entry.sparse)]
        assert all(at >= end for (at, _), end in zip(entry.sparse, ends, strict=False)), "segments out of order"
        assert ends[-1] <= entry.size, "a segment beyond the file's end"
