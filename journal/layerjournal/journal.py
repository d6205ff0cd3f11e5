"""The face of the journal: a log, and tables that are its projection, changed in the same transaction.

On disk, all in one directory, so that a copy of it is enough to replay::

    data.mdb lock.mdb   the LMDB environment: ``.log``, ``.meta``, ``.segments``, and one database a table
    segments/           archived log (``segment``)
    pidns               who may open it (``namespace``)

No logic lives here: ``creating``, ``archive``, ``folding`` and ``verifying`` have it. Use: several threads may share
a handle; a process opens a journal once; an inherited one cannot be used after fork (LMDB's locks are the parent's).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from layerjournal import archive, creating, namespace, segment
from layerjournal.control import OWN_TABLES, Whole
from layerjournal.effects import Effects, FaultHook, host_errors, is_writable, locked
from layerjournal.engine import Engine
from layerjournal.engine.datafile import DATA_FILE, structural_problems
from layerjournal.errors import (
    ClosedError,
    DamagedError,
    ExistsError,
    ForkedError,
    MissingError,
    OutcomeUnknownError,
    PoisonedError,
    ReadOnlyError,
    UsageError,
)
from layerjournal.folding import Folded, fold_at
from layerjournal.record import Record
from layerjournal.salvage import Salvaged
from layerjournal.segment import Segment
from layerjournal.txn import ReadTxn, WriteTxn
from layerjournal.verifying import Verifier, VerifyReport
from layerjournal.views import Projector

T = TypeVar("T")
DEFAULT_MAP_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """``seq`` is the checkpoint's own record; nothing at or below ``low_water`` needs to be redone after a crash."""

    seq: int
    low_water: int


