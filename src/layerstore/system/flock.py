"""Locks on a store's root, on trees and on directories: flock(2) on the directory itself. They alone prove life.

Outside a store, where a directory is others' to lock as well, on a file that is made for it. Nothing else is written
here. Which lock is held when, and by whom: docs/crash-model.md.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from layerstore.errors import BusyError
from layerstore.system import faults
from layerstore.system.descriptors import DIRECTORY, Descriptor

__all__ = ["TreeLock", "is_locked", "lock_file", "lock_root", "lock_tree", "locked_dir"]

_POLL_SECONDS = 0.01

_locks: weakref.WeakSet[Descriptor] = weakref.WeakSet()


class TreeLock(Descriptor):
    """A flock on a tree's own directory: it follows the tree through renames and dies with its holder.

    Kernel locks alone prove life: there are no time-outs, pids or epochs. The descriptor is the transaction's own
    and is opened before the tree's first write, so that a write-back error is reported to this transaction too.
    Whoever needs the lock keeps the object: forgetting it lets go.
    """

    def __init__(self, name: str, dir_fd: int) -> None:
        """Opens only. The object is there before the lock is, so that an interrupt cannot lose a held one."""
        self.thread = threading.get_ident()   # who took it
        self.txid: str | None = None          # of the tree, once it is known
        _locks.add(self)
        super().__init__(name, DIRECTORY, dir_fd=dir_fd)


class FileLock(Descriptor):
    """A flock on a file that is nothing else, and that nobody but its user may open."""

    def __init__(self, path: str) -> None:
        _locks.add(self)
        super().__init__(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def _after_fork_in_child() -> None:
    """Close the child's copies: a lock belongs to the open file description, and a copy would keep it alive."""
    for lock in list(_locks):
        lock.close()


os.register_at_fork(after_in_child=_after_fork_in_child)


def lock_root(fd: int, *, exclusive: bool, wait: float = 60.0) -> None:
    """Lock a store's root, open as *fd*, until that is closed. BusyError if it cannot be had within *wait* seconds."""
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise BusyError("the store is open in, or being created or rebuilt by, another process") from None
            time.sleep(0.01)
        else:
            return


def lock_tree(
    dir_fd: int, name: str, *, shared: bool = False, wait: float | None = None,
    point: str = "tree.lock",
) -> TreeLock | None:
    """Lock the tree at *name*; None if it is not there. *wait* seconds (None: for ever); then BusyError.

    After the lock was had the path is looked at again: it may name another tree by now, or none.
    """
    deadline = None if wait is None else time.monotonic() + wait
    while True:
        try:
            lock = TreeLock(name, dir_fd)
        except FileNotFoundError:
            return None
        try:
            with faults.point(point):
                locked = _flock(lock.fd, shared=shared, deadline=deadline)
            if not locked:
                raise BusyError(f"the tree {name!r} is locked by another process or thread")
            if _same(lock.fd, dir_fd, name):
                return lock
        except BaseException:
            lock.close()
            raise
        lock.close()


def lock_file(path: str, *, wait: float) -> FileLock:
    """Lock the file *path*, which is made if it is missing; TimeoutError after *wait* seconds. Its holder may unlink it."""
    deadline = time.monotonic() + wait
    while True:
        lock = FileLock(path)
        try:
            if not _flock(lock.fd, shared=False, deadline=deadline):
                raise TimeoutError(errno.ETIMEDOUT, f"locked by another process for {wait:g} seconds", path)
            if _same(lock.fd, None, path):
                return lock
        except BaseException:
            lock.close()
            raise
        lock.close()


def is_locked(dir_fd: int, name: str, *, by_readers: bool = False) -> bool:
    """Whether somebody holds the tree's lock exclusively (*by_readers*: in whatever mode).

    A hint: only a lock that is held proves anything. Asked with a shared lock, so that two who ask do not take each
    other for an owner.
    """
    try:
        lock = lock_tree(dir_fd, name, shared=not by_readers, wait=0.0, point="tree.probe")
    except BusyError:
        return True
    except NotADirectoryError:
        return False
    if lock is not None:
        lock.close()
    return False


def _flock(fd: int, *, shared: bool, deadline: float | None) -> bool:
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    pause = _POLL_SECONDS
    while True:
        try:
            fcntl.flock(fd, operation)
        except BlockingIOError:
            if deadline is not None and time.monotonic() >= deadline:
                return False
            time.sleep(pause)  # polled, so that signals, time-outs and threads all work alike
            pause = min(pause * 1.5, 0.2)
        else:
            return True


def _same(fd: int, dir_fd: int | None, name: str) -> bool:
    try:
        there = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


@contextmanager
def locked_dir(fd: int) -> Iterator[None]:
    """Hold an exclusive flock on a directory through a descriptor of its own, briefly."""
    with TreeLock(".", fd) as own:
        _flock(own, shared=False, deadline=None)
        yield
