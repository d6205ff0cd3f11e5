"""The pytest plugin: ``pytest_plugins = "layerstore.testing.plugin"`` in a test module or the top ``conftest.py``.

Fixtures only, no markers, no options. The one module that imports pytest; nothing imports it but pytest. It is not
registered as an entry point: every run of pytest in the environment would import layerstore, wanted or not.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from layerstore.testing.explore import CrashExplorer

_RAM = "/dev/shm"  # noqa: S108 - a directory of our own is made in it, and removed


@pytest.fixture
def crash_explorer() -> Iterator[Callable[..., CrashExplorer]]:
    """Make crash explorers: ``crash_explorer(prepare, run, again=...)`` is a ``CrashExplorer`` with a directory.

    Returns:
        A function that takes what ``CrashExplorer`` takes, but for the directory: that is one of its own, on the RAM
        disk if there is one, removed at the end.

    Raises:
        AssertionError: at the end of the test, if an explorer that it made explored nothing. A crash test without a
            crash state must not pass.

    Durability: nothing is left.

    """
    made: list[CrashExplorer] = []
    with tempfile.TemporaryDirectory(prefix="layerstore-crash-", dir=_RAM if os.path.isdir(_RAM) else None) as directory:
        def make(*args: Any, **options: Any) -> CrashExplorer:
            own = os.path.join(directory, str(len(made)))
            os.mkdir(own)
            made.append(CrashExplorer(own, *args, **options))
            return made[-1]

        yield make
    idle = [each for each in made if each.explored == 0]
    if idle:
        raise AssertionError(f"{len(idle)} crash explorers were made, and explored no crash state")


@pytest.fixture
def crash_states(crash_explorer: Callable[..., CrashExplorer], record_property: Callable[[str, object], None]) -> (
    Callable[..., int]
):
    """Assert that a program survives every crash: ``crash_states(prepare, run, again=..., levels=(1.0, 1.0))``.

    Returns:
        A function that takes what ``crash_explorer`` and ``CrashExplorer.explore`` take together, explores, and
        returns how many states it explored; the number is recorded as the property ``states`` of the test.

    Raises:
        AssertionError: with the first state that violates anything, and where it was killed.

    Durability: nothing is left.

    """
    explored = 0

    def explore(*args: Any, levels: tuple[float, ...] = (1.0,), seed: int = 1, workers: int = 1, **options: Any) -> int:
        nonlocal explored
        explorer = crash_explorer(*args, **options)
        for outcome in explorer.explore(levels, seed=seed, workers=workers):
            assert not outcome.violations, str(outcome)
        explored += explorer.explored
        record_property("states", explored)
        return explorer.explored

    return explore
