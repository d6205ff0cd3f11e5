"""One recovery alone, from a world in which every process is dead, and crashed anywhere, as often as one likes.

However it is crashed, it must come to an end, leave everything at rest, find nothing to do the second time, and end
as it would have ended uncrashed. What is found for a world is kept, so the crashes cost nothing but their worlds.
"""

from __future__ import annotations

from itertools import pairwise

from crash.model import oracle
from crash.model.space import Space
from crash.model.world import Change, Tail, Violation, canonical, losses

Path = tuple[tuple[int, int], ...]       # of one process: (world, process) after (world, process)
Outcome = tuple[tuple[str, str], ...]


class Alone:
    """What recoveries alone have come to, by the world that they began with."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.outcomes: dict[int, Outcome] = {}

    def settle(self, w: int) -> Outcome:
        """One recovery alone from *w*, and from wherever a crash in it leaves the world: where do they all end?"""
        known = self.outcomes.get(w)
        if known is not None:
            return known
        ends: set[Outcome] = set()
        crashes: dict[int, tuple[Path, bool]] = {}
        self._alone(w, 0, (), ends, crashes, set())
        if len(ends) != 1:
            raise Violation(f"one recovery can end in {len(ends)} ways: {sorted(ends)}")
        known = self.outcomes[w] = ends.pop()
        for crashed, (path, power) in crashes.items():
            try:
                if self.settle(crashed) != known:
                    raise Violation(f"a crash in recovery changes its end: {self.settle(crashed)}, else {known}")
            except Violation as violation:
                raise Violation(violation.what, (*self._tail(path, crashed, power), *violation.tail)) from None
        return known

    def _alone(
        self, w: int, p: int, path: Path, ends: set[Outcome], crashes: dict[int, tuple[Path, bool]],
        seen: set[tuple[int, int]],
    ) -> None:
        path = (*path, (w, p))
        if (w, p) in path[:-1]:
            raise Violation("recovery does not come to an end", self._tail(path))
        if (w, p) in seen:
            return
        seen.add((w, p))
        crashes.setdefault(w, (path, False))
        for lost in self.space.losses(w):
            crashes.setdefault(lost, (path, True))
        if self.space.usable[p]:
            try:
                oracle.usable(self.space.scope, self.space.worlds[w])
                oracle.at_rest(self.space.worlds[w])
                self._nothing_left(w)
            except Violation as violation:
                raise Violation(violation.what, (*self._tail(path), *violation.tail)) from None
            ends.add(oracle.outcome(self.space.worlds[w]))
            return
        try:
            steps = self.space.steps(w, p, 0)
        except Violation as violation:
            raise Violation(violation.what, (*self._tail(path), *violation.tail)) from None
        for after, proc, _, _ in steps:
            self._alone(after, proc, path, ends, crashes, seen)

    def _nothing_left(self, w: int) -> None:
        (_, same, opened, _, _), = self.space.labelled(w, 0, 0)
        for label, after, p, _, _ in self.space.labelled(same, opened, 0):
            if after != w or not self.space.usable[p]:
                raise Violation("a second recovery finds something to do", ((label, None),))

    def _tail(self, path: Path, crashed: int = -1, power: bool = False) -> Tail:
        """The steps of a recovery that was alone, and the crash that ended it."""
        tail: list[tuple[str, Change | None]] = []
        for (w, p), then in pairwise(path):
            label, change = next((x[0], x[4]) for x in self.space.labelled(w, p, 0) if x[1:3] == then)
            tail.append((label, self.space.changes[change - 1] if change else None))
        if power:
            every = (canonical(lost) for lost in losses(self.space.worlds[path[-1][0]]))
            tail.append(("the power fails", next(how for plain, how in every if self.space.world_ids[plain] == crashed)))
        elif crashed >= 0:
            tail.append(("it is killed", None))
        return tuple(tail)
