"""Recovery at a writable open: the steps of ``layerstore.recovery.recover``. It plans, carries out, and plans again.

The plan's order is the product's (``planner._ORDER``); what is done for one tree is in ``resting``.
"""

from __future__ import annotations

from crash.model.process import IDLE, Frame, Move, Proc, Todo, Turn, back
from crash.model.resting import PLACE_NAME, decide, resolve
from crash.model.rules import Rules
from crash.model.world import STAGING, TRASH, Violation, World, remove
from layerstore.lifecycle.states import OPEN, State
from layerstore.recovery import planner
from layerstore.recovery.planner import Do

RANK = {do: n for n, do in enumerate(planner._ORDER)}
_AT_REST = frozenset({State.COMMITTED, State.QUARANTINED, State.GONE})


def opening(x: Turn) -> list[Move]:
    w = x.w
    return [("open: read the log's head", w, Proc("recover", pos=len(w.log)), "")]


def plan(w: World, head: int, held: int, rules: Rules) -> Todo:
    """``gather``, ``probe`` and ``plan``: what is in flight, what is to be redone, what no row knows."""
    todo = []
    for t, tree in enumerate(w.trees):
        above = t in w.log
        if above and w.log.index(t) >= head:
            continue   # began after this recovery: a live owner's
        if tree.row is State.ABSENT:
            if tree.at in (STAGING, TRASH) and not (held >> t & 1 and not rules.sweep_the_living):
                todo.append((RANK[Do.REMOVE_STRAY], t))
        elif tree.row in OPEN or (tree.row in _AT_REST and above):
            do = decide(w, t, held, rules)
            if (rules.trust_committed and tree.row is State.COMMITTED) or (rules.skip_held_redo and do is Do.WAIT):
                do = Do.LEAVE
            if do not in (Do.LEAVE, Do.DEFER):
                late = rules.trash_last and do is Do.TO_TRASH
                todo.append((RANK[do] + (len(RANK) if late else 0), t))
        elif tree.row in _AT_REST and tree.at in (STAGING, TRASH):
            raise Violation(f"T{t} is {tree.row.value} and at rest, but lies in {PLACE_NAME[tree.at]}/")
    return tuple(sorted(todo))


def recovering(x: Turn) -> list[Move]:
    rules, w, p, theirs = x.rules, x.w, x.p, x.theirs
    if not p.todo:
        todo = plan(w, p.pos, theirs, rules)
        if not todo:
            return [("recovery: nothing left to do; the handle is usable", w, IDLE, "")]
        names = ", ".join(f"T{t} {_do_of(rank).value}" for rank, t in todo)
        return [(f"recovery: plan {names}", w, p._replace(todo=todo), "")]
    moves = []
    for rank, t in p.todo:
        if rank != p.todo[0][0]:
            break   # among equals the product goes by txid, which is random: every order is explored
        rest = tuple(each for each in p.todo if each != (rank, t))
        if rank == RANK[Do.REMOVE_STRAY]:
            moves += _stray(x._replace(p=p._replace(todo=rest)), t)
        else:
            called = Proc("resolve", t, 0, p.pos, back=(*p.back, Frame("recover", todo=rest)))
            moves += resolve(x._replace(p=called), "recovery")
    return moves


def _do_of(rank: int) -> Do:
    return planner._ORDER[rank % len(RANK)]


def _stray(x: Turn, t: int) -> list[Move]:
    """``remove_stray``: its lock, without waiting; a look at the row; then the tree."""
    rules, w, p, theirs = x.rules, x.w, x.p, x.theirs
    tree = w.trees[t]
    busy = theirs >> t & 1 and not rules.sweep_the_living
    if busy or tree.row is not State.ABSENT or tree.at not in (STAGING, TRASH):
        return [(f"recovery: T{t} is held, or no stray any more", w, p, "")]
    frame = Frame("recover", todo=p.todo)
    return [(f"recovery: lock the stray T{t}", w,
             Proc("stray.unlink", t, 1 << t, p.pos, back=(*p.back, frame)), "")]


def stray_unlink(x: Turn) -> list[Move]:
    w, p = x.w, x.p
    return [(f"recovery: unlink the stray T{p.t}", remove(w, p.t), back(p), "")]


STEPS = {"closed": opening, "recover": recovering, "stray.unlink": stray_unlink}
