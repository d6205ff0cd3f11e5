"""Is it still good? Structure always; metadata and content of every path on request. Online, in parallel, by and by.

    findings   what is asked and what is said        structure   the journal, parts and side files, what nobody owns
    layers     one layer, as closely as was asked     hashing     content, by threads, no faster than is allowed
    history    the order, from what is noted          pending     what recovery has to do
    this module    budget, progress, the report

Reads only, but for the notes of ``trees.checked``. Takes no lock that a pull, a mount or a deletion waits for.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from layerstore.lifecycle import catalog
from layerstore.lifecycle.states import State
from layerstore.model import Layer
from layerstore.opening.handle import Handle
from layerstore.verbs.check import history, layers, structure
from layerstore.verbs.check.findings import CheckOptions, CheckReport, Depth, Finding, options
from layerstore.verbs.check.hashing import Hashing, Pace, hashing
from layerstore.verbs.check.pending import Pending

__all__ = ["CheckOptions", "CheckReport", "Depth", "Finding", "check", "options"]

_AHEAD = 64                              # layers that are begun and not ended: what is known of them is kept meanwhile


def check(handle: Handle, options: CheckOptions, *, beneath: bool = False) -> CheckReport:
    """Check the store, and those *beneath*; the verb behind ``Store.check``.

    Files that were found rotten while content was taken from them are compared at any depth.
    """
    report = _check(handle, options)
    if not beneath:
        return report
    found = [Finding("beneath-missing", each.path, str(each.missing), store=each.uuid) for each in handle.absent]
    for each in handle.beneath:
        below = _check(each, options, own=False).findings
        found += [replace(finding, store=each.config["uuid"]) for finding in below]
    return replace(report, findings=(*report.findings, *found))


def _check(handle: Handle, options: CheckOptions, *, own: bool = True) -> CheckReport:
    """One store. What is in flight, or lies about, in one that is not our *own* is nothing that we see."""
    begun = time.monotonic()
    pending = Pending(handle) if own else None
    found = list(structure.journal(handle, content=options.depth is Depth.CONTENT))
    with handle.read() as view:
        rows = dict(view.scan("layers"))   # as they are now: who finds anything looks again
        every, images = list(catalog.layers(view, rows=rows)), list(catalog.images(view))
    run = _Run(handle, options, begun)
    pace = Pace(options.rate)
    with hashing(options.workers or min(8, os.cpu_count() or 1), pace) as hashers:
        run.layers(every, rows, hashers)
    found += run.findings
    for each in images:
        found += structure.image(handle, each)
    if own:
        found += [finding for layer in every for finding in structure.beneath(handle, layer)]
        found += [finding for image in images for finding in structure.beneath(handle, image)]
    if pending is not None:
        found += structure.ownerless(handle)
        found += pending.findings()
    return CheckReport(
        tuple(found), len(every), len(images), options.depth, unread=run.unread, looked_at=run.looked_at,
        recent=run.recent, left=run.left, bytes=pace.bytes, seconds=time.monotonic() - begun,
    )


class _Run:
    def __init__(self, handle: Handle, options: CheckOptions, begun: float) -> None:
        self._handle, self._options = handle, options
        wanted = options.since_ns is not None or options.budget is not None
        self._note = (wanted if options.note is None else options.note) and not handle.readonly
        self._deadline = None if options.budget is None else begun + options.budget
        self._pending: deque[layers.Look] = deque()
        self._total, self._walked = 0, False
        self.findings: list[Finding] = []
        self.unread = self.looked_at = self.recent = self.left = 0

    def layers(self, every: list[Layer], rows: Mapping[str, Any], hashers: Hashing) -> None:
        """All of them, the likeliest damage first."""
        committed = [each for each in every if each.state == State.COMMITTED]
        for each in every:
            if each.state == State.QUARANTINED:
                self.findings.append(_quarantined(each))
        ordered, past = history.in_order(
            self._handle.dirs["layers"], committed, self._options.depth, history.at_risk(self._handle),
        )
        since, self._total = self._options.since_ns, len(ordered)
        for each in ordered:
            depth = self._options.depth
            if depth is not Depth.STRUCTURE and since is not None and past[each.id].sound.get(depth, 0) >= max(since, 1):
                self.recent += 1
                depth = Depth.STRUCTURE
            elif depth is not Depth.STRUCTURE and self._is_over():
                self.left += 1
                depth = Depth.STRUCTURE
            self._begin(each, rows.get(each.txid), depth, hashers)
        while self._pending:
            self._end(hashers)

    def _is_over(self) -> bool:
        """Whether the budget is used up. One layer is looked at in any case, so that there is progress."""
        return self._deadline is not None and self._walked and time.monotonic() >= self._deadline

    def _begin(self, layer: Layer, row: Mapping[str, Any] | None, depth: Depth, hashers: Hashing) -> None:
        if row is None or "repair" in row:
            row = layers.row_of(self._handle, layer)
        if row is None:
            return                       # deleted meanwhile, or being repaired
        look = layers.begin(self._handle, layer, row, depth, hashers)
        self._walked |= look.walked and depth is self._options.depth   # of one that is missing there is nothing to look at
        self._pending.append(look)
        while len(self._pending) > _AHEAD or (self._pending and all(not b.done.empty() for b in self._pending[0].batches)):
            self._end(hashers)

    def _end(self, hashers: Hashing) -> None:
        look = layers.end(self._handle, self._pending.popleft(), hashers, note=self._note)
        if look is None:
            return
        self.findings += look.findings
        self.unread += look.unread
        if look.depth is self._options.depth:
            self.looked_at += 1
            self._handle.observer.event(
                "checked", layer_id=look.layer.id, depth=look.depth.value, findings=len(look.findings),
                number=self.looked_at, of=self._total, bytes=hashers.pace.bytes, seconds=time.perf_counter() - look.begun,
            )


def _quarantined(layer: Layer) -> Finding:
    named = ", ".join(layer.damaged_files[:3]) + (" …" if len(layer.damaged_files) > 3 else "")
    return Finding("layer-quarantined", layer.id, f"{len(layer.damaged_files)} files are known to be bad: {named}"
                   if named else "its tree is not to be found")
