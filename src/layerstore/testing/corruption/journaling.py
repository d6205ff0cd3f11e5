"""What must be true of a store whose database or archive was damaged: noticed or without effect, and rebuilt whole.

As for layers, all of it happens in a child. Not here: what is done to the files (``bytewise``).
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

import layerstore
from layerstore.errors import CallerError, DamagedError, InvalidArgumentError
from layerstore.store import Store
from layerstore.testing.corruption.judging import Result
from layerstore.testing.corruption.keeping import Kept
from layerstore.testing.oracle import dump

__all__ = ["Catalog", "catalog_of", "judge_journal"]

DATABASE = os.path.join("journal", "data.mdb")
SEGMENTS = os.path.join("journal", "segments")
_WHY = {
    "database": "catalog and log are the same, byte for byte: nothing uses these bytes", "segment": "?",
    "lock file": "it is made anew by the first who opens the store",
}
_ARCHIVE = frozenset({"journal-segment", "journal-gap", "journal-snapshot"})


Served = tuple[tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Catalog:
    """What a sound store's catalog says: the canonical dump, and the IDs of layers and images that it serves."""

    dump: bytes
    served: Served


def catalog_of(store: Store) -> Catalog:
    """The catalog of an open store, whose archive is sound."""
    return Catalog(dump(store), _served(store))


def _served(store: Store) -> Served:
    """Each layer and image is looked up by itself, as its users do: what a listing reads is not all that is read."""
    layers, images = sorted(each.id for each in store.layers()), sorted(each.id for each in store.images())
    for each in layers:
        store.layer(each)
        with store.layer_paths(each):
            pass
    for each in images:
        for name in store.image(each).names:
            store.resolve(name)
    return tuple(layers), tuple(images)


def judge_journal(result: Result, kept: Kept, wanted: Catalog, *, whole: bool) -> Result:
    """Fill in what becomes of damage to a file of the journal: opened, used, checked, and rebuilt if it is not sound."""
    try:
        codes = _look(result, kept, wanted, whole=whole)
        if not codes:
            if result.purpose == "segment":
                result.violations.append("a segment is not what was sealed, and nobody says so")
            result.outcome, result.why = "no effect", _WHY[result.purpose]
        elif _ARCHIVE.issuperset(codes):
            _goes_on(result, kept, wanted)
        else:
            _rebuild(result, kept, wanted, whole=whole)
    except Exception as error:  # noqa: BLE001 - nothing may come out of a damaged store but what is typed and expected
        result.violations.append(f"it raised {error!r}")
    return result


def _look(result: Result, kept: Kept, wanted: Catalog, *, whole: bool) -> set[str]:
    """The codes of what is found; nothing found is a violation where the catalog is another."""
    try:
        with layerstore.open(kept.root, create=False) as store:
            try:
                served: Served | str = _served(store)
            except CallerError as error:   # a row is not under its key any more: whoever asks hears that there is none
                served = str(error)
            findings = store.check(depth="content" if whole else "structure", workers=1).findings
            result.depth = "structure" if findings else ""
            if strangers := [each for each in findings if not each.code.startswith("journal-")]:
                result.violations.append(f"a false alarm: {strangers[0]}")
            if not findings and (served != wanted.served or dump(store) != wanted.dump):
                result.violations.append("the catalog is another, and nobody says so")
            return {each.code for each in findings}
    except DamagedError:
        result.depth = "open"
        return {"refused"}


def _goes_on(result: Result, kept: Kept, wanted: Catalog) -> None:
    """With a damaged archive the store is used as before, and is not rebuilt; from a backup the archive is whole again."""
    result.outcome, result.source = "left", "a backup of the archive"
    try:
        layerstore.rebuild(kept.root)
        result.violations.append("a sound database was rebuilt")
    except InvalidArgumentError:
        shutil.copytree(os.path.join(kept.whole, SEGMENTS), os.path.join(kept.root, SEGMENTS), dirs_exist_ok=True)
    with layerstore.open(kept.root) as store:
        if catalog_of(store) != wanted or not store.check().sound:
            result.violations.append("with its archive from a backup it is not what it was")


def _rebuild(result: Result, kept: Kept, wanted: Catalog, *, whole: bool) -> None:
    damaged = _content(os.path.join(kept.root, DATABASE))
    report = layerstore.rebuild(kept.root)
    result.outcome, result.source = "rebuilt", "the log" if report.whole else "segments and side files"
    if damaged is not None and (report.kept is None or _content(os.path.join(kept.root, report.kept)) != damaged):
        result.violations.append("the old database is not kept as it was")
    with layerstore.open(kept.root) as store:
        if report.whole and dump(store) != wanted.dump:
            result.violations.append("its log was whole, and the catalog is another")
        if _served(store) != wanted.served:
            result.violations.append("rebuilt, and other layers or images are served than before")
        if findings := store.check(depth="content" if whole else "structure", workers=1).findings:
            result.violations.append(f"rebuilt, and not sound: {findings[0]}")


def _content(path: str) -> bytes | None:
    if not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        return file.read()
