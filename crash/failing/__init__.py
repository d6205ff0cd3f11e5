"""Every call made to fail, once and from there on: EIO, ENOSPC, EDQUOT, EROFS, EMFILE; reads with EIO. And what fills up.

For each workload of one process, for each call beneath the store, numbered by an undisturbed run. The verb raises a
typed error, whose word the ledger takes; the process neither dies nor hangs, and has nothing left open; after EIO on
a sync the handle is poisoned and syncs no more. When the fault is gone the same process opens the store again, the
oracle looks, and the workload once more succeeds.

The scenarios beside it have modules of their own: ``full`` (a disk that is really full), ``growing`` (LMDB's map is
full, or is grown by another process), ``readers`` (a reader that was killed). Not here: kills (``calls``).
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial

from crash import keeping, lost, parts, repairing, restoring
from crash.failing import calls, full, growing, readers
from crash.shim import Shim, stream
from crash.shim.spread import in_turn
from crash.state import State
from crash.workloads import Images, build

SCENARIOS = {"growing": growing.states, "readers": readers.states, "full": full.states}   # beside the calls
ONE_PROCESS = (
    "pull", "apply", "batch", "delete", "image-delete", "checkpoint", "gc", "adopt", "resume", "take", "partial",
    "everything", "rebuild", "rebuild-log", "repair", repairing.WHOLE, *restoring.NAMES, *keeping.NAMES,
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scenario", default=",".join((*SCENARIOS, "calls")), help="which of them, by comma")
    parser.add_argument("--each", default="all", choices=["all", "one"],
                        help="at each call all errnos, once and from there on; or one that is drawn by the seed")
    parser.add_argument("--every", type=int, default=1, help="take only every n-th call (which: by the seed)")
    parser.add_argument("--ops", help="only these operations, by comma: syncfs, write, open, read ...")
    parser.add_argument("--only", help="one state: EIO:once:37, EIO:on:37 or EIO:read:5")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sabotage", help="a planted mistake, module:function, called first")


def states(options: argparse.Namespace) -> Iterator[State]:
    for name in options.scenario.split(","):
        yield from stream("crash.failing", options) if name == "calls" else SCENARIOS[name](options)


def preloaded(options: argparse.Namespace) -> Iterator[State]:
    """The failing calls, in a process that has the shim loaded."""
    shim = Shim()
    work = tempfile.mkdtemp(prefix="failing-", dir="/dev/shm" if os.path.isdir("/dev/shm") else options.work)
    try:
        images = Images(os.path.join(work, "images"))
        here = os.path.join(work, "images")
        workloads = build(images) | lost.build(images) | repairing.build() | parts.build(here, in_order=True)
        workloads |= restoring.build(here) | keeping.build(images) | repairing.whole(images)
        yield from in_turn([
            partial(calls.explore_workload, workloads[name], os.path.join(work, name), shim, options)
            for name in options.workload or ONE_PROCESS if name in ONE_PROCESS
        ], options)
    finally:
        shutil.rmtree(work, ignore_errors=True)
