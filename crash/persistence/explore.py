"""Crash states of recorded scenes, each written to a directory and given to the oracle, by several workers.

A *scene* is one recording with what is needed to judge it. Every worker goes through the same sequence of states and
takes its share, so what is explored depends on the seed and on nothing else.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import layerstore
from crash.beside import apart
from crash.content import TREES
from crash.persistence.choose import Choice, Chooser
from crash.persistence.history import History, Sync, read_calls_as
from crash.persistence.image import Image, Node, read
from crash.persistence.recording import IGNORED, Recorder, record
from crash.shim import Call
from crash.state import State, outcome_of
from layerstore.testing.children import ChildDiedError, in_workers, telling
from layerstore.testing.explore import still_clock
from layerstore.testing.ledger import expectation
from layerstore.testing.oracle import Verdict, examine

_GIVE_UP = 3000     # so many drawn states in a row that were seen before


@dataclass
class Scene:
    """``again``: what a user does on the recovered store; ``mend``: an operator, before it is opened; ``look``: what others
    see before that. ``ignore``: syncs that are taken to have no effect.
    """

    name: str
    history: History
    again: Callable[[Any], object] | None = None
    start: int = 0
    ignore: Callable[[Sync], bool] = lambda _sync: False
    store: str = "store"
    mend: Callable[[str], object] = lambda _root: None
    look: Callable[[str, list[bytes]], list[str]] = lambda _root, _ledger: []
    chooser: Chooser = field(init=False)

    def __post_init__(self) -> None:
        self.chooser = Chooser(self.history, self.history.durable(self.ignore), start=self.start)

    def image(self, choice: Choice) -> Image:
        return Image(self.history, choice.cut, *self.chooser.persisted(choice))

    def ledger(self, choice: Choice) -> list[bytes]:
        return self.history.ledger(choice.cut)


@contextmanager
def scratch(prefix: str) -> Iterator[str]:
    """A directory for stores, in memory if there is such a place: nothing here rests on a file system."""
    directory = tempfile.mkdtemp(prefix=prefix, dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    try:
        yield directory
    finally:
        remove(directory)


def remove(directory: str) -> None:
    """Remove a tree, directories of mode 0 included; somebody else may be at it. Nothing above it is touched."""
    for top, names, _ in os.walk(directory):
        for name in names:
            path = os.path.join(top, name)
            with suppress(FileNotFoundError):
                if not os.path.islink(path):
                    os.chmod(path, 0o700)
    shutil.rmtree(directory, ignore_errors=True)


def order(
    scenes: Sequence[Scene], seed: int, *, draw: bool, wanted: Callable[[Scene, Choice], bool] = lambda _s, _c: True,
) -> Iterator[tuple[Scene, Choice]]:
    """Representatives of all scenes in turn, then (*draw*) states at random; none twice. Ends when nothing is new."""
    seen: set[tuple[str, int, bytes]] = set()
    queues = [(scene, iter(scene.chooser.representatives(seed))) for scene in scenes]
    stale = 0
    while queues:
        for pair in list(queues):
            scene, queue = pair
            choice = next(queue, None)
            if choice is None:
                queues.remove(pair)
                continue
            stale += 1
            if stale > _GIVE_UP:
                return
            if not wanted(scene, choice):
                continue
            key = (scene.name, len(scene.history.ledger(choice.cut)), scene.image(choice).digest())
            if key not in seen:
                seen.add(key)
                stale = 0
                yield scene, choice
        if not queues and draw:
            queues, draw = [(scene, scene.chooser.drawn(seed)) for scene in scenes], False


@contextmanager
def materialised(image: Image, work: str) -> Iterator[str]:
    """A directory that holds *image*, and is removed afterwards."""
    directory = tempfile.mkdtemp(dir=work)
    try:
        image.write(directory)
        yield directory
    finally:
        remove(directory)


def judge(scene: Scene, image: Image, ledger: list[bytes], work: str) -> Verdict:
    """What the oracle, and who looks at it from outside, say of the store in *image*."""
    with materialised(image, work) as directory:
        root = os.path.join(directory, scene.store)

        def look() -> Verdict:
            seen = scene.look(root, ledger)
            scene.mend(root)
            expect, _ = apart(expectation(ledger))
            verdict = examine(root, expect=expect, trees=TREES, again=scene.again, clock=still_clock)
            verdict.violations[:0] = seen
            return verdict

        try:
            return telling(look)
        except ChildDiedError as error:
            return Verdict([f"the oracle died: {error}"])


def state(scene: Scene, choice: Choice, work: str, *, rig: str, reproduce: str) -> tuple[State, Verdict]:
    """One crash state, judged."""
    verdict = judge(scene, scene.image(choice), scene.ledger(choice), work)
    return State(
        rig, scene.name, f"{scene.chooser.step(choice.cut)} {choice.form}",
        outcome_of(verdict.happened, verdict.violations), verdict.violations, bool(verdict.redo), fs="posix",
        reproduce=reproduce, details={"state": str(choice), "pending": len(scene.chooser.pending(choice.cut))},
    ), verdict


def recovery_scene(scene: Scene, choice: Choice, work: str) -> Scene:
    """The recovery of a crash state, recorded: itself a scene, in which the power is lost again."""
    with materialised(scene.image(choice), work) as directory, tempfile.NamedTemporaryFile(dir=work) as log:
        base = read(directory, ignored=IGNORED)
        root = os.path.join(directory, scene.store)

        def program(_recorder: Recorder) -> None:     # another process draws other names
            scene.mend(root)
            layerstore.open(root, clock=still_clock).close()

        calls = record(directory, log.name, program, seed=-1 - choice.cut)
        history = read_calls_as(calls, directory, base)
        return Scene(scene.name, history, scene.again, store=scene.store, mend=scene.mend, look=scene.look)


def scene_of(
    name: str, program: Callable[[str, Recorder], object], again: Callable[[Any], object] | None, work: str, *,
    seed: int = 1, **others: Any,
) -> Scene:
    """Record ``program(store, recorder)``, which begins without a store. It is cut from its mark ``run`` on.

    What it did before the mark and left pending is pending still. The recording stays in *work* as ``<name>.calls``.
    *others*: ``mend`` and ``look`` of the scene.
    """
    watched = tempfile.mkdtemp(dir=work)
    log = os.path.join(work, f"{name}.calls")
    try:
        calls = record(watched, log, lambda recorder: program(os.path.join(watched, "store"), recorder), seed=seed)
    finally:
        remove(watched)
    return scene_from(name, calls, again, **others)


def scene_from(name: str, calls: Sequence[Call], again: Callable[[Any], object] | None, **others: Any) -> Scene:
    """The scene of a recording that began with an empty directory."""
    history = read_calls_as(calls, calls[0].path.removeprefix("watched "), {0: Node("dir", 0o700, 0, 0)})
    return Scene(name, history, again, start=history.after_mark("run"), **others)


def spread(share: Callable[[int, int], Iterator[State]], workers: int) -> Iterator[State]:
    """``share(index, workers)`` in forked workers, one state of each in turn."""
    return in_workers([partial(share, index, workers) for index in range(workers)])


__all__ = ["Scene", "judge", "materialised", "order", "recovery_scene", "remove", "scene_from", "scene_of", "scratch",
           "spread", "state"]
