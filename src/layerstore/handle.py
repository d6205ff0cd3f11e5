"""An open store: its descriptors, journal, locks and poison. The verbs are functions over a ``Handle``.

Opening and creating belong here, and the guards that every verb passes: closed, forked, read-only, poisoned. Not
here: what a verb does, and recovery.

Creating, in order, and what a crash in each gap leaves:

1. the root directory, locked exclusively  – an empty directory, which the next create takes over
2. its subdirectories                      – the same
3. ``journal/`` (made aside and renamed)   – a root without ``store.json``: the next create goes on from here
4. everything fsynced
5. ``store.json`` (aside, fsynced, renamed) and the root fsynced – a store
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import threading
import time
import uuid as uuid_module
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import layerjournal
from layerjournal import Journal, ReadTxn, WriteTxn
from layerstore import faults, filesystem, fs
from layerstore.errors import (
    AlreadyOpenError,
    BusyError,
    ClosedError,
    DamagedError,
    ForkedError,
    HostError,
    InvalidArgumentError,
    IoError,
    JournalDamagedError,
    LayerstoreError,
    NoSpaceError,
    OutcomeUnknownError,
    PidNamespaceError,
    PoisonedError,
    ReadOnlyError,
    UnsupportedFormatError,
)
from layerstore.observe import Observer, Silent, barrier
from layerstore.projection import CatalogProjector

T = TypeVar("T")

MAGIC = "layerstore"
_CLOSE_PATIENCE_SECONDS = 60.0
FORMAT = (1, 0)
KNOWN_FEATURES: frozenset[str] = frozenset()
DIRECTORIES = ("layers", "staging", "trash", "quarantine", "images", "uppers")

_open_roots: set[tuple[int, int]] = set()
_handles: weakref.WeakSet[Handle] = weakref.WeakSet()


def new_txid() -> str:
    """A random transaction ID: never a counter, which a rolled-back transaction would hand out twice."""
    return secrets.token_hex(16)


class Handle:
    """One open store in one process. Thread-safe; not usable after fork."""

    def __init__(
        self, root: str, *, readonly: bool, allow_filesystem: tuple[str, ...], observer: Observer | None,
        clock: Callable[[], int],
    ) -> None:
        self.root = root
        self.readonly = readonly
        self.observer: Observer = observer or Silent()
        self.clock = clock
        self.pid = os.getpid()
        self.closed = False
        self.poison: str | None = None
        self.locks: dict[str, fs.TreeLock] = {}    # tree locks held by this handle, by txid
        self.holders: dict[str, int] = {}          # the thread that took each
        self.mutex = threading.Lock()              # guards ``locks`` and ``poison``; never held across an effect
        self._idle = threading.Condition()
        self._closing = False
        self._users: list[int] = []                # the threads inside verbs
        self.checkpointed_at = 0                   # the head at this handle's last checkpoint
        self.root_fd = fs.open_dir(root)
        self.key = _identity(self.root_fd)
        self.dirs: dict[str, int] = {}
        try:
            self._open(allow_filesystem)
        except BaseException:
            self._close_descriptors()
            raise
        _handles.add(self)

    def _open(self, allow: tuple[str, ...]) -> None:
        if self.key in _open_roots:
            raise AlreadyOpenError(f"this process already has the store at {self.root} open")
        self.filesystem = filesystem.probe(self.root_fd, allow=allow)
        if not self.readonly or not _is_read_only(self.root_fd):
            _lock_root(self.root_fd, fcntl.LOCK_SH)
        self.config = _read_config(self.root_fd, self.root, readonly=self.readonly)
        for name in DIRECTORIES:
            self.dirs[name] = fs.open_dir(name, self.root_fd)
        self._check_one_filesystem()
        # opened before the first write and kept: a write-back error is reported once per open file description
        self.sync_fd = fs.open_dir(".", self.root_fd)
        with journal_errors(self):
            self.journal = Journal.open(
                os.path.join(self.root, "journal"), CatalogProjector(), readonly=self.readonly,
                clock=self.clock, hook=_fault_hook,
            )
        if self.journal.uuid != self.config["uuid"]:
            self.journal.close()
            raise DamagedError(f"journal {self.journal.uuid} does not belong to store {self.config['uuid']}")
        _open_roots.add(self.key)

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
        with self.mutex:
            self.poison = self.poison or why

    # -- the journal ---------------------------------------------------------------------------------------------

    def update(self, label: str, fn: Callable[[WriteTxn], T]) -> T:
        """One durable transaction of journal and catalog; *fn* may run more than once.

        Poison is tested inside it: a sync that failed in another thread must not be followed by a promise.
        Durability: when this returns, the records and rows are on disk; when it raises, none is (except
        OutcomeUnknownError).
        """
        self.check_writable()

        def guarded(txn: WriteTxn) -> T:
            self.check_writable()
            return fn(txn)

        with journal_errors(self), barrier(self.observer, f"txn.{label}"):
            return self.journal.update(label, guarded)

    @contextmanager
    def read(self) -> Iterator[ReadTxn]:
        """A consistent snapshot of the catalog. Takes no lock that a writer holds."""
        self.check_usable()
        with journal_errors(self), self.journal.read() as txn:
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

    def hold(self, txid: str, lock: fs.TreeLock) -> None:
        with self.mutex:
            self.locks[txid] = lock
            self.holders[txid] = threading.get_ident()

    def let_go(self, txid: str) -> None:
        with self.mutex:
            lock = self.locks.pop(txid, None)
            self.holders.pop(txid, None)
        if lock is not None:
            lock.close()

    def holds(self, txid: str) -> bool:
        with self.mutex:
            return txid in self.locks

    def held_by_this_thread(self, txid: str | None = None) -> bool:
        """Whether this thread took the lock of *txid* (None: of any tree) and still holds it."""
        me = threading.get_ident()
        with self.mutex:
            return self.holders.get(txid) == me if txid is not None else me in self.holders.values()

    def oldest(self, txids: list[str]) -> int:
        """The descriptor of the tree among *txids* whose lock was taken first."""
        with self.mutex:
            return next(lock.fd for txid, lock in self.locks.items() if txid in txids)

    def lock_fd(self, txid: str) -> int:
        with self.mutex:
            return self.locks[txid].fd

    # -- the end -------------------------------------------------------------------------------------------------

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Around every verb: keeps another thread's ``close`` from taking the descriptors away meanwhile."""
        me = threading.get_ident()
        with self._idle:
            self.check_usable()
            if self._closing and me not in self._users:
                raise ClosedError(f"the store {self.root} is being closed")
            self._users.append(me)
        try:
            yield
        finally:
            with self._idle:
                self._users.remove(me)
                self._idle.notify_all()

    def close(self) -> None:
        """Give everything back, when the verbs under way have ended. What was being staged is swept by the next open.

        BusyError, with nothing closed, from inside a verb (a callback), or when verbs do not end within a minute.
        """
        if self.closed or self.pid != os.getpid():
            return
        with self._idle:
            if threading.get_ident() in self._users:
                raise BusyError("the store cannot be closed from inside one of its own calls")
            self._closing = True   # nobody enters from here
            if not self._idle.wait_for(lambda: not self._users, timeout=_CLOSE_PATIENCE_SECONDS):
                self._closing = False
                raise BusyError(f"{len(self._users)} calls are still under way in other threads")
            self.closed = True
        for txid in list(self.locks):
            self.let_go(txid)
        try:
            with journal_errors(None):
                self.journal.close()
        finally:
            _open_roots.discard(self.key)
            self._close_descriptors()

    def _close_descriptors(self) -> None:
        for fd in [*self.dirs.values(), getattr(self, "sync_fd", -1), self.root_fd]:
            if fd >= 0:
                os.close(fd)
        self.dirs, self.sync_fd, self.root_fd = {}, -1, -1


