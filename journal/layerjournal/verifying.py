"""Verifying a journal: segments, chain, gaplessness, groups, every row, and tables = fold(log). Reads only.

Nothing is raised for damage: all of it is in the findings, by a stable code:

============== ====================================================================================================
``structure``  LMDB's own pages are damaged; nothing else of the environment was looked at
``segment``    a segment is missing, torn, altered, or not the one that was sealed
``gap``        a segment, or the log, does not follow what is before it
``record``     a record of the log does not decode, chain or follow; later ones could not be looked at
``group``      a transaction's records are not together, or cut by an archive
``snapshot``   a segment's snapshot is not what its records say
``projection`` the projector refuses a record that was journaled
``row``        a row's checksum or encoding is wrong
``catalog``    a table is not what the log says
============== ====================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from layerjournal.control import Whole
from layerjournal.errors import DamagedError, RowError
from layerjournal.folding import differences
from layerjournal.record import Record, genesis
from layerjournal.segment import Segment
from layerjournal.views import MemoryView, check_row, store_row


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with a journal: a stable ``code``, a message, and the record it is about, if one."""

    code: str
    message: str
    seq: int | None = None


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """``records`` verified in ``segments`` and log; ``head`` and ``link`` are the last good record's."""

    findings: tuple[Finding, ...]
    records: int
    segments: int
    head: int
    link: bytes

    @property
    def sound(self) -> bool:
        return not self.findings


class Verifier:
    """Walks segments, then the log, then the tables; each step goes on from what the one before proved."""

    def __init__(self, whole: Whole, uuid: str) -> None:
        self._whole = whole
        self.findings: list[Finding] = []
        self._count, self._segments, self._seq, self._group = 0, 0, 0, 0
        self._link: bytes | None = genesis(uuid)        # None: not known, because something before is damaged
        self._view: MemoryView | None = MemoryView(whole.tables)

    def find(self, code: str, message: str, seq: int | None = None) -> None:
        self.findings.append(Finding(code, message, seq))

    def report(self) -> VerifyReport:
        return VerifyReport(tuple(self.findings), self._count, self._segments, self._seq, self._link or b"")

    def segments(self, loaders: Sequence[Callable[[], Segment]], *, every_snapshot: bool = True) -> None:
        """Each of *loaders* loads one, oldest first. The oldest may begin late: what was before it was dropped.

        Without *every_snapshot* only the newest one's is compared, and one that is needed to go on from: all rows of all
        segments are many more than the records. Each segment's digest is compared in any case, so that what was altered
        since it was sealed is found; that it was sealed with what its records make is then believed of the older ones.
        """
        for number, load in enumerate(loaders, 1):
            self._segments += 1
            try:
                self._segment(load(), oldest=number == 1, compare=every_snapshot or number == len(loaders))
            except (DamagedError, OSError) as error:
                self.find("segment", str(error))
                self._lose()

    def _segment(self, segment: Segment, *, oldest: bool, compare: bool) -> None:
        if oldest and segment.first > 1:
            self._view = None
        elif self._link is not None and (segment.first, segment.prev_link) != (self._seq + 1, self._link):
            self.find("gap", f"{segment.name} does not follow record {self._seq}", segment.first)
            self._view = None
        self._seq, self._link, self._group = segment.first - 1, segment.prev_link, 0
        records, rows = segment.both()
        for record in records:
            self._step(record)
        self._group = 0   # only whole groups are archived
        if self._view is not None and not compare:
            return
        snapshot = rows(self._view.bodies if self._view is not None else {})
        if self._view is not None:
            for difference in differences(self._view.bodies, snapshot):
                self.find("snapshot", f"{segment.name}: {difference}", segment.last)
        self._view = MemoryView(self._whole.tables, snapshot)

    def log(self, records: Iterable[Record], *, after: int, link: bytes) -> None:
        """The log's *records*, which begin after *after* with the previous *link*, as the journal believes."""
        if self._link is not None and (after, link) != (self._seq, self._link):
            self.find("gap", f"the log follows record {after}, and the archive ends with {self._seq}", after + 1)
            self._view = None
        self._seq, self._link, self._group = after, link, 0
        try:
            for record in records:
                self._step(record)
        except DamagedError as error:
            self.find("record", str(error), self._seq + 1)
            self._lose()

    def tables(self, rows: Callable[[str], Iterator[tuple[bytes, bytes]]]) -> None:
        """Every table's stored *rows*: their checksums, and, if all of the log is sound, what they hold."""
        expected, others = {}, {}
        for name in self._whole.tables:
            expected[name] = dict(self._view.bodies[name]) if self._view is not None else {}
            others[name] = self._others(name, rows(name), expected[name])
        if self._view is None:
            return
        for difference in differences(expected, others):
            self.find("catalog", difference)

    def _others(self, table: str, rows: Iterator[tuple[bytes, bytes]], expected: dict[str, bytes]) -> dict[str, bytes]:
        """Those of the stored *rows* that are not what is *expected*; what is, or is reported, is taken out of that."""
        others: dict[str, bytes] = {}
        for data, stored in rows:
            key: str | None = None
            try:
                key = data.decode()
                # as it would be written, checksum and all: there is nothing left to look at
                if key in expected and stored == store_row(table, data, expected[key]):
                    del expected[key]
                else:
                    others[key] = check_row(table, data, stored)
            except (RowError, UnicodeDecodeError) as error:
                self.find("row", str(error))
                expected.pop(key or "", None)   # reported
        return others

    def _step(self, record: Record) -> None:
        if record.group not in (self._group, record.seq):
            self.find("group", f"record {record.seq} is of group {record.group}, after {self._group}", record.seq)
        self._count, self._seq, self._link, self._group = self._count + 1, record.seq, record.link, record.group
        if self._view is None:
            return
        try:
            self._whole.project(self._view, record)
        except MemoryError:              # of this process, and not the journal's
            raise
        except Exception as error:  # noqa: BLE001 - whatever a projector raises for a record that was accepted once
            self.find("projection", f"record {record.seq} cannot be projected: {error!r}", record.seq)
            self._view = None

    def _lose(self) -> None:
        self._link, self._view = None, None
