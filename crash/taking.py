"""A differ that takes what it can from layers that are here, as a partial pull does; the smallest that can.

Its tar is at hand: what is not found, or was found rotten, is taken from that, as a partial pull would fetch it.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from layerstore.dedup import LayerFinder
from layerstore.differs.tar import fill
from layerstore.errors import DamagedError
from layerstore.model import DiffOutput, DiffTarget
from layerstore.partial import Place
from layerstore.system.descriptors import Descriptor
from layerstore.trees.donors import Donors

_PIECE = 1 << 20


class TakingDiffer:
    """Unpack *tar*, with the content of its files from *finder*'s layers; *meanwhile* is called when they are held.

    ``taken``, ``cloned`` and ``fetched`` count files, ``damaged`` those that could not be taken although they were
    ``found``: where a call fails, less is found or taken, and all else is as ever. *ahead*: all is taken before anything
    is unpacked: the rigs count calls, and those of two threads would have no order.
    """

    def __init__(
        self, tar: bytes, finder: LayerFinder, *, meanwhile: Callable[[], object] = lambda: None, ahead: bool = True,
    ) -> None:
        self._tar, self._finder, self._meanwhile, self._ahead = tar, finder, meanwhile, ahead
        self.taken = self.cloned = self.fetched = self.damaged = self.found = 0
        self.diff_id = "sha256:" + hashlib.sha256(tar).hexdigest()
        self.content_key = self.diff_id

    def apply_diff(self, target: DiffTarget) -> DiffOutput:
        with tarfile.open(fileobj=io.BytesIO(self._tar)) as archive:
            files = [(each.name.encode(), each.offset_data, each.size) for each in archive if each.isreg() and each.size]
        wanted = {hashlib.sha256(self._tar[start : start + size]).digest() for _, start, size in files}
        with self._finder.find(wanted) as places, Donors() as donors:
            self.found = len(places)
            self._meanwhile()
            stream: Iterable[bytes] = self._stream(files, places, donors)
            if self._ahead:
                stream = list(stream)
            return fill(replace(target, donors=donors), stream, compression="none", is_blob=False, diff_id=self.diff_id)

    def _stream(
        self, files: list[tuple[bytes, int, int]], places: Mapping[bytes, Place], donors: Donors,
    ) -> Iterator[bytes]:
        at = 0
        for path, start, size in files:
            digest = hashlib.sha256(self._tar[start : start + size]).digest()
            pieces = self._payload(path, digest, places.get(digest), donors)   # a donor is offered before the header
            yield self._tar[at:start]
            at = start + size
            if pieces is None:
                self.fetched += 1
                yield self._tar[start:at]
            else:
                yield from pieces
        yield self._tar[at:]

    def _payload(self, path: bytes, digest: bytes, place: Place | None, donors: Donors) -> Iterator[bytes] | None:
        if place is None:
            return None
        try:
            made = place.clone() if donors.has_room() else None
            if made is None:
                pieces = place.read()
                first = next(pieces)
                self.taken += 1
                return _again(first, pieces)
        except DamagedError:
            self.damaged += 1
            return None
        own = Descriptor.duplicate(made.fd)   # the unpacker may be done with the donor before we are
        donors.offer(path, made, place.size, digest)
        self.cloned += 1
        return _read(own)


def _again(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _read(own: Descriptor) -> Iterator[bytes]:
    with own as fd:
        at = 0
        while piece := os.pread(fd, _PIECE, at):
            at += len(piece)
            yield piece
