"""Fault points armed in this process, for a while: a kill, an errno, a delay. And the same for a process to start.

    with raising("stage.sync", "EIO"), pytest.raises(layerstore.OutcomeUnknownError):
        store.pull("oci:./image")

Leaving the ``with`` proves that the fault happened: ``FaultNotReachedError`` if it did not. One fault is enough to
say what a crash does, but several may be armed, one within the other. Which points there are: ``passings``.
"""

from __future__ import annotations

import errno as errno_module
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from layerstore.system import faults
from layerstore.testing.passing import FaultNotReachedError


@dataclass(slots=True)
class Armed:
    """A fault that is armed. ``passed``: how often its point was passed; ``fired``: how often the fault happened."""

    point: str
    when: str
    passed: int = 0
    fired: int = 0


@contextmanager
def armed(
    point: str, action: Callable[[], object], *, when: str = "before", nth: int = 1, onward: bool = False,
) -> Iterator[Armed]:
    """Do something of your own at a fault point: what the others here are made of.

    Args:
        point: the fault point's name.
        action: called there, in the thread that passes it; what it raises, the effect raises.
        when: ``before`` the effect, which then does not happen if *action* raises, or ``after`` it.
        nth: at the how-manyeth passing (from 1).
        onward: at every later passing, too.

    Returns:
        A context; its value counts. Armed for all threads of this process, and for those it forks meanwhile.

    Raises:
        FaultNotReachedError: on leaving, if nothing else was raised and *action* was not called.
        ValueError: *when* or *nth* make no sense.

    Durability: none of its own.

    """
    if when not in ("before", "after") or nth < 1:
        raise ValueError(f"when={when!r}, nth={nth}: a fault is armed before or after a passing, counted from 1")
    state = Armed(point, when)

    def hook(name: str, moment: str) -> None:
        if (name, moment) == (point, when):
            state.passed += 1
            if state.passed == nth or (onward and state.passed > nth):
                state.fired += 1
                action()
        if outer is not None:
            outer(name, moment)

    outer = faults.install(None)
    faults.install(hook)
    try:
        yield state
    finally:
        faults.install(outer)
    if not state.fired:
        raise FaultNotReachedError(f"{point}:{when} was passed {state.passed} times; the fault was to be at the {nth}.")


@contextmanager
def raising(
    point: str, error: str | int | BaseException, *, when: str = "before", nth: int = 1, onward: bool = False,
) -> Iterator[Armed]:
    """Make an effect fail.

    Args:
        point: the fault point's name.
        error: an errno, its name (``"ENOSPC"``), or any exception to raise, such as ``KeyboardInterrupt()``.
        when: ``before``: the effect does not happen; ``after``: it does, and is said to have failed.
        nth: at the how-manyeth passing.
        onward: from there on, as a disk that is broken for good.

    Returns:
        A context; its value counts.

    Raises:
        FaultNotReachedError: on leaving, if the effect was never tried.
        ValueError: there is no such errno.

    Durability: none of its own.

    """
    number = error
    if isinstance(error, str):
        number = getattr(errno_module, error, 0)
    if number == 0 or isinstance(number, str):
        raise ValueError(f"there is no errno {error!r}")

    def fail() -> None:
        if isinstance(number, int):
            raise OSError(number, f"{os.strerror(number)} (injected at {point})")
        raise number

    with armed(point, fail, when=when, nth=nth, onward=onward) as state:
        yield state


@contextmanager
def killing(point: str, *, when: str = "before", nth: int = 1) -> Iterator[Armed]:
    """Kill *this* process (SIGKILL) at a fault point: for a child that was forked to die.

    Args:
        point: the fault point's name.
        when: ``before`` or ``after`` the effect.
        nth: at the how-manyeth passing.

    Returns:
        A context that is left only if the fault did not happen.

    Raises:
        FaultNotReachedError: on leaving.

    Durability: what was done before is done, to the page cache; ``kill -9`` does not lose it.

    """
    with armed(point, lambda: faults.perform("kill", point), when=when, nth=nth) as state:
        yield state


@contextmanager
def delaying(
    point: str, seconds: float, *, when: str = "before", nth: int = 1, onward: bool = False,
    sleep: Callable[[float], object] = time.sleep,
) -> Iterator[Armed]:
    """Hold an effect up, to see who waits for it and who must not.

    Args:
        point: the fault point's name.
        seconds: for how long.
        when: ``before`` or ``after`` the effect.
        nth: at the how-manyeth passing.
        onward: at every later passing, too.
        sleep: what waits; give your own to wait for an event rather than for time.

    Returns:
        A context; its value counts.

    Raises:
        FaultNotReachedError: on leaving, if nothing was delayed.

    Durability: none of its own.

    """
    with armed(point, lambda: sleep(seconds), when=when, nth=nth, onward=onward) as state:
        yield state


def environment(point: str, action: str, *, when: str = "before", nth: int = 1, onward: bool = False) -> dict[str, str]:
    """The environment variable that arms a fault in a process to be started; add it to ``os.environ``.

    Args:
        point: the fault point's name.
        action: ``kill``, ``stop``, ``delay=SECONDS`` or an errno's name.
        when: ``before`` or ``after`` the effect.
        nth: at the how-manyeth passing.
        onward: from there on.

    Returns:
        ``{"LAYERSTORE_FAULT": ...}``.

    Raises:
        ValueError: it makes no sense.

    Durability: none of its own. Nothing here proves that the fault happened: look at how the process ended.

    """
    spec = f"{point}:{when}:{action}:{nth}{'+' if onward else ''}"
    faults.parse(spec)
    return {"LAYERSTORE_FAULT": spec}


__all__ = ["Armed", "armed", "delaying", "environment", "killing", "raising"]
