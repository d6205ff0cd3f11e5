"""What must be true of a store whose layers or images were damaged: found, mended or quarantined, and nothing else touched.

The damaged store is opened in a child, which it may not kill. What was there before, and what is there now, is told by
``keeping``, which knows nothing of the store's code; so is what could be restored without a source (``is_all_here``).
Not here: damage to the journal (``journaling``).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TypedDict

import layerstore
from layerstore.store import Store
from layerstore.testing.corruption.keeping import Changes, Facts, Kept
from layerstore.testing.corruption.places import ADVICE, owner_of
from layerstore.verbs.check import Finding
from layerstore.verbs.repair import RepairReport
from layerstore.verbs.repair.plan import path_of

__all__ = ["Judge", "Result", "compare", "is_advice"]

_DEPTHS = ("structure", "metadata", "content")
_EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"   # sha256 of nothing


class _Closely(TypedDict, total=False):
    since_ns: int
    note: bool


@dataclass(slots=True)
class Result:
    """What became of one damage.

    ``purpose``: what the damaged file is for. ``depth``: where it was found: ``open``, ``recovery`` or a depth of check.
    ``outcome``: ``mended``, ``quarantined``, ``left`` (told, and nothing a repair could do), ``rebuilt``, or
    ``no effect``, with ``why``. ``source``: what it was mended from. ``was_quarantined``: until the source was named.
    ``violations``: what should not be.
    """

    seed: int
    purpose: str
    kind: str
    path: str
    depth: str = ""
    outcome: str = ""
    why: str = ""
    source: str = ""
    was_quarantined: bool = False
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.kind} {self.path}: {self.outcome} {self.violations or ''}"


def is_advice(path: str) -> bool:
    """Whether nothing rests on the file *path* that is promised."""
    parts = path.split("/")
    return parts[0] == "layers" and len(parts) == 3 and parts[2] in ADVICE


class Judge:
    """Of one copy of a store. *sources*: of layers and images (by ID) those that a source has, and which.

    *whole*: look at every layer at every depth, before and after the repair, and let it look at all, too. Else only the
    damaged layer is looked at more closely than at its structure, and only until the damage is found, for all others are,
    and after the repair this one is, to the byte what was found sound at the beginning: ``compare`` shows it.
    """

    def __init__(self, kept: Kept, sources: Mapping[str, str]) -> None:
        self._kept, self._sources = kept, sources
        self._places: dict[object, list[str]] = {}
        for path, found in kept.facts.items():
            if "/diff/" in path and found[0] == stat.S_IFREG:
                self._places.setdefault(found[1], []).append(path)

    def judge(self, result: Result, hit: Changes, *, whole: bool) -> Result:
        """Fill in what becomes of the damage that made the changes *hit*."""
        owners = {owner_of(path) for path in (*hit, result.path)} - {""}
        try:
            with layerstore.open(self._kept.root) as store:
                if store.recovery.actions:
                    result.depth = "recovery"   # what no checkpoint covers is redone at any open
                if result.outcome == "no effect":
                    self._expect_sound(store, result, whole=whole)
                elif self._find(store, result, hit, whole=whole) or result.depth:
                    self._repair(store, result, owners, hit, whole=whole)
                else:
                    result.violations.append("not found at any depth")
        except Exception as error:  # noqa: BLE001 - nothing may come out of a damaged store but what is typed and expected
            result.violations.append(f"it raised {error!r}")
        return result

    def _find(self, store: Store, result: Result, hit: Changes, *, whole: bool) -> bool:
        found = False
        owners = {owner_of(path) for path in (*hit, result.path)} - {""}
        theirs = owners | {f"layers/{each}" for each in owners} | _dependants(store, owners)
        for depth in _DEPTHS:
            findings = store.check(depth=depth, workers=1, **_closely(whole=whole)).findings
            wrong = [each for each in findings if each.subject not in theirs or not _is_hit(each, hit)]
            if wrong:
                result.violations.append(f"a false alarm at {depth}: {wrong[:3]}")
            if findings and not found:
                found = True
                result.depth = result.depth or depth
            if found and not whole:
                break
        return found

    def _repair(self, store: Store, result: Result, owners: Collection[str], hit: Changes, *, whole: bool) -> None:
        layers = {each.id for each in store.layers()} & set(owners)
        only = () if whole or layers != set(owners) else tuple(sorted(layers))
        if result.seed % 2 and self._repair_from_source(store, result, owners, hit, only):
            report = None                # every other one has the source at hand from the beginning
        else:
            report = store.repair(layers=only)
            result.source = _sources_of(report)
        if report is not None and not report.clean:
            result.outcome = "quarantined" if report.quarantined else "left"
            result.was_quarantined = bool(report.quarantined)
            self._expect_served_but(store, result, set(report.quarantined), owners)
            if is_all_here(hit, self._places):
                result.violations.append(f"all of it is in the store, and it was not restored: {report.steps}")
            if not self._repair_from_source(store, result, owners, hit, only):
                return
        result.outcome = "mended"
        self._expect_sound(store, result, whole=whole)

    def _repair_from_source(
        self, store: Store, result: Result, owners: Collection[str], hit: Changes, only: tuple[str, ...],
    ) -> bool:
        """Whether it is mended now."""
        sources = sorted({self._sources[each] for each in owners if each in self._sources})
        if not sources:
            return False
        for source in sources:
            report = store.repair(layers=only, source=source)
        if report.clean:
            result.source = _sources_of(report)
            return True
        if all(each in self._sources for each in owners) and not _is_in_no_source(hit):
            result.violations.append(f"the source has it, and it was not restored: {report.steps}")
        return False

    def _expect_served_but(
        self, store: Store, result: Result, quarantined: set[str], owners: Collection[str],
    ) -> None:
        """What is quarantined is not served, and all else is."""
        if quarantined - set(owners):
            result.violations.append(f"quarantined, and never damaged: {sorted(quarantined - set(owners))}")
        for layer in store.layers():
            try:
                store.layer(layer.id)
                served = True
            except layerstore.errors.LayerDamagedError:
                served = False
            if served == (layer.id in quarantined):
                result.violations.append(f"layer {layer.id[:12]} is {'' if served else 'not '}served")

    def _expect_sound(self, store: Store, result: Result, *, whole: bool) -> None:
        findings = store.check(depth="content" if whole else "structure", workers=1).findings
        if findings:
            result.violations.append(f"a false alarm: {findings[0]}")


def compare(result: Result, hit: Changes, now: Changes) -> None:
    """What is mended is what it was, and what is not damaged as well: *now* is what is another than before the damage."""
    wrong = {path: what for path, what in now.items() if not is_advice(path)}
    if result.outcome != "mended":
        wrong = {path: what for path, what in wrong.items() if path not in hit}
    for path, (before, after) in sorted(wrong.items())[:3]:
        said = "mended otherwise than it was" if path in hit else "never damaged, and changed"
        result.violations.append(f"{said}: {path}: {before} {after}")


def _is_hit(finding: Finding, hit: Changes) -> bool:
    """Whether what it is about was damaged, or what that is in."""
    if not finding.path or finding.subject.startswith("layers/"):
        return True
    path = f"layers/{finding.subject}/{os.fsdecode(path_of(finding))}"
    while path not in hit and "/" in path:
        path = os.path.dirname(path)
    return path in hit


def _closely(*, whole: bool) -> _Closely:
    """Options of a check: layers that are noted as sound are looked at no closer than at their structure, or all are."""
    return {} if whole else {"since_ns": 1, "note": False}


def _dependants(store: Store, owners: Collection[str]) -> set[str]:
    return {image.id for image in store.images() if not set(owners).isdisjoint(image.layers)}


def _sources_of(report: RepairReport) -> str:
    """What a repair took, in short."""
    found = {_SHORT.get(each.source.split()[0], each.source) for each in report.steps if each.do.value != "quarantine"}
    return ", ".join(sorted(found))


_SHORT = {
    "source": "the source", "layer": "another layer", "its": "its own files", "nobody": "nothing needed",
    "the": "manifest, catalog or log",
}


def is_all_here(hit: Changes, places: Mapping[object, list[str]]) -> bool:
    """Whether all that was lost can be had from the rest of the store. *places*: where each digest was."""
    return all(_is_here(path, before, now, hit, places) for path, (before, now) in hit.items())


def _is_here(
    path: str, before: Facts | None, now: Facts | None, hit: Changes, places: Mapping[object, list[str]],
) -> bool:
    parts = path.split("/")
    if before is None or is_advice(path):
        return True                      # it is only to be taken out; or nobody needs it
    if parts[0] == "images" or len(parts) == 2:
        return False                     # it depends on the log; a whole tree
    if parts[2] in ("layer", "txid"):
        return True
    if parts[2] not in ("diff", "kept"):
        return False                     # the manifest, the tar-split, big data
    if before[0] != stat.S_IFREG or before[1] == _EMPTY or (now is not None and before[:2] == now[:2]):
        return True                      # the manifest has all that it needs
    return any(_is_as_it_was(each, hit) for each in places.get(before[1], ()))


def _is_as_it_was(path: str, hit: Changes) -> bool:
    before, now = hit.get(path, (None, None))
    return path not in hit or (before is not None and now is not None and before[:2] == now[:2])


def _is_in_no_source(hit: Changes) -> bool:
    """Whether what is damaged is of this store alone: big data that a caller gave."""
    return any("/big-data" in path for path, (before, _) in hit.items() if before is not None)
