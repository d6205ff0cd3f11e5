"""Fault points as a program passes them: listing them, and a SIGKILL at one of them, in forked children.

Every kill is proved: a child that did not die of SIGKILL raises ``FaultNotReachedError``, so that a rig which stops
injecting turns red instead of green.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from layerstore.system import faults
from layerstore.testing.children import ChildDiedError, run_child, telling


class FaultNotReachedError(AssertionError):
    """A fault that was armed did not happen: the test has shown nothing."""


@dataclass(frozen=True, slots=True)
class Passing:
    """One passing of a fault point: its name, ``before`` or ``after`` the effect, and the how-manyeth (from 1)."""

    point: str
    when: str
    nth: int

    def __str__(self) -> str:
        return f"{self.point}:{self.when}:{self.nth}"

    @classmethod
    def parse(cls, text: str) -> Passing:
        """The passing that ``str`` wrote. ValueError for anything else."""
        point, when, nth = text.split(":")
        if when not in ("before", "after"):
            raise ValueError(f"{text!r} is not POINT:before|after:NTH")
        return cls(point, when, int(nth))


def passings(fn: Callable[[], object]) -> list[Passing]:
    """List the fault points that a program passes.

    Args:
        fn: the program; it runs once, in a forked child, and must succeed.

    Returns:
        Every passing, in order, those of all its threads together (of child processes: none).

    Raises:
        AssertionError: *fn* failed without any fault.

    Durability: whatever *fn* does is done.

    """
    try:
        return telling(partial(passings_here, fn))
    except ChildDiedError as error:
        raise AssertionError(f"the program failed without any fault: {error}") from error


def passings_here(fn: Callable[[], object]) -> list[Passing]:
    """List the fault points that a program passes, without a child. Whatever was armed in this process is not any more.

    Args:
        fn: the program; it runs once.

    Returns:
        Every passing, in order, those of all its threads together (of child processes: none).

    Raises:
        Exception: whatever *fn* raised.

    Durability: whatever *fn* does is done.

    """
    seen: Counter[tuple[str, str]] = Counter()
    found: list[Passing] = []
    me = os.getpid()

    def hook(name: str, when: str) -> None:
        if os.getpid() == me:
            seen[name, when] += 1
            found.append(Passing(name, when, seen[name, when]))

    faults.install(hook)
    try:
        fn()
    finally:
        faults.install(None)
    return found


def kill_at(passing: Passing, fn: Callable[[], object]) -> None:
    """Run a program in a forked child, and kill it at one passing of a fault point.

    Args:
        passing: where; from ``passings`` of the same program on the same start.
        fn: the program.

    Raises:
        FaultNotReachedError: the child did not die of SIGKILL.

    Durability: what *fn* did up to there is done; nothing of its process is left.

    """
    remaining, victim = passing.nth, 0

    def hook(name: str, when: str) -> None:
        nonlocal remaining
        if (name, when) == (passing.point, passing.when) and os.getpid() == victim:
            remaining -= 1
            if remaining == 0:
                faults.perform("kill", name)

    def run() -> None:
        nonlocal victim
        victim = os.getpid()   # a process that the program forks is not the one to be killed
        fn()

    status = run_child(run, hook=hook)
    if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
        raise FaultNotReachedError(f"not killed at {passing}: wait status {status:#x}")


__all__ = ["FaultNotReachedError", "Passing", "kill_at", "passings", "passings_here"]
