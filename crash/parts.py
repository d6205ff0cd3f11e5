"""The workload ``partial``: of an image's second version only what differs is fetched, and the first goes meanwhile.

What may live here: two versions of a zstd:chunked layer, and that pull. The product's own code runs, threads and all: what
is missing is fetched ahead, and kept out of order in a spool; what is here is taken, or its blocks are shared, while
the tree is being made. First the net is gone after some of it. Then it is gone on with, and while the layer that content
is taken from is held its image is deleted; that deletion is finished afterwards.

*in order*: for rigs that number calls. All is fetched before anything is unpacked, so that the calls of the threads have
one order.

The blobs are written by the product; what becomes of them is judged by their tars, as everywhere.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property

import layerstore
from crash import workloads as w
from crash.content import TREES, Content, add, described, picture
from crash.remote import read_first, remotely
from crash.workloads import Workload, facts_of, pull_again, put
from layerstore import PullOptions, Quiet, Tally
from layerstore.chunked.writing import write_chunked
from layerstore.errors import LayerstoreError, SourceError
from layerstore.store import Store
from layerstore.testing import Ledger, image, layer, name
from layerstore.testing.trees import tree_of_tar

__all__ = ["NAME", "OLD", "Family", "build", "drop_old", "go_on", "kept_of", "prepare"]

NAME = "partial"
OLD, NEW = "old", "new"      # the names of the versions
_GONE_AT = 150_000           # bytes that come before the net is gone: enough of them to be gone on with
_MEDIA_TYPE = "application/vnd.oci.image.layer.v1.tar+zstd"
_HEAD, _PIECE_HEAD = 57, 25  # bytes, of the spool's own headers, checksums included


@dataclass(frozen=True)
class Chunked(Content):
    """A layer whose blob has a table of contents."""

    @cached_property
    def _written(self) -> tuple[bytes, dict[str, str]]:
        parts: list[bytes] = []
        written = write_chunked([self.tar], parts.append, io.BytesIO)
        assert written.why is None, written.why
        return b"".join(parts), written.annotations

    @property
    def blob(self) -> bytes:
        return self._written[0]

    @property
    def descriptor(self) -> dict[str, object]:
        return described(_MEDIA_TYPE, self.blob) | {"annotations": self._written[1]}


def _bytes(label: str, size: int) -> bytes:
    return hashlib.shake_256(label.encode()).digest(size)


def _version(label: str) -> Chunked:
    """A file that both have, large enough for its blocks to be shared; one that has chunks in common; others, and holes."""
    common = _bytes("chunks", 300_000)
    grown = common if label == OLD else common[:150_000] + b"inserted" + common[150_000:]
    files = {
        f"d/first-{label}": _bytes(f"first {label}", 70_000), "d/same": _bytes("same", 100_000), "d/grown": grown,
        "d/holes": b"begin" + bytes(5000) + label.encode(), f"d/last-{label}": _bytes(f"last {label}", 70_000),
        "d/small": b"as ever\n",
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        add(archive, "d", tarfile.DIRTYPE, mode=0o755)
        for path, data in files.items():
            add(archive, path, data=data)
        add(archive, "d/hard", tarfile.LNKTYPE, target="d/same")
        add(archive, "d/link", tarfile.SYMTYPE, target="small")
    made = Chunked(label, buffer.getvalue())
    TREES[made.diff_id] = tree_of_tar(made.tar)
    return made


class Family:
    """Both versions, as images in *directory*."""

    def __init__(self, directory: str) -> None:
        self.old = picture(os.path.join(directory, "parts", OLD), [_version(OLD)])
        self.new = picture(os.path.join(directory, "parts", NEW), [_version(NEW)])


def build(directory: str, *, in_order: bool = False) -> dict[str, Workload]:
    """The workload; its images are written to *directory*."""
    family = Family(directory)
    order: Callable[[], AbstractContextManager[None]] = read_first if in_order else nullcontext

    def run(root: str, ledger: Ledger) -> None:
        with layerstore.open(root) as store, order():
            with suppress(SourceError), remotely(ending_at=_GONE_AT):
                w.pull(store, ledger, family.new, NEW)
            go_on(store, ledger, family, meanwhile=lambda: _drop_held(store, ledger, family))
            store.recover()

    return {NAME: Workload(NAME, lambda root, ledger: prepare(root, ledger, family), run, again(family))}


def prepare(root: str, ledger: Ledger, family: Family) -> None:
    """A store with a layer that has nothing to do with it, and the first version."""
    with layerstore.open(root) as store:
        put(store, ledger, w.BASE, w.BASE_ID, names=("base",))
        w.pull(store, ledger, family.old, OLD)


def go_on(store: Store, ledger: Ledger, family: Family, *, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Pull the second version, with what is kept of it; *meanwhile* once what is taken from is held.

    What *meanwhile* fails with is no word of the pull's: it comes out when that is over.
    """
    failed: list[LayerstoreError] = []

    class Held(Quiet):
        def spared(self, _layer: str, n: int) -> None:
            if n > 0:
                try:
                    meanwhile()
                except LayerstoreError as error:
                    failed.append(error)

    with remotely(), ledger.asking(*facts_of(family.new, NEW)):
        store.pull(family.new.reference, names=[NEW], options=PullOptions(workers=1), progress=Held())
    for each in failed:
        raise each


