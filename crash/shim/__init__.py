"""An interposed libc, driven from Python: count, record, kill, tear or fail any call beneath one directory.

``stream(module, options)`` runs a rig's ``preloaded(options)`` in a process that has the shim loaded and passes its
states on; inside of it ``Shim()`` arms faults in this process and its forked children. The shim is compiled by ``cc``
when it is first needed. What a call does is done by the raw system call, so what it cannot see (a raw ``syscall()``
in the product, a write through a mapping) is what ``crash/outside`` compares counts for.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from enum import IntEnum, IntFlag
from typing import NamedTuple

from crash.state import State

SOURCE = os.path.join(os.path.dirname(__file__), "shim.c")
_HEADER = struct.Struct("=IIQQQqI12s")
_TRACE = struct.Struct("=IiI12s")


class Calls(IntFlag):
    """Classes of calls. ``DURABLE``: what changes the disk. ``ALL``: opens and reads too."""

    WRITE = 1
    SYNC = 2
    NAME = 4
    CREATE = 8
    META = 16
    TRUNC = 32
    OPEN = 64
    READ = 128
    DURABLE = WRITE | SYNC | NAME | CREATE | META | TRUNC
    ALL = DURABLE | OPEN | READ


class Fault(IntEnum):
    """What the n-th counted call meets. TEAR: half of a write is done, then SIGKILL; other calls: SIGKILL before."""

    NONE = 0
    KILL = 1
    TEAR = 2
    SHORT = 3
    FAIL_ONCE = 4
    FAIL_ON = 5


class Call(NamedTuple):
    """One recorded call that succeeded, in the order in which they happened. ``op`` "mark": a text of the rig's own.

    ``offset`` is where a write began, a new length, a mode or an owner; ``data`` what was written, an attribute's
    value, two timespecs, a group or a device number; ``other`` a rename's or link's target path, what a symlink says,
    an attribute's name, and ``O_DSYNC`` for the "fdatasync" of the write before it that a descriptor opened so implies.
    """

    op: str
    path: str
    other: str
    inode: int
    offset: int
    data: bytes
    result: int
    pid: int


class Met(NamedTuple):
    """One counted call, whether it succeeded or not: the *nth* since the shim was armed. ``fd`` -1: by name."""

    nth: int
    op: str
    fd: int
    path: str


class NotPreloadedError(RuntimeError):
    """This process does not have the shim loaded: start it through ``stream``."""


class Shim:
    """The shim of this process. Its state is inherited by forked children, each with a count of its own."""

    def __init__(self) -> None:
        if "shim-" not in os.environ.get("LD_PRELOAD", ""):
            raise NotPreloadedError("the shim is not loaded in this process")
        self._libc = ctypes.CDLL(None, use_errno=True)

    def watch(self, root: str) -> None:
        """Look at calls beneath *root* (an absolute path) from now on."""
        self._libc.shim_root(os.fsencode(os.path.realpath(root)))

    def unwatch(self) -> None:
        """Look at no call any more; what was counted and met stays known."""
        self._libc.shim_root(b"")

    def arm(self, calls: Calls, fault: Fault = Fault.NONE, nth: int = 0, error: int = 0) -> None:
        """From now on count *calls*; the *nth* (from 1) meets *fault*. Counting begins anew."""
        self._libc.shim_arm(int(calls), int(fault), ctypes.c_long(nth), error)

    def record(self, fd: int) -> None:
        """Append each call to *fd* (a file elsewhere); -1 stops."""
        self._libc.shim_log(fd)

    def mark(self, text: str | bytes) -> None:
        """Put a mark into the recording: an acknowledgement, a fault point's name."""
        self._libc.shim_mark(text.encode() if isinstance(text, str) else text)

    @property
    def counted(self) -> int:
        self._libc.shim_counted.restype = ctypes.c_long
        return int(self._libc.shim_counted())

    def trace(self, fd: int) -> None:
        """Append each *counted* call to *fd*, before it is done; -1 stops. ``read_trace`` reads it."""
        self._libc.shim_trace(fd)

    def share(self) -> None:
        """From now on this process knows what its forked children met, also when that killed them."""
        if self._libc.shim_share() != 0:
            raise MemoryError("no page to share with the children")

    @property
    def fired(self) -> int:
        """How often the fault was met since it was armed."""
        self._libc.shim_fired.restype = ctypes.c_long
        return int(self._libc.shim_fired())

    @property
    def landed(self) -> Met | None:
        """The call that met the fault first since it was armed, with ``share`` by whichever process; None: none did."""
        self._libc.shim_landed.restype = ctypes.c_long
        self._libc.shim_landed_op.restype = self._libc.shim_landed_path.restype = ctypes.c_char_p
        if not self.fired:
            return None
        path = os.fsdecode(self._libc.shim_landed_path())
        return Met(int(self._libc.shim_landed()), self._libc.shim_landed_op().decode(), -1, path)


def read_calls(path: str) -> Iterator[Call]:
    """What ``Shim.record`` wrote."""
    with open(path, "rb") as file:
        while header := file.read(_HEADER.size):
            a, b, n, offset, inode, result, pid, op = _HEADER.unpack(header)
            path_, other = os.fsdecode(file.read(a)), os.fsdecode(file.read(b))
            yield Call(op.rstrip(b"\0").decode(), path_, other, inode, offset, file.read(n), result, pid)


def read_trace(path: str) -> list[Met]:
    """What ``Shim.trace`` wrote."""
    found = []
    with open(path, "rb") as file:
        while header := file.read(_TRACE.size):
            nth, fd, length, op = _TRACE.unpack(header)
            found.append(Met(nth, op.rstrip(b"\0").decode(), fd, os.fsdecode(file.read(length))))
    return found


def build() -> str:
    """Compile the shim, once per version of its source; where the library is. CalledProcessError if ``cc`` fails."""
    with open(SOURCE, "rb") as file:
        version = hashlib.sha256(file.read()).hexdigest()[:16]
    directory = os.path.join(tempfile.gettempdir(), f"layerstore-crash-{os.getuid()}")
    os.makedirs(directory, mode=0o700, exist_ok=True)
    if os.stat(directory).st_uid != os.getuid():
        raise PermissionError(f"{directory} belongs to somebody else")
    library = os.path.join(directory, f"shim-{version}.so")
    if not os.path.exists(library):
        aside = f"{library}.{os.getpid()}"
        subprocess.run([
            "cc", "-O2", "-shared", "-fPIC", "-fno-delete-null-pointer-checks", "-o", aside, SOURCE, "-ldl", "-pthread",
        ], check=True)
        os.rename(aside, library)
    return library


def environment() -> dict[str, str]:
    """This process's environment, with the shim loaded and what could change the order of calls fixed."""
    return {**os.environ, "LD_PRELOAD": build(), "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}


def stream(module: str, options: argparse.Namespace) -> Iterator[State]:
    """The states that ``preloaded(options)`` of *module* yields in a process that has the shim loaded."""
    command = [sys.executable, "-m", "crash.shim", module, json.dumps(vars(options))]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                yield State(**json.loads(line))
        except GeneratorExit:   # enough states: its next line finds nobody, and it tidies up
            process.stdout.close()
            process.wait()
            raise
        if process.wait() != 0:
            raise RuntimeError(f"the rig {module} ended with {process.returncode}")
