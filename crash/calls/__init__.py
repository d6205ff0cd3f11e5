"""Every durable call killed: SIGKILL before it, half of a write and then SIGKILL, a short write; LMDB's calls included.

For each workload of one process, for each call that changes the disk (``Calls.DURABLE``), numbered by an undisturbed
run: a child makes exactly that call its last, and the oracle looks at what is left. A short write must not be an
end: the product completes it, or raises a typed error whose word the ledger takes. After a sample of the kills the
recovery that follows is killed at each of its own calls, and must converge to what it would have come to.

Not here: ``pair``, whose two processes have no common order of calls (``points`` schedules them); failing calls
(``failing``); calls that go around the libc (``outside`` counts them from outside).
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from crash import beside, keeping, lost, parts, repairing, restoring
from crash.calls.converging import timeless
from crash.shim import Calls, Fault, Met, Shim, stream
from crash.shim.scene import End, NotLandedError, Scene, must_land, place
from crash.shim.spread import drawn, in_turn, spread
from crash.state import State, outcome_of
from crash.workloads import Images, Workload, build
from layerstore.testing.oracle import Verdict

FAULTS = {"kill": Fault.KILL, "tear": Fault.TEAR, "short": Fault.SHORT}
ONE_PROCESS = (
    "pull", "apply", "batch", "delete", "image-delete", "checkpoint", "gc", "adopt", "resume", "take", "partial",
    "everything", "rebuild", "rebuild-log", "repair", repairing.WHOLE, "quota", *restoring.NAMES, *keeping.NAMES,
)


@dataclass(frozen=True, slots=True)
class Task:
    """One first fault; with *recovery*, all the kills of the recovery after it (*second*: only that one)."""

    fault: str
    met: Met
    recovery: bool = False
    second: int | None = None

    def __str__(self) -> str:
        return f"{self.fault}:{self.met.nth}"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--faults", default="kill,tear,short", help="which of kill, tear, short")
    parser.add_argument("--every", type=int, default=1, help="take only every n-th first fault (which: by the seed)")
    parser.add_argument("--recovery-every", type=int, default=8, help="kill recovery after every n-th kill; 0: never")
    parser.add_argument("--only", help="one state: kill:37, short:12, or kill:37/kill:5 for the recovery after it")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sabotage", help="a planted mistake, module:function, called first")


def states(options: argparse.Namespace) -> Iterator[State]:
    return stream("crash.calls", options)


def preloaded(options: argparse.Namespace) -> Iterator[State]:
    """The rig itself, in a process that has the shim loaded."""
    shim = Shim()
    work = tempfile.mkdtemp(prefix="calls-", dir="/dev/shm" if os.path.isdir("/dev/shm") else options.work)
    try:
        images = Images(os.path.join(work, "images"))
        workloads = build(images) | lost.telling(lost.build(images)) | repairing.build() | repairing.whole(images)
        here = os.path.join(work, "images")
        workloads |= beside.build(images, here) | parts.build(here, in_order=True)
        workloads |= restoring.build(here) | keeping.build(images)
        yield from in_turn([
            partial(_explore, workloads[name], os.path.join(work, name), shim, options)
            for name in options.workload or ONE_PROCESS if name in ONE_PROCESS
        ], options)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _explore(workload: Workload, directory: str, shim: Shim, options: argparse.Namespace) -> Iterator[State]:
    scene = Scene(workload, directory, shim)
    found = drawn(tasks(scene.rehearse(Calls.DURABLE), options), options)
    yield from spread(found, partial(_worker, scene, options), options.workers)


def tasks(calls: Sequence[Met], options: argparse.Namespace) -> list[Task]:
    """What is to be done to a run that makes *calls*."""
    wanted = options.faults.split(",")
    all_ = [
        Task(fault, met) for met in calls for fault in FAULTS
        if fault in wanted and (fault == "kill" or met.op in ("write", "copy"))
    ]
    if options.only:
        first, _, second = options.only.partition("/")
        chosen = [each for each in all_ if str(each) == first]
        if not second:
            return chosen
        return [Task(each.fault, each.met, recovery=True, second=int(second.split(":")[1])) for each in chosen]
    chosen = all_[options.seed % options.every::options.every]
    nested = [each for each in chosen if each.fault == "kill"]
    step = options.recovery_every
    return chosen + [
        Task(each.fault, each.met, recovery=True) for each in (nested[options.seed % step::step] if step else ())
    ]


def _worker(scene: Scene, options: argparse.Namespace, number: int, mine: Sequence[Task]) -> Iterator[State]:
    own = scene.mine(number)
    again = _reproducer(scene, options)
    for task in mine:
        if task.recovery:
            yield from _recoveries(own, task, again)
        else:
            yield _one(own, task, again)


def _reproducer(scene: Scene, options: argparse.Namespace) -> str:
    planted = f" --sabotage {options.sabotage}" if getattr(options, "sabotage", None) else ""
    return f"python -m crash run calls --workload {scene.workload.name}{planted} --only "


def hit(scene: Scene, task: Task) -> End:
    """The first fault, from a fresh store; NotLandedError unless it happened at that very call."""
    scene.fresh()
    end = scene.run(Calls.DURABLE, FAULTS[task.fault], task.met.nth)
    must_land(end, task.met, FAULTS[task.fault])
    return end


def _one(scene: Scene, task: Task, again: str) -> State:
    end = hit(scene, task)
    verdict = scene.look()
    return _state(scene, f"{task.fault} {place(task.met)}", [*end.wrong, *verdict.violations], verdict,
                  end=end, reproduce=f"{again}{task}", details={"call": task.met.nth})


def _recoveries(scene: Scene, task: Task, again: str) -> Iterator[State]:
    """Kill the recovery after *task* at each of its calls; each must converge to what the undisturbed one comes to."""
    hit(scene, task)
    scene.keep()
    undisturbed = scene.look()
    calls = scene.rehearse(Calls.DURABLE, fn=scene.reopen, source=scene.crashed)
    for met in calls:
        if task.second is not None and met.nth != task.second:
            continue
        scene.fresh(scene.crashed)
        end = scene.run(Calls.DURABLE, Fault.KILL, met.nth, fn=scene.reopen, phase="recovery")
        must_land(end, met, Fault.KILL)
        verdict = scene.look()
        wrong = list(verdict.violations)
        if timeless(verdict.dump) != timeless(undisturbed.dump):
            wrong.append("recovery, killed and begun again, came to another catalog")
        yield _state(scene, f"{task.fault} {place(task.met)}, recovery {place(met)}", wrong, verdict,
                     end=end, reproduce=f"{again}{task}/kill:{met.nth}",
                     details={"call": task.met.nth, "recovery_call": met.nth})


def _state(
    scene: Scene, fault: str, wrong: list[str], verdict: Verdict, *, end: End, reproduce: str, details: dict[str, object],
) -> State:
    outcome = outcome_of(verdict.happened, wrong)
    if end.error:
        details["error"] = end.error
        outcome = outcome if wrong else "error"
    return State(
        rig="calls", workload=scene.workload.name, fault=fault, outcome=outcome, violations=wrong,
        redo=bool(verdict.redo), fs="tmpfs", reproduce=reproduce, details=details,
    )


__all__ = ["ONE_PROCESS", "NotLandedError", "arguments", "preloaded", "states", "tasks"]