class Journal:
    """An open journal. Thread-safe; not usable after fork. Close it, or use it as a context manager.

    ``uuid`` ties the chain to this journal; ``schema`` is what its creator said of the projector.
    """

    def __init__(
        self, path: str, projector: Projector, *, readonly: bool, clock: Callable[[], int], hook: FaultHook | None,
        map_size: int, locks: bool = True,
    ) -> None:
        self.path, self.projector, self.readonly = path, projector, readonly
        self._whole = Whole(projector, projector.tables)
        self._clock, self._effects = clock, Effects(hook)
        self._pid, self._closed, self._poison = os.getpid(), False, ""
        self._segments = os.path.join(path, creating.SEGMENTS_DIR)
        self._namespace: namespace.Membership | None = None
        inside, data = os.path.join(path, "pidns"), os.path.join(path, DATA_FILE)
        locking = not readonly or (locks and is_writable(path))
        if locking:
            self._namespace = namespace.enter(inside, data)
        vouched = self._namespace.vouched if self._namespace is not None else namespace.vouched_for(inside, data)
        try:
            self._engine = Engine(path, OWN_TABLES, readonly=readonly, map_size=map_size, lock=locking, look=not vouched)
            if self._namespace is not None:
                self._namespace.using()
            self._begin()
        except BaseException:
            self._leave_namespace()
            raise

    def _begin(self) -> None:
        try:
            with self.read() as view:
                meta = view.meta()
            if tuple(meta["tables"]) != self._whole.users:
                raise UsageError(
                    f"the journal has the tables {meta['tables']}, and the projector {list(self._whole.users)}",
                    hint="open it with the projector that it was made with",
                )
            self._engine.open_tables(self._whole.users)
            self._check_end()
        except BaseException:
            self._engine.close()
            raise
        self.uuid: str = meta["uuid"]
        self.schema: str = meta["schema"]

    def _check_end(self) -> None:
        """Before anything is appended: that the last record chains, and that nothing later is known to exist."""
        names = segment.list_names(self._segments)
        with self.read() as view:
            head = view.check_head()
        if names and (last := segment.last_of(names[-1])) >= head:   # archiving is recorded after it
            raise DamagedError(
                f"the archive goes on to record {last}, and the log ends with {head}: {DATA_FILE} is an older copy",
            )

    # -- opening -----------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], projector: Projector, *, uuid: str, schema: str = "",
        clock: Callable[[], int] = time.time_ns, hook: FaultHook | None = None, map_size: int = DEFAULT_MAP_BYTES,
    ) -> Journal:
        """Make a journal at *path*, which must not exist, and open it.

        *uuid* (any text) ties the chain to this journal; *schema* (any text) is kept for whoever replays it.
        *clock* gives nanoseconds; *hook* is told of every effect; *map_size* is in bytes, and grows by itself.
        Raises ExistsError, BusyError (another process is at it), NoSpaceError, HostError.

        Durability: it is on disk when this returns; before that there is a whole one or none, and what is left
        aside (``<path>.new``) is cleared by the next create.
        """
        path = os.path.abspath(os.fspath(path))
        with host_errors(f"creating a journal at {path}"):
            creating.create(
                path, Whole(projector, projector.tables), Effects(hook), clock, map_size, uuid=uuid, schema=schema,
            )
        return cls.open(path, projector, clock=clock, hook=hook, map_size=map_size)

    @classmethod
    def restore(
        cls, path: str | os.PathLike[str], projector: Projector, segments: Sequence[str | os.PathLike[str]], *,
        clock: Callable[[], int] = time.time_ns, hook: FaultHook | None = None, map_size: int = DEFAULT_MAP_BYTES,
    ) -> Journal:
        """Make a journal at *path* from archived *segments* alone (files, in any order), and open it.

        For when ``data.mdb`` is lost. Its tables are as they were after the last archived record, and the chain goes
        on from there with a record ``restore``; what came after that record is lost, and for the caller to find out.
        Raises as create; SegmentError for a damaged segment, UsageError where some are missing in between.

        Durability: as for create.
        """
        path = os.path.abspath(os.fspath(path))
        loaded = sorted((segment.load(os.fspath(s)) for s in segments), key=lambda s: s.first)
        segment.check_sequence(loaded)
        with host_errors(f"restoring a journal at {path}"):
            creating.restore(path, Whole(projector, projector.tables), Effects(hook), clock, map_size, loaded)
        return cls.open(path, projector, clock=clock, hook=hook, map_size=map_size)

    @classmethod
    def rebuild(
        cls, path: str | os.PathLike[str], projector: Projector, left: Salvaged, then: Callable[[WriteTxn], T], *,
        schema: str = "", clock: Callable[[], int] = time.time_ns, hook: FaultHook | None = None,
        map_size: int = DEFAULT_MAP_BYTES,
    ) -> T:
        """Make an environment in the new directory *path* that goes on from what is *left* (see ``salvage``).

        Its chain is the old one's, as far as that is proven; then comes a record ``restore`` that names the old head;
        then whatever *then* appends, in the same transaction. Segments are not copied: the caller puts the data file
        beside them. Returns what *then* does; raises as create, and what *then* does.

        Durability: as for create.
        """
        path = os.path.abspath(os.fspath(path))
        whole = Whole(projector, projector.tables)
        with host_errors(f"rebuilding a journal at {path}"):
            return creating.rebuild(path, whole, Effects(hook), clock, map_size, left, schema=schema, then=then)

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], projector: Projector, *, readonly: bool = False,
        clock: Callable[[], int] = time.time_ns, hook: FaultHook | None = None, map_size: int = DEFAULT_MAP_BYTES,
        locks: bool = True,
    ) -> Journal:
        """Open the journal at *path*. Costs the same however long it is.

        Read-only on a directory that cannot be written, or without *locks* (where those of its file system prove
        nothing), it takes none and writes nothing: nothing protects such a reader from writers elsewhere (a row torn
        by them is a RowError, never wrong data).
        Raises MissingError; DamagedError when the file is shorter than it says (which would otherwise kill the
        process); AlreadyOpenError, ForkedError, PidNamespaceError, UsageError for another projector, HostError.
        """
        path = os.path.abspath(os.fspath(path))
        if not os.path.isdir(path):
            raise MissingError(f"there is no journal at {path}")
        with host_errors(f"opening the journal at {path}"):
            return cls(path, projector, readonly=readonly, clock=clock, hook=hook, map_size=map_size, locks=locks)

    # -- using -------------------------------------------------------------------------------------------------------

    def update(self, label: str, fn: Callable[[WriteTxn], T]) -> T:
        """Run *fn* in one transaction and commit what it appended; the commit is the fault point ``txn.<label>``.

        *fn* may run more than once (when the map had to grow), so it must have no other effects. If it raises,
        nothing is changed. A transaction without a record costs no flush. Writers wait for each other, readers for
        nobody; updates do not nest.

        Raises NoSpaceError (nothing was changed), OutcomeUnknownError (the commit failed half-way: the handle is
        poisoned and only a reopen can tell), PoisonedError, ReadOnlyError, and what *fn* raises.

        Durability: records and rows are on disk when this returns.
        """
        self._check(writing=True)

        def run(txn: Any) -> tuple[T, bool]:
            view = WriteTxn(self._engine, txn, self._whole, self._clock)
            try:
                result = fn(view)
                return result, view.finish()
            finally:
                view.end()

        def commit(txn: Any) -> None:
            with self._effects.point(f"txn.{label}"):
                txn.commit()

        with self._poisoning():
            return self._engine.writing(run, commit)

    @contextmanager
    def read(self) -> Iterator[ReadTxn]:
        """A snapshot of tables and log. Waits for nobody; keep it short, because it keeps old pages from reuse."""
        self._check()
        with self._engine.reading() as txn:
            view = ReadTxn(self._engine, txn)
            try:
                yield view
            finally:
                view.end()

    def checkpoint(self, sync: Callable[[], None], hold: Callable[[ReadTxn], int | None]) -> Checkpoint:
        """Record that *sync* made all effects so far durable, up to the low-water mark.

        The head is read first, then *sync* runs, then the mark is recorded: min(that head, *hold* − 1), never going
        backwards. A record appended while *sync* runs may have an effect that it did not cover; a head read after
        it would claim that it did, and lose it. *hold(view)* is the first record of any transaction whose effects
        are not complete, or None; it is asked before the sync, since one that completes meanwhile is not covered by
        it, and again within the transaction that records the mark.

        Durability: the mark is on disk when this returns; *sync* raising leaves the old one.
        """
        self._check(writing=True)
        with self.read() as view:
            head, before = view.head()[0], hold(view)
        sync()

        def record(txn: WriteTxn) -> Checkpoint:
            held = [each for each in (before, hold(txn)) if each is not None]
            low = min([head, *(each - 1 for each in held)])
            low = max(low, txn.low_water())
            return Checkpoint(txn.control("checkpoint", {"low_water": low}).seq, low)

        return self.update("checkpoint", record)

    # -- archive -----------------------------------------------------------------------------------------------------

    def archive(self) -> Segment | None:
        """Move the log up to the low-water mark (whole groups only) into a sealed segment. None if there is nothing.

        Durability: in order, the segment is made durable; then one transaction (``txn.archive``) records it and
        drops those records. A crash between the two leaves a segment that the journal does not know; the next
        archive removes it and starts again. Nothing is lost at any point.
        """
        self._check(writing=True)
        with self._poisoning(), host_errors(f"archiving {self.path}"):
            return archive.archive(self._segments, self._effects, self._whole, self.read, self.update)

    def drop_segments(self, keep: int) -> list[str]:
        """Remove all but the newest *keep* (at least one) segments; their names. The newest holds a snapshot.

        Raises SegmentError, and removes nothing, if the newest is damaged.

        Durability: it is recorded (``txn.drop``) before the first file goes; files that a crash leaves are removed
        by the next archive.
        """
        self._check(writing=True)
        with self._poisoning(), host_errors(f"dropping segments of {self.path}"):
            return archive.drop(self._segments, self._effects, self.read, self.update, keep)

    # -- looking back ------------------------------------------------------------------------------------------------

    def records(self, after: int = 0, upto: int | None = None) -> Iterator[Record]:
        """Every record there is, archived or not, after *after* and up to *upto*, in order and verified.

        A snapshot is held until the iterator ends. DamagedError at the first record or segment that is damaged.
        """
        self._check()
        with self.read() as view, host_errors(f"reading the log of {self.path}"):
            yield from archive.every_record(archive.history(self._segments, view).segments, view, after, upto)

    def fold(self, at: int | None = None) -> Folded:
        """The tables after record *at* (None: now), rebuilt from the nearest snapshot and the records after it.

        UsageError when what is left does not reach back to *at*; DamagedError for damaged records or segments.
        """
        self._check()
        with self.read() as view, host_errors(f"folding {self.path}"):
            return fold_at(self._whole, archive.base_only(self._segments, view, at), view.records(upto=at), at)

    def verify(self, *, every_snapshot: bool = True) -> VerifyReport:
        """Check everything: pages, segments, chain, gaplessness, groups, every row, and tables = fold(log).

        Reads all there is; without *every_snapshot* of segments' snapshots the newest alone (of the others their digest),
        so that the cost is not rows times segments. Damage is never raised, it is in the report; ``verifying`` lists the
        codes.
        """
        self._check()
        verifier = Verifier(self._whole, self.uuid)
        with self.read() as view:
            # the snapshot keeps its pages from reuse, so that the walk sees them at rest while others write
            problems = structural_problems(os.path.join(self.path, DATA_FILE))
            check_all(verifier, self._segments, view, problems, every_snapshot=every_snapshot)
        return verifier.report()

    def snapshot_to(self, path: str | os.PathLike[str]) -> Segment:
        """The log and all tables as they are now, as one sealed file at *path*, which must not exist.

        It is a segment like those of the archive: ``Replay`` opens it, and ``salvage`` takes it. Made within one read
        transaction: no writer waits, and a damaged row or record makes it fail (DamagedError) rather than be copied.

        Durability: the file and its name are on disk when this returns; a crash before leaves at most ``<path>.part``.
        """
        self._check()
        path = os.path.abspath(os.fspath(path))
        if os.path.lexists(path):
            raise ExistsError(f"there is something at {path}")
        with host_errors(f"writing a snapshot to {path}"), self.read() as view:
            archive.snapshot(path, self._effects, self._whole, view)
        return segment.load(path)

    def copy_to(self, directory: str | os.PathLike[str]) -> None:
        """A consistent copy of environment and segments, made while others write. *directory* must not exist.

        Durability: everything in it, and its name, is fsynced when this returns; a crash before leaves a part.
        """
        self._check()
        target = os.path.abspath(os.fspath(directory))
        if os.path.lexists(target):
            raise ExistsError(f"there is something at {target}")
        inside = os.path.join(target, creating.SEGMENTS_DIR)
        with host_errors(f"copying {self.path}"), locked(self._segments):   # nothing is archived or dropped meanwhile
            self._effects.make_dir(target, point="copy.mkdir")
            self._effects.make_dir(inside, point="copy.mkdir")
            self._engine.copy(target)
            with self.read() as view:
                names = [row["name"] for row in view.segment_rows()]
            for name in names:
                source = os.path.join(self._segments, name)
                self._effects.copy_synced(source, os.path.join(inside, name), point="copy.segment")
            for path in (os.path.join(target, DATA_FILE), inside, target, os.path.dirname(target)):
                self._effects.sync_path(path, point="copy.sync")

    # -- the end, and guards -------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close it; no error when it is closed already. BusyError if other threads stay inside transactions."""
        if not self._closed and self._pid == os.getpid():
            self._engine.close()
            self._leave_namespace()
            self._closed = True   # last: a close that was interrupted is finished by the next

    def _leave_namespace(self) -> None:
        if self._namespace is not None:
            self._namespace.leave()
            self._namespace = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def _poisoning(self) -> Iterator[None]:
        try:
            yield
        except OutcomeUnknownError as error:
            self._poison = self._poison or str(error)
            raise

    def _check(self, *, writing: bool = False) -> None:
        if self._pid != os.getpid():
            raise ForkedError(f"the journal {self.path} was opened by process {self._pid}, before fork")
        if self._closed or not self._engine.is_open:
            raise ClosedError(f"the journal {self.path} is closed")
        if writing and self.readonly:
            raise ReadOnlyError(f"the journal {self.path} is open read-only")
        if writing and self._poison:
            raise PoisonedError(f"the journal {self.path} is poisoned by an earlier failure: {self._poison}")


def check_all(
    verifier: Verifier, segments: str, view: ReadTxn, problems: Sequence[str], *, every_snapshot: bool = True,
) -> None:
    """Have *verifier* look at segments, log and tables; at segments only, if the environment's pages are damaged."""
    for problem in problems:
        verifier.find("structure", problem)
    if problems:   # reading on could kill the process
        names = segment.list_names(segments)
        verifier.segments([partial(segment.load, os.path.join(segments, name)) for name in names])
        return
    rows = view.segment_rows()
    loaders = [partial(segment.load, os.path.join(segments, row["name"]), row) for row in rows]
    verifier.segments(loaders, every_snapshot=every_snapshot)
    meta = view.meta()
    verifier.log(view.records(), after=meta["archived"], link=meta["archived_link"])
    verifier.tables(view.stored_rows)


