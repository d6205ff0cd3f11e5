"""Interleavings: real processes on one store, stopped before every step, run in every order within a bound.

Here: what is run, and what becomes of it, as states. ``process`` is a process seen from inside, ``controller`` runs
one schedule, ``search`` says which, ``scenarios`` what the processes do. A schedule is printed as its choices, and
run again from them.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator
from functools import partial
from itertools import chain

from crash.content import TREES
from crash.schedule import search
from crash.schedule.controller import Controller, Run
from crash.schedule.scenarios import Scenario, build
from crash.schedule.search import Plan
from crash.state import State, outcome_of
from layerstore.testing import (
    Ledger,
    Verdict,
    copy_store,
    examine,
    in_workers,
    read_ledger,
    run_child,
    still_clock,
    telling,
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bound", type=int, default=1, help="how many preemptions, exhaustively")
    parser.add_argument("--random", type=int, default=None, help="how many random schedules after that, per scenario "
                        "(default: 100; without end if --states or --seconds is given)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--show", help="one schedule, as printed; name the --workload")
    parser.add_argument("--kill", type=int, help="with --show: kill the process at that step")


def states(options: argparse.Namespace) -> Iterator[State]:
    scenarios = build(os.path.join(options.work, "images"))
    chosen = [scenarios[each] for each in options.workload or scenarios]
    if options.show:
        site = Site(chosen[0], os.path.join(options.work, "shown"))
        yield site.state(Plan(search.read(options.show), kill=options.kill), options.seed)
        return
    limited = options.states is not None or options.seconds is not None
    number = options.random if options.random is not None else (None if limited else 100)
    parts = [partial(_part, chosen, options, number, part) for part in range(options.workers)]
    yield from in_workers(parts)


def _part(chosen: list[Scenario], options: argparse.Namespace, number: int | None, part: int) -> Iterator[State]:
    share = {"part": part, "parts": options.workers}
    sites = [Site(each, os.path.join(options.work, f"{each.name}-{part}")) for each in chosen]
    for site in [each for each in sites if not each.scenario.sampled]:
        beginnings = [(n,) for n in range(len(site.scenario.parts))]
        found = chain(search.bounded(site.execute, options.bound, **share), search.kills(site.execute, beginnings, **share))
        yield from (site.judged(plan, run, options.seed) for plan, run in found)
    endless = [search.drawn(site.execute, f"{options.seed} {site.scenario.name}", number, **share) for site in sites]
    while endless:   # in turn, so that a limit cuts all alike
        for site, each in list(zip(sites, endless, strict=True)):
            following = next(each, None)
            if following is None:
                sites.remove(site)
                endless.remove(each)
            else:
                yield site.judged(*following, options.seed)


class Site:
    """A scenario's store, made once, and copied for each schedule."""

    def __init__(self, scenario: Scenario, directory: str) -> None:
        self.scenario, self._directory = scenario, directory
        self._start, self._home = os.path.join(directory, "start"), os.path.join(directory, "home")
        os.makedirs(self._start)
        ledger = Ledger.to_file(os.path.join(self._start, "ledger"))
        if os.waitstatus_to_exitcode(run_child(partial(scenario.prepare, os.path.join(self._start, "store"), ledger))) != 0:
            raise AssertionError("prepare failed")

    def execute(self, plan: Plan) -> Run:
        """Run one schedule on a fresh copy, which is left to be judged."""
        shutil.rmtree(self._home, ignore_errors=True)
        copy_store(self._start, self._home)
        fd = os.open(os.path.join(self._home, "ledger"), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        ledger = Ledger(partial(os.write, fd))
        try:
            programs = self.scenario.programs(os.path.join(self._home, "store"), ledger)
            return Controller(programs, plan.chooser(), kill=plan.kill).run()
        finally:
            os.close(fd)

    def state(self, plan: Plan, seed: int) -> State:
        return self.judged(plan, self.execute(plan), seed)

    def judged(self, plan: Plan, run: Run, seed: int) -> State:
        """The state that *run*, the last one that was executed, left."""
        name, verdict = self.scenario.name, telling(self._judge)
        allowed = {"ok", "killed", *self.scenario.errors}
        found = [f"process {n} ended with {each}" for n, each in enumerate(run.results) if each not in allowed]
        if run.deadlock:
            found = ["deadlock: nobody can go on"]
        if not self.scenario.waits and any(each.label.startswith("wait") for each in run.steps):
            found.append("one waited for another")
        found += verdict.violations
        choices = search.written(run.choices)
        kill = f" --kill {plan.kill}" if plan.kill is not None else ""
        return State(
            rig="schedule", workload=name, fault=f"kill {run.killed}" if run.killed else "none",
            outcome=outcome_of(verdict.happened, found), violations=found, redo=bool(verdict.redo), fs="tmpfs", seed=seed,
            reproduce=f"python -m crash run schedule --workload {name} --show {choices}{kill}",
            details={"results": run.results, "steps": len(run.steps), "recovery": verdict.redo,
                     "preemptions": sum(each.preempts for each in run.steps)},
        )

    def _judge(self) -> Verdict:
        self.scenario.mend(os.path.join(self._home, "store"))
        return examine(
            os.path.join(self._home, "store"), expect=read_ledger(os.path.join(self._home, "ledger")), trees=TREES,
            again=self.scenario.again, clock=still_clock,
        )
