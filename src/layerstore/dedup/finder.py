"""The search for content among committed layers: by their ``digests``, in the likeliest order, within bounds.

Looking needs no lock. Only a layer that has something wanted is held, by a reader's lock, until the search's context is
left; its deletion is deferred meanwhile. One that cannot be held at once is passed over.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from heapq import nlargest
from itertools import islice

from layerstore.dedup.ahead import Ahead, is_worth_it
from layerstore.dedup.candidates import candidates
from layerstore.dedup.places import Cloning, LayerPlace, Source
from layerstore.dedup.probing import Budget, Chunks, Wanted, by_path, in_common, probe
from layerstore.errors import DamagedError, HostError, UnknownLayerError
from layerstore.formats.digests import Found, Reader, prefixes
from layerstore.formats.manifest import NAME as MANIFEST
from layerstore.formats.manifest import read_manifest
from layerstore.formats.packed import open_regular
from layerstore.opening.beneath import looking, open_tree
from layerstore.opening.handle import Handle
from layerstore.partial import Place
from layerstore.system.fs import size
from layerstore.system.threads import running

__all__ = ["Bounds", "LayerFinder"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one search may cost. Layers looked in and held (each held one is six descriptors); bytes of their indexes.

    ``manifests`` are layers without an index whose manifest is read instead (some 70 times slower), each of at most
    ``manifest_bytes``; ``probed`` layers in which chunks are looked for by path, of the first ``compared`` those that have
    most of the paths, and ``probe_bytes`` that are read there.
    """

    layers: int = 1_000
    held: int = 24
    index_bytes: int = 1 << 28
    manifests: int = 16
    manifest_bytes: int = 1 << 22
    compared: int = 64
    probed: int = 8
    probe_bytes: int = 1 << 28


class LayerFinder:
    """Finds content in the committed layers of *handle*'s store: ``partial.Finder``.

    Args:
        handle: the open store; it must not be closed while a search is used.
        names: what the image is to be called: other versions of it are looked in first.
        parent: the ID of the layer that the new one is to stand on, or None.
        bounds: what one search may cost.
        without: IDs of layers that are not looked in.

    For several threads. Raises nothing but what reading the catalog raises: what cannot be looked at is passed over.

    """

    def __init__(
        self, handle: Handle, *, names: Sequence[str] = (), parent: str | None = None, bounds: Bounds | None = None,
        without: Collection[str] = (),
    ) -> None:
        self._handle, self._names, self._parent, self._without = handle, tuple(names), parent, frozenset(without)
        self._bounds = bounds or Bounds()
        self._cloning = Cloning(handle)

    @contextmanager
    def find(self, wanted: Collection[bytes], at: Mapping[bytes, Wanted] | None = None) -> Iterator[Mapping[bytes, Place]]:
        """See ``partial.Finder``."""
        held: list[Source] = []          # no ExitStack: what an interrupt raises in one keeps all that it was to leave
        try:
            search = _Search(self._handle, self._bounds, self._cloning, held, wanted)
            if wanted:
                with looking(self._handle) as view:
                    layers = candidates(view, self._names, self._parent, self._bounds.layers)
                layers = [each for each in layers if each not in self._without]
                search.by_digest(layers)
                search.by_path(layers, at or {})
            yield search.places
        finally:
            while held:
                held.pop().close()

    def ahead(self, places: Sequence[Place]) -> AbstractContextManager[Ahead | None]:
        """See ``partial.ReadsAhead``."""
        return running(Ahead(places)) if is_worth_it(places) else nullcontext()


class _Search:
    def __init__(
        self, handle: Handle, bounds: Bounds, cloning: Cloning, held: list[Source], wanted: Iterable[bytes],
    ) -> None:
        self._handle, self._bounds, self._cloning, self._held = handle, bounds, cloning, held
        self._left = set(wanted)
        self._sources: dict[str, Source | None] = {}
        self._index_bytes = self._manifests = 0
        self.places: dict[bytes, Place] = {}

    def by_digest(self, layers: Iterable[str]) -> None:
        """Look in the indexes of *layers*, until all is found or the bounds are reached."""
        keys = prefixes(self._left)
        for layer_id in layers:
            if not self._left or self._index_bytes >= self._bounds.index_bytes:
                return
            before = len(self._left)
            try:
                with open_tree(self._handle, layer_id) as tree_fd:
                    for found in self._rows(tree_fd, keys):
                        self._take(layer_id, found)
            except (OSError, DamagedError):
                continue                 # deleted meanwhile, or not to be read: then it is fetched
            if len(self._left) != before:
                keys = prefixes(self._left)

    def _rows(self, tree_fd: int, keys: Mapping[int, list[bytes]]) -> Iterator[Found]:
        try:
            reader = Reader(tree_fd)
        except FileNotFoundError:
            yield from self._of_manifest(tree_fd)
            return
        with reader:
            self._index_bytes += reader.size
            yield from reader.find(keys)

    def _of_manifest(self, tree_fd: int) -> Iterator[Found]:
        """What a tree of before ``digests`` says of whole files; cheap enough for a few."""
        if self._manifests >= self._bounds.manifests:
            return
        self._manifests += 1
        with open_regular(MANIFEST, tree_fd) as fd:
            if size(fd) > self._bounds.manifest_bytes:
                return
            for entry in read_manifest(fd):
                if entry.sha256 in self._left and entry.size:
                    yield Found(entry.sha256, entry.path, 0, entry.size)

    def by_path(self, layers: Iterable[str], at: Mapping[bytes, Wanted]) -> None:
        """Look for what is left at the places that it has in the blob: see ``probing``."""
        budget = Budget(self._bounds.probe_bytes)
        wanted = by_path((digest, where) for digest, where in at.items() if digest in self._left)
        for layer_id in self._likely(layers, wanted) if wanted else ():
            def source(layer_id: str = layer_id) -> Source | None:
                return self._source(layer_id)

            left = by_path((digest, where) for digest, where in at.items() if digest in self._left)
            if not left or not budget.left:
                break
            try:
                with open_tree(self._handle, layer_id) as tree_fd, Reader(tree_fd) as reader:
                    for found in probe(reader, source, left, budget):
                        self._take(layer_id, found)
            except OSError:
                continue

    def _likely(self, layers: Iterable[str], wanted: Chunks) -> list[str]:
        """Those of *layers* that have most of the *wanted* paths; of an image's layers that is seldom its base."""
        shared = {}
        for layer_id in islice(layers, self._bounds.compared):
            with suppress(OSError), open_tree(self._handle, layer_id) as tree_fd, Reader(tree_fd) as reader:
                shared[layer_id] = in_common(reader, wanted)
        return nlargest(self._bounds.probed, filter(shared.get, shared), key=shared.__getitem__)

    def _take(self, layer_id: str, found: Found) -> None:
        if found.digest in self._left:
            source = self._source(layer_id)
            if source is not None:
                self.places[found.digest] = LayerPlace(source, found)
                self._left.discard(found.digest)

    def _source(self, layer_id: str) -> Source | None:
        """The layer, held; None if it cannot be now. Asked once."""
        if layer_id not in self._sources:
            source = None
            if sum(each is not None for each in self._sources.values()) < self._bounds.held:
                try:
                    source = Source(self._handle, layer_id, self._cloning)
                    self._held.append(source)
                except (UnknownLayerError, DamagedError, HostError, OSError):
                    source = None
            self._sources[layer_id] = source
        return self._sources[layer_id]
