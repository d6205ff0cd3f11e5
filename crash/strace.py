"""A program traced, and killed, from outside by ``strace``: with no help from the program's code.

What may live here: running strace, reading its lines, which calls change the disk, and the proof that a kill landed.
What is run, and what is made of the state that is left, belongs to the rigs (``outside``, ``peer``).

``--seccomp-bpf`` must never be given: it makes strace drop injected signals without a word. ``when=N`` counts per
thread and per system call, so a call's number is (name, how-manyeth of its thread), and the first thread to get
there is the one that dies: that it was the call that was asked for is read from the killed run's own trace.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

WRITES = frozenset({"write", "writev", "pwrite64", "pwritev", "pwritev2", "copy_file_range", "sendfile", "splice"})
SYNCS = frozenset({"fsync", "fdatasync", "syncfs", "sync", "msync", "sync_file_range"})
NAMES = frozenset({
    "mkdir", "mkdirat", "mknod", "mknodat", "rename", "renameat", "renameat2", "link", "linkat", "symlink",
    "symlinkat", "unlink", "unlinkat", "rmdir", "mount", "umount2", "move_mount", "pivot_root",
})
SIZES = frozenset({"truncate", "ftruncate", "fallocate"})
MARKS = frozenset({
    "chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat", "utime", "utimes",
    "futimesat", "utimensat", "setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr",
})
OPENS = frozenset({"open", "openat", "openat2", "creat"})
MUTATING = WRITES | SYNCS | NAMES | SIZES | MARKS | OPENS
_OPENS_TO_CHANGE = re.compile(r"\bO_(CREAT|TRUNC|TMPFILE)\b")
_LINE = re.compile(r"^(\d+) +(?:([\w?]+)\((.*)|<\.\.\. (\w+) resumed>(.*)|\+\+\+ (.*) \+\+\+|--- .*)$", re.DOTALL)
_FD = re.compile(r"(?:\d+|AT_FDCWD)<(/[^<>]*)>")
_TEXT = re.compile(r'"((?:[^"\\]|\\.)*)"')


class NotKilledError(AssertionError):
    """The program was to die of SIGKILL at a call, and did not, or died at another one."""


@dataclass(frozen=True, slots=True)
class Call:
    """One system call: its thread, name, number among that thread's calls of the name (from 1), text and result.

    ``result`` is what stands after the ``=``; ``?`` if the call never returned. ``where``: the text with what lies
    behind ``/proc/self/fd/N``, as far as the trace has shown it. ``ended``: whether its end was seen, too.
    """

    thread: int
    name: str
    nth: int
    text: str
    result: str
    where: str = ""
    ended: bool = True

    @property
    def failed(self) -> bool:
        return self.result.startswith(("-1", "?"))

    @property
    def key(self) -> str:
        return f"{self.name}:{self.nth}"

    def paths(self) -> list[str]:
        """The files named: by descriptor (as ``-y`` resolves them) and by path, those relative to a directory joined."""
        if self.name in WRITES or self.name in SYNCS or self.name.startswith("f"):
            return _FD.findall(self.text.split('"')[0])
        text = self.where or self.text
        found: list[str] = []
        directory = ""
        for match in re.finditer(f"{_FD.pattern}|{_TEXT.pattern}", text):
            if match[1] is not None:
                directory = match[1]
                found.append(directory)
            elif directory or match[2].startswith("/"):
                found.append(os.path.join(directory, match[2]))
        return found

    def mutates(self) -> bool:
        """Whether the call is one that changes what is on the disk, or orders it."""
        return self.name in MUTATING and (self.name not in OPENS or bool(_OPENS_TO_CHANGE.search(self.text)))

    def touches(self, root: str) -> bool:
        return any(path == root or path.startswith(root + "/") for path in self.paths())


@dataclass(frozen=True, slots=True)
class Trace:
    """What a traced program did, and how it ended: its exit status as ``subprocess`` has it, who died of SIGKILL."""

    calls: tuple[Call, ...]
    status: int
    stdout: bytes
    stderr: bytes
    killed: frozenset[int]

    def changing(self, root: str) -> list[Call]:
        """The mutating calls that touch *root*, in order."""
        return [call for call in self.calls if call.mutates() and call.touches(root)]


def available() -> str | None:
    """Why programs cannot be traced here; None if they can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True, check=False)
    return None if tried.returncode == 0 else f"strace cannot trace: {tried.stderr.decode().strip()}"


