"""The world: rows, the log above the mark, the disk now and what of it is durable. Immutable; effects make new ones.

Nothing here knows in which order anything is done (``verbs``, ``recovering``) or what must hold (``oracle``).

A tree's renames are a path of places, ``UNMADE → STAGING → LAYERS → TRASH → REMOVED`` (some may be left out).
``at`` is where every process sees it; ``may`` is the set of places, as bits, where a loss of power can leave it: the
durable one, the present one, and all between. Content and side file are right or not, seen and durable apart.
Every journal transaction is atomic and durable. The log is the trees whose latest record lies above the mark, in
the order of those records: for an open transaction its first, for a terminal state the record that reached it.
No decision reads any other record.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

from layerstore.lifecycle.states import HOLDS_MARK, Kind, State, Trigger, destination
from layerstore.recovery.planner import Place

UNMADE, STAGING, LAYERS, TRASH, REMOVED = range(5)
PLACES: tuple[frozenset[Place], ...] = (
    frozenset(), frozenset({Place.STAGING}), frozenset({Place.LAYERS}), frozenset({Place.TRASH}), frozenset(),
)
PROMISED = frozenset({State.CREATING, State.INCOMPLETE, State.COMMITTED, State.QUARANTINED})
_TO_THE_END = frozenset({Trigger.CLAIM, Trigger.COMMIT, Trigger.DELETE, Trigger.REMOVE})
_RESTING_LOG = frozenset({Trigger.PROMISE})


Change = tuple[tuple[int, ...], tuple[int, ...]]   # where each tree, and each position in the log, has gone
Tail = tuple[tuple[str, Change | None], ...]


class Violation(Exception):  # noqa: N818 - it is a finding, not an error
    """What must not be, was reached. ``tail``: the steps after the state that was being looked at."""

    def __init__(self, what: str, tail: Tail = ()) -> None:
        super().__init__(what)
        self.what, self.tail = what, tail


class Tree(NamedTuple):
    """One transaction's tree, and its row."""

    row: State = State.ABSENT
    id: str = ""
    batch: int = 0          # 10 × the batch + the place in the order of its txids; 0: a batch of its own
    at: int = UNMADE
    may: int = 1 << UNMADE
    good: int = 0
    good_durable: int = 0
    side: int = 0
    side_durable: int = 0
    out: int = 0            # its file ``output``, which says that it is filled; nobody asks once the row is further on
    out_durable: int = 0
    kept: int = 0           # its spool: what was fetched for it, and is worth going on with
    kept_durable: int = 0
    entered: int = 0        # the order in which trees whose renames are not durable entered one path of layers/


UNUSED = Tree()
DEAD = Tree(at=REMOVED, may=1 << REMOVED)


class World(NamedTuple):
    """``mark``: how many of the log's entries a step has just put below the mark; ``canonical`` drops them."""

    trees: tuple[Tree, ...]
    log: tuple[int, ...] = ()
    below: int = 0      # log below the mark: 0 none, 1 there, 2 archived in a segment that is not durable, 3 lost
    segment: int = 0    # a segment that the journal does not know yet: 0 none, 1 durable, 2 not durable
    mark: int = 0


# -- rows --------------------------------------------------------------------------------------------------------


def with_tree(w: World, t: int, tree: Tree) -> World:
    return w._replace(trees=(*w.trees[:t], tree, *w.trees[t + 1:]))


