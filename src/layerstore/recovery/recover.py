"""Recovery at a writable open: gather, probe, plan, carry out, and say so.

Works on every row in flight, on every terminal record above the low-water mark (their effects may have been lost
with the power), and on what lies in ``staging/``, ``trash/``, ``images/`` and ``uppers/`` without a row. The handle
is not usable, and may not checkpoint, before this has returned. A second run does nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from layerstore.errors import DamagedError, JournalDamagedError, PrivilegeError
from layerstore.formats import records
from layerstore.lifecycle.states import State, Trigger
from layerstore.opening.handle import Handle
from layerstore.recovery import at_risk, batches, executor, looking, mounting, moving
from layerstore.recovery.planner import Action, Do, Probe, Subjects, plan
from layerstore.system import flock, fs

_MAX_TRIES = 10
_REMOVALS = (Do.SWEEP, Do.REMOVE_STRAY)


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What recovery did (or, planned only, would do).

    ``deferred``: deletions that live readers still hold up, and garbage that this process may not remove.
    """

    actions: tuple[Action, ...]
    deferred: tuple[Action, ...]
    low_water: int
    head: int
    seconds: float
    planned_only: bool = False

    @property
    def clean(self) -> bool:
        return not self.actions

    def as_json(self) -> dict[str, Any]:
        def show(actions: tuple[Action, ...]) -> list[dict[str, Any]]:
            return [{"do": a.do.value, "key": a.key, "layer_id": a.layer_id, "why": a.why} for a in actions]

        return {
            "actions": show(self.actions), "deferred": show(self.deferred), "low_water": self.low_water,
            "head": self.head, "seconds": round(self.seconds, 6), "planned_only": self.planned_only,
        }


def gather(handle: Handle, upto: int | None = None) -> Subjects:
    """What the journal says there is to look at: its cost is what is in flight, not what is stored.

    *upto*: nothing that began after this record, which a live owner must have begun.
    """
    with handle.read() as view:
        low, head = view.low_water(), view.head()[0] if upto is None else upto
        layers: dict[str, Any] = {}
        images: dict[str, Any] = {}
        redo, redo_images, promised = set(), set(), set()
        for key, entry in view.scan("open"):
            if entry["first"] > head:
                continue
            kind, _, name = key.partition(":")
            row = view.get("layers" if kind == "layer" else "images", name)
            if row is None:   # both are written by the same record
                raise JournalDamagedError(f"{key} is in flight, and its row is not there")
            (layers if kind == "layer" else images)[name] = row
        for record in view.records(after=low, upto=head):
            kind, _, name = record.entity.partition(":")
            if kind == "layer" and record.to_state in (State.COMMITTED, State.QUARANTINED, State.GONE):
                row = view.get("layers", name)
                if row is not None:
                    redo.add(name)
                    layers[name] = row
            elif kind == "image" and record.trigger == Trigger.PROMISE:
                promised.add(name)
            elif kind == "image" and record.to_state == State.COMMITTED:
                row = view.get("images", name)
                if row is not None and name in promised:   # without it ``check`` reports a lost file; nothing is redone
                    redo_images.add(name)
                    images[name] = row
        mounts = dict(view.scan("mounts"))
    return Subjects(layers, frozenset(redo), images, frozenset(redo_images), mounts, low, head)


def probe(handle: Handle, subjects: Subjects) -> Probe:
    """What the disk says of them. Reads only."""
    trees = {txid: looking.find_tree(handle, txid, row) for txid, row in subjects.layers.items()}
    right = {}
    for image_id in subjects.redo_images:
        right[image_id] = subjects.images[image_id]["state"] != State.COMMITTED or image_file_right(
            fs.read_file(handle.dirs["images"], image_id), subjects.images[image_id],
        )
    seen = mounting.look(handle) if subjects.mounts else None
    mounted = {key: mounting.is_there(seen, row) for key, row in subjects.mounts.items()} if seen else {}
    strays, misplaced = _strays(handle, subjects)
    return Probe(trees, right, strays, misplaced, mounted, mounting.boot_id())


def image_file_right(data: bytes | None, row: Mapping[str, Any]) -> bool:
    try:
        found = records.read(data, "image file")
    except DamagedError:
        return False
    if any(key in row and found.get(key) != row[key] for key in records.IF_SIGNED):
        return False   # written by a release that did not know them; its row has them
    return all(found[key] == row[key] for key in ("manifest_digest", "config_digest"))


