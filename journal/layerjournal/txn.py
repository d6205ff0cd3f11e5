"""Transactions: reading tables and log, and appending records, each projected at once into the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from layerjournal.control import CONTROL, META, META_KEY, SEGMENTS, Whole
from layerjournal.engine import LOG, Engine
from layerjournal.errors import DamagedError, RecordError, UsageError
from layerjournal.record import LINK_BYTES, Record, seal, unseal
from layerjournal.views import Row, key_bytes, load_row, row_body, store_row


def seq_key(seq: int) -> bytes:
    return seq.to_bytes(8, "big")


class ReadTxn:
    """A snapshot: tables and log as they were when it began. Good only inside the ``with`` that made it."""

    def __init__(self, engine: Engine, txn: Any) -> None:
        self._engine, self._txn = engine, txn
        self._ended = False

    def end(self) -> None:
        """No use from here on: LMDB's own transaction is about to go. Not for users."""
        self._ended = True

    def get(self, table: str, key: str) -> Row | None:
        """The row, or None. RowError if it was altered; UsageError for a table that the projector has not."""
        data = key_bytes(key)
        stored = self._txn.get(data, db=self._db(table))
        return None if stored is None else load_row(table, data, stored)

    def scan(self, table: str, prefix: str = "") -> Iterator[tuple[str, Row]]:
        """Rows whose keys begin with *prefix*, in the order of the keys' bytes. The table may change meanwhile."""
        for key, stored in self.stored_rows(table, prefix):
            row = load_row(table, key, stored)   # first: it proves the key, too
            yield key.decode(), row

    def keys(self, table: str) -> Iterator[str]:
        """All keys, in the order of their bytes. No row is read, and so none proves its key; ``get`` and ``scan`` do."""
        with self._txn.cursor(db=self._db(table)) as cursor:
            found = cursor.first()
            while found:
                key = bytes(cursor.key())
                yield key.decode(errors="backslashreplace")
                found = self._next(cursor, key)

    def stored_rows(self, table: str, prefix: str = "") -> Iterator[tuple[bytes, bytes]]:
        """As scan, of keys and rows as they are stored."""
        data = prefix.encode()
        with self._txn.cursor(db=self._db(table)) as cursor:
            found = cursor.set_range(data) if data else cursor.first()
            while found:
                key = bytes(cursor.key())
                if not key.startswith(data):
                    return
                yield key, bytes(cursor.value())
                found = self._next(cursor, key)

    def _next(self, cursor: Any, _key: bytes) -> bool:
        return bool(cursor.next())

    def head(self) -> tuple[int, bytes]:
        """The last record's sequence number and link. Export it, to tell later whether history was rewritten."""
        with self._txn.cursor(db=self._db(LOG)) as cursor:
            if not cursor.last():
                raise DamagedError("the log is empty: not even its first record is there")
            return int.from_bytes(cursor.key(), "big"), bytes(cursor.value()[:LINK_BYTES])

    def check_head(self) -> int:
        """The last record's number, after that record was verified. RecordError if it does not chain."""
        head, archived = self.head()[0], self.meta()["archived"]
        if head <= archived:
            raise RecordError(f"the log ends with record {head}, and record {archived} is archived")
        for _ in self.records(after=max(head - 1, archived)):
            pass
        return head

    def meta(self) -> Row:
        """The journal's own row: uuid, schema, tables, low_water, archived, archived_link."""
        row = self.get(META, META_KEY)
        if row is None:
            raise DamagedError("the journal's own row is missing")
        return row

    def segment_rows(self) -> list[Row]:
        """The archived segments, oldest first: name, first, last, prev_link, last_link, digest."""
        return [{"name": name, **row} for name, row in self.scan(SEGMENTS)]

    def low_water(self) -> int:
        """At and below this record nothing needs to be redone."""
        return int(self.meta()["low_water"])

    def records(self, after: int = 0, upto: int | None = None) -> Iterator[Record]:
        """The log's records after *after*, up to *upto*, verified link by link. RecordError at the first bad one.

        What was archived is not in the log: of that, ``Replay`` and ``Journal.fold`` tell.
        """
        for record, _ in self.stored_records(after, upto):
            yield record

    def stored_records(self, after: int = 0, upto: int | None = None) -> Iterator[tuple[Record, bytes]]:
        """As records, each with its stored bytes."""
        meta = self.meta()
        seq, link = meta["archived"], meta["archived_link"]
        if after > seq:
            stored = self._txn.get(seq_key(after), db=self._db(LOG))
            if stored is None:
                return
            seq, link = after, bytes(stored[:LINK_BYTES])
        with self._txn.cursor(db=self._db(LOG)) as cursor:
            found = cursor.set_range(seq_key(seq + 1)) if after > meta["archived"] else cursor.first()
            while found:
                number = int.from_bytes(cursor.key(), "big")
                if number != seq + 1 or len(cursor.key()) != 8:
                    raise RecordError(f"the log has no record {seq + 1}: after {seq} comes {number}")
                if upto is not None and number > upto:
                    return
                stored = bytes(cursor.value())
                record = unseal(stored, link, seq=number)
                seq, link = record.seq, record.link
                yield record, stored
                found = cursor.next()

    def _db(self, table: str) -> Any:
        if self._ended:
            raise UsageError("a transaction cannot be used after its end", hint="read or append inside it")
        db = self._engine.dbs.get(table)
        if db is None:
            raise UsageError(f"there is no table {table!r}")
        return db


