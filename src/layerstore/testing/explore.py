"""Fault points passed by a scenario, and a SIGKILL at each of them, in forked children.

Every kill is proved: a child that did not die of SIGKILL raises ``FaultNotReachedError``, so that a rig which stops
injecting turns red instead of green.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from layerstore import faults
from layerstore.testing.children import run_child
from layerstore.testing.oracle import violations

Scenario = Callable[[str], object]


class FaultNotReachedError(AssertionError):
    """The child was to die at a fault point, and did not."""


@dataclass(frozen=True, slots=True)
class Passing:
    """One passing of a fault point: its name, ``before`` or ``after`` the effect, and the how-manyeth (from 1)."""

    point: str
    when: str
    nth: int

    def __str__(self) -> str:
        return f"{self.point}:{self.when}:{self.nth}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One crash state: where it was killed (and, nested, where its recovery was), and what the oracle found."""

    killed_at: tuple[Passing, ...]
    violations: tuple[str, ...]
    root: str


def passings(fn: Callable[[], object]) -> list[Passing]:
    """Every fault point that *fn* passes, in order, from a run in a child that must succeed."""
    read_fd, write_fd = os.pipe()

    def record(name: str, when: str) -> None:
        os.write(write_fd, json.dumps([name, when]).encode() + b"\n")

    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.close(read_fd)
        os._exit(0 if os.waitstatus_to_exitcode(run_child(fn, hook=record)) == 0 else 1)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as pipe:
        lines = pipe.read().splitlines()
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0:
        raise AssertionError("the scenario failed without any fault")
    seen: Counter[tuple[str, str]] = Counter()
    result = []
    for line in lines:
        name, when = json.loads(line)
        seen[name, when] += 1
        result.append(Passing(name, when, seen[name, when]))
    return result


def kill_at(passing: Passing, fn: Callable[[], object]) -> None:
    """Run *fn* in a child and kill it there. FaultNotReachedError unless it died of SIGKILL."""
    remaining = passing.nth

    def hook(name: str, when: str) -> None:
        nonlocal remaining
        if (name, when) == (passing.point, passing.when):
            remaining -= 1
            if remaining == 0:
                faults.perform("kill", name)

    status = run_child(fn, hook=hook)
    if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
        raise FaultNotReachedError(f"not killed at {passing}: wait status {status:#x}")


def explore(
    prepare: Scenario, scenario: Scenario, workdir: str, *, recovery: Scenario | None = None,
    only: Callable[[Passing], bool] = lambda _p: True, every: int = 1,
    judge: Callable[[str], Sequence[str]] = violations,
) -> Iterator[Outcome]:
    """Kill *scenario* at each fault point it passes; with *recovery*, then kill that at each of its own, too.

    *prepare(root)* makes the store to start from, once; each run works on a copy. *judge(root)* is the oracle: it
    opens the store and returns what is wrong. *every* takes only each n-th point (a sample). The trees of sound
    outcomes are removed; those of violations are left in *workdir* to look at.
    """
    start = os.path.join(workdir, "start")
    if os.waitstatus_to_exitcode(run_child(lambda: prepare(start))) != 0:
        raise AssertionError("prepare failed")
    fresh = os.path.join(workdir, "fresh")
    _copy(start, fresh)
    points = [p for p in passings(lambda: scenario(fresh)) if only(p)][::every]
    shutil.rmtree(fresh)
    for number, passing in enumerate(points):
        root = os.path.join(workdir, f"kill-{number}")
        _copy(start, root)
        kill_at(passing, lambda root=root: scenario(root))  # type: ignore[misc]
        if recovery is not None:
            yield from _nested(passing, recovery, root, judge)
        yield _outcome((passing,), root, judge)


def _nested(
    first: Passing, recovery: Scenario, crashed: str, judge: Callable[[str], Sequence[str]],
) -> Iterator[Outcome]:
    trial = f"{crashed}-recovered"
    _copy(crashed, trial)
    points = passings(lambda: recovery(trial))
    shutil.rmtree(trial)
    for number, second in enumerate(points):
        root = f"{crashed}-{number}"
        _copy(crashed, root)
        kill_at(second, lambda root=root: recovery(root))  # type: ignore[misc]
        yield _outcome((first, second), root, judge)


def _outcome(killed_at: tuple[Passing, ...], root: str, judge: Callable[[str], Sequence[str]]) -> Outcome:
    found = tuple(judge(root))
    if not found:
        shutil.rmtree(root)
    return Outcome(killed_at, found, root)


def _copy(source: str, target: str) -> None:
    """A copy that keeps what matters to a store: links, times, modes, xattrs, device nodes."""
    status = os.spawnvp(os.P_WAIT, "cp", ["cp", "-a", "--", source, target])  # noqa: S606 - no shell on purpose
    if status != 0:
        raise OSError(f"cp -a {source} {target} failed with {status}")
