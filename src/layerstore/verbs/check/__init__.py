"""Is it still good? Structure always; metadata and content of every path on request. Online, in parallel, by and by.

    findings   what is asked and what is said        structure   the journal, parts and side files, what nobody owns
    layers     one layer, as closely as was asked     course      how far that has come
    hashing    content, by threads, at a rate         budget      until when
    history    the order, from what is noted          pending     what recovery has to do
    this module: all layers, and the report

Reads only, but for the notes of ``trees.checked``. Takes no lock that a pull, a mount or a deletion waits for.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from layerstore.lifecycle import catalog
from layerstore.lifecycle.states import State
from layerstore.model import Layer
from layerstore.opening.handle import Handle
from layerstore.progress import CheckProgress
from layerstore.trees.checked import Checked
from layerstore.verbs.check import history, layers, structure
from layerstore.verbs.check.budget import Budget
from layerstore.verbs.check.findings import CheckOptions, CheckReport, Depth, Finding, options
from layerstore.verbs.check.hashing import Hashing, Pace, hashing
from layerstore.verbs.check.layers import Look
from layerstore.verbs.check.pending import Pending

__all__ = ["CheckOptions", "CheckReport", "Depth", "Finding", "check", "options"]


def check(
    handle: Handle, options: CheckOptions, *, beneath: bool = False, progress: CheckProgress | None = None,
) -> CheckReport:
    """Check the store, and those *beneath*; the verb behind ``Store.check``.

    Files that were found rotten while content was taken from them are compared at any depth.
    """
    budget = Budget(options.budget)
    report = _check(handle, options, budget, progress)
    if beneath:
        report = _with_those_beneath(handle, options, report, budget, progress)
    handle.observer.event(
        "check-ended", depth=report.depth.value, findings=dict(Counter(each.code for each in report.findings)),
        layers=report.layers, looked_at=report.looked_at, recent=report.recent, left=report.left,
        left_unsound=report.left_unsound, unread=report.unread, complete_since_ns=report.complete_since_ns,
        seconds=report.seconds,
    )
    return report


def _with_those_beneath(
    handle: Handle, options: CheckOptions, report: CheckReport, budget: Budget, progress: CheckProgress | None,
) -> CheckReport:
    left = report.left
    found = [Finding("beneath-missing", each.path, str(each.missing), store=each.uuid) for each in handle.absent]
    for each in handle.beneath:
        below = _check(each, options, budget, progress, own=False)
        found += [replace(finding, store=each.config["uuid"]) for finding in below.findings]
        left += below.left
    return replace(report, findings=(*report.findings, *found), left=left)


def _check(
    handle: Handle, options: CheckOptions, budget: Budget, progress: CheckProgress | None, *, own: bool = True,
) -> CheckReport:
    """One store. What is in flight, or lies about, in one that is not our *own* is nothing that we see."""
    begun, begun_ns = time.monotonic(), time.time_ns()
    pending = Pending(handle) if own else None
    found = list(structure.journal(handle, content=options.depth is Depth.CONTENT))
    with handle.read() as view:
        rows = dict(view.scan("layers"))   # as they are now: who finds anything looks again
        every, images = list(catalog.layers(view, rows=rows)), list(catalog.images(view))
    run = _Run(handle, options, progress)
    pace = Pace(options.rate)
    with hashing(options.workers, pace, budget, progress) as hashers:
        run.layers(every, rows, hashers)
    found += run.findings
    for each in images:
        found += structure.image(handle, each)
    if pending is not None:
        found += [finding for layer in every for finding in structure.beneath(handle, layer)]
        found += [finding for image in images for finding in structure.beneath(handle, image)]
        found += structure.quota_file(handle)
        found += structure.ownerless(handle)
        found += pending.findings()
    return CheckReport(
        tuple(found), len(every), len(images), options.depth, unread=run.unread, looked_at=run.looked_at,
        recent=run.recent, left=run.left, left_unsound=run.left_unsound,
        complete_since_ns=min((begun_ns, *run.since.values())) or None, bytes=pace.bytes, seconds=time.monotonic() - begun,
    )


class _Run:
    def __init__(self, handle: Handle, options: CheckOptions, progress: CheckProgress | None) -> None:
        self._handle, self._options, self._progress = handle, options, progress
        wanted = options.since_ns is not None or options.budget is not None
        self._note = (wanted if options.note is None else options.note) and not handle.readonly
        self._total = 0
        self.findings: list[Finding] = []
        self.unread = self.looked_at = self.recent = self.left = self.left_unsound = 0
        self.since: dict[str, int] = {}   # when each layer was looked at, at this depth; 0: never, or not noted

    def layers(self, every: list[Layer], rows: Mapping[str, Any], hashers: Hashing) -> None:
        """All of them, the likeliest damage first."""
        committed = [each for each in every if each.state == State.COMMITTED]
        for each in every:
            if each.state == State.QUARANTINED:
                self.findings.append(_quarantined(each))
        ordered, past = history.in_order(
            self._handle.dirs["layers"], committed, self._options.depth, history.at_risk(self._handle),
        )
        self._total = len(ordered)
        self.since = {each.id: past[each.id].looked.get(self._options.depth, 0) for each in ordered}
        for each in ordered:
            self._tell(each, "waiting")
        for look in layers.in_turn(self._looks(ordered, past, rows, hashers)):
            self._end(look, hashers)

    def _looks(
        self, ordered: list[Layer], past: Mapping[str, Checked], rows: Mapping[str, Any], hashers: Hashing,
    ) -> Iterator[Look]:
        since = self._options.since_ns
        for each in ordered:
            row = rows.get(each.txid)
            if row is None or "repair" in row:
                row = layers.row_of(self._handle, each)
            if row is None:              # deleted meanwhile, or being repaired
                del self.since[each.id]
                continue
            depth = self._options.depth
            if depth is not Depth.STRUCTURE and since is not None and past[each.id].sound.get(depth, 0) >= max(since, 1):
                self.recent += 1
                self._tell(each, "recent")
                depth = Depth.STRUCTURE
            elif depth is not Depth.STRUCTURE and hashers.budget.is_over():
                self.left += 1
                self.left_unsound += past[each.id].was_unsound(depth)
                self._tell(each, "left")
                depth = Depth.STRUCTURE
            yield self._begin(each, row, depth, hashers, past[each.id])

    def _begin(self, layer: Layer, row: Mapping[str, Any], depth: Depth, hashers: Hashing, past: Checked) -> Look:
        if depth is self._options.depth:
            self._tell(layer, "checking")
        memory = layers.Memory(self._note, past.part if self._goes_on(past) else None)
        look = layers.begin(self._handle, layer, row, depth, hashers, layers.MAX_FILES_NAMED, memory)
        look.was_unsound = past.was_unsound(depth)
        if look.course is not None and look.is_done:
            hashers.budget.progress = True   # perhaps there was nothing to be hashed
        return look

    def _tell(self, layer: Layer, state: str) -> None:
        if self._progress is not None:
            size = layer.diff_size if self._options.depth is Depth.CONTENT else 0
            self._progress.layer(layer.id, state=state, size=size)

    def _goes_on(self, past: Checked) -> bool:
        """Whether this check goes on with a look that an earlier one did not end: what it saw may have been hit since."""
        part = past.part
        if not self._note or part is None or part.depth != self._options.depth:
            return False
        return part.begun >= max(past.at_risk, self._options.since_ns or 0)

    def _end(self, begun: Look, hashers: Hashing) -> None:
        look = layers.end(self._handle, begun, hashers)
        if look is None:
            self.since.pop(begun.layer.id)
            return
        self.findings += look.findings
        self.unread += look.unread
        if look.depth is self._options.depth:
            self._tell(look.layer, "checked" if look.is_whole else "left")
            self.left_unsound += look.leaves_unsound
        if not look.is_whole:
            self.left += 1
        elif look.depth is self._options.depth:
            self.looked_at += 1
            self.since[look.layer.id] = look.begun_ns
            self._handle.observer.event(
                "checked", layer_id=look.layer.id, depth=look.depth.value, findings=len(look.findings),
                number=self.looked_at, of=self._total, bytes=hashers.pace.bytes, seconds=time.perf_counter() - look.begun,
            )


def _quarantined(layer: Layer) -> Finding:
    named = ", ".join(layer.damaged_files[:3]) + (" …" if len(layer.damaged_files) > 3 else "")
    return Finding("layer-quarantined", layer.id, f"{len(layer.damaged_files)} files are known to be bad: {named}"
                   if named else "its tree is not to be found")
