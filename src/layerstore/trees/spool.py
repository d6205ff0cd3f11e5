r"""The spool: what was fetched of one remote blob, kept in the file ``blob`` of the staging tree that it is fetched for.

So a pull that ends at 90 % need not fetch the 90 % again, whatever the blob's format (ADR 0017). A header says which
blob it is; then come pieces, appended in the order in which they were fetched::

    header   "layerspool 1\n" · size of the blob · its digest, 32 bytes · CRC-32 of all that
    piece    "piece" · offset · length · CRC-32 of the data · CRC-32 of all that · the data

Numbers are little-endian; offsets and sizes 8 bytes, the others 4. Nothing is synced and nothing is believed: opening
reads headers only and stops at the first that is not whole, a piece's checksum is looked at when it is read, and what is
made of the pieces is verified by the blob's digest or the layer's diffID as if all had been fetched.

Keeping is never a reason to fail: an error of the disk ends it and gives its space back, and so does a disk that has
hardly room for what is made of the blob. Here are the file and its rules only; who reads through it is ``spooled``'s,
which trees are kept for it ``recovery``'s.
"""

from __future__ import annotations

import os
import stat
import struct
import threading
import zlib
from bisect import bisect_right, insort
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from layerstore.system import fs
from layerstore.system.descriptors import Descriptor
from layerstore.system.removing import remove_tree
from layerstore.system.room import free_bytes

__all__ = ["NAME", "PIECE", "WORTH_BYTES", "Spool", "kept_ns", "length", "start_over"]

NAME = "blob"
PIECE = 1 << 17            # bytes of a stream that are kept at once: a kill costs no more
WORTH_BYTES = 1 << 16      # a spool with less is not kept: asking for the rest takes as long as fetching it all

_MAGIC, _MARK = b"layerspool 1\n", b"piece"
_HEAD, _PIECE_HEAD = struct.Struct("<13sQ32s"), struct.Struct("<5sQII")
_CRC = struct.Struct("<I")
_HEAD_BYTES, _PIECE_HEAD_BYTES = _HEAD.size + _CRC.size, _PIECE_HEAD.size + _CRC.size
_SMALLEST = 1 << 12        # what the bound allows headers for: pieces of this size
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class _Piece:
    length: int
    at: int      # of the data, in the file
    crc: int


