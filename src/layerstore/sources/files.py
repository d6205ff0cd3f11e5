"""Named files of a layout directory or an archive, and the verified reading of blobs among them.

Both kinds answer to the protocol ``Files``; the rules of OCI and Docker stand elsewhere.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from layerstore.errors import (
    ClosedError,
    DigestMismatchError,
    LimitExceededError,
    SizeMismatchError,
    SourceError,
)
from layerstore.model import Descriptor, Limits
from layerstore.sources.blobs import LocalBlob
from layerstore.sources.documents import check_sha256

__all__ = [
    "Files", "Opened", "check_blob", "closed", "digest_of", "layer_blob", "read_blob", "read_document",
]

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Opened:
    """A file's stream, from its first byte, and its size in bytes."""

    stream: BinaryIO
    size: int


class Files(Protocol):
    """Files by name. ``label`` says in messages whose they are."""

    label: str

    def open(self, name: str) -> Opened | None:
        """The file of that (relative, slash-separated) name, or None if there is none.

        Streams are independent of each other and of ``close``. Raises SourceError for what is there but
        unreadable or no regular file, ClosedError after ``close``.
        """

    def close(self) -> None:
        """Let go of the directory or archive. Calling it again does nothing."""


def closed(label: str) -> ClosedError:
    """The error for any use of a source after its ``close``."""
    return ClosedError(f"the source {label} is closed", hint="read its layers before closing the source")


def read_document(files: Files, name: str, limits: Limits) -> bytes:
    """The whole of a small file. SourceError if it is missing, LimitExceededError if it is too long."""
    opened = files.open(name)
    if opened is None:
        raise SourceError(f"{files.label} has no file {name!r}")
    with opened.stream as stream:
        _check_length(opened.size, f"{name} of {files.label}", limits)
        return stream.read(opened.size)


def read_blob(files: Files, blob: Descriptor, what: str, limits: Limits) -> bytes:
    """The whole of a blob that is JSON, its size and digest verified before anybody parses it."""
    _check_length(blob.size, what, limits)
    with _open_blob(files, blob, what).stream as stream:
        data = stream.read(blob.size)
    actual = f"sha256:{hashlib.sha256(data).hexdigest()}"
    if actual != blob.digest:
        raise DigestMismatchError(f"{what} in {files.label}", expected=blob.digest, actual=actual)
    return data


def check_blob(files: Files, blob: Descriptor, what: str) -> None:
    """Check that a blob is there and of the right size, without reading it."""
    _open_blob(files, blob, what).stream.close()


def layer_blob(files: Files, blob: Descriptor, what: str) -> LocalBlob:
    """The blob of a LayerSource."""
    return LocalBlob(lambda: _open_blob(files, blob, what).stream, blob.size, f"{what} in {files.label}")


def digest_of(stream: BinaryIO) -> str:
    """Read *stream* to its end and return its digest."""
    found = hashlib.sha256()
    while chunk := stream.read(_CHUNK):
        found.update(chunk)
    return f"sha256:{found.hexdigest()}"


def _open_blob(files: Files, blob: Descriptor, what: str) -> Opened:
    algorithm, encoded = check_sha256(blob.digest, what).split(":")   # no digest may name another path
    opened = files.open(f"blobs/{algorithm}/{encoded}")
    if opened is None:
        raise SourceError(f"{files.label} lacks {what}, the blob {blob.digest} ({blob.size} bytes)")
    if opened.size != blob.size:
        opened.stream.close()
        raise SizeMismatchError(
            f"{what}, the blob {blob.digest} in {files.label}", expected=blob.size, actual=opened.size
        )
    return opened


def _check_length(size: int, what: str, limits: Limits) -> None:
    if size > limits.max_manifest_json:
        raise LimitExceededError(
            f"{what} has {size} bytes", limit="max_manifest_json", maximum=limits.max_manifest_json
        )
