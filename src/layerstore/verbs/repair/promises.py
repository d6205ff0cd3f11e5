"""What an image's side file is made of: its promise in the log or archive, else the image's source. Reads only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from layerjournal import Record
from layerstore.errors import DamagedError, LayerstoreError
from layerstore.formats import records
from layerstore.model import Image
from layerstore.opening.handle import Handle
from layerstore.opening.journaling import journal_errors
from layerstore.system import fs
from layerstore.verbs.repair.supply import Source

__all__ = ["of"]


def of(handle: Handle, image: Image, source: Source | None) -> tuple[str, dict[str, Any]] | None:
    """Where from, and what; None: nobody has it. From the log it is what it was, to the byte."""
    promised = _promised(handle, image)
    if promised is not None:
        return "the log", promised
    kept = _but_for_signatures(handle, image)
    if kept is not None:
        return "its row", kept
    if source is None or source.image.id != image.id or source.image.manifest_digest != image.manifest_digest:
        return None
    found = source.image
    with handle.read() as view:
        row: Any = view.get("images", image.id) or {}
    return f"source {source.reference}", {
        "layers": list(image.layers), "names": list(image.names), "manifest": found.manifest, "config": found.config,
        "manifest_media_type": found.manifest_media_type, "manifest_digest": found.manifest_digest,
        "config_digest": found.config_digest, **records.as_record(image.signatures, image.indexes),
        **{key: row[key] for key in ("beneath",) if key in row},
    }


def _but_for_signatures(handle: Handle, image: Image) -> dict[str, Any] | None:
    """The side file with the signatures that the row has, if those are all that it lacks."""
    try:
        there = records.read(fs.read_file(handle.dirs["images"], image.id), "the side file")
    except DamagedError:
        return None
    if there["manifest_digest"] != image.manifest_digest:
        return None
    return _signed_as(image, there)


def _signed_as(image: Image, record: Mapping[str, Any]) -> dict[str, Any]:
    """Of signatures the row is believed, and nobody else."""
    others = {key: value for key, value in record.items() if key not in records.IF_SIGNED}
    return {**others, **records.as_record(image.signatures, image.indexes)}


def _promised(handle: Handle, image: Image) -> dict[str, Any] | None:
    """Its last promise, with the signatures that its row has. What is not archived is asked first."""
    with handle.read() as view:
        found = _last(view.records(), image)
    if found is None:
        with suppress(LayerstoreError), journal_errors(None):   # the archive may be damaged: check says so
            found = _last(handle.journal.records(), image)
    return None if found is None else _signed_as(image, found)


def _last(records: Iterable[Record], image: Image) -> dict[str, Any] | None:
    """It may have been deleted in between, and have come again by another manifest, of which the log was lost."""
    found = None
    for each in records:
        if each.entity == f"image:{image.id}" and each.trigger == "promise":
            promised = each.payload
            if promised["manifest_digest"] == image.manifest_digest and tuple(promised["layers"]) == image.layers:
                found = dict(promised)
    return found
