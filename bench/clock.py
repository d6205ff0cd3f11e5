"""One run of one command, as a whole process: wall time, processor time, memory, and who else was at work meanwhile.

Memory is the greatest resident set of any one process of the command (``c/stopwatch.c`` asks wait4(2)). *Foreign* is the
part of the machine's processors that neither the command, nor this program, nor the kernel's own threads used (those
work for the command: they write its data).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

_TICKS = os.sysconf("SC_CLK_TCK")
_CPUS = os.cpu_count() or 1
FOREIGN_LIMIT = 0.15
_PF_KTHREAD = 0x00200000


@dataclass(frozen=True)
class Run:
    """What one run took. ``marked``: foreign load passed the limit, and repeating it did not help."""

    wall: float        # s
    cpu: float         # s, user and system, with all children
    rss: float         # MiB
    foreign: float     # 0 … 1 of all processors
    marked: bool = False


class FailedError(Exception):
    """The command ended with another status than 0."""


def once(stopwatch: str, command: str, environment: Mapping[str, str]) -> Run:
    """Run the shell's *command*. FailedError with the end of what it said if it fails."""
    busy, kernel, own = _busy(), _kernel_threads(), _own()
    done = subprocess.run([stopwatch, "/bin/sh", "-c", command], env=environment, stdin=subprocess.DEVNULL,
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", check=True)
    busy, kernel, own = _busy() - busy, _kernel_threads() - kernel, _own() - own
    run = _told(command, done.stderr)
    return replace(run, foreign=max(0.0, (busy - kernel - own - run.cpu) / (run.wall * _CPUS)))


def line(run: Run) -> str:
    """For who watches."""
    foreign = f"  (foreign {run.foreign:.0%})" if run.marked else ""
    return f"{run.wall:8.3f} s  {run.cpu:7.3f} s cpu  {run.rss:6.1f} MiB{foreign}"


def inner(command: str, environment: Mapping[str, str]) -> Run:
    """A command with a stopwatch of its own in it: what that one said of the part behind it. Foreign load is not told."""
    done = subprocess.run(["/bin/sh", "-c", command], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True, errors="replace", check=True)
    return _told(command, done.stderr)


def _told(command: str, text: str) -> Run:
    """What ``stopwatch`` said in its last line."""
    said, _, figures = text.strip().rpartition("\n")
    wall, user, system, rss, status = figures.split()
    if status != "0":
        raise FailedError(f"{command}: status {status}: {said.strip()[-500:]}")
    return Run(float(wall), float(user) + float(system), int(rss) / 1024, 0.0)


def quiet(run: Callable[[], Run], tries: int) -> Run:
    """*run*, again while foreign load was above the limit, up to *tries* times in all; the quietest, marked if need be."""
    best = run()
    for _ in range(tries - 1):
        if best.foreign <= FOREIGN_LIMIT:
            break
        best = min(best, run(), key=lambda each: each.foreign)
    return replace(best, marked=best.foreign > FOREIGN_LIMIT)


def _busy() -> float:
    """Seconds that all processors worked since boot, whoever for: user nice system irq softirq steal."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICKS


def _own() -> float:
    """Seconds of this process alone."""
    spent = os.times()
    return spent.user + spent.system


def _kernel_threads() -> float:
    total = 0
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b") ")[2].split()
        except OSError:
            continue   # it has ended
        if int(fields[6]) & _PF_KTHREAD:
            total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def warm(path: str) -> None:
    """Have all of *path* in the page cache."""
    with open(path, "rb", buffering=0) as file:
        piece = bytearray(1 << 20)
        while file.readinto(piece):
            pass


def cold(path: str) -> None:
    """Have nothing of *path* in the page cache (nobody may have it mapped, and it must be on disk, as it is)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
