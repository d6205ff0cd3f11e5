"""A process that makes plain small files beside this one: Python's lock lets one thread of a process compute at a time.

Its program is ``creating``. Here: starting it, handing it files, and ending it. Each is used by one thread, which makes
itself what the process does not: what has extended attributes, and what fails, so that errors are told here alone.
"""

from __future__ import annotations

import array
import marshal
import mmap
import os
import sys
import weakref
from _socket import AF_UNIX, MSG_DONTWAIT, SCM_RIGHTS, SOCK_SEQPACKET, SOL_SOCKET, socketpair
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from layerstore.errors import IoError
from layerstore.system.descriptors import Descriptor
from layerstore.trees.dress import Dresser
from layerstore.trees.unpack import creating
from layerstore.trees.unpack.files import Births, NewFile

__all__ = ["Beside", "beside"]

_MEMORY = 2 << 20                        # bytes of content of one request
_MOST_NAMES = creating.MESSAGE // 2      # bytes of its names

_open: weakref.WeakSet[Beside] = weakref.WeakSet()


class Beside:
    """The process, from here."""

    def __init__(self, lock_fd: int, births: Births) -> None:
        self._births = births
        self._ready = False
        self._peer, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
        _open.add(self)
        try:
            shared = Descriptor.__new__(Descriptor)
            with shared:
                shared.fd = os.memfd_create("layerstore-create", os.MFD_CLOEXEC)
                os.ftruncate(shared.fd, _MEMORY)
                self._memory = mmap.mmap(shared.fd, _MEMORY)
                for each in (self._peer, theirs):
                    each.settimeout(None)   # whatever is this program's default
                self._pid = _start(theirs.fileno(), shared.fd, lock_fd)
        except BaseException:
            self._peer.close()
            raise
        finally:
            theirs.close()

    def is_ready(self) -> bool:
        """Whether it can be asked: it has started by now, and was able to."""
        if not self._ready:
            with suppress(BlockingIOError, ConnectionError):
                self._ready = self._peer.recv(len(creating.READY), MSG_DONTWAIT) == creating.READY
        return self._ready

    def make(self, files: Sequence[NewFile]) -> list[NewFile]:
        """Have *files* made; those that were not. IoError if the process is gone: nobody knows what it made."""
        rows: list[Any] = []             # ``creating.Row``
        asked: list[NewFile] = []
        rest: list[NewFile] = []
        directories: dict[int, int] = {}   # by their numbers here: their numbers in the request
        memory, right, at, names = self._memory, self._births.right, 0, 0
        for file in files:
            entry, data = file.entry, file.data
            end, names = at + len(data), names + len(file.name)
            if entry.xattrs or end > _MEMORY or names > _MOST_NAMES or len(directories) >= creating.MOST_DIRECTORIES:
                rest.append(file)
                continue
            memory[at:end] = data
            attributes = entry[2:5]      # mode, uid and gid
            rows.append((
                directories.setdefault(file.dir_fd, len(directories)), file.name, Births.mode(attributes[0]), end - at,
                entry.mtime_ns, None if attributes in right else attributes,
            ))
            asked.append(file)
            at = end
        for file, digest in zip(asked, self._ask(rows, directories) if rows else (), strict=True):
            if digest is None:
                rest.append(file)
            else:
                file.digest, file.done = digest, True
        return rest

    def _ask(self, rows: list[Any], directories: Iterable[int]) -> list[bytes | None]:
        answer = b""
        with suppress(ConnectionError):
            self._peer.sendmsg([marshal.dumps(rows)], [(SOL_SOCKET, SCM_RIGHTS, array.array("i", directories))])
            answer = self._peer.recv(creating.MESSAGE)
        if not answer:
            raise IoError("a process that makes files ended by itself")
        digests: list[bytes | None] = marshal.loads(answer)  # noqa: S302 - from our own process
        return digests

    def hang_up(self) -> None:
        """Ask it nothing more; it ends when everybody who has a copy of this did so."""
        self._peer.close()

    def close(self) -> None:
        """End it, and wait for it."""
        self.hang_up()
        self._memory.close()
        with suppress(ChildProcessError):   # a program that waits for all its children had this one, too
            os.waitpid(self._pid, 0)


def _start(peer: int, shared: int, lock: int) -> int:
    """Start the program with these descriptors; its process ID. In a group of its own: it heeds no signal of a terminal."""
    return os.posix_spawn(
        sys.executable, [sys.executable, "-I", "-S", "-B", creating.__file__, *map(str, (peer, shared, lock))], os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, fd, fd) for fd in (peer, shared, lock)],   # onto itself: it is inherited
        setpgroup=0,
    )


def _is_possible(dress: Dresser) -> bool:
    """Whether the program can be run, and keeps this process's powers."""
    python = os.path.basename(sys.executable or "").startswith("python") and not getattr(sys, "frozen", False)
    return python and dress.sets_all and os.geteuid() == 0


@contextmanager
def beside(lock_fd: int, dress: Dresser, births: Births) -> Iterator[Beside | None]:
    """The process lives as long as this lasts. None where it cannot be had, or could not do what this one does.

    *lock_fd* keeps the tree from being removed: the process has it, too.
    """
    made = None
    if _is_possible(dress):
        with suppress(OSError):          # without it the thread makes the files
            made = Beside(lock_fd, births)
    try:
        yield made
    finally:
        if made is not None:
            made.close()


def _after_fork_in_child() -> None:
    """Close the child's copies: the process would not hear that who started it is gone."""
    for each in list(_open):
        each.hang_up()


os.register_at_fork(after_in_child=_after_fork_in_child)
