"""Archived log: sealed zstd segments, each with a snapshot of the tables. The only module that imports zstandard.

A segment holds whole groups of records, in order, and all tables as they were after its last record; so segments
before it can be dropped. FORMAT.md §4 has the bytes::

    magic (8) ‖ one zstd frame of items ‖ sha256 of all before (32)
    item = length (4, big-endian) ‖ bytes;   items: header, records as stored, rows [table, key, body]

Both ways are streams: neither a segment nor its snapshot has to fit into memory twice.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise
from typing import Any

import zstandard

from layerjournal.codec import MAX_BYTES, decode, encode
from layerjournal.effects import Effects
from layerjournal.errors import RecordError, SegmentError, UsageError
from layerjournal.record import LINK_BYTES, Record, unseal
from layerjournal.views import Bodies

MAGIC = b"LJSEG\x00\x00\x01"
VERSION = 1
DIGEST_BYTES = 32
ASIDE = ".new"
_NAME = re.compile(r"(\d{20})-(\d{20})\.seg\Z")
_LENGTH = struct.Struct(">I")
_MAX_ITEM = MAX_BYTES + 4096            # a row's body, its table and key
_MAX_WINDOW = 1 << 27                   # bytes that decompression may need to look back
_FEED = 512                             # so few bytes cannot become more than 16 MiB at once
_HEADER = {
    "version": int, "uuid": str, "first": int, "last": int, "prev_link": bytes, "last_link": bytes, "records": int,
    "rows": int, "tables": list,
}


@dataclass(frozen=True, slots=True)
class Segment:
    """A sealed segment file. ``digest`` is the sha256 at its end; links are what the chain had before and after."""

    path: str
    uuid: str
    first: int
    last: int
    prev_link: bytes
    last_link: bytes
    digest: bytes
    record_count: int
    row_count: int
    tables: tuple[str, ...]

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    def as_payload(self) -> dict[str, Any]:
        """What the journal records of it."""
        return {
            "name": self.name, "first": self.first, "last": self.last, "prev_link": self.prev_link,
            "last_link": self.last_link, "digest": self.digest,
        }

    def records(self) -> Iterator[Record]:
        """Its records, verified link by link. RecordError, SegmentError."""
        for record, _ in self.stored_records():
            yield record

    def stored_records(self) -> Iterator[tuple[Record, bytes]]:
        """Its records, each with its stored bytes."""
        return self._records(self._items())

    def _records(self, items: Iterator[bytes]) -> Iterator[tuple[Record, bytes]]:
        link = self.prev_link
        for seq in range(self.first, self.last + 1):
            stored = next(items)
            record = unseal(stored, link, seq=seq)
            link = record.link
            yield record, stored
        if link != self.last_link:
            raise SegmentError(f"{self.name}: its records end on another link than its header says")

    def snapshot(self) -> Bodies:
        """All tables, the journal's own too, as they were after its last record."""
        items = self._items()
        for _ in range(self.record_count):
            next(items)
        return self._rows(items, {})

    def both(self) -> tuple[Iterator[Record], Callable[[Bodies], Bodies]]:
        """Its records and, when all of them were taken, its snapshot, from one reading.

        The snapshot is asked for with the tables as they are expected: rows that are the same bytes are not decoded
        again, because they were encoded, or decoded, to get there.
        """
        items = self._items()
        return (record for record, _ in self._records(items)), partial(self._rows, items)

    def _rows(self, items: Iterator[bytes], known: Bodies) -> Bodies:
        bodies: Bodies = {name: {} for name in self.tables}
        previous = ("", "")
        for item in items:
            table, key, body = self._row(item, known)
            if table not in bodies or (table, key) <= previous:   # code points, which is the order of UTF-8 bytes
                raise SegmentError(f"{self.name}: the row {key!r} of table {table!r} is out of place in its snapshot")
            previous = (table, key)
            bodies[table][key] = body
        return bodies

    def _row(self, item: bytes, known: Bodies) -> tuple[str, str, bytes]:
        try:
            table, key, body = decode(item)
            if not (isinstance(table, str) and isinstance(key, str)):
                raise TypeError("not a table and a key")
            same = known[table].get(key) if table in known else None
            if same is not None and same == body:
                return table, key, same
            if not isinstance(decode(body), dict):
                raise TypeError("not a map")
        except (RecordError, ValueError, TypeError) as error:
            raise SegmentError(f"{self.name}: a row of its snapshot cannot be understood: {error}") from error
        return table, key, body

    def _items(self) -> Iterator[bytes]:
        """Its items but the header, exactly as many as that says."""
        items = _read_items(self.path)
        next(items)
        for _ in range(self.record_count + self.row_count):
            item = next(items, None)
            if item is None:
                raise SegmentError(f"{self.name} holds fewer items than its header says")
            yield item
        if next(items, None) is not None:
            raise SegmentError(f"{self.name} holds more items than its header says")