def drop_old(store: Store, ledger: Ledger, family: Family, *, wait: float = 5.0) -> tuple[str, ...]:
    """Delete the first version; the IDs of layers that others hold."""
    gone = [image(family.old.id, None), name(OLD, "image", None), *(layer(i, None) for i in family.old.layer_ids())]
    with ledger.asking(*gone):
        return store.delete_image(family.old.id, wait=wait).deferred


def _drop_held(store: Store, ledger: Ledger, family: Family) -> None:
    deferred = drop_old(store, ledger, family, wait=0.0)
    assert list(deferred) == family.old.layer_ids(), "the layer that content is taken from was deleted while it was held"


def again(family: Family) -> Callable[[Store], object]:
    """The pull of a user who saw it crash. What a spool has is not fetched again."""
    def pulled(store: Store) -> None:
        blob = family.new.layers[0].blob
        kept, fetched = kept_of(store.root, blob), Tally()
        with remotely():
            store.pull(family.new.reference, names=[NEW], progress=fetched)
        most = len(blob) - kept
        assert fetched.total().fetched <= most, f"{fetched.total().fetched} bytes were fetched, of {most} not kept"
        pull_again(family.new, NEW)(store)

    return pulled


def kept_of(root: str, blob: bytes) -> int:
    """How many bytes of *blob* an unfinished tree's spool has, wherever in the blob they are; read by its description."""
    best = 0
    for txid in os.listdir(os.path.join(root, "staging")):
        with suppress(FileNotFoundError), open(os.path.join(root, "staging", txid, "blob"), "rb") as file:
            data = file.read()
            if hashlib.sha256(blob).digest() in data[:_HEAD] and _sealed(data[:_HEAD]):
                found = [length for start, length, piece in _pieces(data) if piece == blob[start:start + length]]
                best = max(best, sum(found))
    return best


def _pieces(spool: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(where it belongs, length, bytes) of each, up to the first that has no whole header."""
    at = _HEAD
    while len(head := spool[at:at + _PIECE_HEAD]) == _PIECE_HEAD and head[:5] == b"piece" and _sealed(head):
        start, length = int.from_bytes(head[5:13], "little"), int.from_bytes(head[13:17], "little")
        at += _PIECE_HEAD
        yield start, length, spool[at:at + length]
        at += length


def _sealed(header: bytes) -> bool:
    """Whether its last four bytes are the checksum of the others."""
    return zlib.crc32(header[:-4]) == int.from_bytes(header[-4:], "little")
