"""From a reference to an image in a registry, by the same rules as everywhere (``sources.oci``): which documents to read.

A tag's document is whatever came under it, once; what it names is then asked for by digest, and verified before it is
parsed. No document is read beyond ``max_manifest_json`` bytes. Layers are not asked for before they are read.
"""

from __future__ import annotations

import hashlib

from layerstore.errors import DigestMismatchError, LimitExceededError, SizeMismatchError, UnsupportedMediaTypeError
from layerstore.model import Descriptor, Limits, SourceImage
from layerstore.partial import BlobSource
from layerstore.sources import oci
from layerstore.sources.documents import INDEX_TYPES, MANIFEST_TYPES, Listed, as_object, parse_json, show
from layerstore.sources.platforms import Platform
from layerstore.sources.reference import usable_name
from layerstore.sources.registry.blobs import RegistryBlob
from layerstore.sources.registry.client import Client
from layerstore.sources.registry.failures import Broken
from layerstore.sources.registry.transport import Reply

__all__ = ["resolve"]

_ACCEPT = ", ".join(sorted(INDEX_TYPES | MANIFEST_TYPES))
_UNTOLD = frozenset({"", "application/json", "application/octet-stream", "text/plain"})
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1"


def resolve(client: Client, platform: Platform | None, limits: Limits) -> SourceImage:
    """The image that the client's reference means. Raises as ``ImageSource.resolve``."""
    documents = _Documents(client, limits)
    name = usable_name(str(client.name))
    return oci.resolve_from(documents, documents.first(), platform, name)


class _Documents:
    """Implements ``oci.Documents``."""

    def __init__(self, client: Client, limits: Limits) -> None:
        self._client, self._limits = client, limits
        self.label = str(client.name)
        self._read: dict[str, bytes] = {}

    def first(self) -> Listed:
        """What the reference stands for: its document, read, and described as an index would."""
        name = self._client.name
        data, media_type = self._fetch(f"manifests/{name.digest or name.tag}", _ACCEPT, f"the manifest of {name}")
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if name.digest is not None and digest != name.digest:
            raise DigestMismatchError(f"the manifest of {name}", expected=name.digest, actual=digest)
        self._read[digest] = data
        return Listed(Descriptor(self._type(data, media_type), digest, len(data)), None, None)

    def manifest(self, found: Descriptor, what: str) -> bytes:
        """As in ``oci.Documents``."""
        data = self._read.get(found.digest)
        return data if data is not None else self._verified(f"manifests/{found.digest}", _ACCEPT, found, what)

    def config(self, found: Descriptor, what: str) -> bytes:
        """As in ``oci.Documents``."""
        return self._verified(f"blobs/{found.digest}", "*/*", found, what)

    def layer(self, found: Descriptor, what: str) -> BlobSource:
        """As in ``oci.Documents``."""
        return RegistryBlob(self._client, found.digest, found.size, f"{what} of {self.label}")

    def _type(self, data: bytes, told: str) -> str:
        """The type that the server told, or (where it told none to speak of) the document itself."""
        what = f"the manifest of {self.label}"
        media_type = told.partition(";")[0].strip().lower()
        if media_type in _UNTOLD:
            media_type = str(as_object(parse_json(data, what), what).get("mediaType"))
        if media_type.startswith(_SCHEMA_1):
            raise UnsupportedMediaTypeError(f"{what} is of Docker's schema 1", hint="push it again, with a newer tool")
        if media_type not in INDEX_TYPES | MANIFEST_TYPES:
            raise UnsupportedMediaTypeError(f"{what} is of the type {show(media_type)}, which is none of an image")
        return media_type

    def _verified(self, path: str, accept: str, found: Descriptor, what: str) -> bytes:
        if found.size > self._limits.max_manifest_json:
            raise self._too_long(what)
        data, _type = self._fetch(path, accept, what, found.size)
        if len(data) != found.size:
            raise SizeMismatchError(what, expected=found.size, actual=len(data))
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if digest != found.digest:
            raise DigestMismatchError(what, expected=found.digest, actual=digest)
        return data

    def _fetch(self, path: str, accept: str, what: str, size: int | None = None) -> tuple[bytes, str]:
        """A document of at most *size* bytes (None: of as many as the limit allows), and the type that the server told."""
        attempts = self._client.attempts()
        most = self._limits.max_manifest_json if size is None else size
        while True:
            with self._client.get(path, {"Accept": accept}, attempts) as reply:
                if reply.length is not None and reply.length > most:
                    if size is None:
                        raise self._too_long(what)
                    raise SizeMismatchError(what, expected=size, actual=reply.length)
                try:
                    data = _read(reply, most + 1)
                except Broken as broken:
                    attempts.failed(broken)
                    continue
                if len(data) > most and size is None:
                    raise self._too_long(what)
                return data, reply.header("Content-Type")

    def _too_long(self, what: str) -> LimitExceededError:
        return LimitExceededError(what, limit="max_manifest_json", maximum=self._limits.max_manifest_json)


def _read(reply: Reply, most: int) -> bytes:
    """What there is, up to *most* bytes."""
    found: list[bytes] = []
    while most and (data := reply.read(min(most, 1 << 20))):
        found.append(data)
        most -= len(data)
    return b"".join(found)
