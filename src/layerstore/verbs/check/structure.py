"""Structure: the journal, the parts and side files of each layer and image, and what nobody owns. Cost: so many layers.

Takes no lock. What was seen is believed only if the row that it is about is still the same afterwards (``settled``): a
layer that is deleted or repaired meanwhile is no damage.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from layerstore.dedup import suspects
from layerstore.errors import BeneathMissingError, DamagedError, UnknownLayerError
from layerstore.formats import records, tarsplit
from layerstore.formats.digests import NAME as DIGESTS
from layerstore.formats.manifest import NAME as MANIFEST
from layerstore.lifecycle import catalog
from layerstore.lifecycle.states import State
from layerstore.model import Beneath, Image, Layer
from layerstore.opening.beneath import looking
from layerstore.opening.config import unknown_features
from layerstore.opening.handle import Handle
from layerstore.opening.journaling import journal_errors
from layerstore.recovery import mending
from layerstore.system import fs
from layerstore.system.descriptors import Descriptor
from layerstore.trees import checked
from layerstore.trees.compare import OURS
from layerstore.verbs import quota
from layerstore.verbs.check.findings import Finding

__all__ = ["MISSING", "beneath", "image", "journal", "layer", "ownerless", "quota_file", "tree"]

MISSING = frozenset({"layer-missing", "part-missing"})
"""Codes of a layer of which there is too little to look any closer."""

_KNOWN = frozenset({
    fs.TXID_FILE, "diff", MANIFEST, tarsplit.NAME, tarsplit.KEPT, DIGESTS, records.OUTPUT_FILE, records.LAYER_FILE,
    "big-data", suspects.NAME, checked.NAME, mending.NAME,
})


def journal(handle: Handle, *, content: bool) -> Iterator[Finding]:
    """Catalog = fold(log), the chain, every row, the archive; with *content* every segment's snapshot, too."""
    with journal_errors(handle.set_poison):
        report = handle.journal.verify(every_snapshot=content)
    for finding in report.findings:
        yield Finding(f"journal-{finding.code}", f"record {finding.seq}", finding.message)


def tree(handle: Handle, layer: Layer) -> Descriptor | Finding:
    """The layer's directory, open."""
    try:
        return fs.open_dir(layer.id, handle.dirs["layers"])
    except OSError as error:
        if error.errno in OURS:
            raise
        return Finding("layer-missing", layer.id, f"the tree of layer {layer.id} cannot be opened: {error.strerror}")


