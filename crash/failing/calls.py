"""One call after the other made to fail by its number; what must hold of the process and of the store afterwards.

Here only what the shim makes fail. What is really full, grows or lingers is in the modules beside it.
"""

from __future__ import annotations

import argparse
import errno
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import layerstore
from crash.shim import Calls, Fault, Met, Shim
from crash.shim.scene import End, Scene, must_land, place
from crash.shim.spread import drawn, spread
from crash.state import State, outcome_of
from crash.workloads import Workload
from layerstore.opening.handle import Handle

ERRNOS = ("EIO", "ENOSPC", "EDQUOT", "EROFS", "EMFILE")
TYPED = {
    "EIO": "IoError", "ENOSPC": "NoSpaceError", "EDQUOT": "NoSpaceError", "EROFS": "ReadOnlyError", "EMFILE": "BusyError",
}
OUTCOMES = ("PendingError", "OutcomeUnknownError", "PoisonedError")
SYNCS = ("fsync", "fdatasync", "syncfs")
NOT_READS = Calls.ALL & ~Calls.READ


@dataclass(frozen=True, slots=True)
class Task:
    """``how``: once, on (from there on), or read (a read, once)."""

    errno: str
    how: str
    met: Met

    def __str__(self) -> str:
        return f"{self.errno}:{self.how}:{self.met.nth}"

    @property
    def armed(self) -> tuple[Calls, Fault, int, int]:
        return (
            Calls.READ if self.how == "read" else NOT_READS, Fault.FAIL_ON if self.how == "on" else Fault.FAIL_ONCE,
            self.met.nth, int(getattr(errno, self.errno)),
        )


def explore_workload(workload: Workload, directory: str, shim: Shim, options: argparse.Namespace) -> Iterator[State]:
    scene = Scene(workload, directory, shim)
    found = drawn(tasks(scene.rehearse(NOT_READS), scene.rehearse(Calls.READ), options), options)
    yield from spread(found, partial(_worker, scene, options), options.workers)


def tasks(calls: Sequence[Met], reads: Sequence[Met], options: argparse.Namespace) -> list[Task]:
    """What is to be done to a run that makes *calls* and *reads*."""
    draw = random.Random(options.seed)
    found = []
    wanted = options.ops.split(",") if options.ops else []
    for met in calls:
        if wanted and met.op not in wanted:
            continue
        each = [Task(name, how, met) for name in ERRNOS for how in ("once", "on")]
        found += each if options.each == "all" or options.only else [draw.choice(each)]
    found += [Task("EIO", "read", met) for met in reads if not wanted or met.op in wanted]
    if options.only:
        return [task for task in found if str(task) == options.only]
    return [task for task in found if (task.met.nth + options.seed) % options.every == 0]


def _worker(scene: Scene, options: argparse.Namespace, number: int, mine: Sequence[Task]) -> Iterator[State]:
    own = scene.mine(number)
    planted = f" --sabotage {options.sabotage}" if getattr(options, "sabotage", None) else ""
    again = f"python -m crash run failing --scenario calls --workload {scene.workload.name}{planted} --only "
    for task in mine:
        yield one(own, task, again)


def one(scene: Scene, task: Task, again: str) -> State:
    """One failing call, from a fresh store on."""
    scene.fresh()
    end = scene.run(*task.armed, trace=True, then=partial(_reopened, scene, watch_poison()))
    must_land(end, task.met, task.armed[1])
    wrong = [*end.wrong, *misnamed(end, task), *retried(end, task, handle=scene.workload.handle)]
    verdict = scene.look()
    wrong += verdict.violations
    outcome = "error" if end.error and not wrong else outcome_of(verdict.happened, wrong)
    return State(
        rig="failing", workload=scene.workload.name, fault=f"{task.errno} {task.how} {place(task.met)}", outcome=outcome,
        violations=wrong, redo=bool(end.notes.get("redo")), fs="tmpfs", reproduce=f"{again}{task}",
        details={"call": task.met.nth, "error": end.error, "times": end.times},
    )


def watch_poison() -> list[str]:
    """The poison of every handle that is closed from now on, in this process and its children (each its own list)."""
    found: list[str] = []
    close = getattr(Handle.close, "__wrapped__", Handle.close)

    def noting(self: Handle) -> None:
        if self.poison is not None and not self.closed:
            found.append(self.poison)
        close(self)

    noting.__wrapped__ = close  # type: ignore[attr-defined]
    Handle.close = noting  # type: ignore[method-assign]
    return found


def _reopened(scene: Scene, poisons: list[str], notes: dict[str, Any]) -> list[str]:
    """The fault is gone: this very process opens the store again."""
    notes["poison"] = list(poisons)
    try:
        scene.workload.mend(scene.store)
        with layerstore.open(scene.store) as store:
            notes["redo"] = len(store.recovery.actions)
    except Exception as error:
        return [f"the same process cannot open the store again: {error!r}"]
    return []


def misnamed(end: End, task: Task) -> list[str]:
    """An error of a class that says something else than what happened."""
    if end.error in ("", TYPED[task.errno], *OUTCOMES):
        return []
    return [f"{task.errno} came out as {end.error}"]


def retried(end: End, task: Task, *, handle: bool) -> list[str]:
    """After EIO on a sync: the *handle* is poisoned, if there is one, and nothing is synced by it any more.

    The verb itself may succeed: where it had done what it was asked for, and failed to tidy up.
    """
    if task.errno != "EIO" or task.met.op not in SYNCS or end.wrong:
        return []
    found = [] if end.notes.get("poison") or not handle else ["a sync failed, and no handle was poisoned"]
    found += [
        f"after a failed {task.met.op} there was {later.op} of {place(later)} (call {later.nth})"
        for later in end.calls if later.nth > task.met.nth and later.op in SYNCS
    ]
    return found
