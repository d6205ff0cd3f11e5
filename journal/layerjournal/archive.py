"""Moving the log's beginning into a sealed segment, and dropping old segments: functions over an open journal.

Both hold an exclusive flock on ``segments/``: what two archives at once would leave is a segment that one has just
removed and the other is about to rely on. So a file there that the tables do not name was left by a crash.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from layerjournal import segment
from layerjournal.control import Whole
from layerjournal.effects import Effects, locked
from layerjournal.errors import UsageError
from layerjournal.folding import History, fold_at
from layerjournal.record import Record
from layerjournal.segment import Segment
from layerjournal.txn import ReadTxn, WriteTxn
from layerjournal.views import Bodies, check_row

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    Read = Callable[[], AbstractContextManager[ReadTxn]]
    Update = Callable[[str, Callable[[WriteTxn], None]], None]


def archive(directory: str, effects: Effects, whole: Whole, read: Read, update: Update) -> Segment | None:
    """See ``Journal.archive``."""
    with locked(directory):
        with read() as view:
            _sweep(directory, effects, {row["name"] for row in view.segment_rows()})
            last, count = whole_groups(view)
            if count == 0:
                return None
            path = _write(directory, effects, whole, view, last)
        made = segment.load(path)

        def record(txn: WriteTxn) -> None:
            txn.control("archive", made.as_payload())
            txn.drop_log(last)

        update("archive", record)
        return made


def snapshot(path: str, effects: Effects, whole: Whole, view: ReadTxn) -> None:
    """See ``Journal.snapshot_to``."""
    meta, (last, link) = view.meta(), view.head()
    tables: Bodies = {name: {} for name in whole.tables}
    for name, bodies in tables.items():
        for key, stored in view.stored_rows(name):
            body = check_row(name, key, stored)   # first: it proves the key, too
            bodies[key.decode()] = body
    chunks = segment.pack(
        uuid=meta["uuid"], first=meta["archived"] + 1, last=last, prev_link=meta["archived_link"], last_link=link,
        stored=(stored for _, stored in view.stored_records()), tables=tables,
    )
    aside = f"{path}.part"
    effects.unlink(aside, point="snapshot.clear")
    effects.write_synced(aside, chunks, point="snapshot.write")
    effects.rename_new(aside, path, point="snapshot.rename")
    effects.sync_path(os.path.dirname(path), point="snapshot.sync")


def drop(directory: str, effects: Effects, read: Read, update: Update, keep: int) -> list[str]:
    """See ``Journal.drop_segments``."""
    if keep < 1:
        raise UsageError(f"keep={keep}: the newest segment must be kept, because a fold starts from its snapshot")
    with locked(directory):
        with read() as view:
            rows = view.segment_rows()
        names = [row["name"] for row in rows[:-keep]]
        if not names:
            return []
        # what is to remain must be able to stand alone
        newest = segment.load(os.path.join(directory, rows[-1]["name"]), rows[-1])
        newest.snapshot()

        def record(txn: WriteTxn) -> None:
            txn.control("drop", {"names": names})

        update("drop", record)
        for name in names:   # after the rows: a crash leaves files that the next archive sweeps
            effects.unlink(os.path.join(directory, name), point="archive.drop")
        effects.sync_path(directory, point="archive.drop.sync")
    return names


def history(directory: str, view: ReadTxn) -> History:
    """Where this journal's records are, as *view* knows it. SegmentError for one that is missing or damaged."""
    meta = view.meta()
    segments = tuple(segment.load(os.path.join(directory, row["name"]), row) for row in view.segment_rows())
    return History(meta["uuid"], segments, view.head()[0], meta["archived"])


def every_record(
    segments: Sequence[Segment], view: ReadTxn | None, after: int = 0, upto: int | None = None,
) -> Iterator[Record]:
    """All records, archived or not, after *after* and up to *upto*, in order and verified."""
    last = 0
    for each in segments:
        last = each.last
        if last > after:
            yield from (r for r in each.records() if r.seq > after and (upto is None or r.seq <= upto))
    if view is not None and (upto is None or upto > last):
        yield from view.records(after=after, upto=upto)


def base_only(directory: str, view: ReadTxn, at: int | None) -> History:
    """As history, but only the segments that a fold to *at* needs: not every one is read for the newest state."""
    rows = view.segment_rows()
    meta, head = view.meta(), view.head()[0]
    at = head if at is None else at
    bases = [number for number, row in enumerate(rows) if row["last"] <= at]
    needed = [row for row in rows[bases[-1] if bases else 0:] if row["first"] <= at or row is rows[0]]
    segments = tuple(segment.load(os.path.join(directory, row["name"]), row) for row in needed)
    return History(meta["uuid"], segments, head, meta["archived"])


def whole_groups(view: ReadTxn) -> tuple[int, int]:
    """The last record of the last group that lies wholly at or below the mark, and how many that archives."""
    meta = view.meta()
    low, last, previous = meta["low_water"], meta["archived"], meta["archived"]
    for record in view.records():
        if record.group == record.seq:   # a new group begins: the one before is whole
            last = previous
        if record.seq > low:
            break
        previous = record.seq
    else:
        last = previous
    return last, last - meta["archived"]


def _write(directory: str, effects: Effects, whole: Whole, view: ReadTxn, last: int) -> str:
    meta = view.meta()
    folded = fold_at(whole, base_only(directory, view, last), view.records(upto=last), last)
    first = meta["archived"] + 1
    chunks = segment.pack(
        uuid=meta["uuid"], first=first, last=last, prev_link=meta["archived_link"], last_link=folded.link,
        stored=(stored for _, stored in view.stored_records(upto=last)),
        tables={name: dict(rows) for name, rows in folded.bodies.items()},
    )
    return segment.write(effects, directory, chunks, first, last)


def _sweep(directory: str, effects: Effects, known: set[str]) -> None:
    for name in _files(directory):
        if name not in known:
            effects.unlink(os.path.join(directory, name), point="archive.clear")


def _files(directory: str) -> Iterator[str]:
    yield from segment.list_names(directory)
    if os.path.lexists(os.path.join(directory, segment.ASIDE)):
        yield segment.ASIDE


