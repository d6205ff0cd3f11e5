"""What is done to a store while its device fails, and what the store said: its errors, and whether it then kept still."""

from __future__ import annotations

import faulthandler
from collections.abc import Callable
from dataclasses import dataclass, field

import layerstore
from crash.workloads import DOOMED_ID, FIRST_ID, ONE, SECOND_ID, TWO, Images, Workload, build, drop, pull, put
from layerstore.errors import HostError, LayerstoreError, OutcomeError, OutcomeUnknownError, PoisonedError
from layerstore.store import Store
from layerstore.system import faults
from layerstore.testing import Ledger

PRESS_ON = "press-on"


@dataclass
class Said:
    """``errors``: the classes of what came out, in order. ``problems``: what should not have been.

    ``poisoned``: the handle was poisoned, so what followed on it was seen to be refused.
    """

    errors: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    poisoned: bool = False

    def note(self, error: Exception) -> None:
        self.errors.append(type(error).__name__)
        if not isinstance(error, HostError | OutcomeError):
            self.problems.append(f"not the error of a failing device: {error!r}")


_said = Said()   # of this process, which is a child for one run


def run(workload: Workload, root: str, ledger: Ledger) -> Said:
    """Run *workload*, and say what came out. For a child of its own."""
    faulthandler.disable()   # a SIGBUS is foreseen, and needs no report
    try:
        workload.run(root, ledger)
    except Exception as error:
        _said.note(error)
    return _said


def press_on(images: Images) -> Workload:
    """Somebody who goes on with the same handle whatever it says: once it is poisoned, all must be refused."""
    made = build(images)

    def verbs(ledger: Ledger) -> list[Callable[[Store], object]]:
        return [
            lambda store: put(store, ledger, ONE, FIRST_ID),
            lambda store: drop(store, ledger, DOOMED_ID, "doomed"),
            lambda store: store.checkpoint(),
            lambda store: pull(store, ledger, images.first, "app"),
            lambda store: put(store, ledger, TWO, SECOND_ID),
            lambda store: store.checkpoint(),
        ]

    def pressing(root: str, ledger: Ledger) -> None:
        with layerstore.open(root) as store:
            watch = _Watch(store)
            faults.install(watch.passing)
            for verb in verbs(ledger):
                poisoned = watch.poisoned
                try:
                    verb(store)
                except LayerstoreError as error:
                    _said.note(error)
                    if poisoned and not isinstance(error, PoisonedError):
                        _said.problems.append(f"poisoned, and then {error!r}")
                else:
                    if poisoned:
                        _said.problems.append("a verb succeeded on a poisoned handle")
            faults.install(None)
            _said.poisoned = watch.poisoned

    return Workload(PRESS_ON, made["delete"].prepare, pressing, made["pull"].again)


class _Watch:
    """Sees that nothing is synced through a handle that is poisoned."""

    def __init__(self, store: Store) -> None:
        self._handle = store._handle

    @property
    def poisoned(self) -> bool:
        """By its own word, or by the error that only a poisoned handle may have given."""
        return self._handle.poison is not None or OutcomeUnknownError.__name__ in _said.errors

    def passing(self, point: str, when: str) -> None:
        if when == "before" and self.poisoned and (point.endswith(".sync") or point.startswith("txn.")):
            _said.problems.append(f"{point} was passed on a poisoned handle")
