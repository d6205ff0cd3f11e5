"""Entries of a tar, one after the other: headers, what extends them, and what of it all is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from layerstore.errors import ArchiveError, LimitExceededError
from layerstore.formats.tar import pax, sparse
from layerstore.formats.tar.header import (
    BLOCK,
    GNU_MAGIC,
    HEADER_ONLY,
    TIME_END,
    TYPES,
    ZERO_BLOCK,
    device,
    number,
    parse,
    verify_checksum,
)
from layerstore.formats.tar.names import Cleaner, checked_link, show
from layerstore.formats.tar.plain import PlainHeaders
from layerstore.formats.tar.stream import Stream
from layerstore.formats.tar.totals import Totals
from layerstore.model import Limits

__all__ = ["Entry", "TarReader"]

_ID_END = 0xFFFF_FFFF                    # chown(2) reads -1 as "leave it": not an ID
_MAX_SIZE = (1 << 63) - 1
_NO_XATTRS: Mapping[bytes, bytes] = {}
_new = tuple.__new__                     # what a NamedTuple does with keywords, too, in twice the time


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
    sparse: sparse.Segments | None
    offset: int


class TarReader:
    """Iterate over a tar stream's entries, once. ``read_data`` of the current entry may be used, or not.

    The iteration ends only when every byte of the stream was consumed, so that a digest taken of the chunks
    covers all of it. A tar ends with two blocks of zeros and zero padding. One zero block, or none, exactly
    at the end of the stream is what a truncated archive may look like: it is accepted only with *require_end*
    false, which is for callers who check a digest of the whole. Anything but zeros after the end marker is
    refused. *raw* is told of every byte of the stream, in order, but of the data that was read. *with_data* false: the
    stream has no data of files (see ``leave_out_data``), so no map in front of it either: those of PAX 1.0 seem empty.

    Raises ArchiveError (malformed or refused) and LimitExceededError (``limits``).
    """

    def __init__(
        self, chunks: Iterable[bytes], limits: Limits | None = None, *, require_end: bool = True,
        raw: Callable[[bytes], None] = lambda _data: None, with_data: bool = True,
    ) -> None:
        self.raw_name = b""              # the current entry's name as the archive has it
        self._stream = Stream(chunks, raw)
        self._limits = limits or Limits()
        self._names = Cleaner(self._limits)
        self._require_end, self._with_data = require_end, with_data
        self._totals = Totals(self._limits)
        self._plain = PlainHeaders()

    @property
    def offset(self) -> int:
        """Bytes of the stream consumed so far."""
        return self._stream.offset

    def __iter__(self) -> Iterator[Entry]:
        stream, maximum = self._stream, self._limits.max_entries
        count = 0
        while True:
            stream.skip_data()
            entry = self._plain_entry() or self._next_entry()
            if entry is None:
                return
            count += 1
            if count > maximum:
                raise LimitExceededError("the archive has too many entries", limit="max_entries", maximum=maximum)
            stream.tell()
            yield entry

    def read_whole(self) -> memoryview | None:
        """All stored data of the current entry if it lies in one chunk and was not begun, else None.

        Costs no copy.
        """
        return self._stream.whole()

    def leave_out_data(self) -> int | None:
        """The stream has no data of the current entry: its padding follows. How much it has; None if the chunk goes on.

        For who has only the bytes between files' data, in chunks that end where data belongs.
        """
        return self._stream.leave_out()

    def read_data(self, entry: Entry) -> Iterator[memoryview]:
        """The stored data of *entry*, the current one, piece by piece.

        For a sparse file: its segments, joined.
        """
        return self._stream.data(show(entry.name))

    # -- headers ------------------------------------------------------------------------------------------

    def _plain_entry(self) -> Entry | None:
        """The next entry if it is a plain file whose like was read before; None: see ``_next_entry``."""
        stream = self._stream
        plain = self._plain.read(stream.buffer, stream.at)
        if plain is None:
            return None
        name, (mode, uid, gid), size, mtime_ns = plain
        if name[-1:] == b"/":            # a directory, and no plain file
            return None
        offset = stream.offset
        self.raw_name = name
        clean = self._names.name(name, offset)
        stream.at += BLOCK
        stream.left, stream.padding = size, -size % BLOCK
        self._totals.file(size, 0, clean)
        return _new(Entry, (clean, "file", mode, uid, gid, size, mtime_ns, b"", 0, 0, _NO_XATTRS, None, offset))

    def _next_entry(self) -> Entry | None:
        """Read extension headers and the header they belong to; None at the end of the archive."""
        stream = self._stream
        extensions: _Extensions | None = None
        while True:
            offset = stream.offset
            if stream.at_end():
                if extensions is not None:
                    raise ArchiveError("the archive ends after an extension header", offset=offset)
                stream.finish(blocks=0, require_end=self._require_end)
                return None
            block = stream.take(BLOCK, "a header")
            if not block[0] and block == ZERO_BLOCK:
                if extensions is not None:
                    raise ArchiveError("an extension header without its entry", offset=offset)
                stream.finish(blocks=1, require_end=self._require_end)
                return None
            verify_checksum(block, offset)
            kind = block[156:157]
            if kind == b"g":
                if extensions is not None:   # Go's reader, and so the field, forgets what came before it
                    raise ArchiveError("a global PAX header between an extension header and its entry", offset=offset)
                _check_globals(pax.parse(self._extension(block, offset), offset), offset)
            elif kind in b"xLK":
                extensions = extensions or _Extensions()
                extensions.add(kind, self._extension(block, offset), offset)
            else:
                return self._entry(block, offset, extensions or _NONE)

    def _extension(self, block: bytes, offset: int) -> bytes:
        size, maximum = number(block[124:136], "size", offset), self._limits.max_pax_record
        if size > maximum:
            raise LimitExceededError(
                f"the extension header at offset {offset} has {size} bytes", limit="max_pax_record", maximum=maximum,
            )
        data = self._stream.take(size + -size % BLOCK, "an extension header")
        if block[156:157] in b"LK" and 0 not in data[:size] and any(data[size:]):   # GNU tar reads to the next NUL
            raise ArchiveError("a GNU long name that runs into its padding", offset=offset)
        return data[:size]

    def _entry(self, block: bytes, offset: int, more: _Extensions) -> Entry:
        fields = parse(block, offset)
        kind = TYPES.get(fields.flag)
        if kind is None:
            raise ArchiveError(f"an entry of the unknown type {fields.flag!r}", offset=offset)
        _, mode, uid, gid, size, seconds, flag, _ = fields
        mtime_ns = seconds * 1_000_000_000
        name = fields.name if more.name is None else more.name
        link = fields.link if more.link is None else more.link
        xattrs = _NO_XATTRS
        segments: pax.SparseMap | None = None
        if more.pax is not None:
            over = pax.overrides(more.pax, offset, self._limits)
            more.refuse_both(over, offset)
            name = name if over.path is None else over.path
            link = link if over.linkpath is None else over.linkpath
            uid, gid = (uid if over.uid is None else over.uid), (gid if over.gid is None else over.gid)
            size = size if over.size is None else over.size
            mtime_ns = mtime_ns if over.mtime_ns is None else over.mtime_ns
            xattrs, segments = over.xattrs, over.sparse
            if xattrs:
                self._totals.xattrs(xattrs)
        if uid >= _ID_END or gid >= _ID_END:
            raise ArchiveError(f"the owner {uid}:{gid} of {show(name)} is not a possible one", offset=offset)
        if not -TIME_END <= mtime_ns < TIME_END:
            mtime_ns = max(-TIME_END, min(mtime_ns, TIME_END - 1))
        self.raw_name = name
        clean = self._names.name(name, offset)
        if kind == "file" and name[-1:] == b"/":
            if size or flag != b"\0":    # to GNU tar it is a directory, to Go a file: but for archives older than ustar
                raise ArchiveError(f"{show(name)} is named as a directory but is a file", offset=offset)
            kind = "dir"
        if kind == "file":
            if more is _NONE and flag != b"S":
                self._plain.learn(block, mode & 0o7777, uid, gid, mtime_ns)
            size, holes = self._data_of(block, flag, size, segments, offset, clean)
            return Entry(clean, kind, mode & 0o7777, uid, gid, size, mtime_ns, b"", 0, 0, xattrs, holes, offset)
        assert kind in HEADER_ONLY
        if segments is not None or (more.pax is not None and more.pax.values.get("size", b"0").strip(b"0")):
            raise ArchiveError(f"{show(name)}, a {kind}, is said to have data", offset=offset)
        major, minor = self._device(block, kind, name, offset)
        link = self._link(kind, clean, link, offset)
        return Entry(clean, kind, mode & 0o7777, uid, gid, 0, mtime_ns, link, major, minor, xattrs, None, offset)

    def _link(self, kind: str, name: bytes, link: bytes, offset: int) -> bytes:
        if kind == "hardlink":
            return self._names.clean(link, "hard-link target", offset)
        return checked_link(link, name, self._limits, offset) if kind == "symlink" else b""

    @staticmethod
    def _device(block: bytes, kind: str, name: bytes, offset: int) -> tuple[int, int]:
        if kind not in ("char", "block"):
            return 0, 0
        major, minor = device(block, offset)
        if major >= 1 << 12 or minor >= 1 << 20:
            raise ArchiveError(f"{show(name)} is an impossible device {major}:{minor}", offset=offset)
        return major, minor

    def _data_of(
        self, block: bytes, flag: bytes, stored: int, given: pax.SparseMap | None, offset: int, name: bytes
    ) -> tuple[int, sparse.Segments | None]:
        """Set up the reading of a file's data; return its size with holes and its segments (or None)."""
        if stored > _MAX_SIZE:
            raise ArchiveError(f"{show(name)} claims to have {stored} bytes", offset=offset)
        size, segments = stored, None
        self._stream.left, self._stream.padding = stored, -stored % BLOCK
        if flag == b"S" or given is not None:
            size, segments = self._segments(block, flag, given, offset)
        self._totals.file(size, size - self._stream.left if segments is not None else 0, name)
        return size, segments

    def _segments(
        self, block: bytes, flag: bytes, given: pax.SparseMap | None, offset: int
    ) -> tuple[int, sparse.Segments]:
        stream, maximum = self._stream, self._limits.max_pax_record
        if flag == b"S":
            if given is not None:
                raise ArchiveError("both an old GNU and a PAX sparse map for one entry", offset=offset)
            if block[257:265] != GNU_MAGIC:   # star's is another, and other readers see a file without holes
                raise ArchiveError("a sparse file of GNU's in another format", offset=offset)
            size = number(block[483:495], "real size", offset)
            segments = sparse.old_gnu(block, stream.take, offset, maximum)
        else:
            assert given is not None
            size = given.size
            if given.segments is None and not self._with_data:
                return size, ()
            if given.segments is None:   # version 1.0: the map is in front of the data
                segments, taken = sparse.in_data(stream.take, stream.left, offset, maximum)
                stream.left -= taken
            else:
                segments = given.segments
        return size, sparse.checked(segments, size, stream.left, offset)


