"""Breadth first through every state of a scope, to the end. Exact: the visited set holds the states themselves.

A loss of power ends every process, so what it leaves depends on the world and the budget only: it is worked out once
for each of those. Every world in which all processes are dead is also handed to ``alone``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from crash.model import oracle, trace
from crash.model.alone import Alone
from crash.model.rules import PRODUCT, Rules
from crash.model.scopes import Scope
from crash.model.space import AT_P0, AT_P1, AT_W, BITS_B, BITS_P, COSTS, MASK_B, MASK_P, Space
from crash.model.world import Violation


@dataclass
class Result:
    """What an exploration came to. ``violation`` is None when it closed without one."""

    scope: str
    states: int = 0
    transitions: int = 0
    depth: int = 0
    worlds: int = 0
    processes: int = 0
    settled: int = 0
    seconds: float = 0.0
    closed: bool = False
    violation: str | None = None
    trace: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": round(self.seconds, 1)}


class Explorer:
    """One exploration. *keep*: how each state was come to, for the trace of a violation."""

    def __init__(self, scope: Scope, rules: Rules = PRODUCT, *, keep: bool = True, alone: bool = True) -> None:
        self.space = Space(scope, rules)
        self.alone = Alone(self.space) if alone else None
        self.sound: set[int] = set()
        self.parents: dict[int, int] | None = {} if keep else None

    def run(self, seconds: float | None = None, tell: Callable[[Result], None] = lambda _r: None) -> Result:
        """To the end, to a violation, or for so many *seconds*; *tell* hears of each depth."""
        result, begun = Result(self.space.scope.name), time.perf_counter()
        try:
            for _depth in self._search(result):
                result.seconds = time.perf_counter() - begun
                tell(result)
                if seconds is not None and result.seconds > seconds:
                    break
            else:
                result.closed = True
        except _FoundError as found:
            result.violation = found.violation.what
            if self.parents is not None and not self._shorter(result, result.depth + len(found.violation.tail)):
                result.trace, result.violation = trace.render(self.space, self.parents, found.state, found.violation)
        result.seconds = time.perf_counter() - begun
        result.worlds, result.processes = len(self.space.worlds), len(self.space.procs)
        result.settled = len(self.alone.outcomes) if self.alone else 0
        return result

    def _shorter(self, result: Result, depth: int) -> bool:
        """What was found by looking far ahead (``alone``) may be found on a shorter way by going step by step."""
        if self.alone is None:
            return False
        slow = Explorer(self.space.scope, self.space.rules, alone=False)
        found = Result(result.scope)
        try:
            for _depth in slow._search(found):
                if found.depth >= depth:
                    return False
        except _FoundError as shorter:
            assert slow.parents is not None
            result.trace, result.violation = trace.render(slow.space, slow.parents, shorter.state, shorter.violation)
            return True
        return False

    def _search(self, result: Result) -> Iterator[None]:
        """Visit everything, one depth after the other."""
        space = self.space
        frontier = [space.start()]
        visited = set(frontier)
        powered: set[int] = set()
        spend, crash = space.budgets.spend, space.budgets.spend[COSTS.index("crash")]
        memo, locks, parents = space.memo, space.locks, self.parents
        transitions = 0
        result.states = 1
        while frontier:
            found: list[int] = []
            for state in frontier:
                b, p1, p0, w = state & MASK_B, state >> AT_P1 & MASK_P, state >> AT_P0 & MASK_P, state >> AT_W
                try:
                    self._look(w, p0, p1)
                    moved = False
                    before = len(found)
                    for mine, other in ((p0, p1), (p1, p0)):
                        theirs = locks[other]
                        moves = memo.get((w << BITS_P | mine) << 5 | theirs)
                        if moves is None:
                            moves = space.steps(w, mine, theirs)
                        for after, p, cost, change in moves:
                            nb = spend[cost][b]
                            if nb < 0:
                                continue
                            moved = True
                            o = space.follow(change, other) if change else other
                            transitions += 1
                            new = after << AT_W | ((p << AT_P0 | o << AT_P1) if p <= o else (o << AT_P0 | p << AT_P1)) | nb
                            if new not in visited:
                                visited.add(new)
                                found.append(new)
                        if p0 == p1:
                            break
                    if not moved and not (space.quiet[p0] and space.quiet[p1]):
                        raise Violation("deadlock: each waits for a lock that the other will never give up")
                    nb = crash[b]
                    if nb >= 0:
                        for dead in sorted({p0, p1} - {0}):
                            left = p0 + p1 - dead
                            new = w << AT_W | left << AT_P1 | nb
                            transitions += 1
                            if new not in visited:
                                visited.add(new)
                                found.append(new)
                        if (p0 or p1) and w << BITS_B | b not in powered:
                            powered.add(w << BITS_B | b)
                            for after in space.losses(w):
                                new = after << AT_W | nb
                                transitions += 1
                                if new not in visited:
                                    visited.add(new)
                                    found.append(new)
                    if parents is not None:
                        for new in found[before:]:
                            parents[new] = state
                except Violation as violation:
                    raise _FoundError(violation, state) from None
                finally:
                    result.states, result.transitions = len(visited), transitions
            frontier = found
            result.depth += bool(found)
            yield

    def _look(self, w: int, p0: int, p1: int) -> None:
        if (self.space.usable[p0] or self.space.usable[p1]) and w not in self.sound:
            oracle.usable(self.space.scope, self.space.worlds[w])
            self.sound.add(w)
        if p0 == p1 == 0 and self.alone is not None:
            self.alone.settle(w)


class _FoundError(Exception):
    def __init__(self, violation: Violation, state: int) -> None:
        super().__init__(violation.what)
        self.violation, self.state = violation, state
