"""The tar differ: a blob, compressed or not, becomes a tree, and every promised size and digest is verified.

Three threads, so that the work that holds no lock of Python's overlaps: one reads and decompresses, one
hashes the blob and the tar, and the caller's own unpacks. What is between them is bounded in chunks.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import Any, BinaryIO

from layerstore.differs.keeping import kept
from layerstore.errors import (
    DigestMismatchError,
    InvalidArgumentError,
    LayerstoreError,
    SizeMismatchError,
    SourceError,
)
from layerstore.formats.compression import Decompressed, decompressed
from layerstore.model import BLOB_KEY, Descriptor, DiffOutput, DiffTarget, check_digest
from layerstore.partial import BlobSource, until
from layerstore.system import fs
from layerstore.system.threads import Channel, Worker, running
from layerstore.trees.spooled import through
from layerstore.trees.unpack import unpack
from layerstore.trees.unpack.hashing import Hasher

__all__ = ["Source", "TarDiffer", "fill", "fill_from"]

Source = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Callable[[], BinaryIO] | BlobSource

_CHUNK = 1 << 19                         # bytes read at once
_DEPTH = 8                               # chunks between two threads: rides out a slow file or read


class TarDiffer:
    """Unpack a layer blob: a tar, plain or compressed with gzip or zstd (told by its first bytes).

    *source* is a path, the bytes themselves, a binary file object (read to its end, not closed), a callable
    that returns one (which is closed), or a blob that is opened and, if it is remote, kept (``spooled``).
    *expect* is the blob's descriptor: its size and digest are verified, and its digest is the content key.
    *diff_id* is the promised digest of the uncompressed tar. Without either of them an archive must have its end marker.
    *keep_blob*: a compressed blob is kept beside the tree.

    Raises InvalidArgumentError here for impossible arguments; ``apply_diff`` raises SizeMismatchError,
    DigestMismatchError, CompressionError, ArchiveError, LimitExceededError, SourceError, or OSError for the
    machine's failures, and leaves no thread behind.
    """

    def __init__(
        self, source: Source, *, expect: Descriptor | None = None, diff_id: str | None = None, keep_blob: bool = False,
    ) -> None:
        if expect is not None:
            check_digest(expect.digest, "the blob's digest")
            if expect.size < 0:
                raise InvalidArgumentError(f"the blob's size {expect.size} is negative")
        if diff_id is not None:
            check_digest(diff_id, "diff_id")
        self._source: Source | None = source
        self._expect = expect
        self._diff_id = diff_id
        self._keep = keep_blob

    @property
    def content_key(self) -> str | None:
        """The blob's promised digest, or None without one."""
        return self._expect.digest if self._expect is not None else None

    @property
    def diff_id(self) -> str | None:
        """The promised digest of the tar, or None without one."""
        return self._diff_id

    def apply_diff(self, target: DiffTarget) -> DiffOutput:
        """See ``model.Differ``. Durability: nothing is synced here."""
        if self._source is None:
            raise InvalidArgumentError("a differ is good for one use")
        source, self._source = self._source, None
        stop = threading.Event()
        if isinstance(source, BlobSource):
            source = until(source, stop, target.cancelled)
            return through(target, source, self.content_key, lambda into, blob: self._fill(into, blob.open, stop))
        return self._fill(target, source, stop)

    def _fill(self, target: DiffTarget, source: Source, stop: threading.Event) -> DiffOutput:
        return fill_from(target, source, expect=self._expect, diff_id=self._diff_id, keep=self._keep, stop=stop)


def fill_from(target: DiffTarget, source: Source, **how: Any) -> DiffOutput:
    """``fill`` with the chunks of *source*, which is closed after it."""
    with closing(_opened(source)) as blob:
        return fill(target, blob, **how)


def fill(
    target: DiffTarget,
    blob: Iterable[bytes],
    *,
    expect: Descriptor | None = None,
    diff_id: str | None = None,
    compression: str = "auto",
    is_blob: bool = True,
    keep: bool = False,
    stop: threading.Event | None = None,
) -> DiffOutput:
    """Run the pipeline over *blob*'s chunks; *is_blob* false if they are nobody's blob, only a tar; *keep* it beside.

    *stop* is cleared before any is read, and set when no more are wanted, before the thread that reads them is waited for.
    """
    if stop is not None:
        stop.clear()   # who read before, in vain, has ended
    hashes = _Hashes()
    measured = _measured(blob, hashes, expect, target.progress)
    measured = kept(measured, target) if keep else measured
    stream = decompressed(measured, limits=target.limits, compression=compression)
    with running(hashes), running(_Ahead(_hashed(stream, hashes), target.cancelled, stop)) as ahead:
        unpacked = unpack(ahead, target, require_end=expect is None and diff_id is None)
        blob_digest, actual_id = hashes.finish()
    plain = stream.compression == "none"
    blob_digest = actual_id if plain else blob_digest
    if expect is not None and blob_digest != expect.digest:
        raise DigestMismatchError("another blob than promised", expected=expect.digest, actual=blob_digest)
    if diff_id is not None and actual_id != diff_id:
        raise DigestMismatchError("another tar than promised", expected=diff_id, actual=actual_id)
    return DiffOutput(
        diff_id=actual_id, diff_size=stream.bytes_out, manifest_digest=unpacked.manifest_digest,
        entries=unpacked.entries, uids=unpacked.uids, gids=unpacked.gids, unset=unpacked.unset,
        blob_digest=blob_digest if is_blob else None, blob_size=hashes.blob_size if is_blob else None,
        compression=stream.compression, tar_split_digest=unpacked.tar_split_digest,
        big_data={BLOB_KEY: blob_digest} if fs.has_entry(target.dir_fd, "big-data", BLOB_KEY) else {},
    )


