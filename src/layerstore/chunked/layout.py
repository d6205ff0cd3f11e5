"""Where in the blob the content of files lies, made of a table of contents; and what may be made of one. Pure.

A blob is a row of *units*, zstd frames or gzip members, each of which can be decompressed for itself. In zstd:chunked a
chunk of a file has units of its own, and what is between two files (padding, headers) has others: *gaps*. Where a TOC
does not say where a file ends (eStargz, and the zstd:chunked of its converter), the unit of a file's last chunk goes on
with what follows in the tar: then only chunks before the last can be left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from layerstore.chunked.toc import TocEntry
from layerstore.errors import LimitExceededError, TocError
from layerstore.model import Limits

__all__ = ["Chunk", "File", "Gap", "Located", "Span", "arranged", "clean", "locate", "without_gaps"]

_RATIO_GRACE = 16 << 20                  # as for a whole stream
_new = tuple.__new__                     # what a NamedTuple does, too, in twice the time: one is made per chunk


class Chunk(NamedTuple):
    """*size* bytes of a file, which *length* bytes of the blob from *start* decompress to. ``digest`` None: unknown."""

    start: int
    length: int
    size: int
    digest: bytes | None
    zeros: bool


class File(NamedTuple):
    """Chunks that follow each other in the tar, from byte ``at`` of the file ``path``; *size* bytes together.

    ``digest`` is that of all of them, if they are the whole file.
    """

    path: bytes
    at: int
    size: int
    digest: bytes | None
    chunks: tuple[Chunk, ...]


class Gap(NamedTuple):
    """A unit that must be fetched. ``pieces`` are (bytes, digest or None) in front of what else it decompresses to."""

    start: int
    length: int
    pieces: tuple[tuple[int, bytes | None], ...] = ()


class Span(NamedTuple):
    """A chunk as the TOC has it: *size* bytes from byte ``at`` of the file *name*. Other fields as in ``TocEntry``."""

    name: str
    offset: int
    inner: int
    at: int
    size: int
    digest: bytes | None
    zeros: bool


class Located(NamedTuple):
    """One file that has content: its chunks as the TOC has them, and where in the blob it ends (0: not said)."""

    name: str
    size: int
    digest: bytes | None
    chunks: tuple[Span, ...]
    end: int


def locate(entries: Iterable[TocEntry], limits: Limits, blob_size: int) -> Iterator[Located]:
    """The files of *entries* that have content, with chunks that cover each exactly.

    TocError for chunks that do not, or belong to no file, or another; LimitExceededError for more content than a layer
    may have, or than its blob can honestly hold.
    """
    totals = _Totals(limits, blob_size)
    file: TocEntry | None = None
    chunks: list[TocEntry] = []
    for entry in entries:
        if entry.kind == "chunk":
            if file is None or not chunks or entry.name != file.name:
                raise TocError(f"a chunk in the table of contents that belongs to no file before it: {entry.name!r:.200}")
            chunks.append(entry)
            continue
        if chunks and file is not None:
            yield _covered(file, chunks, totals)
        file, chunks = entry, []
        if entry.kind == "file" and entry.size:
            chunks = [entry]
    if chunks and file is not None:
        yield _covered(file, chunks, totals)


def _covered(file: TocEntry, chunks: list[TocEntry], totals: _Totals) -> Located:
    name, whole = file.name, file.size
    at, last = 0, len(chunks) - 1
    spans = []
    for number, chunk in enumerate(chunks):
        size = chunk.chunk_size or (whole - at if number == last else 0)
        if chunk.chunk_offset != at or size <= 0 or at + size > whole:
            bad = f"one has {size} bytes at {chunk.chunk_offset}"
            raise TocError(f"the chunks of {name!r:.200} do not cover it: {bad}")
        digest = chunk.chunk_digest or (None if last else file.digest)
        spans.append(_new(Span, (name, chunk.offset, chunk.inner, at, size, digest, chunk.zeros)))
        totals.add(size, chunk.zeros)
        at += size
    if at != whole:
        raise TocError(f"the chunks of {name!r:.200} have {at} of its {whole} bytes")
    return _new(Located, (name, whole, file.digest, tuple(spans), file.end))


class _Totals:
    """What all files have together. A TOC costs nothing, and makes us write what it names: zeros, and what is here."""

    def __init__(self, limits: Limits, blob_size: int) -> None:
        self._limits, self._blob_size = limits, blob_size
        self._bytes = self._zeros = 0

    def add(self, size: int, zeros: bool) -> None:
        limits = self._limits
        if zeros:
            self._zeros += size
            if self._zeros > limits.max_hole_bytes:
                raise _too_much("chunks of zeros", "max_hole_bytes", limits.max_hole_bytes)
        else:
            self._bytes += size
        if self._bytes + self._zeros > limits.max_bytes:
            raise _too_much("content", "max_bytes", limits.max_bytes)
        if self._bytes > max(_RATIO_GRACE, self._blob_size * limits.max_ratio):
            raise _too_much(f"content for a blob of {self._blob_size} bytes", "max_ratio", limits.max_ratio)


def _too_much(what: str, limit: str, maximum: int) -> LimitExceededError:
    return LimitExceededError(f"the table of contents has too much {what}", limit=limit, maximum=maximum)


def without_gaps(files: Iterable[Located], end: int) -> Iterator[File]:
    """The files of a blob that says where each ends, and whose metadata begins at *end*. TocError if they overlap."""
    at = 0
    for file in files:
        if file.chunks[0].offset < at:
            raise TocError(f"{file.name!r:.200} lies at {file.chunks[0].offset} of the blob, before what precedes it ends")
        at = file.end
        if at > end:
            raise TocError(f"{file.name!r:.200} ends at {at} of the blob, beyond its content, which ends at {end}")
        ends = [chunk.offset for chunk in file.chunks[1:]] + [at]
        chunks = tuple(map(_chunk, file.chunks, ends))
        yield _new(File, (clean(file.name), 0, file.size, file.digest, chunks))


def clean(name: str) -> bytes:
    """A name of a TOC as the tar reader has it."""
    return b"/".join(part for part in name.encode("utf-8", "surrogatepass").split(b"/") if part not in (b"", b"."))


def _chunk(span: Span, end: int) -> Chunk:
    name, offset, inner, _, size, digest, zeros = span
    if end <= offset or inner:
        raise TocError(f"a chunk of {name!r:.200} lies at {offset} of the blob and ends at {end}")
    if digest is None:
        raise TocError(f"a chunk of {name!r:.200} has no digest")
    return _new(Chunk, (offset, end - offset, size, digest, zeros))


def arranged(files: Sequence[Located], end: int) -> Iterator[File | Gap]:
    """All of the blob up to *end*, in order: what is no file's is a gap. TocError as ``without_gaps``."""
    if any(file.end for file in files):
        at = 0
        for file in without_gaps(files, end):
            yield from _gap(at, file.chunks[0].start)
            yield file
            at = file.chunks[-1].start + file.chunks[-1].length
        yield from _gap(at, end)
    else:
        yield from _by_units(files, end)


