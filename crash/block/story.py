"""A crash state as a timeline, from its recording: what was passed, asked and flushed, what the power took, what came.

What may live here: words. Which states there are is ``planning``'s; what is wrong with one, ``judging``'s.
"""

from __future__ import annotations

from collections.abc import Iterable

from crash.block.planning import Cut, Plan
from crash.block.recording import LEDGER, STEP

_SHOWN = 14   # of what came before the cut


def story(plan: Plan, cut: Cut, redo: Iterable[str], outcome: str) -> list[dict[str, str]]:
    """The entries of ``details["timeline"]``."""
    before = _passed(plan, cut.position)[-_SHOWN:]
    told = [
        *before, ("fault", f"the power went: {cut.kind}, {cut.step or 'at the beginning'}"), *_lost(plan, cut),
        *(("recovery", each) for each in redo), ("verdict", outcome),
    ]
    return [{"kind": kind, "text": text} for kind, text in told]


def _passed(plan: Plan, position: int) -> list[tuple[str, str]]:
    told: list[tuple[str, str]] = []
    written = size = 0
    for event in plan.recording.events[:position]:
        if event.kind == "W":
            written, size = written + 1, size + event.length
        elif event.kind == "F" and written:
            told.append(("effect", f"writes: {written}, {size >> 10} KiB, and a flush"))
            written = size = 0
        elif event.kind == "M" and event.data[:1] == STEP:
            _step(told, event.data[1:].decode())
        elif event.kind == "M" and event.data[:1] == LEDGER:
            told.append(("effect", "the program " + ("asks" if b'"ask"' in event.data else "was told") + " (its ledger)"))
    if written:
        told.append(("effect", f"writes: {written}, {size >> 10} KiB, not flushed"))
    return told


def _step(told: list[tuple[str, str]], step: str) -> None:
    """A fault point; before and after it as one if nothing came between."""
    name, _, when = step.rpartition(":")
    if when == "after" and told and told[-1][1] == f"{name}:before":
        told.pop()
        step = name
    told.append(("journal" if name.startswith("txn.") else "effect", step))


def _lost(plan: Plan, cut: Cut) -> Iterable[tuple[str, str]]:
    unflushed = [index for index in plan.epochs[cut.epoch].writes if index < cut.position]
    lost = [index for index in unflushed if index not in cut.keep]
    yield "lost", f"{len(lost)} of {len(unflushed)} unflushed writes"
    for index in lost[:3]:
        event = plan.recording.events[index]
        yield "lost", f"{event.length} bytes at {event.offset:#x}"
    for index, units in cut.tears:
        yield "lost", f"part of the write at {plan.recording.events[index].offset:#x}: of its units only {units:#b} came"
