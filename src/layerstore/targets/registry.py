"""A repository in a registry as a target: blobs that it lacks are uploaded, each at once; the manifest is put last.

What a registry has (``HEAD``) is not sent. A blob that is made anew lies in a file meanwhile, for its digest is asked for
first; one that was kept is read where it is. An upload that breaks is begun again; one that is left unfinished is the
registry's to clear away. Credentials, TLS and tries are those of pulling (``sources.registry``).

Source: OCI distribution-spec 1.1, "Push" (POST then PUT; pushing manifests).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from io import BytesIO
from typing import BinaryIO, TypeVar, cast
from urllib.parse import urljoin, urlsplit

from layerstore.errors import InvalidArgumentError, RegistryError
from layerstore.model import Descriptor
from layerstore.signatures import ATTACHED, Signature
from layerstore.sources.attached import referrers_tag, signature_tag
from layerstore.sources.registry import RegistryOptions, connect
from layerstore.sources.registry.failures import Broken, origin, shown, with_query
from layerstore.sources.registry.names import parse_name
from layerstore.targets import Outgoing, OutgoingLayer, Sent
from layerstore.targets.beside import blobs_of, referring
from layerstore.targets.files import expected, scratch, write_blob
from layerstore.targets.manifests import OCI_INDEX, OCI_MANIFEST, manifest_over

__all__ = ["RegistryTarget"]

_BINARY = "application/octet-stream"
_MAX_DOCUMENT = 4 << 20   # bytes; what is longer is no list of ours
T = TypeVar("T")


class RegistryTarget:
    """Implements ``Target``. *reference* is ``docker://HOST[:PORT]/REPOSITORY[:TAG]``; *beside*, where blobs are made."""

    def __init__(self, reference: str, options: RegistryOptions, beside: str) -> None:
        """InvalidArgumentError, SourceError as ``connect``. Nothing is sent yet."""
        name = parse_name(reference)
        if name.tag is None:
            raise InvalidArgumentError(f"{reference!r} names a digest, which is not known before", hint="push to a tag")
        self._tag, self._beside = name.tag, beside
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
            signed = self._signatures([each for each in image.signatures if each.subject == digest])   # there before it is
            self._put_manifest(self._tag, manifest, media_type, digest)
        finally:
            self._client.close()
        return Sent(digest, blobs, signed)

    def _signatures(self, signatures: Sequence[Signature]) -> int:
        """Send them; how many are there. What is under cosign's tag already stays, be it another."""
        there, unlisted = 0, []
        for each in signatures:
            tag = signature_tag(each.subject)
            if each.kind == ATTACHED and (before := self._document(tag)) is not None:
                there += before == each.manifest
                continue
            for name, data in blobs_of(each):
                if not self._has(name):
                    self._upload(BytesIO(data), name, len(data))
            name = tag if each.kind == ATTACHED else each.digest
            subject = self._put_manifest(name, each.manifest, each.manifest_media_type, each.digest)
            if each.kind != ATTACHED and not subject:   # the registry does not know that it refers to something
                unlisted.append(each)
            there += 1
        if unlisted:
            tag = referrers_tag(unlisted[0].subject)
            index = referring(self._document(tag), unlisted)
            if index is not None:
                self._put_manifest(tag, index, OCI_INDEX, f"sha256:{hashlib.sha256(index).hexdigest()}")
        return there

    def _document(self, tag: str) -> bytes | None:
        """What is under *tag*; None if nothing is."""
        def get() -> bytes | None:
            accept = {"Accept": f"{OCI_MANIFEST}, {OCI_INDEX}"}
            with self._client.once("GET", f"{self._base}manifests/{tag}", accept, (200, 404)) as reply:
                found = b""
                while reply.status == 200 and len(found) <= _MAX_DOCUMENT and (data := reply.read(1 << 20)):
                    found += data
                return found if reply.status == 200 else None

        return self._tried(get)

    def _layer(self, layer: OutgoingLayer, progress: Callable[[int], None]) -> Descriptor:
        known = expected(layer)
        if known is not None and self._has(known.digest):
            progress(layer.diff_size)
            return known
        if known is not None and layer.kept is not None:
            with _Kept(layer.kept) as data:
                self._upload(cast("BinaryIO", data), known.digest, known.size)
            progress(layer.diff_size)
            return known
        with scratch(self._beside) as spool:   # its digest must be known before the end of the upload
            blob = write_blob(layer, spool, progress)
            if known is not None or not self._has(blob.digest):
                self._upload(spool, blob.digest, blob.size)
        return blob

    def _has(self, digest: str) -> bool:
        return self._tried(lambda: self._client.has(f"blobs/{digest}"))

    def _upload(self, data: BinaryIO, digest: str, size: int) -> None:
        def put() -> None:
            with self._client.once("POST", f"{self._base}blobs/uploads/", {"Content-Length": "0"}, (202,)) as reply:
                target = self._target(reply.target, reply.header("Location"))
            data.seek(0)
            target = with_query(target, [("digest", digest)])
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

    def _put_manifest(self, name: str, manifest: bytes, media_type: str, digest: str) -> str:
        """Put it there as *name*, a tag or its digest. What the registry takes for its subject; empty: it does not say."""
        def put() -> tuple[str, str]:
            headers = {"Content-Type": media_type, "Content-Length": str(len(manifest))}
            with self._client.once("PUT", f"{self._base}manifests/{name}", headers, (201,), manifest) as reply:
                return reply.header("Docker-Content-Digest"), reply.header("OCI-Subject")

        said, subject = self._tried(put)
        if said not in ("", digest):
            where = shown(self._base, self._client.home)
            raise RegistryError(f"the registry took the manifest {digest} for another: {where}", url=where)
        return subject

    def _tried(self, call: Callable[[], T]) -> T:
        attempts = self._client.attempts()
        while True:
            try:
                return call()
            except Broken as broken:
                attempts.failed(broken)


class _Kept:
    """A blob that was kept, as a file that is read from its beginning, as often as it takes.

    It is verified while it is read: of one that is not right the last chunk never comes, so that no upload of it ends.
    """

    def __init__(self, opening: Callable[[], AbstractContextManager[Iterator[bytes]]]) -> None:
        self._opening, self._open = opening, ExitStack()
        self._chunks: Iterator[bytes] = iter(())
        self._left = memoryview(b"")

    def seek(self, offset: int) -> None:
        assert offset == 0
        self._open.close()
        self._chunks, self._left = self._open.enter_context(self._opening()), memoryview(b"")

    def read(self, size: int) -> bytes:
        if not self._left:
            self._left = memoryview(next(self._chunks, b""))
        data, self._left = bytes(self._left[:size]), self._left[size:]
        return data

    def __enter__(self) -> _Kept:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._open.close()