def layer(handle: Handle, fd: int, names: Collection[str], layer: Layer, row: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether the directory *fd*, that holds *names*, is that of a committed layer, with its parts, its side file right."""
    found = fs.read_txid(fd)
    if found is None or (found != layer.txid and _is_nobodys(handle, found)):
        yield Finding("txid-damaged", layer.id, "the file 'txid' is missing or damaged", fs.TXID_FILE)
    elif found != layer.txid:
        what = f"in its place is another tree, {found}, not {layer.txid}"
        yield Finding("layer-missing", layer.id, f"the tree of layer {layer.id} is not in its place: {what}")
        return
    yield from _parts(handle, fd, layer, names)
    yield from _side_file(fd, layer, row)
    yield from _big_data(fd, layer, names)


def beneath(handle: Handle, subject: Layer | Image) -> Iterator[Finding]:
    """Whether what it stands on is still in the stores beneath, or here by now. No damage of its own: nothing to repair."""
    if isinstance(subject, Image):
        recorded: Mapping[str, Beneath] = subject.beneath
    else:
        recorded = {subject.parent: subject.parent_beneath} if subject.parent and subject.parent_beneath else {}
    for layer_id, what in recorded.items():
        try:
            with looking(handle) as view:
                catalog.layer(view, layer_id, damaged=True, recorded=what)
                if isinstance(subject, Layer):
                    catalog.chain(view, layer_id, damaged=True)
        except (BeneathMissingError, UnknownLayerError) as error:
            yield Finding("beneath-missing", subject.id, str(error))


def _is_nobodys(handle: Handle, txid: str) -> bool:
    """Whether no row has that txid: then the file that says so is damaged, more likely than that the tree is another."""
    with handle.read() as view:
        return view.get("layers", txid) is None


def _parts(handle: Handle, fd: int, layer: Layer, names: Collection[str]) -> Iterator[Finding]:
    """Parts that are missing; and what is none, unless a newer layerstore may have put parts of its own into the store."""
    for name in ("diff", MANIFEST, tarsplit.NAME):
        if name not in names and (name != tarsplit.NAME or layer.tar_split_digest is not None):
            yield Finding("part-missing", layer.id, f"{name} is missing", name)
    if "diff" in names and not stat.S_ISDIR(os.stat("diff", dir_fd=fd, follow_symlinks=False).st_mode):
        yield Finding("part-missing", layer.id, "diff is no directory", "diff")
    strange = sorted(name for name in names if name not in _KNOWN)
    for name in strange if strange and not any(unknown_features(handle.config).values()) else ():
        if not (name.startswith(".") and name.endswith(".new")):   # what an interrupted replacement left
            yield Finding("part-extra", layer.id, f"{name} is no part of a layer", name)


def _side_file(fd: int, layer: Layer, row: Mapping[str, Any]) -> Iterator[Finding]:
    name = records.LAYER_FILE
    data = fs.read_file(fd, name)
    if data == records.layer_file(layer.txid, row):
        return
    try:
        records.read(data, f"the side file {name!r}")
    except DamagedError as error:
        yield Finding("side-file-damaged", layer.id, str(error), name)
    else:
        yield Finding("side-file-wrong", layer.id, "the side file 'layer' does not say what the catalog says", name)


def _big_data(fd: int, layer: Layer, names: Collection[str]) -> Iterator[Finding]:
    if not layer.big_data:
        return
    there: dict[str, bool] = {}
    if "big-data" in names:
        try:
            with fs.open_dir("big-data", fd) as directory, os.scandir(directory) as found:
                there = {each.name: each.is_file(follow_symlinks=False) for each in found}
        except NotADirectoryError:
            pass
    for key in sorted(layer.big_data):
        if not there.pop(key, False):
            yield Finding("big-data-damaged", layer.id, f"{key} is missing, or no file", f"big-data/{key}")
    for name in sorted(there):
        yield Finding("part-extra", layer.id, f"big-data/{name} is no part of a layer", f"big-data/{name}")


def image(handle: Handle, image: Image) -> Iterator[Finding]:
    """Its side file, and whether its layers are there to be used."""
    try:
        found = records.read(fs.read_file(handle.dirs["images"], image.id), "the image's side file")
        signed = records.signatures_in(found), records.indexes_in(found)
        if any(found[key] != getattr(image, key) for key in ("manifest_digest", "config_digest")):
            yield Finding("image-file-damaged", image.id, "the image's side file is another image's")
        elif image.signatures and signed != (image.signatures, image.indexes):
            yield Finding("image-file-damaged", image.id, "the image's side file has not the signatures that its row has")
    except DamagedError as error:
        if _is_there(handle, image.id):
            yield Finding("image-file-damaged", image.id, str(error))
    with handle.read() as view:
        for layer_id in image.layers:
            if layer_id not in image.beneath and not catalog.is_committed(view, layer_id) and _is_there(handle, image.id):
                yield Finding("image-layer-missing", image.id, f"its layer {layer_id} is not available")


def quota_file(handle: Handle) -> Iterator[Finding]:
    """Whether the store's limit can be understood: as long as it cannot be, nothing gets in."""
    try:
        quota.limit_of(handle)
    except DamagedError as error:
        yield Finding("quota-file-damaged", quota.NAME, str(error))


def _is_there(handle: Handle, image_id: str) -> bool:
    """Looked up anew: else it was deleted meanwhile, which is no damage."""
    with handle.read() as view:
        row = view.get("images", image_id)
    return row is not None and row["state"] == State.COMMITTED


def ownerless(handle: Handle) -> Iterator[Finding]:
    """What lies in ``layers/`` and no row claims. Elsewhere recovery looks, and says so."""
    names = fs.names_in(handle.dirs["layers"])
    with handle.read() as view:
        claimed = {key for key, _ in view.scan("ids")}
    for name in names:
        if name not in claimed and _has_no_owner(handle, name):
            yield Finding("ownerless", f"layers/{name}", "no row of the catalog knows it")


def _has_no_owner(handle: Handle, name: str) -> bool:
    """A row is there before the tree comes, and until after it went: so two looks at rows around one at the disk tell."""
    for looked in (False, True):
        with handle.read() as view:
            if view.get("ids", name) is not None:
                return False
        if not looked and not fs.exists(handle.dirs["layers"], name):
            return False
    return True
