"""One damaged store: whether it is noticed before it does harm, and what a rebuild makes of it."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, field

import layerjournal
import layerstore
from crash.content import TREES
from crash.workloads import Workload
from layerstore.errors import CallerError, DamagedError, InvalidArgumentError
from layerstore.recovery.rebuilding import RebuildReport
from layerstore.store import Store
from layerstore.testing import ChildDiedError, dump, examine, read_ledger, still_clock, telling

DATABASE = os.path.join("journal", "data.mdb")
ARCHIVE = frozenset({"journal-segment", "journal-gap", "journal-snapshot"})


@dataclass(frozen=True, slots=True)
class Truth:
    """The catalog of the store *root*, and as it was at its last archived record; its ledger's file."""

    root: str
    dump: bytes
    archived: int
    then: bytes
    ledger: str


@dataclass(slots=True)
class Judgement:
    """``noticed``: refused, found (by check), or nothing; ``rebuilt``: from what, if it was."""

    noticed: str = ""
    rebuilt: str = ""
    violations: list[str] = field(default_factory=list)


def truth(root: str, ledger: str) -> Truth:
    """Of a sound store. Opens it, and so recovers it."""
    with layerstore.open(root, clock=still_clock) as store:
        with store._handle.read() as view:
            archived = int(view.meta()["archived"])
        then = layerjournal.canonical_dump(store._handle.journal.fold(archived))
        return Truth(root, dump(store), archived, then, ledger)


def judge(root: str, wanted: Truth, workload: Workload, *, segment: bool) -> Judgement:
    """*root* was damaged (or one *segment* of it): use it, check it, and rebuild it if it is not sound."""
    made = Judgement()
    try:
        codes = telling(lambda: _look(root, wanted))
    except ChildDiedError as error:
        made.violations.append(f"the process died: {error}")
        return made
    made.noticed = "refused" if codes == ["refused"] else ",".join(codes)
    if segment and not codes:
        made.violations.append("a segment is not what was sealed, and nobody says so")
    if "silent" in codes:
        made.violations.append("the catalog is another, and nobody says so")
        return made
    try:
        if codes and not ARCHIVE.issuperset(codes):
            made.rebuilt, made.violations = telling(lambda: _rebuild(root, wanted))
        else:
            made.violations += telling(lambda: _stays(root, wanted))
        made.violations += telling(lambda: examine(
            root, expect=read_ledger(wanted.ledger), trees=TREES, again=workload.again, clock=still_clock,
        )).violations
    except ChildDiedError as error:
        made.violations.append(f"the process died of rebuilding it: {error}")
    return made


def _look(root: str, wanted: Truth) -> list[str]:
    """What is said of it: ``refused``, the codes that check finds, ``silent``, or nothing."""
    try:
        with layerstore.open(root, create=False, clock=still_clock) as store:
            with suppress(CallerError):   # a row is not under its key any more: it is check that must say so
                _use(store)
            found = sorted({each.code for each in store.check().findings})
            return found or (["silent"] if dump(store) != wanted.dump else [])
    except DamagedError:
        return ["refused"]


def _use(store: Store) -> None:
    """Look up what there is, each by itself: what a listing reads is not all that is read."""
    for layer in store.layers():
        store.layer(layer.id)
        with store.layer_paths(layer.id):
            pass
    for image in store.images():
        store.image(image.id)
        for each in image.names:
            store.resolve(each)


def _stays(root: str, wanted: Truth) -> list[str]:
    """What is sound, or has only a damaged archive, is not rebuilt; with its archive from a backup it is as it was."""
    try:
        layerstore.rebuild(root, clock=still_clock)
    except InvalidArgumentError:
        archive = os.path.join("journal", "segments")
        shutil.copytree(os.path.join(wanted.root, archive), os.path.join(root, archive), dirs_exist_ok=True)
        return []
    return ["a sound database was rebuilt"]


def _rebuild(root: str, wanted: Truth) -> tuple[str, list[str]]:
    path = os.path.join(root, DATABASE)
    before = _content(path)
    report = layerstore.rebuild(root, clock=still_clock)
    found = []
    if before is not None and (report.kept is None or _content(os.path.join(root, report.kept)) != before):
        found.append("the old database is not kept as it was")
    with layerstore.open(root, clock=still_clock) as store:
        if report.whole and dump(store) != wanted.dump:
            found.append("its log was whole, and the catalog is another")
        if report.archived >= wanted.archived and _archived(store, wanted) != wanted.then:
            found.append("the catalog was another at the last archived record")
    return _from(report), found


def _archived(store: Store, wanted: Truth) -> bytes:
    return layerjournal.canonical_dump(store._handle.journal.fold(wanted.archived))


def _from(report: RebuildReport) -> str:
    if report.whole:
        return "the log"
    found = [("segments", report.archived), ("part of the log", report.head > report.archived), ("disk", True)]
    return ", ".join(what for what, there in found if there)


def _content(path: str) -> bytes | None:
    if not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        return file.read()
