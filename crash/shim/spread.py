"""Work shared between forked processes of a rig, and a budget between its parts. Nothing of faults here."""

from __future__ import annotations

import argparse
import ctypes
import os
import pickle
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, TypeVar

A = TypeVar("A")
B = TypeVar("B")
_PR_SET_PDEATHSIG = 1


def in_turn(parts: Sequence[Callable[[], Iterator[A]]], options: argparse.Namespace) -> Iterator[A]:
    """One part after the other; of ``--states`` and ``--seconds`` each has its share, so that none is left out."""
    for part in parts:
        begun, taken = time.monotonic(), 0
        found = part()
        try:
            for each in found:
                yield each
                taken += 1
                if options.states and taken >= max(1, options.states // len(parts)):
                    break
                if options.seconds and time.monotonic() - begun > options.seconds / len(parts):
                    break
        finally:
            found.close()  # type: ignore[attr-defined]


def drawn(tasks: list[A], options: argparse.Namespace) -> list[A]:
    """The tasks in order; where a budget may cut them off, in an order drawn by the seed."""
    if options.states or options.seconds:
        random.Random(options.seed).shuffle(tasks)
    return tasks


def spread(tasks: Sequence[A], fn: Callable[[int, Sequence[A]], Iterator[B]], workers: int) -> Iterator[B]:
    """``fn(worker, its tasks)`` in each of *workers* forked processes; what they yield, one of each in turn."""
    if workers <= 1:
        yield from fn(0, tasks)
        return
    started: dict[int, IO[bytes]] = {}
    try:
        for worker in range(workers):
            read_fd, write_fd = os.pipe()
            sys.stdout.flush()
            sys.stderr.flush()
            pid = os.fork()
            if pid == 0:
                os.close(read_fd)
                for pipe in started.values():
                    pipe.close()
                _work(write_fd, fn(worker, tasks[worker::workers]))
            os.close(write_fd)
            started[pid] = os.fdopen(read_fd, "rb")
        yield from _merged(started)
    finally:
        for pid, pipe in started.items():
            pipe.close()
            os.waitpid(pid, 0)   # its next line finds nobody, and it tidies up


def _work(fd: int, found: Iterator[Any]) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)   # not to outlive who started us
    code = 1
    try:
        with os.fdopen(fd, "wb") as pipe:
            for each in found:
                pickle.dump(each, pipe)
                pipe.flush()
            pickle.dump(None, pipe)
        code = 0
    except BrokenPipeError:
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _merged(started: dict[int, IO[bytes]]) -> Iterator[B]:
    turn = dict(started)
    while turn:
        for pid, pipe in list(turn.items()):
            try:
                each = pickle.load(pipe)
            except EOFError:
                raise RuntimeError("a worker of the rig died") from None
            if each is None:
                del turn[pid]
            else:
                yield each
