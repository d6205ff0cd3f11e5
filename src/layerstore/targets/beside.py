"""Signatures on their way out: which go with what is sent, and the lists and tags by which they are found. Pure functions.

They go out as they came. A signature is of one manifest, so none goes with another. What has cosign's tag already keeps it:
it may have signatures that are not here.

Source: as in ``sources.attached``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from layerstore.errors import SourceError
from layerstore.signatures import ATTACHED, Signature
from layerstore.sources.attached import signature_tag
from layerstore.sources.documents import Artifact, parse_artifact
from layerstore.targets.manifests import NAMES, OCI_INDEX, REF_NAME

__all__ = ["blobs_of", "entry_of", "referring", "with_entries"]

Entry = dict[str, Any]

_MOST = 4096   # characters of annotations: an index is read as a whole, and not beyond a limit


def blobs_of(signature: Signature) -> Iterator[tuple[str, bytes]]:
    """The blobs with their digests, as the manifest has them."""
    return ((each.digest, data) for each, data in zip(_parsed(signature).blobs, signature.blobs, strict=True))


def entry_of(signature: Signature) -> Entry:
    """What an index says of it: under cosign's tag, or with the type by which a signature is known.

    Of what a stranger wrote into it nothing names anything here, or is so long that the index would suffer.
    """
    entry: Entry = {
        "mediaType": signature.manifest_media_type, "digest": signature.digest, "size": len(signature.manifest),
    }
    if signature.kind == ATTACHED:
        return {**entry, "annotations": {REF_NAME: signature_tag(signature.subject)}}
    found = _parsed(signature)
    notes = {key: text for key, text in found.annotations.items() if key not in NAMES}
    if notes and sum(len(key) + len(text) for key, text in notes.items()) <= _MOST:
        entry["annotations"] = notes
    return {**entry, "artifactType": found.kind}


def _parsed(signature: Signature) -> Artifact:
    return parse_artifact(signature.manifest, signature.manifest_media_type, f"the signature {signature.digest}")


def referring(before: bytes | None, signatures: Sequence[Signature]) -> bytes | None:
    """A list of referrers with *signatures* in it, too; None if they are in it already."""
    document, listed = _index(before)
    known = {each["digest"] for each in listed}
    more = [entry for each in signatures if (entry := entry_of(each))["digest"] not in known]
    return _text({**document, "manifests": [*listed, *more]}) if more else None


def with_entries(index: bytes, signatures: Sequence[Signature]) -> tuple[bytes, list[Signature]]:
    """The index of a layout with *signatures* in it, and those that are in it now; another under cosign's tag stays."""
    if not signatures:
        return index, []
    document, listed = _index(index)
    tags = {each.get("annotations", {}).get(REF_NAME): each["digest"] for each in listed}
    types = {(each.get("artifactType"), each["digest"]) for each in listed}
    there = []
    for each in signatures:
        entry = entry_of(each)
        if each.kind == ATTACHED:
            before = tags.get(signature_tag(each.subject))
            if before not in (None, each.digest):
                continue
            known = before is not None
        else:
            known = (entry["artifactType"], each.digest) in types
        there.append(each)
        if not known:
            listed.append(entry)
    return _text({**document, "manifests": listed}), there


def _index(data: bytes | None) -> tuple[Entry, list[Entry]]:
    try:
        document: Entry = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
        document = document if data is None else json.loads(data)
        listed = list(document["manifests"] or [])
        for each in listed:
            said = (each.get("artifactType"), each.get("annotations", {}).get(REF_NAME))
            if not isinstance(each["digest"], str) or not all(text is None or isinstance(text, str) for text in said):
                raise ValueError("its entries are no descriptors")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"the index that is there is none: {error}", hint="choose another place") from error
    return document, listed


def _text(document: Entry) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
