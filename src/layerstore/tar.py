"""A strict, streaming reader of tar archives: bytes in, entries and their data out. No file is touched here.

Reads what the field writes: ustar, PAX (local and global headers), GNU long names, GNU sparse files of every
kind, base-256 numbers, star's prefix. Whatever two readers could understand differently is refused with
``ArchiveError`` and the offset: this library checks a layer by its digest, and a digest says nothing about
which reading was meant.

Memory is bounded by the limits: one chunk of the stream, one extension header, one sparse map.
Sources: POSIX pax (ustar and pax interchange formats), GNU tar manual appendices, Go's archive/tar (the
field's reader: where it ignores something, so do we; see ``_HEADER_ONLY``).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple
from zlib import adler32

from layerstore import pax
from layerstore.errors import ArchiveError, LimitExceededError
from layerstore.model import Limits

__all__ = ["BLOCK", "Entry", "TarReader"]

BLOCK = 512
_NAME_MAX = 255                          # bytes of one path component (Linux, every file system)
_ID_END = 0xFFFF_FFFF                    # chown(2) reads -1 as "leave it": not an ID
_TIME_END = 1 << 63                      # nanoseconds that fit what file systems and manifests can hold
_MAX_SIZE = (1 << 63) - 1
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_SPARSE = struct.Struct("12s12s")
_ZERO_BLOCK = bytes(BLOCK)
_NO_XATTRS: Mapping[bytes, bytes] = {}

_TYPES = {
    b"0": "file", b"\0": "file", b"7": "file", b"S": "file", b"1": "hardlink", b"2": "symlink", b"3": "char",
    b"4": "block", b"5": "dir", b"6": "fifo",
}
# no data follows these, whatever their size field says: Go's reader, and so the whole field, has it that way
_HEADER_ONLY = frozenset({"hardlink", "symlink", "char", "block", "dir", "fifo"})
_FORBIDDEN_GLOBALLY = ("path", "linkpath", "size")


class Entry(NamedTuple):  # not a dataclass: one is made per file, and a frozen one takes ten times as long
    """One member. Names are bytes, relative and without ``.``, ``..`` or empty parts.

    The root itself has the name ``b""``. ``type`` is one of file, dir, symlink, hardlink, char, block, fifo.
    ``size`` is the file's size in bytes, holes included. ``mtime_ns`` is nanoseconds since 1970, held to 64
    bits. ``linkname`` is verbatim for a symbolic link and cleaned like a name for a hard link. ``sparse``
    lists (offset, length) of what is not a hole; None for other files. ``offset`` is where its header lies in
    the stream.
    """

    name: bytes
    type: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    linkname: bytes
    devmajor: int
    devminor: int
    xattrs: Mapping[bytes, bytes]
    sparse: tuple[tuple[int, int], ...] | None
    offset: int


class TarReader:
    """Iterate over a tar stream's entries, once. ``read_data`` of the current entry may be used, or not.

    The iteration ends only when every byte of the stream was consumed, so that a digest taken of the chunks
    covers all of it. A tar ends with two blocks of zeros and zero padding. One zero block, or none, exactly
    at the end of the stream is what a truncated archive may look like: it is accepted only with *require_end*
    false, which is for callers who check a digest of the whole. Anything but zeros after the end marker is
    refused. *raw* is told of every byte of the stream, in order, but of the data that was read.

    Raises ArchiveError (malformed or refused) and LimitExceededError (``limits``).
    """

    def __init__(
        self, chunks: Iterable[bytes], limits: Limits | None = None, *, require_end: bool = True,
        raw: Callable[[bytes], None] = lambda _data: None,
    ) -> None:
        self._raw = raw
        self.raw_name = b""              # the current entry's name as the archive has it
        self._chunks = iter(chunks)
        self._limits = limits or Limits()
        self._require_end = require_end
        self._buffer = b""
        self._at = 0                     # position in the buffer
        self._base = 0                   # offset of the buffer in the stream
        self._left = 0                   # bytes of the current entry's stored data not yet read
        self._padding = 0                # bytes of padding after them
        self._globals: dict[str, bytes] = {}
        self._total = 0                  # bytes of all files, holes included

    @property
    def offset(self) -> int:
        """Bytes of the stream consumed so far."""
        return self._base + self._at

    def __iter__(self) -> Iterator[Entry]:
        count = 0
        while True:
            self._skip_data()
            entry = self._next_entry()
            if entry is None:
                return
            count += 1
            if count > self._limits.max_entries:
                raise LimitExceededError(
                    "the archive has too many entries", limit="max_entries", maximum=self._limits.max_entries
                )
            yield entry

    def read_whole(self) -> memoryview | None:
        """All stored data of the current entry if it lies in one chunk and was not begun, else None.

        Costs no copy.
        """
        end = self._at + self._left
        if end > len(self._buffer):
            return None
        view = memoryview(self._buffer)[self._at : end]
        self._at, self._left = end, 0
        return view

    def read_data(self, entry: Entry) -> Iterator[memoryview]:
        """The stored data of *entry*, the current one, piece by piece.

        For a sparse file: its segments, joined.
        """
        while self._left:
            if self._at >= len(self._buffer) and not self._refill():
                raise ArchiveError(f"the archive ends inside {_show(entry.name)}", offset=self.offset)
            piece = memoryview(self._buffer)[self._at : self._at + self._left]
            self._at += len(piece)
            self._left -= len(piece)
            yield piece

    # -- the stream ---------------------------------------------------------------------------------------

    def _refill(self) -> bool:
        """Replace a used-up buffer by the next chunk; False at the end of the stream."""
        self._base += len(self._buffer)
        self._at -= len(self._buffer)
        for chunk in self._chunks:
            if chunk:
                self._buffer = chunk
                return True
        self._buffer = b""
        return False

    def _take(self, size: int, what: str) -> bytes:
        """Exactly *size* bytes, contiguous. Only for what is bounded by the caller."""
        end = self._at + size
        if end <= len(self._buffer):
            data = self._buffer[self._at : end]
            self._at = end
            self._raw(data)
            return data
        parts = []
        while size:
            if self._at >= len(self._buffer) and not self._refill():
                raise ArchiveError(f"the archive ends inside {what}", offset=self.offset)
            part = self._buffer[self._at : self._at + size]
            self._at += len(part)
            size -= len(part)
            parts.append(part)
            self._raw(part)
        return b"".join(parts)

    def _skip_data(self) -> None:
        left = self._left + self._padding
        self._left = self._padding = 0
        while left:
            step = min(left, len(self._buffer) - self._at)
            self._raw(self._buffer[self._at : self._at + step])
            self._at += step
            left -= step
            if left and not self._refill():
                raise ArchiveError("the archive ends inside an entry's data or padding", offset=self.offset)

    def _at_end(self) -> bool:
        return self._at >= len(self._buffer) and not self._refill()

    def _finish(self, *, blocks: int) -> None:
        """Consume what follows *blocks* zero blocks. Only zeros may."""
        if blocks == 1 and not self._at_end():
            if self._take(BLOCK, "its end marker") != _ZERO_BLOCK:
                raise ArchiveError("data after a lone zero block", offset=self.offset - BLOCK)
            blocks = 2
        if blocks < 2 and self._require_end:
            raise ArchiveError("the archive has no end marker: it may be truncated", offset=self.offset)
        while not self._at_end():
            rest = self._buffer[self._at :]
            if rest.count(0) != len(rest):
                junk = self.offset + len(rest) - len(rest.lstrip(b"\0"))
                raise ArchiveError("trailing junk after the archive's end marker", offset=junk)
            self._raw(rest)
            self._at = len(self._buffer)

    # -- headers ------------------------------------------------------------------------------------------

    def _next_entry(self) -> Entry | None:
        """Read extension headers and the header they belong to; None at the end of the archive."""
        local: pax.Records | None = None
        long_name: bytes | None = None
        long_link: bytes | None = None
        while True:
            extended = local is not None or long_name is not None or long_link is not None
            offset = self.offset
            if self._at_end():
                if extended:
                    raise ArchiveError("the archive ends after an extension header", offset=offset)
                self._finish(blocks=0)
                return None
            header = self._take(BLOCK, "a header")
            if not header[0] and header == _ZERO_BLOCK:
                if extended:
                    raise ArchiveError("an extension header without its entry", offset=offset)
                self._finish(blocks=1)
                return None
            _verify_checksum(header, offset)
            kind = header[156:157]
            if kind == b"x":
                if local is not None:
                    raise ArchiveError("two PAX headers for one entry", offset=offset)
                local = pax.parse(self._extension(header, offset), offset)
            elif kind == b"g":
                self._set_globals(pax.parse(self._extension(header, offset), offset), offset)
            elif kind in (b"L", b"K"):
                name = _terminated(self._extension(header, offset), offset)
                if (long_name if kind == b"L" else long_link) is not None:
                    raise ArchiveError("two GNU long names for one entry", offset=offset)
                long_name, long_link = (name, long_link) if kind == b"L" else (long_name, name)
            else:
                return self._entry(header, offset, local, long_name, long_link)

    def _extension(self, header: bytes, offset: int) -> bytes:
        size = _number(header[124:136], "size", offset)
        if size > self._limits.max_pax_record:
            raise LimitExceededError(
                f"the extension header at offset {offset} has {size} bytes", limit="max_pax_record",
                maximum=self._limits.max_pax_record,
            )
        return self._take(size + -size % BLOCK, "an extension header")[:size]

    def _set_globals(self, records: pax.Records, offset: int) -> None:
        for key, value in records.values.items():
            if key in _FORBIDDEN_GLOBALLY or key.startswith("GNU.sparse."):
                raise ArchiveError(f"a global PAX header must not set {key!r} for every entry", offset=offset)
            if value:
                self._globals[key] = value
            else:
                self._globals.pop(key, None)
        if sum(len(k) + len(v) for k, v in self._globals.items()) > self._limits.max_pax_record:
            raise LimitExceededError(
                "the global PAX headers are too long together", limit="max_pax_record",
                maximum=self._limits.max_pax_record,
            )

    def _entry(
        self,
        header: bytes,
        offset: int,
        local: pax.Records | None,
        long_name: bytes | None,
        long_link: bytes | None,
    ) -> Entry:
        (
            raw_name,
            raw_mode,
            raw_uid,
            raw_gid,
            raw_size,
            raw_mtime,
            _sum,
            flag,
            raw_link,
            magic,
            _uname,
            _gname,
            raw_major,
            raw_minor,
            prefix,
        ) = _HEADER.unpack_from(header)
        kind = _TYPES.get(flag)
        if kind is None:
            raise ArchiveError(f"an entry of the unknown type {flag!r}", offset=offset)
        name = long_name if long_name is not None else _header_name(header, raw_name, magic, prefix)
        link = long_link if long_link is not None else raw_link.partition(b"\0")[0]
        mode = _number(raw_mode, "mode", offset) & 0o7777
        uid, gid = _number(raw_uid, "uid", offset), _number(raw_gid, "gid", offset)
        size = _number(raw_size, "size", offset)
        mtime_ns = _number(raw_mtime, "mtime", offset, signed=True) * 1_000_000_000
        xattrs = _NO_XATTRS
        sparse: pax.SparseMap | None = None
        if local is not None or self._globals:
            over = pax.overrides(self._globals, local, offset, max_value=self._limits.max_xattr_value)
            twice = over.path is not None and long_name is not None
            if twice or (over.linkpath is not None and long_link is not None):
                raise ArchiveError("both a PAX and a GNU long name for one entry", offset=offset)
            name = name if over.path is None else over.path
            link = link if over.linkpath is None else over.linkpath
            uid, gid = (uid if over.uid is None else over.uid), (gid if over.gid is None else over.gid)
            size = size if over.size is None else over.size
            mtime_ns = mtime_ns if over.mtime_ns is None else over.mtime_ns
            xattrs, sparse = over.xattrs, over.sparse
        if uid >= _ID_END or gid >= _ID_END:
            raise ArchiveError(f"the owner {uid}:{gid} of {_show(name)} is not a possible one", offset=offset)
        self.raw_name = name
        directory = name.endswith(b"/")
        clean = self._clean(name, "name", offset)
        if kind == "file" and directory:  # how archives older than ustar, and GNU's reader, mean a directory
            if size:
                raise ArchiveError(f"{_show(name)} is named as a directory but has data", offset=offset)
            kind = "dir"
        major = minor = 0
        if kind in ("char", "block"):
            major, minor = _number(raw_major, "major", offset), _number(raw_minor, "minor", offset)
            if major >= 1 << 12 or minor >= 1 << 20:
                raise ArchiveError(f"{_show(name)} is an impossible device {major}:{minor}", offset=offset)
        if kind in _HEADER_ONLY:
            size = 0
        link = self._checked_link(kind, clean, link, offset)
        segments = None
        if kind == "file":
            size, segments = self._data_of(header, flag, size, sparse, offset, clean)
        return Entry(
            clean,
            kind,
            mode,
            uid,
            gid,
            size,
            max(-_TIME_END, min(mtime_ns, _TIME_END - 1)),
            link,
            major,
            minor,
            xattrs,
            segments,
            offset,
        )

    def _data_of(
        self, header: bytes, flag: bytes, stored: int, sparse: pax.SparseMap | None, offset: int, name: bytes
    ) -> tuple[int, tuple[tuple[int, int], ...] | None]:
        """Set up the reading of a file's data; return its size with holes and its segments (or None)."""
        if stored > _MAX_SIZE:
            raise ArchiveError(f"{_show(name)} claims to have {stored} bytes", offset=offset)
        size, segments = stored, None
        self._left, self._padding = stored, -stored % BLOCK
        if flag == b"S":
            if sparse is not None:
                raise ArchiveError("both an old GNU and a PAX sparse map for one entry", offset=offset)
            size = _number(header[483:495], "real size", offset)
            segments = self._old_sparse(header, offset)
        elif sparse is not None:
            size = sparse.size
            segments = sparse.segments
            if segments is None:         # version 1.0: the map is in front of the data
                segments = self._sparse_in_data(offset)
        if segments is not None:
            segments = _checked_segments(segments, size, self._left, offset)
        if size > self._limits.max_bytes - self._total:
            raise LimitExceededError(
                f"the files up to {_show(name)} ({size} bytes) have too many bytes together",
                limit="max_bytes",
                maximum=self._limits.max_bytes,
            )
        self._total += size              # holes count: each of their bytes will be hashed
        return size, segments

    def _old_sparse(self, header: bytes, offset: int) -> tuple[tuple[int, int], ...]:
        """The segments of a type-S header and its extension blocks (GNU tar manual, old GNU format)."""
        found: list[tuple[int, int]] = []
        block, start, slots, more = header, 386, 4, header[482]
        while True:
            for i in range(slots):
                raw_at, raw_length = _SPARSE.unpack_from(block, start + i * 24)
                if raw_at[0] and raw_length[0]:
                    at = _number(raw_at, "sparse offset", offset)
                    found.append((at, _number(raw_length, "sparse size", offset)))
            if not more:
                return tuple(found)
            if len(found) * 24 > self._limits.max_pax_record:
                raise LimitExceededError(
                    f"the sparse map at offset {offset} is too long", limit="max_pax_record",
                    maximum=self._limits.max_pax_record,
                )
            block = self._take(BLOCK, "a sparse map")
            start, slots, more = 0, 21, block[504]

    def _sparse_in_data(self, offset: int) -> tuple[tuple[int, int], ...]:
        """The segments of a PAX 1.0 sparse file: decimal lines before its data, padded to whole blocks."""
        text = bytearray()
        lines, wanted = 0, -1            # the first line says how many follow
        while wanted < 0 or lines < wanted:
            if self._left < BLOCK or len(text) > self._limits.max_pax_record:
                raise ArchiveError("a sparse map that does not end, or is too long", offset=offset)
            block = self._take(BLOCK, "a sparse map")
            self._left -= BLOCK
            text += block
            lines += block.count(b"\n")
            if wanted < 0 and lines:
                wanted = 1 + 2 * pax.decimal(bytes(text.partition(b"\n")[0]), "sparse count", offset)
        numbers = [pax.decimal(line, "sparse map", offset) for line in bytes(text).split(b"\n")[1:wanted]]
        return tuple(zip(numbers[::2], numbers[1::2], strict=True))

    # -- names --------------------------------------------------------------------------------------------

    def _clean(self, name: bytes, what: str, offset: int) -> bytes:
        """*name* without leading ``/``, ``.`` and empty parts.

        ``..`` is refused even where it would stay inside.
        """
        if b"\0" in name:
            raise ArchiveError(f"a NUL byte in the {what} {_show(name)}", offset=offset)
        if not name:
            raise ArchiveError(f"an empty {what}", offset=offset)
        parts = [part for part in name.split(b"/") if part and part != b"."]
        if b".." in parts:
            raise ArchiveError(f"the {what} {_show(name)} contains '..'", offset=offset)
        if len(parts) > self._limits.max_depth:
            raise LimitExceededError(
                f"the {what} {_show(name)} has {len(parts)} components",
                limit="max_depth",
                maximum=self._limits.max_depth,
            )
        clean = b"/".join(parts)
        if len(clean) > self._limits.max_path_length:
            raise LimitExceededError(
                f"the {what} {_show(clean)} has {len(clean)} bytes", limit="max_path_length",
                maximum=self._limits.max_path_length,
            )
        if len(clean) > _NAME_MAX and max(map(len, parts)) > _NAME_MAX:
            raise ArchiveError(
                f"a component of the {what} {_show(clean)} is longer than {_NAME_MAX} bytes", offset=offset
            )
        return clean

    def _checked_link(self, kind: str, name: bytes, link: bytes, offset: int) -> bytes:
        if kind == "hardlink":
            return self._clean(link, "hard-link target", offset)
        if kind != "symlink":
            return b""
        if not link or b"\0" in link:
            raise ArchiveError(f"the symbolic link {_show(name)} has the target {_show(link)}", offset=offset)
        if len(link) >= self._limits.max_path_length:
            raise LimitExceededError(
                f"the target of the symbolic link {_show(name)} has {len(link)} bytes",
                limit="max_path_length",
                maximum=self._limits.max_path_length - 1,
            )
        return link


