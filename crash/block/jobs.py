"""One job: record a workload on a file system, then judge so many of its crash states; and, nested, of its recovery's."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import layerstore
from crash.block import images, plain
from crash.block.judging import CLOCK_NS, Bench, Judgement, looking
from crash.block.planning import Cut, Plan
from crash.block.recording import About, Recording, Tape, record
from crash.block.story import story
from crash.state import State, outcome_of
from crash.workloads import Workload

_DRY = 300          # so many duplicates in a row: the recording has no more states to offer
_FSCK_EVERY = 20    # the file system's own checker takes longer than all the rest of a state
_TOLD_EVERY = 100   # a timeline is a few times as long as the rest of a state's line
_AGAIN_EVERY = 4    # so does doing the workload's work again


@dataclass(frozen=True)
class Settings:
    """What holds for all jobs of a run. ``keep``: where recordings go (None: only those of violations are kept).

    ``plant`` is run in the recorded child and ``plant_oracle`` in the oracle's, before anything else: planted mistakes.
    """

    work: str
    workloads: dict[str, Workload]
    seed: int
    unit: int = images.BLOCK
    fsck_every: int = _FSCK_EVERY
    nested: int = 0
    keep: str | None = None
    lie: bool = False
    plant: Callable[[], None] | None = None
    plant_oracle: Callable[[], None] | None = None


@dataclass(frozen=True)
class Job:
    fs: str
    workload: str
    round: int = 0


def run(job: Job, settings: Settings, states: int, work: str) -> Iterator[State]:
    """So many different crash states of one recording (fewer if there are not so many)."""
    recording = recorded(job, settings, work)
    series = Series(recording, settings, work)
    redone: list[tuple[Cut, Judgement]] = []
    for cut, state, judgement in series.states(states):
        yield state
        if judgement.redo and not judgement.violations:
            redone.append((cut, judgement))
    random.Random(recording.about.seed).shuffle(redone)
    redone.sort(key=lambda each: -len({action.split()[0] for action in each[1].redo}))   # the busiest recoveries first
    for number, (cut, _judgement) in enumerate(redone[:settings.nested]):
        yield from series.recovery(cut, number, max(1, states // 2))


def recorded(job: Job, settings: Settings, work: str) -> Recording:
    """The workload, run on a fresh file system."""
    workload = settings.workloads[job.workload]

    def doing(root: str, tape: Tape) -> None:
        if settings.plant is not None:
            settings.plant()
        if settings.unit < images.BLOCK:
            plain.wear(os.path.dirname(root))
        workload.prepare(root, tape.ledger)
        tape.begin()
        workload.run(root, tape.ledger)

    return record(About(job.fs, job.workload, settings.seed + job.round), work, doing, lie=settings.lie)


class Series:
    """The states of one recording, judged one after the other."""

    def __init__(self, recording: Recording, settings: Settings, work: str) -> None:
        self.recording, self.settings, self._work = recording, settings, work
        self.about = about = recording.about
        self.workload = settings.workloads[about.workload]
        self.plan = Plan(recording, seed=about.seed, unit=settings.unit)
        self._bench = Bench(work, recording.fs)
        self._saved = self._save(settings.keep) if settings.keep else None

    def states(self, limit: int) -> Iterator[tuple[Cut, State, Judgement]]:
        for number, cut in enumerate(self.different(limit)):
            judgement = self.judge(cut, number)
            yield cut, self.state(cut, number, judgement), judgement

    def different(self, limit: int) -> Iterator[Cut]:
        """The first cuts of the plan that differ: in the image, or in what was acknowledged."""
        seen: set[tuple[int, int]] = set()
        dry = 0
        for cut in self.plan.cuts():
            identity = images.key(self.plan.image(cut), self.plan.base), len(self.plan.ledger(cut.position))
            if identity in seen:
                dry += 1
                if dry > _DRY:
                    return
                continue
            dry = 0
            seen.add(identity)
            yield cut
            if len(seen) == limit:
                return

    def judge(self, cut: Cut, number: int) -> Judgement:
        look = looking(self.workload, self.plan.ledger(cut.position), again=number % _AGAIN_EVERY == 0)

        def planted(root: str) -> Any:
            if self.settings.plant_oracle is not None:
                self.settings.plant_oracle()
            return look(root)

        found = self._bench.judge(self.plan.image(cut), planted, check=number % self.settings.fsck_every == 0)
        if self.about.dump and found.dump != self.about.dump and not found.violations:
            found.violations.append("a crash inside recovery came to another catalog than recovery without it")
        return found

    def state(self, cut: Cut, number: int, found: Judgement) -> State:
        apart = self.settings.unit < images.BLOCK and bool(found.unmountable)   # told apart, not a violation
        outcome = "error" if apart else outcome_of(found.happened, found.violations)
        details: dict[str, Any] = {"kind": cut.kind, "step": cut.step, "number": number, "redo": found.redo[:8]}
        details |= {"recording": self.about.label} if self.about.label else {}
        details |= {"fsck": found.fsck} if found.fsck else {}
        details |= {"unmountable": found.unmountable} if found.unmountable else {}
        if found.violations or number % _TOLD_EVERY == 0:
            details["timeline"] = story(self.plan, cut, found.redo or ["nothing to do"], outcome)
        return State(
            rig="block", workload=self.about.workload, fs=self.about.fs, seed=self.about.seed,
            fault=f"{self.about.label or 'power loss'}: {cut.kind} after {cut.step or 'the beginning'}",
            outcome=outcome, violations=[] if apart else found.violations, redo=bool(found.redo),
            reproduce=self._reproduce(number, kept=outcome == "violation"), details=details,
        )

    def _reproduce(self, number: int, *, kept: bool) -> str:
        if kept and self._saved is None:
            self._saved = self._save(tempfile.mkdtemp(prefix="layerstore-crash-"))
        tear = f" --tear {self.settings.unit}" if self.settings.unit < images.BLOCK else ""
        if self._saved is not None:
            return f"python -m crash run block --recording {self._saved} --number {number}{tear}"
        about = self.about
        return f"python -m crash run block --fs {about.fs} --workload {about.workload} --seed {about.seed}{tear}"

    def _save(self, directory: str) -> str:
        os.makedirs(directory, exist_ok=True)
        about = self.about
        name = f"{about.fs}.{about.workload}.{about.seed}{about.label and '.'}{about.label.replace(' ', '-')}"
        path, number = os.path.join(directory, f"{name}.recording"), 1
        while os.path.exists(path):   # of an earlier run, whose states still point to it
            path, number = os.path.join(directory, f"{name}.{number}.recording"), number + 1
        self.recording.save(path)
        return path

    # -- power loss during recovery ---------------------------------------------------------------------------------

    def recovery(self, cut: Cut, number: int, states: int) -> Iterator[State]:
        """Record the recovery of the state *cut* itself, and cut its power."""
        lines = self.plan.ledger(cut.position)
        reference = self._reference(cut, lines)
        about = replace(self.about, label=f"recovery {number}", dump=reference.dump)

        def recovering(root: str, tape: Tape) -> None:
            for line in lines:
                tape.line(line)
            tape.begin()
            self.workload.mend(root)
            with layerstore.open(root, clock=lambda: CLOCK_NS):
                pass

        work = os.path.join(self._work, "nested")
        image = self.plan.image(cut)
        try:
            recording = record(about, work, recovering, fill=lambda fd: images.put(image, fd), must_flush=False)
            series = Series(recording, replace(self.settings, nested=0), work)
            for _cut, state, _found in series.states(states):
                yield state
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _reference(self, cut: Cut, lines: list[bytes]) -> Judgement:
        """What the recovery of this state comes to when nothing disturbs it."""
        found = self._bench.judge(self.plan.image(cut), looking(self.workload, lines, again=False), check=False)
        if found.violations:
            raise AssertionError(f"sound before, and now not: {found.violations}")
        return found
