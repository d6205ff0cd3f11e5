"""Kill a command line at every system call that changes the store, from outside, by strace.

Nothing of ours runs in the killed process but the product: no fault point, no interposed library. A first run is
traced; then each of its mutating calls that touch the store gets a run of its own, which dies as it enters that call.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from crash import content
from crash.outside.runs import Run, build
from crash.state import State, filesystem, outcome_of
from crash.strace import Point, Trace, available, kill_at, points, trace
from crash.workers import in_order
from layerjournal import Replay
from layerstore.testing import Expectation, Ledger, Verdict, examine, read_ledger, run_child, telling

_SHOWN = 12   # calls and records in a timeline
ORDER = ("pull", "first-pull", "apply", "rm", "gc", "checkpoint", "recover")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--every", type=int, default=1, help="only each n-th call, the first drawn by the seed")
    parser.add_argument("--at", metavar="CALL:N", help="only the N-th call of this name, such as renameat2:2")


def states(options: argparse.Namespace) -> Iterator[State]:
    """A state per mutating call of each run (``--workload``), in order."""
    why_not = available()
    if why_not is not None:
        raise RuntimeError(f"the rig outside cannot run: {why_not}")
    left: int | None = options.states
    for name in options.workload or ORDER:
        rig = Rig.made(os.path.join(options.work, name), name)
        jobs = sample(rig.points(), getattr(options, "every", 1), options.seed)[:left]
        if getattr(options, "at", None):
            jobs = [point for point in rig.points() if str(point) == options.at]
            if not jobs:
                raise ValueError(f"{name} makes no call {options.at} that touches the store")
        left = None if left is None else left - len(jobs)
        yield from in_order(rig.state, jobs)
        rig.remove()
        if left == 0:
            return


def sample(every_point: list[Point], every: int, seed: int) -> list[Point]:
    """Each *every*-th of them; which comes first is drawn by *seed*."""
    return every_point[random.Random(seed).randrange(every)::every]


@dataclass
class Rig:
    """One run, ready to be killed: its store as it is before, its environment, where its scratch lies."""

    work: str
    run: Run
    extra: Mapping[str, str] = field(default_factory=dict)
    known: list[Point] = field(default_factory=list)

    @classmethod
    def made(cls, work: str, name: str, *, extra: Mapping[str, str] | None = None) -> Rig:
        """Prepare the run *name* in *work*. *extra*: environment of the killed program, for planted mistakes."""
        os.makedirs(work)
        rig = cls(work, build(work)[name], extra or {})
        ledger = Ledger.to_file(rig._path("start.ledger"))
        if os.waitstatus_to_exitcode(run_child(lambda: rig.run.prepare(rig._path("start"), ledger))) != 0:
            raise AssertionError(f"{name}: the store could not be prepared")
        rig._compile()
        return rig

    def environment(self) -> dict[str, str]:
        """What the order of calls could depend on, fixed. Byte code lies in a place of our own: whether others
        compile meanwhile must not change which call is the n-th.
        """
        return {
            "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "TZ": "UTC", "HOME": self.work, "PYTHONHASHSEED": "0",
            "PYTHONPYCACHEPREFIX": self._path("compiled"), "PYTHONDONTWRITEBYTECODE": "1", **self.extra,
        }

    def baseline(self) -> tuple[Trace, str]:
        """The run, traced to its end, and the store that it ran on."""
        root = self.store("baseline")
        traced = trace(self.run.command(sys.executable, root), self._path("baseline.trace"), env=self.environment())
        if traced.status != 0:
            raise AssertionError(f"{self.run.name} failed without any fault: {traced.stderr.decode()}")
        return traced, root

    def points(self) -> list[Point]:
        """Every mutating call that touches the store."""
        if not self.known:
            traced, root = self.baseline()
            self.known = points(traced, root)
            self._clear("baseline")
        return self.known

    def state(self, point: Point) -> State:
        """Kill the run as it enters the call; what became of the store."""
        name = str(point).replace(":", "-")
        root = self.store(name)
        command = self.run.command(sys.executable, root)
        killed = kill_at(point, command, self._path(f"{name}.trace"), root, env=self.environment())
        journal = telling(lambda: _records(root))   # before the oracle opens, and so recovers, the store
        verdict = self.judge(root, self._path(f"{name}.ledger"), told=killed.stdout.endswith(b"\n"))
        outcome = outcome_of(verdict.happened, verdict.violations)
        if not verdict.violations:
            self._clear(name)
        return State(
            "outside", self.run.name, str(point), outcome,
            violations=verdict.violations, redo=bool(verdict.redo), fs=filesystem(self.work),
            details={"place": _place(point), "timeline": self._timeline(point, journal, verdict, outcome)},
            reproduce=f"python -m crash run outside --workload {self.run.name} --at {point}",
        )

    def _timeline(self, point: Point, journal: list[str], verdict: Verdict, outcome: str) -> list[dict[str, str]]:
        """What led to the kill, what the journal held, what recovery decided."""
        before = [str(each.shape) for each in self.known[:self.known.index(point)][-_SHOWN:]] if point in self.known else []
        told = [
            *(("effect", each) for each in before), ("fault", f"SIGKILL on entering {point.shape}"),
            *(("journal", each) for each in journal[-_SHOWN:]),
            ("lost", "nothing: what was written before a kill stays written"),
            *(("recovery", each) for each in verdict.redo or ["nothing to do"]), ("verdict", outcome),
        ]
        return [{"kind": kind, "text": text} for kind, text in told]

    def judge(self, root: str, ledger: str, *, told: bool) -> Verdict:
        """The oracle's word on a store that the run was killed on."""
        with suppress(_NotToldError):
            if self.run.facts:
                with Ledger.to_file(ledger).asking(*self.run.facts):
                    if not told:
                        raise _NotToldError
        expect: Expectation = read_ledger(ledger)
        return telling(lambda: examine(root, expect=expect, trees=content.TREES, again=self.run.again))

    def remove(self) -> None:
        """Remove the scratch, but for stores in which something was found."""
        shutil.rmtree(self._path("compiled"))

    def _compile(self) -> None:
        root = self.store("warm")
        env = {k: v for k, v in self.environment().items() if k != "PYTHONDONTWRITEBYTECODE"}
        done = subprocess.run(self.run.command(sys.executable, root), env=env, capture_output=True, check=False)
        if done.returncode != 0:
            raise AssertionError(f"{self.run.name} failed without any fault: {done.stderr.decode()}")
        self._clear("warm")

    def _path(self, name: str) -> str:
        return os.path.join(self.work, name)

    def store(self, name: str) -> str:
        """A copy of the prepared store and its ledger, under *name*."""
        self._clear(name)
        if os.path.exists(self._path("start")):
            subprocess.run(["cp", "-a", "--", self._path("start"), self._path(name)], check=True)
        shutil.copyfile(self._path("start.ledger"), self._path(f"{name}.ledger"))
        return self._path(name)

    def _clear(self, name: str) -> None:
        shutil.rmtree(self._path(name), ignore_errors=True)
        for suffix in ("ledger", "trace"):
            with suppress(FileNotFoundError):
                os.unlink(self._path(f"{name}.{suffix}"))


def _records(root: str) -> list[str]:
    """The journal of the store, read offline."""
    if not os.path.exists(os.path.join(root, "journal", "data.mdb")):
        return []
    with Replay.open([root]) as replay:
        return [
            f"{each.seq} {each.entity[:20]} {each.trigger}: {each.from_state or '-'} → {each.to_state or '-'}"
            for each in replay.records()
        ]


def _place(point: Point) -> str:
    """The call by its name, and where in the store."""
    path = (re.findall(r"ROOT(/[^\s>\"]*)?", point.shape) or ["/"])[0]
    return f"{point.name} {'/'.join(path.split('/')[1:3]) or '.'}"


class _NotToldError(Exception):
    """The program died before it answered: what it was asked for is left open in the ledger."""
