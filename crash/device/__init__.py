"""A device that starts failing: EIO to a write or flush, once or from then on, under real file systems.

The workload must end with typed errors; a handle on which a sync failed must be poisoned, and never sync again. Then
the device is healed, the file system mounted anew, and the oracle compares the store with the ledger.

* ``doing``   what is done to the store while its device fails, and what it said
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from crash import content, workloads
from crash.device import doing
from crash.device.doing import PRESS_ON, Said
from crash.disk.crew import gather
from crash.disk.filesystems import FILESYSTEMS, Filesystem
from crash.disk.rig import Stand, standing
from crash.state import State, outcome_of
from crash.workloads import Workload
from layerstore.testing import ChildDiedError, FaultNotReachedError, Ledger, Verdict, examine, read_ledger, telling

_MEMORY = "/dev/shm"
USUAL = (PRESS_ON, "pull", "checkpoint")
_REAL = ("ext4", "xfs", "btrfs")
_STORE = "store"


@dataclass(frozen=True)
class Fault:
    """The *nth* ``write`` or ``flush`` fails; *sticky*: and all after it."""

    what: str
    nth: int
    sticky: bool

    def __str__(self) -> str:
        return f"{self.what} {self.nth} fails{' and all after it' if self.sticky else ''}"


@dataclass(frozen=True)
class Case:
    fs: Filesystem
    workload: Workload
    seed: int


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fs", action="append", choices=_REAL, help="only these file systems")
    parser.add_argument("--points", type=int, default=4, help="of each kind, so many calls to fail, evenly spread")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--fail", choices=("write", "flush"), help="only this, with --nth")
    parser.add_argument("--nth", type=int)
    parser.add_argument("--sticky", action="store_true")


def states(options: argparse.Namespace) -> Iterator[State]:
    """The states that *options* ask for. Needs root, /dev/fuse and loop devices; raises without."""
    asked = vars(options)
    memory = _MEMORY if os.path.isdir(_MEMORY) else options.work
    with tempfile.TemporaryDirectory(prefix="crash-device-", dir=memory) as work:
        images = workloads.Images(os.path.join(work, "images"))
        made = workloads.build(images) | {PRESS_ON: doing.press_on(images)}
        cases = [
            Case(FILESYSTEMS[fs], made[name], options.seed)
            for name in options.workload or USUAL for fs in asked.get("fs") or _REAL
        ]
        only = Fault(asked["fail"], asked["nth"], bool(asked.get("sticky"))) if asked.get("fail") else None
        points = _points(options, len(cases))
        workers = min(asked.get("workers") or 2, len(cases))

        def working(share: int) -> Callable[[str], Iterator[State]]:
            def run(directory: str) -> Iterator[State]:
                for case in cases[share::workers]:
                    faults = [only] if only else spread(case, points, directory)
                    for fault in faults:
                        yield failing(case, fault, directory)
            return run

        yield from gather([working(share) for share in range(workers)], work)


def _points(options: argparse.Namespace, cases: int) -> int:
    return -(-options.states // (cases * 4)) if options.states else vars(options).get("points") or 4


def spread(case: Case, points: int, work: str) -> list[Fault]:
    """Counted on a run that nothing disturbs: of its writes and flushes some, the first and the last among them."""
    with standing(case.fs, work) as stand:
        before = _prepared(case, stand, Ledger(lambda _line: None))
        said = telling(lambda: doing.run(case.workload, _root(stand), Ledger(lambda _line: None)))
        counts = {what: n - before[what] for what, n in stand.disk.counts().items()}
    if said.errors:
        raise AssertionError(f"{case.workload.name} on {case.fs.name} fails without a fault: {said.errors}")
    return [
        Fault(what, nth, sticky)
        for what in ("write", "flush") for sticky in (False, True)
        for nth in _evenly(counts["writes" if what == "write" else "flushes"], points, case.seed)
    ]


def _evenly(count: int, points: int, seed: int) -> list[int]:
    """At most *points* numbers of 1 … *count*; another seed begins elsewhere."""
    step = max(1, count // points)
    return [1 + (n + seed - 1) % count for n in range(0, count, step)][:points]


def _root(stand: Stand) -> str:
    return os.path.join(stand.directory, _STORE)


def _prepared(case: Case, stand: Stand, ledger: Ledger) -> dict[str, int]:
    """Prepare the store in a child; the disk's counts after it."""
    telling(lambda: case.workload.prepare(_root(stand), ledger))
    return stand.disk.counts()


def failing(case: Case, fault: Fault, work: str) -> State:
    """One run on a device that fails, and what is there once it is healed. FaultNotReachedError if nothing failed."""
    lines = os.path.join(work, "ledger")
    with standing(case.fs, work) as stand:
        _prepared(case, stand, Ledger.to_file(lines))
        stand.disk.fail(fault.what, fault.nth, sticky=fault.sticky)
        try:
            said = telling(lambda: doing.run(case.workload, _root(stand), Ledger.to_file(lines)))
        except ChildDiedError as died:
            said = _of_the_dead(died, stand.directory)
        stand.unmount()
        failed = stand.disk.counts()["failed"]
        stand.disk.heal()
        if not failed:
            raise FaultNotReachedError(f"{case.workload.name} on {case.fs.name}: {fault}: it was never asked for")
        stand.loop.forget_cache()
        stand.mount()
        verdict = _verdict(case, _root(stand), lines)
    os.unlink(lines)
    return _state(case, fault, failed, said, verdict)


def _of_the_dead(died: ChildDiedError, directory: str) -> Said:
    """A file system that has shut itself down refuses every page fault for writing, and one hits whoever shares a
    mapping: LMDB's lock file is one. No error can be raised then: the process dies of SIGBUS, which is a kill like any
    other, and what a kill leaves is what the oracle judges. Nothing else may kill it.
    """
    if os.WIFSIGNALED(died.status) and os.WTERMSIG(died.status) == signal.SIGBUS and _is_shut_down(directory):
        return Said(errors=["SIGBUS"])
    return Said(problems=[f"the program died: {died}"])


def _is_shut_down(directory: str) -> bool:
    path = os.path.join(directory, "try")
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        os.unlink(path)
    except OSError:
        return True
    return False


def _verdict(case: Case, root: str, lines: str) -> Verdict:
    expect = read_ledger(lines)
    try:
        return telling(lambda: examine(
            root, content=False, expect=expect, trees=content.TREES, again=case.workload.again,
        ))
    except ChildDiedError as died:
        return Verdict(violations=[f"the oracle died: {died}"])


def _state(case: Case, fault: Fault, failed: int, said: Said, verdict: Verdict) -> State:
    found = said.problems + verdict.violations
    name, fs = case.workload.name, case.fs.name
    return State(
        rig="device", workload=name, fs=fs, seed=case.seed, fault=str(fault), violations=found, redo=bool(verdict.redo),
        outcome="error" if said.errors and not found else outcome_of(verdict.happened, found),
        reproduce=f"python -m crash run device --fs {fs} --workload {name} --seed {case.seed} --fail {fault.what} "
                  f"--nth {fault.nth}{' --sticky' if fault.sticky else ''}",
        details={"failed": failed, "errors": said.errors, "poisoned": said.poisoned},
    )
