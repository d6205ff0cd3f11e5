"""Forked children of a warmed interpreter: run something in one, and hear what it says or how it died.

What opening a store imports is imported before the fork, and what there was then is spared by the child's collector: a
rig forks for each crash state, and would do little else. Call these from a single-threaded process: ``os.fork`` copies
the calling thread alone.
"""

from __future__ import annotations

import codecs
import gc
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import IO, Any, TypeVar

from layerstore.store import _VERBS
from layerstore.system import faults

T = TypeVar("T")


class ChildDiedError(AssertionError):
    """The child that was to tell something died instead. ``status`` is its wait status."""

    def __init__(self, status: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        super().__init__(f"the child died of signal {-code}" if code < 0 else f"the child ended with {code}")
        self.status = status


def start_child(fn: Callable[[], object], *, hook: faults.Hook | None = None) -> int:
    """Start something in a forked child.

    Args:
        fn: what to run; its traceback goes to stderr.
        hook: the fault hook to install in the child; None: none, whatever is armed here.

    Returns:
        The child's pid, to wait for. It ends with 0, or with 1 if *fn* raised.

    Raises:
        OSError: fork failed.

    Durability: as *fn*'s.

    """
    warm()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _spare_the_parents_objects()
            faults.install(hook)
            fn()
            code = 0
        except BaseException:  # noqa: BLE001 - the child must never return into the caller's stack
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    return pid


def run_child(fn: Callable[[], object], *, hook: faults.Hook | None = None) -> int:
    """Run something in a forked child, and wait for it.

    Args:
        fn: what to run.
        hook: the fault hook to install in the child.

    Returns:
        Its wait status, as of ``os.waitpid``.

    Raises:
        OSError: fork failed.

    Durability: as *fn*'s.

    """
    return os.waitpid(start_child(fn, hook=hook), 0)[1]


def telling(fn: Callable[[], T]) -> T:
    """Run something in a forked child, and hear what it returned: for an oracle that looks at a damaged store.

    Reading a truncated database can kill the process that does it.

    Args:
        fn: what to run; what it returns is pickled.

    Returns:
        What *fn* returned.

    Raises:
        ChildDiedError: it died, or raised; its traceback is on stderr.

    Durability: as *fn*'s.

    """
    warm()
    sys.stdout.flush()
    sys.stderr.flush()
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _spare_the_parents_objects()
            os.close(read_fd)
            with os.fdopen(write_fd, "wb") as pipe:
                pickle.dump(fn(), pipe)
            code = 0
        except BaseException:  # noqa: BLE001 - the child must never return into the caller's stack
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as pipe:
        data = pipe.read()
    status = os.waitpid(pid, 0)[1]
    if status != 0:
        raise ChildDiedError(status)
    result: T = pickle.loads(data)  # noqa: S301 - from our own child
    return result


@cache
def warm() -> None:
    """Import here what opening and using a store imports: children need not, each anew."""
    for each in _VERBS:
        each.load()
    import_module("lmdb._envid")   # lmdb's own, at its first opening; and a codec, likewise
    codecs.lookup("ascii")


def _spare_the_parents_objects() -> None:
    """In a child: the collector would write to every object that the parent had, and so copy the page it is on."""
    gc.freeze()


def in_workers(generators: Sequence[Callable[[], Iterator[T]]]) -> Iterator[T]:
    """Run generators side by side, each in a forked child, and yield what they yield, one of each in turn.

    Args:
        generators: what to run; what they yield is pickled. A single one is run here.

    Returns:
        An iterator; the order depends on the generators alone, not on their speed. Closing it kills the children and
        whatever they started.

    Raises:
        ChildDiedError: a child died.
        Exception: whatever a generator raised.

    Durability: as the generators'.

    """
    if len(generators) == 1:
        yield from generators[0]()
        return
    running = [_start_worker(each) for each in generators]
    try:
        while running:
            for worker in list(running):
                kind, value = _hear(worker)
                if kind == "end":
                    running.remove(worker)
                    _end_worker(worker)
                elif kind == "error":
                    raise value
                else:
                    yield value
    finally:
        for worker in running:
            _end_worker(worker)


_Worker = tuple[int, IO[bytes]]


def _start_worker(generator: Callable[[], Iterator[T]]) -> _Worker:
    read_fd, write_fd = os.pipe()

    def work() -> None:
        os.setpgid(0, 0)   # so that what it starts can be ended with it
        os.close(read_fd)
        with os.fdopen(write_fd, "wb") as pipe:
            try:
                for each in generator():
                    pickle.dump(("value", each), pipe)
                    pipe.flush()
                pickle.dump(("end", None), pipe)
            except Exception as error:  # noqa: BLE001 - it is raised again where it can be handled
                traceback.print_exc()
                pickle.dump(("error", error), pipe)

    pid = start_child(work)
    with suppress(OSError):              # it may not have come so far when it is to be ended
        os.setpgid(pid, pid)
    os.close(write_fd)
    return pid, os.fdopen(read_fd, "rb")


def _hear(worker: _Worker) -> tuple[str, Any]:
    try:
        kind, value = pickle.load(worker[1])  # noqa: S301 - from our own child
    except EOFError:
        return "error", ChildDiedError(os.waitpid(worker[0], os.WNOHANG)[1] or signal.SIGKILL)
    return kind, value


def _end_worker(worker: _Worker) -> None:
    pid, pipe = worker
    pipe.close()
    with suppress(ProcessLookupError, ChildProcessError):
        os.killpg(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)


__all__ = ["ChildDiedError", "in_workers", "run_child", "start_child", "telling"]
