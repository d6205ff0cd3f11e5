"""Threads that live as long as a ``with`` does, and bounded channels between them. Knows nothing of layers.

Everything is made of SimpleQueues, whose every operation is one step of C: an interrupt inside a ``queue.Queue`` can
leave its lock held, and then whoever closes it hangs; one inside ``Thread.join`` or ``is_alive`` can make a running
thread count as ended (Python before 3.13); one inside ``Thread.start`` leaves nobody who knows whether there is one.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, NoReturn, Protocol, TypeVar

from layerstore.errors import BusyError, IoError

__all__ = ["Channel", "Worker", "running"]

T = TypeVar("T")
R = TypeVar("R", bound="Running")

_TICK_SECONDS = 0.001
_LOOK_SECONDS = 0.5                      # who waits for another thread looks so often whether it is alive


class Channel(Generic[T]):
    """A bounded queue between threads. Who waits also looks whether the thread at the other end is alive."""

    def __init__(self, depth: int) -> None:
        self._items: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        self._room: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(depth):
            self._room.put(None)

    def put(self, item: T, alive: Callable[[], bool]) -> bool:
        """False if nobody takes it any more."""
        while True:
            try:
                self._room.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                if not alive():
                    return False
            else:
                self._items.put(item)
                return True

    def get(self, alive: Callable[[], bool]) -> T | None:
        """None at the end."""
        while True:
            try:
                item = self._items.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                if not alive() and self._items.empty():
                    return None
            else:
                self._room.put(None)
                return item

    def end(self) -> None:
        """Nothing more comes, for one of those who take. Waits for nobody, and may be said again."""
        self._items.put(None)

    def make_room(self) -> None:
        """Let who waits for room go on, to see that it shall stop."""
        self._room.put(None)


class Worker:
    """A thread that does one thing, and says whether it did it to its end. Start and close it by ``running``."""

    def __init__(self, name: str) -> None:
        self._error: BaseException | None = None
        self._whole = False
        self._maker = threading.current_thread()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._begun = False
        self._may_begin: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def start(self) -> None:
        """Raises BusyError if the system gives no thread. Interrupted within, there is none, or one that does nothing."""
        try:
            self._thread.start()
        except RuntimeError as error:   # what Python makes of clone(2)'s EAGAIN
            hint = "raise the limit on threads (ulimit -u), or use fewer workers"
            raise BusyError(f"no thread to unpack with: {error}", hint=hint) from error
        self._begun = True               # from here on it is waited for
        self._may_begin.put(True)

    def is_alive(self) -> bool:
        """Whether it was started and has not ended."""
        return self._begun and self._thread in threading.enumerate()

    def close(self) -> None:
        """End the thread and wait for it. May be called again."""
        self._may_begin.put(False)
        self._stop()
        self._wait()

    def _stop(self) -> None:
        """Tell the thread, which may have ended, to end. For the one that closes it; may be called again."""
        raise NotImplementedError

    def _wait(self) -> None:
        """Wait until the thread has said its last word."""
        while self.is_alive():
            if self._thread.is_alive():
                self._thread.join(_LOOK_SECONDS)
            else:                        # it counts as ended, and is not
                time.sleep(_TICK_SECONDS)

    def _run(self) -> None:
        try:
            if self._may_begin.get():
                self._do()
        except BaseException as error:  # noqa: BLE001 - e.g. MemoryError: handed to whoever waits for the work
            self._error = error

    def _do(self) -> None:
        try:
            self._work()
        finally:
            self._ended()

    def _work(self) -> None:
        """Do it; set ``_whole`` at its end."""
        raise NotImplementedError

    def _ended(self) -> None:
        """Told in the thread, when there is nothing more to come."""

    def _is_wanted(self) -> bool:
        """Whether the thread that made this one lives, for one that waits for work.

        The main one lives on when it counts as ended: it waits for others, or runs what was left for the exit.
        """
        return self._maker is threading.main_thread() or self._maker in threading.enumerate()

    def _check(self) -> None:
        """Raise what stopped the work before its end."""
        if self._error is not None or not self._whole:
            self._complain()

    def _complain(self) -> NoReturn:
        """Raise what ended the thread, which should not have ended yet."""
        if self._error is not None:
            raise self._take_error()
        raise IoError(f"the thread {self._thread.name!r} ended by itself")

    def _take_error(self) -> BaseException:
        """Once: an error that is kept here would keep alive, by its traceback, all that waited for the work."""
        error, self._error = self._error, None
        assert error is not None
        return error


class Running(Protocol):
    """What lives for a while."""

    def start(self) -> None:
        """Begin."""

    def close(self) -> None:
        """End, and wait for the end. May be called again, and though nothing began."""


@contextmanager
def running(worker: R) -> Iterator[R]:
    """The worker's threads live as long as this lasts, and no longer, whatever comes between."""
    try:
        try:
            worker.start()
            yield worker
        finally:
            worker.close()
    finally:
        worker.close()
