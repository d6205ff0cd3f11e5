"""Where what is damaged is to be had: the same tree, other layers, and the image's source, in that order.

Nothing that is given here is believed: whoever takes it compares it with the digest that he wants. A source is asked for
the whole of a layer, and staged as for a pull, so that of a chunked blob only those ranges are fetched that no layer has.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, suppress
from functools import partial

from layerstore.errors import (
    ArchiveError,
    CompressionError,
    DamagedError,
    DigestMismatchError,
    HostError,
    InputError,
    LayerstoreError,
    SizeMismatchError,
    TocError,
)
from layerstore.formats.manifest import NAME as MANIFEST
from layerstore.formats.manifest import ManifestEntry, final_entries, manifest_digest
from layerstore.formats.packed import file_digest, open_regular, read_chunks
from layerstore.formats.tarsplit import KEPT, Kept, read_tar_split
from layerstore.formats.tarsplit import NAME as SPLIT
from layerstore.model import DiffOutput, Layer, LayerSource, SourceImage, StageOptions
from layerstore.opening.handle import Handle
from layerstore.sources import open_source
from layerstore.system import fs
from layerstore.system.descriptors import Descriptor
from layerstore.system.fs import host_error
from layerstore.verbs.pull_layers import PullOptions, differ_of
from layerstore.verbs.repair.places import Nearby, Place, by_digest, pieces, read
from layerstore.verbs.stage import StagedLayer, stage
from layerstore.verbs.staging import Staging

__all__ = ["NotFetchedError", "Source", "Supply", "kept_of"]

Pieces = Callable[[], Iterator[bytes]]
_VERDICTS = (ArchiveError, CompressionError, DigestMismatchError, SizeMismatchError, TocError)
"""What the source gives is not the content that was wanted. Any other error is of the way to it, or of this machine."""


def entries_of(tree_fd: int, digest: str) -> dict[bytes, ManifestEntry] | None:
    """The manifest in a tree's directory, if it is the one of that *digest*."""
    try:
        if manifest_digest(tree_fd) != digest:
            return None
        with open_regular(MANIFEST, tree_fd) as fd:
            return {entry.path: entry for entry in final_entries(fd)}
    except (OSError, DamagedError):
        return None


def kept_of(tree_fd: int, digest: str | None) -> dict[str, bytes]:
    """The digests of the files that the tar-split keeps beside the tree, if it is the one of that *digest*."""
    try:
        if digest is None or file_digest(tree_fd, SPLIT) != digest:
            return {}
        with open_regular(SPLIT, tree_fd) as fd:
            return {f"{KEPT}/{each.number}": each.sha256 for each in read_tar_split(fd) if isinstance(each, Kept)}
    except (OSError, DamagedError):
        return {}


class NotFetchedError(Exception):
    """The source could not be asked, or what it gave not be kept. It may have the content all the same."""


class Source:
    """An image's source: its layers by diffID, staged when they are asked for. For one thread; leaving it discards them."""

    def __init__(self, handle: Handle, reference: str, options: PullOptions) -> None:
        self._handle, self.reference, self._options = handle, reference, options
        self._stack = ExitStack()
        self._opened = self._stack.enter_context(
            open_source(reference, platform=options.platform, limits=options.limits, registry=options.registry),
        )
        try:
            self.image: SourceImage = self._opened.resolve()
        except BaseException:
            self._stack.close()
            raise
        self._layers: dict[str, LayerSource] = {each.diff_id: each for each in self.image.layers}
        self._staged: dict[str, tuple[StagedLayer, Descriptor]] = {}   # by diffID, each with its directory
        self._unfetched: dict[str, str] = {}
        self.refused: dict[str, str] = {}   # diffID -> why what the source has is not that content

    @property
    def fetched(self) -> int:
        """Bytes that came over the network so far."""
        return self._opened.fetched

    def has(self, layer: Layer) -> bool:
        return layer.diff_id in self._layers and layer.diff_id not in self.refused

    def tree(self, layer: Layer) -> Descriptor | None:
        """The directory of a tree of the same content; None if the source has none (``refused`` says why).

        NotFetchedError: that cannot be told now. It is not tried a second time.
        """
        wanted = layer.diff_id
        if wanted in self._unfetched:
            raise NotFetchedError(self._unfetched[wanted])
        if wanted not in self._staged and self.has(layer):
            try:
                self._staged[wanted] = self._stage(layer)
            except _VERDICTS as error:
                self.refused[wanted] = str(error)
            except (InputError, HostError, DamagedError, OSError) as error:
                said = host_error(error, "staging a layer of the source") if isinstance(error, OSError) else error
                self._unfetched[wanted] = str(said)
                raise NotFetchedError(str(said)) from error
        return self._staged[wanted][1] if wanted in self._staged else None

    def give(self, layer: Layer, fits: Callable[[DiffOutput], bool]) -> Staging | None:
        """The staged tree itself, for good, if it *fits*; None if not, or as ``tree``. The next who asks gets another."""
        if self.tree(layer) is None or not fits(self._staged[layer.diff_id][0].output):
            return None
        staged, _ = self._staged.pop(layer.diff_id)
        return staged.take(self._handle)

    def _stage(self, layer: Layer) -> tuple[StagedLayer, Descriptor]:
        source = self._layers[layer.diff_id]
        differ = differ_of(self._handle, source, names=(), parent=layer.parent, partial=self._options.partial)
        staged: StagedLayer = self._stack.enter_context(stage(self._handle, differ, StageOptions(self._options.limits)))
        tree = fs.open_dir(staged.txid, self._handle.dirs["staging"])
        self._stack.callback(tree.close)
        return staged, tree

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_exc: object) -> None:
        with suppress(LayerstoreError, OSError):   # no error of the repair, which was done: the next open sweeps the rest
            self._stack.close()


