"""A store of podman's (containers/storage, overlay driver) as a source: ``containers-storage:[overlay@ROOT]NAME``.

No lock is taken and nothing is written: the store may be in use, or on a read-only file system. Everything in it is a
stranger's word: documents are checked by digest, layers by diffID. What podman has not finished, or has lost, is refused
by the layer's name.

Source: containers/image, storage transport (reference syntax); go.podman.io/storage, layers.go and images.go.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from typing import Any

from layerstore.errors import DigestMismatchError, InvalidArgumentError, LimitExceededError, SourceError
from layerstore.formats.containers_storage.names import big_data_file, image_names, manifest_key
from layerstore.model import Descriptor, LayerSource, Limits, SourceImage
from layerstore.sources.documents import (
    MANIFEST_TYPES,
    OCI_LAYER,
    OCI_MANIFEST,
    as_object,
    check_pairs,
    parse_config,
    parse_json,
    parse_manifest,
    show_list,
)
from layerstore.sources.made_again import TreeBlob
from layerstore.sources.platforms import Platform, check_config
from layerstore.sources.reference import usable_name
from layerstore.sources.storage_conf import stores

__all__ = ["PREFIX", "PodmanStore"]

PREFIX = "containers-storage:"
_FORM = "write containers-storage:[overlay@/var/lib/containers/storage]NAME[:TAG], or an image's ID"
_PLACE = re.compile(r"\[(?:overlay@)?(?P<root>/[^\]:+]*)(?:\+[^\]:]*)?(?::[^\]]*)?\](?P<name>[^\[\]]+)\Z")
_ID = re.compile(r"[0-9a-f]{64}\Z")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_MAX_LIST = 256 << 20                    # bytes of layers.json: some 300 for a layer


@dataclass(frozen=True, slots=True)
class PodmanStore:
    """One image of a store, or of the first of some that has it; ``close`` has nothing to give back.

    Layers may be in any of *roots*: what podman pulls stands on what its additional stores have.
    """

    roots: tuple[str, ...]
    name: str

    @classmethod
    def parse(cls, text: str) -> PodmanStore:
        """Parse ``containers-storage:…``. Without ``[…]``: the stores that storage.conf names. InvalidArgumentError."""
        rest = text.removeprefix(PREFIX)
        if rest.startswith("["):
            found = _PLACE.match(rest)
            if found is None:
                raise InvalidArgumentError(f"{text!r} names no store and image that can be pulled", hint=_FORM)
            return cls((found["root"],), found["name"])
        if not rest:
            raise InvalidArgumentError(f"{text!r} names no image", hint=_FORM)
        return cls(stores(), rest)

    def close(self) -> None:
        """Nothing is kept open."""

    def resolve(self, platform: Platform | None, limits: Limits) -> SourceImage:
        """The image. SourceError for what is missing, incomplete or malformed; DigestMismatchError."""
        root, image = self._image()
        what = f"the image {self.name} in {root}"
        digest, image_id = str(image.get("digest", "")), str(image["id"])
        manifest = self._big_data(root, image_id, "manifest", limits) if not _DIGEST.match(digest) else (
            self._big_data(root, image_id, manifest_key(digest), limits, otherwise="manifest"))
        _check(manifest, digest if _DIGEST.match(digest) else _digest(manifest), f"the manifest of {what}")
        media_type = as_object(parse_json(manifest, what), what).get("mediaType", OCI_MANIFEST)
        if media_type not in MANIFEST_TYPES:
            raise SourceError(f"{what} has a manifest of the type {media_type!r}", hint="convert it to OCI first")
        parsed = parse_manifest(manifest, media_type, what)
        config = self._big_data(root, image_id, parsed.config.digest, limits)
        _check(config, parsed.config.digest, f"the config of {what}")
        known = parse_config(config, what)
        check_config(platform, known.platform, what)
        stack = self._stack(image)
        found = [str(layer.get("diff-digest", "")) for _, layer in stack]
        if found != list(known.diff_ids):
            raise SourceError(f"the layers of {what} are not those of its config: {show_list(found)}")
        check_pairs([each.digest for each in parsed.layers], known.diff_ids, what)
        names = image_names([self.name] if not _ID.match(self.name) else [])
        name = next(iter(names.values()), None) or next(iter(image.get("names") or []), None)
        return SourceImage(
            manifest, _digest(manifest), media_type, config, parsed.config.digest,
            tuple(_layer(*each) for each in stack), usable_name(name) if name is not None else None,
        )

    # -- records -------------------------------------------------------------------------------------------------

    def _image(self) -> tuple[str, dict[str, Any]]:
        """The image's record, and which store has it."""
        wanted = {self.name, *image_names([self.name]).values()}
        if not self.name.startswith("localhost/"):   # as podman completes a short name
            wanted |= {f"docker.io/library/{self.name}", f"docker.io/library/{self.name}:latest", f"docker.io/{self.name}"}
        names: list[str] = []
        for root, images in self._records("overlay-images/images.json"):
            found = [each for each in images if each["id"] == self.name or wanted & set(each.get("names") or [])]
            if len(found) == 1:
                return root, found[0]
            if found:
                raise SourceError(f"{root} has {len(found)} images that may be {self.name!r}", hint="give the whole name")
            names += [name for each in images for name in each.get("names") or []]
        hint = f"there are: {show_list(sorted(names))}" if names else None
        raise SourceError(f"{' or '.join(self.roots)} has no image {self.name!r}", hint=hint)

    def _stack(self, image: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """The image's layers, base first, and where they are; each is whole as far as its record and its files tell."""
        layers: dict[str, tuple[str, dict[str, Any]]] = {}
        for root, records in self._records("overlay-layers/layers.json"):
            for each in records:
                layers.setdefault(each["id"], (root, each))
        stack: list[tuple[str, dict[str, Any]]] = []
        at = image.get("layer")
        while at:
            found = layers.get(at)
            if found is None or found in stack:
                raise SourceError(
                    f"layer {at} of the image {self.name} is not in {' or '.join(self.roots)}",
                    hint="it was lost, or is in an additional store, which storage.conf has to name",
                )
            self._check_whole(*found)
            stack.append(found)
            at = found[1].get("parent")
        return stack[::-1]

    def _check_whole(self, root: str, layer: dict[str, Any]) -> None:
        what = f"layer {layer['id']} of the image {self.name} in {root}"
        if (layer.get("flags") or {}).get("incomplete"):
            raise SourceError(f"{what} is incomplete: its pull was interrupted", hint="pull it again, from where it came")
        if not _DIGEST.match(str(layer.get("diff-digest", ""))) or not isinstance(layer.get("diff-size"), int):
            raise SourceError(f"{what} has no diffID: it was pulled without being verified")
        if layer.get("uidmap") or layer.get("gidmap"):
            raise SourceError(f"{what} has mapped ids on disk", hint="name the image in the store that it was pulled into")
        for path, meant in ((_tree(root, layer), "its tree"), (_split(root, layer), "its tar-split")):
            if not os.path.exists(path):
                raise SourceError(f"{what} is torn: {meant} is missing ({path})", hint="pull it again, from where it came")

    # -- files ---------------------------------------------------------------------------------------------------

    def _records(self, name: str) -> list[tuple[str, list[dict[str, Any]]]]:
        """What each store's document lists. Of several stores some may have none: podman makes it with the first image."""
        there = [root for root in self.roots if os.path.exists(f"{root}/{name}")] or list(self.roots[:1])
        return [(root, _listed(f"{root}/{name}")) for root in there]

    def _big_data(self, root: str, image_id: str, key: str, limits: Limits, *, otherwise: str | None = None) -> bytes:
        path = f"{root}/overlay-images/{image_id}/{big_data_file(key)}"
        if otherwise is not None and not os.path.exists(path):
            return self._big_data(root, image_id, otherwise, limits)
        return _read(path, limits.max_manifest_json)


def _layer(root: str, layer: dict[str, Any]) -> LayerSource:
    digest, size = layer["diff-digest"], layer["diff-size"]
    blob = TreeBlob(_tree(root, layer), _split(root, layer), size, f"layer {layer['id']} in {root}")
    return LayerSource(Descriptor(OCI_LAYER, digest, size), digest, blob)


def _tree(root: str, layer: dict[str, Any]) -> str:
    return f"{root}/overlay/{layer['id']}/diff"


def _split(root: str, layer: dict[str, Any]) -> str:
    return f"{root}/overlay-layers/{layer['id']}.tar-split.gz"


def _listed(path: str) -> list[dict[str, Any]]:
    found = parse_json(_read(path, _MAX_LIST), path)
    if not isinstance(found, list):
        raise SourceError(f"{path} is not a list")
    records = [as_object(each, path) for each in found]
    for each in records:
        if not _ID.match(str(each.get("id", ""))) or not isinstance(each.get("names") or [], list):
            raise SourceError(f"{path} has a record without an ID that can be one")
    return records


def _read(path: str, maximum: int) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(maximum + 1)
    except FileNotFoundError as error:
        hint = "is this the directory of a store of podman's (graphroot in storage.conf)?"
        raise SourceError(f"{path} is missing", hint=hint) from error
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}", hint="read the store as its owner") from error
    if len(data) > maximum:
        raise LimitExceededError(path, limit="max_manifest_json", maximum=maximum)
    return data


def _check(data: bytes, digest: str, what: str) -> None:
    if _digest(data) != digest:
        raise DigestMismatchError(what, expected=digest, actual=_digest(data))


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
