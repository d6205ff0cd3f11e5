"""What a partial pull goes by: a blob that can be read in parts, and content that this machine has already.

Protocols only, so that sources, differs and the store can be written without knowing each other.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import BinaryIO, NamedTuple, Protocol, runtime_checkable

from layerstore.system.descriptors import Descriptor

__all__ = ["Ahead", "BlobSource", "Digests", "Donor", "Donors", "Finder", "Place", "ReadsAhead", "Stoppable", "until"]


@runtime_checkable
class BlobSource(Protocol):
    """A layer's blob, readable from any place in it and by any number of threads. Nothing that it gives is verified.

    ``label`` says in messages what is read (never with credentials). ``size`` is bytes. ``remote`` says that reading it
    costs something, so that what was read is worth keeping for a second try.
    """

    label: str
    size: int
    remote: bool

    def open(self, offset: int = 0) -> BinaryIO:
        """A fresh, independent stream from byte *offset* to the end. SourceError, here or while it is read."""

    def ranges(self, wanted: Sequence[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
        """The bytes of *wanted*: (start, length) pairs in bytes, ascending, apart, and within the blob.

        Yields (offset, piece) in ascending order, pieces of at most 1 MiB, none of them across two pairs; together
        exactly what is wanted. RangesUnsupportedError, before the first piece, where only the whole can be had;
        SourceError.
        """


@runtime_checkable
class Stoppable(BlobSource, Protocol):
    """One of which all reading can be made to end."""

    def until(self, stop: threading.Event) -> BlobSource:
        """The same blob, of which all reading ends soon, by some error, once *stop* is set."""


def until(blob: BlobSource, *stops: threading.Event) -> BlobSource:
    """*blob*, made to end by any of *stops*, if it is ``Stoppable``; another (local ones are not) is read to its end."""
    for stop in stops:
        if isinstance(blob, Stoppable):
            blob = blob.until(stop)
    return blob


class Place(Protocol):
    """Content that is here, in a committed layer that cannot be deleted meanwhile. ``size`` is bytes."""

    size: int

    def read(self) -> Iterator[bytes]:
        """Its bytes, the first only when all were found to have the digest; else DamagedError, and ``check`` is told."""

    def clone(self) -> Descriptor | None:
        """A new file without a name, beside the layer being staged, that shares its blocks; read and found right.

        None where that cannot be done, or costs more than it saves. DamagedError as ``read``.
        """


class Finder(Protocol):
    """Finds content among the layers that are here."""

    def find(
        self, wanted: Collection[bytes], at: Mapping[bytes, tuple[bytes, int, int]] | None = None,
    ) -> AbstractContextManager[Mapping[bytes, Place]]:
        """Where content with the *wanted* digests (sha256, 32 bytes each; of whole files, or of chunks of files) is.

        *at* says of chunks where they lie in the layer that is wanted: path, offset and length in bytes. So they are
        found in layers that know their files' digests only.

        What is not found is left out. The places are good until the context is left; nothing waits for them but the
        deletion of the layers that they are in.
        """


class Ahead(Protocol):
    """Content that is read before it is asked for. For one thread."""

    def take(self) -> bytes | None:
        """That of the next place, found to have the digest; None: it is to be asked for it itself (``Place.read``)."""


@runtime_checkable
class ReadsAhead(Finder, Protocol):
    """One that can have what it found read by another processor."""

    def ahead(self, places: Sequence[Place]) -> AbstractContextManager[Ahead | None]:
        """What reads *places*, which are taken in this order, each once, as long as this lasts; None: not worth it."""


class Donor(NamedTuple):
    """A file without a name, of *size* bytes that have that digest (32 bytes): it was made here, and read."""

    file: Descriptor
    size: int
    sha256: bytes


class Donors(Protocol):
    """Files that have their content already, for the unpacker to give a name rather than write what it reads."""

    def take(self, path: bytes) -> Donor | None:
        """What the archive's next file *path*, as the archive calls it, is to become, once; None: it is written."""
        ...


class Digests(Protocol):
    """Told by differs what content a layer has, so that later ones find it. For one thread."""

    def add_file(self, path: bytes, size: int, sha256: bytes) -> None:
        """The regular file *path* of the tree has *size* bytes with that digest. ``unpack`` says it of each."""
        ...

    def add_chunk(self, path: bytes, offset: int, length: int, sha256: bytes) -> None:
        """*length* bytes at *offset* of the file *path* have that digest: for who knows of smaller pieces than files.

        Chunks of one file together; at any time, before or after the file itself, but from the thread that unpacks.
        """
        ...

    def start_over(self) -> None:
        """Forget what was told so far: it is not the layer's content. The tree has been emptied."""
        ...
