"""Repair: what ``check`` finds is put right from the nearest good copy; what cannot be is quarantined. Nothing is deleted.

    plan      what is done about each finding, and with what: pure     supply    where content is to be had
    making    the steps, carried out in ``mending``'s order            listed    it by the manifests of other layers
    promises  what an image's side file is made of                     this module   one layer after the other

Each layer by itself, under its own lock: everything else stays available meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from layerstore.errors import BusyError, HostError, LayerstoreError
from layerstore.lifecycle import catalog
from layerstore.lifecycle.states import State
from layerstore.model import Image, Layer
from layerstore.opening.beneath import only_own
from layerstore.opening.handle import Handle
from layerstore.recovery import executor, mending
from layerstore.system import flock, fs
from layerstore.system.fs import host_error
from layerstore.verbs.check import Depth, Finding, layers, structure
from layerstore.verbs.check.budget import Budget
from layerstore.verbs.check.hashing import Hashing, Pace, hashing
from layerstore.verbs.pull_layers import PullOptions
from layerstore.verbs.repair import making, promises
from layerstore.verbs.repair.plan import Do, Known, Step, path_of, plan, wanted
from layerstore.verbs.repair.supply import Source, Supply, entries_of, kept_of

__all__ = ["Do", "RepairOptions", "RepairReport", "Step", "repair"]

_ROUNDS = 5                              # a manifest that is restored shows what else is wrong
_ALL = 1 << 30


@dataclass(frozen=True, slots=True)
class RepairOptions:
    """How to repair. ``layers``: only these IDs (empty: all). ``source``: a reference, as for a pull, that has good copies.

    ``depth``: how closely damage is looked for. ``wait``: seconds for readers that hold a layer; then it is left.
    """

    depth: Depth = Depth.CONTENT
    layers: tuple[str, ...] = ()
    source: str | None = None
    pull: PullOptions = field(default_factory=PullOptions)
    wait: float = 10.0
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What was done (``dry_run``: would be). IDs of layers and images, but for ``steps``.

    ``mended``: whole again. ``quarantined``: kept, not served, with what is left of the damage. ``busy``: readers held
    them; nothing was changed. ``failed``: ID → why; nothing is lost, try again. ``remount``: where something of a layer
    that was changed is mounted: unmount, and mount again. ``evidence``: where what was replaced is kept. ``fetched``:
    bytes that came from a registry.
    """

    steps: tuple[Step, ...]
    mended: tuple[str, ...] = ()
    quarantined: tuple[str, ...] = ()
    busy: tuple[str, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)
    remount: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    dry_run: bool = False
    fetched: int = 0

    @property
    def clean(self) -> bool:
        """Whether nothing is left that is damaged."""
        return not (self.quarantined or self.busy or self.failed or any(step.do is Do.LEAVE for step in self.steps))


def repair(handle: Handle, options: RepairOptions) -> RepairReport:
    """Repair; the verb behind ``Store.repair``.

    Durability: each layer's repair is journaled before its first effect; when this returns, what it did is on disk. A crash
    leaves each path as it was or good, and recovery ends what was begun (``mending``).
    """
    if not options.dry_run:
        handle.check_writable()
    with ExitStack() as stack:
        source = stack.enter_context(Source(handle, options.source, options.pull)) if options.source else None
        hashers = stack.enter_context(hashing(1, Pace(None), Budget(None)))
        run = _Run(handle, options, source, hashers)
        for each in run.every():
            run.layer(each)
        if not options.layers:
            run.rest()
        return run.report()