class WriteTxn(ReadTxn):
    """A write transaction. The only way to change a table is to append a record that the projector projects."""

    def __init__(
        self, engine: Engine, txn: Any, projector: Whole, clock: Callable[[], int], *,
        start: tuple[int, bytes] | None = None,
    ) -> None:
        super().__init__(engine, txn)
        self._projector, self._clock = projector, clock
        self._seq, self._link = start if start is not None else super().head()
        self._group = self._seq + 1
        self._broken: BaseException | None = None
        self.changed = False

    def head(self) -> tuple[int, bytes]:
        """The last record's sequence number and link, of what was appended here too."""
        return self._seq, self._link

    def _next(self, cursor: Any, key: bytes) -> bool:
        return bool(cursor.set_range(key + b"\x00"))   # sought anew: the table may have changed meanwhile

    def append(
        self, *, txid: str, entity: str, from_state: str, to_state: str, trigger: str,
        payload: Mapping[str, Any] | None = None,
    ) -> Record:
        """Append a record and project it, so that later reads of this transaction see what it changed.

        ProjectionError from the projector, UsageError for what cannot be recorded (a payload of other than None,
        bool, int, str, bytes, lists and maps of str; a record of more than 12 MiB). After either the transaction can
        only be aborted: the projector may have stopped half-way.
        """
        if entity == CONTROL:
            raise UsageError(f"the entity {CONTROL!r} is the journal's own")
        return self._append(txid, entity, from_state, to_state, trigger, payload or {})

    def control(self, trigger: str, payload: Mapping[str, Any]) -> Record:
        """Append one of the journal's own records. Not for users."""
        return self._append("", CONTROL, "", "", trigger, payload)

    def replay(self, record: Record, stored: bytes) -> None:
        """Append *record* as it was *stored*, where it was: it follows the head. Not for users."""
        self._put(record, stored)
        self._group = record.seq + 1

    def drop_log(self, upto: int) -> None:
        """Delete the log's records up to *upto*, which a sealed segment holds. Not for users."""
        with self._txn.cursor(db=self._db(LOG)) as cursor:
            while cursor.first() and int.from_bytes(cursor.key(), "big") <= upto:
                cursor.delete()

    def put_body(self, table: str, key: str, body: bytes) -> None:
        data = key_bytes(key)
        self._txn.put(data, store_row(table, data, body), db=self._db(table))

    def finish(self) -> bool:
        """Whether there is anything to commit. UsageError if an append failed and *fn* went on regardless."""
        if self._broken is not None:
            raise UsageError(
                f"an append failed, so the transaction cannot be committed: {self._broken}",
                hint="let the error out of the function that update() runs",
            ) from self._broken
        return self.changed

    def _append(
        self, txid: str, entity: str, from_state: str, to_state: str, trigger: str, payload: Mapping[str, Any],
    ) -> Record:
        try:
            record, stored = seal(
                self._link, seq=self._seq + 1, group=self._group, txid=txid, entity=entity, from_state=from_state,
                to_state=to_state, trigger=trigger, payload=payload, time_ns=self._clock(),
            )
            self._put(record, stored)
        except BaseException as error:
            self._broken = error
            raise
        return record

    def _put(self, record: Record, stored: bytes) -> None:
        self._txn.put(seq_key(record.seq), stored, db=self._db(LOG), append=True)
        self._seq, self._link, self.changed = record.seq, record.link, True
        self._projector.project(_TxnView(self), record)


class _TxnView:
    """The table view that a projector is handed: only these four."""

    def __init__(self, txn: WriteTxn) -> None:
        self._txn = txn
        self.get, self.scan = txn.get, txn.scan

    def put(self, table: str, key: str, row: Mapping[str, Any]) -> None:
        self._txn.put_body(table, key, row_body(row))

    def delete(self, table: str, key: str) -> None:
        self._txn._txn.delete(key_bytes(key), db=self._txn._db(table))  # noqa: SLF001 - the same module


