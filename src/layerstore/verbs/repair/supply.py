"""Where what is damaged is to be had: the same tree, other layers, and the image's source, in that order.

Nothing that is given here is believed: whoever takes it compares it with the digest that he wants. A source is asked for
the whole of a layer, and staged as for a pull, so that of a chunked blob only those ranges are fetched that no layer has.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import partial

from layerstore.dedup import LayerFinder
from layerstore.dedup.places import LayerPlace
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
from layerstore.model import Layer, LayerSource, SourceImage, StageOptions
from layerstore.opening.beneath import open_tree
from layerstore.opening.handle import Handle
from layerstore.sources import open_source
from layerstore.system import fs
from layerstore.system.descriptors import Descriptor
from layerstore.system.fs import host_error
from layerstore.trees.dirfds import DirFds
from layerstore.verbs.pull_layers import PullOptions, differ_of
from layerstore.verbs.repair.listed import Listed
from layerstore.verbs.stage import StagedLayer, stage

__all__ = ["NotFetchedError", "Pieces", "Source", "Supply", "entries_of", "kept_of"]

Pieces = Callable[[], Iterator[bytes]]
_VERDICTS = (ArchiveError, CompressionError, DigestMismatchError, SizeMismatchError, TocError)
"""What the source gives is not the content that was wanted. Any other error is of the way to it, or of this machine."""
_TRIES = 8                               # layers that are asked for the same content


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
        self._trees: dict[str, Descriptor] = {}
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
        if wanted not in self._trees and self.has(layer):
            try:
                self._trees[wanted] = self._stage(layer)
            except _VERDICTS as error:
                self.refused[wanted] = str(error)
            except (InputError, HostError, DamagedError, OSError) as error:
                said = host_error(error, "staging a layer of the source") if isinstance(error, OSError) else error
                self._unfetched[wanted] = str(said)
                raise NotFetchedError(str(said)) from error
        return self._trees.get(wanted)

    def _stage(self, layer: Layer) -> Descriptor:
        source = self._layers[layer.diff_id]
        differ = differ_of(self._handle, source, names=(), parent=layer.parent, partial=self._options.partial)
        staged: StagedLayer = self._stack.enter_context(stage(self._handle, differ, StageOptions(self._options.limits)))
        tree = fs.open_dir(staged.txid, self._handle.dirs["staging"])
        self._stack.callback(tree.close)
        return tree

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_exc: object) -> None:
        with suppress(LayerstoreError, OSError):   # no error of the repair, which was done: the next open sweeps what is left
            self._stack.close()


class Supply:
    """For one layer, whose directory is open as *tree_fd*."""

    def __init__(self, handle: Handle, layer: Layer, tree_fd: int, source: Source | None) -> None:
        self._handle, self._layer, self._tree_fd = handle, layer, tree_fd
        self._source = source if source is not None and source.has(layer) else None
        self._listed = Listed(handle, layer.id)

    def locate(self, digests: Collection[bytes], entries: Mapping[bytes, ManifestEntry]) -> dict[bytes, str]:
        """Who has it, by digest: read and compared, but for the source, which is only asked when it is needed."""
        found = self._labels(digests, lambda digest: self._here(digest, entries))
        self._listed.look_for(set(digests) - found.keys())
        found |= self._labels(set(digests) - found.keys(), self._listed_here)
        if self._source is not None:
            found |= dict.fromkeys(set(digests) - found.keys(), f"source {self._source.reference}")
        return found

    @staticmethod
    def _labels(
        digests: Collection[bytes], look: Callable[[bytes], Iterator[tuple[str, Pieces]]],
    ) -> dict[bytes, str]:
        """Who has each of *digests*, of those where *look* finds it: the first whose content is right."""
        found = {digest: next((label for label, pieces in look(digest) if _is_good(pieces)), None) for digest in digests}
        return {digest: label for digest, label in found.items() if label is not None}

    def parts(self) -> dict[str, str]:
        """Files of the layer's directory that the source may have."""
        if self._source is None:
            return {}
        return dict.fromkeys((MANIFEST, SPLIT, *(f"{KEPT}/{n}" for n in range(64))), f"source {self._source.reference}")

    def contents(self, digest: bytes, entries: Mapping[bytes, ManifestEntry]) -> Iterator[Pieces]:
        """Content that is said to have *digest*, the nearest first; to be compared."""
        for _, pieces in self._here(digest, entries):
            yield pieces
        for _, pieces in self._listed_here(digest):
            yield pieces
        tree = self._source.tree(self._layer) if self._source is not None else None
        if tree is not None:
            there = entries_of(tree.fd, self._layer.manifest_digest) or entries
            for path, entry in there.items():
                if entry.sha256 == digest:
                    yield partial(_file, tree.fd, path)
                    break

    def _here(self, digest: bytes, entries: Mapping[bytes, ManifestEntry]) -> Iterator[tuple[str, Pieces]]:
        """In this store."""
        for path, entry in entries.items():
            meant = entries.get(entry.linkname, entry) if entry.type == "hardlink" else entry
            if meant.sha256 == digest and _has(self._tree_fd, path, meant):
                yield f"its own file {os.fsdecode(path)}", partial(_file, self._tree_fd, path)
        without = [self._layer.id]
        for _ in range(_TRIES):
            with LayerFinder(self._handle, parent=self._layer.parent, without=without).find([digest]) as places:
                place = places.get(digest)
                if not isinstance(place, LayerPlace):
                    return
                without.append(place.layer_id)
                yield f"layer {place.layer_id}", place.read

    def _listed_here(self, digest: bytes) -> Iterator[tuple[str, Pieces]]:
        """In other layers, where their manifests say that it is: what was asked for with ``locate``."""
        for layer_id, entry in self._listed.places(digest):
            try:
                with open_tree(self._handle, layer_id) as tree_fd:
                    if _has(tree_fd, entry.path, entry):
                        yield f"layer {layer_id}", partial(_file, tree_fd, entry.path)
            except OSError:
                continue                 # deleted meanwhile

    def part(self, name: str) -> Pieces | None:
        """A file of the layer's directory, from the source."""
        tree = self._source.tree(self._layer) if self._source is not None else None
        if tree is None:
            return None

        def pieces() -> Iterator[bytes]:
            with ExitStack() as stack:
                directory, _, base = name.rpartition("/")
                fd = stack.enter_context(fs.open_dir(directory, tree.fd)) if directory else tree.fd
                with open_regular(base, fd) as file:
                    yield from read_chunks(file)

        return pieces


def _is_good(pieces: Pieces) -> bool:
    """A place in another layer gives nothing before it has compared all."""
    try:
        for _ in pieces():
            break
    except (OSError, DamagedError):
        return False
    return True


def _has(tree_fd: int, path: bytes, entry: ManifestEntry) -> bool:
    """Whether the file has its size and its content."""
    digest, size = hashlib.sha256(), 0
    try:
        for piece in _file(tree_fd, path, entry.size):
            size += len(piece)
            digest.update(piece)
    except OSError:
        return False
    return size == entry.size and digest.digest() == entry.sha256


def _file(tree_fd: int, path: bytes, size: int | None = None) -> Iterator[bytes]:
    """What a file of the tree has; nothing if it is not of that *size*."""
    parent, _, base = path.rpartition(b"/")
    with Descriptor("diff", os.O_RDONLY | os.O_DIRECTORY, dir_fd=tree_fd) as diff_fd:
        fds = DirFds(diff_fd)
        try:
            with open_regular(base, fds.get(parent)) as fd:
                if stat.S_ISREG(os.fstat(fd).st_mode) and size in (None, fs.size(fd)):
                    yield from read_chunks(fd)
        finally:
            fds.close()
