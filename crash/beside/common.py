"""What the workloads beside the store have in common: where they write, what the ledger says of it, a kill meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping

import layerstore
from crash.content import Picture
from crash.workloads import pull, settle
from layerstore.system import faults
from layerstore.testing import Ledger, run_child
from layerstore.testing.ledger import Expectation, Value, expectation
from layerstore.testing.oracle import compare

__all__ = ["apart", "beside", "compared", "killed", "pulled", "told"]

_PREFIX = "beside:"


def apart(expect: Expectation) -> tuple[Expectation, Expectation]:
    """What is expected of the store, and what of the things beside it."""
    def part(beside: bool) -> Expectation:
        return Expectation(
            {subject: each for subject, each in expect.allowed.items() if subject.startswith(_PREFIX) is beside},
            {number: mine for number, facts in expect.open.items()
             if (mine := {s: v for s, v in facts.items() if s.startswith(_PREFIX) is beside})},
            expect.answered,
        )

    return part(beside=False), part(beside=True)


def beside(root: str, name: str) -> str:
    return os.path.join(os.path.dirname(root), name)


def told(name: str, value: Value) -> dict[str, Value]:
    return {f"{_PREFIX}{name}": value}


def pulled(one: Picture, two: Picture, root: str, ledger: Ledger) -> None:
    with layerstore.open(root) as store:
        pull(store, ledger, one, "one")
        pull(store, ledger, two, "two")
    settle(root)   # what the power is cut of is what is made of them


def killed(fault: str, do: Callable[[], object]) -> None:
    """Do it in a child that dies there; what the recording notes at fault points it notes of the child, too."""
    noting, dying = faults.install(None), faults.parse(fault)
    faults.install(noting)

    def hook(point: str, when: str) -> None:
        if noting is not None:
            noting(point, when)
        dying(point, when)

    status = run_child(do, hook=hook)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, f"not killed at {fault}: {status:#x}"


def compared(what: str, facts: Callable[[], Mapping[str, Value]], lines: list[bytes]) -> list[str]:
    try:
        return compare(facts(), apart(expectation(lines))[1])
    except Exception as error:   # whatever the reader stumbles over
        return [f"{what} is broken: {error!r}"]