def file_name(first: int, last: int) -> str:
    return f"{first:020d}-{last:020d}.seg"


def last_of(name: str) -> int:
    """The last record of the segment file that is called *name*."""
    return int(name.split("-")[1].removesuffix(".seg"))


def list_names(directory: str) -> list[str]:
    """The names of the segment files in a directory, known to the journal or not, in order."""
    try:
        return sorted(name for name in os.listdir(directory) if _NAME.match(name))
    except FileNotFoundError:
        return []


def pack(
    *, uuid: str, first: int, last: int, prev_link: bytes, last_link: bytes, stored: Iterable[bytes], tables: Bodies,
) -> Iterator[bytes]:
    """The bytes of a segment, in chunks. The same input gives the same content (its compression may vary by version)."""
    header = encode({
        "version": VERSION, "uuid": uuid, "first": first, "last": last, "prev_link": prev_link,
        "last_link": last_link, "records": last - first + 1, "rows": sum(map(len, tables.values())),
        "tables": sorted(tables),
    })
    rows = (
        encode([table, key, tables[table][key]])
        for table in sorted(tables) for key in sorted(tables[table], key=str.encode)
    )
    compressor = zstandard.ZstdCompressor(level=6, write_checksum=True).compressobj()
    digest = hashlib.sha256(MAGIC)
    yield MAGIC
    for item in chain([header], stored, rows):
        piece = compressor.compress(_LENGTH.pack(len(item)) + item)
        digest.update(piece)
        yield piece
    piece = compressor.flush()
    digest.update(piece)
    yield piece
    yield digest.digest()


def write(effects: Effects, directory: str, chunks: Iterable[bytes], first: int, last: int) -> str:
    """Durably put a segment into *directory*: aside, fsynced, renamed, directory fsynced. Its path.

    Durability: the file is on disk when this returns; a crash before leaves at most ``.new``, which is overwritten,
    or a segment that the log does not know.
    """
    target, aside = os.path.join(directory, file_name(first, last)), os.path.join(directory, ASIDE)
    effects.write_synced(aside, chunks, point="archive.write")
    effects.rename_new(aside, target, point="archive.rename")
    effects.sync_path(directory, point="archive.sync")
    return target


def load(path: str, known: Mapping[str, Any] | None = None) -> Segment:
    """Verify a segment file's digest and header. SegmentError if it is missing, torn, altered, or not one.

    *known* is what the journal recorded of it; then it must be that very file.
    """
    name = os.path.basename(path)
    digest = _digest(path)
    if known is not None and digest != known["digest"]:
        raise SegmentError(f"{name} is another file than the one that was sealed: its digest is {digest.hex()}")
    header = _header(path, name)
    if header["records"] != header["last"] - header["first"] + 1 or header["first"] < 1 or header["rows"] < 0:
        raise SegmentError(f"{name}: it says {header['records']} records from {header['first']} to {header['last']}")
    if header["records"] < 1 or {len(header["prev_link"]), len(header["last_link"])} != {LINK_BYTES}:
        raise SegmentError(f"{name}: its header makes no sense")
    return Segment(
        path, header["uuid"], header["first"], header["last"], header["prev_link"], header["last_link"], digest,
        header["records"], header["rows"], tuple(header["tables"]),
    )


