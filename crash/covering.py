"""``python -m crash.covering``: which rig explores which verb, as a page of the documents, from what the rigs list.

What may live here: what each workload's name stands for (``VERBS``). A name that some rig has and no verb, or the other
way round, is an error, so that the table cannot tell of what is not run.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable

from crash import block, calls, device, failing, outside, points, posix
from crash.block import plain
from crash.lines import verbs
from crash.points import mounts
from crash.schedule import scenarios
from crash.sequences import alphabet
from crash.workloads import Images

__all__ = ["VERBS", "UnknownNameError", "names", "page"]

VERBS: dict[str, tuple[str, ...]] = {   # what a user does: the workloads, scenarios, verbs and runs that do it
    "make a store": ("create", "first-pull"),
    "open it after a crash, close it": (
        "recovery", "open", "recover", "open-owner", "open-delete", "two-recover", "repair-open", "close"),
    "stage, seal, adopt, discard": (
        "adopt", "stage", "stage-many", "adopt-gc", "same-layer", "gc-stage", "three", "everything"),
    "apply one layer, a batch, a duplicate": (
        "apply", "apply-big", "duplicate", "batch", "same-id", "put", "both", "press-on", "everything", "delete-parent"),
    "pull an image": ("pull", "pull-parallel", "pulls", "pair", "delete-pull", "everything", "hurried"),
    "pull on where it broke off": ("resume", "resume-gc", "resume-twice", "partial"),
    "take content that is there": ("take", "take-delete", "partial", "partial-delete"),
    "delete layers and images": (
        "delete", "image-delete", "rm", "drop", "delete-parent", "delete-pull", "open-delete", "repair-delete",
        "check-delete", "delete-lost", "everything"),
    "names and leases": ("names", "apply"),
    "checkpoint and archive": ("checkpoint", "everything"),
    "gc": (
        "gc", "gc-segments", "collect", "gc-stage", "adopt-gc", "resume-gc", "repair-gc", "check-gc", "three",
        "everything"),
    "check": ("check", "check-pull", "check-delete", "check-gc", "check-repair"),
    "repair": (
        "repair", "repair-source", "repair-parts", "repair-rest", "repair-whole", "check-repair", "repair-delete",
        "repair-open", "repair-twice", "repair-gc"),
    "rebuild": ("rebuild", "rebuild-log", "rebuild-from", "rebuild-open", "rebuild-twice", "delete-lost"),
    "snapshot": ("snapshot",),
    "stand on a store beneath": ("beneath",),
    "view": ("view", "view-first", "view-killed", "view-removed"),
    "push": ("push", "push-killed", "push-archives"),
    "mount and unmount": ("mount",),
    "quota": ("quota",),
}
_FAULTS = {
    "points": "killed at each fault point", "calls": "killed at each durable call",
    "outside": "killed at each call, from outside", "block": "power cut, real file systems",
    "posix": "power cut, strict POSIX", "sequences": "power cut, all short sequences", "failing": "each call fails",
    "device": "the device fails", "lines": "interrupted at each line", "schedule": "interleaved",
}
_APART = {plain.NAME}                    # a control that has nothing of layerstore in it


class UnknownNameError(AssertionError):
    """A workload that stands for no verb, or a verb's workload that no rig has."""


def names(directory: str) -> dict[str, set[str]]:
    """What each rig runs, by the rig. Images are written to *directory*."""
    def all_of(rig: str, made: Iterable[str]) -> tuple[str, set[str]]:
        return rig, {each.split()[0] for each in made} - _APART

    here = os.path.join(directory, "images")
    found = dict([
        all_of("points", [*points.workloads(here), mounts.NAME]),
        all_of("calls", calls.ONE_PROCESS),
        all_of("outside", outside.runs.build(directory)),
        all_of("block", block.all_workloads(here)),
        all_of("posix", posix.all_workloads(directory)),
        all_of("sequences", (step for each in alphabet.sequences(2) for step in each)),
        all_of("failing", failing.ONE_PROCESS),
        all_of("device", device.USUAL),
        all_of("lines", verbs.build(Images(here))),
        all_of("schedule", scenarios.build(here)),
    ])
    run, told = set().union(*found.values()), {name for each in VERBS.values() for name in each}
    if run != told:
        raise UnknownNameError(f"no verb: {sorted(run - told)}; no rig: {sorted(told - run)}")
    return found


def page() -> str:
    """docs/rigs.md."""
    with tempfile.TemporaryDirectory() as directory:
        found = names(directory)
    lines = [
        "# Which rig explores what", "",
        "Made by `python -m crash.covering > docs/rigs.md` from what the rigs list; not edited by hand. What each rig",
        "does, and what it does not, is in [crash-model.md](crash-model.md). A cell has the names of what does it:",
        "`python -m crash run RIG --workload NAME`. Opening a store, and so recovering it, is what every state of every",
        "rig ends with; the row is for what is explored *in* it. The rig `database` damages what nobody has open.",
        "Kills of views and pushes are in `tests/test_view.py` and `tests/test_push.py`.", "",
        "| | " + " | ".join(f"`{rig}`: {_FAULTS[rig]}" for rig in found) + " |", "|---" * (len(found) + 1) + "|",
    ]
    for verb, ways in VERBS.items():
        cells = [", ".join(f"`{way}`" for way in ways if way in mine) or "–" for mine in found.values()]
        lines.append(f"| {verb} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
