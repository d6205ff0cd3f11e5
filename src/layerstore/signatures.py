"""Signatures of images, byte for byte as a source offers them, and what whoever verifies an image is shown. Values only.

Nothing here verifies a signature: that is for who knows whom to trust (``PullOptions.verify``). How an image's records have
them is ``formats.records``'s.
"""

from __future__ import annotations

import hashlib

from layerstore.values import dataclass

__all__ = ["OfferedImage", "Signature"]

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
