"""SIGKILL at every fault point of every workload, of the recovery that follows, and (sampled) of the one after that.

Here: which workloads, to which depth, and outcomes as states. The killing is ``layerstore.testing``'s explorer. The
workloads that only this rig has are in ``wrecks`` (a recovery with everything to do at once, a store being created)
and ``mounts``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence

from crash import keeping, lost, parts, repairing, restoring
from crash.content import TREES
from crash.points import crossing, mounts, wrecks
from crash.state import State, outcome_of
from crash.workloads import Images, Workload, build
from layerstore.testing import CrashExplorer, Outcome, Passing, reopen

LEVELS = (1.0, 1.0, 0.02)
# their steps are those of others, or their recovery is long and does the same at each: it is sampled
COMPOSITE = {
    "everything": 0.1, "take": 0.1, "rebuild": 0.1, "rebuild-from": 0.1, "rebuild-log": 0.1, "repair": 0.05,
    "beneath": 0.1, "partial": 0.1, "repair-source": 0.02, "repair-parts": 0.02, "repair-rest": 0.1, "check": 0.1,
    "gc-segments": 0.1,
}
NOT_HERE = {"pair"}               # two processes: killed in ``crash.schedule``


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--levels", default=",".join(map(str, LEVELS)), help="the share of points to kill at, per level")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--show", help="one state: POINT:WHEN:NTH[/POINT:WHEN:NTH...]; name the --workload")


def workloads(directory: str) -> dict[str, Workload]:
    """All that this rig kills, by name. Their images are written to *directory*."""
    images = Images(directory)
    common = {name: each for name, each in build(images).items() if name not in NOT_HERE}
    made = common | wrecks.build() | lost.build(images) | repairing.build() | parts.build(directory)
    made |= restoring.build(directory) | keeping.build(images)
    return made | crossing.build(images, directory)


def states(options: argparse.Namespace) -> Iterator[State]:
    levels = tuple(float(each) for each in options.levels.split(","))
    every = workloads(os.path.join(options.work, "images"))
    for name in options.workload or [*every, mounts.NAME]:
        if name == mounts.NAME:
            yield from mounts.states(options, levels)
            continue
        work = os.path.join(options.work, name)
        os.mkdir(work)
        explorer = explorer_of(every[name], work)
        if options.show:
            path = [Passing.parse(each) for each in options.show.split("/")]
            yield state_of(name, explorer.show(path), options.seed)
            continue
        for outcome in explorer.explore(shares(name, levels), seed=options.seed, workers=options.workers):
            yield state_of(name, outcome, options.seed)


def explorer_of(workload: Workload, directory: str) -> CrashExplorer:
    def recover(root: str) -> None:
        workload.mend(root)
        reopen(root)

    return CrashExplorer(
        directory, workload.prepare, workload.run, recover=recover, again=workload.again, mend=workload.mend, trees=TREES,
    )


def shares(name: str, levels: Sequence[float]) -> tuple[float, ...]:
    return (levels[0], *(each * COMPOSITE.get(name, 1.0) for each in levels[1:]))


def state_of(name: str, outcome: Outcome, seed: int) -> State:
    verdict = outcome.verdict
    path = "/".join(map(str, outcome.killed_at))
    details: dict[str, object] = {"level": len(outcome.killed_at), "recovery": verdict.redo}
    if outcome.twin:
        details["twin"] = True
    return State(
        rig="points", workload=name, fault=f"kill {path}", outcome=outcome_of(verdict.happened, verdict.violations),
        violations=verdict.violations, redo=bool(verdict.redo), fs="tmpfs", seed=seed, details=details,
        reproduce=f"python -m crash run points --workload {name} --show {path}",
    )
