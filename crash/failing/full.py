"""A disk that is really full: a small ext4 or xfs on a loop device, filled to one level after the other.

A ballast file leaves a certain number of blocks free, from none to what the workload needs; then the workload runs.
Nobody may die (LMDB's lock file is mapped: SIGBUS), what is said must hold, deleting must work, and when the ballast
is gone everything does. Needs root. Everything happens in a mount namespace of its own, which dies with its process.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress

import layerstore
from crash import content
from crash.shim.scene import NotLandedError
from crash.state import State, outcome_of
from crash.workloads import Images, Workload, build
from layerstore.errors import LayerstoreError
from layerstore.testing.children import ChildDiedError, telling
from layerstore.testing.ledger import Ledger, read_ledger
from layerstore.testing.oracle import examine

LEVELS = 20
FILESYSTEMS = {   # megabytes (xfs makes none smaller), and how it is made; no blocks kept for root
    "ext4": (24, ["mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0"]),
    "xfs": (300, ["mkfs.xfs", "-q", "-f"]),
}
SLACK = {"ext4": 256 << 10, "xfs": 3 << 20}   # what it needs in between; what the file system never gives away
WORKLOADS = ("create", "pull", "apply", "delete", "checkpoint", "gc")
_PAUSE = 0.03     # seconds
_CLONE_NEWNS = 0x00020000
_MS_REC_PRIVATE = 0x4000 | (1 << 18)


def states(options: argparse.Namespace) -> Iterator[State]:
    if os.geteuid() != 0:
        raise PermissionError("a small file system on a loop device needs root")
    wanted = options.workload or WORKLOADS
    for fs in getattr(options, "fs", None) or FILESYSTEMS:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as work:
            for name in wanted:
                if name in WORKLOADS:
                    yield from telling(lambda f=fs, n=name, w=work: on(w, f, n, options))  # type: ignore[misc]


def on(work: str, fs: str, name: str, options: argparse.Namespace) -> list[State]:
    """All levels of one workload on one file system, in this process, which has its own mounts from now on."""
    planted = getattr(options, "sabotage", None)
    if planted:
        module, function = planted.split(":")
        getattr(importlib.import_module(module), function)()
    unshare()
    image, mounted = os.path.join(work, f"{name}.img"), os.path.join(work, f"{name}.mnt")
    megabytes, make = FILESYSTEMS[fs]
    os.mkdir(mounted)
    with open(image, "wb") as file:
        file.truncate(megabytes << 20)
    subprocess.run([*make, image], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["mount", "-o", "loop", image, mounted], check=True)
    try:
        disk = Disk(mounted, fs, os.path.join(work, f"{name}.images"), os.path.join(work, f"{name}.ledger"))
        workload = WORKLOAD_CREATE if name == "create" else build(disk.images)[name]
        found = list(disk.levels(workload, planted))
        disk.close()
    finally:
        subprocess.run(["umount", "--lazy", mounted], check=True)
        os.unlink(image)
    refused = [s for s in found if s.outcome == "error"]
    if not refused or len(refused) == len(found):
        raise NotLandedError(f"{name} on {fs}: {len(refused)} of {len(found)} levels were too full")
    return found


def copy(source: str, target: str) -> None:
    """A copy in which no block is missing: on a full disk it could not be had any more."""
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    subprocess.run(["cp", "-a", "--sparse=never", "--", source, target], check=True, env=environment)


def unshare() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0 or libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC_PRIVATE), None) != 0:
        raise OSError(ctypes.get_errno(), "no mount namespace of our own")


def _open(root: str, _ledger: Ledger) -> None:
    with layerstore.open(root):
        pass


WORKLOAD_CREATE = Workload("create", lambda _root, _ledger: None, _open, lambda _store: None)


class Disk:
    """A mounted file system with a prepared store on it, again and again."""

    def __init__(self, path: str, fs: str, images: str, ledger: str) -> None:
        self.path, self.fs, self.lines = path, fs, ledger
        self.store, self.ballast = os.path.join(path, "store"), os.path.join(path, "ballast")
        self.images = Images(images)

    def levels(self, workload: Workload, planted: str | None) -> Iterator[State]:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as aside:
            start = os.path.join(aside, "start")
            ledger = Ledger.to_file(self.lines)
            workload.prepare(start, ledger)
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(start, "reserve"))   # as if it was spent; with it: tests/test_space.py
            with open(self.lines, "rb") as file:
                told = file.read()
            self._place(start, told)
            before = self.free()
            if error := telling(lambda: self._run(workload)):
                raise AssertionError(f"{workload.name} fails on an empty disk: {error}")
            needed = before - self.free()
            for level in range(LEVELS):
                self._place(start, told)
                top = needed * 5 // 4 + SLACK[self.fs]
                yield self._one(workload, top * level**2 // (LEVELS - 1)**2, planted)

    def _place(self, start: str, told: bytes) -> None:
        subprocess.run(["rm", "-rf", self.store, self.ballast], check=True)
        if os.path.isdir(start):
            copy(start, self.store)
            os.unlink(os.path.join(self.store, "journal", "lock.mdb"))   # the next open makes it: on the full disk
        with open(self.lines, "wb") as file:
            file.write(told)
        os.sync()
        self._settle()

    def _settle(self) -> None:
        """Wait until all is free that was unlinked: xfs does that in the background (inodegc)."""
        last = -1
        while last != (now := self.free()):
            last = now
            time.sleep(_PAUSE)

    def _one(self, workload: Workload, left: int, planted: str | None) -> State:
        self.fill(left)
        wrong: list[str] = []
        error = ""
        try:
            error = telling(lambda: self._run(workload))
            if error not in ("", "NoSpaceError", "PendingError", "OutcomeUnknownError"):
                wrong.append(f"a full disk came out as {error}")
        except ChildDiedError as died:
            sign = signal.Signals(os.WTERMSIG(died.status)).name if os.WIFSIGNALED(died.status) else "an error"
            wrong.append(f"the process died of {sign}: {died}")
        free = self.free()
        os.unlink(self.ballast)
        verdict = telling(lambda: examine(
            self.store, expect=read_ledger(self.lines), trees=content.TREES, again=workload.again,
        ))
        wrong += verdict.violations
        return State(
            rig="failing", workload=f"full-{workload.name}", fault=f"{left >> 10} KiB left", violations=wrong,
            outcome="error" if error and not wrong else outcome_of(verdict.happened, wrong), redo=bool(verdict.redo),
            fs=self.fs, details={"left": left, "free_after": free, "error": error},
            reproduce=f"python -m crash run failing --scenario full --workload {workload.name}"
            + (f" --sabotage {planted}" if planted else ""),
        )

    def _run(self, workload: Workload) -> str:
        signal.alarm(300)
        try:
            workload.run(self.store, Ledger.to_file(self.lines))
        except LayerstoreError as error:
            return type(error).__name__
        return ""

    def free(self) -> int:
        status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize

    def fill(self, left: int) -> None:
        """Leave *left* bytes: a file takes the rest, first in large pieces, at the end in blocks."""
        fd = os.open(self.ballast, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with suppress(OSError):
            while (more := self.free() - left) >= 4096:
                os.posix_fallocate(fd, os.fstat(fd).st_size, max(4096, (more // 2) & ~4095))
        os.close(fd)
        os.sync()

    def close(self) -> None:
        subprocess.run(["rm", "-rf", self.store, self.ballast], check=True)