class Supply:
    """For one layer, as long as it is repaired: what was read once is not read again, whatever the number of paths."""

    def __init__(self, handle: Handle, layer: Layer, source: Source | None) -> None:
        self._handle, self._layer, self._given = handle, layer, source
        self._nearby = Nearby(handle, layer)
        self._entries: dict[bytes, ManifestEntry] | None = None
        self._own: dict[bytes, list[Place]] = {}
        self._sources: dict[bytes, list[Place]] | None = None
        self._tree_fd = -1

    @property
    def _source(self) -> Source | None:
        """None, too, from when it turned out not to have the layer after all."""
        return self._given if self._given is not None and self._given.has(self._layer) else None

    def at(self, tree_fd: int) -> None:
        """The layer's directory is open as *tree_fd* from now on."""
        self._tree_fd = tree_fd

    def entries(self) -> dict[bytes, ManifestEntry] | None:
        """The layer's manifest, as ``entries_of``. Once it was right it is not read again: its digest says all of it."""
        if self._entries is None:
            self._entries = entries_of(self._tree_fd, self._layer.manifest_digest)
            self._own = by_digest(self._entries or {})
        return self._entries

    def locate(self, digests: Collection[bytes]) -> dict[bytes, str]:
        """Who has it, by digest: read and compared, but for the source, which is only asked when it is needed."""
        self._nearby.locate(self._tree_fd, digests, self._own)
        found = {digest: self._nearby.known[digest].label for digest in digests if digest in self._nearby.known}
        if self._source is not None:
            found |= dict.fromkeys(set(digests) - found.keys(), f"source {self._source.reference}")
        return found

    def parts(self) -> dict[str, str]:
        """What the source may have of the layer's directory: "" is all of it; all in ``kept/``; as ``Known.parts``."""
        source = self._source
        return {} if source is None else dict.fromkeys(("", MANIFEST, SPLIT, KEPT), f"source {source.reference}")

    def contents(self, digest: bytes) -> Iterator[Pieces]:
        """Content that is said to have *digest*, the nearest first; to be compared."""
        for place in self._nearby.places(digest):
            yield partial(read, self._handle, place, self._tree_fd)
        tree = self._source.tree(self._layer) if self._source is not None else None
        if tree is None:
            return
        if self._sources is None:
            there = entries_of(tree.fd, self._layer.manifest_digest)
            self._sources = self._own if there is None else by_digest(there)
        for place in self._sources.get(digest, ())[:1]:
            yield partial(pieces, tree.fd, place)   # what cannot be read of it is a failure of ours

    def part(self, name: str) -> Pieces | None:
        """A file of the layer's directory, from the source."""
        tree = self._source.tree(self._layer) if self._source is not None else None
        if tree is None:
            return None

        def part() -> Iterator[bytes]:
            with ExitStack() as stack:
                directory, _, base = name.rpartition("/")
                fd = stack.enter_context(fs.open_dir(directory, tree.fd)) if directory else tree.fd
                with open_regular(base, fd) as file:
                    yield from read_chunks(file)

        return part
