"""One process of the model: where it is in what it does. And the turn that it takes.

What its steps are is not here but in ``verbs``, ``recovering`` and ``resting``.
"""

from __future__ import annotations

from typing import NamedTuple

from crash.model.rules import Rules
from crash.model.scopes import Scope
from crash.model.world import Change, World

Todo = tuple[tuple[int, int], ...]   # (rank, tree)


class Frame(NamedTuple):
    """Where a process goes on when it has brought a tree to rest; ``locks`` are those that it keeps then."""

    pc: str
    t: int = -1
    locks: int = 0
    todo: Todo = ()


class Proc(NamedTuple):
    """One process. ``todo`` are trees, each with its rank; ``pos`` a position in the log that it has read."""

    pc: str = "closed"
    t: int = -1
    locks: int = 0
    pos: int = -1
    todo: Todo = ()
    note: tuple[str, ...] = ()
    back: tuple[Frame, ...] = ()


CLOSED = Proc()
IDLE = Proc("idle")


class Turn(NamedTuple):
    """What a step may look at. ``theirs`` are the trees whose locks others hold, as bits."""

    scope: Scope
    rules: Rules
    w: World
    p: Proc
    theirs: int


Move = tuple[str, World, Proc, str]   # what was done, the world and the process after it, the budget that it is from


def back(p: Proc) -> Proc:
    """The tree is at rest: on with what led here, with no more locks than it had then."""
    frame = p.back[-1]
    return Proc(frame.pc, frame.t, frame.locks, p.pos, frame.todo, (), p.back[:-1])


def follow(p: Proc, change: Change) -> Proc:
    """The same process after trees and log positions have changed their places."""
    moved, positions = change

    def lock(mask: int) -> int:
        return sum(1 << new for old, new in enumerate(moved) if mask >> old & 1)

    def todo(items: Todo) -> Todo:
        return tuple(sorted((rank, moved[t]) for rank, t in items))

    return p._replace(
        t=moved[p.t] if p.t >= 0 else -1, locks=lock(p.locks),
        pos=positions[min(p.pos, len(positions) - 1)] if p.pos >= 0 else -1, todo=todo(p.todo),
        back=tuple(f._replace(t=moved[f.t] if f.t >= 0 else -1, locks=lock(f.locks), todo=todo(f.todo)) for f in p.back),
    )
