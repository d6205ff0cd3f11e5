"""From a reference to an image in a registry, by the same rules as everywhere (``sources.oci``): which documents to read.

A tag's document is whatever came under it, once; what it names is then asked for by digest, and verified before it is
parsed. No document is read beyond ``max_manifest_json`` bytes. Layers are not asked for before they are read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from urllib.parse import urljoin

from layerstore.errors import (
    DigestMismatchError,
    LimitExceededError,
    SizeMismatchError,
    SourceError,
    UnsupportedMediaTypeError,
)
from layerstore.model import Descriptor, Limits, SourceImage
from layerstore.partial import BlobSource
from layerstore.signatures import Signature
from layerstore.sources import oci
from layerstore.sources.attached import listed_under, referrers_tag, signatures_of
from layerstore.sources.documents import INDEX_TYPES, MANIFEST_TYPES, OCI_INDEX, Listed, as_object, parse_json, show
from layerstore.sources.platforms import Platform
from layerstore.sources.reference import usable_name
from layerstore.sources.registry.blobs import RegistryBlob
from layerstore.sources.registry.client import Client
from layerstore.sources.registry.failures import Broken, shown
from layerstore.sources.registry.transport import Reply

__all__ = ["resolve", "signatures"]

_ACCEPT = ", ".join(sorted(INDEX_TYPES | MANIFEST_TYPES))
_UNTOLD = frozenset({"", "application/json", "application/octet-stream", "text/plain"})
_NO_REFERRERS = (400, 404, 405, 406, 501)   # what registries of before OCI 1.1 are seen to say
_NEXT = re.compile(r"""<([^<>]*)>[^<>]*?;\s*rel\s*=\s*(?:next|"(?:[^"<>]*\s)?next)(?![^\s",;])""", re.IGNORECASE)
_MAX_PAGES = 32   # docs/verifying.md
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1"


def resolve(client: Client, platform: Platform | None, limits: Limits) -> SourceImage:
    """The image that the client's reference means. Raises as ``ImageSource.resolve``."""
    documents = _Documents(client, limits)
    name = usable_name(str(client.name))
    return oci.resolve_from(documents, documents.first(), platform, name)


def signatures(client: Client, image: SourceImage, limits: Limits) -> tuple[Signature, ...]:
    """What the registry has beside *image* to vouch for it. Raises as ``signatures_of``."""
    return signatures_of(_Beside(client, limits), image, limits)


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
        found = self._fetch_if(path, accept, what, size, ())
        assert found is not None
        return found[:2]

    def _fetch_if(
        self, path: str, accept: str, what: str, size: int | None, absent: Collection[int],
    ) -> tuple[bytes, str, str] | None:
        """The same, and the address where it goes on (empty: it does not); None for a status among *absent*."""
        attempts = self._client.attempts()
        most = self._limits.max_manifest_json if size is None else size
        while True:
            with self._client.get(path, {"Accept": accept}, attempts, (200, *absent)) as reply:
                if reply.status in absent:
                    return None
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
                return data, reply.header("Content-Type"), _next(reply)

    def _too_long(self, what: str) -> LimitExceededError:
        return LimitExceededError(what, limit="max_manifest_json", maximum=self._limits.max_manifest_json)


class _Beside(_Documents):
    """Implements ``Attachments``."""

    _lists = True   # whether the registry can be asked for referrers; else a tag has them
    blob = _Documents.config

    def tagged(self, tag: str) -> tuple[bytes, str] | None:
        what = f"{tag} of {self.label}"
        found = self._fetch_if(f"manifests/{tag}", _ACCEPT, what, None, (404,))
        return None if found is None else (found[0], self._type(*found[:2]))

    def referrers(self, subject: str) -> Sequence[Listed]:
        """What is no list, whatever its status, comes from who does not know the question."""
        what = f"the referrers of {subject} of {self.label}"
        listed: list[Listed] = []
        path, pages = f"referrers/{subject}", 0
        while self._lists and path:
            found = self._fetch_if(path, OCI_INDEX, what, None, () if listed else _NO_REFERRERS)
            self._lists = found is not None and found[1].partition(";")[0].strip().lower() == OCI_INDEX
            if found is not None and self._lists:
                listed += listed_under(found[0], what)
                path, pages = self._below(found[2], what), pages + 1
            if pages > _MAX_PAGES or (pages and not self._lists):
                why = f"have more than {_MAX_PAGES} pages" if self._lists else "go on as something else"
                raise SourceError(f"{what} {why}")
        if pages:
            return listed
        under_tag = self.tagged(referrers_tag(subject))
        return [] if under_tag is None else listed_under(under_tag[0], what)

    def unassigned(self) -> Sequence[Listed]:
        """None: a registry is asked for each subject."""
        return ()

    def _below(self, url: str, what: str) -> str:
        """The path of *url* below the repository: nowhere else is asked, and silence must not pass for the last page."""
        here = f"{self._client.home}{self._client.name.repository}/"
        if url and not url.startswith(here):
            raise SourceError(f"{what} go on elsewhere, at {show(shown(url, self._client.home))}")
        return url.removeprefix(here)


def _next(reply: Reply) -> str:
    """The address of the next page (RFC 8288; OCI's "Link")."""
    link = _NEXT.search(reply.header("Link"))
    try:
        return "" if link is None else urljoin(reply.target, link[1])
    except ValueError:
        return str(link and link[1])   # it is no address, and so not below the repository


def _read(reply: Reply, most: int) -> bytes:
    """What there is, up to *most* bytes."""
    found: list[bytes] = []
    while most and (data := reply.read(min(most, 1 << 20))):
        found.append(data)
        most -= len(data)
    return b"".join(found)
