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
from layerstore.targets.files import expected, write_blob
from layerstore.targets.manifests import LAYOUT, index_with, manifest_over
from layerstore.targets.parts import Part, is_part, sweep, write_document

__all__ = ["LayoutTarget"]

_MARKER = "oci-layout"                   # the file that says that it is a layout; written first


class LayoutTarget:
    """Implements ``Target``. Several processes may send to one layout: its directory is locked for the index."""

    def __init__(self, path: str) -> None:
        """InvalidArgumentError if *path* is something else than a layout, an empty directory or absent."""
        if os.path.exists(path) and not os.path.isdir(path):
            raise InvalidArgumentError(f"{path} is not a directory", hint="for one file write oci-archive:")
        others = [each for each in os.listdir(path) if not _begun(each)] if os.path.isdir(path) else []
        if others and not os.path.isfile(os.path.join(path, _MARKER)):   # asked last: somebody may just be making it
            raise InvalidArgumentError(f"{path} is not an OCI layout, and not empty", hint="choose another directory")
        self._path = path
        self._directories = _up_to_what_is_there(path)

    def send(self, image: Outgoing, progress: Callable[[int], None]) -> Sent:
        """As in ``Target``. Blobs that are there already, and are what their names say, are not written again."""
        os.makedirs(self._path, exist_ok=True)
        if not os.path.exists(os.path.join(self._path, _MARKER)):   # first: it tells whose the rest is
            write_document(os.path.join(self._path, _MARKER), LAYOUT, point="push.layout")
        os.makedirs(os.path.join(self._path, "blobs", "sha256"), exist_ok=True)
        sweep(self._path)
        sweep(os.path.join(self._path, "blobs", "sha256"))
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
        if known is not None and self._is_there(known.digest, known.size):
            progress(layer.diff_size)
            return known
        with Part(self._blob(".layer"), point="push.blob") as part:
            blob = write_blob(layer, part.file, progress)
            part.put(self._blob(blob.digest))
        return blob

    def _put(self, data: bytes, digest: str) -> None:
        if not self._is_there(digest, len(data)):
            write_document(self._blob(digest), data, point="push.document")

    def _is_there(self, digest: str, size: int) -> bool:
        """Whether the blob is there, and is what its name says: who wrote it may have been killed, or the disk lies."""
        try:
            with open(self._blob(digest), "rb") as file:
                return (os.fstat(file.fileno()).st_size == size
                        and hashlib.file_digest(file, "sha256").hexdigest() == digest.removeprefix("sha256:"))
        except OSError:
            return False   # it is written, or says why not

    def _blob(self, digest: str) -> str:
        return os.path.join(self._path, "blobs", "sha256", digest.removeprefix("sha256:"))


def _begun(name: str) -> bool:
    """Whether a file of that name is of an ``oci-layout`` that is being written, or was when something crashed."""
    return name == f"{_MARKER}.part" or is_part(name, _MARKER)   # the first: by earlier versions


def _up_to_what_is_there(path: str) -> list[str]:
    """*path*, and the directories above it, up to the first that is there already."""
    found = [os.path.abspath(path)]
    while len(found) == 1 or not os.path.isdir(found[-1]):
        found.append(os.path.dirname(found[-1]))
    return found