def fire(w: World, t: int, trigger: Trigger, *, id: str = "", batch: int = 0) -> World:  # noqa: A002
    """One journal record: what the table says, and nothing that it does not say."""
    tree = w.trees[t]
    dest = destination(Kind.LAYER, trigger, tree.row)
    if dest is None:
        raise Violation(f"the table has no {trigger.value!r} from {tree.row.value!r}")
    if trigger is Trigger.CLAIM:
        tree = tree._replace(id=id, batch=batch)
    elif trigger is Trigger.RELEASE:
        tree = tree._replace(id="", batch=0)
    elif trigger is Trigger.COMMIT:
        tree = tree._replace(batch=0)
    if dest is State.ABSENT and tree.at == UNMADE:
        tree = tree._replace(at=REMOVED, may=1 << REMOVED)   # a txid is never used again
    w = with_tree(w, t, tree._replace(row=dest))
    if trigger in _RESTING_LOG:
        return w
    log = tuple(-1 if u == t else u for u in w.log)   # positions stay good until ``canonical``, which tells of them
    return w._replace(log=(*log, t) if trigger in _TO_THE_END else log)


def held_back(w: World) -> int:
    """The position of the first record of any open transaction; the log's end if there is none."""
    for position, t in enumerate(w.log):
        if w.trees[t].row in HOLDS_MARK:
            return position
    return len(w.log)


def tree_of(w: World, layer_id: str) -> int:
    """The tree that has, or claims, an ID; -1 if it is free."""
    for t, tree in enumerate(w.trees):
        if tree.id == layer_id and (tree.row in PROMISED or tree.row is State.DELETING):
            return t
    return -1


# -- effects on the disk -------------------------------------------------------------------------------------------


def occupant(w: World, layer_id: str) -> int:
    """The tree at layers/<id>; -1 if nothing is there."""
    for t, tree in enumerate(w.trees):
        if tree.at == LAYERS and tree.id == layer_id:
            return t
    return -1


def make(w: World, t: int) -> World:
    return with_tree(w, t, Tree(at=STAGING, may=1 << UNMADE | 1 << STAGING))


def move(w: World, t: int, to: int) -> World:
    tree = w.trees[t]
    entered = tree.entered
    if to == LAYERS:
        if occupant(w, tree.id) >= 0:
            raise Violation(f"T{t} cannot move in: T{occupant(w, tree.id)} is still at layers/{tree.id}")
        entered = 1 + max((u.entered for u in w.trees if u.id == tree.id and u.may >> LAYERS & 1), default=0)
    return with_tree(w, t, tree._replace(at=to, may=tree.may | 1 << to, entered=entered))


def remove(w: World, t: int) -> World:
    tree = w.trees[t]
    if tree.at not in (STAGING, TRASH):
        return w   # somebody else removed the same garbage
    return with_tree(w, t, tree._replace(at=REMOVED, may=tree.may | 1 << REMOVED, good=0, out=0, kept=0))


def write_side(w: World, t: int) -> World:
    """A new file, renamed over the old: right for all to see; after a loss of power perhaps not there."""
    return with_tree(w, t, w.trees[t]._replace(side=1, side_durable=0))


def fill(w: World, t: int) -> World:
    return with_tree(w, t, w.trees[t]._replace(good=1, good_durable=0))


def write_output(w: World, t: int) -> World:
    return with_tree(w, t, w.trees[t]._replace(out=1, out_durable=0))


def keep(w: World, t: int) -> World:
    return with_tree(w, t, w.trees[t]._replace(kept=1, kept_durable=0))


def unlink_spool(w: World, t: int) -> World:
    return with_tree(w, t, w.trees[t]._replace(kept=0))


def empty(w: World, t: int) -> World:
    """All but txid and spool. What a loss of power brings back of it is not whole: some of it was never there."""
    return with_tree(w, t, w.trees[t]._replace(good=0, good_durable=0))


def syncfs(w: World) -> World:
    return w._replace(trees=tuple(
        tree._replace(
            may=1 << tree.at, good_durable=tree.good, side_durable=tree.side, out_durable=tree.out,
            kept_durable=tree.kept, entered=0,
        ) for tree in w.trees
    ))


# -- what a loss of power leaves -----------------------------------------------------------------------------------


