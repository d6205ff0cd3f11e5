"""One schedule: real processes on one store, one step at a time, in the order that was chosen.

A process that polls a lock can go on only when the lock is to be had, which is tried from here on a descriptor of
its inode. When nobody can, time passes: a deadline is a choice of the last resort, as it is in life.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from crash.schedule.process import Scheduled
from layerstore.errors import LayerstoreError
from layerstore.system import faults

PATIENCE_SECONDS = 300.0     # of the real clock: a process that does not come to its next step hangs
IDLE_ROUNDS = 20_000         # of virtual time, with nobody able to go on: a deadlock

Program = Callable[[], Callable[[], object]]   # opens its store, and returns what is to be scheduled
Chooser = Callable[[int, tuple[int, ...], int | None], int]


@dataclass(frozen=True, slots=True)
class Step:
    """What was chosen at one step. ``current``: the process that ran before, if it could have gone on."""

    enabled: tuple[int, ...]
    chosen: int
    label: str
    current: int | None

    @property
    def preempts(self) -> bool:
        return self.current is not None and self.chosen != self.current


@dataclass
class Run:
    """What became of one schedule. ``results``: for each process ``ok``, an error's name, or ``killed``."""

    steps: list[Step] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    deadlock: bool = False
    killed: str = ""

    @property
    def choices(self) -> list[int]:
        return [each.chosen for each in self.steps]


@dataclass
class _Process:
    pid: int
    line: socket.socket
    state: str = "new"       # step, held, wait, end
    label: str = ""
    seen: int = 0            # how many steps of others there had been when it began to wait

    def lock_is_free(self) -> bool | None:
        """Whether the lock it waits for could be had now; None if it waits for something else."""
        fd, mode = map(int, self.label.split())
        if fd < 0:
            return None
        own = os.open(f"/proc/{self.pid}/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(own, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(own)   # gives the lock back
        return True


class Controller:
    """Runs programs by a list of choices, then as *choose* says; kills the chosen one at step *kill*."""

    def __init__(self, programs: Sequence[Program], choose: Chooser, *, kill: int | None = None) -> None:
        self._choose, self._kill = choose, kill
        self._run = Run(results=[""] * len(programs))
        self._processes: list[_Process] = []
        self._idle, self._turn = 0, 0
        self._programs = programs

    def run(self) -> Run:
        try:
            for number, program in enumerate(self._programs):
                self._processes.append(_start(number, program, self._processes))
                self._listen(number)
            current: int | None = None
            while self._live():
                current = self._next(current)
                if self._idle > IDLE_ROUNDS:
                    self._run.deadlock = True
                    break
        finally:
            for each in self._processes:
                _end(each)
        if self._kill is not None and not self._run.killed and not self._run.deadlock:
            raise AssertionError(f"there was no step {self._kill} to kill at")
        return self._run

    def _live(self) -> list[int]:
        return [n for n, each in enumerate(self._processes) if each.state != "end"]

    def _enabled(self) -> tuple[int, ...]:
        held = [n for n in self._live() if self._processes[n].state == "held"]
        return tuple(held or [n for n in self._live() if self._can_go_on(self._processes[n])])

    def _can_go_on(self, process: _Process) -> bool:
        if process.state != "wait":
            return True
        free = process.lock_is_free()
        return len(self._run.steps) > process.seen if free is None else free

    def _next(self, current: int | None) -> int | None:
        enabled = self._enabled()
        if not enabled:
            self._pass_time()
            return None
        self._idle = 0
        going_on = current if current in enabled else None
        chosen = self._choose(len(self._run.steps), enabled, going_on)
        process = self._processes[chosen]
        self._run.steps.append(Step(enabled, chosen, f"{process.state} {process.label}", going_on))
        if self._kill == len(self._run.steps) - 1:
            os.kill(process.pid, signal.SIGKILL)
            if os.WTERMSIG(os.waitpid(process.pid, 0)[1]) != signal.SIGKILL:
                raise AssertionError(f"process {chosen} was not killed")
            process.pid, process.state = 0, "end"
            self._run.results[chosen], self._run.killed = "killed", f"{chosen} at {process.label}"
            return None
        self._go(chosen)
        return chosen

    def _pass_time(self) -> None:
        """Nobody can go on: let one look at its clock, each in turn."""
        live = self._live()
        self._idle += 1
        self._turn += 1
        self._go(live[self._turn % len(live)])

    def _go(self, number: int) -> None:
        self._processes[number].line.send(b"g")
        self._listen(number)

    def _listen(self, number: int) -> None:
        process = self._processes[number]
        try:
            message = process.line.recv(4096).decode()
        except TimeoutError:
            raise AssertionError(f"process {number} hangs after {process.state} {process.label}") from None
        process.state, _, process.label = message.partition(" ")
        if not message:
            raise AssertionError(f"process {number} died by itself")
        process.seen = len(self._run.steps)
        if process.state == "end":
            self._run.results[number] = process.label


def _start(number: int, program: Program, others: Sequence[_Process]) -> _Process:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        faults.install(None)
        for each in others:
            each.line.close()
        ours.close()
        _be(number, program, theirs)
    theirs.close()
    ours.settimeout(PATIENCE_SECONDS)
    return _Process(pid, ours)


def _be(number: int, program: Program, line: socket.socket) -> None:
    result = "died"
    scheduled = Scheduled(line)
    try:
        todo = program()
        scheduled.install(number)
        scheduled.step("start")
        todo()
        result = "ok"
    except LayerstoreError as error:
        result = type(error).__name__
    except BaseException as error:
        traceback.print_exc()
        result = repr(error)
    finally:
        scheduled.end(result)


def _end(process: _Process) -> None:
    process.line.close()
    if process.pid:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        os.waitpid(process.pid, 0)