def _after_fork_in_child() -> None:
    """A child must not keep its parent's locks alive, nor use what belongs to the parent."""
    for handle in list(_handles):
        if not handle.closed:
            handle._close_descriptors()  # noqa: SLF001 - the same module; ``fs`` closes the tree locks
    _open_roots.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


def create(root: str, *, overlay_form: str | None, allow_filesystem: tuple[str, ...], clock: Callable[[], int]) -> None:
    """Make an empty store at *root* if there is none; safe against another process doing the same.

    Durability: when it returns, the empty store is on disk. A crash before leaves what the next create completes.
    """
    os.makedirs(root, mode=0o700, exist_ok=True)
    root_fd = fs.open_dir(root)
    try:
        if fs.exists(root_fd, "store.json"):
            return
        filesystem.probe(root_fd, allow=allow_filesystem)
        _lock_root(root_fd, fcntl.LOCK_EX)
        if fs.exists(root_fd, "store.json"):
            return
        strangers = set(fs.names_in(root_fd)) - {*DIRECTORIES, "journal", ".store.json.new"}
        if strangers and not all(n.startswith((".probe-", "journal.", ".journal")) for n in strangers):
            raise InvalidArgumentError(
                f"{root} is neither a store nor empty: it holds {', '.join(sorted(strangers)[:3])}",
                hint="name an empty or absent directory",
            )
        filesystem.probe(root_fd, allow=allow_filesystem, functional=True)
        form = overlay_form or ("trusted" if filesystem.takes_trusted(root_fd) else "user")
        _make(root_fd, root, form, clock)
    except OSError as error:
        raise fs.host_error(error, f"creating a store at {root}") from error
    finally:
        os.close(root_fd)


