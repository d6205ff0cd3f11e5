"""The tar-split: what a layer's tar holds besides the content of files, so that the tar can be made again to the byte.

The file ``tar-split`` lies beside ``diff/`` and is written while the tree is made. Its sha256 is in the store's journal.

Format: a packed file (``packed``) of arrays, in the order of the stream::

    ["layerstore-tar-split", 1]
    bytes                                the stream's own bytes: headers, padding, data of what is no file in the tree
    [name, path | nil, size, segments | nil]
                                         a member, after its header: its name as the archive has it; the file in
                                         ``diff/`` that holds its *size* bytes of data (nil: it has none there), and of
                                         which (offset, length) pieces they consist (nil: all of it)
    ["kept", path, number, size, sha256] the file that members so far found at *path* was replaced by a later entry; it
                                         is ``kept/<number>`` now
    ["end", bytes, kept]                 the stream's length, and how many files were kept

The name is for the format that the Go tools read (``gotarsplit``); the idea is theirs: vbatts/tar-split.
"""

from __future__ import annotations

import errno
import os
import reprlib
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from layerstore.errors import DamagedError
from layerstore.formats.packed import PackedWriter, file_digest, open_regular, read_packed
from layerstore.system import fs

__all__ = ["KEPT", "NAME", "End", "Kept", "Member", "MemberRow", "TarSplitWriter", "kept_problems", "read_tar_split"]

NAME = "tar-split"
KEPT = "kept"
MAGIC = "layerstore-tar-split"
VERSION = 1
_WHAT = "a layer's tar-split"
_RAW_PIECE = 1 << 20                     # bytes of one record of raw bytes at most

Segments = tuple[tuple[int, int], ...]


class Member(NamedTuple):
    """One member of the archive, after its header's bytes. ``path`` None: its data, if any, is among the raw bytes."""

    name: bytes
    path: bytes | None = None
    size: int = 0
    segments: Segments | None = None


# the same before it is written; a plain tuple does, and is made in a third of the time
MemberRow = tuple[bytes, bytes | None, int, Segments | None]


class Kept(NamedTuple):
    """The file that members *before* this record found at ``path`` is ``kept/<number>``."""

    path: bytes
    number: int
    size: int
    sha256: bytes


class End(NamedTuple):
    size: int
    kept: int


class TarSplitWriter:
    """Write ``tar-split`` into *dir_fd*, beside ``diff/``. It must not exist.

    Durability: none here: the tree is made durable as a whole, later (the write order, step 4).
    """

    def __init__(self, dir_fd: int) -> None:
        self._dir_fd = dir_fd
        self._file = PackedWriter(dir_fd, NAME, MAGIC, VERSION)
        self._raw: list[bytes] = []
        self._raw_size = self._size = self._kept = 0

    def raw(self, data: bytes | memoryview) -> None:
        """Bytes of the stream that are no file's content."""
        self._raw.append(bytes(data))
        self._raw_size += len(data)
        if self._raw_size >= _RAW_PIECE:
            self._flush()

    def members(self, rows: Iterable[tuple[bytes, object, MemberRow]]) -> None:
        """Members, each with the stream's bytes before its data; with ``path``, its data is in the tree."""
        records: list[bytes | MemberRow] = []
        for raw, _, member in rows:
            if self._raw or len(raw) > _RAW_PIECE:
                self._file.put_all(records)
                records = []
                self.raw(raw)
                self._flush()
            elif raw:
                records.append(raw)
                self._size += len(raw)
            records.append(member)
            self._size += member[2]
        self._file.put_all(records)

    def keep(self, from_fd: int, name: bytes, path: bytes) -> None:
        """Move the file *name* in *from_fd*, known as *path*, out of the tree's way: a later entry takes its place."""
        if not self._kept:
            fs.make_dir(self._dir_fd, KEPT, point="unpack.keep.mkdir")
        with fs.open_dir(KEPT, self._dir_fd) as kept_fd:
            fs.move(from_fd, os.fsdecode(name), kept_fd, str(self._kept), point="unpack.keep.rename")
            digest, size = _digest_and_size(kept_fd, str(self._kept))
        self._flush()
        self._file.put(("kept", path, self._kept, size, bytes.fromhex(digest.removeprefix("sha256:"))))
        self._kept += 1

    def finish(self) -> str:
        """End the file, close it, and return its digest."""
        self._flush()
        self._file.put(("end", self._size, self._kept))
        return self._file.finish()

    def abandon(self) -> None:
        """Close the file without ending it: a reader will refuse it."""
        self._file.abandon()

    def _flush(self) -> None:
        if self._raw:
            joined = b"".join(self._raw)
            for start in range(0, len(joined), _RAW_PIECE):
                self._file.put(joined[start : start + _RAW_PIECE])
            self._size += len(joined)
            self._raw.clear()
            self._raw_size = 0


