"""Hashing the files of layers: batch by batch, by as many threads as are wanted, no faster than is allowed.

What a file is to hold is ``compare``'s to say. The calling thread walks manifests and hands out batches; reading and
hashing let go of Python's lock, so that threads are worth it. A check of little starts none.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from layerstore.progress import CheckProgress
from layerstore.system.descriptors import Descriptor
from layerstore.system.rate import Rate
from layerstore.system.threads import Channel, Worker, running
from layerstore.trees.compare import Hashed, Problem, content_problem
from layerstore.trees.dirfds import DirFds
from layerstore.verbs.check.budget import Budget

__all__ = ["Batch", "Blob", "Hashing", "Pace"]

_FULL = 8 << 20                          # bytes of one batch, where …
_FILE_COST = 16 << 10                    # … a file counts as so many more
_THREADS_FROM = 16 << 20                 # bytes so counted: what is less is hashed before threads are started
_NICE = 19
_DIRECTORIES = 4                         # kept open for one batch


class Pace(Rate):
    """How fast may be read what is hashed, in bytes a second; and how much content was (``take`` counts nothing)."""

    bytes = 0

    def read(self, n: int) -> None:
        """*n* more bytes were read: wait if that was too fast."""
        with self._guard:
            self.bytes += n
        self.take(n)


class Blob(NamedTuple):
    """A file that is in no manifest, and what it is to hold."""

    path: bytes
    size: int
    sha256: bytes


class Batch:
    """Files in one directory of a layer that are hashed together. ``problems`` is good once ``done`` gives.

    *first* is the place of its first one; *read* is told of each *n* bytes; *told* makes of a problem what is said of it.
    """

    def __init__(
        self, directory: Descriptor, first: int, read: Callable[[int], None] | None,
        told: Callable[[Problem], Problem] = lambda problem: problem,
    ) -> None:
        self._directory, self._read, self._told = directory, read, told   # kept open as long as a batch needs it
        self.first = first
        self._entries: list[Hashed] = []
        self.problems: list[Problem] = []
        self.error: BaseException | None = None
        self.cost = 0
        self.given = False               # handed out: nothing more may be added
        self.left = False                # the budget was used up before it was begun
        self.done: queue.SimpleQueue[None] = queue.SimpleQueue()

    def add(self, entry: Hashed) -> bool:
        """One more; whether the batch is full."""
        self._entries.append(entry)
        self.cost += entry.size + _FILE_COST
        return self.cost >= _FULL

    def run(self, pace: Pace, budget: Budget) -> None:
        if budget.is_over():
            self.left = True
            self.done.put(None)
            return
        read = pace.read if self._read is None else _paced(pace, self._read)
        fds = DirFds(self._directory.fd, capacity=_DIRECTORIES)
        try:
            for entry in self._entries:
                problem = content_problem(fds, entry, read)
                if problem is not None:
                    self.problems.append(self._told(problem))
        except _CallersError as error:
            self.error = error.error.with_traceback(None)
        except BaseException as error:  # noqa: BLE001 - raised by who waits for the batch
            self.error = error.with_traceback(None)
        finally:
            fds.close()
            budget.progress = True
            self.done.put(None)


def _paced(pace: Pace, told: Callable[[int], None]) -> Callable[[int], None]:
    def read(n: int) -> None:
        try:
            told(n)
        except OSError as error:         # of who is told: it says nothing of the file
            raise _CallersError(error) from error
        pace.read(n)

    return read


class _CallersError(Exception):
    """What a caller's progress raised."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error)
        self.error = error


class _Hasher(Worker):
    def __init__(self, batches: Channel[Batch], pace: Pace, budget: Budget) -> None:
        super().__init__("layerstore-check")
        self._batches, self._pace, self._budget = batches, pace, budget
        self._stopped = False

    def _work(self) -> None:
        _yield_to_others()
        while (batch := self._batches.get(lambda: not self._stopped)) is not None:
            batch.run(self._pace, self._budget)
            if self._stopped:
                break
        self._batches.end()              # passed on: whoever takes the end may not be whom it was meant for

    def _stop(self) -> None:
        """After the batch it is at."""
        self._stopped = True
        self._batches.end()


def _yield_to_others() -> None:
    """A check can wait: whoever else wants the processor comes first. Linux has a niceness for each thread (sched(7))."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


class Hashing:
    """Batches being hashed. Make it by ``hashing``; for one thread."""

    def __init__(
        self, stack: ExitStack, workers: int, pace: Pace, budget: Budget, progress: CheckProgress | None,
    ) -> None:
        self._stack, self._workers, self.pace, self.budget, self.progress = stack, workers, pace, budget, progress
        self._batches: Channel[Batch] = Channel(2 * workers)
        self._threads: list[_Hasher] = []
        self._cost = 0

    def hand_out(self, batch: Batch) -> None:
        """Have it hashed; at once, if there are no threads (yet)."""
        batch.given = True
        self._cost += batch.cost
        if self._workers > 1 and not self._threads and self._cost >= _THREADS_FROM:
            for _ in range(self._workers):
                thread = _Hasher(self._batches, self.pace, self.budget)
                self._stack.enter_context(running(thread))
                self._threads.append(thread)
        if not self._threads or not self._batches.put(batch, self._alive):
            batch.run(self.pace, self.budget)

    def problems(self, batch: Batch) -> list[Problem]:
        """What is wrong with its files; waits for it."""
        while True:
            try:
                batch.done.get(timeout=0.5)
            except queue.Empty:
                if not self._alive():    # one that died may have had it
                    batch.run(self.pace, self.budget)
            else:
                break
        if batch.error is not None:
            raise _taken(batch)          # nobody keeps it: it would keep what it was raised through, and that the batch
        return batch.problems

    def _alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)


def _taken(batch: Batch) -> BaseException:
    assert batch.error is not None
    error, batch.error = batch.error, None
    try:
        return error
    finally:
        del error


@contextmanager
def hashing(
    workers: int | None, pace: Pace, budget: Budget, progress: CheckProgress | None = None,
) -> Iterator[Hashing]:
    """The threads (None: one a CPU, at most 8) live as long as this lasts, and no longer."""
    with ExitStack() as stack:
        yield Hashing(stack, workers or min(8, os.cpu_count() or 1), pace, budget, progress)
