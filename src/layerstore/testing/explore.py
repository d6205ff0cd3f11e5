"""The explorer: a SIGKILL at each fault point that a program passes, at each of its recovery's, and further down.

Each state is a copy of a store and of the ledger beside it, killed in a forked child of the warmed interpreter and
judged by the oracle. What the oracle cannot know alone is added here: a recovery that was itself killed, however
often, must come to the same catalog, byte for byte, as the one that was left in peace.

Killing a recovery just after one effect and just before the next often leaves the very same bytes. Such a twin of a
state that was judged already, of the same crash, is not judged again, and what lies below it is not explored again.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import layerstore
from layerstore.store import Store
from layerstore.testing.answering import Answering
from layerstore.testing.children import ChildDiedError, in_workers, run_child
from layerstore.testing.copies import copy_store, disk_print
from layerstore.testing.ledger import Ledger, read_ledger
from layerstore.testing.oracle import Verdict, examine
from layerstore.testing.passing import FaultNotReachedError, Passing, kill_at, passings, passings_here
from layerstore.testing.trees import Tree

Program = Callable[[str, Ledger], object]
STORE, LEDGER = "store", "ledger"
_STILL_NS = 1_800_000_000_000_000_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """One crash state: where it was killed (then where its recovery was, and so on), and what the oracle saw."""

    killed_at: tuple[Passing, ...]
    verdict: Verdict
    directory: str
    twin: bool = False
    """Whether it was, byte for byte, a state that was judged already: the verdict is that one's."""

    @property
    def violations(self) -> list[str]:
        """What is wrong, a line each. If anything is, the store is still in ``directory``, to be looked at."""
        return self.verdict.violations

    def __str__(self) -> str:
        return f"killed at {' then '.join(map(str, self.killed_at))}: {self.violations or 'sound'}"


@dataclass(frozen=True, slots=True)
class _Question:
    """To the judge. ``points``: which fault points its recovery passes; ``look``: the verdict, ``again``: that and more."""

    what: Literal["points", "look", "again"]
    home: str


def still_clock() -> int:
    """Stand still: two recoveries must not differ in the time at which they finished a layer.

    Returns:
        Always the same nanoseconds since 1970; a ``clock`` for ``layerstore.open``.

    Durability: none.

    """
    return _STILL_NS


def reopen(root: str) -> None:
    """Recover, as the next user of the store does: open it, and close it.

    Args:
        root: the store's directory.

    Raises:
        LayerstoreError: as ``layerstore.open``.

    Durability: as ``layerstore.open``: the recovery is durable.

    """
    with layerstore.open(root, clock=still_clock):
        pass


