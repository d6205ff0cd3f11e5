"""The tar of a layer, made again out of parts: fetched units, content that is here, zeros, and the tar-split's raw bytes.

What fetches and what is here is handed in. Every chunk that has a digest is found to have it; that the whole is the
promised tar is for who reads it to see.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping

from layerstore.chunked.opening import Opened
from layerstore.chunked.plan import Fetch, Local, Part, Zeros
from layerstore.errors import DamagedError, DigestMismatchError, LimitExceededError, TocError
from layerstore.formats.compression import evened
from layerstore.formats.compression.units import Units
from layerstore.formats.packed import read_chunks
from layerstore.partial import Ahead, Place
from layerstore.system.descriptors import Descriptor
from layerstore.trees.donors import Donors

__all__ = ["Assembler", "completed"]

_PIECE = 1 << 20
_SMALL = 1 << 16                         # bytes read at once of what is mostly a few headers
_ZEROS = bytes(_PIECE)
_RECORD = 20 * 512                       # bytes that tar(1) makes an archive's length a multiple of
_RATIO_GRACE = 16 << 20

Fetched = Callable[[int, int], Iterator[bytes]]
"""The bytes of the blob from a start, so many: called once for each unit, in order."""


class Assembler:
    """Makes the tar of the blob *opened*, by the plan's *parts*, in pieces.

    *fetched* gives units that the plan fetches, *again* those that it did not: instead of a place that is damaged, which
    *damaged* is told of. *places* has all that the plan takes locally; files of which it can make another one by sharing
    blocks are offered to *donors*, before the tar has their header. *here* reads them ahead, in the plan's order.
    """

    def __init__(
        self, opened: Opened, parts: Iterable[Part], places: Mapping[bytes, Place], *, fetched: Fetched, again: Fetched,
        damaged: Callable[[DamagedError], None], max_ratio: int, donors: Donors | None = None, here: Ahead | None = None,
    ) -> None:
        self._opened, self._places, self._donors, self._here = opened, places, donors, here
        self._parts = _Parts(parts)
        self._fetched, self._again, self._damaged = fetched, again, damaged
        self._max_ratio = max_ratio
        self._units = Units(opened.codec)
        self._raw_in = self._raw_out = 0
        self._clone: Descriptor | None = None

    def __iter__(self) -> Iterator[bytes]:
        return evened(self._pieces())

    def _pieces(self) -> Iterator[bytes]:
        if self._opened.lines is None:
            while (part := self._parts.take()) is not None:
                if isinstance(part, Fetch):
                    self._offer(self._parts.first())   # its header is at the end of what is before it
                yield from self._part(part)
            if self._opened.tail is not None:
                yield from self._unit(Fetch(0, len(self._opened.tail), (), exact=False), [self._opened.tail])
            return
        header = b""
        for line in self._opened.lines():
            if isinstance(line, bytes):
                yield header
                header = line
                continue
            if not line.size:
                continue
            self._offer(self._parts.first())
            yield header
            header = b""
            yield from self._file(line.size)
        yield header

    def _file(self, left: int) -> Iterator[bytes]:
        """The next parts: they are *left* bytes together, since the TOC agrees with the tar-split."""
        while left:
            part = self._parts.take()
            assert part is not None
            left -= part.pieces[0][0] if isinstance(part, Fetch) else part.size
            yield from self._part(part)

    def _part(self, part: Part) -> Iterator[bytes]:
        if isinstance(part, Fetch):
            fetch = self._again if part.start in self._parts.again else self._fetched
            yield from self._unit(part, fetch(part.start, part.length))
        elif isinstance(part, Local):
            yield from self._local(part)
        else:
            yield from _zeros(part)

    def _offer(self, part: Part | None) -> None:
        """Have another file made of the content of *part*, if it is a whole file that is here, and that can be done."""
        if self._donors is None or not isinstance(part, Local) or part.path is None or not self._donors.has_room():
            return
        try:
            made = self._places[part.digest].clone()
        except DamagedError as error:
            self._damaged(error)
            self._parts.replace(part.instead)
            if self._here is not None:
                self._here.take()        # it is passed over
            return
        if made is not None:
            self._clone = Descriptor.duplicate(made.fd)
            self._donors.offer(part.path, made, part.size, part.digest)

    def _local(self, part: Local) -> Iterator[bytes]:
        data = self._here.take() if self._here is not None else None   # in any case: so it knows what is next
        clone, self._clone = self._clone, None
        if clone is not None:            # it was read, and found right, when it was made
            with clone as fd:
                yield from read_chunks(fd)
            return
        if data is not None:
            yield data
            return
        try:
            pieces = self._places[part.digest].read()
            first = next(pieces, b"")
        except DamagedError as error:
            self._damaged(error)
            for unit in part.instead:
                yield from self._unit(unit, self._again(unit.start, unit.length))
            return
        yield first
        yield from pieces

    def _unit(self, unit: Fetch, data: Iterable[bytes]) -> Iterator[bytes]:
        read = self._units.reader(data)
        for size, digest in unit.pieces:
            yield from self._chunk(read, unit, size, digest)
        if unit.exact:
            if read(1):
                size = unit.pieces[0][0]
                raise TocError(f"the chunk at {unit.start} of the blob has more than the {size} bytes that it shall have")
            return
        self._raw_in += unit.length
        while piece := read(_SMALL):
            self._raw_out += len(piece)
            if self._raw_out > max(_RATIO_GRACE, self._raw_in * self._max_ratio):
                raise LimitExceededError(
                    f"{self._raw_in} compressed bytes between files became {self._raw_out}: the ratio is suspicious",
                    limit="max_ratio", maximum=self._max_ratio,
                )
            yield piece

    @staticmethod
    def _chunk(read: Callable[[int], bytes], unit: Fetch, size: int, digest: bytes | None) -> Iterator[bytes]:
        found = hashlib.sha256()
        left = size
        while left:
            piece = read(min(left, _PIECE))
            if not piece:
                raise TocError(f"the chunk at {unit.start} of the blob ends after {size - left} of {size} bytes")
            left -= len(piece)
            if digest is not None:
                found.update(piece)
            if not left and digest is not None and found.digest() != digest:
                raise DigestMismatchError(
                    f"the chunk at {unit.start} of the blob is another than the table of contents promises",
                    expected="sha256:" + digest.hex(), actual="sha256:" + found.hexdigest(),
                )
            yield piece


class _Parts:
    """The plan's parts, of which the next can be looked at, and replaced by what then is fetched after all."""

    def __init__(self, parts: Iterable[Part]) -> None:
        self.again: set[int] = set()     # where units start that the plan did not fetch
        self._left = deque(parts)

    def first(self) -> Part | None:
        """The next part; None at the end."""
        return self._left[0] if self._left else None

    def take(self) -> Part | None:
        """The next part, and go on."""
        return self._left.popleft() if self._left else None

    def replace(self, units: tuple[Fetch, ...]) -> None:
        """The next part is *units* instead."""
        self.again.update(unit.start for unit in units)
        self._left.popleft()
        self._left.extendleft(reversed(units))


def _zeros(part: Zeros) -> Iterator[bytes]:
    for start in range(0, part.size, _PIECE):
        left = part.size - start
        yield _ZEROS if left >= _PIECE else _ZEROS[:left]


def completed(pieces: Iterable[bytes], diff_id: str, tell: Callable[[str], None]) -> Iterator[bytes]:
    """*pieces* of a tar, and the zeros that its maker cut off its end, if with them it is the one that has *diff_id*.

    Those who wrote zstd:chunked in 2022 lost what follows a tar's end marker (containers/storage issue 1771): their
    blobs have not the diffID that their configs promise, unless somebody puts the padding back.
    """
    found = hashlib.sha256()
    size = 0
    for piece in pieces:
        found.update(piece)
        size += len(piece)
        yield piece
    lost = bytes(-size % _RECORD)
    if not lost or "sha256:" + found.hexdigest() == diff_id:
        return
    found.update(lost)
    if "sha256:" + found.hexdigest() == diff_id:
        tell(f"its maker lost {len(lost)} bytes of padding at the tar's end; they are put back")
        yield lost