def _gap(start: int, end: int) -> Iterator[Gap]:
    if end > start:
        yield Gap(start, end - start)


def _by_units(files: Sequence[Located], end: int) -> Iterator[File | Gap]:
    units = _units(files)
    yield from _gap(0, units[0][0] if units else end)
    run: list[Chunk] = []                # chunks of one file, each alone in its unit, …
    first: Span | None = None            # … and what the TOC has of the first
    for number, (start, inside) in enumerate(units):
        length = (units[number + 1][0] if number + 1 < len(units) else end) - start
        if length <= 0:
            raise TocError(f"content at {start} of the blob, beyond {start + length}, where it ends")
        chunk, last = inside[0]
        if len(inside) == 1 and not last and not chunk.inner:
            first = first or chunk
            run.append(Chunk(start, length, chunk.size, chunk.digest, False))
            continue
        yield from _file(first, run)
        first, run = None, []
        yield Gap(start, length, tuple(_pieces(inside)))
    yield from _file(first, run)


def _file(first: Span | None, run: list[Chunk]) -> Iterator[File]:
    if first is not None:
        yield File(clean(first.name), first.at, sum(chunk.size for chunk in run), None, tuple(run))


def _units(files: Sequence[Located]) -> list[tuple[int, list[tuple[Span, bool]]]]:
    """Where each unit begins, and the chunks that are in it: (chunk, it is its file's last)."""
    units: list[tuple[int, list[tuple[Span, bool]]]] = []
    for file in files:
        for chunk in file.chunks:
            found = (chunk, chunk is file.chunks[-1])
            if units and chunk.offset == units[-1][0]:
                units[-1][1].append(found)
            elif units and chunk.offset < units[-1][0]:
                raise TocError(f"a chunk of {file.name!r:.200} lies at {chunk.offset} of the blob, before what precedes it")
            else:
                units.append((chunk.offset, [found]))
    return units


def _pieces(inside: list[tuple[Span, bool]]) -> Iterator[tuple[int, bytes | None]]:
    at = 0
    for chunk, _last in inside:
        if chunk.inner < at:
            raise TocError(f"two chunks that overlap at {chunk.offset} of the blob: one of {chunk.name!r:.200}")
        if chunk.inner > at:
            yield chunk.inner - at, None
        yield chunk.size, chunk.digest
        at = chunk.inner + chunk.size
