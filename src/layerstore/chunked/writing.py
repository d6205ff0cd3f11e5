"""A tar becomes a zstd:chunked blob, of the current form, while it passes. Held: a frame, the names, a file's chunks.

The blob is a row of zstd frames, which any zstd reader makes the tar of: each chunk of a file has one, and so has what
lies between two files. Then, in frames that such readers skip: the table of contents, the tar-split, and a footer that
says where both are. The same tar gives the same bytes: no time, no name and no size of a piece goes into it.

A tar that a TOC cannot describe (``described``; a name twice; more than a reader takes) becomes a row of frames without
one: plain zstd. From then on nothing is cut, and no more is held or spooled: there is no least size of a chunk, so what
is cut is counted while it is.
Source: containers/storage ``pkg/chunked/compressor``, whose blobs these are but for zstd's own choices.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

from layerstore.chunked import footers
from layerstore.chunked.annotations import Position, Unsuitable, announcing
from layerstore.chunked.content import Content
from layerstore.chunked.described import described
from layerstore.chunked.toc import LONGEST_ENTRY
from layerstore.formats.compression.writing import ZstdFrames, ZstdWriter
from layerstore.formats.tar import Entry, TarReader
from layerstore.formats.tar.header import BLOCK
from layerstore.model import Limits
from layerstore.trees.gotarsplit import member, segment

__all__ = ["Written", "write_chunked"]

_PIECE = 1 << 20
_NO_DIGEST = "sha256:" + "0" * 64
_HEADERS = 4 << 20                       # bytes before one member, in one line of the tar-split
_MOST = 150 << 20                        # bytes of a TOC; the field's readers have the same limit, ours a lower one
_BOUNDLESS = 1 << 62                     # the tar is one that was taken already
_LIMITS = Limits(
    max_entries=_BOUNDLESS, max_directories=_BOUNDLESS, max_bytes=_BOUNDLESS, max_path_length=_BOUNDLESS,
    max_depth=_BOUNDLESS, max_pax_record=_BOUNDLESS, max_xattr_value=_BOUNDLESS, max_xattrs=_BOUNDLESS,
    max_xattr_bytes=_BOUNDLESS, max_hole_bytes=_BOUNDLESS,
)


class Written(NamedTuple):
    """``annotations`` are what the blob's descriptor must say; none, if it has no TOC, and ``why`` it has none."""

    annotations: dict[str, str]
    why: str | None


def write_chunked(tar: Iterable[bytes], out: Callable[[bytes], object], spool: Callable[[], BinaryIO]) -> Written:
    """Write the blob of the *tar*, which comes in pieces, to *out*.

    *spool* gives an empty file for what comes last: twice, of some hundred bytes a member together. It is closed.
    ArchiveError for no tar; what reading it, and writing, raises.

    Durability: none here; who owns what *out* writes to syncs.
    """
    with spool() as toc, spool() as split:
        blob = _Blob(out, _Text(toc), _Text(split))
        reader = TarReader(tar, _LIMITS, require_end=False, raw=blob.raw)
        for entry in reader:
            blob.member(entry, reader)
        return blob.finish()


