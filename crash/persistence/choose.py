"""Which crash states of a history to look at: one of each group first, then drawn at random from a seed.

A state is a cut (how many calls had been made) and which of the effects that were pending there persisted. A group is
the fault point at the cut × the form × the kind and fault point of the effects that the form is about.

Forms: ``none`` and ``all`` of the pending; ``drop`` and ``keep`` one; ``drop-like`` and ``keep-like``: all of one kind
from one fault point; ``first`` so many, in the order of the calls; ``torn``: all, one of them by half; ``some``: any.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from crash.persistence.history import NAMES, Effect, History

FORMS = ("none", "all", "drop", "keep", "drop-like", "keep-like", "first", "torn", "some")


class Choice(NamedTuple):
    """``argument``: an effect's number for drop, keep, *-like and torn; a count for first; a seed for some."""

    cut: int
    form: str
    argument: int = 0

    def __str__(self) -> str:
        return f"{self.cut}:{self.form}:{self.argument}"


def parse(text: str) -> Choice:
    cut, form, argument = text.split(":")
    return Choice(int(cut), form, int(argument))


class Chooser:
    """The crash states of *history* from call *start* on, with *durable* from ``History.durable``."""

    def __init__(self, history: History, durable: Sequence[int], *, start: int = 0) -> None:
        self.history, self._durable, self._start = history, durable, start
        self._issued = [effect.at for effect in history.effects]
        self.cuts = self._cuts()
        self._pending: dict[int, list[Effect]] = {}

    def _cuts(self) -> list[int]:
        """After each effect, and after each line of the ledger and each sync: what must hold changes there, too."""
        after = {effect.at + 1 for effect in self.history.effects} | {sync.at + 1 for sync in self.history.syncs}
        after |= {at + 1 for at, text in self.history.marks if text.startswith("ledger ")} | {len(self.history.calls)}
        return sorted(cut for cut in after if cut >= self._start)

    def pending(self, cut: int) -> list[Effect]:
        if cut not in self._pending:
            if len(self._pending) > 300:
                self._pending.clear()
            issued = self.history.effects[:bisect_left(self._issued, cut)]
            self._pending[cut] = [each for each in issued if self._durable[each.number] >= cut]
        return self._pending[cut]

    def persisted(self, choice: Choice) -> tuple[frozenset[int], frozenset[int]]:
        """The effects that persist in this state, and which of them by half only."""
        pending = self.pending(choice.cut)
        numbers = [each.number for each in pending]
        issued = bisect_left(self._issued, choice.cut)
        sure = {n for n in range(issued) if self._durable[n] < choice.cut}
        one = {choice.argument}
        kept: set[int] | frozenset[int]
        if choice.form in ("drop-like", "keep-like"):
            like = _likeness(self.history.effects[choice.argument])
            one = {each.number for each in pending if _likeness(each) == like}
        if choice.form == "none":
            kept = set()
        elif choice.form in ("all", "torn"):
            kept = set(numbers)
        elif choice.form in ("drop", "drop-like"):
            kept = set(numbers) - one
        elif choice.form in ("keep", "keep-like"):
            kept = one
        elif choice.form == "first":
            kept = set(numbers[:choice.argument])
        else:
            rng = random.Random(f"{choice.cut}:{choice.argument}")
            share = rng.choice((0.2, 0.5, 0.8))
            kept = {n for n in numbers if rng.random() < share}
        return frozenset(sure | kept), frozenset(one if choice.form == "torn" else ())

    def representatives(self, seed: int) -> list[Choice]:
        """One state of each group, in an order drawn from *seed*."""
        rng = random.Random(seed)
        groups: dict[tuple[str, ...], Choice] = {}
        for cut in rng.sample(self.cuts, len(self.cuts)):
            step = self.step(cut)
            groups.setdefault((step, "none"), Choice(cut, "none"))
            groups.setdefault((step, "all"), Choice(cut, "all"))
            pending = self.pending(cut)
            if len(pending) < 2:
                continue
            like: dict[tuple[str, str], list[Effect]] = {}
            for each in pending:
                like.setdefault(_likeness(each), []).append(each)
            for (kind, point), effects in like.items():
                for form in ("drop", "keep", "drop-like", "keep-like", *(["torn"] if kind == "data" else [])):
                    if (step, form, kind, point) not in groups:
                        groups[step, form, kind, point] = Choice(cut, form, rng.choice(effects).number)
        chosen = list(groups.values())
        rng.shuffle(chosen)
        return chosen

    def drawn(self, seed: int) -> Iterator[Choice]:
        """States at random, for ever; the same may come again."""
        rng = random.Random(f"drawn {seed}")
        while True:
            cut = rng.choice(self.cuts)
            pending = self.pending(cut)
            form = rng.choice(FORMS[2:])
            if not pending:
                yield Choice(cut, "none")
            elif form == "first":
                yield Choice(cut, form, rng.randrange(len(pending) + 1))
            elif form == "some":
                yield Choice(cut, form, rng.randrange(1 << 30))
            else:
                among = [each for each in pending if each.kind == "data"] if form == "torn" else pending
                if among:
                    yield Choice(cut, form, rng.choice(among).number)

    def step(self, cut: int) -> str:
        """The journal step at a cut: the fault point of its last call, or the last one that was passed before."""
        for at in range(cut - 1, -1, -1):
            if self.history.points[at]:
                return self.history.points[at]
        return "start"


def _likeness(effect: Effect) -> tuple[str, str]:
    return ("entry" if effect.kind in NAMES and effect.kind not in ("rename", "exchange") else effect.kind), effect.point


__all__ = ["FORMS", "Choice", "Chooser", "parse"]
