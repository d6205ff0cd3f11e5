"""Content of committed layers read and hashed ahead of who takes it, by a process beside.

Python's lock is one for all threads, and this takes it for most of its time. The process's program is ``reading``. Here:
which content it is asked for, and when. What it did not read, or did not find right, is read by who wants it, as if there
were no such process: errors, and what is noted for ``check``, come from one place.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from layerstore.dedup import reading
from layerstore.dedup.places import LayerPlace
from layerstore.partial import Place
from layerstore.system.beside import MESSAGE, Beside, can_start, started
from layerstore.system.threads import Channel, Worker

__all__ = ["Ahead", "is_worth_it"]

_FEWEST = 256                            # places that are worth a process: to start it takes as long as to read so many
_LARGEST = 1 << 18                       # bytes of a piece; larger ones are read by who wants them, which costs no more
_WINDOW = 1 << 20                        # bytes that are asked for at once; one such window is read, the other copied
_WINDOWS = 2
_DEPTH = 2                               # answers that wait to be taken
_MOST_PLACES = 256                       # of a request, and …
_MOST_NAMES = MESSAGE // 2               # … bytes of their paths: the other half is for the rest of the rows
_LOOK_SECONDS = 0.01


def is_worth_it(places: Sequence[Place]) -> bool:
    """Whether *places* are so many that a process to read them costs less than it spares, and it can run beside us."""
    return len(places) >= _FEWEST and len(os.sched_getaffinity(0)) > 1 and can_start(reading.__file__)


class _Request(NamedTuple):
    """Places from number ``first`` on; of those that were asked for, where they lie in memory, by their numbers."""

    first: int
    end: int
    parts: dict[int, tuple[int, int]]


class Ahead(Worker):
    """Content, in the order of *places*: see ``partial.Ahead``. A thread of its own asks the process, which lives as long.

    No thread that an interrupt may reach has it to end.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        super().__init__("layerstore-here")
        self._places = places
        self._answers: Channel[tuple[int, list[bytes | None]]] = Channel(_DEPTH)
        self._stopped = threading.Event()
        self._next = 0                   # the place that is taken next
        self._begins: int | None = None  # the first that was asked for
        self._at, self._answer = 0, list[bytes | None]()   # the answer that is being taken, and the place that it begins at

    def take(self) -> bytes | None:
        """See ``partial.Ahead``."""
        number, self._next = self._next, self._next + 1
        if self._begins is None or number < self._begins:
            return None
        while number >= self._at + len(self._answer):
            answer = self._answers.get(self.is_alive)
            if answer is None:           # it has ended, or the process is gone
                self._begins = None
                return None
            self._at, self._answer = answer
        return self._answer[number - self._at]

    # -- the thread ---------------------------------------------------------------------------------------

    def _work(self) -> None:
        with started(reading.__file__, memory=_WINDOWS * _WINDOW) as helper:
            while helper is not None and not helper.is_ready():
                if helper.is_gone() or self._stopped.wait(_LOOK_SECONDS):
                    return
            if helper is not None:
                self._begins = asked = self._next
                self._go_through(helper, asked)
        self._whole = True

    def _go_through(self, helper: Beside, asked: int) -> None:
        out: deque[_Request] = deque()
        window = 0
        while (self._can_ask(helper, asked) or out) and not self._stopped.is_set():
            while len(out) < _WINDOWS and self._can_ask(helper, asked):
                out.append(self._ask(helper, asked, window * _WINDOW))
                asked, window = out[-1].end, (window + 1) % _WINDOWS
            if not self._answers.put(_answered(helper, out.popleft()), lambda: not self._stopped.is_set()):
                return

    def _can_ask(self, helper: Beside, asked: int) -> bool:
        return asked < len(self._places) and not helper.is_gone()

    def _ask(self, helper: Beside, first: int, base: int) -> _Request:
        rows: list[reading.Row] = []
        trees: dict[int, int] = {}       # by their numbers here: their numbers in the request
        parts: dict[int, tuple[int, int]] = {}
        at, names, end = base, 0, first
        for place in self._places[first : first + _MOST_PLACES]:
            found = place.to_be_read(_LARGEST) if isinstance(place, LayerPlace) else None
            if found is not None:
                tree, (digest, path, offset, length) = found
                names += len(path)
                if at + length > base + _WINDOW or names > _MOST_NAMES or len(trees) == reading.MOST_TREES:
                    break
                parts[end - first] = (at, at + length)
                rows.append((trees.setdefault(tree, len(trees)), path, offset, length, digest))
                at += length
            end += 1
        if rows:
            try:
                helper.send((base, rows), trees)
            except OSError:              # all of it or nothing is sent: to this there is no answer
                parts.clear()
        return _Request(first, end, parts)

    def _ended(self) -> None:
        self._answers.end()

    def _stop(self) -> None:
        """The process ends, too; what is being read is read to its end."""
        self._stopped.set()
        self._answers.make_room()


def _answered(helper: Beside, request: _Request) -> tuple[int, list[bytes | None]]:
    """The answer to *request*, copied: the window is free then. Nothing, if the process is gone."""
    pieces: list[bytes | None] = [None] * (request.end - request.first)
    right = helper.answer() if request.parts else b""
    for is_right, (number, (start, end)) in zip(right, request.parts.items(), strict=False):
        if is_right:
            pieces[number] = helper.memory[start:end]
    return request.first, pieces
