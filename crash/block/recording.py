"""A recorded run: every write, flush and mark of it, in order; made on a disk of ours, kept in a file, read back.

A recording says everything that its crash states need: of which file system and workload it is, the ledger's lines
and the fault points between the writes, and, for a recorded recovery, what the catalog must come to. The kernel
writes back at other times in each run, so a state can be shown again only from its own recording: hence ``save``.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import NamedTuple

from crash.disk.control import Served
from crash.disk.daemon import HEAD
from crash.disk.filesystems import FILESYSTEMS, Filesystem, fast_commits
from crash.disk.rig import standing
from layerstore.testing import run_child
from layerstore.testing.ledger import Ledger

LEDGER, STEP, BEGIN, END = b"L", b"P", b"B", b"E"   # the first byte of a mark
STORE = "store"                                     # the store's directory in the file system
_MAGIC = b"layerstore crash recording 1\n"


class RecordingError(AssertionError):
    """The run was not what it had to be: it failed, or nothing was flushed, or a planted lie was not told."""


class Event(NamedTuple):
    """``W``: *data* written at *offset*. ``D``: *length* bytes discarded. ``F``: a flush. ``M``: the mark *data*."""

    kind: str
    offset: int
    length: int
    data: bytes


@dataclass(frozen=True)
class About:
    """What is recorded. ``dump``: the digest of the dump that a recovery must come to; empty if none is known."""

    fs: str
    workload: str
    seed: int
    dump: str = ""
    label: str = ""
    fast_commits: int = 0


@dataclass(frozen=True)
class Recording:
    about: About
    events: list[Event]
    log: bytes

    @property
    def fs(self) -> Filesystem:
        return FILESYSTEMS[self.about.fs]

    def save(self, path: str) -> None:
        with open(path, "wb") as file:
            file.write(_MAGIC + json.dumps(asdict(self.about)).encode() + b"\n" + zlib.compress(self.log))

    @classmethod
    def load(cls, path: str) -> Recording:
        with open(path, "rb") as file:
            if file.readline() != _MAGIC:
                raise RecordingError(f"{path} is not a recording")
            about = About(**json.loads(file.readline()))
            log = zlib.decompress(file.read())
        return cls(about, list(_events(log)), log)


class Tape:
    """What a recorded run writes its marks to. It opens the mark file anew each time, so a forked child may use it."""

    def __init__(self, disk: Served) -> None:
        self._disk = disk
        self.ledger = Ledger(lambda line: disk.mark(LEDGER + line))

    def line(self, line: bytes) -> None:
        """A ledger's line that is known from before."""
        self._disk.mark(LEDGER + line)

    def begin(self) -> None:
        self._disk.mark(BEGIN)

    def step(self, point: str, when: str) -> None:
        """A fault point was passed. Not one for each entry unpacked: they are many, and no step of the write order."""
        if point != "unpack.entry":
            self._disk.mark(STEP + f"{point}:{when}".encode())


def record(
    about: About, work: str, run: Callable[[str, Tape], object], *, fill: Callable[[int], None] | None = None,
    lie: bool = False, must_flush: bool = True,
) -> Recording:
    """Run *run(root, tape)* in a child on a fresh file system (*fill*: on this image), and take it all down.

    *run* calls ``tape.begin()`` where crash states begin. *lie*: the disk acknowledges flushes and does nothing.
    *must_flush*: a run during which nothing was flushed is an error.
    """
    fs = FILESYSTEMS[about.fs]
    with standing(fs, work, fill=fill, prepare=Served.lie if lie else None) as stand:
        tape, root = Tape(stand.disk), os.path.join(stand.directory, STORE)
        before = stand.disk.counts()
        status = run_child(lambda: run(root, tape), hook=tape.step)
        stand.disk.mark(END)
        counts = {what: n - before[what] for what, n in stand.disk.counts().items()}
        commits = fast_commits(stand.loop.device)
    if status != 0:
        raise RecordingError(f"{about.workload} on {about.fs} ended with {status:#x}")
    if must_flush and not counts["lies" if lie else "flushes"]:
        raise RecordingError(f"{about.workload} on {about.fs}: the disk saw {counts}: nothing was made durable")
    if must_flush and fs.fast_commits and not commits:
        raise RecordingError(f"{about.workload} on {about.fs}: not one fast commit was made")
    path = os.path.join(work, "log")
    with open(path, "rb") as file:
        log = file.read()
    os.unlink(path)
    return Recording(About(**asdict(about) | {"fast_commits": commits}), list(_events(log)), log)


def _events(log: bytes) -> Iterator[Event]:
    at = 0
    while at < len(log):
        kind, offset, length = HEAD.unpack_from(log, at)
        at += HEAD.size
        size = length if kind in (b"W", b"M") else 0
        yield Event(kind.decode(), offset, length, log[at:at + size])
        at += size