class CrashExplorer:
    """Kills a program that uses a store, wherever it can be killed, and judges what it leaves.

    Args:
        directory: for the stores, an existing one; on a RAM disk it is quicker. What was sound is removed again.
        prepare: makes the store to start from, once: ``prepare(root, ledger)``. It opens and closes it itself.
        run: the program to kill, likewise. Each run starts from a copy. It must pass the same fault points each
            time: one worker, no threads of its own. ``ledger.asking`` around each call says what it may expect.
        recover: what comes after a crash, ``recover(root)``; the default opens the store.
        again: given the open store after all: the program once more, as its user would. It must succeed.
        mend: what an operator does before a crashed store is opened and judged, ``mend(root)``; by default nothing.
            A *recover* of your own does it itself.
        trees: by diffID, the trees that layers must have (``tree_of_tar``); None compares no trees, and leaves it
            to the store's own digests.
        ledger: whether *run* tells the ledger of every change; if not, nothing is expected but soundness.

    Durability: writes nothing outside *directory*. Uses ``os.fork``: call it from a single-threaded process.

    """

    def __init__(
        self, directory: str | os.PathLike[str], prepare: Program, run: Program, *,
        recover: Callable[[str], object] = reopen, again: Callable[[Store], object] | None = None,
        mend: Callable[[str], object] = lambda _root: None, trees: Mapping[str, Tree] | None = None,
        ledger: bool = True,
    ) -> None:
        self.explored = 0
        """How many crash states were explored so far."""
        self._directory, self._prepare, self._run = os.path.abspath(os.fspath(directory)), prepare, run
        self._recover, self._again, self._trees, self._ledger = recover, again, trees, ledger
        self._mend = mend
        self._start = os.path.join(self._directory, "start")
        self._judge = Answering(self._judged_in)   # not one for each state: to fork it would cost as much as to judge

    def points(self) -> list[Passing]:
        """List every fault point that the program passes.

        Returns:
            The passings, in order.

        Raises:
            AssertionError: *prepare* or *run* failed without any fault.

        Durability: the run's copy is removed again.

        """
        self._make_start()
        home = self._copy(self._start, "whole")
        try:
            return passings(partial(self._run_in, home))
        finally:
            shutil.rmtree(home)

    def explore(
        self, levels: Sequence[float] = (1.0,), *, seed: int = 1, workers: int = 1,
        only: Callable[[Passing], bool] = lambda _passing: True,
    ) -> Iterator[Outcome]:
        """Kill the program at its fault points, its recovery at those of its own, and so on.

        Args:
            levels: for each level, the share of the fault points to kill at: ``(1.0,)`` kills the program at all of
                them; ``(1.0, 1.0, 0.02)`` also the recovery at all of its own, and of the recovery after that a
                sample of 2 %.
            seed: of the samples.
            workers: how many processes share the work.
            only: of the program's own points, those for which this says so.

        Returns:
            An iterator over the outcomes, in an order that depends on nothing but the arguments.

        Raises:
            FaultNotReachedError: a kill did not land.
            AssertionError: the program or its recovery failed without any fault.

        Durability: stores of sound outcomes are removed; those of violations are left to look at.

        """
        points = [each for each in self.points() if only(each)]
        chosen = [(n, each) for n, each in enumerate(points) if _drawn(levels[0], seed, (each,))]
        parts = [chosen[n::workers] for n in range(min(workers, len(chosen)))]
        for outcome in in_workers([partial(self._explore_part, part, levels[1:], seed) for part in parts]):
            self.explored += 1
            yield outcome

    def show(self, killed_at: Sequence[Passing]) -> Outcome:
        """Make one crash state again, and judge it.

        Args:
            killed_at: where to kill the program, then its recovery, and so on: an outcome's.

        Returns:
            The outcome, compared with a recovery that is not killed.

        Raises:
            FaultNotReachedError: a kill did not land.

        Durability: as for ``explore``.

        """
        self._make_start()
        home = self._copy(self._start, "shown")
        kill_at(killed_at[0], partial(self._run_in, home))
        try:
            states = self._along(home, tuple(killed_at[:1]), killed_at[1:])   # outermost first
        finally:
            self._judge.close()
        self.explored += 1
        return [_kept(each) for each in states][-1]

    # -- one state, and those below it ---------------------------------------------------------------------------

    def _explore_part(
        self, part: Sequence[tuple[int, Passing]], levels: Sequence[float], seed: int,
    ) -> Iterator[Outcome]:
        try:
            for number, passing in part:
                home = self._copy(self._start, f"kill-{number}")
                kill_at(passing, partial(self._run_in, home))
                # only now: what is wrong with a state may be how it compares with the one above it
                yield from map(_kept, list(self._below(home, (passing,), levels, seed)))
        finally:
            self._judge.close()

    def _below(
        self, home: str, path: tuple[Passing, ...], levels: Sequence[float], seed: int,
    ) -> Iterator[Outcome]:
        """The crash state in *home*, and those that killing its recovery leads to."""
        nested: list[Outcome] = []
        seen: dict[str, Outcome] = {}   # what this state's recovery, killed, left: by what is on the disk
        if levels and levels[0] > 0:
            for number, passing in enumerate(self._points_of_recovery(home)):
                further = (*path, passing)
                if not _drawn(levels[0], seed, further):
                    continue
                inner = self._killed_in_recovery(home, passing, number)
                known = seen.get(print_of := disk_print(inner))
                if known is not None:
                    shutil.rmtree(inner)
                    nested.append(Outcome(further, _same(known.verdict), known.directory, twin=True))
                else:
                    found = list(self._below(inner, further, levels[1:], seed))
                    seen[print_of] = found[0]
                    nested += found
        yield from self._judged(home, path, nested)

    def _along(self, home: str, path: tuple[Passing, ...], further: Sequence[Passing]) -> list[Outcome]:
        nested: list[Outcome] = []
        if further:
            inner = self._killed_in_recovery(home, further[0], 0)
            nested = self._along(inner, (*path, further[0]), further[1:])
        return list(self._judged(home, path, nested))

    def _points_of_recovery(self, home: str) -> list[Passing]:
        trial = self._copy(home, "trial", beside=True)
        root = os.path.join(trial, STORE)
        try:
            if self._recover is not reopen:   # what a stranger's leaves behind in a process is not known
                return passings(partial(self._recover, root))
            return self._asked(_Question("points", trial))[1]
        finally:
            shutil.rmtree(trial)

    def _killed_in_recovery(self, home: str, passing: Passing, number: int) -> str:
        inner = self._copy(home, str(number), beside=True)
        kill_at(passing, partial(self._recover, os.path.join(inner, STORE)))
        return inner

    def _judged(self, home: str, path: tuple[Passing, ...], nested: Sequence[Outcome]) -> Iterator[Outcome]:
        verdict = self._asked(_Question("again" if len(path) == 1 else "look", home))[0]
        if verdict.violations:
            self._judge.close()   # the next state's judge is to have nothing from this one
        for each in nested:
            if len(each.killed_at) == len(path) + 1 and each.verdict.dump != verdict.dump:
                each.violations.append("a recovery that was killed came to another catalog than one that was not")
        yield Outcome(path, verdict, home)
        yield from nested

    def _asked(self, question: _Question) -> tuple[Verdict, list[Passing]]:
        try:
            return self._judge.ask(question)
        except ChildDiedError as error:
            raise AssertionError(f"{question.what} of {question.home}: {error}") from error

    def _judged_in(self, question: _Question) -> tuple[Verdict, list[Passing]]:
        """In the judge. *again* only for the first level: below it, catalog and trees must be what they are there."""
        root = os.path.join(question.home, STORE)
        if question.what == "points":
            return Verdict(), passings_here(partial(reopen, root))
        self._mend(root)
        expect = read_ledger(os.path.join(question.home, LEDGER)) if self._ledger else None
        again = self._again if question.what == "again" else None
        return examine(root, expect=expect, trees=self._trees, again=again, clock=still_clock), []

    # -- directories ---------------------------------------------------------------------------------------------

    def _make_start(self) -> None:
        if os.path.isdir(self._start):
            return
        new = f"{self._start}.new"
        os.mkdir(new)
        if os.waitstatus_to_exitcode(run_child(partial(_with_ledger, self._prepare, new))) != 0:
            raise AssertionError("prepare failed")
        os.rename(new, self._start)

    def _run_in(self, home: str) -> None:
        _with_ledger(self._run, home)

    def _copy(self, source: str, name: str, *, beside: bool = False) -> str:
        target = f"{source}-{name}" if beside else os.path.join(self._directory, name)
        shutil.rmtree(target, ignore_errors=True)
        copy_store(source, target)
        return target


def _kept(outcome: Outcome) -> Outcome:
    if not outcome.violations and not outcome.twin:
        shutil.rmtree(outcome.directory, ignore_errors=True)
    return outcome


def _with_ledger(program: Program, home: str) -> None:
    program(os.path.join(home, STORE), Ledger.to_file(os.path.join(home, LEDGER)))


def _same(verdict: Verdict) -> Verdict:
    return replace(verdict, violations=list(verdict.violations))


def _drawn(share: float, seed: int, path: Sequence[Passing]) -> bool:
    """Whether a state is in the sample: by its own path, so that neither workers nor order make a difference."""
    return share >= 1 or random.Random(f"{seed} {' '.join(map(str, path))}").random() < share  # noqa: S311


__all__ = [
    "CrashExplorer", "FaultNotReachedError", "Outcome", "Passing", "copy_store", "disk_print", "kill_at", "passings",
    "reopen", "still_clock",
]
