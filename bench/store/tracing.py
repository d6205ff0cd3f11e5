"""What a traced program did, counted: flushes, bytes written, and waits for locks. Times only sort out what is no wait.

A *flush* is an fsync, fdatasync or syncfs, or a write through a descriptor that was opened with O_DSYNC or O_SYNC.
A *wait for a lock* is a flock that may block, or that was refused because somebody else has the lock; an fcntl lock
that may block; and a futex wait that lasted longer than a millisecond (or never returned). Everything between two
marks of ``worker`` is counted, or everything, if there are none.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from crash.strace import SYNCS, WRITES, Call, parse

MARK = "layerstore-bench-mark"
LOCKS = ("flock", "fcntl", "futex", "futex_waitv")
_TOOK = re.compile(r"(.*?)(?: <([0-9.]+)>)?$", re.DOTALL)
_SECONDS = 0.001


@dataclass
class Work:
    """Flushes by name, and bytes written by where: ``journal``, or the rest of the store."""

    flushes: Counter[str] = field(default_factory=Counter)
    journal_bytes: int = 0
    other_bytes: int = 0


def run(command: Sequence[str], names: Iterable[str], *, env: dict[str, str] | None = None, timeout: float | None = None,
        fast: bool = False) -> tuple[list[Call], str]:
    """Trace *command* to its end: its calls of *names*, and what it printed.

    After *timeout* seconds it is killed, and what it did until then is told: a wait without an end is one, too.
    *fast*: calls of other names do not stop it (by a seccomp filter, which its children inherit).
    """
    wanted = ",".join(f"?{name}" for name in sorted({*names, "access", "faccessat", "faccessat2"}))
    with tempfile.NamedTemporaryFile(prefix="trace-", mode="r", errors="surrogateescape") as log:
        options = [*(["--seccomp-bpf"] if fast else []), "-f", "-y", "-q", "-T", "-s", "200", "-e", f"trace={wanted}"]
        with subprocess.Popen(["strace", *options, "-o", log.name, *command], env=env, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
            try:
                out, _ = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                out, _ = process.communicate()
            else:
                if process.returncode:
                    raise RuntimeError(f"{command[:4]} failed under strace: {process.returncode}")
        return list(parse(log.read().split("\n"))), out


def between_marks(calls: Sequence[Call]) -> list[Call]:
    """The calls between the marks ``begin`` and ``end``; all of them if there is no mark."""
    at = {name: n for n, call in enumerate(calls) for name in ("begin", "end") if f"/{MARK}/{name}" in call.text}
    return list(calls[at.get("begin", -1) + 1:at.get("end", len(calls))])


def work(calls: Sequence[Call], root: str) -> Work:
    """What was written and flushed between the marks, of what touches *root*."""
    synchronous: dict[str, bool] = {}   # descriptor → whether writing to it is a flush
    first = {id(call) for call in between_marks(calls)}
    done = Work()
    for call in calls:
        result = _result(call)[0]
        if call.name == "openat" and (opened := re.match(r"(\d+)<", result)):
            synchronous[opened[1]] = bool(re.search(r"\bO_D?SYNC\b", call.text))
        if id(call) not in first or not call.touches(root):
            continue
        if call.name in SYNCS:
            done.flushes[call.name] += 1
        elif call.name in WRITES and result.isdecimal():
            if synchronous.get(call.text.partition("<")[0]):
                done.flushes["O_DSYNC write"] += 1
            if any(path.startswith(os.path.join(root, "journal")) for path in call.paths()):
                done.journal_bytes += int(result)
            else:
                done.other_bytes += int(result)
    return done


def lock_waits(calls: Sequence[Call]) -> list[str]:
    """The waits for locks between the marks, each as its line; empty for a program that waited for nobody."""
    return [f"{call.name}({call.text}) = {call.result}" for call in between_marks(calls) if _waits(call)]


def _waits(call: Call) -> bool:
    result, seconds = _result(call)
    unfinished = call.result.startswith("?") and not seconds
    if call.name == "flock":
        return "LOCK_UN" not in call.text and ("LOCK_NB" not in call.text or "EAGAIN" in result or unfinished)
    if call.name == "fcntl":
        return "SETLKW" in call.text or ("SETLK" in call.text and ("EAGAIN" in result or "EACCES" in result))
    if call.name.startswith("futex"):
        return ("_WAIT" in call.text or call.name == "futex_waitv") and (unfinished or (seconds or 0) > _SECONDS)
    return False


def _result(call: Call) -> tuple[str, float | None]:
    match = _TOOK.match(call.result)
    assert match is not None
    return match[1], float(match[2]) if match[2] else None
