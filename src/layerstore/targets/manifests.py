"""The documents of an image that is sent: manifests over new blobs, indexes, a Docker archive's list. Pure functions.

A manifest whose blobs are those it names is sent byte for byte. Otherwise only what had to change is another: the
descriptors of the layers that were compressed anew, and the media types if it was one of Docker's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from layerstore.chunked.annotations import OF_A_BLOB
from layerstore.errors import InvalidArgumentError, SourceError
from layerstore.formats.containers_storage.names import image_names
from layerstore.model import Descriptor

__all__ = [
    "LAYOUT", "NAMES", "OCI_INDEX", "OCI_MANIFEST", "REF_NAME", "docker_list", "index_with", "layer_type", "manifest_over",
    "repo_tag",
]

LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
REF_NAME = "org.opencontainers.image.ref.name"
NAMES = frozenset({REF_NAME, "io.containerd.image.name"})   # annotations by which an entry of an index gets a name
_TYPES = {"none": "", "gzip": "+gzip", "zstd": "+zstd", "zstd:chunked": "+zstd"}


def layer_type(compression: str) -> str:
    """The media type of a layer's blob."""
    return "application/vnd.oci.image.layer.v1.tar" + _TYPES[compression]


def manifest_over(manifest: bytes, media_type: str, blobs: Sequence[Descriptor]) -> tuple[bytes, str]:
    """The manifest, and its media type, of the image whose layers are now *blobs*."""
    document = json.loads(manifest)
    before = document["layers"]
    if [(each["digest"], each["size"]) for each in before] == [(each.digest, each.size) for each in blobs]:
        return manifest, media_type
    document["layers"] = [_descriptor(old, blob) for old, blob in zip(before, blobs, strict=True)]
    document["mediaType"] = OCI_MANIFEST
    document["config"] = {**document["config"], "mediaType": OCI_CONFIG}
    return _text(document), OCI_MANIFEST


def _descriptor(old: Mapping[str, Any], blob: Descriptor) -> dict[str, Any]:
    """*old* with the new blob in it. Annotations that tell of places in the old blob give way to the new one's."""
    kept: dict[str, Any] = dict(old)
    if old["digest"] != blob.digest:
        kept = {key: value for key, value in old.items() if key != "annotations"}
        notes = {key: value for key, value in old.get("annotations", {}).items() if not key.startswith(OF_A_BLOB)}
        notes.update(blob.annotations)
        if notes:
            kept["annotations"] = notes
    return {**kept, "mediaType": blob.media_type, "digest": blob.digest, "size": blob.size}


def index_with(index: bytes | None, manifest: bytes, media_type: str, tag: str | None) -> bytes:
    """The index of a layout with one more manifest, which takes *tag* from whatever had it. SourceError for no index.

    Without a tag it is listed once: an entry that it has already, be it under a tag, stays as it is.
    """
    try:
        document: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
        document = document if index is None else json.loads(index)
        listed = list(document["manifests"])
        digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
        entry: dict[str, Any] = {"mediaType": media_type, "digest": digest, "size": len(manifest)}
        if tag is None:
            more = [] if any(each["digest"] == digest for each in listed) else [entry]
        else:
            listed = [each for each in listed if _notes(each).get(REF_NAME) != tag]
            nameless = [each for each in listed if each["digest"] == digest and not NAMES & _notes(each).keys()]
            listed = [each for each in listed if each not in nameless]   # it gets a name, as in containers/image
            known = nameless[0] if nameless else {}
            more = [{**known, **entry, "annotations": {**_notes(known), REF_NAME: tag}}]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"the index.json that is there is none: {error}", hint="choose another directory") from error
    return _text({**document, "manifests": [*listed, *more]})


def _notes(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    notes: Mapping[str, Any] = entry.get("annotations") or {}
    return notes


def repo_tag(name: str) -> str:
    """What a Docker archive is to call an image: *name*, ``:latest`` if without a tag. InvalidArgumentError if it is none.

    podman and Docker refuse the whole archive for a name without a tag, or one that they cannot take.
    """
    called = image_names([name]).get(name)
    if called is None:
        raise InvalidArgumentError(
            f"{name!r} is no name for an image in a Docker archive", hint="write [HOST/]PATH[:TAG], in lower case",
        )
    return called if name.startswith("localhost/") else called.removeprefix("localhost/")


def docker_list(config_name: str, tag: str | None, layers: Sequence[str]) -> bytes:
    """The manifest.json of a Docker archive with one image."""
    return json.dumps(
        [{"Config": config_name, "RepoTags": [tag] if tag is not None else None, "Layers": list(layers)}],
        separators=(",", ":"),
    ).encode()


def _text(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
