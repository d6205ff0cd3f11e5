"""Indexes, manifests and configs: bytes in, checked values out. Pure functions; nothing is read here.

Strict where two readers could disagree, for a digest says nothing about which reading was meant: a key that
comes twice, numbers that are no integers, a document that is an index and a manifest at once
(CVE-2021-41190). Sources: OCI image-spec 1.1 (descriptor.md, image-index.md, manifest.md, config.md);
Docker's image manifest version 2, schema 2.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from layerstore.errors import SourceError, UnsupportedMediaTypeError
from layerstore.model import Descriptor
from layerstore.sources.platforms import Platform

__all__ = [
    "INDEX_TYPES", "MANIFEST_TYPES", "OCI_CONFIG", "OCI_INDEX", "OCI_LAYER", "OCI_MANIFEST", "Artifact", "Config", "Listed",
    "Manifest", "as_object", "check_layout", "check_pairs", "check_sha256", "parse_artifact", "parse_config", "parse_index",
    "parse_json", "parse_manifest", "show", "show_list", "text_list",
]

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
_NONDISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar"
_DOCKER = "application/vnd.docker"

INDEX_TYPES = frozenset({OCI_INDEX, f"{_DOCKER}.distribution.manifest.list.v2+json"})
MANIFEST_TYPES = frozenset({OCI_MANIFEST, f"{_DOCKER}.distribution.manifest.v2+json"})
_CONFIG_TYPES = frozenset({OCI_CONFIG, f"{_DOCKER}.container.image.v1+json"})
_LAYER_TYPES = frozenset(
    {f"{base}{suffix}" for base in (OCI_LAYER, _NONDISTRIBUTABLE) for suffix in ("", "+gzip", "+zstd")}
    | {f"{_DOCKER}.image.rootfs.diff.tar{suffix}" for suffix in ("", ".gzip", ".zstd")}
    | {f"{_DOCKER}.image.rootfs.foreign.diff.tar{suffix}" for suffix in ("", ".gzip")}
)
_REF_NAME = "org.opencontainers.image.ref.name"
_DIGEST = re.compile(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[A-Za-z0-9=_-]+\Z")
_SHA256 = re.compile(r"sha256:[0-9a-f]{64}\Z")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_MAX_SIZE = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Listed:
    """One entry of an index: its descriptor, the platform it is said to be for, its tag, and an artifact's type."""

    descriptor: Descriptor
    platform: Platform | None
    tag: str | None
    artifact_type: str | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest's descriptors; layers base first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Artifact:
    """The descriptors of a manifest of whatever it is: config, then layers. ``subject``: the digest of what it is of.

    ``kind`` is its type; where it says none, its config's.
    """

    blobs: tuple[Descriptor, ...]
    subject: str | None
    kind: str
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Config:
    """What of an image config matters here: its diffIDs, base first, and its platform (None: not said)."""

    diff_ids: tuple[str, ...]
    platform: Platform | None


# -- for messages --------------------------------------------------------------------------------------------

def show(value: Any) -> str:
    """*value* for a message: whoever wrote it also chose its length."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:100]}… ({len(text)} characters)"


def show_list(values: Sequence[str]) -> str:
    """The first of *values* for a message, and how many more there are."""
    shown = ", ".join(value if len(value) <= 255 else show(value) for value in values[:20])
    return shown if len(values) <= 20 else f"{shown} and {len(values) - 20} more"


# -- JSON ----------------------------------------------------------------------------------------------------

def parse_json(data: bytes, what: str) -> Any:
    """Decode *data* strictly: UTF-8, no key twice in an object, no NaN; else SourceError naming *what*."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise SourceError(f"{what} holds the key {show(key)} twice")
            found[key] = value
        return found

    def refuse(name: str) -> Any:
        raise SourceError(f"{what} holds {name}, which is not JSON")

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
        if _SURROGATE.search(data):   # an unpaired one would fail later, wherever the text is written
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:   # UnicodeError is a ValueError
        raise SourceError(f"{what} is not JSON in UTF-8: {str(error)[:200]}") from error
    return value


def as_object(value: Any, what: str) -> dict[str, Any]:
    """*value* if it is a JSON object, else SourceError naming *what*."""
    if not isinstance(value, dict):
        raise SourceError(f"{what} is not a JSON object but {_kind(value)}")
    return value


