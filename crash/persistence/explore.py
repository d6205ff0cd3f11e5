"""Crash states of recorded scenes, each written to a directory and given to the oracle, by several workers.

A *scene* is one recording with what is needed to judge it. Every worker goes through the same sequence of states and
takes its share, so what is explored depends on the seed and on nothing else.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import layerstore
from crash.content import TREES
from crash.persistence.choose import Choice, Chooser
from crash.persistence.history import History, Sync, read_calls_as
from crash.persistence.image import Image, read
from crash.persistence.recording import IGNORED, record
from crash.state import State, outcome_of
from layerstore.testing.children import ChildDiedError, telling
from layerstore.testing.ledger import Expectation, expectation
from layerstore.testing.oracle import Verdict, examine

_PR_SET_PDEATHSIG = 1
_GIVE_UP = 3000     # so many drawn states in a row that were seen before


@dataclass
class Scene:
    """``again``: what a user does on the recovered store. ``ignore``: syncs that are taken to have no effect."""

    name: str
    history: History
    again: Callable[[Any], object] | None = None
    start: int = 0
    ignore: Callable[[Sync], bool] = lambda _sync: False
    store: str = "store"
    chooser: Chooser = field(init=False)

    def __post_init__(self) -> None:
        self.chooser = Chooser(self.history, self.history.durable(self.ignore), start=self.start)

    def image(self, choice: Choice) -> Image:
        return Image(self.history, choice.cut, *self.chooser.persisted(choice))

    def expect(self, choice: Choice) -> Expectation:
        return expectation(self.history.ledger(choice.cut))


@contextmanager
def scratch(prefix: str) -> Iterator[str]:
    """A directory for stores, in memory if there is such a place: nothing here rests on a file system."""
    directory = tempfile.mkdtemp(prefix=prefix, dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    try:
        yield directory
    finally:
        remove(directory)


def remove(directory: str) -> None:
    """Remove a tree, directories of mode 0 included; somebody else may be at it."""
    shutil.rmtree(directory, onerror=_open_up)


def order(scenes: Sequence[Scene], seed: int, *, draw: bool) -> Iterator[tuple[Scene, Choice]]:
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
            key = (scene.name, len(scene.history.ledger(choice.cut)), scene.image(choice).digest())
            stale = stale + 1 if key in seen else 0
            if key not in seen:
                seen.add(key)
                yield scene, choice
            if stale > _GIVE_UP:
                return
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


def _open_up(function: Callable[..., object], path: str, _info: object) -> None:
    with suppress(FileNotFoundError, NotADirectoryError):
        os.chmod(os.path.dirname(path), 0o700)
        if function is not os.unlink:
            os.chmod(path, 0o700)
        if function in (os.unlink, os.rmdir):
            function(path)


def judge(scene: Scene, image: Image, expect: Expectation, work: str) -> Verdict:
    """What the oracle says of the store in *image*."""
    with materialised(image, work) as directory:
        root = os.path.join(directory, scene.store)
        try:
            return telling(lambda: examine(root, expect=expect, trees=TREES, again=scene.again, clock=_clock))
        except ChildDiedError as error:
            return Verdict([f"the oracle died: {error}"])


def state(scene: Scene, choice: Choice, work: str, *, rig: str, reproduce: str) -> tuple[State, Verdict]:
    """One crash state, judged."""
    verdict = judge(scene, scene.image(choice), scene.expect(choice), work)
    return State(
        rig, scene.name, f"{scene.chooser.step(choice.cut)} {choice.form}",
        outcome_of(verdict.happened, verdict.violations), verdict.violations, bool(verdict.redo), fs="posix",
        reproduce=reproduce, details={"state": str(choice), "pending": len(scene.chooser.pending(choice.cut))},
    ), verdict


def _clock() -> int:
    """Every recovery takes place at one moment, so that what two of them come to can be compared."""
    return 1_800_000_000_000_000_000


def _recover(root: str) -> None:
    layerstore.open(root, clock=_clock).close()


def recovery_scene(scene: Scene, choice: Choice, work: str) -> Scene:
    """The recovery of a crash state, recorded: itself a scene, in which the power is lost again."""
    with materialised(scene.image(choice), work) as directory, tempfile.NamedTemporaryFile(dir=work) as log:
        base = read(directory, ignored=IGNORED)
        calls = record(directory, log.name, lambda _r: _recover(os.path.join(directory, scene.store)))
        return Scene(scene.name, read_calls_as(calls, directory, base), scene.again, store=scene.store)


def spread(share: Callable[[int, int], Iterator[State]], workers: int) -> Iterator[State]:
    """``share(index, workers)`` in forked workers, one state of each in turn."""
    if workers == 1:
        yield from share(0, 1)
        return
    pipes: list[tuple[int, Any]] = []
    for index in range(workers):
        pipes.append(_worker(share, index, workers, [pipe for _, pipe in pipes]))
    try:
        live = list(pipes)
        while live:
            for pair in list(live):
                told = pickle.load(pair[1])
                if told is None:
                    live.remove(pair)
                elif isinstance(told, str):
                    raise RuntimeError(f"a worker failed:\n{told}")
                else:
                    yield told
    finally:
        for pid, pipe in pipes:
            pipe.close()        # the worker meets EPIPE, and ends
            os.waitpid(pid, 0)


def _worker(
    share: Callable[[int, int], Iterator[State]], index: int, workers: int, others: Sequence[Any],
) -> tuple[int, Any]:
    sys.stdout.flush()
    read_fd, write_fd = os.pipe()
    parent, pid = os.getpid(), os.fork()
    if pid:
        os.close(write_fd)
        return pid, os.fdopen(read_fd, "rb")
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        os.close(read_fd)
        for each in others:     # else nobody would meet EPIPE while another worker lives
            os.close(each.fileno())
        with os.fdopen(write_fd, "wb") as pipe:
            try:
                for each in share(index, workers):
                    pickle.dump(each, pipe)
                    pipe.flush()
                pickle.dump(None, pipe)
            except BrokenPipeError:
                pass
            except BaseException:
                pickle.dump(traceback.format_exc(), pipe)
    finally:
        os._exit(0)


__all__ = ["Scene", "judge", "materialised", "order", "recovery_scene", "remove", "scratch", "spread", "state"]
