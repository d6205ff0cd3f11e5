"""A tar becomes a zstd:chunked blob, of the current form, while it passes. What is held is one frame and the names.

The blob is a row of zstd frames, which any zstd reader makes the tar of: each chunk of a file has one, and so has what
lies between two files. Then, in frames that such readers skip: the table of contents, the tar-split, and a footer that
says where both are. The same tar gives the same bytes: no time, no name and no size of a piece goes into it.

A tar that a TOC cannot describe (``described``; a name twice) becomes a row of frames without one: plain zstd.
Source: containers/storage ``pkg/chunked/compressor``, whose blobs these are but for zstd's own choices.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

from layerstore.chunked import footers
from layerstore.chunked.annotations import Position, Unsuitable, announcing
from layerstore.chunked.cutting import Piece, cut
from layerstore.chunked.described import described
from layerstore.chunked.toc import LONGEST_ENTRY
from layerstore.formats.compression import ZstdFrames, ZstdWriter
from layerstore.formats.crc64 import crc64
from layerstore.formats.tar import Entry, TarReader
from layerstore.formats.tar.header import BLOCK
from layerstore.model import Limits
from layerstore.trees.gotarsplit import member, segment

__all__ = ["Written", "write_chunked"]

_PIECE = 1 << 20
_HEADERS = 4 << 20                       # bytes before one member, in one line of the tar-split
_MOST = Limits().max_toc                 # bytes of a TOC; the field's readers have the same limit
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
        self._why: str | None = None
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
        content = _Content(self._frames)
        if entry.size:
            content.take(bytes(view) for view in reader.read_data(entry))
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
        if self._why is None and toc.size > _MOST:
            self._why = f"its table of contents has {toc.size} bytes, more than {_MOST}, which nobody reads"
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

    def _line(self, fields: dict[str, Any]) -> None:
        self._split.write(_json({**fields, "position": self._lines}) + "\n")
        self._lines += 1

    def _entries(self, fields: dict[str, Any], content: _Content) -> None:
        if content.size:
            fields.update(digest=content.digest, offset=content.start, endOffset=content.end)
        chunks = content.chunks if len(content.chunks) > 1 else []
        rows = [fields, *({"type": "chunk", "name": fields["name"]} for _ in chunks[1:])]
        for row, chunk in zip(rows, chunks, strict=False):
            row.update(chunk)
        for row in rows:
            text = _json({key: value for key, value in row.items() if value})
            if len(text) >= LONGEST_ENTRY:
                self._why = "it has a member with more attributes than a table of contents can say"
            self._toc.write(self._comma + text)
            self._comma = ","


class _Content:
    """The data of one member on its way into frames of its own."""

    def __init__(self, frames: ZstdFrames) -> None:
        self._frames = frames
        self._whole = hashlib.sha256()
        self._crc = self.size = self.start = self.end = 0
        self.chunks: list[dict[str, Any]] = []

    @property
    def digest(self) -> str:
        return f"sha256:{self._whole.hexdigest()}"

    @property
    def crc(self) -> bytes | None:
        return self._crc.to_bytes(8, "big") if self.size else None

    def take(self, data: Iterable[bytes]) -> None:
        self.start = self._frames.end()
        chunk = _Chunk(self.start, 0)
        for piece in cut(data):
            self._add(piece.data)
            chunk.add(piece)
            if piece.ends and chunk.size:
                self.chunks.append(chunk.fields())
                chunk = _Chunk(self._frames.end(), self.size)
        if chunk.size:
            self.chunks.append(chunk.fields())
        self.end = self._frames.end()

    def _add(self, data: bytes) -> None:
        self._frames.write(data)
        self._whole.update(data)
        self._crc = crc64(data, self._crc)
        self.size += len(data)


class _Chunk:
    def __init__(self, start: int, at: int) -> None:
        self._start, self._at, self.size = start, at, 0
        self._digest, self._zeros = hashlib.sha256(), False

    def add(self, piece: Piece) -> None:
        self._digest.update(piece.data)
        self.size += len(piece.data)
        self._zeros = piece.zeros

    def fields(self) -> dict[str, Any]:
        return {
            "offset": self._start, "chunkSize": self.size, "chunkOffset": self._at,
            "chunkDigest": f"sha256:{self._digest.hexdigest()}", "chunkType": "zeros" if self._zeros else "",
        }


class _Text:
    """Text that comes to lie in a skippable frame: compressed into *file*, counted, digested."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.sha256()
        self._zstd = ZstdWriter(self._put)
        self._pending: list[str] = []
        self._held = self._size = self._length = 0

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


def _json(fields: dict[str, Any]) -> str:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
