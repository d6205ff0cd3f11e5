"""The side files: what lies beside a layer or image on disk, enough to rebuild its row if the journal is lost.

Canonical msgpack (layerjournal's strict codec) of a map. ``layer`` and an image's are written from the row alone, so
that anybody can write them again and get the same bytes; ``output`` before the row has anything of it, by whoever filled
the tree. Only the formats belong here; writing is ``moving``'s and ``staging``'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import layerjournal
from layerstore.errors import DamagedError
from layerstore.signatures import Signature

VERSION = 1
LAYER_FILE = "layer"
OUTPUT_FILE = "output"
_SIGNATURES, _INDEXES = "signatures", "indexes"
IF_SIGNED = (_SIGNATURES, _INDEXES)   # keys of an image's promise, row and side file, absent where there is nothing to say


def layer_file(txid: str, row: Mapping[str, Any]) -> bytes:
    """The side file ``layers/<id>/layer`` of a promised or committed row."""
    return _seal({
        "version": VERSION, "txid": txid, "layer_id": row["layer_id"], "parent": row["parent"],
        "names": list(row["born_named"]), "output": dict(row["output"]), "big_data": dict(row["big_data"]),
        "overlay_form": row["overlay_form"], **_beneath(row),
    })


def _beneath(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the row stands on that is in a store beneath; no key where there is nothing, as in files of before."""
    return {"beneath": dict(row["beneath"])} if "beneath" in row else {}


def output_file(txid: str, output: Mapping[str, Any], filled_ns: int) -> bytes:
    """The side file ``staging/<txid>/output`` of a tree that is filled; *filled_ns* is when, for gc."""
    return _seal({"version": VERSION, "txid": txid, "output": dict(output), "filled_ns": filled_ns})


def image_file(image_id: str, promise: Mapping[str, Any]) -> bytes:
    """The side file ``images/<id>`` from the promise's payload."""
    return _seal({
        "version": VERSION, "image_id": image_id, "layers": list(promise["layers"]), "names": list(promise["names"]),
        "manifest": promise["manifest"], "manifest_media_type": promise["manifest_media_type"],
        "manifest_digest": promise["manifest_digest"], "config": promise["config"],
        "config_digest": promise["config_digest"], **{key: promise[key] for key in IF_SIGNED if key in promise},
        **_beneath(promise),
    })


def as_record(signatures: Sequence[Signature], indexes: Sequence[bytes]) -> dict[str, Any]:
    """The keys of a promise. An index is kept where a signature is of one: without it nobody could verify that again."""
    if not signatures:
        return {}
    known = {f"sha256:{hashlib.sha256(each).hexdigest()}" for each in indexes}
    record: dict[str, Any] = {_SIGNATURES: [
        {"kind": each.kind, "subject": each.subject, "manifest_media_type": each.manifest_media_type,
         "manifest": each.manifest, "blobs": list(each.blobs)} for each in signatures
    ]}
    if any(each.subject in known for each in signatures):
        record[_INDEXES] = list(indexes)
    return record


def signatures_in(record: Mapping[str, Any]) -> tuple[Signature, ...]:
    """Those of a row, promise or side file."""
    return tuple(
        Signature(each["kind"], each["subject"], each["manifest_media_type"], each["manifest"], tuple(each["blobs"]))
        for each in record.get(_SIGNATURES, ())
    )


def indexes_in(record: Mapping[str, Any]) -> tuple[bytes, ...]:
    """The indexes that are kept with an image for the sake of its signatures."""
    return tuple(record.get(_INDEXES, ()))


def read(data: bytes | None, what: str) -> dict[str, Any]:
    """Decode a side file. DamagedError if it is missing, torn or not canonical."""
    if data is None:
        raise DamagedError(f"{what} is missing")
    body, digest = data[:-32], data[-32:]
    if len(data) < 33 or hashlib.sha256(body).digest() != digest:
        raise DamagedError(f"{what} is torn or was altered ({len(data)} bytes)")
    try:
        value = layerjournal.decode(body)
    except layerjournal.RecordError as error:
        raise DamagedError(f"{what} is not encoded as a side file is: {error}") from error
    if not isinstance(value, dict) or value.get("version") != VERSION:
        raise DamagedError(f"{what} is of a version that this layerstore does not know")
    return value


def _seal(value: Mapping[str, Any]) -> bytes:
    body = layerjournal.encode(value)
    return body + hashlib.sha256(body).digest()
