"""An OCI layout directory as a target: new, or one that has other images already. ``index.json`` is replaced last.

A crash leaves the index as it was or with the image, whole, and perhaps blobs that it does not list: everything that it is
to list is on disk before it (``push.settle.sync``), be it of this push or of another that found no time to sync it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress

from layerstore.errors import InvalidArgumentError
from layerstore.model import Descriptor
from layerstore.signatures import Signature
from layerstore.system import faults
from layerstore.system.descriptors import Descriptor as Opened
from layerstore.targets import Outgoing, OutgoingLayer, Sent
from layerstore.targets.beside import blobs_of, with_entries
from layerstore.targets.files import expected, replacing, write_blob, write_document
from layerstore.targets.manifests import LAYOUT, index_with, manifest_over

__all__ = ["LayoutTarget"]

_BEGUN = "oci-layout.part"               # all that is there of a layout whose first push was killed at once


class LayoutTarget:
    """Implements ``Target``. Several processes may send to one layout: its directory is locked for the index."""

    def __init__(self, path: str) -> None:
        """InvalidArgumentError if *path* is something else than a layout, an empty directory or absent."""
        if os.path.exists(path) and not os.path.isdir(path):
            raise InvalidArgumentError(f"{path} is not a directory", hint="for one file write oci-archive:")
        is_layout = os.path.isfile(os.path.join(path, "oci-layout"))
        if os.path.isdir(path) and set(os.listdir(path)) - {_BEGUN} and not is_layout:
            raise InvalidArgumentError(f"{path} is not an OCI layout, and not empty", hint="choose another directory")
        self._path = path
        self._directories = _up_to_what_is_there(path)

    def send(self, image: Outgoing, progress: Callable[[int], None]) -> Sent:
        """As in ``Target``. Blobs that are there already are not written again."""
        os.makedirs(self._path, exist_ok=True)
        if not os.path.exists(os.path.join(self._path, "oci-layout")):   # first: it tells whose the rest is
            write_document(os.path.join(self._path, "oci-layout"), LAYOUT, point="push.layout")
        os.makedirs(os.path.join(self._path, "blobs", "sha256"), exist_ok=True)
        self._put(image.config, image.config_digest)
        blobs = tuple(self._layer(layer, progress) for layer in image.layers)
        manifest, media_type = manifest_over(image.manifest, image.manifest_media_type, blobs)
        digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
        self._put(manifest, digest)
        signatures = [each for each in image.signatures if each.subject == digest]
        for each in signatures:
            for name, data in blobs_of(each):
                self._put(data, name)
            self._put(each.manifest, each.digest)
        self._settle()
        return Sent(digest, blobs, self._list(manifest, media_type, image.tag, signatures))

    def _settle(self) -> None:
        """All names that lead to what is listed next are on disk, whoever gave them; the files themselves are already."""
        for path in (os.path.join(self._path, "blobs", "sha256"), os.path.join(self._path, "blobs"), *self._directories):
            with (
                suppress(PermissionError),   # one that may not be read is not ours, and was there before
                Opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd, faults.point("push.settle.sync"),
            ):
                os.fsync(fd)

    def _list(self, manifest: bytes, media_type: str, tag: str | None, signatures: Sequence[Signature]) -> int:
        """Show the image, and its signatures, at once; how many of those are there."""
        path = os.path.join(self._path, "index.json")
        with Opened(self._path, os.O_RDONLY | os.O_DIRECTORY) as fd:
            fcntl.flock(fd, fcntl.LOCK_EX)
            before = None
            if os.path.exists(path):
                with open(path, "rb") as file:
                    before = file.read()
            index, there = with_entries(index_with(before, manifest, media_type, tag), signatures)
            write_document(path, index, point="push.index")
        return len(there)

    def _layer(self, layer: OutgoingLayer, progress: Callable[[int], None]) -> Descriptor:
        known = expected(layer)
        if known is not None and os.path.exists(self._blob(known.digest)):
            progress(layer.diff_size)
            return known
        aside = self._blob(f".{os.getpid()}-{layer.diff_id.removeprefix('sha256:')}")
        with replacing(aside, point="push.blob") as file:
            blob = write_blob(layer, file, progress)
        with faults.point("push.blob.name"):
            os.replace(aside, self._blob(blob.digest))
        return blob

    def _put(self, data: bytes, digest: str) -> None:
        if not os.path.exists(self._blob(digest)):
            write_document(self._blob(digest), data, point="push.document")

    def _blob(self, digest: str) -> str:
        return os.path.join(self._path, "blobs", "sha256", digest.removeprefix("sha256:"))


def _up_to_what_is_there(path: str) -> list[str]:
    """*path*, and the directories above it, up to the first that is there already."""
    found = [os.path.abspath(path)]
    while len(found) == 1 or not os.path.isdir(found[-1]):
        found.append(os.path.dirname(found[-1]))
    return found
