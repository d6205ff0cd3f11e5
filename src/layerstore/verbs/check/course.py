"""How far a look at a layer has come: batches handed out as it goes along, how much of it is done, where a budget ends it.

Places are numbers: a layer's big data by its keys, then what its manifest has, in its order. A look ends only between
batches, so that what each check with a budget does is a batch at least; what it has not done begins where all before is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from layerstore.trees.compare import Hashed, Problem
from layerstore.verbs.check.hashing import Batch, Hashing

__all__ = ["Course"]

_PATHS = 512                             # so many are as good as a batch
_NOTE_EVERY = 32                         # batches: so much is lost when a check is killed


class Course:
    """Of one look, beginning at the place *start*. *take* gets what is found; it must not know of the course.

    What refers to its own owner is closed only when Python collects cycles, and batches keep directories open.
    """

    def __init__(self, hashing: Hashing, start: int, take: Callable[[Iterable[Problem]], None]) -> None:
        self.start, self._hashing, self._take = start, hashing, take
        self.ended_at: int | None = None   # the look is over, and what is from here on was not looked at
        self._batches: deque[Batch] = deque()
        self._paths = self._unnoted = 0
        self._full = False               # a batch was handed out since it was last asked whether to go on

    def later(self, make: Callable[[int], Batch]) -> Callable[[Hashed, int], None]:
        """What puts files at their places into batches, which it *make*s, and hands out what is full."""
        def later(entry: Hashed, place: int) -> None:
            if not self._batches or self._batches[-1].given:
                self._batches.append(make(place))
            if self._batches[-1].add(entry):
                self._full = True
                self._hashing.hand_out(self._batches[-1])

        return later

    def go_on(self, place: int) -> bool:
        """Before each place: whether the look goes on there. Else it is over."""
        if self._paths < _PATHS and not self._full:
            self._paths += 1
            return True
        self._boundary()
        if self._hashing.budget.is_over():
            self._end(place)
            return False
        self._paths, self._unnoted = 1, self._unnoted + 1
        return True

    def to_note(self, place: int) -> int | None:
        """The place before which all is done, when the look goes on at *place*; None: it is not worth noting yet."""
        if self._unnoted < _NOTE_EVERY or self.ended_at is not None:
            return None
        self._unnoted = 0
        return self._batches[0].first if self._batches else place

    def _boundary(self) -> None:
        if self._batches:
            self.hand_out()
        else:
            self._hashing.budget.progress = True   # paths that have no content were looked at
        self._full = False
        while self._batches and not self._batches[0].done.empty() and self._batches[0].error is None:
            self._take_first()           # an error is not the walk's: ``wait`` raises it

    def hand_out(self) -> None:
        """What is gathered, full or not."""
        if self._batches and not self._batches[-1].given:
            self._hashing.hand_out(self._batches[-1])

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to be waited for."""
        return all(not batch.given or not batch.done.empty() for batch in self._batches)

    def wait(self) -> None:
        """For all that was handed out. A walk that broke off may have left what is not."""
        while self._batches:
            if self._batches[0].given:
                self._take_first()
            else:
                self._batches.popleft()

    def _take_first(self) -> None:
        batch = self._batches.popleft()
        problems = self._hashing.problems(batch)
        if batch.left:
            self._end(batch.first)
        else:
            self._take(problems)

    def _end(self, place: int) -> None:
        self.ended_at = place if self.ended_at is None else min(self.ended_at, place)
