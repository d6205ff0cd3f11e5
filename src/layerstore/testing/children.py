"""Forked children of a warmed interpreter: run something in one, and hear what it says or how it died."""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from collections.abc import Callable
from typing import TypeVar

from layerstore import faults

T = TypeVar("T")


class ChildDiedError(AssertionError):
    """The child that was to tell something died instead. ``status`` is its wait status."""

    def __init__(self, status: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        super().__init__(f"the child died of signal {-code}" if code < 0 else f"the child ended with {code}")
        self.status = status


def start_child(fn: Callable[[], object], *, hook: faults.Hook | None = None) -> int:
    """Run *fn* in a forked child with *hook* installed; return its pid, to wait for. Its traceback goes to stderr."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
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
    """``start_child``, waited for; its wait status."""
    return os.waitpid(start_child(fn, hook=hook), 0)[1]


def telling(fn: Callable[[], T]) -> T:
    """Run *fn* in a forked child and return what it returned (pickled). ChildDiedError if it told nothing.

    For an oracle that looks at a damaged store: reading a truncated database can kill the process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
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


__all__ = ["ChildDiedError", "run_child", "start_child", "telling"]