def text_list(value: Any, what: str) -> list[str]:
    """*value* if it is an array of texts (``null`` is an empty one), else SourceError naming *what*."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise SourceError(f"{what} is not a list of texts: {show(value)}")
    return value


def _array(document: Mapping[str, Any], key: str, what: str) -> list[Any]:
    """A required array; ``null`` is how Go writes an empty one."""
    if key not in document:
        raise SourceError(f"{what} has no {key!r}")
    value = document[key]
    if value is not None and not isinstance(value, list):
        raise SourceError(f"{key!r} of {what} is not an array but {_kind(value)}")
    return value or []


def _text(document: Mapping[str, Any], key: str, what: str) -> str:
    value = document.get(key)
    if not isinstance(value, str) or not value:
        raise SourceError(f"{key!r} of {what} is not text but {_kind(value)}")
    return value


def _optional_text(document: Mapping[str, Any], key: str, what: str) -> str:
    return _text(document, key, what) if document.get(key) not in (None, "") else ""


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "text", type(None): "missing", bool: "true or false"}
    return "empty" if value == "" else names.get(type(value), "a number")


# -- parts ---------------------------------------------------------------------------------------------------

def check_sha256(value: Any, what: str) -> str:
    """Return *value* if it is ``sha256:`` and 64 lowercase hex digits: only then may a path be made of it.

    Raises UnsupportedMediaTypeError for a digest by another algorithm, SourceError for what is no digest.
    """
    if isinstance(value, str) and _SHA256.match(value):
        return value
    if isinstance(value, str) and _DIGEST.match(value) and not value.startswith("sha256:"):
        raise UnsupportedMediaTypeError(
            f"{what}, {show(value)}, is by another algorithm than sha256",
            hint="write the image again with sha256 digests",
        )
    raise SourceError(f"{what}, {show(value)}, is not 'sha256:' and 64 lowercase hex digits")


def _descriptor(value: Any, what: str) -> Descriptor:
    document = as_object(value, what)
    media_type = _text(document, "mediaType", what)
    digest = check_sha256(document.get("digest"), f"the digest of {what}")
    size = document.get("size")
    if type(size) is not int or not 0 <= size <= _MAX_SIZE:
        raise SourceError(f"the size of {what} is not a number of bytes: {show(size)}")
    return Descriptor(media_type, digest, size, _annotations(document, what))


def _annotations(document: Mapping[str, Any], what: str) -> dict[str, str]:
    value = document.get("annotations")
    annotations = {} if value is None else as_object(value, f"'annotations' of {what}")
    for key, text in annotations.items():
        if not isinstance(text, str):
            raise SourceError(f"the annotation {show(key)} of {what} is not text but {_kind(text)}")
    return annotations


def _platform(value: Any, what: str) -> Platform | None:
    if value is None:
        return None
    where = f"'platform' of {what}"
    document = as_object(value, where)
    return Platform(
        _text(document, "os", where), _text(document, "architecture", where),
        _optional_text(document, "variant", where),
    )


def _check_kind(document: Mapping[str, Any], media_type: str, what: str, foreign: tuple[str, ...]) -> None:
    """The document must be what its descriptor says it is, and nothing else besides."""
    version = document.get("schemaVersion")
    if (type(version) is int and version == 1) or "fsLayers" in document:
        raise UnsupportedMediaTypeError(
            f"{what} is of Docker's schema 1", hint="convert it, for example with skopeo copy"
        )
    if type(version) is not int or version != 2:
        raise SourceError(f"{what} has schemaVersion {show(version)}, not 2")
    inner = document.get("mediaType", media_type)
    if inner != media_type:
        raise SourceError(f"{what} calls itself {show(inner)}, but its descriptor says {show(media_type)}")
    for key in foreign:
        if key in document:
            raise SourceError(f"{what} is said to be {media_type}, but holds {key!r}: is it another?")


def check_pairs(layers: Sequence[str], diff_ids: Sequence[str], what: str) -> None:
    """SourceError unless every layer of *what* (a blob digest or other identity) has its own diffID.

    One blob under two diffIDs is refused: a store that shares what is staged by blob would take one for the
    other. Two blobs of one diffID, and the same layer twice, are legal.
    """
    if len(layers) != len(diff_ids):
        raise SourceError(f"{what} has {len(layers)} layers, but its config has {len(diff_ids)} diff_ids")
    known: dict[str, str] = {}
    for n, (layer, diff_id) in enumerate(zip(layers, diff_ids, strict=True)):
        before = known.setdefault(layer, diff_id)
        if before != diff_id:
            raise SourceError(f"layer {n} of {what}, {layer}, has diff_id {diff_id}, but before {before}")


# -- documents -----------------------------------------------------------------------------------------------

def check_layout(data: bytes, what: str) -> None:
    """Check an ``oci-layout`` file (image-layout.md): its version must be 1.0.0."""
    version = as_object(parse_json(data, what), what).get("imageLayoutVersion")
    if version != "1.0.0":
        raise SourceError(f"{what} has imageLayoutVersion {show(version)}, not '1.0.0'")


def parse_index(data: bytes, media_type: str | None, what: str) -> list[Listed]:
    """The entries of an index or manifest list; *media_type* is its descriptor's (None: ``index.json``).

    Raises SourceError for what is malformed, UnsupportedMediaTypeError for other schema versions and digests.
    """
    document = as_object(parse_json(data, what), what)
    _check_kind(document, media_type or OCI_INDEX, what, ("layers", "config"))
    listed = []
    for n, value in enumerate(_array(document, "manifests", what)):
        where = f"entry {n} of {what}"
        found = _descriptor(value, where)
        platform = _platform(value.get("platform"), where)
        kind = _optional_text(value, "artifactType", where) or None
        listed.append(Listed(found, platform, found.annotations.get(_REF_NAME), kind))
    return listed


def parse_artifact(data: bytes, media_type: str, what: str) -> Artifact:
    """The descriptors of a manifest whose config and layers may be of any type.

    Raises SourceError for what is malformed, UnsupportedMediaTypeError for what is no manifest, and digests.
    """
    if media_type not in MANIFEST_TYPES:
        raise UnsupportedMediaTypeError(f"{what} is of the type {show(media_type)}, which is no manifest's")
    document = as_object(parse_json(data, what), what)
    _check_kind(document, media_type, what, ("manifests",))
    config = _descriptor(document.get("config"), f"the config of {what}")
    layers = [_descriptor(each, f"layer {n} of {what}") for n, each in enumerate(_array(document, "layers", what))]
    subject = document.get("subject")
    return Artifact(
        (config, *layers), None if subject is None else _descriptor(subject, f"the subject of {what}").digest,
        _optional_text(document, "artifactType", what) or config.media_type, _annotations(document, what),
    )


def parse_manifest(data: bytes, media_type: str, what: str) -> Manifest:
    """The descriptors of an image manifest, each of a type we know.

    Raises SourceError for what is malformed, UnsupportedMediaTypeError for artifacts and unknown layer types.
    """
    document = as_object(parse_json(data, what), what)
    _check_kind(document, media_type, what, ("manifests",))
    config = _descriptor(document.get("config"), f"the config of {what}")
    if config.media_type not in _CONFIG_TYPES:
        raise UnsupportedMediaTypeError(
            f"{what} is not of a container image: its config is of the type {show(config.media_type)}",
            hint="name an image, not an artifact",
        )
    layers = []
    for n, value in enumerate(_array(document, "layers", what)):
        layers.append(_descriptor(value, f"layer {n} of {what}"))
        if layers[-1].media_type not in _LAYER_TYPES:
            raise UnsupportedMediaTypeError(
                f"layer {n} of {what} is of the unknown type {show(layers[-1].media_type)}"
            )
    return Manifest(config, tuple(layers))


def parse_config(data: bytes, what: str) -> Config:
    """The diffIDs and platform of an image config. Raises SourceError; for digests as ``check_sha256``."""
    document = as_object(parse_json(data, what), what)
    rootfs = as_object(document.get("rootfs"), f"'rootfs' of {what}")
    if rootfs.get("type") != "layers":
        raise SourceError(f"'rootfs' of {what} is of the type {show(rootfs.get('type'))}, not 'layers'")
    diff_ids = tuple(
        check_sha256(value, f"diff_id {n} of {what}")
        for n, value in enumerate(_array(rootfs, "diff_ids", f"'rootfs' of {what}"))
    )
    system = _optional_text(document, "os", what)
    architecture = _optional_text(document, "architecture", what)
    platform = None
    if system and architecture:
        platform = Platform(system, architecture, _optional_text(document, "variant", what))
    return Config(diff_ids, platform)
