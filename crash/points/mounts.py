"""Mounting and unmounting, killed at their fault points, and the recovery after that at its own.

In a private mount namespace of a forked child, so that no mount of these gets out, and all are gone with it. A mount
outlives the process that made it; so nothing is copied here: each state is made from the start, at the same path.

The oracle's part that is here alone: what is mounted shows the layers' content; a writable mount's upper directory,
once somebody wrote to it, is never lost; what has no row is not mounted; unmounting by name succeeds in the end.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial

import layerstore
from crash import workloads as w
from crash.content import TREES
from crash.state import State, outcome_of
from crash.workloads import put
from layerstore.model import Mount
from layerstore.system import kernel
from layerstore.testing import (
    Ledger,
    Passing,
    Verdict,
    copy_store,
    examine,
    in_workers,
    kill_at,
    passings,
    read_ledger,
    reopen,
    run_child,
    still_clock,
    telling,
)
from layerstore.trees import mounted

NAME = "mount"
_NEW_NAMESPACE = 0x00020000        # CLONE_NEWNS
_DETACH = 2                        # MNT_DETACH
_PRIVATE = (1 << 14) | (1 << 18)   # MS_REC | MS_PRIVATE


def states(options: argparse.Namespace, levels: Sequence[float]) -> Iterator[State]:
    """Needs root. OSError, not a silent nothing, without."""
    work = os.path.join(options.work, NAME)
    os.mkdir(work)
    show = [Passing.parse(each) for each in options.show.split("/")] if options.show else None
    # one worker: the target's path is in the rows, and a path is mounted on once
    yield from in_workers([partial(_in_namespace, work, levels, options.seed, show), lambda: iter(())])


def _in_namespace(
    work: str, levels: Sequence[float], seed: int, show: Sequence[Passing] | None,
) -> Iterator[State]:
    private_namespace()
    site = Site(work)
    try:
        for path in [tuple(show)] if show else site.paths(levels):
            verdict = site.killed(path)
            text = "/".join(map(str, path))
            yield State(
                rig="points", workload=NAME, fault=f"kill {text}", outcome=outcome_of(None, verdict.violations),
                violations=verdict.violations, redo=bool(verdict.redo), fs="tmpfs", seed=seed,
                details={"level": len(path), "recovery": verdict.redo},
                reproduce=f"python -m crash run points --workload {NAME} --show {text}",
            )
    finally:
        site.clear()


def private_namespace() -> None:
    """Give this process mounts of its own. OSError if it may not."""
    kernel.unshare(_NEW_NAMESPACE)
    kernel.mount("none", "/", None, _PRIVATE, None)


class Site:
    """A store and two places to mount on, made anew for each state at the same paths."""

    def __init__(self, work: str) -> None:
        self._work, self._pristine = work, os.path.join(work, "pristine")
        self.root = os.path.join(work, "store")
        self.targets = [os.path.join(work, each) for each in ("writable", "readonly")]
        self._told, self._ledger = os.path.join(work, "told"), os.path.join(work, "ledger")
        for target in self.targets:
            os.mkdir(target)
        if os.waitstatus_to_exitcode(run_child(self._prepare)) != 0:
            raise AssertionError("prepare failed")

    def _prepare(self) -> None:
        ledger = Ledger.to_file(f"{self._pristine}.ledger")
        with layerstore.open(self._pristine) as store:
            put(store, ledger, w.BASE, w.BASE_ID, names=("base",))
            put(store, ledger, w.TOP, w.TOP_ID, parent=w.BASE_ID, names=("top",))

    # -- making a state ------------------------------------------------------------------------------------------

    def paths(self, levels: Sequence[float]) -> Iterator[tuple[Passing, ...]]:
        """Every point of the program; with two levels or more, every point of the recovery after it."""
        self._begin()
        for first in passings(self.run):
            yield (first,)
            if len(levels) > 1:
                self._begin()
                kill_at(first, self.run)
                yield from ((first, second) for second in passings(partial(reopen, self.root)))
                self._begin()

    def killed(self, path: Sequence[Passing]) -> Verdict:
        """Kill the program, then its recovery, at the points of *path*; recover; what the oracle says."""
        self._begin()
        kill_at(path[0], self.run)
        for each in path[1:]:
            kill_at(each, partial(reopen, self.root))
        return telling(self._judge)

    def run(self) -> None:
        """Mount, write, unmount with the upper directory kept, take it up again, and give it up."""
        writable, readonly = self.targets
        with layerstore.open(self.root) as store:
            store.mount("top", writable, writable=True)
            with open(os.path.join(writable, "mine"), "w", encoding="ascii") as file:
                file.write("precious")
            self._tell("written")
            store.mount("base", readonly)
            store.unmount(readonly)
            store.unmount(writable, keep_upper=True)
            store.mount("top", writable, writable=True)
            self._tell("given up")
            store.unmount(writable)
            self._tell("gone")

    def _tell(self, what: str) -> None:
        with open(self._told, "a", encoding="ascii") as file:
            file.write(f"{what}\n")

    def _begin(self) -> None:
        self.clear()
        copy_store(self._pristine, self.root)
        shutil.copy(f"{self._pristine}.ledger", self._ledger)

    def clear(self) -> None:
        """Unmount and remove all that a state left."""
        for target in self.targets:
            while mounted.is_overlay_mounted(target):
                kernel.umount2(target, _DETACH)
        shutil.rmtree(self.root, ignore_errors=True)
        for path in (self._told, self._ledger):
            with suppress(FileNotFoundError):
                os.unlink(path)

    # -- judging it ----------------------------------------------------------------------------------------------

    def _judge(self) -> Verdict:
        verdict = examine(self.root, expect=read_ledger(self._ledger), trees=TREES, clock=still_clock)
        if not verdict.violations:
            try:
                verdict.violations += self._mount_problems()
            except Exception as error:
                verdict.violations.append(f"the mounts cannot be used: {error!r}")
        return verdict

    def _mount_problems(self) -> list[str]:
        found = []
        with layerstore.open(self.root) as store:
            rows = {each.target: each for each in store.mounts()}
            for target in self.targets:
                if mounted.is_overlay_mounted(target):
                    if target not in rows:
                        found.append(f"{target} is mounted, and no row knows it")
                    found += self._content_problems(target)
            found += self._lost(rows)
            for target in rows:
                store.unmount(target)
            if store.mounts() or os.listdir(os.path.join(self.root, "uppers")):
                found.append("unmounting by name left something")
            found += [f"{each} is still mounted" for each in self.targets if mounted.is_overlay_mounted(each)]
            store.delete_layer(w.TOP_ID)   # nothing pins it any more
        return found

    def _content_problems(self, target: str) -> list[str]:
        """What is mounted shows the base layer's file, and in the writable place the upper layer's."""
        labels = ["base"] if target == self.targets[1] else ["base", "top"]
        found = []
        for label in labels:
            diff_id = {"base": w.BASE, "top": w.TOP}[label].diff_id
            entry = TREES[diff_id][f"only-{label}/data"]
            with open(os.path.join(target, f"only-{label}", "data"), "rb") as file:
                if "sha256:" + hashlib.file_digest(file, "sha256").hexdigest() != entry.content:
                    found.append(f"{target} does not show the content of {label}")
        return found

    def _lost(self, rows: Mapping[str, Mount]) -> list[str]:
        """What somebody wrote is there, mounted or kept, from when it was written until it was given up by name."""
        told = ""
        with suppress(FileNotFoundError), open(self._told, encoding="ascii") as file:
            told = file.read()
        if "gone" in told and rows:
            return [f"given up, and told so, but there is a row: {rows}"]
        if "written" not in told or "given up" in told:
            return []
        if self.targets[0] not in rows:
            return ["a writable mount that was written to has no row any more"]
        path = os.path.join(self.root, "uppers", rows[self.targets[0]].id, "upper", "mine")
        if not os.path.exists(path):
            return ["what was written to the upper directory is lost"]
        return []
