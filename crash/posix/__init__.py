"""Power loss at file level: each workload recorded, and what strict POSIX leaves of it at every point, judged.

What is written beside the store, views and pushed images, is read as another tool would, before the store is opened.

Needs no root and no device. See ``crash/persistence`` for the model. One state in ``EVERY`` is recovered once more
with the recovery recorded, and the power is lost within that: it must converge to the same catalog.

    python -m crash run posix --states 3000
    python -m crash run posix --workload pull --state 312:drop:97          (one state again)
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice

from crash import beside, keeping, lost, parts, repairing, restoring, workloads
from crash.persistence import explore
from crash.persistence.choose import Choice, parse
from crash.persistence.explore import Scene, order, recovery_scene, scene_from, scratch, spread, state
from crash.persistence.recording import Recorder, load
from crash.posix.mistakes import MISTAKES, check
from crash.shim import build, stream
from crash.state import State
from crash.workloads import Images, Workload

EVERY, INNER = 20, 5    # one state in 20 has 5 states of its recovery explored


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--state", help="only this one: CUT:FORM:ARGUMENT, from its line")
    parser.add_argument("--then", help="and in its recovery, this one")
    parser.add_argument("--mistake", choices=sorted(MISTAKES), help="with this mistake planted in the store")
    parser.add_argument("--recording", help="of a recording that was kept, rather than of a new one")


def states(options: argparse.Namespace) -> Iterator[State]:
    with scratch("posix-") as place:
        yield from stream("crash.posix", argparse.Namespace(**{**vars(options), "work": place}))


def preloaded(options: argparse.Namespace) -> Iterator[State]:
    scenes = record_all(options.work, options)
    if options.state:
        yield _one(scenes, options, options.work)
        return
    found = spread(lambda index, workers: _share(scenes, options, options.work, index, workers), options.workers)
    yield from islice(found, options.states)


def all_workloads(work: str) -> dict[str, Workload]:
    """All that there are; the creation of a store (the others begin to be cut when that is done) is one of its own."""
    here = os.path.join(work, "images")
    images = Images(here)
    made = workloads.build(images) | repairing.build() | parts.build(here) | beside.build(images, here)
    made |= restoring.build(here) | keeping.build(images) | repairing.whole(images)
    create = Workload("create", lambda _root, _ledger: None, made["pull"].prepare, lambda _store: None)
    rebuilding = lost.telling(lost.build(images))
    del rebuilding["rebuild-from"]       # after a loss of power nobody goes by the snapshot again
    return {"create": create, **made, **rebuilding, **lost.deleted(images)}


def record_all(work: str, options: argparse.Namespace) -> list[Scene]:
    """A scene of each workload that was asked for."""
    known = all_workloads(work)
    mistake = options.mistake
    chosen = options.workload or ([MISTAKES[mistake].workload] if mistake else list(known))
    return [scene_of(known[name], work, options) for name in chosen]


def scene_of(workload: Workload, work: str, options: argparse.Namespace) -> Scene:
    """Record *workload* (or take the recording that was kept)."""
    mistake = options.mistake
    if options.recording:
        return scene_from(workload.name, load(options.recording), workload.again, mend=workload.mend, look=workload.look)

    def program(root: str, recorder: Recorder) -> None:
        if mistake:
            MISTAKES[mistake].plant()
        workload.prepare(root, recorder.ledger)
        recorder.mark("run")
        workload.run(root, recorder.ledger)

    scene = explore.scene_of(
        workload.name, program, workload.again, work, seed=options.seed, mend=workload.mend, look=workload.look)
    if options.out:
        shutil.copy(_log(work, workload.name), _kept(workload.name, options))
    if mistake:
        check(mistake, scene.history)
    return scene


def _log(work: str, name: str) -> str:
    return os.path.join(work, f"{name}.calls")


def _kept(name: str, options: argparse.Namespace) -> str:
    return os.path.abspath(os.path.join(options.out or os.path.dirname(build()), f"posix-{name}.calls"))


def _share(scenes: list[Scene], options: argparse.Namespace, work: str, index: int, workers: int) -> Iterator[State]:
    own = tempfile.mkdtemp(dir=work)
    draw = options.states is not None or options.seconds is not None
    for number, (scene, choice) in enumerate(order(scenes, options.seed, draw=draw)):
        if number % workers != index:
            continue
        found, verdict = state(scene, choice, own, rig="posix", reproduce=_again(scene, choice, options))
        yield _keeping(found, options, work)
        if (number // workers) % EVERY == 0 and not found.violations and verdict.redo:
            yield from _inner(scene, choice, verdict.dump, options, work, own)


def _inner(
    scene: Scene, choice: Choice, dump: bytes, options: argparse.Namespace, work: str, own: str,
) -> Iterator[State]:
    """Power loss during the recovery of a state: it converges to what the recovery alone came to."""
    recovery = recovery_scene(scene, choice, own)
    for number, (_, inner) in enumerate(order([recovery], options.seed, draw=False)):
        if number == INNER:
            return
        yield _keeping(_nested(scene, choice, recovery, inner, dump, options, own), options, work)


def _nested(
    scene: Scene, choice: Choice, recovery: Scene, inner: Choice, dump: bytes, options: argparse.Namespace, own: str,
) -> State:
    recovery.ledger = lambda _inner: scene.ledger(choice)  # type: ignore[method-assign]
    again = f"{_again(scene, choice, options)} --then {inner}"
    found, verdict = state(recovery, inner, own, rig="posix", reproduce=again)
    found.fault = f"{scene.chooser.step(choice.cut)} {choice.form}, then {found.fault}"
    found.details |= {"first": str(choice)}
    if verdict.dump != dump and not found.violations:
        found.violations.append("a power loss in recovery does not converge to the same catalog")
        found.outcome = "violation"
    return found


def _again(scene: Scene, choice: Choice, options: argparse.Namespace) -> str:
    kept = options.recording or (_kept(scene.name, options) if options.out else None)
    source = f"--recording {kept}" if kept else f"--seed {options.seed}"
    source += f" --mistake {options.mistake}" if options.mistake else ""
    return f"{sys.executable} -m crash run posix --workload {scene.name} {source} --state {choice}"


def _keeping(found: State, options: argparse.Namespace, work: str) -> State:
    """Keep the recording of a violation: two processes do not do everything in the same order again."""
    if found.violations and not options.recording and not options.out:
        kept = _kept(found.workload, options)
        shutil.copy(_log(work, found.workload), kept)
        found.reproduce = found.reproduce.replace(f"--seed {options.seed}", f"--recording {kept}")
    return found


def _one(scenes: list[Scene], options: argparse.Namespace, work: str) -> State:
    scene, choice = scenes[0], parse(options.state)
    found, verdict = state(scene, choice, work, rig="posix", reproduce=_again(scene, choice, options))
    if not options.then:
        return found
    recovery = recovery_scene(scene, choice, work)
    return _nested(scene, choice, recovery, parse(options.then), verdict.dump, options, work)
