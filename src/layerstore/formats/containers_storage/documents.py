"""layers.json and images.json: from layers and images of ours to records of theirs, and to bytes. Pure functions.

The keys are those of the Go structs ``Layer`` and ``Image``; readers ignore what they do not know. The same input gives the
same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from layerstore.formats.containers_storage.names import manifest_key
from layerstore.model import Image, Layer

__all__ = ["ShownImage", "image_record", "layer_record", "read_list", "text_of"]

_COMPRESSIONS = {"none": 0, "bzip2": 1, "gzip": 2, "xz": 3, "zstd": 4}   # pkg/archive, Compression


@dataclass(frozen=True, slots=True)
class ShownImage:
    """An image with its documents, byte for byte, and what it is called there."""

    image: Image
    names: tuple[str, ...]
    manifest: bytes
    config: bytes

    def big_data(self) -> dict[str, bytes]:
        """What the image's record promises: the manifest, twice as the field has it, and the config."""
        return {
            self.image.config_digest: self.config, manifest_key(self.image.manifest_digest): self.manifest,
            "manifest": self.manifest,
        }


def layer_record(layer: Layer) -> dict[str, Any]:
    """The record of a layer. Never with the flag ``incomplete``: what is not committed has no record."""
    record: dict[str, Any] = {
        "id": layer.id, "created": _time(layer.created_ns), "diff-digest": layer.diff_id, "diff-size": layer.diff_size,
        "uidset": sorted(layer.uids), "gidset": sorted(layer.gids),
    }
    if layer.parent is not None:
        record["parent"] = layer.parent
    if layer.blob_digest is not None:
        record["compressed-diff-digest"], record["compressed-size"] = layer.blob_digest, layer.blob_size
        record["compression"] = _COMPRESSIONS[layer.compression]
    return record


def image_record(shown: ShownImage) -> dict[str, Any]:
    """The record of an image."""
    image, data = shown.image, shown.big_data()
    record: dict[str, Any] = {
        "id": image.id, "digest": image.manifest_digest, "names": list(shown.names), "metadata": "{}",
        "big-data-names": list(data), "big-data-sizes": {key: len(value) for key, value in data.items()},
        "big-data-digests": {key: f"sha256:{hashlib.sha256(value).hexdigest()}" for key, value in data.items()},
        "created": _time(image.created_ns),
    }
    if image.layers:
        record["layer"] = image.layers[-1]
    return record


def text_of(records: Sequence[Mapping[str, Any]]) -> bytes:
    """The bytes of a document that lists *records*."""
    return json.dumps(records, separators=(",", ":"), sort_keys=True).encode()


def read_list(text: bytes | None) -> dict[str, dict[str, Any]]:
    """The records of a document, by ID; none for None. ValueError, KeyError, TypeError if it lists no records."""
    return {record["id"]: record for record in json.loads(text or b"[]")}


def _time(nanoseconds: int) -> str:
    """RFC 3339, as Go's time.Time takes it, to the nanosecond."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{rest:09}Z"
