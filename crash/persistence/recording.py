"""Run a program under the interposed libc in a child, with fault points and ledger lines as marks among its calls.

Marks: ``point <name> before|after``, ``ledger <line>``, and what ``Recorder.mark`` was given. What a program draws at
random is drawn from a seed, so that a recording made again is the same but for the clock.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable

from crash.shim import Call, Shim, read_calls
from layerstore.system import faults
from layerstore.testing.children import run_child
from layerstore.testing.ledger import Ledger

IGNORED = ("lock.mdb",)   # of the running kernel: LMDB makes it anew after a boot


class Recorder:
    """What a recorded program is handed: the ledger to write to, and marks of its own."""

    def __init__(self, shim: Shim) -> None:
        self._shim = shim
        self.ledger = Ledger(lambda line: shim.mark(b"ledger " + line.rstrip(b"\n")))

    def mark(self, text: str) -> None:
        self._shim.mark(text)


class RecordingError(RuntimeError):
    """The recorded program failed."""


class NothingRecordedError(RecordingError):
    """It changed nothing."""


def record(watched: str, log: str, program: Callable[[Recorder], object], *, seed: int = 1) -> list[Call]:
    """The calls beneath *watched* that *program* makes in a forked child, which must succeed; kept in the file *log*."""
    def run() -> None:
        draw_from(seed)
        shim = Shim()
        shim.watch(watched)
        shim.record(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
        shim.mark(f"watched {os.path.realpath(watched)}")
        faults.install(lambda name, when: shim.mark(f"point {name} {when}"))
        program(Recorder(shim))

    status = run_child(run)
    if status != 0:
        raise RecordingError(f"the recorded program ended with wait status {status:#x}")
    calls = load(log)
    if not any(call.op != "mark" for call in calls):
        raise NothingRecordedError("nothing was recorded")
    return calls


def load(log: str) -> list[Call]:
    """What ``record`` kept, without the files that mean nothing after a boot."""
    return [call for call in read_calls(log) if os.path.basename(call.path) not in IGNORED]


def draw_from(seed: int) -> None:
    """Make os.urandom, and what is built on it, a function of *seed*, in this process and its children."""
    state = {"n": 0, "name": f"{seed}"}

    def draw(size: int) -> bytes:
        state["n"] += 1
        return hashlib.shake_256(f"{state['name']}:{state['n']}".encode()).digest(size)

    def another() -> None:
        state["name"] += "+"

    os.register_at_fork(after_in_child=another)
    os.urandom = draw  # type: ignore[assignment]
    random._urandom = draw  # type: ignore[attr-defined]


__all__ = ["NothingRecordedError", "Recorder", "RecordingError", "draw_from", "load", "record"]
