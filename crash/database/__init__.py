"""A database that is damaged: bits, bytes, sectors, pages and lengths of ``data.mdb`` and of archived segments.

A store with an archive and work of all kinds after it is copied, one of these files in the copy is damaged while nobody
has it open, and then it is opened, used and checked. No process may die; whatever was changed is refused or found, or
has no effect. What is not sound is rebuilt, and the oracle looks: every layer and image is there, nothing deleted is
back. Not here: damage to layers' trees, and crashes.

* ``damage``   what is done to a file
* ``judging``  what must be true afterwards
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

from crash import lost
from crash.database.judging import DATABASE, Judgement, Truth, judge, truth
from crash.shim.scene import draw
from crash.state import State, filesystem
from crash.workers import in_order
from crash.workloads import Images, Workload
from layerstore.testing import Ledger, copy_store, run_child, telling
from layerstore.testing.corruption.bytewise import Damage, damage

TARGETS = ("database", "segment", "both")
_TURN = ("database", "database", "database", "segment", "both")
_USUAL = 3000


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", choices=TARGETS, help="only this; 'both': a segment, and the database is lost")
    parser.add_argument("--only", type=int, help="the one state of this number (and --seed)")
    parser.add_argument("--workers", type=int, default=2)


def states(options: argparse.Namespace) -> Iterator[State]:
    """A state per damage, without end but for ``--states`` (else 3 000)."""
    scratch = "/dev/shm" if options.work is None and os.path.isdir("/dev/shm") else options.work
    with Bench.made(scratch, options.seed, getattr(options, "target", None)) as bench:
        numbers: Iterator[int] = islice(count(), options.states or _USUAL)
        if getattr(options, "only", None) is not None:
            numbers = iter([options.only])
        yield from in_order(bench.state, numbers, workers=getattr(options, "workers", 2))


@dataclass
class Bench:
    """A sound store, what is true of it, and where its damaged copies go."""

    work: str
    seed: int
    target: str | None
    workload: Workload
    wanted: Truth
    segments: tuple[str, ...]

    @classmethod
    def made(cls, scratch: str | None, seed: int, target: str | None) -> Bench:
        work = tempfile.mkdtemp(prefix="database-", dir=scratch)
        try:
            images = Images(os.path.join(work, "images"))
            start, ledger = os.path.join(work, "start", "store"), os.path.join(work, "ledger")
            os.mkdir(os.path.dirname(start))

            def prepare() -> None:
                draw("prepare", pid=4141)   # the same store in every run: a number means the same bytes
                lost.work(images, start, Ledger.to_file(ledger))

            if run_child(prepare) != 0:
                raise AssertionError("the store could not be prepared")
            wanted = telling(lambda: truth(start, ledger))
            segments = tuple(sorted(os.listdir(os.path.join(start, "journal", "segments"))))
            return cls(work, seed, target, lost.build(images)["rebuild"], wanted, segments)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_exc: object) -> None:
        shutil.rmtree(self.work, ignore_errors=True)

    def state(self, number: int) -> State:
        """Make the damage *number*, and judge it."""
        target = self.target or _TURN[number % len(_TURN)]
        root = os.path.join(self.work, f"damaged-{number}", "store")
        os.mkdir(os.path.dirname(root))
        copy_store(os.path.join(self.work, "start", "store"), root)
        try:
            done = self.hit(root, target, number)
            judged = judge(root, self.wanted, self.workload, segment=target == "segment")
        finally:
            shutil.rmtree(os.path.dirname(root), ignore_errors=True)
        return self._told(target, number, done, judged)

    def hit(self, root: str, target: str, number: int) -> Damage:
        """Damage the *target* in the store *root*."""
        if target == "database":
            return self._hit(os.path.join(root, DATABASE), number)
        if target == "both":
            os.unlink(os.path.join(root, DATABASE))
        name = self.segments[number // len(_TURN) % len(self.segments)]
        return self._hit(os.path.join(root, "journal", "segments", name), number)

    def _hit(self, path: str, number: int) -> Damage:
        with open(path, "rb") as file:
            found = damage(file.read(), self.seed, number)
        found.apply(path)
        return found

    def _told(self, target: str, number: int, done: Damage, judged: Judgement) -> State:
        outcome = "violation" if judged.violations else "error" if judged.noticed else "kept"
        only = f" --target {self.target}" if self.target else ""
        return State(
            "database", "rebuild", f"{target}: {done.what}", outcome, violations=judged.violations,
            redo=bool(judged.rebuilt), fs=filesystem(self.work), seed=self.seed,
            reproduce=f"python -m crash run database --seed {self.seed}{only} --only {number}",
            details={"noticed": judged.noticed, "rebuilt": judged.rebuilt, "target": target},
        )
