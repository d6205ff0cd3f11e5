"""Who is inside a transaction, so that the map is only moved, and the environment only closed, when nobody is.

``set_mapsize`` unmaps the file: LMDB wants no transaction of the process to be live then, and the binding does not
see to it (it silently invalidates what is live). A thread that is inside may go further in while somebody waits to
be alone: it must be able to finish, and nobody can be alone before it has.

There is no lock and no counter that an interrupt (KeyboardInterrupt, MemoryError) could leave wrong. Whoever is in has
a *ticket*, which nothing but its own frame keeps alive: a ticket that is not given back is given back by being
forgotten. Each step is one operation of a dict, which no other thread sees half-done; who comes in says so first and
looks for somebody alone then, and who wants to be alone the other way round, so that one of the two sees the other.
Waiting is polling: it is rare, and short.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count

from layerjournal.errors import BusyError, UsageError

_POLL_SECONDS = 0.002


class _Ticket:
    """One presence of one thread, as long as it lives."""

    __slots__ = ("__weakref__", "number", "thread")

    def __init__(self, number: int) -> None:
        self.number, self.thread = number, threading.get_ident()


class _Tickets:
    """Tickets that are out, in the order in which they were handed in; held weakly."""

    def __init__(self) -> None:
        self._out: dict[int, weakref.ref[_Ticket]] = {}
        self._numbers = count(1)

    def draw(self) -> _Ticket:
        """A ticket that nobody sees before it is ``shown``."""
        return _Ticket(next(self._numbers))

    def show(self, ticket: _Ticket) -> None:
        self._out[ticket.number] = weakref.ref(ticket, partial(self._out.pop, ticket.number))

    def give_back(self, ticket: _Ticket) -> None:
        """No error if it is back already."""
        self._out.pop(ticket.number, None)

    def first(self) -> _Ticket | None:
        return next(iter(self.out()), None)

    def out(self) -> list[_Ticket]:
        return [ticket for each in list(self._out.values()) if (ticket := each()) is not None]


class Gate:
    """Knows who is inside; lets one be alone."""

    def __init__(self, patience: float = 60.0) -> None:
        self._inside, self._alone = _Tickets(), _Tickets()
        self.patience = patience   # seconds

    @property
    def depth(self) -> int:
        """How many transactions this thread is inside of."""
        me = threading.get_ident()
        return sum(ticket.thread == me for ticket in self._inside.out())

    @property
    def occupied(self) -> bool:
        """Whether anybody is inside. Takes no lock, so that it can be asked in a forked child."""
        return self._inside.first() is not None

    @contextmanager
    def inside(self) -> Iterator[None]:
        """While this lasts, nobody is alone."""
        deeper, ticket = self.depth > 0, self._inside.draw()
        try:
            try:
                self._inside.show(ticket)
                while not deeper and self._alone.first() is not None:
                    self._inside.give_back(ticket)
                    time.sleep(_POLL_SECONDS)
                    self._inside.show(ticket)
                yield
            finally:
                self._inside.give_back(ticket)
        finally:   # once more: an interrupt may have come between
            self._inside.give_back(ticket)

    @contextmanager
    def alone(self, why: str) -> Iterator[None]:
        """While this lasts, no other thread is inside. UsageError if this one is; BusyError if others stay."""
        if self.depth > 0:
            raise UsageError(
                f"{why}, but this thread is inside a transaction", hint="leave the read or update first",
            )
        deadline, ticket = time.monotonic() + self.patience, self._alone.draw()
        try:
            try:
                self._alone.show(ticket)
                while self._alone.first() is not ticket:
                    self._wait(deadline, f"{why}, but another thread is at it", "try again")
                while (staying := len(self._inside.out())) > 0:
                    self._wait(
                        deadline, f"{why}, but {staying} transactions of this process stay open", "keep reads short",
                    )
                yield
            finally:
                self._alone.give_back(ticket)
        finally:
            self._alone.give_back(ticket)

    @staticmethod
    def _wait(deadline: float, why: str, hint: str) -> None:
        if time.monotonic() > deadline:
            raise BusyError(why, hint=hint)
        time.sleep(_POLL_SECONDS)