def _digest_and_size(dir_fd: int, name: str) -> tuple[str, int]:
    """Of a file of any mode: an archive may have made one that its own owner cannot read."""
    status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    readable = bool(status.st_mode & stat.S_IRUSR)
    if not readable:
        os.chmod(name, 0o600, dir_fd=dir_fd)
    digest = file_digest(dir_fd, name)
    if not readable:   # the same file may still be in the tree, as a hard link
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=dir_fd)
    return digest, status.st_size


def read_tar_split(fd: int) -> Iterator[bytes | Member | Kept | End]:
    """The records of the file open as *fd*, the last of them its ``End``. DamagedError unless it is whole."""
    size = kept = 0
    end: End | None = None
    for item in read_packed(fd, MAGIC, VERSION, _WHAT):
        if end is not None:
            raise DamagedError(f"{_WHAT} has records after its end")
        record = _decoded(item)
        if isinstance(record, bytes):
            size += len(record)
        elif isinstance(record, Member):
            size += record.size
        elif isinstance(record, Kept):
            kept += 1
        else:
            end = record
            if (size, kept) != end:
                raise DamagedError(f"{_WHAT} is of {size} bytes and keeps {kept} files, not {end.size} and {end.kept}")
        yield record
    if end is None:
        raise DamagedError(f"{_WHAT} has no end")


def _decoded(item: Any) -> bytes | Member | Kept | End:
    if isinstance(item, bytes):
        return item
    if isinstance(item, tuple):
        record: Member | Kept | End | None = None
        if len(item) == 4 and _is_member(*item):
            record = Member(*item)
        elif len(item) == 5 and item[0] == "kept" and _is_kept(*item[1:]):
            record = Kept(*item[1:])
        elif len(item) == 3 and item[0] == "end" and all(type(n) is int and n >= 0 for n in item[1:]):
            record = End(*item[1:])
        if record is not None:
            return record
    raise DamagedError(f"{_WHAT} has the unknown record {reprlib.repr(item)}")


def _is_member(name: Any, path: Any, size: Any, segments: Any) -> bool:
    if not (isinstance(name, bytes) and type(size) is int and size >= 0):
        return False
    if path is None:
        return size == 0 and segments is None
    return _is_path(path) and (segments is None or _are_segments(segments, size))


def _are_segments(segments: Any, size: int) -> bool:
    return (
        isinstance(segments, tuple)
        and all(isinstance(s, tuple) and len(s) == 2 and all(type(n) is int and n >= 0 for n in s) for s in segments)
        and sum(length for _, length in segments) == size
    )


def _is_kept(path: Any, number: Any, size: Any, digest: Any) -> bool:
    whole = all(type(n) is int and n >= 0 for n in (number, size))
    return _is_path(path) and whole and isinstance(digest, bytes) and len(digest) == 32


def _is_path(path: Any) -> bool:
    return isinstance(path, bytes) and bool(path) and not any(part in (b"", b".", b"..") for part in path.split(b"/"))


def kept_problems(
    tree_fd: int, digest: str, read: Callable[[int], None] = lambda _n: None,
) -> Iterator[tuple[bytes, str]]:
    """What is wrong with ``tar-split`` in a layer's directory, given its *digest*, and with the files it keeps.

    *read* is told of each *n* bytes that are read for a digest.
    Pairs of the kept file's place in the layer's directory (of ``tar-split`` itself: empty) and what is wrong with it.
    """
    actual = file_digest(tree_fd, NAME, read)
    if actual != digest:
        yield b"", f"the tar-split's digest is {actual}, not {digest}"
        return
    with open_regular(NAME, tree_fd) as fd:
        kept = [record for record in read_tar_split(fd) if isinstance(record, Kept)]
    for each in kept:
        where = f"{KEPT}/{each.number}"
        try:
            with fs.open_dir(KEPT, tree_fd) as kept_fd:
                right = file_digest(kept_fd, str(each.number), read) == f"sha256:{each.sha256.hex()}"
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                raise
            right = False
        if not right:
            yield where.encode(), f"{where}, once {os.fsdecode(each.path)!r}, is not what it was"
