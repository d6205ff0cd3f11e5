"""No more than so much a second, for work that can wait: bytes that a check reads, files that gc removes. Nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

__all__ = ["Rate"]

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
