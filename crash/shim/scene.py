"""A store prepared once, copies of it, and a workload's run in a forked child that one of its calls does not survive.

What ``calls`` and ``failing`` have in common; it runs in a process that has the shim loaded. Nothing here decides
which faults there are, or what must be true afterwards.

The n-th call of one run is the n-th of the next: the store has the same path each time, transaction ids are drawn
from a seed (``draw``), and ``rehearse`` runs twice and compares.
"""

from __future__ import annotations

import gc
import hashlib
import os
import pickle
import re
import secrets
import shutil
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy as copy_of
from dataclasses import dataclass
from itertools import count
from typing import Any

import layerstore
from crash import content
from crash.beside import apart
from crash.shim import Calls, Fault, Met, Shim, read_trace
from crash.workloads import Workload
from layerstore.errors import LayerstoreError
from layerstore.store import Store
from layerstore.testing.children import run_child, telling
from layerstore.testing.copies import copy_store
from layerstore.testing.ledger import Ledger, expectation
from layerstore.testing.oracle import Verdict, examine

_PHASES = ("prepare", "run", "recovery", "oracle")
_BEGIN_NS = 1_700_000_000 * 10**9
Then = Callable[[dict[str, Any]], Sequence[str]]
PATIENCE_SECONDS = 120
"""After which a run counts as hung. An undisturbed one takes a fraction of a second."""


class NotLandedError(AssertionError):
    """A fault was to happen at a call, and did not, or at another one."""


class NotDeterminedError(AssertionError):
    """Two runs of the same workload made different calls: their numbers mean nothing."""


@dataclass(frozen=True, slots=True)
class End:
    """How a run ended. ``error``: the typed error's class, ``""`` for none; ``wrong``: what must never happen.

    ``met`` is what the fault met first, ``times`` how often something met it, ``calls`` what was counted, in order,
    ``notes`` what the rig's own ``then`` wrote down.
    """

    status: int
    error: str
    wrong: tuple[str, ...]
    met: Met | None
    times: int
    calls: tuple[Met, ...]
    notes: dict[str, Any]

    @property
    def killed(self) -> bool:
        return os.WIFSIGNALED(self.status) and os.WTERMSIG(self.status) == signal.SIGKILL


def draw(phase: str, pid: int | None = None) -> None:
    """From now on ids and times are drawn from *phase* alone, and (in a child) the process has the number *pid*.

    Else records would be a byte longer or shorter, and what holds them a page. A run and what follows it must not
    draw the same ids, and time must go on.
    """
    numbers, ticks = count(), count(_PHASES.index(phase) * 10**12, 10**6)
    layerstore.open.__kwdefaults__["clock"] = lambda: _BEGIN_NS + next(ticks)  # type: ignore[attr-defined]
    if pid is not None:
        os.getpid = lambda: pid

    def token_hex(nbytes: int | None = None) -> str:
        return hashlib.shake_256(f"{phase}:{next(numbers)}".encode()).hexdigest(nbytes or 32)

    secrets.token_hex = token_hex
    os.urandom = lambda size: bytes.fromhex(token_hex(size))   # what a transaction's ID is made of