def _make(root_fd: int, root: str, overlay_form: str, clock: Callable[[], int]) -> None:
    for name in fs.names_in(root_fd):
        if name.startswith(".probe-"):   # of a create that was killed
            fs.remove_tree(root_fd, name, point="create.clear")
    for name in DIRECTORIES:
        if not fs.exists(root_fd, name):
            fs.make_dir(root_fd, name, point="create.directory")
    path = os.path.join(root, "journal")
    with journal_errors(None):
        if os.path.isdir(path):
            journal = Journal.open(path, CatalogProjector(), clock=clock, hook=_fault_hook)
        else:
            journal = Journal.create(
                path, CatalogProjector(), uuid=str(uuid_module.uuid4()), clock=clock, hook=_fault_hook,
            )
    with journal:
        config = {
            "magic": MAGIC, "uuid": journal.uuid, "format": list(FORMAT), "overlay_form": overlay_form,
            "features": {"compatible": [], "read_only_compatible": [], "incompatible": []},
        }
    fs.sync_filesystem(root_fd, point="create.sync")
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    fs.replace_file(root_fd, "store.json", text.encode(), point="create.config", sync=True)
    fs.sync_dir(root_fd, point="create.root.sync")
    parent = fs.open_dir(os.path.dirname(os.path.abspath(root)))
    try:
        fs.sync_dir(parent, point="create.parent.sync")
    finally:
        os.close(parent)


def _read_config(root_fd: int, root: str, *, readonly: bool) -> dict[str, Any]:
    data = fs.read_file(root_fd, "store.json", maximum=65_536)
    if data is None:
        raise InvalidArgumentError(f"{root} is not a layerstore (no store.json)", hint="create one: layerstore.open(root)")
    try:
        config: dict[str, Any] = json.loads(data)
        features = config["features"]
        if config["magic"] != MAGIC or not isinstance(config["uuid"], str):
            raise ValueError("not a layerstore's")
        if config["overlay_form"] not in ("trusted", "user"):
            raise ValueError(f"overlay_form {config['overlay_form']!r}")
        major = int(config["format"][0])
        unknown = {kind: sorted(set(features[kind]) - KNOWN_FEATURES) for kind in features}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DamagedError(f"{root}/store.json cannot be understood: {error}") from error
    if major > FORMAT[0] or unknown.get("incompatible"):
        raise UnsupportedFormatError(
            f"the store {root} has format {config['format']} and features {unknown.get('incompatible')}; "
            f"this layerstore reads format {FORMAT[0]}",
        )
    if unknown.get("read_only_compatible") and not readonly:
        raise UnsupportedFormatError(
            f"the store {root} uses features that this layerstore can only read: {unknown['read_only_compatible']}",
            hint="open it read-only (readonly=True), or use a newer layerstore",
        )
    return config


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _is_read_only(fd: int) -> bool:
    return bool(os.fstatvfs(fd).f_flag & os.ST_RDONLY)


def _lock_root(fd: int, mode: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            fcntl.flock(fd, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise BusyError("the store is being created, moved or rebuilt by another process") from None
            time.sleep(0.01)
        else:
            return


def _fault_hook(point: str, when: str) -> None:
    (faults.before if when == "before" else faults.after)(point)


@contextmanager
def journal_errors(handle: Handle | None) -> Iterator[None]:
    """Translate layerjournal's errors into ours, by the same fault; poison *handle* where it says so."""
    try:
        yield
    except layerjournal.AlreadyOpenError as error:
        raise AlreadyOpenError(str(error)) from error
    except layerjournal.ForkedError as error:
        raise ForkedError(str(error)) from error
    except layerjournal.PidNamespaceError as error:
        raise PidNamespaceError(str(error)) from error
    except layerjournal.BusyError as error:
        raise BusyError(str(error)) from error
    except layerjournal.NoSpaceError as error:
        raise NoSpaceError(str(error)) from error
    except layerjournal.ReadOnlyError as error:
        raise ReadOnlyError(str(error)) from error
    except (layerjournal.OutcomeUnknownError, layerjournal.PoisonedError) as error:
        if handle is not None:
            handle.set_poison(str(error))
        raise OutcomeUnknownError(str(error)) from error
    except (layerjournal.DamagedError, layerjournal.MissingError) as error:
        raise JournalDamagedError(str(error)) from error
    except layerjournal.JournalError as error:
        raise IoError(str(error)) from error


__all__ = ["FORMAT", "Handle", "HostError", "LayerstoreError", "create", "journal_errors", "new_txid"]
