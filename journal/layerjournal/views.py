"""Rows and tables: what a row's bytes are, what a projector may do, and tables in memory for a fold.

A row is stored as ``checksum (8 bytes) ‖ canonical msgpack map``; the checksum covers table and key too, so that a
row that was moved is as wrong as one that was altered. FORMAT.md §3. No I/O.
"""

from __future__ import annotations

import functools
import hashlib
import re
from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from layerjournal.codec import decode, decode_own, encode
from layerjournal.errors import RecordError, RowError, UsageError
from layerjournal.record import Record

Row = dict[str, Any]
Bodies = dict[str, dict[str, bytes]]
"""Tables as bytes: table name → key → the canonical encoding of the row."""

CHECKSUM_BYTES = 8
MAX_KEY_BYTES = 511
_TABLE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}\Z")


class TableView(Protocol):
    """What a projector may use: these four, and nothing else."""

    def get(self, table: str, key: str) -> Row | None:
        """The row, or None; yours to change."""
        ...

    def put(self, table: str, key: str, row: Mapping[str, Any]) -> None:
        """Set the row: a map of what the codec can hold, under a key of 1 to 511 bytes of UTF-8."""
        ...

    def delete(self, table: str, key: str) -> None:
        """Remove the row, if there is one."""
        ...

    def scan(self, table: str, prefix: str = "") -> Iterator[tuple[str, Row]]:
        """Rows whose keys begin with *prefix*, in the order of the keys' bytes; the table may change meanwhile."""
        ...


class Projector(Protocol):
    """Turns a record into changes of tables. Pure: no clock, no randomness, no I/O, nothing but the view."""

    @property
    def tables(self) -> Sequence[str]:
        """The names of its tables: lower-case letters, digits, ``_`` and ``-``."""
        ...

    def project(self, view: Any, record: Record) -> None:
        """Apply *record* to *view* (a TableView). ProjectionError for a record that is not legal here."""
        ...


def check_table_names(names: Sequence[str]) -> None:
    for name in names:
        if not _TABLE_NAME.match(name):
            raise UsageError(f"{name!r} cannot be a table's name: a-z, then up to 62 of a-z 0-9 _ -")
    if len(set(names)) != len(names):
        raise UsageError(f"the projector names a table twice: {list(names)}")


def checksum(table: str, key: bytes, body: bytes) -> bytes:
    head = _table_head(table) + len(key).to_bytes(2, "big") + key
    return hashlib.blake2b(head + body, digest_size=CHECKSUM_BYTES).digest()


@functools.cache   # a journal has few tables, and every row that is read or written comes by here
def _table_head(table: str) -> bytes:
    name = table.encode()
    return len(name).to_bytes(2, "big") + name


def store_row(table: str, key: bytes, body: bytes) -> bytes:
    return checksum(table, key, body) + body


def load_body(table: str, key: bytes, stored: bytes) -> bytes:
    """The row's encoding. RowError unless the checksum is right."""
    body = bytes(stored[CHECKSUM_BYTES:])
    if checksum(table, key, body) != bytes(stored[:CHECKSUM_BYTES]):
        raise RowError(f"the row {key!r} of table {table} was altered")
    return body


def load_row(table: str, key: bytes, stored: bytes) -> Row:
    """The row. RowError unless the checksum is right: it proves that these are the bytes that were written."""
    row: Row = decode_own(load_body(table, key, stored))
    return row


def check_row(table: str, key: bytes, stored: bytes) -> bytes:
    """As load_body, and strict: RowError also for what is no canonical map. For verification."""
    body = load_body(table, key, stored)
    try:
        row = decode(body)
    except RecordError as error:
        raise RowError(f"the row {key!r} of table {table}: {error}") from error
    if not isinstance(row, dict):
        raise RowError(f"the row {key!r} of table {table} is no map")
    return body


def row_body(row: Mapping[str, Any]) -> bytes:
    if type(row) is not dict and not isinstance(row, Mapping):   # the first is quick
        raise UsageError(f"a row is a map, and not {type(row).__name__}")
    return encode(row)


def key_bytes(key: str) -> bytes:
    try:
        data = key.encode()
    except (UnicodeEncodeError, AttributeError) as error:
        raise UsageError(f"{key!r} cannot be a key: {error}") from error
    if not 1 <= len(data) <= MAX_KEY_BYTES:
        raise UsageError(f"the key {key[:60]!r} has {len(data)} bytes; 1 to {MAX_KEY_BYTES} are possible")
    return data


class MemoryView:
    """Tables in memory: what a fold makes. Rows are kept as their bytes, as they are on disk, so none is shared."""

    def __init__(self, tables: Sequence[str], bodies: Mapping[str, Mapping[str, bytes]] | None = None) -> None:
        given = bodies or {}
        self.bodies: Bodies = {name: dict(given.get(name, {})) for name in tables}
        self._sorted: dict[str, list[bytes]] = {}   # of the tables that were scanned: few are, and to keep order costs

    def get(self, table: str, key: str) -> Row | None:
        body = self._table(table).get(key)
        if body is None:
            return None
        row: Row = decode_own(body)
        return row

    def put(self, table: str, key: str, row: Mapping[str, Any]) -> None:
        rows, data, body = self._table(table), key_bytes(key), row_body(row)
        if key not in rows and table in self._sorted:
            insort(self._sorted[table], data)
        rows[key] = body

    def delete(self, table: str, key: str) -> None:
        data = key_bytes(key)
        if self._table(table).pop(key, None) is not None and table in self._sorted:
            keys = self._sorted[table]
            del keys[bisect_left(keys, data)]

    def scan(self, table: str, prefix: str = "") -> Iterator[tuple[str, Row]]:
        rows, wanted = self._table(table), prefix.encode()
        if table not in self._sorted:
            self._sorted[table] = sorted(key.encode() for key in rows)
        keys = self._sorted[table]
        position = bisect_left(keys, wanted)
        while position < len(keys) and keys[position].startswith(wanted):
            here = keys[position]
            key = here.decode()
            yield key, decode_own(rows[key])
            position = bisect_left(keys, here + b"\x00")   # found anew: the table may have changed meanwhile

    def _table(self, name: str) -> dict[str, bytes]:
        if name not in self.bodies:
            raise UsageError(f"there is no table {name!r}")
        return self.bodies[name]


class DictView(MemoryView):
    """A view of tables that are given as dictionaries (``Folded.tables``), for what reads through a view."""

    def __init__(self, tables: Mapping[str, Mapping[str, Row]]) -> None:
        super().__init__(
            list(tables), {name: {key: row_body(row) for key, row in rows.items()} for name, rows in tables.items()},
        )


class Restricted:
    """A view of some tables only: what a projector is handed, so that it cannot touch the journal's own."""

    def __init__(self, view: TableView, tables: frozenset[str]) -> None:
        self._view, self._tables = view, tables

    def get(self, table: str, key: str) -> Row | None:
        return self._view.get(self._check(table), key)

    def put(self, table: str, key: str, row: Mapping[str, Any]) -> None:
        self._view.put(self._check(table), key, row)

    def delete(self, table: str, key: str) -> None:
        self._view.delete(self._check(table), key)

    def scan(self, table: str, prefix: str = "") -> Iterator[tuple[str, Row]]:
        return self._view.scan(self._check(table), prefix)

    def _check(self, table: str) -> str:
        if table not in self._tables:
            raise UsageError(f"the projector has no table {table!r}; it has {', '.join(sorted(self._tables))}")
        return table