class Spool:
    """The spool in the tree open as *dir_fd*, of the blob with *digest* and *size* bytes; made if there is none.

    What is there and is not this blob's is replaced. Used by any number of threads. ``close`` it. Raises nothing for a
    disk that fails: then nothing is kept. Nor is anything once fewer than twice *keep_free* bytes are free on the disk:
    who is to leave so much free itself comes first, and what was kept makes room for it.

    Durability: none.
    """

    def __init__(self, dir_fd: int, digest: str, size: int, keep_free: int = 0) -> None:
        self.size, self._least_free = size, 2 * keep_free
        self._dir_fd, self._head = dir_fd, _sealed(_HEAD.pack(_MAGIC, size, bytes.fromhex(digest.partition(":")[2])))
        self._most = _HEAD_BYTES + size + _PIECE_HEAD_BYTES * (size // _SMALLEST + 64)
        self._lock = threading.Lock()
        self._pieces: dict[int, _Piece] = {}     # by offset in the blob; they do not overlap
        self._starts: list[int] = []
        self._file: Descriptor | None = None
        self._end = _HEAD_BYTES
        try:
            self._file = self._opened()
        except OSError:
            self._give_up()

    def _opened(self) -> Descriptor:
        with suppress(OSError):
            file = Descriptor(NAME, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self._dir_fd)
            if stat.S_ISREG(os.fstat(file.fd).st_mode) and os.pread(file.fd, _HEAD_BYTES, 0) == self._head:
                self._scan(file.fd)
                return file
        self._pieces, self._starts, self._end = {}, [], _HEAD_BYTES
        if fs.exists(self._dir_fd, NAME):
            remove_tree(self._dir_fd, NAME, point="stage.spool.unlink")
        fs.write_new(self._dir_fd, NAME, self._head, point="stage.spool.create")
        return Descriptor(NAME, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW, dir_fd=self._dir_fd)

    def _scan(self, fd: int) -> None:
        """The pieces' headers, up to the first that is torn, or lies; what is behind it is cut off."""
        whole = os.fstat(fd).st_size
        while len(head := os.pread(fd, _PIECE_HEAD_BYTES, self._end)) == _PIECE_HEAD_BYTES:
            mark, start, length, crc = _PIECE_HEAD.unpack_from(head)
            at = self._end + _PIECE_HEAD_BYTES
            fits = 0 < length <= self.size - start and at + length <= whole
            torn = mark != _MARK or _sealed(head[:-_CRC.size]) != head
            if torn or not fits or self._gaps(start, length) != [(start, length)]:
                break
            self._add(start, _Piece(length, at, crc))
            self._end = at + length
        if self._end != whole:
            fs.cut(fd, self._end, point="stage.spool.cut")

    # -- reading -------------------------------------------------------------------------------------------------

    def read(self, start: int, length: int = PIECE) -> bytes | None:
        """The bytes from *start* on, of one piece and at most *length*; None if they are not here, or not right."""
        with self._lock:
            self._give_way()
            found = self._around(start)
            if found is None or self._file is None:
                return None
            first, piece = found
            data = self._data(piece)
            if data is None:
                del self._pieces[first]
                self._starts.remove(first)
                return None
        return data[start - first:start - first + length]

    def _data(self, piece: _Piece) -> bytes | None:
        assert self._file is not None
        try:
            data = os.pread(self._file.fd, piece.length, piece.at)
        except OSError:
            return None
        return data if len(data) == piece.length and zlib.crc32(data) == piece.crc else None

    def missing(self, start: int, length: int) -> list[tuple[int, int]]:
        """Which parts of *length* bytes from *start* are not here: (start, length), ascending and apart."""
        with self._lock:
            return self._gaps(start, length)

    def _gaps(self, start: int, length: int) -> list[tuple[int, int]]:
        gaps, end = [], start + length
        while start < end:
            found = self._around(start)
            if found is not None:
                start = found[0] + found[1].length
                continue
            number = bisect_right(self._starts, start)
            until = min(end, self._starts[number]) if number < len(self._starts) else end
            gaps.append((start, until - start))
            start = until
        return gaps

    def _around(self, start: int) -> tuple[int, _Piece] | None:
        """The piece that byte *start* is in."""
        number = bisect_right(self._starts, start) - 1
        if number < 0:
            return None
        first = self._starts[number]
        return (first, self._pieces[first]) if start < first + self._pieces[first].length else None

    # -- keeping -------------------------------------------------------------------------------------------------

    def keep(self, start: int, data: bytes) -> None:
        """Keep what was fetched from byte *start* on, but for what is here already. Errors end the keeping."""
        with self._lock:
            for first, length in self._gaps(start, len(data)):
                self._append(first, data[first - start:first - start + length])

    def _append(self, start: int, data: bytes) -> None:
        at, crc = self._end + _PIECE_HEAD_BYTES, zlib.crc32(data)
        self._give_way()
        if self._file is None or at + len(data) > self._most:
            return
        try:
            head = _sealed(_PIECE_HEAD.pack(_MARK, start, len(data), crc))
            fs.extend(self._file.fd, [head, data], point="stage.spool.keep")
        except OSError:
            self._give_up()
            return
        self._add(start, _Piece(len(data), at, crc))
        self._end = at + len(data)

    def _add(self, start: int, piece: _Piece) -> None:
        self._pieces[start] = piece
        insort(self._starts, start)

    def _give_way(self) -> None:
        """What is unpacked beside it looks at the same disk, and would fail for what is kept here."""
        if self._least_free and self._file is not None:
            with suppress(OSError):
                if free_bytes(self._dir_fd) >= self._least_free:
                    return
            self._give_up()

    def _give_up(self) -> None:
        self._forget()
        with suppress(OSError):
            self.unlink()

    def _forget(self) -> None:
        self._pieces, self._starts, file, self._file = {}, [], self._file, None
        if file is not None:
            file.close()

    def unlink(self) -> None:
        """Remove the file: what it is good for is done, or it is not to be relied on. Nothing is kept any more."""
        self._forget()
        fs.unlink(self._dir_fd, NAME, point="stage.spool.unlink")

    def close(self) -> None:
        """Close the file; what is in it stays."""
        with self._lock:
            self._forget()


def _sealed(head: bytes) -> bytes:
    return head + _CRC.pack(zlib.crc32(head))


# -- trees with a spool ------------------------------------------------------------------------------------------------


def kept_ns(tree_fd: int, content_key: str | None) -> int | None:
    """When the spool of the tree was last added to; None if it has none that is of that content and worth keeping."""
    try:
        with Descriptor(NAME, _READ, dir_fd=tree_fd) as fd:
            status, head = os.fstat(fd), os.pread(fd, _HEAD_BYTES, 0)
    except OSError:
        return None
    whole = len(head) == _HEAD_BYTES and head == _sealed(head[:-_CRC.size]) and stat.S_ISREG(status.st_mode)
    if not whole or status.st_size < WORTH_BYTES:
        return None
    magic, _size, digest = _HEAD.unpack_from(head)
    return status.st_mtime_ns if magic == _MAGIC and content_key == f"sha256:{digest.hex()}" else None


def length(staging_fd: int, txid: str) -> int:
    """How much the spool of the tree *txid* holds, in bytes and roughly, for whoever waits for it. 0 without one."""
    try:
        return os.stat(f"{txid}/{NAME}", dir_fd=staging_fd, follow_symlinks=False).st_size
    except OSError:
        return 0


def start_over(tree_fd: int, *, keep: Iterable[str]) -> None:
    """Empty a half-made tree, but for the names *keep*, and give it an empty ``diff/``. The caller has its lock.

    What a process that is dead, or content that was not right, has left of ``diff/`` and beside it is never built on.
    A crash in it leaves a tree that is emptied again, or swept. PrivilegeError for what may not be removed.
    """
    keeping = set(keep)
    for name in fs.names_in(tree_fd):
        if name not in keeping:
            remove_tree(tree_fd, name, point="stage.over.unlink")
    fs.make_dir(tree_fd, "diff", point="stage.diff", mode=0o755)
