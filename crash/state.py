"""One explored crash state, and many: the line of JSON that a rig writes, its floors, and its summary.

Every rig yields ``State``s; ``collect`` writes them down, counts them and stops at the limits it was given. The report
reads nothing but these lines, so what is not in them was not shown.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class State:
    """One crash state and what became of it.

    ``fault`` names what was done, ``outcome`` is one of ``committed``, ``rolled-back``, ``kept`` (nothing was open),
    ``error`` (a typed error, as it should) or ``violation``. ``redo``: whether recovery had anything to do.
    ``reproduce`` is a command that shows the same state again. ``details`` are the rig's own.
    """

    rig: str
    workload: str
    fault: str
    outcome: str
    violations: list[str] = field(default_factory=list)
    redo: bool = False
    fs: str = ""
    seed: int | None = None
    reproduce: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        return json.dumps({k: v for k, v in asdict(self).items() if v not in ("", None, [], {})}, sort_keys=True)


def outcome_of(happened: bool | None, violations: list[str]) -> str:
    """The outcome's word, from the oracle's verdict."""
    if violations:
        return "violation"
    return {True: "committed", False: "rolled-back", None: "kept"}[happened]


def filesystem(path: str) -> str:
    """The name of the file system that *path* lies on."""
    found = subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=True).stdout.strip()
    return {"ext2/ext3": "ext4"}.get(found, found)


def commit() -> str:
    """Which commit is run, and whether anything differs from it."""
    described = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return described.stdout.strip()


def read(path: str) -> Iterator[State]:
    """The states in a file of lines."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield State(**json.loads(line))


@dataclass
class Tally:
    """What a run of a rig came to."""

    states: int = 0
    redo: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    by_fs: Counter[str] = field(default_factory=Counter)
    by_workload: Counter[str] = field(default_factory=Counter)
    bad: list[State] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, state: State) -> None:
        self.states += 1
        self.redo += state.redo
        self.outcomes[state.outcome] += 1
        self.by_fs[state.fs] += 1
        self.by_workload[state.workload] += 1
        if state.violations:
            self.bad.append(state)

    def __str__(self) -> str:
        parts = ", ".join(f"{n} {what}" for what, n in sorted(self.outcomes.items()))
        share = self.redo / self.states if self.states else 0
        return f"{self.states} states in {self.seconds:.0f} s ({parts}); redo in {share:.0%}; {len(self.bad)} violations"


def collect(
    states: Iterable[State], *, path: str | None = None, limit: int | None = None, seconds: float | None = None,
) -> Tally:
    """Take states until there are no more, *limit* of them, or *seconds* have passed; append lines to *path*."""
    tally, start = Tally(), time.monotonic()
    file = open(path, "a", encoding="utf-8") if path else None  # noqa: SIM115 - closed below
    try:
        for state in states:
            tally.add(state)
            if file is not None:
                file.write(state.line() + "\n")
            if tally.states == limit or (seconds is not None and time.monotonic() - start > seconds):
                break
    finally:
        if file is not None:
            file.close()
    tally.seconds = time.monotonic() - start
    return tally
