"""Where in this store content with given digests is: in the layer itself, and in others, for all digests at once.

What was found is remembered for as long as the layer is repaired, so that neither the number of digests nor that of rounds
decides how often an index or a manifest is read. Reads only; held is nothing: whoever reads a place compares what he gets.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from layerstore.dedup import LayerFinder
from layerstore.dedup.places import LayerPlace
from layerstore.errors import DamagedError
from layerstore.formats.manifest import ManifestEntry
from layerstore.formats.packed import open_regular
from layerstore.model import Layer
from layerstore.opening.beneath import open_tree
from layerstore.opening.handle import Handle
from layerstore.system import fs
from layerstore.system.descriptors import Descriptor
from layerstore.trees.compare import OURS
from layerstore.trees.dirfds import DirFds
from layerstore.verbs.repair.listed import Listed
from layerstore.verbs.repair.plan import file_of

__all__ = ["Nearby", "Place", "by_digest", "pieces", "read"]

_TRIES = 8                               # searches, each without the layers that had rotten content in the one before
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """*size* bytes at *offset* of the file *path* of a layer; ``layer_id`` None: of the one that is repaired."""

    layer_id: str | None
    path: bytes
    size: int
    offset: int = 0

    @property
    def label(self) -> str:
        return f"its own file {os.fsdecode(self.path)}" if self.layer_id is None else f"layer {self.layer_id}"


def by_digest(entries: Mapping[bytes, ManifestEntry]) -> dict[bytes, list[Place]]:
    """Where a layer's own manifest says that content is, by every name of a file."""
    found: dict[bytes, list[Place]] = defaultdict(list)
    for path, entry in entries.items():
        meant = file_of(entries, entry)
        if meant.sha256 is not None:
            found[meant.sha256].append(Place(None, path, meant.size))
    return dict(found)


class Nearby:
    """For one layer. ``known``: a place of each digest that was found, read and compared."""

    def __init__(self, handle: Handle, layer: Layer) -> None:
        self._handle, self._layer = handle, layer
        self._listed = Listed(handle, layer.id)
        self._searched: set[bytes] = set()
        self.known: dict[bytes, Place] = {}

    def locate(self, tree_fd: int, digests: Collection[bytes], own: Mapping[bytes, Iterable[Place]]) -> None:
        """Look for *digests*: in the layer's own files, by the indexes of other layers, by their manifests."""
        left = set(digests) - self.known.keys()
        self._take(left, {digest: own.get(digest, ()) for digest in left}, tree_fd)
        left -= self.known.keys()
        self._search(left - self._searched)
        self._searched |= left
        left -= self.known.keys()
        self._listed.look_for(left)
        self._take(left, {digest: self._by_manifests(digest) for digest in left}, tree_fd)

    def _take(self, digests: Iterable[bytes], places: Mapping[bytes, Iterable[Place]], tree_fd: int) -> None:
        for digest in digests:
            for place in places[digest]:
                if self._has(place, digest, tree_fd):
                    self.known[digest] = place
                    break

    def _by_manifests(self, digest: bytes) -> list[Place]:
        return [Place(layer_id, entry.path, entry.size) for layer_id, entry in self._listed.places(digest)]

    def _search(self, digests: Collection[bytes]) -> None:
        """By the indexes. What turns out to be rotten there is noted for ``check``, as for whoever takes from it."""
        left, without = set(digests), {self._layer.id}
        for _ in range(_TRIES if left else 0):
            finder = LayerFinder(self._handle, parent=self._layer.parent, without=without)
            with finder.find(left) as places:
                found = {digest: place for digest, place in places.items() if isinstance(place, LayerPlace)}
                for digest, place in found.items():
                    if _is_good(place):
                        at = place.found
                        self.known[digest] = Place(place.layer_id, at.path, at.length, at.offset)
                    else:
                        without.add(place.layer_id)
            left -= self.known.keys()
            if not found or not left:
                return

    def places(self, digest: bytes) -> Iterator[Place]:
        """What was located, to be compared; whoever asks for more than the first found that it is not so any more."""
        place = self.known.get(digest)
        if place is not None:
            yield place
            del self.known[digest]
            self._searched.discard(digest)
        yield from self._by_manifests(digest)

    def _has(self, place: Place, digest: bytes, tree_fd: int) -> bool:
        found, size = hashlib.sha256(), 0
        try:
            for piece in read(self._handle, place, tree_fd, whole=True):
                size += len(piece)
                found.update(piece)
        except DamagedError:
            return False
        return size == place.size and found.digest() == digest


def _is_good(place: LayerPlace) -> bool:
    """It gives nothing before it has compared all."""
    try:
        for _ in place.read():
            break
    except (OSError, DamagedError):
        return False
    return True


def read(handle: Handle, place: Place, tree_fd: int, *, whole: bool = False) -> Iterator[bytes]:
    """What is there, at most its size; *whole*: nothing if the file has another one. DamagedError if it cannot be read."""
    try:
        if place.layer_id is None:
            yield from pieces(tree_fd, place, whole=whole)
        else:
            with open_tree(handle, place.layer_id) as other_fd:
                yield from pieces(other_fd, place, whole=whole)
    except OSError as error:
        if error.errno in OURS:
            raise                        # it says nothing of the place
        # deleted meanwhile, not there, or rotten: of no use, and no failure of a repair
        raise DamagedError(f"{os.fsdecode(place.path)} ({place.label}) cannot be read: {error.strerror}") from error


def pieces(tree_fd: int, place: Place, *, whole: bool = False) -> Iterator[bytes]:
    """The same of the tree whose directory is *tree_fd*. OSError."""
    parent, _, base = place.path.rpartition(b"/")
    with Descriptor("diff", os.O_RDONLY | os.O_DIRECTORY, dir_fd=tree_fd) as diff_fd:
        fds = DirFds(diff_fd)
        try:
            with open_regular(base, fds.get(parent)) as fd:
                if not stat.S_ISREG(os.fstat(fd).st_mode) or (whole and fs.size(fd) != place.size):
                    return
                at, end = place.offset, place.offset + place.size
                while at < end and (piece := os.pread(fd, min(_PIECE, end - at), at)):
                    at += len(piece)
                    yield piece
        finally:
            fds.close()