def _opened(source: Source) -> Generator[bytes, None, None]:
    """The chunks of *source*. A generator, so that closing it closes what it opened."""
    if isinstance(source, bytes | bytearray | memoryview):
        view = memoryview(source).cast("B")
        for start in range(0, len(view), _CHUNK):
            yield bytes(view[start : start + _CHUNK])
    elif isinstance(source, str | os.PathLike):
        try:
            file = open(source, "rb", buffering=0)  # noqa: SIM115 - closed below, whatever happens
        except OSError as error:
            raise SourceError(f"cannot open {os.fspath(source)!r}: {error.strerror}") from error
        with file:
            yield from _read(file)
    elif callable(source):
        with closing(source()) as opened:
            yield from _read(opened)
    else:
        yield from _read(source)


def _read(file: Any) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


def _measured(
    blob: Iterable[bytes], hashes: _Hashes, expect: Descriptor | None, progress: Callable[[int], None]
) -> Iterator[bytes]:
    """Count, and stop as soon as the size cannot be right: not one chunk of an endless stream too many."""
    wrong = "the layer's blob has not the promised size"
    for chunk in blob:
        hashes.blob_size += len(chunk)
        if expect is not None and hashes.blob_size > expect.size:
            raise SizeMismatchError(wrong, expected=expect.size, actual=hashes.blob_size)
        hashes.blob(chunk)
        progress(len(chunk))
        yield chunk
    if expect is not None and hashes.blob_size < expect.size:
        raise SizeMismatchError(wrong, expected=expect.size, actual=hashes.blob_size)


def _hashed(stream: Decompressed, hashes: _Hashes) -> Iterator[bytes]:
    for chunk in stream:
        if stream.compression == "none":
            hashes.plain()
        hashes.tar(chunk)
        yield chunk


class _Hashes(Hasher):
    """sha256 of the blob and of the tar, in a thread of its own. A plain tar is hashed once."""

    def __init__(self) -> None:
        super().__init__("layerstore-hash", 2 * _DEPTH)
        self.blob_size = 0
        self._blob, self._tar = hashlib.sha256(), hashlib.sha256()
        self._plain = False

    def plain(self) -> None:
        """From now on the blob's chunks need no hashing: they are the tar's."""
        self._plain = True

    def blob(self, chunk: bytes) -> None:
        if not self._plain:
            self.add(self._blob, chunk)

    def tar(self, chunk: bytes) -> None:
        self.add(self._tar, chunk)

    def finish(self) -> tuple[str, str]:
        self.close()
        self._check()
        return "sha256:" + self._blob.hexdigest(), "sha256:" + self._tar.hexdigest()


class _Ahead(Worker):
    """Run an iterator in a thread, a few chunks ahead of who iterates here."""

    def __init__(self, chunks: Iterator[bytes], cancelled: threading.Event, stop: threading.Event | None) -> None:
        super().__init__("layerstore-read")
        self._source, self._cancelled, self._no_more = chunks, cancelled, stop
        self._chunks: Channel[bytes] = Channel(_DEPTH)
        self._stopped = False

    def _work(self) -> None:
        for chunk in self._source:
            if self._stopped or not self._chunks.put(chunk, self._goes_on):
                return
        self._whole = True

    def _goes_on(self) -> bool:
        return not self._stopped

    def _ended(self) -> None:
        self._chunks.end()

    def __iter__(self) -> Iterator[bytes]:
        while (chunk := self._chunks.get(self._comes)) is not None:
            yield chunk
        if self._cancelled.is_set():
            raise LayerstoreError("cancelled: the layer is no longer wanted")
        if self._stopped:
            raise LayerstoreError("the layer's stream was closed")
        self._wait()
        self._check()

    def _comes(self) -> bool:
        return self.is_alive() and not self._cancelled.is_set()

    def _stop(self) -> None:
        """After the chunk being read, or rather than wait for it."""
        self._stopped = True
        if self._no_more is not None:
            self._no_more.set()
        self._chunks.make_room()
