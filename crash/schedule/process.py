"""A process of a schedule, seen from inside: it runs the real code, and stops before every step until it is told to go.

A *step* begins at a fault point, at the beginning of a journal transaction, and at every read that a decision may
rest on (the catalog, a tree's identity, a directory's names). Between two steps nothing of another process happens.

Nothing waits for real: a blocking lock is polled, a poll's sleep is a stop, and the clock that deadlines are taken
from goes by what was slept. Random ids come from the process's place in the schedule. So a schedule is its choices.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable
from itertools import count
from typing import Any, NoReturn

from layerjournal import Journal
from layerstore.system import faults, flock, fs

PRIVATE = {"unpack.entry"}   # writes into a tree that nobody else knows: there is nothing to interleave


class Scheduled:
    """This process's end of the line to the controller."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._inside = False     # within a journal transaction: nobody else is to be let in
        self._slept = 0.0
        self._wanted: tuple[int, int] | None = None   # the descriptor and mode of a lock that was not to be had

    def stop(self, kind: str, what: str) -> None:
        """Say where we are, and wait to be let go on."""
        self._line.send(f"{kind} {what}".encode())
        if self._line.recv(1) != b"g":
            os._exit(9)

    def step(self, what: str) -> None:
        if not self._inside:
            self._wanted = None
            self.stop("step", what)

    def install(self, number: int) -> None:
        """From here on, in this process alone, every step is a stop."""
        faults.install(self._at_fault_point)
        numbers = count()

        def token_hex(nbytes: int | None = None) -> str:
            return hashlib.shake_256(f"{number}.{next(numbers)}".encode()).hexdigest(nbytes or 32)

        _replace(secrets, "token_hex", token_hex)
        _replace(os, "urandom", lambda size: bytes.fromhex(token_hex(size)))   # a transaction's ID is made of it
        _replace(time, "sleep", self._sleep)
        _replace(time, "monotonic", lambda: self._slept)
        _replace(fcntl, "flock", self._flock(fcntl.flock))
        _replace(Journal, "update", self._update(Journal.update))
        _replace(Journal, "read", self._before("read catalog", Journal.read))
        _replace(flock, "locked_dir", self._before("lock directory", flock.locked_dir))   # other locks are fault points
        for function in ("txid_at", "names_in", "exists", "read_txid"):
            _replace(fs, function, self._before(f"look {function}", getattr(fs, function)))

    def end(self, result: str) -> NoReturn:
        self._line.send(f"end {result}".encode())
        sys.stderr.flush()
        os._exit(0)

    def _at_fault_point(self, name: str, when: str) -> None:
        if when == "before" and name not in PRIVATE:
            # within a transaction: a place to die at, but not one to be interrupted at
            self.stop("held" if self._inside else "step", name)

    def _before(self, what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.step(what)
            return function(*args, **options)

        return call

    def _update(self, update: Callable[..., Any]) -> Callable[..., Any]:
        def call(journal: Journal, label: str, fn: Callable[..., Any]) -> Any:
            self.step(f"begin {label}")
            self._inside = True
            try:
                return update(journal, label, fn)
            finally:
                self._inside = False

        return call

    def _flock(self, flock: Callable[[int, int], None]) -> Callable[[int, int], None]:
        def call(fd: int, operation: int) -> None:
            while True:
                try:
                    flock(fd, operation | (0 if operation & fcntl.LOCK_UN else fcntl.LOCK_NB))
                except BlockingIOError:
                    self._wanted = (fd, operation & ~fcntl.LOCK_NB)
                    if operation & fcntl.LOCK_NB:
                        raise
                    self._sleep(0.01)
                else:
                    return

        return call

    def _sleep(self, seconds: float) -> None:
        self._slept += seconds
        wanted, self._wanted = self._wanted, None
        if wanted is None or not _is_open(wanted[0]):
            wanted = (-1, 0)   # it sleeps for another reason than the lock it was refused last
        self.stop("wait", f"{wanted[0]} {wanted[1]}")


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _replace(where: Any, name: str, new: Any) -> None:
    setattr(where, name, new)
