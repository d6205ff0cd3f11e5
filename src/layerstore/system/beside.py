"""A process of another program of ours beside this one: Python's lock lets one thread of a process compute at a time.

Here: whether one can be started, starting it, memory that both have, asking and hearing, and ending it. What it is asked,
and what an answer means, is known by who starts it; each is used by one thread. Its program imports nothing of ours, so
that it starts soon: it has ``READY`` and ``MESSAGE`` of its own, equal to these (a test sees to it).
"""

from __future__ import annotations

import array
import marshal
import mmap
import os
import sys
import weakref
from _socket import AF_UNIX, MSG_DONTWAIT, SCM_RIGHTS, SHUT_RDWR, SOCK_SEQPACKET, SOL_SOCKET, socketpair
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from layerstore.system.descriptors import Descriptor

__all__ = ["MESSAGE", "READY", "Beside", "can_start", "started"]

READY = b"ready"                         # what it says once it can be asked
MESSAGE = 1 << 17                        # bytes of a request or an answer at most

_open: weakref.WeakSet[Beside] = weakref.WeakSet()
_never_start: set[str] = set()           # programs one of which ended before it was ready: the next ones would, too


class Beside:
    """The process of *program*, from here. It gets the descriptors *more*, and both have *memory* bytes."""

    def __init__(self, program: str, *more: int, memory: int) -> None:
        self._program = program
        self._ready = self._gone = False
        self._peer, self._theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
        _open.add(self)
        try:
            shared = Descriptor.__new__(Descriptor)
            with shared:
                shared.fd = os.memfd_create("layerstore-beside", os.MFD_CLOEXEC)
                os.posix_fallocate(shared.fd, 0, memory)   # where there is no memory now, writing to it would kill us
                self.memory = mmap.mmap(shared.fd, memory)
                for each in (self._peer, self._theirs):
                    each.settimeout(None)   # whatever is this program's default
                self._pid = _start(program, self._theirs.fileno(), shared.fd, *more)
        except BaseException:
            self._peer.close()
            raise
        finally:
            self._theirs.close()

    def is_ready(self) -> bool:
        """Whether it can be asked: it has started by now, and was able to."""
        if not self._ready and not self._gone:
            try:
                self._ready = self._peer.recv(len(READY), MSG_DONTWAIT) == READY
                self._gone = not self._ready
            except BlockingIOError:      # it is still starting
                pass
            except ConnectionError:
                self._gone = True
            if self._gone:
                _never_start.add(self._program)
        return self._ready and not self._gone

    def is_gone(self) -> bool:
        """Whether it ended, or never could start, as far as was noticed."""
        return self._gone

    def send(self, request: Any, fds: Iterable[int]) -> None:
        """Ask for something, and pass *fds*. OSError if it was not asked, and then it is asked no more."""
        try:
            self._peer.sendmsg([marshal.dumps(request)], [(SOL_SOCKET, SCM_RIGHTS, array.array("i", fds))])
        except OSError:
            self._gone = True
            raise

    def answer(self) -> bytes:
        """The next answer, once it is there; nothing, if the process is gone."""
        with suppress(ConnectionError):
            return self._peer.recv(MESSAGE)
        return b""

    def let_go(self) -> None:
        """Close this process's copies of the socket, and nobody else's."""
        self._peer.close()
        self._theirs.close()

    def close(self) -> None:
        """End it, and wait for it."""
        with suppress(OSError):          # for all who have a copy: a child that was started without our knowing has one
            self._peer.shutdown(SHUT_RDWR)
        self.let_go()
        self.memory.close()
        with suppress(ChildProcessError):   # a program that waits for all its children had this one, too
            os.waitpid(self._pid, 0)


@contextmanager
def started(program: str, *more: int, memory: int) -> Iterator[Beside | None]:
    """A process, see ``Beside``, that lives as long as this lasts. None where it cannot be had: who asks does without."""
    made = None
    with suppress(OSError, KeyError):    # KeyError: a name left the environment while that was copied
        made = Beside(program, *more, memory=memory)
    try:
        yield made
    finally:
        if made is not None:
            made.close()


def _start(program: str, *given: int) -> int:
    """Start the program with these descriptors; its process ID. In a group of its own: it heeds no signal of a terminal.

    Nothing that it says is this program's: of what stops it, its answer tells.
    """
    # to other numbers: what is duplicated onto itself stays close-on-exec in a glibc before 2.29
    there = range(max(*given, 2) + 1, max(*given, 2) + 1 + len(given))
    return os.posix_spawn(
        sys.executable, [sys.executable, "-I", "-S", "-B", program, *map(str, there)],
        dict(os.environ),                # a copy: another thread may be changing it
        file_actions=[
            *((os.POSIX_SPAWN_DUP2, fd, number) for fd, number in zip(given, there, strict=True)),
            *((os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)),
        ],
        setpgroup=0,
    )


def can_start(program: str) -> bool:
    """Whether the program can be run, as far as one knows."""
    python = os.path.basename(sys.executable or "").startswith("python") and not getattr(sys, "frozen", False)
    return (
        python and program not in _never_start
        and hasattr(os, "memfd_create")          # a Python built with a glibc before 2.27 lacks it
        and os.path.isfile(program)              # not in an archive
    )


def _after_fork_in_child() -> None:
    """Close the child's copies: the process would not hear that who started it is gone."""
    for each in list(_open):
        each.let_go()


os.register_at_fork(after_in_child=_after_fork_in_child)
