"""The LMDB environment: opening it safely, transactions, growth. This package alone imports lmdb.

What must be so of the data file before it is opened is in ``datafile``, what LMDB's errors mean in ``meaning``.

Engine 0.9 (``lib_version=0``), default full sync: a commit is two flushes and is durable when it returns. Never
NOSYNC, NOMETASYNC, MAPASYNC or WRITEMAP: each lost acknowledged state, or died of SIGBUS, in power-loss runs.
LMDB never fsyncs a directory; whoever creates or renames an environment does.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any, TypeVar

import lmdb

from layerjournal import lockfile, pages
from layerjournal.effects import FULL, host_errors, is_writable
from layerjournal.engine.datafile import DATA_FILE, check_size, identity, readable, structural_problems
from layerjournal.engine.meaning import is_disk_full, is_full, open_error, tables_error, use_error
from layerjournal.errors import (
    AlreadyOpenError,
    BusyError,
    ClosedError,
    ForkedError,
    HostError,
    NoSpaceError,
    OutcomeUnknownError,
    UsageError,
)
from layerjournal.gate import Gate
from layerjournal.mapped import Mapped, Said

T = TypeVar("T")
LOG = ".log"
MAX_MAP = 1 << 46
_MAX_READERS = 1022
_TRIES = 64
_READERS_EVERY = 32       # write transactions between looks for readers that died

# what this process has open is what of these is open: an opening that was interrupted leaves nothing in it
_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_inherited: set[tuple[int, int]] = set()    # the data files that the parent had, in the middle of a transaction


def _after_fork_in_child() -> None:
    """Close the child's copies, so that the child can open the journal itself.

    Only those without a live transaction: ending one in the child would end it in the parent, whose reader slot
    and writer lock are in shared memory. (Closing clears reader slots of the caller's own pid only.) A child forked
    in the middle of a transaction cannot open the same journal; start such children by spawn.
    """
    for engine in list(_engines):
        if engine.busy:
            _inherited.add(engine.identity)
        else:
            engine.env.close()
            engine.mapped.close()
    _engines.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


class _MapFull(Exception):   # noqa: N818 - never leaves this module
    """The transaction was aborted because the map is full at *size* bytes."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class Engine:
    """One open environment. ``.log`` and the named tables are its databases.

    *lock* None: LMDB's lock file is used wherever it can be written; without it a reader is not protected from
    writers, which is right on read-only media and for copies. *look*: every page is looked at before it is used; who
    leaves that out knows that the file is sound.
    """

    def __init__(
        self, path: str, tables: Sequence[str], *, readonly: bool, map_size: int, create: bool = False,
        lock: bool | None = None, look: bool = True,
    ) -> None:
        self.path, self.readonly, self._pid = path, readonly, os.getpid()
        self._gate, self._own = Gate(), threading.local()
        data = os.path.join(path, DATA_FILE)
        if not create:
            with readable(data):
                check_size(data)
            _check_not_open(data)
        self.locking = (not readonly or is_writable(path)) if lock is None else lock
        self.is_open = False
        self._begun = count(1)
        if self.locking:
            lockfile.reserve(path, _MAX_READERS)
        try:
            self.env = lmdb.open(
                os.fsencode(path),   # text would have to be UTF-8
                map_size=map_size, max_dbs=len(tables) + 16, max_readers=_MAX_READERS, readonly=readonly,
                lock=self.locking, create=create, lib_version=0,
                max_spare_txns=0,   # a spare one has a reader slot, which a forked child would end by closing
            )
            self.is_open, self.identity = True, identity(data)
            self._page_size = self.env.stat()["psize"]
            self.mapped = Mapped(data, problems=structural_problems)
            _engines.add(self)
            if look and not create:
                self._check_pages(data)
            self._begin(tables, create=create)
        except lmdb.Error as error:
            raise open_error(error, path) from error
        except BaseException:   # an interrupt may come at any line: nothing stays open behind it
            self._abandon()
            raise

    def _check_pages(self, data: str) -> None:
        """Before the engine reads a page but the metas: it would die of some that are wrong."""
        with self.reading(), readable(data):   # keeps what is looked at from reuse; to begin one reads no page
            pages.check(data)

    def _begin(self, tables: Sequence[str], *, create: bool) -> None:
        try:
            self.dbs = {name: self._database(name, create=create) for name in (LOG, *tables)}
            if self.locking:
                self.env.reader_check()   # what dead readers hold would keep pages from reuse
        except lmdb.Error as error:
            raise tables_error(error, self.path, tables) from error

    def _said(self) -> Said:
        info = self.env.info()
        return Said((info["last_pgno"] + 1) * self._page_size, info["last_txnid"])

    def _abandon(self) -> None:
        self.is_open = False   # first: half closed is closed to users, and closing it again goes on
        if hasattr(self, "mapped"):
            self.mapped.close()
        if hasattr(self, "env"):
            self.env.close()
        _engines.discard(self)

    def open_tables(self, names: Sequence[str]) -> None:
        """Open more tables of this environment. DamagedError if there is no such one."""
        self._heed()
        try:
            self.dbs.update({name: self._database(name, create=False) for name in names})
        except lmdb.Error as error:
            raise tables_error(error, self.path, names) from error

    def _database(self, name: str, *, create: bool) -> Any:
        for _ in range(_TRIES):
            try:
                return self.env.open_db(name.encode(), create=create)
            except lmdb.MapResizedError:   # another process has just grown it
                self._adopt_map()
        raise BusyError(f"the map of {self.path} keeps growing under us")

    @property
    def busy(self) -> bool:
        """Whether a transaction of this process is live, or about to be."""
        return self._gate.occupied

    def close(self) -> None:
        """BusyError if other threads stay inside their transactions; UsageError if this one is inside one."""
        with self._gate.alone("the journal is to be closed"):
            self._abandon()

    def copy(self, path: str) -> None:
        """A consistent, compacted copy of ``data.mdb`` into the existing directory *path*, while others write."""
        try:
            with self._gate.inside():
                self._heed()
                self.env.copy(path, compact=True)
        except lmdb.Error as error:
            raise use_error(error, path) from error

    # -- transactions ----------------------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[Any]:
        """A read transaction: a snapshot that waits for nobody."""
        for _ in range(_TRIES):
            txn = None
            with self._gate.inside():
                try:
                    try:
                        self._heed()
                        txn = self._snapshot()
                        if txn is not None:
                            yield txn
                            return
                    except lmdb.Error as error:
                        raise use_error(error, self.path) from error
                    finally:
                        self._end(txn)
                finally:
                    self._end(txn)   # once more: an interrupt may have come between
            self._adopt_map()
        raise BusyError(f"the map of {self.path} keeps growing under us")

    def _heed(self) -> None:
        """Before the file is used: what is to be so of it. ClosedError if the gate was waited at while it was closed."""
        self._check_open()
        try:
            self.mapped.heed(self._said)
        except OSError:   # of a look at it; nothing was written
            with host_errors(f"looking at {self.path}"), readable(self.path):
                raise

    def _check_open(self) -> None:
        if not self.is_open:
            raise ClosedError(f"the journal {self.path} is closed")

    def _snapshot(self) -> Any:
        """A read transaction; None if the map was grown by another process."""
        try:
            return self.env.begin()
        except lmdb.MapResizedError:
            return None

    def _end(self, txn: Any) -> None:
        """Abort it, if it is not finished; harmless when done again."""
        if txn is not None and os.getpid() == self._pid:   # a forked child would end its parent's
            with suppress(lmdb.Error):   # of a transaction that is finished already
                txn.abort()

    def writing(self, fn: Callable[[Any], tuple[T, bool]], commit: Callable[[Any], None]) -> T:
        """Run *fn* in a write transaction and commit it durably if it says so; again if the map had to grow.

        *commit* performs the commit, so that the caller can wrap it. NoSpaceError: nothing was changed.
        OutcomeUnknownError: the commit itself failed.
        """
        for _ in range(_TRIES):
            try:
                with self._gate.inside():
                    self._heed()
                    if next(self._begun) % _READERS_EVERY == 0:
                        with suppress(lmdb.Error):   # only help
                            self.env.reader_check()   # one that was killed keeps all later pages from reuse
                    return self._write_once(fn, commit)
            except _MapFull as full:
                self._grow(full.size)
            except lmdb.MapResizedError:
                self._adopt_map()
        raise BusyError(f"the map of {self.path} keeps growing under us")

    def _write_once(self, fn: Callable[[Any], tuple[T, bool]], commit: Callable[[Any], None]) -> T:
        if getattr(self._own, "writing", False):
            raise UsageError(
                "updates do not nest: this thread is inside one already", hint="append within the one that is open",
            )
        txn = None
        try:
            try:
                self._own.writing = True
                txn = self._begin_writing()
                return self._fill_and_commit(txn, fn, commit)
            finally:
                self._end(txn)
                self._own.writing = False
        finally:   # once more: an interrupt may have come between
            self._end(txn)
            self._own.writing = False

    def _begin_writing(self) -> Any:
        try:
            return self.env.begin(write=True)
        except lmdb.MapResizedError:
            raise
        except lmdb.Error as error:
            raise use_error(error, self.path) from error

    def _fill_and_commit(
        self, txn: Any, fn: Callable[[Any], tuple[T, bool]], commit: Callable[[Any], None],
    ) -> T:
        try:
            result, changed = fn(txn)
            if changed:
                self._commit(txn, commit)
        except lmdb.MapFullError as error:
            raise _MapFull(self.env.info()["map_size"]) from error
        except lmdb.Error as error:
            raise use_error(error, self.path) from error
        return result

    def _commit(self, txn: Any, commit: Callable[[Any], None]) -> None:
        what = f"a commit to the journal at {self.path} failed"
        try:
            commit(txn)
        except lmdb.MapFullError:
            raise
        except lmdb.Error as error:
            if (is_full(error) or is_disk_full(self.path)) and not self._is_dead():
                raise NoSpaceError(f"{what}: {error}") from error
            raise OutcomeUnknownError(f"{what}: {error}") from error
        except OSError as error:   # of the hook: as if the commit itself had met it
            if error.errno in FULL:
                raise NoSpaceError(f"{what}: {error}") from error
            raise OutcomeUnknownError(f"{what}: {error}") from error

    def _is_dead(self) -> bool:
        """Whether LMDB has given the environment up: writing the meta page itself failed half-way."""
        try:
            self.env.begin().abort()
        except lmdb.Error:
            return True
        return False

    # -- growth ----------------------------------------------------------------------------------------------------

    def _grow(self, seen: int) -> None:
        with self._gate.inside():
            self._check_open()
            self.env.reader_check()   # a dead reader may be all that keeps free pages from use
        if seen * 2 > MAX_MAP:
            raise NoSpaceError(f"the journal at {self.path} has reached {seen} bytes; it can have {MAX_MAP}")
        with self._gate.alone("the journal's map must grow"):
            self._check_open()
            if self.env.info()["map_size"] <= seen:   # else another thread was faster
                self._set_map(seen * 2)

    def _adopt_map(self) -> None:
        with self._gate.alone("the journal's map was grown by another process"):
            self._set_map(0)

    def _set_map(self, size: int) -> None:
        self._check_open()
        try:
            self.env.set_mapsize(size)
        except lmdb.Error as error:
            raise HostError(f"the map of {self.path} cannot be made {size} bytes long: {error}") from error


def _check_not_open(path: str) -> None:
    which = identity(path)
    if any(engine.is_open and engine.identity == which for engine in list(_engines)):
        raise AlreadyOpenError(f"this process has {path} open already")
    if which in _inherited:
        raise ForkedError(f"{path} was in use, in the middle of a transaction, when this process was forked")