def trace(
    command: Sequence[str], log: str, *, names: Iterable[str] = MUTATING, inject: str | None = None,
    env: Mapping[str, str] | None = None,
) -> Trace:
    """Run *command* under strace to its end, tracing the calls *names*. *inject*: strace's expression of a fault."""
    wanted = ",".join(f"?{name}" for name in sorted(names))   # ?: names that another machine lacks are no error
    options = ["-e", f"trace={wanted}", *(["-e", f"inject={inject}"] if inject else [])]
    done = subprocess.run(
        ["strace", "-f", "-y", "-q", "-s", "300", "-o", log, *options, *command],
        env=env, stdin=subprocess.DEVNULL, capture_output=True, check=False,
    )
    with open(log, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        lines = file.read().split("\n")
    killed = {int(match[1]) for line in lines if (match := re.match(r"(\d+) +\+\+\+ killed by SIGKILL", line))}
    return Trace(tuple(parse(lines)), done.returncode, done.stdout, done.stderr, frozenset(killed))


def parse(lines: Iterable[str]) -> Iterator[Call]:
    """The calls in strace's lines, in the order in which they were entered. ValueError for a line of another kind."""
    counts: Counter[tuple[int, str]] = Counter()
    calls: list[Call] = []
    open_: dict[int, int] = {}
    descriptors: dict[str, str] = {}   # of the traced process: what was opened last under each number
    for line in lines:
        if not line:
            continue
        match = _LINE.match(line)
        if match is None:
            raise ValueError(f"not a line of strace: {line!r}")
        thread = int(match[1])
        if match[4] and thread in open_:
            at = open_.pop(thread)
            text, result = _result(calls[at].text + match[5])
            calls[at] = replace(calls[at], text=text, result=result, where=_resolved(text, descriptors))
        elif match[2]:
            counts[thread, match[2]] += 1
            text, result = _result(match[3].removesuffix(" <unfinished ...>"))
            if match[3].endswith("<unfinished ...>"):
                open_[thread] = len(calls)
            where = _resolved(text, descriptors)
            at = len(calls)
            calls.append(Call(thread, match[2], counts[thread, match[2]], text, result, where))
        else:
            continue   # how a thread ended, or a signal
        if opened := re.match(r"(\d+)<(/[^<>]*)>", calls[at].result):
            descriptors[opened[1]] = opened[2]
    for at in open_.values():
        calls[at] = replace(calls[at], ended=False)
    return iter(calls)


def _resolved(text: str, descriptors: Mapping[str, str]) -> str:
    return re.sub(r"/proc/self/fd/(\d+)", lambda match: descriptors.get(match[1], match[0]), text)


def _result(text: str) -> tuple[str, str]:
    body, found, result = text.rpartition(" = ")
    return (body.rstrip().removesuffix(")"), result) if found else (text, "?")


@dataclass(frozen=True, slots=True)
class Point:
    """A call to kill at, by number, and its shape: what it does, identities of single runs aside."""

    name: str
    nth: int
    shape: str

    def __str__(self) -> str:
        return f"{self.name}:{self.nth}"


def points(traced: Trace, root: str) -> list[Point]:
    """Every mutating call that touches *root*, in order. AssertionError if two threads make them: no order is fixed."""
    calls = traced.changing(root)
    threads = {call.thread for call in calls}
    assert len(threads) == 1, f"calls of {len(threads)} threads change {root}: their numbers mean nothing"
    return [Point(call.name, call.nth, shape(call, root)) for call in calls]


def entered(cut: Sequence[Call]) -> list[Call]:
    """Without those that were not made: of a thread that is gone before its registers can be read, strace (6.1) prints
    the call that it looked at last, of another thread, word for word, and never its end.
    """
    made = {call.text for call in cut if call.ended}
    return [call for call in cut if call.ended or call.text not in made]


def kill_at(point: Point, command: Sequence[str], log: str, root: str, *, env: Mapping[str, str] | None = None) -> Trace:
    """Run *command* on *root* and kill it as it enters the call. NotKilledError unless it died at that very call."""
    ran = trace(command, log, names=[point.name], inject=f"{point.name}:signal=KILL:when={point.nth}", env=env)
    if ran.status != -signal.SIGKILL:
        raise NotKilledError(f"{point}: the program ended with {ran.status}, and was to be killed: {ran.stderr!r}")
    cut = entered([call for call in ran.calls if call.result.startswith("?") and call.thread in ran.killed])
    # other threads may have been within a call that only reads
    killed = [call for call in cut if (call.name, call.nth) == (point.name, point.nth) and shape(call, root) == point.shape]
    if len(killed) != 1 or any(call.mutates() and call.touches(root) for call in cut if call not in killed):
        raise NotKilledError(f"{point}: killed, but not at {point.shape}: {[shape(call, root) for call in cut]}")
    return ran


_PASSING = re.compile(r"(?<![0-9a-f])(?:[0-9a-f]{16}|[0-9a-f]{32}|[0-9a-f]{64})(?![0-9a-f])|\d{6,}")


def shape(call: Call, root: str) -> str:
    """What a call does, without the store's place, descriptors' numbers, random identities, times and data written."""
    text = re.split(r'["\[]', call.text)[0].rstrip(", ") if call.name in WRITES else call.text
    text = re.sub(r"AT_FDCWD<[^<>]*>", "AT_FDCWD", text.replace(root, "ROOT"))
    text = re.sub(r"\b\d+(?=<)|(?<=/proc/self/fd/)\d+", "", text)   # which number is free depends on threads that only read
    return f"{call.name}({_PASSING.sub('*', text)})"
