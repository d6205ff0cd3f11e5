"""No more than so much a second, or at once, of work that can wait: bytes that a check reads, files that are removed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

__all__ = ["EnoughError", "Portion", "Rate"]

_CAUGHT_UP = 1.0   # seconds: what was slower than allowed for longer than that is not made good for by a burst


class Rate:
    """At most *most* a second, all threads together; None: as fast as it goes."""

    def __init__(
        self, most: float | None, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._most, self._clock, self._sleep = most, clock, sleep
        self._guard = threading.Lock()
        self._due = clock()

    def take(self, n: int = 1) -> None:
        """Wait until *n* more may have been done."""
        if self._most is None:
            return
        with self._guard:
            now = self._clock()
            self._due = max(self._due, now - _CAUGHT_UP) + n / self._most
            ahead = self._due - now
        if ahead > 0:
            self._sleep(ahead)


class EnoughError(Exception):
    """A portion is used up: the rest is for another time. No error of anybody's."""


class Portion:
    """*most* at once; what is begun is done, however much it is. For one thread."""

    def __init__(self, most: int) -> None:
        self._left = most

    def take(self, n: int = 1) -> None:
        """EnoughError if there is nothing left of it."""
        if self._left <= 0:
            raise EnoughError
        self._left -= n
