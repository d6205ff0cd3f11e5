"""A chunked blob opened: its metadata read, checked against the digests that vouch for it, and made into a layout.

*read* is handed in and gives bytes of the blob; nothing else is touched. What is parsed was found to have its digest
first: of the TOC, by the descriptor, and of the tar-split, by the TOC.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from layerstore.chunked import footers
from layerstore.chunked.agreement import check_agreement
from layerstore.chunked.annotations import Announced, Position, Unsuitable, announced
from layerstore.chunked.golines import Payload, read_lines
from layerstore.chunked.layout import Chunk, File, Gap, Located, arranged, clean, locate, without_gaps
from layerstore.chunked.toc import Toc, TocEntry
from layerstore.errors import DigestMismatchError, TocError
from layerstore.formats.compression import decompressed
from layerstore.formats.tar import TarReader
from layerstore.model import Descriptor, Limits

__all__ = ["Opened", "open_chunked"]

Buffer = bytes | memoryview
Read = Callable[[list[tuple[int, int]]], list[Buffer]]
"""The bytes of (start, length) ranges of the blob, in ascending order, each range's together: copies of nothing."""

_PIECE = 1 << 20
_INDEX = b"stargz.index.json"
_LEAST_ENTRY = 128                       # bytes of a TOC, for each of so many entries at most
_LINES = 8                               # times a TOC's size that the lines of a tar-split may have; they are not held
_KEPT = 32 << 20                         # bytes of a tar-split's lines that are kept for the second reading, as they …
_LEAST_LINE = 256                        # … take room: so many each, and the tar's own bytes
_UNLIMITED = Limits(max_bytes=1 << 62, max_ratio=1 << 62)


class Opened(NamedTuple):
    """What is known of a blob by its metadata.

    ``items`` are the files that have content, and with no tar-split also the gaps between them, in order. ``digests``
    are those that the TOC gives, by clean name; ``chunks`` all of each file that has several, in order.
    ``lines`` gives the tar-split's again and again; ``tail`` is the last unit of an eStargz blob, already fetched.
    """

    codec: str
    toc_digest: str
    items: list[File | Gap]
    digests: dict[bytes, bytes]
    chunks: dict[bytes, tuple[Chunk, ...]]
    lines: Callable[[], Iterator[bytes | Payload]] | None
    tail: bytes | None


def open_chunked(descriptor: Descriptor, read: Read, limits: Limits) -> Opened:
    """Read and check the metadata of the layer *descriptor*.

    Unsuitable where it cannot be taken in parts; TocError, DigestMismatchError, CompressionError, ArchiveError,
    LimitExceededError for metadata that is wrong; what *read* raises.
    """
    told = announced(descriptor)
    if told is None:
        raise Unsuitable("it has no table of contents")
    if told.codec == "gzip":
        return _open_stargz(told, descriptor, read, limits)
    return _open_zstd(told, descriptor, read, limits)