def _show(name: bytes) -> str:
    """*name* for a message: printable, and not endless."""
    text = repr(os_text(name[:200]))
    return text + "…" if len(name) > 200 else text


def os_text(name: bytes) -> str:
    r"""A path as text that can be printed and stored: UTF-8, every other byte as ``\xNN``."""
    return name.decode("utf-8", "backslashreplace")


def _header_name(header: bytes, name: bytes, magic: bytes, prefix: bytes) -> bytes:
    name = name.partition(b"\0")[0]
    if magic[:6] == b"ustar\0" and prefix[0]:
        if header[508:512] == b"tar\0":  # star keeps times in the last 24 bytes of the prefix
            prefix = prefix[:131]
        return prefix.partition(b"\0")[0] + b"/" + name
    return name


def _terminated(data: bytes, offset: int) -> bytes:
    name, _, rest = data.partition(b"\0")
    if rest.strip(b"\0"):
        raise ArchiveError("a NUL byte inside a GNU long name", offset=offset)
    return name


def _verify_checksum(header: bytes, offset: int) -> None:
    stored = header[148:156]
    # adler32's low half is 1 + the sum of the bytes while that is below 65521: of 256 bytes it always is
    field = sum(stored)
    total = (adler32(header[:256]) & 0xFFFF) + (adler32(header[256:]) & 0xFFFF) - 2 - field + 256
    claimed = _number(stored, "checksum", offset)
    if claimed == total:
        return
    signed = sum(byte - 256 if byte > 127 else byte for byte in header[:148] + header[156:]) + 256
    if claimed != signed:                # historic tars summed signed bytes
        raise ArchiveError(f"a header's checksum is {claimed} but should be {total}", offset=offset)


