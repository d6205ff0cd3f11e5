"""The states of a scope: interned, packed into integers, and what follows from each, worked out once.

A state is (world, process, process, budget), each interned, packed into one integer below 2**60. What a process can do
depends on the world, on itself and on which locks others hold, so it is worked out once for each such triple and
looked up ever after. Two reductions, both exact: trees are interchangeable (``world.canonical``), and so are
processes (``explore`` puts the smaller first).
"""

from __future__ import annotations

from crash.model import oracle, verbs
from crash.model.process import CLOSED, Proc, Turn, follow
from crash.model.rules import PRODUCT, Rules
from crash.model.scopes import Scope
from crash.model.world import LAYERS, Change, Tree, Violation, World, canonical, losses
from layerstore.lifecycle.states import State

BITS_B, BITS_P = 6, 15               # of a budget, of a process; 24 are left for a world
AT_P1, AT_P0, AT_W = BITS_B, BITS_B + BITS_P, BITS_B + 2 * BITS_P
MASK_P, MASK_B = (1 << BITS_P) - 1, (1 << BITS_B) - 1
COSTS = ("", "delete", "checkpoint", "crash")


class Space:
    """What can be reached, as far as it was asked for."""

    def __init__(self, scope: Scope, rules: Rules = PRODUCT) -> None:
        self.scope, self.rules, self.budgets = scope, rules, Budgets(scope)
        self.worlds: list[World] = []
        self.world_ids: dict[World, int] = {}
        self.procs: list[Proc] = []
        self.proc_ids: dict[Proc, int] = {}
        self.usable: list[bool] = []      # of each process: it has recovered
        self.quiet: list[bool] = []       # it is between two verbs, or dead
        self.locks: list[int] = []
        self.changes: list[Change] = []
        self.change_ids: dict[Change, int] = {}
        self.followed: dict[int, int] = {}
        self.memo: dict[int, tuple[tuple[int, int, int, int], ...]] = {}
        self.lost: dict[int, tuple[int, ...]] = {}
        self.proc(CLOSED)

    def start(self) -> int:
        base = []
        if self.scope.base is not None:
            base = [Tree(State.COMMITTED, self.scope.base, at=LAYERS, may=1 << LAYERS, good=1, good_durable=1, side=1,
                         side_durable=1)]
        world, _ = canonical(World((*base, *[Tree()] * self.scope.trees)))
        return self.world(world) << AT_W | self.budgets.start

    def unpack(self, state: int) -> tuple[int, int, int, int]:
        """World, process, process, budget."""
        return state >> AT_W, state >> AT_P0 & MASK_P, state >> AT_P1 & MASK_P, state & MASK_B

    # -- interning -------------------------------------------------------------------------------------------------

    def world(self, w: World) -> int:
        number = self.world_ids.get(w)
        if number is None:
            number = self.world_ids[w] = len(self.worlds)
            self.worlds.append(w)
            oracle.always(self.scope, w)
        return number

    def proc(self, p: Proc) -> int:
        number = self.proc_ids.get(p)
        if number is None:
            number = self.proc_ids[p] = len(self.procs)
            if number > MASK_P:
                raise OverflowError("more processes than a packed state has room for")
            self.procs.append(p)
            recovered = (p.pc not in ("closed", "recover") and p.pos < 0) or p.pc.startswith("checkpoint")
            self.usable.append(recovered)
            self.quiet.append(p.pc in ("closed", "idle"))
            self.locks.append(p.locks)
        return number

    def change(self, change: Change | None) -> int:
        if change is None:
            return 0
        number = self.change_ids.get(change)
        if number is None:
            self.changes.append(change)
            number = self.change_ids[change] = len(self.changes)
        return number

    def follow(self, change: int, p: int) -> int:
        key = change << BITS_P | p
        after = self.followed.get(key)
        if after is None:
            after = self.followed[key] = self.proc(follow(self.procs[p], self.changes[change - 1]))
        return after

    # -- steps -----------------------------------------------------------------------------------------------------

    def labelled(self, w: int, p: int, theirs: int) -> list[tuple[str, int, int, int, int]]:
        """What a process can do: label, world, process, cost, and how to find others' trees again."""
        found = []
        turn = Turn(self.scope, self.rules, self.worlds[w], self.procs[p], theirs)
        for label, after, proc, cost in verbs.moves(turn):
            world, change = self.plain(label, after)
            there = self.proc(proc if change is None else follow(proc, change))
            found.append((label, world, there, COSTS.index(cost), self.change(change)))
        return found

    def plain(self, label: str, after: World) -> tuple[int, Change | None]:
        """The number of what *label* leads to."""
        plain, change = canonical(after)
        try:
            return self.world(plain), change
        except Violation as violation:
            raise Violation(violation.what, ((label, change),)) from None

    def steps(self, w: int, p: int, theirs: int) -> tuple[tuple[int, int, int, int], ...]:
        key = (w << BITS_P | p) << 5 | theirs
        found = self.memo.get(key)
        if found is None:
            found = self.memo[key] = tuple({each[1:]: None for each in self.labelled(w, p, theirs)})
        return found

    def losses(self, w: int) -> tuple[int, ...]:
        found = self.lost.get(w)
        if found is None:
            after = {self.plain("the power fails", lost)[0] for lost in losses(self.worlds[w])}
            found = self.lost[w] = tuple(sorted(after))
        return found


class Budgets:
    """What is left of deletes, checkpoints and crashes, as one small number; ``spend[cost][left]`` is −1 for none."""

    def __init__(self, scope: Scope) -> None:
        sizes = (scope.deletes + 1, scope.checkpoints + 1, scope.crashes + 1)
        every = [(d, c, k) for d in range(sizes[0]) for c in range(sizes[1]) for k in range(sizes[2])]
        number = {each: n for n, each in enumerate(every)}
        if len(every) > MASK_B + 1:
            raise OverflowError("more budgets than a packed state has room for")
        self.start = number[scope.deletes, scope.checkpoints, scope.crashes]
        self.spend = [
            list(range(len(every))),
            [number.get((d - 1, c, k), -1) for d, c, k in every],
            [number.get((d, c - 1, k), -1) for d, c, k in every],
            [number.get((d, c, k - 1), -1) for d, c, k in every],
        ]