def _open_zstd(told: Announced, descriptor: Descriptor, read: Read, limits: Limits) -> Opened:
    toc, split = told.toc, told.tar_split
    if toc is None:
        least = min(descriptor.size, footers.ZSTD_MOST)
        toc, split = footers.zstd(bytes(read([(descriptor.size - least, least)])[0]), descriptor.size)
    if max(toc.length, toc.size) > limits.max_toc:
        raise _too_large(max(toc.length, toc.size), limits)
    if split is not None and (split.length > limits.max_toc or split.size > limits.max_toc * _LINES):
        raise Unsuitable(f"its tar-split has {split.length} bytes, or {split.size} decompressed: too many (max_toc)")
    compressed, split_data = _metadata(toc, split, read)
    _check(compressed, told.toc_digest, "the table of contents")
    if told.plain_digest is not None:
        _check_stream(_plain(compressed, toc.size, "table of contents"), told.plain_digest)
    parsed = Toc(_plain(compressed, toc.size, "table of contents"), most=limits.max_toc // _LEAST_ENTRY)
    split_data = None if split_data is None else bytes(split_data)   # both may be of one piece, which is not kept for it
    del compressed
    assert told.toc_digest is not None
    end = toc.offset - footers.FRAME
    if split is None or split_data is None:
        return _opened("zstd", told.toc_digest, parsed, descriptor, limits, end, None)
    entries = deque(parsed)
    if parsed.tar_split_digest is None:
        return _opened("zstd", told.toc_digest, _spent(entries), descriptor, limits, end, None)
    _check(split_data, parsed.tar_split_digest, "the tar-split")

    lines = _Lines(lambda: read_lines(_plain(split_data, split.size, "tar-split")))
    check_agreement(entries, lines(), limits)
    files = _ending(locate(_spent(entries), limits, descriptor.size))
    items: list[File | Gap] = list(without_gaps(files, end))
    return Opened("zstd", told.toc_digest, items, *_told(items), lines, None)


def _spent(entries: deque[TocEntry]) -> Iterator[TocEntry]:
    """Each of them, once: what is made of one takes its room."""
    while entries:
        yield entries.popleft()


def _ending(files: Iterable[Located]) -> Iterator[Located]:
    for file in files:
        if not file.end:
            raise Unsuitable("its table of contents does not say where files end")
        yield file


class _Lines:
    """The lines that *read* gives, again and again: kept as they are read, if they are not too many."""

    def __init__(self, read: Callable[[], Iterator[bytes | Payload]]) -> None:
        self._read = read
        self._kept: list[bytes | Payload] | None = None

    def __call__(self) -> Iterator[bytes | Payload]:
        return iter(self._kept) if self._kept is not None else self._first()

    def _first(self) -> Iterator[bytes | Payload]:
        kept: list[bytes | Payload] = []
        room = _KEPT
        for line in self._read():
            room -= _LEAST_LINE + len(line)
            if room >= 0:
                kept.append(line)
            elif kept:
                kept = []
            yield line
        if room >= 0:
            self._kept = kept


def _metadata(toc: Position, split: Position | None, read: Read) -> tuple[Buffer, Buffer | None]:
    """Both by one call: they lie beside each other."""
    if split is None:
        return read([(toc.offset, toc.length)])[0], None
    if toc.offset + toc.length > split.offset:
        raise TocError("the layer says that its tar-split begins before its table of contents ends")
    first, second = read([(toc.offset, toc.length), (split.offset, split.length)])
    return first, second


def _open_stargz(told: Announced, descriptor: Descriptor, read: Read, limits: Limits) -> Opened:
    least = min(descriptor.size, footers.STARGZ_MOST)
    offset, length = footers.stargz(bytes(read([(descriptor.size - least, least)])[0]), descriptor.size)
    if length > limits.max_toc:
        raise _too_large(length, limits)
    tail = bytes(read([(offset, length)])[0])
    assert told.plain_digest is not None
    _check_stream(_index(tail, limits), told.plain_digest)
    entries = Toc(_index(tail, limits), most=limits.max_toc // _LEAST_ENTRY)
    return _opened("gzip", told.plain_digest, entries, descriptor, limits, offset, tail)


def _opened(
    codec: str, toc_digest: str, entries: Iterable[TocEntry], descriptor: Descriptor, limits: Limits, end: int,
    tail: bytes | None,
) -> Opened:
    """Without a tar-split: everything that is not files' content is in gaps of the blob."""
    files = list(locate(_unique(entries), limits, descriptor.size))
    items = list(arranged(files, end))
    told = _told(items) if any(file.end for file in files) else _told_of_units(files)
    return Opened(codec, toc_digest, items, *told, None, tail)


def _unique(entries: Iterable[TocEntry]) -> Iterator[TocEntry]:
    names: set[bytes] = set()
    for entry in entries:
        if entry.kind != "chunk":
            name = clean(entry.name)
            if name in names:
                raise TocError(f"the table of contents has {entry.name!r:.200} twice")
            names.add(name)
        yield entry


_Told = tuple[dict[bytes, bytes], dict[bytes, tuple[Chunk, ...]]]


def _told(items: Iterable[File | Gap]) -> _Told:
    """Digests and chunks, where items are whole files."""
    files = [item for item in items if isinstance(item, File)]
    return ({file.path: file.digest for file in files if file.digest is not None},
            {file.path: file.chunks for file in files if len(file.chunks) > 1})


def _told_of_units(files: Iterable[Located]) -> _Told:
    """The same where units go on after a file: then an item is a part of one."""
    digests, chunks = {}, {}
    for file in files:
        path = clean(file.name)
        if file.digest is not None:
            digests[path] = file.digest
        if len(file.chunks) > 1:
            chunks[path] = tuple(Chunk(each.offset, 0, each.size, each.digest, each.zeros) for each in file.chunks)
    return digests, chunks


def _index(tail: bytes, limits: Limits) -> Iterator[bytes]:
    """The JSON in the last member of an eStargz blob: itself a tar of one file."""
    reader = TarReader(decompressed([tail], limits=_UNLIMITED, compression="gzip"), limits)
    for entry in reader:
        if entry.name != _INDEX or entry.type != "file" or entry.sparse is not None:
            break
        if entry.size > limits.max_toc:
            raise _too_large(entry.size, limits)
        yield from map(bytes, reader.read_data(entry))
        return
    raise TocError(f"the layer's footer points to something else than the file {_INDEX.decode()}")


def _plain(data: Buffer, size: int, what: str) -> Iterator[bytes]:
    """What *data* decompresses to, which the layer says are *size* bytes."""
    left = size
    for piece in decompressed(_in_pieces(data), limits=_UNLIMITED, compression="zstd"):
        left -= len(piece)
        if left < 0:
            break
        yield piece
    if left:
        raise TocError(f"the layer's {what} does not decompress to the {size} bytes that it shall have")


def _in_pieces(data: Buffer) -> Iterator[bytes]:
    for start in range(0, len(data), _PIECE):
        yield bytes(data[start : start + _PIECE])


def _too_large(size: int, limits: Limits) -> Unsuitable:
    return Unsuitable(f"its table of contents has {size} bytes: more than {limits.max_toc} (max_toc)")


def _check(data: Buffer, digest: str | None, what: str) -> None:
    actual = "sha256:" + hashlib.sha256(data).hexdigest()
    if digest is not None and actual != digest:
        raise DigestMismatchError(f"{what} is another than promised", expected=digest, actual=actual)


def _check_stream(pieces: Iterable[bytes], digest: str) -> None:
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    actual = "sha256:" + found.hexdigest()
    if actual != digest:
        raise DigestMismatchError("the table of contents is another than promised", expected=digest, actual=actual)