def _number(field: bytes, what: str, offset: int, *, signed: bool = False) -> int:
    """An octal or base-256 header field. Negative only with *signed*."""
    if field[0] & 0x80:
        value = int.from_bytes(bytes((field[0] & 0x7F,)) + field[1:], "big")
        if field[0] & 0x40:
            value -= 1 << (8 * len(field) - 1)
            if not signed:
                raise ArchiveError(f"a negative {what}: {value}", offset=offset)
        if not -_TIME_END <= value < _TIME_END:
            raise ArchiveError(f"a {what} beyond 64 bits: {value}", offset=offset)
        return value
    text = field.partition(b"\0")[0].strip(b" ")
    if not text:
        return 0
    if not text.isdigit():               # int() would take signs, underscores and inner spaces
        raise ArchiveError(f"a {what} that is not a number: {field!r}", offset=offset)
    try:
        return int(text, 8)
    except ValueError:
        raise ArchiveError(f"a {what} that is not octal: {field!r}", offset=offset) from None


def _checked_segments(
    segments: tuple[tuple[int, int], ...], size: int, stored: int, offset: int
) -> tuple[tuple[int, int], ...]:
    end = total = 0
    for at, length in segments:
        if at < end or at + length > size:
            raise ArchiveError(
                f"a sparse map out of order or beyond {size} bytes: {at}+{length}", offset=offset
            )
        end = at + length
        total += length
    if total != stored:
        raise ArchiveError(f"a sparse map of {total} bytes with {stored} bytes of data", offset=offset)
    return tuple((at, length) for at, length in segments if length)
