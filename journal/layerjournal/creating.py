"""Making a journal: aside, made durable, and renamed in, so that there is a whole one or none.

What a crash in each gap leaves:

1. ``<path>.new/``, locked            – an empty directory, which the next create clears
2. the environment and its first record, ``segments/`` – the same
3. everything in it fsynced           – the same
4. renamed to ``<path>`` (NOREPLACE)  – the journal, or after a power cut none
5. the parent fsynced                 – the journal
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from layerjournal import segment
from layerjournal.control import FORMAT, Whole
from layerjournal.effects import Effects, locked
from layerjournal.engine import Engine
from layerjournal.engine.datafile import DATA_FILE
from layerjournal.errors import BusyError, ExistsError, UsageError
from layerjournal.record import genesis
from layerjournal.segment import Segment
from layerjournal.txn import WriteTxn

if TYPE_CHECKING:
    from layerjournal.salvage import Salvaged

T = TypeVar("T")
SEGMENTS_DIR = "segments"


def create(
    path: str, whole: Whole, effects: Effects, clock: Callable[[], int], map_size: int, *, uuid: str, schema: str,
) -> None:
    """A journal with its first record. See ``Journal.create``."""

    def fill(txn: WriteTxn) -> None:
        txn.control("create", {"uuid": uuid, "format": FORMAT, "schema": schema, "tables": list(whole.users)})

    with _aside(path, effects) as aside:
        _make(aside, whole, effects, clock, map_size, start=(0, genesis(uuid)), fill=fill)
        _publish(aside, path, effects)


def restore(
    path: str, whole: Whole, effects: Effects, clock: Callable[[], int], map_size: int, segments: Sequence[Segment],
) -> None:
    """A journal that goes on from the last of *segments*. See ``Journal.restore``."""
    newest = segments[-1]
    if set(newest.tables) != set(whole.tables):
        raise UsageError(f"the segments hold the tables {list(newest.tables)}, and not {list(whole.tables)}")
    bodies = newest.snapshot()

    def fill(txn: WriteTxn) -> None:
        for table, rows in bodies.items():
            for key, body in rows.items():
                txn.put_body(table, key, body)
        txn.control("restore", {
            "last": newest.last, "last_link": newest.last_link, "segments": [s.as_payload() for s in segments],
        })

    with _aside(path, effects) as aside:
        _make(aside, whole, effects, clock, map_size, start=(newest.last, newest.last_link), fill=fill)
        for each in segments:
            target = os.path.join(aside, SEGMENTS_DIR, each.name)
            effects.copy_synced(each.path, target, point="journal.restore.copy")
            segment.load(target, each.as_payload())
        _publish(aside, path, effects)


def rebuild(
    path: str, whole: Whole, effects: Effects, clock: Callable[[], int], map_size: int, left: Salvaged, *,
    schema: str, then: Callable[[WriteTxn], T],
) -> T:
    """An environment that goes on from what is *left*. See ``Journal.rebuild``."""
    newest = left.segments[-1] if left.segments else None
    if newest is not None and set(newest.tables) != set(whole.tables):
        raise UsageError(f"the segments hold the tables {list(newest.tables)}, and not {list(whole.tables)}")
    start = (newest.last, newest.last_link) if newest is not None else (0, genesis(left.uuid))
    results: list[T] = []

    def fill(txn: WriteTxn) -> None:
        for table, rows in (newest.snapshot() if newest is not None else {}).items():
            for key, body in rows.items():
                txn.put_body(table, key, body)
        for record, stored in left.tail:
            txn.replay(record, stored)
        if txn.head()[0] == 0:
            txn.control("create", {
                "uuid": left.uuid, "format": FORMAT, "schema": schema, "tables": list(whole.users),
            })
        head, link = left.head
        txn.control("restore", {
            "last": start[0], "last_link": start[1], "segments": [s.as_payload() for s in left.segments],
            "old_head": head, "old_link": link, "whole": left.whole, "seen": left.seen,
        })
        results[:] = [then(txn)]

    with _aside(path, effects) as aside:
        _make(aside, whole, effects, clock, map_size, start=start, fill=fill)
        _publish(aside, path, effects)
    return results[0]


@contextmanager
def _aside(path: str, effects: Effects) -> Iterator[str]:
    """An empty directory beside *path*, locked as long as this lasts; what the dead left there is cleared."""
    import shutil  # noqa: PLC0415 - slow to import, and most processes make no journal

    aside = f"{path}.new"
    with ExitStack() as stack:
        _lock_aside(stack, aside, path, effects)
        try:
            _clear(aside, effects)
            yield aside
        except Exception:
            shutil.rmtree(aside, ignore_errors=True)
            raise


def _lock_aside(stack: ExitStack, aside: str, path: str, effects: Effects) -> None:
    while True:
        if os.path.lexists(path):
            raise ExistsError(f"there is something at {path}")
        with suppress(FileExistsError):
            effects.make_dir(aside, point="journal.create.mkdir")
        try:
            with ExitStack() as attempt:
                fd = attempt.enter_context(locked(aside, wait=False))
                if _is_still(fd, aside):   # else its maker has just renamed it in, or given it up
                    stack.push(attempt.pop_all())
                    return
        except FileNotFoundError:
            continue
        except BlockingIOError as error:
            raise BusyError(f"another process is making a journal at {path}") from error


def _is_still(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _clear(directory: str, effects: Effects) -> None:
    import shutil  # noqa: PLC0415 - as above

    with effects.point("journal.create.clear"), os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)


def _make(
    aside: str, whole: Whole, effects: Effects, clock: Callable[[], int], map_size: int, *, start: tuple[int, bytes],
    fill: Callable[[WriteTxn], None],
) -> None:
    effects.make_dir(os.path.join(aside, SEGMENTS_DIR), point="journal.create.mkdir")
    engine = Engine(aside, whole.tables, readonly=False, map_size=map_size, create=True)
    try:
        def run(txn: Any) -> tuple[None, bool]:
            view = WriteTxn(engine, txn, whole, clock, start=start)
            fill(view)
            return None, view.finish()

        def commit(txn: Any) -> None:
            with effects.point("journal.create.commit"):
                txn.commit()

        engine.writing(run, commit)
    finally:
        engine.close()


def _publish(aside: str, path: str, effects: Effects) -> None:
    for name in (DATA_FILE, SEGMENTS_DIR, ""):
        effects.sync_path(os.path.join(aside, name), point="journal.create.sync")
    effects.rename_new(aside, path, point="journal.create.rename")
    effects.sync_path(os.path.dirname(path), point="journal.create.parent.sync")