def _strays(handle: Handle, subjects: Subjects) -> tuple[dict[str, bool], tuple[str, ...]]:
    """What no row knows, and whether it is held; and trees whose row is at rest and elsewhere."""
    strays: dict[str, bool] = {}
    misplaced = []
    with handle.read() as view:
        for directory in ("staging", "trash"):
            for name in fs.names_in(handle.dirs[directory]):
                row = view.get("layers", name)
                if row is None:
                    strays[f"{directory}/{name}"] = flock.is_locked(handle.dirs[directory], name)
                elif row["state"] in (State.COMMITTED, State.QUARANTINED) and name not in subjects.layers:
                    misplaced.append(f"{directory}/{name}")
        for name in {*fs.names_in(handle.dirs["uppers"])}.difference(view.keys("mounts")):
            strays[f"uppers/{name}"] = False
        for name in {*fs.names_in(handle.dirs["images"])}.difference(view.keys("images")):   # the rows are large: not read
            if not (name.startswith(".") and _being_written(view, name)):
                strays[f"images/{name}"] = False
    return strays, tuple(misplaced)


def _being_written(view: Any, name: str) -> bool:
    row = view.get("images", name.removeprefix(".").removesuffix(".new"))
    return row is not None and row["state"] == State.INCOMPLETE


def dry_run(handle: Handle) -> RecoveryReport:
    """The plan, printed without touching anything. Also what a read-only open reports."""
    begun = time.perf_counter()
    subjects = gather(handle)
    actions = plan(subjects, probe(handle, subjects))
    return _report(subjects, actions, begun, planned_only=True)


def recover(handle: Handle) -> RecoveryReport:
    """Bring everything to rest. Durability: when it returns, every decision it took is in the journal.

    What live processes begin meanwhile is theirs. DamagedError if something keeps coming back unchanged. What this
    process may not remove is deferred: it is garbage, and whoever may removes it.
    """
    begun = time.perf_counter()
    done: list[Action] = []
    with handle.read() as view:
        head = view.head()[0]
    tries: Counter[tuple[Do, str]] = Counter()
    left: dict[str, Action] = {}
    while True:
        subjects = gather(handle, head)
        actions = plan(subjects, probe(handle, subjects))
        todo = [a for a in actions if a.do is not Do.DEFER and a.key not in left]
        if not todo:
            at_risk.note(handle, done)
            rest = (left.get(a.key, a) for a in actions)
            return _report(subjects, (*done, *rest), begun)
        for action in todo:
            tries[action.do, action.key] += 1
            if tries[action.do, action.key] > _MAX_TRIES:
                raise DamagedError(f"recovery cannot bring {action.key} to rest: {action.do.value}, {action.why}")
            try:
                at = time.perf_counter()
                acted = carry_out(handle, action)
            except PrivilegeError as error:
                if action.do not in _REMOVALS:
                    raise
                acted = action.do is Do.SWEEP   # its row is dropped; it comes back as a stray
                if not acted:
                    left[action.key] = replace(action, do=Do.DEFER, why=str(error))
            if acted:
                done.append(action)
                handle.observer.event(
                    "recovery", action=action.do.value, key=action.key, layer_id=action.layer_id, why=action.why,
                    seconds=time.perf_counter() - at,
                )


def carry_out(handle: Handle, action: Action) -> bool:
    """Do one action. False if it turned out that somebody else had."""
    if action.do is Do.REMOVE_STRAY:
        if action.key.startswith("uppers/"):
            with flock.locked_dir(handle.dirs["uppers"]):   # a mount that is being made is looked at when it is made
                return executor.remove_stray(handle, action.key)
        return executor.remove_stray(handle, action.key)
    if action.do is Do.SET_ASIDE and "/" in action.key:
        moving.set_aside(handle, *action.key.split("/", 1))
        return True
    if action.do is Do.FINISH_IMAGE:
        with handle.read() as view:
            row = view.get("images", action.key)
        if row is not None and row["state"] == State.INCOMPLETE:
            batches.finish_batch(handle, row["txid"])
        return True
    if action.do is Do.REWRITE_IMAGE:
        return _rewrite_image(handle, action.key)
    if action.do is Do.DETACH:
        with flock.locked_dir(handle.dirs["uppers"]):
            return mounting.forget(handle, action.key)
    return executor.resolve(handle, action.key) is not None


def _rewrite_image(handle: Handle, image_id: str) -> bool:
    """From the promise in the log, which is above the mark because open transactions hold the mark back."""
    with handle.read() as view:
        promise = None
        for record in view.records(after=view.low_water()):
            if record.entity == f"image:{image_id}" and record.trigger == Trigger.PROMISE:
                promise = record.payload
    if promise is None:
        raise DamagedError(f"image {image_id} is above the mark, but its promise is not in the log")
    batches.write_image_file(handle, image_id, promise)
    return True


def _report(
    subjects: Subjects, actions: tuple[Action, ...], begun: float, *, planned_only: bool = False,
) -> RecoveryReport:
    return RecoveryReport(
        actions=tuple(a for a in actions if a.do is not Do.DEFER),
        deferred=tuple(a for a in actions if a.do is Do.DEFER),
        low_water=subjects.low_water, head=subjects.head, seconds=time.perf_counter() - begun,
        planned_only=planned_only,
    )
