"""KeyboardInterrupt and MemoryError at every line of the mutating verbs.

For each verb (``verbs``) the instructions that begin a line of layerstore or layerjournal are counted (``points``); in
a forked child for each, the exception is raised there once, and everything that must hold afterwards is looked at
(``judge``). Without options: every point at its first passing, the two exceptions in turn. ``--every K`` takes each
K-th of them, ``--passings N`` up to N passings of each (0: all), ``--both`` both exceptions.
"""

from __future__ import annotations

import argparse
import os
import pickle
import random
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from crash.lines import fresh
from crash.lines.judge import InjectedInterrupt, InjectedMemoryError, Report, Trial
from crash.lines.points import Aim, NotReachedError, Point, steady
from crash.lines.verbs import Verb, build
from crash.state import State, outcome_of
from crash.workloads import Images
from layerstore.testing.children import ChildDiedError, run_child, telling
from layerstore.testing.copies import copy_store
from layerstore.testing.ledger import Ledger

ERRORS: dict[str, type[BaseException]] = {"KeyboardInterrupt": InjectedInterrupt, "MemoryError": InjectedMemoryError}
SELDOM = {"repair": 6, "rebuild": 10, "view": 5, "push": 5, "snapshot": 3}   # long, or much like others: sampled thinner
CENSUSES = 3     # what threads pass differs from run to run: only what every census has is aimed at
ATTEMPTS = 10    # a thread may come to a point later than the others end: then it is tried again


@dataclass(frozen=True)
class Case:
    """One trial to be made."""

    verb: str
    point: Point
    nth: int
    error: str

    def __str__(self) -> str:
        return f"{self.error} at {self.point}, passing {self.nth}"

    def key(self) -> str:
        return f"{self.point}:{self.nth}:{self.error}"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--every", type=int, default=1, help="take each K-th point of a verb (offset by the seed)")
    parser.add_argument("--passings", type=int, default=1, help="of each point, the first and N-1 drawn ones (0: all)")
    parser.add_argument("--both", action="store_true", help="both exceptions at each, not in turn")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--only", help="one case, as a state's 'reproduce' names it")


def states(options: argparse.Namespace) -> Iterator[State]:
    """Every case of every verb asked for."""
    bench = Bench(options.work)
    for name in options.workload or bench.verbs:
        cases = plan(name, bench.points(name), options)
        if options.only:
            cases = [each for each in _all(name, bench.points(name)) if each.key() == options.only]
            if not cases:
                raise NotReachedError(f"{name} does not come to {options.only}")
        yield from in_workers(bench, cases, options.workers, options.seed)


