"""Some threads that do jobs handed to them, and who hands them out waits for one or another. Knows nothing of layers.

The library's own, and none of ``concurrent.futures``: there an interrupt of who waits can leave a lock held that the
threads need, and one that comes while a thread is started leaves that one running unknown (see ``threads``).
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from layerstore.errors import IoError
from layerstore.system.threads import Worker, running

__all__ = ["Job", "Pool", "pooled"]

_LOOK_SECONDS = 0.5                      # of an interrupt that comes just before one sleeps Python tells when one wakes


class Job:
    """What a thread does once; ``error`` is what it raised, if it did."""

    def __init__(self, do: Callable[[], None]) -> None:
        self._do = do
        self.error: BaseException | None = None

    def run(self) -> None:
        """For the thread."""
        try:
            self._do()
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits for the job
            self.error = error

    def check(self) -> None:
        """Raise what it raised. Once: an error that is kept keeps alive, by its traceback, all that waited for it."""
        if self.error is not None:
            error, self.error = self.error, None
            try:
                raise error
            finally:
                del error


class Pool:
    """Made by ``pooled``; for one thread."""

    def __init__(self, size: int, name: str) -> None:
        self._todo: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._all: list[Job] = []
        self._out: set[Job] = set()      # not known to be done
        self._threads = [_Thread(f"{name}_{n}", self._todo, self._done) for n in range(size)]

    def start(self) -> None:
        """All threads, before there is work. Raises BusyError if the system does not give so many."""
        for thread in self._threads:
            thread.start()

    def __bool__(self) -> bool:
        """Whether a job is not known to be done."""
        return bool(self._out)

    def submit(self, do: Callable[[], None]) -> Job:
        """Have it done; the job, which ``finished`` gives once it is."""
        job = Job(do)
        self._all.append(job)
        self._out.add(job)
        self._todo.put(job)
        return job

    def finished(self, *, wait: float) -> list[Job]:
        """The jobs that were done since the last call; if none, and there are some to do, wait *wait* seconds for one.

        Raises IoError, or what it was that ended it, if a thread ended by itself: nobody else has the job that it had.
        """
        found: list[Job] = []
        until = time.monotonic() + wait
        while self._out:
            left = 0.0 if found else until - time.monotonic()
            try:
                job = self._done.get(timeout=max(0.0, min(left, _LOOK_SECONDS)))
            except queue.Empty:
                self._check_threads()
                if left <= _LOOK_SECONDS:
                    break
            else:
                self._out.remove(job)
                found.append(job)
        return found

    def _check_threads(self) -> None:
        for thread in self._threads:
            thread.check()

    def close(self) -> None:
        """Leave jobs that no thread has begun, and wait for the others. May be called again."""
        for thread in self._threads:     # all, first: whoever takes an end may not be whom it was meant for
            thread.stop()
        for thread in self._threads:
            thread.close()
        for job in self._all:
            job.error = None             # nobody asks for it any more, and it would keep what it came through


class _Thread(Worker):
    """One of them."""

    def __init__(self, name: str, todo: queue.SimpleQueue[Job | None], done: queue.SimpleQueue[Job]) -> None:
        super().__init__(name)
        self._todo, self._done = todo, done
        self._stopped = False

    def _work(self) -> None:
        while (job := self._todo.get()) is not None and not self._stopped:
            job.run()
            self._done.put(job)

    def check(self) -> None:
        """Raise what ended the thread."""
        if not self.is_alive():
            if self._error is not None:
                raise self._take_error()
            raise IoError(f"the thread {self._thread.name!r} ended by itself")

    def stop(self) -> None:
        """End after the job that it is at; not waited for."""
        self._stopped = True
        self._todo.put(None)

    _stop = stop


@contextmanager
def pooled(size: int, name: str) -> Iterator[Pool]:
    """A pool of *size* threads that live as long as this lasts, and no longer, whatever comes between.

    Raises BusyError if the system does not give so many.
    """
    with running(Pool(size, name)) as pool:
        yield pool
