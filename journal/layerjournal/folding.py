"""Folding the log into tables, and comparing tables. Pure over what it is handed; ``history`` says from where.

``fold(projector, records)`` runs the projector over the records; it is what the live tables must equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from layerjournal.codec import decode_own, encode
from layerjournal.control import OWN_TABLES, Whole
from layerjournal.errors import DamagedError, UsageError
from layerjournal.record import Record, genesis, jsonable
from layerjournal.segment import Segment
from layerjournal.views import Bodies, MemoryView, Projector, Row


@dataclass(frozen=True, slots=True)
class Folded:
    """The tables after record ``seq``, whose link is ``link``. ``bodies`` are their rows as bytes, ours included."""

    bodies: Mapping[str, Mapping[str, bytes]]
    seq: int
    link: bytes

    @property
    def tables(self) -> dict[str, dict[str, Row]]:
        """The projector's tables, decoded: table → key → row."""
        return {
            name: {key: decode_own(body) for key, body in rows.items()}
            for name, rows in self.bodies.items() if name not in OWN_TABLES
        }


@dataclass(frozen=True, slots=True)
class History:
    """Where records come from: segments, oldest first, then the log. Either may be empty."""

    uuid: str
    segments: tuple[Segment, ...]
    head: int                       # the last record there is
    log_after: int                  # the log begins after this one

    @property
    def oldest(self) -> int:
        return self.segments[0].first if self.segments else self.log_after + 1


def fold(
    projector: Projector | Whole, records: Iterable[Record], *, tables: Bodies | None = None, seq: int = 0,
    link: bytes = b"",
) -> Folded:
    """Run *projector* over *records*, starting from *tables* as they were after *seq*."""
    whole = projector if isinstance(projector, Whole) else Whole(projector, projector.tables)
    view = MemoryView(whole.tables, tables)
    for record in records:
        whole.project(view, record)
        seq, link = record.seq, record.link
    return Folded(view.bodies, seq, link)


def fold_at(whole: Whole, history: History, log: Iterable[Record], at: int | None) -> Folded:
    """The tables after record *at* (None: the last), from the nearest snapshot. *log* gives the log's records.

    UsageError if there is no such record, or nothing from which to reach it.
    """
    at = history.head if at is None else at
    if not 0 <= at <= history.head:
        raise UsageError(f"there is no record {at} to fold to: the last is {history.head}")
    base = max((s for s in history.segments if s.last <= at), key=lambda s: s.last, default=None)
    if base is None and history.oldest > 1:
        if not history.segments:
            raise DamagedError(f"records 1 to {history.log_after} are archived, but there is no segment")
        raise UsageError(
            f"the tables after record {at} cannot be rebuilt: what is left begins with the snapshot after record "
            f"{history.segments[0].last}", hint="fold to a later record",
        )
    after = base.last if base is not None else 0
    wanted = (r for r in _records(history, log, after) if r.seq <= at)
    if base is None:
        return fold(whole, wanted, link=genesis(history.uuid))
    return fold(whole, wanted, tables=base.snapshot(), seq=base.last, link=base.last_link)


def _records(history: History, log: Iterable[Record], after: int) -> Iterator[Record]:
    for segment in history.segments:
        if segment.last > after:
            yield from segment.records()
    yield from log


def canonical_dump(folded: Folded) -> bytes:
    """The projector's tables as canonical bytes: equal tables, equal bytes, whatever the page layout on disk.

    For each table in order of names: ``[table, number of rows]``, then ``[key, row]`` in order of the keys' bytes.
    """
    parts = []
    for name in sorted(set(folded.bodies) - set(OWN_TABLES)):
        rows = folded.bodies[name]
        parts.append(encode([name, len(rows)]))
        parts += [b"\x92" + encode(key) + rows[key] for key in sorted(rows, key=str.encode)]   # 0x92: array of two
    return b"".join(parts)


def differences(expected: Mapping[str, Mapping[str, bytes]], actual: Mapping[str, Mapping[str, bytes]]) -> Iterator[str]:
    """Where two sets of tables differ, in words."""
    for name in sorted({*expected, *actual}):
        left, right = expected.get(name, {}), actual.get(name, {})
        if left == right:
            continue
        for key in sorted({*left, *right}, key=str.encode):
            if key not in right:
                yield f"table {name} lacks the row {key!r}"
            elif key not in left:
                yield f"table {name} has a row {key!r} that the log does not account for"
            elif left[key] != right[key]:
                yield f"table {name}: the row {key!r} is not what the log says"


def as_json(folded: Folded) -> dict[str, Any]:
    """For people and tools: bytes become hex."""
    return {"seq": folded.seq, "link": folded.link.hex(), "tables": jsonable(folded.tables)}
