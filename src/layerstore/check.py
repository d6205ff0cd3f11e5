"""Is it still good? Structure always; every file's metadata and digest on request. Reads only; takes reader locks only.

Findings have stable codes; docs/check.md explains each.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from layerstore import catalog, fs, records
from layerstore.dedup import suspects
from layerstore.errors import DamagedError, LayerDamagedError, LayerstoreError, UnknownLayerError
from layerstore.handle import Handle
from layerstore.holds import ReaderLock
from layerstore.journaling import journal_errors
from layerstore.model import Layer
from layerstore.packed import file_digest
from layerstore.recover import dry_run
from layerstore.verify import Problem, tree_problems

MAX_FILES_NAMED = 1_000


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. ``code`` is stable; ``subject`` a layer or image ID, or a path in the store."""

    code: str
    subject: str
    message: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was found. ``unread``: paths that this process may not look at, so that it cannot tell; no damage."""

    findings: tuple[Finding, ...]
    layers: int
    images: int
    content: bool
    unread: int = 0

    @property
    def sound(self) -> bool:
        return not self.findings


def check(handle: Handle, *, content: bool) -> CheckReport:
    """Check the store. *content* also compares every file of every layer with its manifest.

    Files that were found rotten while content was taken from them are compared in any case.
    """
    findings = list(_journal(handle))
    with handle.read() as view:
        layers, images = list(catalog.layers(view)), list(catalog.images(view))
    unread: Counter[str] = Counter()
    layers.sort(key=lambda layer: not fs.has_entry(handle.dirs["layers"], layer.id, suspects.NAME))   # these first
    for layer in layers:
        findings += _layer(handle, layer, unread, content=content)
    for image in images:
        findings += _image(handle, image.id, image.layers)
    findings += [
        Finding("pending-recovery", action.key, f"{action.do.value}: {action.why}")
        for action in dry_run(handle).actions if action.do.value != "wait"
    ]
    return CheckReport(tuple(findings), len(layers), len(images), content, unread.total())


def _journal(handle: Handle) -> Iterator[Finding]:
    with journal_errors(handle.set_poison):
        report = handle.journal.verify()
    for finding in report.findings:
        yield Finding(f"journal-{finding.code}", f"record {finding.seq}", finding.message)


def _layer(handle: Handle, layer: Layer, unread: Counter[str], *, content: bool) -> Iterator[Finding]:
    if layer.state == "quarantined":
        yield Finding("layer-quarantined", layer.id, f"{len(layer.damaged_files)} files are known to be bad")
        return
    try:
        with ReaderLock(handle, [layer.id]):
            yield from _tree(handle, layer, unread, content=content)
    except UnknownLayerError as error:
        with handle.read() as view:
            if catalog.is_committed(view, layer.id):   # else it was deleted meanwhile, which is no damage
                yield Finding("layer-missing", layer.id, str(error))
    except LayerDamagedError:
        return


def _tree(handle: Handle, layer: Layer, unread: Counter[str], *, content: bool) -> Iterator[Finding]:
    with fs.open_dir(layer.id, handle.dirs["layers"]) as fd:
        with handle.read() as view:
            row = view.get("layers", layer.txid)
        if row is None:
            return
        try:
            records.read(fs.read_file(fd, records.LAYER_FILE), "the side file 'layer'")
            if fs.read_file(fd, records.LAYER_FILE) != records.layer_file(layer.txid, row):
                yield Finding("side-file-wrong", layer.id, "the side file 'layer' does not say what the catalog says")
        except DamagedError as error:
            yield Finding("side-file-damaged", layer.id, str(error))
        if content:
            yield from _big_data(fd, layer)
        form, ids = handle.overlay_form, handle.ids
        try:
            found = tree_problems(
                fd, layer.manifest_digest, content=True, overlay_form=form, tar_split=layer.tar_split_digest, ids=ids,
            ) if content else suspects.problems(fd, layer.manifest_digest, overlay_form=form, ids=ids)
            for number, problem in enumerate(_readable(found, layer.id, unread)):
                if number >= MAX_FILES_NAMED:
                    yield Finding("layer-content", layer.id, "… and more")
                    break
                yield Finding("layer-content", layer.id, f"{os.fsdecode(problem.path)}: {problem.what}")
        except LayerstoreError as error:
            yield Finding("manifest-damaged", layer.id, str(error))


def _readable(found: Iterator[Problem], layer_id: str, unread: Counter[str]) -> Iterator[Problem]:
    """Without what this process may not look at: that is only counted."""
    for problem in found:
        if problem.unreadable:
            unread[layer_id] += 1
        else:
            yield problem


def _big_data(fd: int, layer: Layer) -> Iterator[Finding]:
    for key, expected in sorted(layer.big_data.items()):
        try:
            opened = fs.open_dir("big-data", fd)
        except OSError:
            yield Finding("big-data-damaged", layer.id, "the directory big-data is missing")
            return
        with opened as directory:
            found = None
            with suppress(OSError):
                found = file_digest(directory, key)   # in pieces: it may be a whole blob
        if found != expected:
            yield Finding("big-data-damaged", layer.id, f"{key} is {'missing' if found is None else 'not what it was'}")


def _image(handle: Handle, image_id: str, layers: tuple[str, ...]) -> Iterator[Finding]:
    try:
        records.read(fs.read_file(handle.dirs["images"], image_id), "the image's side file")
    except DamagedError as error:
        yield Finding("image-file-damaged", image_id, str(error))
    with handle.read() as view:
        for layer_id in layers:
            if not catalog.is_committed(view, layer_id):
                yield Finding("image-layer-missing", image_id, f"its layer {layer_id} is not available")