class _Blob:
    def __init__(self, out: Callable[[bytes], object], toc: _Text, split: _Text) -> None:
        self._out, self._toc, self._split = out, toc, split
        self._frames = ZstdFrames(out)
        self._raw: list[bytes] = []      # of the tar, since the last file's data
        self._raw_size = self._padding = self._lines = 0
        self._names: set[bytes] = set()
        self._why: str | None = None     # there will be no TOC: nothing more is kept for one
        self._comma = ""
        toc.write('{"version":1,"entries":[')

    def raw(self, data: bytes) -> None:
        """Told of bytes that are no file's data."""
        self._raw.append(data)
        self._raw_size += len(data)
        if self._raw_size > _HEADERS:    # of zeros after the end, if this is an honest tar
            self._between()
            self._padding = -1

    def member(self, entry: Entry, reader: TarReader) -> None:
        padding, headers = self._padding, self._between()
        fields: dict[str, Any] = {}
        if self._why is None:
            try:
                fields = self._described(entry, reader.raw_name, headers, padding)
            except Unsuitable as why:
                self._why = str(why)
        content = Content(self._frames)
        if entry.size:
            # the first chunk has no row of its own
            room = 0 if self._why is not None else (_MOST - self._toc.size) // _least_row(fields["name"]) + 2
            if not content.take((bytes(view) for view in reader.read_data(entry)), room):
                self._exceeded()
        self._padding = -content.size % BLOCK
        self._line(member(reader.raw_name, content.size, content.crc))
        if self._why is None:
            self._entries(fields, content)

    def finish(self) -> Written:
        self._between()
        end = self._frames.end()
        split_digest, split = self._split.finish(0)
        self._toc.write(f'],"tarSplitDigest":"{split_digest}"}}')
        toc_digest, toc = self._toc.finish(end)
        if toc.size > _MOST:
            self._exceeded()
        if self._why is not None:
            return Written({}, self._why)
        split = split._replace(offset=toc.offset + toc.length + footers.FRAME)
        for position, text in ((toc, self._toc), (split, self._split)):
            self._out(footers.skippable(position.length))
            for piece in text.compressed():
                self._out(piece)
        self._out(footers.zstd_footer(toc, split))
        return Written(announcing(toc_digest, toc, split), None)

    def _between(self) -> bytes:
        """Hand on what lies between two files, and return it."""
        raw = b"".join(self._raw)
        self._raw, self._raw_size = [], 0
        self._frames.write(raw)
        if raw:
            self._line(segment(raw))
        return raw

    def _described(self, entry: Entry, name: bytes, headers: bytes, padding: int) -> dict[str, Any]:
        if padding < 0:
            raise Unsuitable("it has headers that no line of a tar-split holds")
        if entry.name in self._names:
            raise Unsuitable("it has a name twice")
        self._names.add(entry.name)
        return described(entry, name, headers[padding:])

    def _exceeded(self) -> None:
        self._why = self._why or f"its table of contents would have more than {_MOST} bytes, which nobody reads"

    def _line(self, fields: dict[str, Any]) -> None:
        if self._why is not None:
            return
        self._split.write(_json({**fields, "position": self._lines}) + "\n")
        self._lines += 1

    def _entries(self, fields: dict[str, Any], content: Content) -> None:
        if content.size:
            fields.update(digest=content.digest, offset=content.start, endOffset=content.end)
        chunks = content.rows()
        self._row(fields | next(chunks, {}))
        for chunk in chunks:
            self._row({"type": "chunk", "name": fields["name"], **chunk})
        if self._toc.size > _MOST:
            self._exceeded()

    def _row(self, row: dict[str, Any]) -> None:
        text = _json({key: value for key, value in row.items() if value})
        if len(text) >= LONGEST_ENTRY:
            self._why = "it has a member with more attributes than a table of contents can say"
        self._toc.write(self._comma + text)
        self._comma = ","


class _Text:
    """Text that comes to lie in a skippable frame: compressed into *file*, counted, digested."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.sha256()
        self._zstd = ZstdWriter(self._put)
        self._pending: list[str] = []
        self._held = self._size = self._length = 0

    @property
    def size(self) -> int:
        """Characters of it so far: at most as many as it has bytes."""
        return self._size + self._held

    def write(self, text: str) -> None:
        self._pending.append(text)
        self._held += len(text)
        if self._held >= _PIECE:
            self._flush()

    def finish(self, end: int) -> tuple[str, Position]:
        """Its digest, as it is compressed, and where it is if its frame begins at *end*."""
        self._flush()
        self._zstd.close()
        return f"sha256:{self._digest.hexdigest()}", Position(end + footers.FRAME, self._length, self._size)

    def compressed(self) -> Iterator[bytes]:
        self._file.seek(0)
        while piece := self._file.read(_PIECE):
            yield piece

    def _flush(self) -> None:
        data = "".join(self._pending).encode()
        self._pending, self._held = [], 0
        self._size += len(data)
        self._zstd.write(data)

    def _put(self, data: bytes) -> None:
        self._digest.update(data)
        self._length += len(data)
        self._file.write(data)


def _least_row(name: str) -> int:
    """Characters of the row of one of that file's chunks, at least."""
    numbers = {"offset": 1, "chunkSize": 1, "chunkOffset": 1}
    return len(_json({"type": "chunk", "name": name, **numbers, "chunkDigest": _NO_DIGEST}))


def _json(fields: dict[str, Any]) -> str:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