def plan(name: str, points: dict[Point, int], options: argparse.Namespace) -> list[Case]:
    """Which cases are tried: the first passing of each point, and of further ones as many as asked for."""
    draw = random.Random(f"{options.seed} {name}")
    cases = []
    every = options.every * SELDOM.get(name, 1) if options.every > 1 else 1
    offset = draw.randrange(every)
    for number, (point, passed) in enumerate(sorted(points.items())):
        if (number + offset) % every:
            continue
        further = range(2, passed + 1)
        more = len(further) if options.passings == 0 else min(options.passings - 1, len(further))
        for nth in (1, *sorted(draw.sample(further, more))):
            turn = (number // every + nth + options.seed) % 2
            cases += [Case(name, point, nth, error) for n, error in enumerate(ERRORS) if options.both or n == turn]
    return cases


def _all(name: str, points: dict[Point, int]) -> Iterator[Case]:
    for point, passed in points.items():
        for nth in range(1, passed + 1):
            for error in ERRORS:
                yield Case(name, point, nth, error)


class Bench:
    """The verbs, each with a store to start from, in a scratch directory."""

    def __init__(self, work: str) -> None:
        self.work = work
        self.verbs = build(Images(os.path.join(work, "images")))
        self._points: dict[str, dict[Point, int]] = {}
        fresh.late()   # before anything is forked

    def points(self, name: str) -> dict[Point, int]:
        """What the verb surely passes, and how often."""
        if name not in self._points:
            counted = []
            for n in range(CENSUSES):
                trial = f"census-{n}"
                self.copy(name, trial)
                counted.append(telling(lambda trial=trial: self._trial(name, trial).census().counts()))  # type: ignore[misc]
                self.remove(name, trial)
            self._points[name] = steady(counted)
        return self._points[name]

    def try_(self, case: Case, tag: str) -> Report:
        """One trial. NotReachedError if the exception was not raised."""
        for _ in range(ATTEMPTS):
            report = self._try_once(case, tag)
            if report.landed:
                return report
        raise NotReachedError(f"{case.verb}: {case} was never reached")

    def _try_once(self, case: Case, tag: str) -> Report:
        self.copy(case.verb, tag)
        aim = Aim(case.point, case.nth, ERRORS[case.error])
        try:
            return telling(lambda: self._trial(case.verb, tag).interrupt(aim))
        except ChildDiedError as error:
            return Report(landed=True, violations=[f"hung, or died: {error}"])
        finally:
            self.remove(case.verb, tag)

    def _trial(self, name: str, tag: str) -> Trial:
        directory = os.path.join(self.work, name, tag)
        return Trial(self.verbs[name], os.path.join(directory, "store"), os.path.join(directory, "ledger"))

    def copy(self, name: str, tag: str) -> None:
        start = os.path.join(self.work, name, "start")
        if not os.path.isdir(start):
            self._prepare(self.verbs[name], start)
        copy_store(start, os.path.join(self.work, name, tag))

    def remove(self, name: str, tag: str) -> None:
        shutil.rmtree(os.path.join(self.work, name, tag), ignore_errors=True)

    @staticmethod
    def _prepare(verb: Verb, start: str) -> None:
        os.makedirs(start)

        def prepare() -> None:
            verb.prepare(os.path.join(start, "store"), Ledger.to_file(os.path.join(start, "ledger")))

        if run_child(prepare) != 0:
            raise AssertionError(f"{verb.name} could not be prepared")


def in_workers(bench: Bench, cases: list[Case], workers: int, seed: int) -> Iterator[State]:
    """Try *cases* in forked workers, dealt out in turn; their states, in the cases' order."""
    if cases:
        bench.copy(cases[0].verb, "warm")   # made once, before the workers are forked
    pipes = [_worker(bench, cases[n::workers], n, seed) for n in range(workers)]
    try:
        for number in range(len(cases)):
            yield _received(pipes[number % workers][1])
    finally:   # a worker that is not listened to any more ends when it tells of its next state
        for _, pipe in pipes:
            pipe.close()
        for pid, _ in pipes:
            os.waitpid(pid, 0)


def _worker(bench: Bench, cases: Iterable[Case], number: int, seed: int) -> tuple[int, Any]:
    read_fd, write_fd = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.close(read_fd)
        code = 1
        try:
            with os.fdopen(write_fd, "wb") as pipe:
                for case in cases:
                    try:
                        made: object = state_of(bench, case, f"w{number}", seed)
                    except NotReachedError as error:
                        made = error
                    pickle.dump(made, pipe)
                    pipe.flush()
            code = 0
        finally:
            os._exit(code)
    os.close(write_fd)
    return pid, os.fdopen(read_fd, "rb")


def _received(pipe: Any) -> State:
    made = pickle.load(pipe)
    if isinstance(made, NotReachedError):
        raise made
    assert isinstance(made, State)
    return made


def state_of(bench: Bench, case: Case, tag: str, seed: int) -> State:
    report = bench.try_(case, tag)
    return State(
        rig="lines", workload=case.verb, fault=str(case),
        outcome="violation" if report.violations else "error" if report.raised else outcome_of(report.happened, []),
        violations=report.violations, redo=bool(report.redo), seed=seed, fs="tmpfs",
        reproduce=f"python -m crash run lines --workload {case.verb} --only '{case.key()}'",
        details={"file": case.point.file, "line": case.point.line, "error": case.error, "raised": report.raised,
                 "poisoned": report.poisoned},
    )


__all__ = ["Bench", "Case", "arguments", "plan", "state_of", "states"]
