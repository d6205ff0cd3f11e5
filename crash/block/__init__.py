"""Power loss at block level: any part of the unflushed writes lost, on real ext4, xfs and btrfs.

A workload runs on a file system on a disk of ours (``crash.disk``), which logs every write and flush, with the
ledger's lines between them. Crash states are made from that log (``planning``), mounted, and judged by the oracle.

* ``recording``  what was written, flushed and acknowledged, in order; kept in a file, so that a state can be shown again
* ``images``     the disk's content after a cut
* ``planning``   which cuts there are, and in which order they are looked at
* ``judging``    one cut: mounted, examined, checked
* ``jobs``       one recording and its states; the recording of a recovery, and its states
* ``more``       workloads of this rig alone
* ``plain``      the control: a program without layerstore
* ``workers``    processes that take jobs, each with mounts of its own
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from typing import Any

from crash import beside, keeping, lost, parts, repairing, restoring, workloads
from crash.block import images, more, plain, workers
from crash.block.jobs import Job, Settings
from crash.disk.filesystems import FILESYSTEMS
from crash.state import State
from crash.workloads import Workload

_MEMORY = "/dev/shm"
AT_MOST = 400   # states of one recording; then the workload is recorded anew, with other timing
USUAL = 80      # states of one recording where no number was asked for


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fs", action="append", choices=sorted(FILESYSTEMS), help="only these file systems")
    parser.add_argument("--each", type=int, help="states of each recording, before the next")
    parser.add_argument("--tear", type=int, choices=(512, 4096), default=4096, help="in what units writes are torn")
    parser.add_argument("--nested", type=int, default=1, help="recoveries of each recording that are cut, too")
    parser.add_argument("--fsck", type=int, default=20, help="run the file system's own checker on every n-th state")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--recording", help="a kept recording, instead of making some")
    parser.add_argument("--number", type=int, help="with --recording: only this state of it")


def states(options: argparse.Namespace) -> Iterator[State]:
    """The states that *options* ask for. Needs root, /dev/fuse and loop devices; raises without."""
    memory = _MEMORY if os.path.isdir(_MEMORY) else options.work
    with tempfile.TemporaryDirectory(prefix="crash-block-", dir=memory) as work:
        yield from _states(options, work)


def _states(options: argparse.Namespace, work: str) -> Iterator[State]:
    asked = vars(options)
    made = all_workloads(os.path.join(work, "images"))
    usual = [name for name in made if name not in more.BY_NAME]
    made[plain.NAME] = plain.WORKLOAD   # the control: only when asked for by name
    settings = Settings(
        work=work, workloads=made, seed=options.seed, unit=asked.get("tear") or images.BLOCK,
        fsck_every=asked.get("fsck") or 20, nested=asked.get("nested") or 0,
        keep=os.path.join(options.out, "recordings") if options.out else None,
        lie=bool(asked.get("lie")), plant=asked.get("plant"), plant_oracle=asked.get("plant_oracle"),
    )
    if asked.get("recording"):
        yield from workers.again(settings, options.recording, asked.get("number"), options.states)
        return
    jobs = [
        Job(fs, name) for name in options.workload or usual for fs in asked.get("fs") or FILESYSTEMS
        if options.workload or not (FILESYSTEMS[fs].one_writer and name in more.SEVERAL)
    ]
    yield from workers.run(jobs, settings, **_amounts(options, len(jobs)), workers=asked.get("workers") or 2)


def all_workloads(directory: str) -> dict[str, Workload]:
    """All that there are, by name; their images are written to *directory*."""
    pictures = workloads.Images(directory)
    others = repairing.build() | parts.build(directory) | restoring.build(directory) | keeping.build(pictures)
    others |= repairing.whole(pictures)
    others |= lost.telling(lost.build(pictures)) | beside.build(pictures, directory)
    return more.build(workloads.build(pictures) | others)


def _amounts(options: argparse.Namespace, jobs: int) -> dict[str, Any]:
    """States of each job, and how often the jobs are gone through."""
    each = vars(options).get("each")
    if options.states is None:
        return {"each": each or USUAL, "rounds": 1 if options.seconds is None else None}
    return {"each": each or min(-(-options.states // jobs), AT_MOST), "rounds": None}
