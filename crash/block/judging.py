"""One crash state, judged: its image mounted, the store in it examined in a child, unmounted, the file system checked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from crash import content
from crash.beside import apart
from crash.block import images, plain
from crash.block.images import Image
from crash.block.recording import STORE
from crash.disk.filesystems import Filesystem, fsck
from crash.disk.kernel_calls import Loop, unmount
from crash.disk.rig import mount_image
from crash.workloads import Workload
from layerstore.testing import ChildDiedError, Verdict, examine, expectation, telling

CLOCK_NS = 1_800_000_000 * 10**9   # what recovery records as the time: equal states then come to equal catalogs


@dataclass
class Judgement:
    """The oracle's verdict, and what the rig adds to it. ``unmountable``: the errno with which mount(2) failed.

    ``fsck``: ``clean``, or what the file system's own checker said; empty if it was not asked.
    """

    violations: list[str] = field(default_factory=list)
    redo: list[str] = field(default_factory=list)
    happened: bool | None = None
    dump: str = ""
    unmountable: int = 0
    fsck: str = ""


class Bench:
    """Where one worker mounts its images, one at a time."""

    def __init__(self, work: str, fs: Filesystem) -> None:
        self.fs, self._image, self._directory = fs, os.path.join(work, "image"), os.path.join(work, "crashed")
        os.makedirs(self._directory, exist_ok=True)

    def judge(self, image: Image, look: Callable[[str], Verdict], *, check: bool) -> Judgement:
        """Mount *image*, *look(root)* at the store in it, unmount; *check*: then run the file system's own fsck."""
        images.save(image, self._image, self.fs.megabytes << 20)
        judgement = Judgement()
        with Loop(self._image) as loop:
            try:
                mount_image(self.fs, loop, self._directory)
            except OSError as error:
                judgement.unmountable = error.errno or -1
                judgement.violations.append(f"the file system does not mount: errno {error.errno}")
                return judgement
            try:
                verdict = telling(lambda: look(os.path.join(self._directory, STORE)))
            except ChildDiedError as died:
                judgement.violations.append(f"the oracle died: {died}")
            else:
                judgement.violations, judgement.redo = verdict.violations, verdict.redo
                judgement.happened = verdict.happened
                judgement.dump = hashlib.sha256(verdict.dump).hexdigest()
            finally:
                unmount(self._directory)
        if check:
            wrong = fsck(self.fs, self._image)
            judgement.fsck = wrong or "clean"
            if wrong and not self.fs.fsck_apart:
                judgement.violations.append(wrong)
        return judgement


def looking(workload: Workload, ledger: list[bytes], *, again: bool) -> Callable[[str], Verdict]:
    """The oracle with the ledger of one state; *again*: with the workload's user, who tries once more."""
    if workload.name == plain.NAME:
        return lambda root: plain.look(root, ledger)
    expect, _ = apart(expectation(ledger))
    damaged = any(subject.startswith("damage:") for subject in expect.allowed)   # only a look at the content finds that

    def look(root: str) -> Verdict:
        seen = workload.look(root, ledger)
        workload.mend(root)
        verdict = examine(
            root, content=damaged, expect=expect, trees=content.TREES, again=workload.again if again else None,
            clock=lambda: CLOCK_NS,
        )
        verdict.violations[:0] = seen
        return verdict

    return look