def _outcomes(tree: Tree) -> list[tuple[int, Tree]]:
    """Each place on its way that is left to it, and the tree there, with or without what was not durable of it."""
    found = []
    for at in range(5):
        if tree.may >> at & 1:
            place = REMOVED if at == UNMADE and tree.row is State.ABSENT and tree != UNUSED else at
            settled = tree._replace(at=place, may=1 << place, entered=0)
            found += [
                (at, settled._replace(good=good, good_durable=good, side=side, side_durable=side, out=out, out_durable=out,
                                      kept=kept, kept_durable=kept))
                for good in {tree.good, tree.good_durable} for side in {tree.side, tree.side_durable}
                for out in {tree.out, tree.out_durable} for kept in {tree.kept, tree.kept_durable}
            ]
    return found


def losses(w: World) -> list[World]:
    """Every world that a loss of power can leave: any subset of what is not durable is lost.

    A rename is lost as a whole, and no path holds two trees: a tree that came to a path after another had left
    it is there only if the other's leaving is durable too.
    """
    found: dict[World, None] = {}   # a set that keeps its order: the same run, whatever the hash seed
    pairs = [
        (x, y) for x, a in enumerate(w.trees) for y, b in enumerate(w.trees)
        if x != y and a.id and a.id == b.id and a.may & b.may & 1 << LAYERS and a.entered < b.entered
    ]
    for choice in product(*(_outcomes(tree) for tree in w.trees)):
        if all(choice[y][0] < LAYERS or choice[x][0] > LAYERS for x, y in pairs):
            trees = tuple(each[1] for each in choice)
            for segment in {2: (0, 1)}.get(w.segment, (w.segment,)):
                for below in {2: (0, 3)}.get(w.below, (w.below,)):
                    found[w._replace(trees=trees, segment=segment, below=below)] = None
    return list(found)


# -- one of each ---------------------------------------------------------------------------------------------------


def _plain(tree: Tree) -> Tree:
    """Without what nothing can depend on any more."""
    row, settled = tree.row, tree.may == 1 << tree.at
    if row is not State.STAGING or (settled and tree.at != STAGING):
        tree = tree._replace(out=0, out_durable=0)
    if row is State.ABSENT:
        if tree == UNUSED or (settled and tree.at == REMOVED):
            return UNUSED if tree == UNUSED else DEAD
        return tree._replace(good=0, good_durable=0, side=0, side_durable=0, kept=0, kept_durable=0, batch=0,
                             id=tree.id if tree.may >> LAYERS & 1 else "", entered=tree.entered * (tree.may >> LAYERS & 1))
    if row is State.GONE:
        known = tree.may >> LAYERS & 1
        return tree._replace(good=0, good_durable=0, side=0, side_durable=0, kept=0, kept_durable=0,
                             id=tree.id if known else "", entered=tree.entered if known and not settled else 0)
    if settled or not tree.may >> LAYERS & 1:
        tree = tree._replace(entered=0)
    if row is State.DELETING:
        tree = tree._replace(good=0, good_durable=0, side=0, side_durable=0, kept=0, kept_durable=0)
    return tree


def canonical(w: World) -> tuple[World, Change | None]:
    """The same world with its trees in a fixed order (txids are random, so none is special) and no dead matter.

    Also how to find one's trees and positions again; None if nothing has moved.
    """
    trees = [_plain(tree) for tree in w.trees]
    kept, positions = [], [0]
    for position, t in enumerate(w.log):
        if position >= w.mark and t >= 0:
            kept.append(t)
        positions.append(len(kept))
    order = sorted(range(len(trees)), key=lambda t: (trees[t], kept.index(t) if t in kept else -1))
    moved = [0] * len(trees)
    for new, old in enumerate(order):
        moved[old] = new
    plain = World(tuple(trees[t] for t in order), tuple(moved[t] for t in kept), w.below, w.segment)
    if plain.log == w.log and order == list(range(len(order))):
        return plain, None
    return plain, (tuple(moved), tuple(positions))
