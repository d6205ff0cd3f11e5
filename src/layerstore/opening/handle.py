"""An open store: its descriptors, journal, locks and poison. The verbs are functions over a ``Handle``.

Opening belongs here, and the guards that every verb passes: closed, forked, read-only, poisoned. Not here: what a
verb does, creating (``create``), and recovery.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import count
from typing import Any, TypeVar

from layerjournal import ReadTxn, WriteTxn
from layerjournal.gate import Gate
from layerstore.errors import (
    AlreadyOpenError,
    BusyError,
    ClosedError,
    DamagedError,
    ForkedError,
    JournalDamagedError,
    LayerstoreError,
    OutcomeUnknownError,
    PoisonedError,
    ReadOnlyError,
)
from layerstore.model import StoreBeneath
from layerstore.observe import Observer, Silent, Timed, barrier, transitions, watching
from layerstore.opening import reserve
from layerstore.opening.config import ids_of, read_config
from layerstore.opening.journaling import fault_hook, journal_errors, open_journal
from layerstore.system import filesystem, flock, fs
from layerstore.system.descriptors import Descriptor
from layerstore.system.idmap import IdMap

T = TypeVar("T")

DIRECTORIES = ("layers", "staging", "trash", "quarantine", "images", "uppers")

# what this process has open is what of these is not closed: an opening that was interrupted leaves nothing in it
_handles: weakref.WeakSet[Handle] = weakref.WeakSet()


def new_txid() -> str:
    """A random transaction ID: never a counter, which a rolled-back transaction would hand out twice."""
    return os.urandom(16).hex()


class Handle:
    """One open store in one process. Thread-safe; not usable after fork."""

    def __init__(
        self, root: str, *, readonly: bool, allow_filesystem: tuple[str, ...], observer: Observer | None,
        clock: Callable[[], int], locks: bool = True,
    ) -> None:
        self.root = root
        self.readonly = readonly
        self.locks = locks or not readonly         # False: on a network's file system, whose locks prove nothing
        self.observer: Observer = watching(observer)
        self.watched = not isinstance(self.observer, Silent)   # what costs something is only gathered for somebody
        self.clock = clock
        self.pid = os.getpid()
        self.closed = False
        self.poison: str | None = None
        # tree locks held by this handle, oldest first: weakly, so that a lock goes with whom it was taken for
        self._locks: dict[int, weakref.ref[flock.TreeLock]] = {}
        self._numbers = count()
        self._gate = Gate()                        # who is inside a verb
        self._given_back = False
        self.recovered: dict[str, int] = {}        # layers that this opening's recovery acted on, or would have, and when
        self.checkpointed_at = 0                   # the head at this handle's last checkpoint
        self._descriptors: list[Descriptor] = []
        self.dirs: dict[str, int] = {}
        self.beneath: list[Handle] = []            # open, read-only: ``beneath``
        self.absent: list[StoreBeneath] = []
        try:
            self.root_fd = self._own(fs.open_dir(root))
            self.key = _identity(self.root_fd)
            self._open(allow_filesystem)
        except BaseException:   # an interrupt may come at any line: nothing stays open behind it
            self._give_back()
            raise

    def _own(self, descriptor: Descriptor) -> int:
        self._descriptors.append(descriptor)
        return descriptor.fd

    def _open(self, allow: tuple[str, ...]) -> None:
        if is_open_here(self.root_fd):
            raise AlreadyOpenError(f"this process already has the store at {self.root} open")
        self.filesystem = filesystem.probe(self.root_fd, allow=allow)
        if self.locks and (not self.readonly or not _is_read_only(self.root_fd)):
            flock.lock_root(self.root_fd, exclusive=False)
        self.config = read_config(self.root_fd, self.root, readonly=self.readonly)
        for name in DIRECTORIES:
            self.dirs[name] = self._own(fs.open_dir(name, self.root_fd))
        self._check_one_filesystem()
        # opened before the first write and kept: a write-back error is reported once per open file description
        self.sync_fd = self._own(fs.open_dir(".", self.root_fd))
        if not self.readonly:
            reserve.open_up(self.root_fd)   # recovery may have to write on a disk that is full
        with journal_errors(self.set_poison):
            path = os.path.join(self.root, "journal")
            hook = Timed(self.observer, fault_hook) if self.watched else fault_hook
            self.journal = open_journal(path, readonly=self.readonly, clock=self.clock, hook=hook, locks=self.locks)
        if self.journal.uuid != self.config["uuid"]:
            raise JournalDamagedError(f"journal {self.journal.uuid} does not belong to store {self.config['uuid']}")
        _handles.add(self)

    def _check_one_filesystem(self) -> None:
        device = os.fstat(self.root_fd).st_dev
        for name, fd in self.dirs.items():
            if os.fstat(fd).st_dev != device:
                raise DamagedError(
                    f"{self.root}/{name} is on another file system than the store",
                    hint="a store lives on one file system: trees are renamed between its directories",
                )

    @property
    def overlay_form(self) -> str:
        return str(self.config["overlay_form"])

    @cached_property
    def ids(self) -> IdMap:
        """Which ids stand for the archives', as this process sees them on disk: by way of its own user namespace."""
        return ids_of(self.config)

    # -- guards --------------------------------------------------------------------------------------------------

    def check_usable(self) -> None:
        """Raise ClosedError or ForkedError."""
        if self.pid != os.getpid():
            raise ForkedError(f"the store {self.root} was opened by process {self.pid}, before fork")
        if self.closed:
            raise ClosedError(f"the store {self.root} is closed")

    def check_writable(self) -> None:
        """As check_usable; and ReadOnlyError, PoisonedError."""
        self.check_usable()
        if self.readonly:
            raise ReadOnlyError(f"the store {self.root} is open read-only")
        if self.poison is not None:
            raise PoisonedError(f"this handle was poisoned by an earlier failure: {self.poison}")

    def set_poison(self, why: str) -> None:
        if self.poison is None:
            self.poison = why
            self.observer.event("poisoned", root=self.root, why=why)

    # -- the journal ---------------------------------------------------------------------------------------------

    def update(self, label: str, fn: Callable[[WriteTxn], T]) -> T:
        """One durable transaction of journal and catalog; *fn* may run more than once.

        Poison is tested inside it: a sync that failed in another thread must not be followed by a promise.
        Durability: when this returns, the records and rows are on disk; when it raises, none is (except
        OutcomeUnknownError).
        """
        self.check_writable()
        begun = time.perf_counter()
        told: list[dict[str, Any]] = []

        def guarded(txn: WriteTxn) -> T:
            self.check_writable()
            if not self.watched:
                return fn(txn)
            before = txn.head()[0]
            result = fn(txn)
            told[:] = transitions(txn, before)
            return result

        with journal_errors(self.set_poison):
            result = self.journal.update(label, guarded)
        if told:
            self._tell(label, told, time.perf_counter() - begun)
        return result

    def _tell(self, label: str, told: list[dict[str, Any]], seconds: float) -> None:
        for fields in told:
            self.observer.event("transition", **fields)
        self.observer.event("transaction", label=label, records=len(told), seconds=seconds)

    @contextmanager
    def read(self) -> Iterator[ReadTxn]:
        """A consistent snapshot of the catalog. Takes no lock that a writer holds."""
        self.check_usable()
        with journal_errors(self.set_poison), self.journal.read() as txn:
            yield txn

    # -- barriers ------------------------------------------------------------------------------------------------

    def sync(self, fd: int, *, point: str) -> None:
        """Make everything written so far on the store's file system durable, by one syncfs through *fd*.

        For a transaction *fd* must be its own and opened before its first write (for a group: the one opened
        first), because a write-back error is reported once per open file description, since its opening. On any
        error the handle is poisoned: a retry would report success while the page cache lies (docs/crash-model.md).
        """
        try:
            with barrier(self.observer, point):
                fs.sync_filesystem(fd, point=point)
        except OSError as error:
            self.set_poison(f"syncfs failed: {error}")
            raise OutcomeUnknownError(f"the file system of {self.root} could not be synced: {error}") from error

    # -- locks ---------------------------------------------------------------------------------------------------

    def hold(self, txid: str, lock: flock.TreeLock) -> None:
        """Register the lock of the tree *txid*. It is the caller's to keep: a lock that is forgotten is let go of."""
        lock.txid = txid
        number = next(self._numbers)
        self._locks[number] = weakref.ref(lock, partial(self._locks.pop, number))

    def _held(self) -> list[flock.TreeLock]:
        live = [each() for each in list(self._locks.values())]
        return [lock for lock in live if lock is not None and lock.fd >= 0]

    def let_go(self, txid: str) -> None:
        for lock in self._held():
            if lock.txid == txid:
                lock.close()

    def holds(self, txid: str) -> bool:
        return any(lock.txid == txid for lock in self._held())

    def held_by_this_thread(self, txid: str | None = None) -> bool:
        """Whether this thread took the lock of *txid* (None: of any tree) and still holds it."""
        me = threading.get_ident()
        return any(lock.thread == me and txid in (None, lock.txid) for lock in self._held())

    def oldest(self, txids: list[str]) -> int:
        """The descriptor of the tree among *txids* whose lock was taken first."""
        return next(lock.fd for lock in self._held() if lock.txid in txids)

    def lock_fd(self, txid: str) -> int:
        return self.oldest([txid])

    # -- the end -------------------------------------------------------------------------------------------------

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Around every verb: keeps another thread's ``close`` from taking the descriptors away meanwhile."""
        self.check_usable()
        with self._gate.inside():
            self.check_usable()   # another thread may have closed it while this one waited
            yield

    def close(self) -> None:
        """Give everything back, when the verbs under way have ended. What was being staged is swept by the next open.

        BusyError, with nothing closed, from inside a verb (a callback), or when verbs do not end within a minute.
        A close that was interrupted is finished by another one.
        """
        if self._given_back or self.pid != os.getpid():
            return
        if self._gate.depth > 0:
            raise BusyError("the store cannot be closed from inside one of its own calls")
        with journal_errors(None), self._gate.alone("the store is to be closed"):
            try:
                self._give_back()
            except LayerstoreError:
                raise
            except BaseException:
                self._give_back()   # it goes on where it was
                raise

    def let_go_by(self, _above: Handle) -> None:
        """It is no longer needed beneath another one."""
        self.close()

    def _give_back(self) -> None:
        self.closed = True
        try:
            for lock in self._held():
                lock.close()
            for store in self.beneath:
                store.let_go_by(self)
            if hasattr(self, "journal"):
                with journal_errors(None):
                    self.journal.close()
        finally:
            self._close_descriptors()
        self._given_back = True

    def _close_descriptors(self) -> None:
        for each in self._descriptors:
            each.close()
        self.dirs, self.sync_fd, self.root_fd = {}, -1, -1


def is_open_here(root_fd: int) -> bool:
    """Whether this process has the store whose root is open as *root_fd*."""
    key, me = _identity(root_fd), os.getpid()
    return any(each.key == key and not each.closed and each.pid == me for each in list(_handles))


def _after_fork_in_child() -> None:
    """A child must not keep its parent's locks alive, nor use what belongs to the parent."""
    for handle in list(_handles):
        handle._close_descriptors()  # noqa: SLF001 - the same module; ``flock`` closes the tree locks
    _handles.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _is_read_only(fd: int) -> bool:
    return bool(os.fstatvfs(fd).f_flag & os.ST_RDONLY)


__all__ = ["DIRECTORIES", "Handle", "is_open_here", "new_txid"]
