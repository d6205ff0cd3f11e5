"""A process that makes plain small files beside this one: Python's lock lets one thread of a process compute at a time.

Its program is ``creating``. Here: starting it, handing it files, and ending it. Each is used by one thread, which makes
itself what the process does not: what has extended attributes or a time that not every file system holds, and what
fails, so that errors are told here alone.
"""

from __future__ import annotations

import array
import marshal
import mmap
import os
import sys
import weakref
from _socket import AF_UNIX, MSG_DONTWAIT, SCM_RIGHTS, SHUT_RDWR, SOCK_SEQPACKET, SOL_SOCKET, socketpair
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from layerstore.errors import IoError
from layerstore.system.descriptors import Descriptor
from layerstore.trees.dress import Dresser, is_safe_time
from layerstore.trees.unpack import creating
from layerstore.trees.unpack.files import Births, NewFile

__all__ = ["Beside", "beside", "can_start"]

# of one request: bytes of content, and of names. A batch of ``making`` has less content and fewer directories; its names
# may be longer.
_MEMORY = 2 << 20
_MOST_NAMES = creating.MESSAGE // 2      # the other half is for the rest of some 130 rows

_open: weakref.WeakSet[Beside] = weakref.WeakSet()
_never_start: set[str] = set()           # programs one of which ended before it was ready: the next ones would, too


class Beside:
    """The process, from here. It has the descriptors *more*, too, and *memory* bytes together with this one.

    It may be one with another *program*, which does other things: who starts that asks by ``send`` and ``answer``.
    """

    def __init__(self, *more: int, program: str = "", memory: int = _MEMORY) -> None:
        self._program = program or creating.__file__
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
                self._pid = _start(self._program, self._theirs.fileno(), shared.fd, *more)
        except BaseException:
            self._peer.close()
            raise
        finally:
            self._theirs.close()

    def is_ready(self) -> bool:
        """Whether it can be asked: it has started by now, and was able to."""
        if not self._ready and not self._gone:
            try:
                self._ready = self._peer.recv(len(creating.READY), MSG_DONTWAIT) == creating.READY
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

    def make(self, files: Sequence[NewFile]) -> list[NewFile]:
        """Have *files* made; those that were not. IoError if the process is gone: nobody knows what it made."""
        rows: list[Any] = []             # ``creating.Row``
        asked: list[NewFile] = []
        rest: list[NewFile] = []
        directories: dict[int, int] = {}   # by their numbers here: their numbers in the request
        memory, at, names = self.memory, 0, 0
        for file in files:
            entry, data = file.entry, file.data
            end, name_end = at + len(data), names + len(file.name)
            if (
                entry.xattrs or not is_safe_time(entry.mtime_ns)
                or end > _MEMORY or name_end > _MOST_NAMES or len(directories) >= creating.MOST_DIRECTORIES
            ):
                rest.append(file)
                continue
            memory[at:end] = data
            attributes = entry[2:5]      # mode, uid and gid
            rows.append((
                directories.setdefault(file.dir_fd, len(directories)), file.name, Births.mode(attributes[0]), end - at,
                entry.mtime_ns, attributes,
            ))
            asked.append(file)
            at, names = end, name_end
        for file, digest in zip(asked, self._ask(rows, directories) if rows else (), strict=True):
            if digest is None:
                rest.append(file)
            else:
                file.digest, file.done = digest, True
        return rest

    def _ask(self, rows: list[Any], directories: Iterable[int]) -> Sequence[bytes | None]:
        try:
            self.send(rows, directories)
        except OSError:                  # all of it or nothing is sent: nothing was made, and the thread can make it
            return [None] * len(rows)
        answer = self.answer()
        if not answer:
            raise IoError("a process that makes files ended by itself")
        digests: list[bytes | None] | str = marshal.loads(answer)  # noqa: S302 - from our own process
        if isinstance(digests, str):
            raise IoError(f"a process that makes files ended by itself: {digests}")
        return digests

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
            return self._peer.recv(creating.MESSAGE)
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


def _is_possible(dress: Dresser) -> bool:
    """Whether the program can be run, and keeps this process's powers."""
    return dress.sets_all and os.geteuid() == 0 and can_start(creating.__file__)


@contextmanager
def beside(lock_fd: int, dress: Dresser) -> Iterator[Beside | None]:
    """The process lives as long as this lasts. None where it cannot be had, or could not do what this one does.

    *lock_fd* keeps the tree from being removed: the process has it, too.
    """
    made = None
    if _is_possible(dress):
        # without it the thread makes the files. KeyError: a name left the environment while that was copied
        with suppress(OSError, KeyError):
            made = Beside(lock_fd)
    try:
        yield made
    finally:
        if made is not None:
            made.close()


def _after_fork_in_child() -> None:
    """Close the child's copies: the process would not hear that who started it is gone."""
    for each in list(_open):
        each.let_go()


os.register_at_fork(after_in_child=_after_fork_in_child)
