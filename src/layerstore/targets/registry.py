"""A repository in a registry as a target: blobs that it lacks are uploaded, each at once; the manifest is put last.

What a registry has (``HEAD``) is not sent. An upload that breaks is begun again; one that is left unfinished is the
registry's to clear away. Credentials, TLS and tries are those of pulling (``sources.registry``).

Source: OCI distribution-spec 1.1, "Push" (POST then PUT; pushing manifests).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from io import BytesIO
from typing import BinaryIO, TypeVar
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

from layerstore.errors import InvalidArgumentError, RegistryError
from layerstore.model import Descriptor
from layerstore.sources.registry import RegistryOptions, connect
from layerstore.sources.registry.failures import Broken, origin, shown
from layerstore.sources.registry.names import parse_name
from layerstore.targets import Outgoing, OutgoingLayer, Sent
from layerstore.targets.files import expected, write_blob
from layerstore.targets.manifests import manifest_over

__all__ = ["RegistryTarget"]

_BINARY = "application/octet-stream"
T = TypeVar("T")


class RegistryTarget:
    """Implements ``Target``. *reference* is ``docker://HOST[:PORT]/REPOSITORY[:TAG]``."""

    def __init__(self, reference: str, options: RegistryOptions) -> None:
        """InvalidArgumentError, SourceError as ``connect``. Nothing is sent yet."""
        name = parse_name(reference)
        if name.tag is None:
            raise InvalidArgumentError(f"{reference!r} names a digest, which is not known before", hint="push to a tag")
        self._tag = name.tag
        self._client = connect(name, options, push=True)
        self._base = f"{self._client.home}{name.repository}/"

    def send(self, image: Outgoing, progress: Callable[[int], None]) -> Sent:
        """As in ``Target``. Raises RegistryError and its kind."""
        try:
            if not self._has(image.config_digest):
                self._upload(BytesIO(image.config), image.config_digest, len(image.config))
            blobs = tuple(self._layer(layer, progress) for layer in image.layers)
            manifest, media_type = manifest_over(image.manifest, image.manifest_media_type, blobs)
            digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
            self._put_manifest(manifest, media_type, digest)
        finally:
            self._client.close()
        return Sent(digest, blobs)

    def _layer(self, layer: OutgoingLayer, progress: Callable[[int], None]) -> Descriptor:
        known = expected(layer)
        if known is not None and self._has(known.digest):
            progress(layer.diff_size)
            return known
        with tempfile.TemporaryFile() as spool:   # its digest must be known before the end of the upload
            blob = write_blob(layer, spool, progress)
            if known is not None or not self._has(blob.digest):
                self._upload(spool, blob.digest, blob.size)
        return blob

    def _has(self, digest: str) -> bool:
        def ask() -> bool:
            with self._client.once("HEAD", f"{self._base}blobs/{digest}", {}, (200, 307, 404)) as reply:
                return reply.status != 404

        return self._tried(ask)

    def _upload(self, data: BinaryIO, digest: str, size: int) -> None:
        def put() -> None:
            with self._client.once("POST", f"{self._base}blobs/uploads/", {"Content-Length": "0"}, (202,)) as reply:
                target = self._target(reply.target, reply.header("Location"))
            data.seek(0)
            parts = urlsplit(target)
            target = urlunsplit(parts._replace(query=urlencode([*parse_qsl(parts.query), ("digest", digest)])))
            headers = {"Content-Type": _BINARY, "Content-Length": str(size)}
            self._client.once("PUT", target, headers, (201, 204), data).close()

        self._tried(put)

    def _target(self, asked: str, location: str) -> str:
        """Where an upload goes on, if it may: never from https to http."""
        target = urljoin(asked, location)
        try:
            scheme, _host, _port = origin(target)
        except ValueError:
            scheme = ""
        weaker = scheme == "http" and asked.startswith("https:")
        if not location or not scheme or weaker or "@" in urlsplit(target).netloc:
            where = shown(asked, self._client.home)
            raise RegistryError(f"the registry names no usable place for an upload: POST {where}", url=where)
        return target

    def _put_manifest(self, manifest: bytes, media_type: str, digest: str) -> None:
        def put() -> str:
            headers = {"Content-Type": media_type, "Content-Length": str(len(manifest))}
            with self._client.once("PUT", f"{self._base}manifests/{self._tag}", headers, (201,), manifest) as reply:
                return reply.header("Docker-Content-Digest")

        said = self._tried(put)
        if said not in ("", digest):
            where = shown(self._base, self._client.home)
            raise RegistryError(f"the registry took the manifest {digest} for another: {where}", url=where)

    def _tried(self, call: Callable[[], T]) -> T:
        attempts = self._client.attempts()
        while True:
            try:
                return call()
            except Broken as broken:
                attempts.failed(broken)