class _Extensions:
    """What the extension headers before an entry say of it. Two of one kind are refused."""

    __slots__ = ("link", "name", "pax")

    def __init__(self) -> None:
        self.pax: pax.Records | None = None
        self.name: bytes | None = None
        self.link: bytes | None = None

    def add(self, kind: bytes, data: bytes, offset: int) -> None:
        if kind == b"x":
            if self.pax is not None:
                raise ArchiveError("two PAX headers for one entry", offset=offset)
            self.pax = pax.parse(data, offset)
            return
        text = _terminated(data, offset)
        if (self.name if kind == b"L" else self.link) is not None:
            raise ArchiveError("two GNU long names for one entry", offset=offset)
        if kind == b"L":
            self.name = text
        else:
            self.link = text

    def refuse_both(self, over: pax.Overrides, offset: int) -> None:
        twice = over.path is not None and self.name is not None
        if twice or (over.linkpath is not None and self.link is not None):
            raise ArchiveError("both a PAX and a GNU long name for one entry", offset=offset)


_NONE = _Extensions()


def _terminated(data: bytes, offset: int) -> bytes:
    name, _, rest = data.partition(b"\0")
    if rest.strip(b"\0"):
        raise ArchiveError("a NUL byte inside a GNU long name", offset=offset)
    return name


def _check_globals(records: pax.Records, offset: int) -> None:
    """GNU tar applies them to what follows; Go's reader, and so the field, passes over them."""
    for key in records.values:
        if pax.matters(key):
            raise ArchiveError(f"a global PAX header must not set {key!r} for every entry", offset=offset)
