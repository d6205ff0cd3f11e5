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

__all__ = ["PREFIX", "PodmanStore"]

PREFIX = "containers-storage:"
_FORM = "write containers-storage:[overlay@/var/lib/containers/storage]NAME[:TAG], or an image's ID"
_PLACE = re.compile(r"\[(?:overlay@)?(?P<root>/[^\]:+]*)(?:\+[^\]:]*)?(?::[^\]]*)?\](?P<name>[^\[\]]+)\Z")
_ID = re.compile(r"[0-9a-f]{64}\Z")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_MAX_LIST = 256 << 20                    # bytes of layers.json: some 300 for a layer


@dataclass(frozen=True, slots=True)
class PodmanStore:
    """One image of one store; ``close`` has nothing to give back."""

    root: str
    name: str

    @classmethod
    def parse(cls, text: str) -> PodmanStore:
        """Parse ``containers-storage:…``. Without ``[…]`` it is this user's default store. InvalidArgumentError."""
        rest = text.removeprefix(PREFIX)
        if rest.startswith("["):
            found = _PLACE.match(rest)
            if found is None:
                raise InvalidArgumentError(f"{text!r} names no store and image that can be pulled", hint=_FORM)
            return cls(found["root"], found["name"])
        if not rest:
            raise InvalidArgumentError(f"{text!r} names no image", hint=_FORM)
        data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
        return cls("/var/lib/containers/storage" if os.geteuid() == 0 else f"{data}/containers/storage", rest)

    def close(self) -> None:
        """Nothing is kept open."""

    def resolve(self, platform: Platform | None, limits: Limits) -> SourceImage:
        """The image. SourceError for what is missing, incomplete or malformed; DigestMismatchError."""
        image = self._image()
        what = f"the image {self.name} in {self.root}"
        digest, image_id = str(image.get("digest", "")), str(image["id"])
        manifest = self._big_data(image_id, "manifest", limits) if not _DIGEST.match(digest) else (
            self._big_data(image_id, manifest_key(digest), limits, otherwise="manifest"))
        _check(manifest, digest if _DIGEST.match(digest) else _digest(manifest), f"the manifest of {what}")
        media_type = as_object(parse_json(manifest, what), what).get("mediaType", OCI_MANIFEST)
        if media_type not in MANIFEST_TYPES:
            raise SourceError(f"{what} has a manifest of the type {media_type!r}", hint="convert it to OCI first")
        parsed = parse_manifest(manifest, media_type, what)
        config = self._big_data(image_id, parsed.config.digest, limits)
        _check(config, parsed.config.digest, f"the config of {what}")
        known = parse_config(config, what)
        check_config(platform, known.platform, what)
        stack = self._stack(image)
        found = [str(layer.get("diff-digest", "")) for layer in stack]
        if found != list(known.diff_ids):
            raise SourceError(f"the layers of {what} are not those of its config: {show_list(found)}")
        check_pairs([each.digest for each in parsed.layers], known.diff_ids, what)
        names = image_names([self.name] if not _ID.match(self.name) else [])
        name = next(iter(names.values()), None) or next(iter(image.get("names") or []), None)
        return SourceImage(
            manifest, _digest(manifest), media_type, config, parsed.config.digest,
            tuple(self._layer(layer) for layer in stack), usable_name(name) if name is not None else None,
        )

    # -- records -------------------------------------------------------------------------------------------------

    def _image(self) -> dict[str, Any]:
        images = self._records("overlay-images/images.json")
        wanted = {self.name, *image_names([self.name]).values()}
        if not self.name.startswith("localhost/"):   # as podman completes a short name
            wanted |= {f"docker.io/library/{self.name}", f"docker.io/library/{self.name}:latest", f"docker.io/{self.name}"}
        found = [each for each in images if each["id"] == self.name or wanted & set(each.get("names") or [])]
        if len(found) == 1:
            return found[0]
        names = sorted(name for each in images for name in each.get("names") or [])
        if found:
            raise SourceError(f"{self.root} has {len(found)} images that may be {self.name!r}", hint="give the whole name")
        hint = f"there are: {show_list(names)}" if names else None
        raise SourceError(f"{self.root} has no image {self.name!r}", hint=hint)

    def _stack(self, image: dict[str, Any]) -> list[dict[str, Any]]:
        """The image's layers, base first, each of them whole as far as its record and its files tell."""
        layers = {each["id"]: each for each in self._records("overlay-layers/layers.json")}
        stack: list[dict[str, Any]] = []
        at = image.get("layer")
        while at:
            layer = layers.get(at)
            if layer is None or layer in stack:
                raise SourceError(
                    f"layer {at} of the image {self.name} is not in {self.root}",
                    hint="it was lost, or is in an additional store, which is to be named itself",
                )
            self._check_whole(layer)
            stack.append(layer)
            at = layer.get("parent")
        return stack[::-1]

    def _check_whole(self, layer: dict[str, Any]) -> None:
        what = f"layer {layer['id']} of the image {self.name} in {self.root}"
        if (layer.get("flags") or {}).get("incomplete"):
            raise SourceError(f"{what} is incomplete: its pull was interrupted", hint="pull it again, from where it came")
        if not _DIGEST.match(str(layer.get("diff-digest", ""))) or not isinstance(layer.get("diff-size"), int):
            raise SourceError(f"{what} has no diffID: it was pulled without being verified")
        if layer.get("uidmap") or layer.get("gidmap"):
            raise SourceError(f"{what} has mapped ids on disk", hint="name the image in the store that it was pulled into")
        for path, meant in ((self._tree(layer), "its tree"), (self._split(layer), "its tar-split")):
            if not os.path.exists(path):
                raise SourceError(f"{what} is torn: {meant} is missing ({path})", hint="pull it again, from where it came")

    def _layer(self, layer: dict[str, Any]) -> LayerSource:
        digest, size = layer["diff-digest"], layer["diff-size"]
        blob = TreeBlob(self._tree(layer), self._split(layer), size, f"layer {layer['id']} in {self.root}")
        return LayerSource(Descriptor(OCI_LAYER, digest, size), digest, blob)

    # -- files ---------------------------------------------------------------------------------------------------

    def _tree(self, layer: dict[str, Any]) -> str:
        return f"{self.root}/overlay/{layer['id']}/diff"

    def _split(self, layer: dict[str, Any]) -> str:
        return f"{self.root}/overlay-layers/{layer['id']}.tar-split.gz"

    def _records(self, name: str) -> list[dict[str, Any]]:
        what = f"{self.root}/{name}"
        found = parse_json(_read(what, _MAX_LIST), what)
        if not isinstance(found, list):
            raise SourceError(f"{what} is not a list")
        records = [as_object(each, what) for each in found]
        for each in records:
            if not _ID.match(str(each.get("id", ""))) or not isinstance(each.get("names") or [], list):
                raise SourceError(f"{what} has a record without an ID that can be one")
        return records

    def _big_data(self, image_id: str, key: str, limits: Limits, *, otherwise: str | None = None) -> bytes:
        path = f"{self.root}/overlay-images/{image_id}/{big_data_file(key)}"
        if otherwise is not None and not os.path.exists(path):
            return self._big_data(image_id, otherwise, limits)
        return _read(path, limits.max_manifest_json)


def _read(path: str, maximum: int) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(maximum + 1)
    except FileNotFoundError as error:
        raise SourceError(f"{path} is missing", hint="is this the directory of a store of podman's (graphroot)?") from error
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