class _Run:
    def __init__(self, handle: Handle, options: RepairOptions, source: Source | None, hashers: Hashing) -> None:
        self._handle, self._options, self._source, self._hashers = handle, options, source, hashers
        self._steps: list[Step] = []
        self._mended: list[str] = []
        self._quarantined: list[str] = []
        self._busy: list[str] = []
        self._failed: dict[str, str] = {}
        self._evidence: list[str] = []

    def every(self) -> list[Layer]:
        for each in self._options.layers:
            only_own(self._handle, "layer", each)
        with self._handle.read() as view:
            if self._options.layers:
                return [catalog.layer(view, each, damaged=True) for each in self._options.layers]
            return list(catalog.layers(view))

    def report(self) -> RepairReport:
        changed = {*self._mended, *self._quarantined}
        with self._handle.read() as view:
            targets = {each.target for each in catalog.mounts(view) if each.mounted and changed & set(each.layers)}
        return RepairReport(
            tuple(self._steps), tuple(self._mended), tuple(self._quarantined), tuple(self._busy), self._failed,
            tuple(sorted(targets)), tuple(self._evidence), self._options.dry_run,
            self._source.fetched if self._source is not None else 0,
        )

    # -- one layer -----------------------------------------------------------------------------------------------------

    def layer(self, layer: Layer) -> None:
        """Look without a lock; if there is anything, plan, and do it under the layer's own."""
        findings = self._look(layer)
        if not findings and layer.state == State.COMMITTED:
            return
        with ExitStack() as stack:
            try:
                tree_fd = stack.enter_context(fs.open_dir(layer.id, self._handle.dirs["layers"]))
                known, _ = self._known(layer, tree_fd, findings)
            except OSError:
                known = Known()
            steps = plan(findings, known)
        self._steps += steps
        if self._options.dry_run:
            return
        if self._source is not None and any(step.source.startswith("source ") for step in steps):
            self._source.tree(layer)     # fetched before the lock is taken
        try:
            self._under_lock(layer)
        except BusyError:
            self._busy.append(layer.id)
        except HostError as error:       # no error of the whole repair, which would say that nothing happened
            self._failed[layer.id] = str(error)
        except OSError as error:
            self._failed[layer.id] = str(host_error(error, "repairing a layer"))

    def _look(self, layer: Layer) -> list[Finding]:
        with self._handle.read() as view:
            row: Any = view.get("layers", layer.txid)
        if row is None or row["state"] not in (State.COMMITTED, State.QUARANTINED):
            return []
        look = layers.begin(self._handle, layer, row, self._options.depth, self._hashers, _ALL)
        look.wait()
        return look.findings

    def _known(self, layer: Layer, tree_fd: int, findings: Collection[Finding]) -> tuple[Known, Supply]:
        supply = Supply(self._handle, layer, tree_fd, self._source)
        entries = entries_of(tree_fd, layer.manifest_digest)
        known = Known(entries, {}, supply.parts(), kept_of(tree_fd, layer.tar_split_digest))
        return Known(entries, supply.locate(wanted(findings, known), entries or {}), known.parts, known.kept), supply

    def _under_lock(self, layer: Layer) -> None:
        lock = flock.lock_tree(self._handle.dirs["layers"], layer.id, wait=self._options.wait, point="repair.lock")
        if lock is None:
            self._give_up(layer, [Finding("layer-missing", layer.id, "its tree is not in its place")])
            return
        with lock as tree_fd:
            row = self._row(layer)
            if row is None:
                return                   # deleted meanwhile
            marked: set[bytes] = set()
            try:
                left = self._rounds(layer, tree_fd, marked)
                self._close(layer, left, row)
            except BaseException:
                self._take_back(layer)
                raise

    def _row(self, layer: Layer) -> dict[str, Any] | None:
        with self._handle.read() as view:
            row = view.get("layers", layer.txid)
        return row if row is not None and row["state"] in (State.COMMITTED, State.QUARANTINED) else None

    def _rounds(self, layer: Layer, tree_fd: int, marked: set[bytes]) -> list[Finding]:
        """Look, plan, do, until there is nothing left that can be done: what is left."""
        before: set[tuple[str, str]] = set()
        for _ in range(_ROUNDS):
            findings = self._look(layer)
            now = {(each.code, each.path) for each in findings}
            if not findings or now == before:
                return findings
            before = now
            known, supply = self._known(layer, tree_fd, findings)
            steps = [step for step in plan(findings, known) if step.do not in (Do.QUARANTINE, Do.LEAVE)]
            if not steps:
                return findings
            marked |= {os.fsencode(step.path) for step in steps}
            if not mending.mark(self._handle, layer.txid, marked):
                return []
            aside = making.carry_out(self._handle, layer, tree_fd, steps, known, supply)
            if aside is not None:
                self._evidence.append(aside)
        return self._look(layer)

    def _close(self, layer: Layer, left: list[Finding], row: dict[str, Any]) -> None:
        """The last step: the mark goes, with what was found at last."""
        now = self._row(layer)
        if now is None:
            return
        if not left and "repair" not in now and row["state"] == State.COMMITTED:
            return                       # somebody else was quicker
        if left:
            self._give_up(layer, left)
            return
        if "repair" not in now:          # one that was quarantined, and is whole
            mending.mark(self._handle, layer.txid, ())
        mending.end(self._handle, layer.txid, None, label="mend")
        self._mended.append(layer.id)

    def _give_up(self, layer: Layer, left: list[Finding]) -> None:
        with self._handle.read() as view:
            marked = "repair" in (view.get("layers", layer.txid) or {})
        if not marked and not mending.mark(self._handle, layer.txid, ()):
            return
        files = sorted({path_of(each) for each in left if each.path or each.code.startswith("path-")})
        why = f"{left[0].code}: {left[0].message}" + (f", and {len(left) - 1} more" if len(left) > 1 else "")
        mending.end(self._handle, layer.txid, {"why": why, "files": files}, label="quarantine")
        self._quarantined.append(layer.id)

    def _take_back(self, layer: Layer) -> None:
        """What was begun is ended as recovery would; if it cannot be, recovery does."""
        try:
            row = self._row(layer)
            if row is not None and "repair" in row:
                mending.settle(self._handle, layer.txid, row)
        except (LayerstoreError, OSError):
            return

    # -- what is no layer's --------------------------------------------------------------------------------------------

    def rest(self) -> None:
        """Trees that nobody owns, and images' side files."""
        for finding in structure.ownerless(self._handle):
            self._steps += plan([finding], Known())
            if not self._options.dry_run:
                self._evidence.append(executor.set_aside(self._handle, *finding.subject.split("/", 1)))
        with self._handle.read() as view:
            images = list(catalog.images(view))
        for image in images:
            self._image(image)

    def _image(self, image: Image) -> None:
        findings = [each for each in structure.image(self._handle, image) if each.code == "image-file-damaged"]
        if not findings:
            return
        promise = promises.of(self._handle, image, self._source)
        parts = {} if promise is None else {"image": promise[0]}
        self._steps += plan(findings, Known(parts=parts))
        if promise is not None and not self._options.dry_run:
            executor.write_image_file(self._handle, image.id, promise[1])
            self._mended.append(image.id)
