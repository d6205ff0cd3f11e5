"""One file as a target: an OCI archive, or a Docker archive, whose layers are plain tars. It appears when it is whole.

The tar that it is has no times, owners or order of the disk's: the same image gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
from collections.abc import Callable
from functools import partial
from typing import BinaryIO

from layerstore.model import Descriptor
from layerstore.targets import Outgoing, OutgoingLayer, Sent
from layerstore.targets.beside import blobs_of, with_entries
from layerstore.targets.files import write_blob
from layerstore.targets.manifests import LAYOUT, docker_list, index_with, layer_type, manifest_over
from layerstore.targets.parts import replacing, sweep

__all__ = ["DockerArchiveTarget", "OciArchiveTarget"]

_PIECE = 1 << 20


class OciArchiveTarget:
    """Implements ``Target``: a layout in one tar, ``index.json`` last. A layer lies beside it while it is compressed."""

    def __init__(self, path: str) -> None:
        self._path = path

    def send(self, image: Outgoing, progress: Callable[[int], None]) -> Sent:
        """As in ``Target``."""
        _sweep(self._path)
        with replacing(self._path, point="push.archive") as file, _Tar(file) as tar:
            tar.add("oci-layout", LAYOUT)
            tar.add(_blob(image.config_digest), image.config)
            blobs = tuple(self._layer(tar, layer, progress) for layer in image.layers)
            manifest, media_type = manifest_over(image.manifest, image.manifest_media_type, blobs)
            digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
            tar.add(_blob(digest), manifest)
            signatures = [each for each in image.signatures if each.subject == digest]
            index, there = with_entries(index_with(None, manifest, media_type, image.tag), signatures)
            for each in there:
                for name, data in blobs_of(each):
                    tar.add(_blob(name), data)
                tar.add(_blob(each.digest), each.manifest)
            tar.add("index.json", index)
        return Sent(digest, blobs, len(there))

    def _layer(self, tar: _Tar, layer: OutgoingLayer, progress: Callable[[int], None]) -> Descriptor:
        with tempfile.TemporaryFile(dir=os.path.dirname(os.path.abspath(self._path))) as spool:
            blob = write_blob(layer, spool, progress)
            spool.seek(0)
            tar.stream(_blob(blob.digest), blob.size, lambda: spool.read(_PIECE))
        return blob


class DockerArchiveTarget:
    """Implements ``Target``: what ``docker load`` takes."""

    def __init__(self, path: str) -> None:
        self._path = path

    def send(self, image: Outgoing, progress: Callable[[int], None]) -> Sent:
        """As in ``Target``. A tar that comes twice in an image is written once."""
        names = [f"{layer.diff_id.removeprefix('sha256:')}.tar" for layer in image.layers]
        config_name = f"{image.config_digest.removeprefix('sha256:')}.json"
        _sweep(self._path)
        with replacing(self._path, point="push.archive") as file, _Tar(file) as tar:
            for name, layer in zip(names, image.layers, strict=True):
                if name not in tar.names:
                    with layer.open() as chunks:
                        tar.stream(name, layer.diff_size, partial(next, chunks, b""), progress)
            tar.add(config_name, image.config)
            tar.add("manifest.json", docker_list(config_name, image.tag, names))
        return Sent(None, tuple(
            Descriptor(layer_type("none"), layer.diff_id, layer.diff_size) for layer in image.layers))


class _Tar:
    """A tar that is written from front to back."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.names: set[str] = set()

    def add(self, name: str, data: bytes) -> None:
        stream = io.BytesIO(data)
        self.stream(name, len(data), lambda: stream.read(_PIECE))

    def stream(
        self, name: str, size: int, read: Callable[[], bytes], progress: Callable[[int], None] = lambda _n: None,
    ) -> None:
        """A member of *size* bytes; *read* gives the next of them, none at the end. Each name is added once."""
        if name in self.names:
            return
        self.names.add(name)
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o644
        self._file.write(info.tobuf(tarfile.PAX_FORMAT))
        written = 0
        while data := read():
            self._file.write(data)
            written += len(data)
            progress(len(data))
        assert written == size, f"{name}: {written} bytes of {size}"
        self._file.write(bytes(-size % tarfile.BLOCKSIZE))

    def __enter__(self) -> _Tar:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exc: object) -> None:
        if kind is None:
            self._file.write(bytes(2 * tarfile.BLOCKSIZE))


def _sweep(path: str) -> None:
    where, name = os.path.split(os.path.abspath(path))
    sweep(where, name)


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"