def check_sequence(segments: Sequence[Segment]) -> None:
    """UsageError unless *segments*, oldest first, are of one journal and follow each other."""
    if not segments:
        raise UsageError("there are no segments")
    for before, after in pairwise(segments):
        if before.uuid != after.uuid:
            raise UsageError(f"{before.name} is of the journal {before.uuid}, and {after.name} of {after.uuid}")
        if (after.first, after.prev_link) != (before.last + 1, before.last_link):
            raise UsageError(f"{after.name} does not follow {before.name}: segments between them are missing")


def _header(path: str, name: str) -> dict[str, Any]:
    items = _read_items(path)
    try:
        header = decode(next(items, b""))
        if not isinstance(header, dict) or header.get("version") != VERSION or set(header) != set(_HEADER):
            raise SegmentError(f"{name}: its header is of an unknown version")
        for key, kind in _HEADER.items():
            if type(header[key]) is not kind:
                raise SegmentError(f"{name}: {key} in its header is {type(header[key]).__name__}, not {kind.__name__}")
        tables: Sequence[Any] = header["tables"]
        if not all(isinstance(table, str) for table in tables) or list(tables) != sorted(set(tables)):
            raise SegmentError(f"{name}: the tables in its header are not names in order")
    except RecordError as error:
        raise SegmentError(f"{name}: its header cannot be understood: {error}") from error
    return header


def _digest(path: str) -> bytes:
    name, digest = os.path.basename(path), hashlib.sha256()
    try:
        with open(path, "rb") as file:
            left = os.fstat(file.fileno()).st_size - DIGEST_BYTES
            if left < len(MAGIC) or file.read(len(MAGIC)) != MAGIC:
                raise SegmentError(f"{name} is not a segment")
            digest.update(MAGIC)
            left -= len(MAGIC)
            while left > 0 and (chunk := file.read(min(left, 1 << 20))):
                digest.update(chunk)
                left -= len(chunk)
            if file.read() != digest.digest():
                raise SegmentError(f"{name} is torn or was altered: its digest does not fit")
    except FileNotFoundError as error:
        raise SegmentError(f"the segment {name} is missing") from error
    return digest.digest()


def _read_items(path: str) -> Iterator[bytes]:
    name, pending = os.path.basename(path), bytearray()
    wanted = _LENGTH.size                # bytes until there is one more item
    for chunk in _decompressed(path, name):
        pending += chunk
        if len(pending) < wanted:
            continue
        here, position, wanted = bytes(pending), 0, _LENGTH.size
        while (start := position + _LENGTH.size) <= len(here):
            (length,) = _LENGTH.unpack_from(here, position)
            if length > _MAX_ITEM:
                raise SegmentError(f"{name}: an item of {length} bytes; at most {_MAX_ITEM}")
            if start + length > len(here):
                wanted += length
                break
            position = start + length
            yield here[start:position]
        del pending[:position]
    if pending:
        raise SegmentError(f"{name}: its last item reaches past the end")


def _decompressed(path: str, name: str) -> Iterator[bytes]:
    frame = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompressobj()
    try:
        with open(path, "rb") as file:
            left = os.fstat(file.fileno()).st_size - DIGEST_BYTES - len(MAGIC)
            file.seek(len(MAGIC))
            while left > 0 and (piece := file.read(min(left, _FEED))):
                left -= len(piece)
                if frame.eof:
                    raise SegmentError(f"{name} goes on after the end of its frame")
                yield frame.decompress(piece)
    except zstandard.ZstdError as error:
        raise SegmentError(f"{name} cannot be decompressed: {error}") from error
    if not frame.eof or frame.unused_data:
        raise SegmentError(f"{name}: its frame does not end where the file does")


