"""Who is inside a transaction, so that the map is only moved, and the environment only closed, when nobody is.

``set_mapsize`` unmaps the file: LMDB wants no transaction of the process to be live then, and the binding does not
see to it (it silently invalidates what is live). A thread that is inside may go further in while somebody waits to
be alone: it must be able to finish, and nobody can be alone before it has.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from layerjournal.errors import BusyError, UsageError


class Gate:
    """Counts who is inside; lets one be alone. Held only for counting, never across a transaction."""

    def __init__(self, patience: float = 60.0) -> None:
        self._condition = threading.Condition()
        self._inside, self._closed = 0, False
        self._own = threading.local()
        self.patience = patience   # seconds

    @property
    def depth(self) -> int:
        """How many transactions this thread is inside of."""
        return int(getattr(self._own, "depth", 0))

    @property
    def occupied(self) -> bool:
        """Whether anybody is inside. Takes no lock, so that it can be asked in a forked child."""
        return self._inside > 0

    @contextmanager
    def inside(self) -> Iterator[None]:
        """While this lasts, nobody is alone."""
        with self._condition:
            if self.depth == 0:
                self._condition.wait_for(lambda: not self._closed)
            self._inside += 1
            self._own.depth = self.depth + 1
        try:
            yield
        finally:
            with self._condition:
                self._inside -= 1
                self._own.depth -= 1
                self._condition.notify_all()

    @contextmanager
    def alone(self, why: str) -> Iterator[None]:
        """While this lasts, no other thread is inside. UsageError if this one is; BusyError if others stay."""
        if self.depth > 0:
            raise UsageError(
                f"{why}, but this thread is inside a transaction", hint="leave the read or update first",
            )
        deadline = time.monotonic() + self.patience
        with self._condition:
            if not self._condition.wait_for(lambda: not self._closed, timeout=self.patience):
                raise BusyError(f"{why}, but another thread is at it")
            self._closed = True
            try:
                if not self._condition.wait_for(lambda: self._inside == 0, timeout=deadline - time.monotonic()):
                    raise BusyError(
                        f"{why}, but {self._inside} transactions of this process stay open", hint="keep reads short",
                    )
            except BaseException:
                self._reopen()
                raise
        try:
            yield
        finally:
            with self._condition:
                self._reopen()

    def _reopen(self) -> None:
        self._closed = False
        self._condition.notify_all()
