"""What a layer's descriptor says of its table of contents, and has to say of one that we wrote. Pure.

Sources: containers/storage ``pkg/chunked/internal/minimal`` (the annotations' names; those of 2022 were shorter), and
containerd/stargz-snapshotter ``docs/estargz.md``; its converter to zstd:chunked uses the names of 2022, and adds its own.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from layerstore.errors import TocError
from layerstore.model import Descriptor

__all__ = [
    "KIND", "OF_A_BLOB", "Announced", "Position", "Unsuitable", "announced", "announcing", "is_chunked", "position_in",
]

_CURRENT = "io.github.containers.zstd-chunked."
_OF_2022 = "io.containers.zstd-chunked."
_CHECKSUM, _POSITION, _TAR_SPLIT = "manifest-checksum", "manifest-position", "tarsplit-position"
_STARGZ = "containerd.io/snapshot/stargz/toc.digest"

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_NUMBERS = re.compile(r"[0-9]{1,19}(?::[0-9]{1,19}){2,3}\Z")
KIND = 1                                 # of a TOC (CRFS): there is no other
OF_A_BLOB = (_CURRENT, _OF_2022, "containerd.io/snapshot/stargz/", "io.containers.estargz.")
"""What annotations begin with that tell of places in one blob, and are wrong of another with the same content."""


class Unsuitable(Exception):  # noqa: N818 - no error: the layer is taken as a whole stream instead
    """This blob cannot be taken in parts, for the reason that the text gives; nobody lied."""


class Position(NamedTuple):
    """Where something lies in the blob: bytes from its start, bytes there, and bytes that they decompress to."""

    offset: int
    length: int
    size: int


class Announced(NamedTuple):
    """A TOC that a descriptor announces.

    ``codec`` is what the blob's parts are compressed with, zstd or gzip. ``toc_digest`` is the digest of the TOC as it
    lies in the blob (zstd), ``plain_digest`` that of its JSON; one of them is given. Positions are None where only the
    blob's end says it.
    """

    codec: str
    toc_digest: str | None
    plain_digest: str | None
    toc: Position | None
    tar_split: Position | None


def is_chunked(descriptor: Descriptor) -> bool:
    """Whether the layer *descriptor* announces a table of contents. Costs nothing, and says nothing of its being right."""
    notes = descriptor.annotations
    return bool(notes) and any(key in notes for key in (_CURRENT + _CHECKSUM, _OF_2022 + _CHECKSUM, _STARGZ))


def announced(descriptor: Descriptor) -> Announced | None:
    """What the layer *descriptor* announces, or None: an ordinary layer.

    TocError if it cannot be: two TOCs, a digest or a position that is none or lies outside the blob. Unsuitable for a
    kind of TOC that we do not know.
    """
    notes = descriptor.annotations
    old = _OF_2022 if _OF_2022 + _CHECKSUM in notes else None
    prefix = _CURRENT if _CURRENT + _CHECKSUM in notes else old
    stargz = _digest(notes[_STARGZ], _STARGZ) if _STARGZ in notes else None
    if prefix is None:
        return Announced("gzip", None, stargz, None, None) if stargz is not None else None
    if prefix == _CURRENT and stargz is not None:
        raise TocError("the layer announces two tables of contents, of zstd:chunked and of eStargz")
    checksum = _digest(notes[prefix + _CHECKSUM], prefix + _CHECKSUM)
    if prefix == _CURRENT and old is not None and notes[old + _CHECKSUM] != checksum:
        raise TocError("the layer announces two different tables of contents")
    toc = tar_split = None
    if prefix + _POSITION in notes:
        toc = position_in(_numbers(notes[prefix + _POSITION], prefix + _POSITION, 4), descriptor.size)
        if prefix + _TAR_SPLIT in notes:
            tar_split = position_in(_numbers(notes[prefix + _TAR_SPLIT], prefix + _TAR_SPLIT, 3), descriptor.size)
    return Announced("zstd", checksum, stargz, toc, tar_split)


def announcing(toc_digest: str, toc: Position, tar_split: Position) -> dict[str, str]:
    """The annotations of a zstd:chunked blob of the current form, whose TOC has *toc_digest* as it lies in it."""
    return {
        _CURRENT + _CHECKSUM: toc_digest,
        _CURRENT + _POSITION: ":".join(map(str, (*toc, KIND))),
        _CURRENT + _TAR_SPLIT: ":".join(map(str, tar_split)),
    }


def position_in(numbers: list[int], blob_size: int) -> Position:
    """The position that *numbers* give: offset, length, decompressed size and, of a TOC, its kind.

    TocError if it lies outside a blob of *blob_size* bytes; Unsuitable for another kind than is known.
    """
    offset, length, size = numbers[:3]
    if not length or offset + length > blob_size:
        raise TocError(f"the layer says that {length} bytes of metadata lie at {offset}, in a blob of {blob_size} bytes")
    if numbers[3:] not in ([], [KIND]):
        raise Unsuitable(f"its table of contents is of the unknown kind {numbers[3]}")
    return Position(offset, length, size)


def _digest(value: str, what: str) -> str:
    if not isinstance(value, str) or not _DIGEST.match(value):
        raise TocError(f"the annotation {what} is not the digest of anything: {value!r:.200}")
    return value


def _numbers(value: str, what: str, count: int) -> list[int]:
    if not isinstance(value, str) or not _NUMBERS.match(value) or value.count(":") != count - 1:
        raise TocError(f"the annotation {what} is not {count} numbers: {value!r:.200}")
    return [int(number) for number in value.split(":")]
