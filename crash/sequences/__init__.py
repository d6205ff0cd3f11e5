"""Bounded-exhaustive: every sequence of at most three operations over three layers with one parent, cut everywhere.

Each sequence is recorded; its power-loss states under strict POSIX (``crash/persistence``), and kills at the fault
points of its last operation, are judged. What a sequence's earlier operations pass is what the shorter sequence has
passed. Without a limit every sequence is explored; with one, the sequences are taken in an order drawn from the seed.

    python -m crash run sequences --each 200                 (all of them)
    python -m crash run sequences --sequence "put A,drop A,put A" --state 312:drop:97
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import islice

from crash.content import TREES, Picture, content, picture
from crash.persistence.choose import parse
from crash.persistence.explore import Scene, order, scene_of, scratch, spread, state
from crash.persistence.recording import Recorder, draw_from
from crash.sequences.alphabet import Sequence_, again, perform, sequences
from crash.shim import stream
from crash.state import State, outcome_of
from layerstore.system import faults
from layerstore.testing.children import run_child, telling
from layerstore.testing.explore import still_clock
from layerstore.testing.ledger import Ledger, read_ledger
from layerstore.testing.oracle import examine

LAYER = content("sequences", size=600)


class NotKilledError(AssertionError):
    """The child was to die at a fault point, and did not."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--each", type=int, default=24, help="power-loss states of one sequence; 0: one of every group")
    parser.add_argument("--kills", type=int, default=4, help="kills at fault points of one sequence; 0: at every one")
    parser.add_argument("--sequence", help="only this one, as its state names it")
    parser.add_argument("--state", help="of that, only this state: CUT:FORM:ARGUMENT or kill:POINT:WHEN:NTH")


def states(options: argparse.Namespace) -> Iterator[State]:
    with scratch("sequences-") as place:
        yield from stream("crash.sequences", argparse.Namespace(**{**vars(options), "work": place}))


def preloaded(options: argparse.Namespace) -> Iterator[State]:
    what = picture(os.path.join(options.work, "image"), [LAYER])
    chosen = [tuple(options.sequence.split(","))] if options.sequence else sequences()
    if options.states is not None or options.seconds is not None:
        random.Random(options.seed).shuffle(chosen)

    def share(index: int, workers: int) -> Iterator[State]:
        own = tempfile.mkdtemp(dir=options.work)
        for sequence in chosen[index::workers]:
            yield from explore(sequence, what, options, own)

    yield from islice(spread(share, 1 if options.state else options.workers), options.states)


def explore(sequence: Sequence_, what: Picture, options: argparse.Namespace, work: str) -> Iterator[State]:
    """The states of one sequence."""
    scene = scene_of(
        ",".join(sequence), lambda root, recorder: perform(sequence, root, recorder, what), again(sequence, what), work,
        seed=options.seed,
    )
    if options.state and not options.state.startswith("kill:"):
        yield state(scene, parse(options.state), work, rig="sequences", reproduce=_again(scene, options.state, options))[0]
        return
    if not options.state:
        for _, choice in islice(order([scene], options.seed, draw=False), options.each or None):
            yield state(scene, choice, work, rig="sequences", reproduce=_again(scene, str(choice), options))[0]
    for point, when, nth in _kills(scene, options):
        yield _killed(scene, sequence, what, (point, when, nth), options, work)


def _kills(scene: Scene, options: argparse.Namespace) -> list[tuple[str, str, int]]:
    """The passings of fault points in the last operation; a sample of them."""
    if options.state:
        _, point, when, nth = options.state.split(":")
        return [(point, when, int(nth))]
    seen: Counter[tuple[str, str]] = Counter()
    found = []
    for at, text in scene.history.marks:
        if text.startswith("point "):
            _, point, when = text.split(" ")
            seen[point, when] += 1
            if at >= scene.start:
                found.append((point, when, seen[point, when]))
    if options.kills:
        found = random.Random(f"{options.seed} {scene.name}").sample(found, min(options.kills, len(found)))
    return found


def _killed(
    scene: Scene, sequence: Sequence_, what: Picture, passing: tuple[str, str, int], options: argparse.Namespace, work: str,
) -> State:
    with tempfile.TemporaryDirectory(dir=work) as directory:
        root, log = os.path.join(directory, "store"), os.path.join(directory, "ledger")
        _kill_at(passing, sequence, what, root, log, options.seed)
        verdict = telling(lambda: examine(
            root, expect=read_ledger(log), trees=TREES, again=scene.again, clock=still_clock))
    name = "kill:" + ":".join(map(str, passing))
    return State(
        "sequences", scene.name, f"kill at {passing[0]} {passing[1]}", outcome_of(verdict.happened, verdict.violations),
        verdict.violations, bool(verdict.redo), reproduce=_again(scene, name, options), details={"state": name},
    )


def _kill_at(
    passing: tuple[str, str, int], sequence: Sequence_, what: Picture, root: str, log: str, seed: int,
) -> None:
    point, when, left = passing

    def hook(name: str, moment: str) -> None:
        nonlocal left
        if (name, moment) == (point, when):
            left -= 1
            if left == 0:
                faults.perform("kill", name)

    def program() -> None:
        draw_from(seed)
        perform(sequence, root, Unrecorded(log), what)

    status = run_child(program, hook=hook)
    if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
        raise NotKilledError(f"{','.join(sequence)} was not killed at {passing}: wait status {status:#x}")


class Unrecorded(Recorder):
    """A recorder that records nothing but the ledger, in a file."""

    def __init__(self, path: str) -> None:
        self.ledger = Ledger.to_file(path)

    def mark(self, text: str) -> None:
        """Nowhere to put it."""


def _again(scene: Scene, name: str, options: argparse.Namespace) -> str:
    return (f"{sys.executable} -m crash run sequences --seed {options.seed} --sequence '{scene.name}' --state {name}")