class Scene:
    """One workload's prepared store, and runs over copies of it. *directory* is this scene's own."""

    def __init__(self, workload: Workload, directory: str, shim: Shim) -> None:
        self.workload, self.shim = workload, shim
        self.start = os.path.join(directory, "start")
        self._place(directory)
        os.makedirs(directory)
        shim.watch(self.store)
        shim.share()

        def prepare() -> None:
            draw("prepare", pid=4141)
            workload.prepare(self.store, Ledger.to_file(self.ledger))

        if run_child(prepare) != 0:
            raise AssertionError(f"preparing {workload.name} failed")
        with open(self.ledger, "rb") as file:
            self._told = file.read()
        os.rename(self.store, self.start)

    def mine(self, worker: int) -> Scene:
        """The same scene for one of several workers: a directory and a page of its own; the store's path differs."""
        own = copy_of(self)
        directory = os.path.join(os.path.dirname(self.store), f"worker-{worker}")
        os.makedirs(directory)
        own._place(directory)
        self.shim.watch(own.store)
        self.shim.share()
        return own

    def _place(self, directory: str) -> None:
        self.store, self.crashed = os.path.join(directory, "store"), os.path.join(directory, "crashed")
        self.ledger, self.trace, self.said = (os.path.join(directory, n) for n in ("ledger", "trace", "said"))

    def fresh(self, source: str | None = None) -> None:
        """The store as it was prepared (or as *source* has it), and the ledger as it was then."""
        shutil.rmtree(self.store, ignore_errors=True)
        self._copy(source or self.start, self.store)
        if source is None:
            with open(self.ledger, "wb") as file:
                file.write(self._told)

    def keep(self) -> None:
        """Keep the store as it is now, for ``fresh(scene.crashed)``."""
        shutil.rmtree(self.crashed, ignore_errors=True)
        self._copy(self.store, self.crashed)

    def _copy(self, source: str, target: str) -> None:
        """Not looked at: to say which path a descriptor has costs more than the copying."""
        self.shim.unwatch()
        try:
            copy_store(source, target)
        finally:
            self.shim.watch(self.store)

    # -- runs -------------------------------------------------------------------------------------------------------

    def run(
        self, calls: Calls, fault: Fault = Fault.NONE, nth: int = 0, error: int = 0, *, trace: bool = False,
        fn: Callable[[], object] | None = None, phase: str = "run", then: Then | None = None,
    ) -> End:
        """The workload (or *fn*) over the store as it is, in a child whose *nth* call meets *fault*.

        *then* comes after it in the same child, undisturbed; what it returns is wrong.
        """
        for path in (self.trace, self.said):
            with suppress(FileNotFoundError):
                os.unlink(path)
        fn = fn or (lambda: self.workload.run(self.store, Ledger.to_file(self.ledger)))
        self.shim.arm(calls, Fault.NONE)
        status = run_child(lambda: self._act(fn, (calls, fault, nth, error), trace, phase, then))
        error_, wrong, notes = self._heard(status)
        traced = tuple(read_trace(self.trace)) if trace else ()
        return End(status, error_, wrong, self.shim.landed, self.shim.fired, traced, notes)

    def _act(
        self, fn: Callable[[], object], armed: tuple[Calls, Fault, int, int], trace: bool, phase: str, then: Then | None,
    ) -> None:
        draw(phase, pid=4242)
        signal.alarm(PATIENCE_SECONDS)   # a hang ends in death by SIGALRM
        gc.collect()
        before = descriptors()
        wrong: list[str] = []
        error = ""
        if trace:
            self.shim.trace(os.open(self.trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
        self.shim.arm(*armed)
        try:
            fn()
        except LayerstoreError as raised:
            error = type(raised).__name__
        except BaseException as raised:
            traceback.print_exc()
            wrong.append(f"no error of the store's: {raised!r}")
        self.shim.unwatch()   # what was met stays known
        notes: dict[str, Any] = {}
        wrong += then(notes) if then else ()
        gc.collect()
        wrong += [f"left open: {path}" for path in sorted(set(descriptors()) - set(before)) if self.store in path]
        wrong += [f"left running: {t.name}" for t in threading.enumerate() if t is not threading.main_thread()]
        with open(self.said, "wb") as file:
            pickle.dump((error, tuple(wrong), notes), file)

    def _heard(self, status: int) -> tuple[str, tuple[str, ...], dict[str, Any]]:
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            if number == signal.SIGKILL:
                return "", (), {}
            return "", (f"died of {signal.Signals(number).name}" + (" (hung)" if number == signal.SIGALRM else ""),), {}
        with open(self.said, "rb") as file:
            said: tuple[str, tuple[str, ...], dict[str, Any]] = pickle.load(file)
        return said

    def rehearse(self, calls: Calls, fn: Callable[[], object] | None = None, source: str | None = None) -> list[Met]:
        """What an undisturbed run counts, call by call. NotDeterminedError unless two runs agree."""
        found = []
        for _ in range(2):
            self.fresh(source)
            end = self.run(calls, fn=fn, trace=True)
            if end.status != 0 or end.error or end.wrong:
                raise AssertionError(f"{self.workload.name} fails without any fault: {end}")
            found.append(list(end.calls))
        if [(m.op, m.path) for m in found[0]] != [(m.op, m.path) for m in found[1]]:
            raise NotDeterminedError(first_difference(*found))
        return found[0]

    # -- looking ----------------------------------------------------------------------------------------------------

    def look(self, again: Callable[[Store], object] | None = None) -> Verdict:
        """The oracle, over the store as the run left it, in a child."""
        self.shim.arm(Calls.ALL, Fault.NONE)

        def see() -> Verdict:
            self.shim.unwatch()
            draw("oracle")
            signal.alarm(PATIENCE_SECONDS)
            with open(self.ledger, "rb") as file:
                lines = list(file)
            seen = self.workload.look(self.store, lines)
            self.workload.mend(self.store)
            expect, _ = apart(expectation(lines))
            verdict = examine(self.store, expect=expect, trees=content.TREES, again=again or self.workload.again)
            verdict.violations[:0] = seen
            return verdict

        try:
            return telling(see)
        except AssertionError as error:   # ChildDiedError
            return Verdict([f"the oracle: {error}"])

    def reopen(self) -> None:
        """What recovers: a writable open, after what an operator must do before it."""
        self.workload.mend(self.store)
        with layerstore.open(self.store):
            pass


def within(path: str) -> str:
    """*path* from the store on: the same in every worker's directory."""
    return path.partition("/store")[2]


def place(met: Met) -> str:
    """A call in words that are the same in every run: the operation, and where in the store."""
    path = within(met.path).lstrip("/")
    path = re.sub(r"[0-9a-f]{64}", "<id>", path)
    return f"{met.op} {re.sub(r'[0-9a-f]{32}', '<txid>', path)}"


def must_land(end: End, wanted: Met, fault: Fault) -> None:
    """NotLandedError unless the fault happened, at that very call, and did what it does."""
    if end.met is None or end.met[:2] != wanted[:2] or within(end.met.path) != within(wanted.path):
        raise NotLandedError(f"{fault.name} was to meet {wanted}, and met {end.met}")
    if fault in (Fault.KILL, Fault.TEAR) and not end.killed:
        raise NotLandedError(f"{fault.name} at {wanted}: the child was not killed, but ended with {end.status:#x}")


def first_difference(one: Sequence[Met], two: Sequence[Met]) -> str:
    for a, b in zip(one, two, strict=False):
        if (a.op, a.path) != (b.op, b.path):
            return f"one run's call {a.nth} is {a.op} {a.path}, another's is {b.op} {b.path}"
    return f"one run makes {len(one)} calls, another {len(two)}"


def descriptors() -> list[str]:
    """What this process has open."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.append(f"{os.readlink(f'/proc/self/fd/{fd}')} ({fd})")
    return found
