"""Any bytes, in whatever pieces, are read as the same entries and data, or refused by the same typed error.

And what is accepted was consumed to its last byte, has clean relative names, and no more data than it came with. Of seven
inputs of eight the headers' sums are set right first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fuzz.pieces import in_pieces
from fuzz.sums import with_right_sums
from layerstore.errors import ArchiveError, LimitExceededError
from layerstore.formats.tar import Entry, TarReader
from layerstore.model import Limits

LIMITS = Limits(max_entries=2_000, max_bytes=64 << 20, max_pax_record=1 << 16)


def check(data: bytes) -> None:
    data = with_right_sums(data)
    pieces = in_pieces(data)
    assert _read(pieces, len(data)) == _read([data], len(data)), f"read in {len(pieces)} pieces it is something else"


def _read(pieces: Iterable[bytes], length: int) -> tuple[str, list[tuple[Entry, bytes]]]:
    found: list[tuple[Entry, bytes]] = []
    reader = TarReader(pieces, LIMITS, require_end=False)
    try:
        for entry in reader:
            found.append((entry, _data(reader.read_data(entry), length)))
            _look(entry)
    except (ArchiveError, LimitExceededError) as error:
        return f"{type(error).__name__}: {error}", found
    assert reader.offset == length, f"{reader.offset} of {length} bytes were consumed"
    return "", found


def _data(pieces: Iterator[memoryview], most: int) -> bytes:
    data = b""
    for piece in pieces:
        data += piece
        assert len(data) <= most, "more data than there are bytes"
    return data


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
