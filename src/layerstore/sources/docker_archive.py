"""From what ``docker save`` writes (one tar with ``manifest.json``) to one image.

Such an archive has no manifest in OCI's sense and no blob digests. Both are made here: a plain layer's
digest is its diffID, a compressed one's is computed, and the manifest is a canonical OCI manifest of these
descriptors: the same content gives the same bytes. Source: Docker image specification v1.2, "Combined Image
JSON + Filesystem Changeset Format"; containers/image, docker/archive (the reference's forms, and what other
tools write).
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from layerstore.errors import CompressionError, DigestMismatchError, SourceError, UnsupportedMediaTypeError
from layerstore.formats.compression import detect
from layerstore.model import Descriptor, LayerSource, Limits, SourceImage
from layerstore.sources.archive import Archive, Member
from layerstore.sources.blobs import LocalBlob
from layerstore.sources.documents import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    as_object,
    check_pairs,
    parse_config,
    parse_json,
    show,
    show_list,
    text_list,
)
from layerstore.sources.files import Opened, digest_of, read_document
from layerstore.sources.platforms import Platform, check_config
from layerstore.sources.reference import Reference, usable_name

__all__ = ["resolve"]

_LISTING = "manifest.json"
_CONFIG_NAME = re.compile(r"(?:blobs/sha256/)?([0-9a-f]{64})(?:\.json)?\Z")
_BLOB_NAME = re.compile(r"blobs/sha256/([0-9a-f]{64})\Z")
_POSITION = re.compile(r"@(\d{1,9})\Z")
_SUFFIXES = {"none": "", "gzip": "+gzip", "zstd": "+zstd"}


@dataclass(frozen=True, slots=True)
class _Saved:
    """One entry of the listing: names of members, layers base first."""

    config: str
    tags: tuple[str, ...]
    layers: tuple[str, ...]


def resolve(archive: Archive, reference: Reference, platform: Platform | None, limits: Limits) -> SourceImage:
    """Find the one image that *reference* means; its tag is a RepoTag, or ``@n`` for position n from 0.

    Compressed layers are read once, to learn their digests. The name is the chosen RepoTag, the first if
    none was chosen. Raises SourceError, NoMatchingPlatformError, UnsupportedMediaTypeError,
    DigestMismatchError, LimitExceededError.
    """
    saved, name = _choose(_listing(archive, limits), reference.tag, archive.label)
    config_bytes = read_document(archive, saved.config, limits)
    config_digest = _digest(config_bytes)
    what = f"the config {saved.config} of {archive.label}"
    _check_name(_CONFIG_NAME, saved.config, config_digest, what)
    config = parse_config(config_bytes, what)
    check_config(platform, config.platform, archive.label)
    check_pairs(saved.layers, config.diff_ids, f"the image {name or saved.config} in {archive.label}")
    known: dict[Member, Descriptor] = {}
    layers = []
    for layer, diff_id in zip(saved.layers, config.diff_ids, strict=True):
        blob = _describe(archive, layer, diff_id, known)
        stored = LocalBlob(_opener(archive, layer), blob.size, f"{layer} in {archive.label}")
        layers.append(LayerSource(blob, diff_id, stored))
    blobs = [layer.descriptor for layer in layers]
    check_pairs([blob.digest for blob in blobs], config.diff_ids, f"the image {name or saved.config}")
    manifest = _manifest(Descriptor(OCI_CONFIG, config_digest, len(config_bytes)), blobs)
    return SourceImage(
        manifest, _digest(manifest), OCI_MANIFEST, config_bytes, config_digest, tuple(layers),
        usable_name(name) if name is not None else None,
    )


# -- the listing ---------------------------------------------------------------------------------------------

def _listing(archive: Archive, limits: Limits) -> list[_Saved]:
    if archive.find(_LISTING) is None:
        is_oci = archive.find("oci-layout") is not None
        raise SourceError(
            f"{archive.label} has no {_LISTING}: it is no docker-archive",
            hint="write oci-archive: instead" if is_oci else "save the image with Docker 1.10 or later",
        )
    what = f"{_LISTING} of {archive.label}"
    document = parse_json(read_document(archive, _LISTING, limits), what)
    if not isinstance(document, list) or not document:
        raise SourceError(f"{what} is not a list of images")
    return [_saved(value, f"image {n} of {what}") for n, value in enumerate(document)]


def _saved(value: Any, what: str) -> _Saved:
    document = as_object(value, what)
    config = document.get("Config")
    if not isinstance(config, str):
        raise SourceError(f"{what} names no Config")
    tags = text_list(document.get("RepoTags"), f"RepoTags of {what}")
    layers = text_list(document.get("Layers"), f"Layers of {what}")
    return _Saved(_inside(config, what), tuple(tags), tuple(_inside(name, what) for name in layers))


def _inside(name: str, what: str) -> str:
    """A member's name as the archive's index has it. It is looked up there only, never on a disk."""
    clean = posixpath.normpath(name)
    if not name or name.startswith("/") or clean.split("/")[0] in ("..", ".") or "\0" in name:
        raise SourceError(f"{what} names {show(name)}, which is no file in the archive")
    return clean


def _choose(images: Sequence[_Saved], tag: str | None, label: str) -> tuple[_Saved, str | None]:
    """The image of *tag* and the RepoTag to call it by."""
    at = _POSITION.match(tag) if tag is not None else None
    if tag is None and len(images) > 1:
        raise SourceError(
            f"{label} holds {len(images)} images: {_names(images)}",
            hint="add ':' and one of these names to the reference",
        )
    if tag is None or at is not None:
        position = int(at[1]) if at is not None else 0
        if position >= len(images):
            raise SourceError(f"{label} holds {len(images)} images: there is none at position {position}")
        image = images[position]
        return image, image.tags[0] if image.tags else None
    for same in (str, _familiar):   # as it stands first; then as Docker would complete it
        found = [(image, name) for image in images for name in image.tags if same(name) == same(tag)]
        if len({image for image, _name in found}) > 1:
            raise SourceError(f"{label} holds several images that are called {tag!r}: {_names(images)}")
        if found:
            return found[0]
    raise SourceError(f"{label} holds no image that is called {tag!r}", hint=f"there are: {_names(images)}")


def _names(images: Sequence[_Saved]) -> str:
    return show_list([name for n, image in enumerate(images) for name in (image.tags or (f"@{n}",))])


def _familiar(name: str) -> str:
    """Make ``debian`` and ``docker.io/library/debian:latest`` the same (distribution/reference)."""
    name = name.removeprefix("docker.io/").removeprefix("library/")
    return name if ":" in name.rpartition("/")[2] or "@" in name else f"{name}:latest"


# -- layers --------------------------------------------------------------------------------------------------

def _describe(archive: Archive, name: str, diff_id: str, known: dict[Member, Descriptor]) -> Descriptor:
    """The descriptor of a layer as it is stored. A plain one is not read: who does will check it."""
    member = archive.find(name)
    if member is None:
        raise SourceError(f"{archive.label} lacks the layer {show(name)} ({diff_id})")
    if member in known:
        return known[member]
    what = f"the layer {name} of {archive.label}"
    try:
        with _open(archive, name).stream as stream:
            compression = detect(stream.read(8))
    except CompressionError as error:
        raise UnsupportedMediaTypeError(f"{what} is of no known type: {error}", hint=error.hint) from error
    if compression not in _SUFFIXES:
        raise UnsupportedMediaTypeError(
            f"{what} is {compression}-compressed, for which there is no layer type", hint="recompress it with gzip or zstd",
        )
    digest = diff_id
    if compression != "none":
        with _open(archive, name).stream as stream:
            digest = digest_of(stream)
    _check_name(_BLOB_NAME, name, digest, what)
    known[member] = Descriptor(OCI_LAYER + _SUFFIXES[compression], digest, member.size)
    return known[member]


def _open(archive: Archive, name: str) -> Opened:
    opened = archive.open(name)
    if opened is None:
        raise SourceError(f"{archive.label} lacks the file {show(name)}")
    return opened


def _opener(archive: Archive, name: str) -> Callable[[], BinaryIO]:
    return lambda: _open(archive, name).stream


def _check_name(pattern: re.Pattern[str], name: str, digest: str, what: str) -> None:
    """A member that is named by its digest must have it."""
    match = pattern.match(name)
    if match is not None and f"sha256:{match[1]}" != digest:
        raise DigestMismatchError(what, expected=f"sha256:{match[1]}", actual=digest)


# -- the manifest --------------------------------------------------------------------------------------------

def _manifest(config: Descriptor, layers: Sequence[Descriptor]) -> bytes:
    document = {
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": _json(config),
        "layers": [_json(blob) for blob in layers],
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _json(blob: Descriptor) -> dict[str, str | int]:
    return {"mediaType": blob.media_type, "digest": blob.digest, "size": blob.size}


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
