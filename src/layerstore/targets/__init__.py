"""Where images go: OCI layouts, OCI archives and Docker archives on this machine, by reference.

``manifests`` (documents; pure), ``files`` (blobs compressed and digested, files that appear whole or not at all),
``layout``, ``archives``. A target shows an image with the last of its writes; a crash before leaves what was there
before, and perhaps files that nobody refers to.

Source: OCI image-spec 1.1 (image-layout.md, manifest.md); Docker's image specification 1.2 (manifest.json of an archive).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from layerstore.model import Descriptor
from layerstore.signatures import Signature

__all__ = ["Outgoing", "OutgoingLayer", "Sent", "Target"]


@dataclass(frozen=True, slots=True)
class OutgoingLayer:
    """A layer to be sent. ``open`` gives its tar, verified to the last chunk. ``was``: its blob as the manifest has it.

    ``kept`` gives that blob itself, verified likewise; None where it was not kept, or another is wanted.
    """

    diff_id: str
    diff_size: int
    was: Descriptor
    compression: str                     # what to send it as: none | gzip | zstd | zstd:chunked
    open: Callable[[], AbstractContextManager[Iterator[bytes]]]
    kept: Callable[[], AbstractContextManager[Iterator[bytes]]] | None = None


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An image to be sent: its documents, byte for byte, its layers, base first, and what to call it (None: nothing).

    ``signatures`` are of ``manifest``: they go out with it, and with no other that had to be made.
    """

    manifest: bytes
    manifest_media_type: str
    config: bytes
    config_digest: str
    layers: tuple[OutgoingLayer, ...]
    tag: str | None = None
    signatures: tuple[Signature, ...] = ()


@dataclass(frozen=True, slots=True)
class Sent:
    """What came of an image. ``manifest_digest`` is None where the format has no manifest.

    ``signatures`` counts those that are there now, beside it.
    """

    manifest_digest: str | None
    blobs: tuple[Descriptor, ...]
    signatures: int = 0


class Target(Protocol):
    """Takes images."""

    def send(self, image: Outgoing, progress: Callable[[int], None]) -> Sent:
        """Write *image*. *progress* is told of each *n* more bytes of tar. OSError as the disk has it."""
        ...
