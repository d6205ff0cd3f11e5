"""Repair: what ``check`` finds is put right from the nearest good copy; what cannot be is quarantined. Nothing is deleted.

    plan      what is done about each finding, and with what: pure     supply    where content is to be had
    making    the steps, carried out in ``mending``'s order            places    it in this store, for all digests at once
    relook    the look under the lock                                  listed    it by the manifests of other layers
    promises  what an image's side file is made of                     remounts  who shows what was changed
    whole     a tree that is gone, from its source                     rest      images' side files, and what nobody owns
    report    what is asked, and what is said                          this module   one layer after the other

Each layer by itself, under its own lock: everything else stays available meanwhile.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from layerstore.errors import BusyError, HostError, LayerstoreError, PrivilegeError
from layerstore.lifecycle import catalog
from layerstore.lifecycle.states import State
from layerstore.model import Layer
from layerstore.opening.beneath import only_own
from layerstore.opening.handle import Handle
from layerstore.recovery import mending
from layerstore.system import flock, fs
from layerstore.system.fs import host_error
from layerstore.verbs.check import Depth, Finding, history, layers
from layerstore.verbs.check.budget import Budget
from layerstore.verbs.check.hashing import Hashing, Pace, hashing
from layerstore.verbs.repair import making, relook, remounts, whole
from layerstore.verbs.repair.plan import Do, Known, Step, path_of, plan, wanted
from layerstore.verbs.repair.report import RepairOptions, RepairReport, options
from layerstore.verbs.repair.rest import Done, rest, tried
from layerstore.verbs.repair.supply import NotFetchedError, Source, Supply, kept_of

__all__ = ["Do", "RepairOptions", "RepairReport", "Step", "options", "repair"]

_ROUNDS = 5                              # a manifest that is restored shows what else is wrong
_NOT_HERE = (Do.QUARANTINE, Do.LEAVE, Do.PUT_BACK)   # what is not carried out on the paths of a tree
_READ = "run it in the namespace that made the store, or as root"


def repair(handle: Handle, options: RepairOptions) -> RepairReport:
    """Repair; the verb behind ``Store.repair``.

    Durability: each layer's repair is journaled before its first effect; when this returns, what it did is on disk. A crash
    leaves each path as it was or good, and recovery ends what was begun (``mending``).
    """
    if not options.dry_run:
        handle.check_writable()
    with ExitStack() as stack:
        source = stack.enter_context(Source(handle, options.source, options.pull)) if options.source else None
        hashers = stack.enter_context(hashing(options.workers, Pace(options.rate), Budget(None)))
        run = _Run(handle, options, source, hashers)
        run.all_layers()
        if not options.layers:
            rest(handle, source, run.done, options)
        return run.report()


class _Run:
    def __init__(self, handle: Handle, options: RepairOptions, source: Source | None, hashers: Hashing) -> None:
        self._handle, self._options, self._source, self._hashers = handle, options, source, hashers
        self._steps: list[Step] = []
        self._mended: list[str] = []
        self._quarantined: list[str] = []
        self._busy: list[str] = []
        self._failed: dict[str, str] = {}
        self._refused: dict[str, str] = {}
        self._evidence: list[str] = []
        self._since, self._carried_out = time.perf_counter(), 0   # of the layer under way: since when, how many steps
        self._told: set[Step] = set()
        self._touched: set[str] = set()
        self._begun: set[str] = set()    # layers that were changed, and of which more had to be looked at
        self.done = Done(self._steps, self._mended, self._evidence, self._failed)

    def every(self) -> list[Layer]:
        for each in self._options.layers:
            only_own(self._handle, "layer", each)
        with self._handle.read() as view:
            if self._options.layers:
                return [catalog.layer(view, each, damaged=True) for each in self._options.layers]
            return list(catalog.layers(view))

    def report(self) -> RepairReport:
        shown: list[tuple[str, ...]] = []
        tried(self.done, "mounts", lambda: shown.extend(remounts.of(self._handle, self._touched)))
        targets, views = shown or ((), ())
        return RepairReport(
            tuple(self._steps), tuple(self._mended), tuple(self._quarantined), tuple(self._busy), self._failed,
            targets, tuple(self._evidence), self._options.dry_run,
            self._source.fetched if self._source is not None else 0, self._refused, views,
        )

    # -- one layer -----------------------------------------------------------------------------------------------------

    def all_layers(self) -> None:
        """One after the other; while one is repaired, the next are looked at."""
        every = self.every()
        for number, look in enumerate(layers.in_turn(map(self._ahead, every)), 1):
            tried(self.done, look.layer.id, look.wait)
            if look.layer.id in self._failed:
                continue
            self._handle.observer.event(
                "checked", layer_id=look.layer.id, depth=look.depth.value, findings=len(look.findings), number=number,
                of=len(every), bytes=self._hashers.pace.bytes, seconds=time.perf_counter() - look.begun,
            )
            self._layer(look.layer, look)

    def _layer(self, layer: Layer, look: layers.Look) -> None:
        """It was looked at without a lock; if there is anything, plan, and do it under the layer's own."""
        supply = Supply(self._handle, layer, self._source)
        self._since, self._carried_out = time.perf_counter(), 0
        try:
            for _ in range(_ROUNDS):     # a manifest that is restored shows what else is wrong
                if not self._once(layer, look, supply):
                    break
                look = self._look(layer)
            else:
                self._busy.append(layer.id)   # others repair it all the time
        except NotFetchedError as error:   # no verdict: the layer stays what it is
            self._failed[layer.id] = f"from the source: {error}"
        except BusyError:
            self._busy.append(layer.id)
        except HostError as error:       # no error of the whole repair, which would say that nothing happened
            self._failed[layer.id] = str(error)
        except OSError as error:
            self._failed[layer.id] = str(host_error(error, "repairing a layer"))
        if self._source is not None and layer.diff_id in self._source.refused:
            self._refused[layer.id] = self._source.refused[layer.diff_id]

    def _look(self, layer: Layer) -> layers.Look:
        look = self._begun_look(layer)
        look.wait()
        return look

    def _ahead(self, layer: Layer) -> layers.Look:
        """While others are repaired: an error of one says nothing of them."""
        found = [layers.blank(layer, self._options.depth)]
        tried(self.done, layer.id, lambda: found.append(self._begun_look(layer)))
        return found[-1]

    def _begun_look(self, layer: Layer) -> layers.Look:
        """At the depth that was asked for; at everything of what is quarantined: only so it can be said to be whole."""
        row = self._row(layer)
        if row is None:
            return layers.blank(layer, self._options.depth)
        depth = Depth.CONTENT if row["state"] == State.QUARANTINED else self._options.depth
        return layers.begin(self._handle, layer, row, depth, self._hashers, relook.ALL)

    def _once(self, layer: Layer, look: layers.Look, supply: Supply) -> bool:
        """Do what *look*, at the whole layer, asks for. Whether it has to be looked at again."""
        if not look.findings and look.row.get("state") != State.QUARANTINED:
            if layer.id in self._begun:
                self._tell_mended(layer)
            return False
        steps = self._planned(layer, look, supply)
        self._steps += [step for step in steps if step not in self._told]
        self._told.update(steps)
        if self._options.dry_run:
            self._touches(layer, steps)
            return False
        if self._source is not None and any(step.source.startswith("source ") for step in steps):
            self._source.tree(layer)     # fetched before the lock is taken
        again = self._put_back(layer, supply) if any(step.do is Do.PUT_BACK for step in steps) else None
        return self._under_lock(layer, look, supply) if again is None else again

    def _planned(self, layer: Layer, look: layers.Look, supply: Supply) -> tuple[Step, ...]:
        try:
            with fs.open_dir(layer.id, self._handle.dirs["layers"]) as tree_fd:
                return plan(look.findings, self._known(layer, tree_fd, look.findings, supply))
        except OSError:
            return plan(look.findings, Known(parts=supply.parts()))

    def _known(self, layer: Layer, tree_fd: int, findings: Collection[Finding], supply: Supply) -> Known:
        supply.at(tree_fd)
        parts = any(not each.code.startswith("path-") for each in findings)
        kept = kept_of(tree_fd, layer.tar_split_digest) if parts else {}
        known = Known(supply.entries(), {}, supply.parts(), kept)
        return replace(known, content=supply.locate(wanted(findings, known)))

    def _put_back(self, layer: Layer, supply: Supply) -> bool | None:
        """The whole tree, from its source; then as ``_under_lock``. None: the source does not have it, or it is there."""
        assert self._source is not None
        tree = self._source.give(layer, partial(whole.is_it, layer))
        if tree is None:
            if layer.diff_id not in self._source.refused:
                self._refused[layer.id] = "unpacked here, it is not the same tree: another manifest"
            return None
        with whole.put_back(self._handle, layer, tree, self._evidence) as tree_fd:
            if tree_fd is None:
                return None
            self._touched.add(layer.id)
            self._carried_out += 1
            return self._go_on(layer, tree_fd, None, supply)

    def _under_lock(self, layer: Layer, look: layers.Look, supply: Supply) -> bool:
        try:
            lock = flock.lock_tree(self._handle.dirs["layers"], layer.id, wait=self._options.wait, point="repair.lock")
        except NotADirectoryError:
            lock = None
        if lock is None:
            self._give_up(layer, [Finding("layer-missing", layer.id, "its tree is not in its place")])
            return False
        with lock as tree_fd:
            row = self._row(layer)
            if row is None:
                return False             # deleted meanwhile
            if any(row.get(key) != look.row.get(key) for key in ("state", "repair", "damage")):
                return True              # another repair was quicker, or was killed
            return self._go_on(layer, tree_fd, look, supply)

    def _go_on(self, layer: Layer, tree_fd: int, look: layers.Look | None, supply: Supply) -> bool:
        """Under the lock; without a *look* at the whole of it that is first. Whatever is raised, no mark is left."""
        try:
            look = look or self._look(layer)
            return self._close(layer, look, self._rounds(layer, tree_fd, look, supply))
        except BaseException:
            self._take_back(layer)
            raise

    def _row(self, layer: Layer) -> dict[str, Any] | None:
        with self._handle.read() as view:
            row = view.get("layers", layer.txid)
        return row if row is not None and row["state"] in (State.COMMITTED, State.QUARANTINED) else None

    def _rounds(self, layer: Layer, tree_fd: int, whole: layers.Look, supply: Supply) -> layers.Look:
        """Look again, plan, do, until there is nothing left that can be done: what is left."""
        before: set[tuple[str, str]] = set()
        marked: set[bytes] = set()
        for _ in range(_ROUNDS):
            look = relook.again(self._handle, whole, marked, self._hashers)
            findings = look.findings
            now = {(each.code, each.path) for each in findings}
            if not findings or now == before or (relook.is_whole(look) and not relook.is_whole(whole)):
                return look
            before = now
            known = self._known(layer, tree_fd, findings, supply)
            steps = [step for step in plan(findings, known) if step.do not in _NOT_HERE]
            if not steps:
                return look
            marked |= {os.fsencode(step.path) for step in steps}
            if not mending.mark(self._handle, layer.txid, marked):
                break                    # it is being deleted
            self._touches(layer, steps)
            self._carried_out += len(steps)
            aside = making.carry_out(self._handle, layer, tree_fd, steps, known, supply)
            if aside is not None:
                self._evidence.append(aside)
        return relook.again(self._handle, whole, marked, self._hashers)

    def _touches(self, layer: Layer, steps: Collection[Step]) -> None:
        """Note a layer of which something changes that a mount of it shows."""
        changes = (step for step in steps if step.do in making.CHANGES)
        if any(step.do is Do.PUT_BACK for step in steps) or any(f"{each.path}/".startswith("diff/") for each in changes):
            self._touched.add(layer.id)

    def _close(self, layer: Layer, whole: layers.Look, last: layers.Look) -> bool:
        """The last step: the mark goes, with what was found at last. Whether now more can be seen than *whole* could."""
        now = self._row(layer)
        if now is None:
            return False
        if relook.is_whole(last) and not relook.is_whole(whole):
            self._go_on_later(layer, now)
            return True
        if last.findings:
            self._give_up(layer, last.findings)
            return False
        if "repair" not in now and now["state"] == State.COMMITTED:
            return False                 # somebody else was quicker
        if last.unread:                  # any of them may be what is bad
            raise PrivilegeError(f"{last.unread} of its paths may not be read by this process; any may be bad", hint=_READ)
        if "repair" not in now:          # one that was quarantined, and is whole
            mending.mark(self._handle, layer.txid, ())
        mending.end(self._handle, layer.txid, None, label="mend")
        history.note_mended(self._handle.dirs["layers"], layer, whole.depth, whole.begun_ns)
        self._tell_mended(layer)
        return False

    def _tell_mended(self, layer: Layer) -> None:
        self._mended.append(layer.id)
        self._handle.observer.event(
            "repaired", layer_id=layer.id, steps=self._carried_out, seconds=time.perf_counter() - self._since,
        )

    def _go_on_later(self, layer: Layer, row: dict[str, Any]) -> None:
        """The mark goes, and the state is as it was: the manifest is right now, and all that it says is to be looked at."""
        if "repair" not in row:
            return
        self._begun.add(layer.id)
        mending.end_as_it_was(self._handle, layer.txid, row, label="mend" if row.get("damage") is None else "quarantine")

    def _give_up(self, layer: Layer, left: list[Finding]) -> None:
        with self._handle.read() as view:
            marked = "repair" in (view.get("layers", layer.txid) or {})
        if not marked and not mending.mark(self._handle, layer.txid, ()):
            return
        files = sorted({path_of(each) for each in left if each.path or each.code.startswith("path-")})
        why = f"{left[0].code}: {left[0].message}" + (f", and {len(left) - 1} more" if len(left) > 1 else "")
        mending.end(self._handle, layer.txid, {"why": why, "files": files}, label="quarantine")
        self._quarantined.append(layer.id)
        self._handle.observer.event(
            "quarantined", layer_id=layer.id, why=why, files=len(files), seconds=time.perf_counter() - self._since,
        )

    def _take_back(self, layer: Layer) -> None:
        """What was begun is ended as recovery would; if it cannot be, or a sync failed, recovery does."""
        if self._handle.poison is not None:
            return                       # to end it takes a sync, and none is tried a second time
        try:
            row = self._row(layer)
            if row is not None and "repair" in row:
                mending.settle(self._handle, layer.txid, row)
        except (LayerstoreError, OSError):
            return
