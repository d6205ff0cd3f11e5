"""Signatures beside an image, wherever it is had: by cosign's tag, and by what refers to a manifest (OCI 1.1).

Every document is checked by size and digest before it is parsed, and kept as it came. None is verified, and none is
believed. All of an image's together, with the indexes that are kept for their sake, are bounded
(``Limits.max_signature_bytes``).

Source: cosign's specification of signatures (SIGNATURE_SPEC.md: the tag ``sha256-<hex>.sig``); OCI distribution-spec 1.1,
"Listing Referrers" and "Referrers Tag Schema"; the artifact types of sigstore bundles and of Notary Project signatures.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from layerstore.errors import LimitExceededError
from layerstore.model import Descriptor, Limits, SourceImage
from layerstore.signatures import ATTACHED, REFERRER, Signature
from layerstore.sources.documents import OCI_INDEX, OCI_MANIFEST, Listed, parse_artifact, parse_index

__all__ = [
    "Attachments", "is_attachment", "is_signature", "listed_under", "referrers_tag", "signature_tag", "signatures_of",
]

_TYPES = re.compile(
    r"application/vnd\.dev\.sigstore\.bundle(\.v[0-9.]{1,20}\+json|\+json;version=[0-9.]{1,20})"
    r"|application/vnd\.dev\.cosign\.artifact\.sig\.v1\+json|application/vnd\.cncf\.notary\.signature",
)
_TAG = re.compile(r"sha256-[0-9a-f]{64}(\.(sig|att|sbom))?\Z")


class Attachments(Protocol):
    """A place with images, asked for what else it has of one. ``label`` says in messages which."""

    label: str

    def tagged(self, tag: str) -> tuple[bytes, str] | None:
        """The document under *tag*, and its media type; None if there is none."""

    def referrers(self, subject: str) -> Sequence[Listed]:
        """Descriptors of the manifests that are said to be of *subject*, a digest."""

    def unassigned(self) -> Sequence[Listed]:
        """Descriptors of manifests here of which only they themselves say whose they are."""

    def manifest(self, found: Descriptor, what: str) -> bytes:
        """A manifest, its size and digest verified."""

    def blob(self, found: Descriptor, what: str) -> bytes:
        """A blob, its size and digest verified."""


def signature_tag(subject: str) -> str:
    """Under which cosign keeps the signatures of the manifest with the digest *subject*."""
    return f"{referrers_tag(subject)}.sig"


def referrers_tag(subject: str) -> str:
    """Under which the referrers of *subject* are listed where there is no other way to ask."""
    return subject.replace(":", "-")


def is_signature(entry: Listed) -> bool:
    """Whether a manifest that refers to another is said to be a signature of it."""
    return entry.artifact_type is not None and _is_signatures(entry.artifact_type)


def _is_signatures(kind: str) -> bool:
    return _TYPES.fullmatch(kind) is not None


def is_attachment(entry: Listed) -> bool:
    """Whether an entry of a layout's index is no image but something that belongs to one."""
    return is_signature(entry) or (entry.tag is not None and _TAG.match(entry.tag) is not None)


def signatures_of(place: Attachments, image: SourceImage, limits: Limits) -> tuple[Signature, ...]:
    """All that *place* offers for *image*'s manifest, and for the indexes that led to it.

    Raises what reading documents raises (``ImageSource.resolve``), and LimitExceededError.
    """
    return _Reading(place, limits).all_of(image)


class _Reading:
    def __init__(self, place: Attachments, limits: Limits) -> None:
        self._place, self._most, self._left = place, limits.max_signature_bytes, limits.max_signature_bytes

    def all_of(self, image: SourceImage) -> tuple[Signature, ...]:
        subjects = image.subjects
        found = [*self._by_subject(subjects)]
        found += self._by_themselves(subjects, {each.digest for each in found if each.kind == REFERRER})
        if any(each.subject != image.manifest_digest for each in found):   # then they are kept, too
            self._take(sum(map(len, image.indexes)))
        return tuple(found)

    def _by_subject(self, subjects: Sequence[str]) -> Iterator[Signature]:
        for subject in subjects:
            under_tag = self._place.tagged(signature_tag(subject))
            if under_tag is not None:
                data, media_type = under_tag
                self._take(len(data))
                yield self._whole(ATTACHED, subject, data, media_type)
            for found in _those_of_signatures(self._place.referrers(subject)):
                self._take(found.size)   # also if it turns out to be another's: whoever listed it said otherwise
                data, of = self._read(found)
                if of == subject:
                    yield self._whole(REFERRER, subject, data, found.media_type)

    def _by_themselves(self, subjects: Sequence[str], known: set[str]) -> Iterator[Signature]:
        for found in _those_of_signatures(self._place.unassigned()):
            if found.digest in known:
                continue
            data, of = self._read(found)
            if of in subjects:   # what other images have in the same place is nothing that this one answers for
                self._take(found.size)
                yield self._whole(REFERRER, of, data, found.media_type)

    def _read(self, found: Descriptor) -> tuple[bytes, str]:
        """A manifest, and of what it is a signature: by its own word, too. Empty: of nothing."""
        what = f"the signature {found.digest} of {self._place.label}"
        data = self._place.manifest(found, what)
        artifact = parse_artifact(data, found.media_type, what)
        return data, artifact.subject or "" if _is_signatures(artifact.kind) else ""

    def _whole(self, kind: str, subject: str, manifest: bytes, media_type: str) -> Signature:
        what = f"the signature of {subject} of {self._place.label}"
        artifact = parse_artifact(manifest, media_type, what)
        for each in artifact.blobs:
            self._take(each.size)   # before any is read
        blobs = tuple(self._place.blob(each, f"the blob {each.digest} of {what}") for each in artifact.blobs)
        return Signature(kind, subject, media_type, manifest, blobs)

    def _take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise LimitExceededError(
                f"the signatures in {self._place.label}, with the indexes that they are of", limit="max_signature_bytes",
                maximum=self._most,
            )


def _those_of_signatures(entries: Iterable[Listed]) -> Iterator[Descriptor]:
    """Each once."""
    found = (each.descriptor for each in entries if is_signature(each) and each.descriptor.media_type == OCI_MANIFEST)
    return iter({each.digest: each for each in found}.values())


def listed_under(data: bytes, what: str) -> list[Listed]:
    """The entries of a list of referrers."""
    return parse_index(data, OCI_INDEX, what)
