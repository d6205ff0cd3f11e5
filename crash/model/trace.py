"""A counter-example, to be read: which process did what, and what is so after it.

Trees and processes change their places in a packed state (``world.canonical``); here each keeps one name throughout:
T1 is the tree that was made first, P1 the process that did something first.
"""

from __future__ import annotations

import re
from itertools import pairwise

from crash.model.space import Space
from crash.model.world import LAYERS, REMOVED, STAGING, TRASH, UNMADE, UNUSED, Tree, Violation, World, canonical, losses
from layerstore.lifecycle.states import State

_AT = {UNMADE: "nowhere", STAGING: "staging/", LAYERS: "layers/", TRASH: "trash/", REMOVED: "nowhere"}


class _Names:
    """Slot → name, kept through every change of places."""

    def __init__(self, trees: int) -> None:
        self.trees: list[str | None] = [None] * trees
        self.procs: list[str | None] = [None, None]
        self.made = 0

    def tree(self, slot: int) -> str:
        if self.trees[slot] is None:
            self.made += 1
            self.trees[slot] = f"T{self.made}"
        return str(self.trees[slot])

    def proc(self, slot: int) -> str:
        if self.procs[slot] is None:
            self.procs[slot] = f"P{1 + sum(each is not None for each in self.procs)}"
        return str(self.procs[slot])

    def label(self, text: str) -> str:
        return re.sub(r"T(\d)", lambda match: self.tree(int(match[1])), text)

    def moved(self, places: tuple[int, ...]) -> None:
        trees: list[str | None] = [None] * len(places)
        for old, new in enumerate(places):
            trees[new] = self.trees[old]
        self.trees = trees


def render(space: Space, parents: dict[int, int], last: int, violation: Violation) -> tuple[list[str], str]:
    """The way from the start to *last*, and on to the violation; and the violation, in the same names."""
    path = [last]
    while path[-1] in parents:
        path.append(parents[path[-1]])
    path.reverse()
    names = _Names(len(space.worlds[0].trees))
    lines = []
    for number, (before, after) in enumerate(pairwise(path), 1):
        label = _step(space, names, before, after)
        lines.append(f"{number:3} {label}")
        lines.append(f"      {_show(space.worlds[space.unpack(after)[0]], names)}")
    for number, (label, change) in enumerate(violation.tail, len(path)):
        lines.append(f"{number:3} {names.label(label)}")
        if change is not None:
            names.moved(change[0])
    what = names.label(violation.what)
    return [*lines, f"  ⇒ {what}"], what


def _step(space: Space, names: _Names, before: int, after: int) -> str:
    """What leads from one state to the next, in words; *names* follows."""
    world, *pair, budget = space.unpack(before)
    new_world, *new, spent = space.unpack(after)
    for me in (0, 1):
        other = pair[1 - me]
        for label, w, p, cost, change in space.labelled(world, pair[me], space.locks[other]):
            o = space.follow(change, other) if change else other
            if (w, sorted((p, o)), space.budgets.spend[cost][budget]) == (new_world, new, spent):
                text = f"{names.proc(me)} {names.label(label)}"
                if change:
                    names.moved(space.changes[change - 1][0])
                if (p if me == 0 else o) != new[0]:
                    names.procs.reverse()
                return text
    for me in (0, 1):
        if pair[me] and new == [0, pair[1 - me]] and world == new_world:
            text = f"{names.proc(me)} is killed"
            if me == 1 and pair[0]:
                names.procs.reverse()
            return text
    for lost in losses(space.worlds[world]):
        plain, moved = canonical(lost)
        if space.world_ids.get(plain) == new_world:
            if moved is not None:
                names.moved(moved[0])
            return "the power fails"
    raise AssertionError("no step leads there")


def _show(w: World, names: _Names) -> str:
    shown = []
    for t, tree in enumerate(w.trees):
        if tree != UNUSED and (tree.row is not State.ABSENT or tree.at != REMOVED or tree.may != 1 << REMOVED):
            shown.append(f"{names.tree(t)} {_tree(tree)}{' +' if t in w.log else ''}")
    return " · ".join(shown) or "nothing"


def _tree(tree: Tree) -> str:
    """Row, place, and in brackets what a loss of power can still take."""
    text = "no row" if tree.row is State.ABSENT else tree.row.value
    text += f" {tree.id}" if tree.id else ""
    text += f" @{_AT[tree.at]}"
    unsure = [_AT[at] for at in range(5) if tree.may >> at & 1 and at != tree.at]
    lost = [f"or {'/'.join(unsure)}"] if unsure else []
    if tree.good != tree.good_durable:
        lost.append("content")
    if tree.side != tree.side_durable:
        lost.append("side file")
    if tree.out != tree.out_durable:
        lost.append("output")
    if tree.kept != tree.kept_durable:
        lost.append("spool")
    return text + (f" [{', '.join(lost)}]" if lost else "")
