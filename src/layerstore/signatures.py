"""Signatures of images, byte for byte as a source offers them, and what whoever verifies an image is shown. Values only.

Nothing here verifies a signature: that is for who knows whom to trust (``PullOptions.verify``). In an image's promise, its
row and its side file they are two keys, ``signatures`` and ``indexes``, which are absent where there is nothing to say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["OfferedImage", "Signature", "as_record", "indexes_in", "signatures_in"]

ATTACHED, REFERRER = "attached", "referrer"


@dataclass(frozen=True, slots=True)
class Signature:
    """A document that vouches for an image, with all that it names. Its digests were checked; nothing else was.

    ``kind``: ``attached``, found under the tag ``sha256-<hex>.sig`` (cosign's), or ``referrer``, a manifest with a subject
    (OCI 1.1; sigstore bundles and Notary Project signatures). ``subject`` is the digest of what it is of: the image's
    manifest, or an index that led to it. ``blobs`` are those that ``manifest`` names: the config, then the layers.
    """

    kind: str
    subject: str
    manifest_media_type: str
    manifest: bytes
    blobs: tuple[bytes, ...]

    @property
    def digest(self) -> str:
        """Of ``manifest``: ``sha256:`` and hex."""
        return f"sha256:{hashlib.sha256(self.manifest).hexdigest()}"


@dataclass(frozen=True, slots=True)
class OfferedImage:
    """An image before anything of it is here: what ``PullOptions.verify`` is given to decide upon.

    ``reference`` is what was asked for. ``manifest`` and ``config`` are exact bytes with the digests by which all else is
    verified. ``indexes`` led from the reference to the manifest, the outermost first; a signature may be of one of them.
    ``signatures`` are all that the source offers, in the order in which they were found.
    """

    reference: str
    manifest_digest: str
    manifest_media_type: str
    manifest: bytes
    config: bytes
    indexes: tuple[bytes, ...]
    signatures: tuple[Signature, ...]


def as_record(signatures: Sequence[Signature], indexes: Sequence[bytes]) -> dict[str, Any]:
    """The keys of a promise. An index is kept where a signature is of one: without it nobody could verify that again."""
    if not signatures:
        return {}
    known = {f"sha256:{hashlib.sha256(each).hexdigest()}" for each in indexes}
    record: dict[str, Any] = {"signatures": [
        {"kind": each.kind, "subject": each.subject, "manifest_media_type": each.manifest_media_type,
         "manifest": each.manifest, "blobs": list(each.blobs)} for each in signatures
    ]}
    if any(each.subject in known for each in signatures):
        record["indexes"] = list(indexes)
    return record


def signatures_in(record: Mapping[str, Any]) -> tuple[Signature, ...]:
    """Those of a row, promise or side file."""
    return tuple(
        Signature(each["kind"], each["subject"], each["manifest_media_type"], each["manifest"], tuple(each["blobs"]))
        for each in record.get("signatures", ())
    )


def indexes_in(record: Mapping[str, Any]) -> tuple[bytes, ...]:
    """The indexes that are kept with an image for the sake of its signatures."""
    return tuple(record.get("indexes", ()))
