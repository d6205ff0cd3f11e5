"""A layer's ``digests``: where in it content with a given digest is said to be. Written and read here, believed nowhere.

The side file lies beside ``manifest``; its format is in docs/on-disk.md. It is a hint, and no journal vouches for it: one
that is torn, old, absent or malicious costs a look in the wrong place, because whoever takes content by it hashes what
he takes. So reading stops quietly at what cannot be right, and every length is bounded before it is believed.

Written in blocks while the tree is made, so that a million files cost no more memory than a block. Within one, the
first eight bytes of all digests lie together: what is wanted and what is here meet in one pass of ``set.intersection``.
"""

from __future__ import annotations

import os
import struct
import sys
import zlib
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from types import TracebackType
from typing import NamedTuple, Self

from layerstore.formats.packed import open_regular
from layerstore.system import fs
from layerstore.system.descriptors import NEW_FILE, Descriptor

__all__ = ["NAME", "DigestsWriter", "Found", "Paths", "Reader", "prefix", "prefixes"]

NAME = "digests"

_TINY = 64                               # bytes: a layer that has only smaller files is not worth an index
_MAGIC = b"layerstore-digests\0\0"
_VERSION = 1
_HEADER = struct.Struct("<20sI")
_BLOCK = struct.Struct("<III")           # rows, paths, bytes of the packed rest
_ROWS = 16_384                           # of a block as it is written, or …
_PATH_BYTES = 1 << 20                    # … bytes of its paths
_MOST_ROWS = 1 << 16                     # of a block that is read
_MOST_REST = 1 << 23                     # bytes of the rest of a block, packed and not
_MOST_PATH = 4_096
_HEAD, _TAIL = 8, 24                     # bytes of a digest: together in front, and the rest
_NUMBERS = 4 + 8 + 8                     # bytes of a row's number of its path, offset, length


class Found(NamedTuple):
    """What a row says: *length* bytes at *offset* of the file *path*, relative to ``diff/``, have the digest."""

    digest: bytes
    path: bytes
    offset: int
    length: int


class DigestsWriter:
    """Write ``digests`` into *dir_fd*; it must not exist. Nothing is written where there is next to nothing to say.

    ``add_file`` and ``add_chunk`` are for one thread. Durability: none here: the tree is made durable as a whole.
    """

    def __init__(self, dir_fd: int) -> None:
        self._dir_fd = dir_fd
        self._file: Descriptor | None = None
        self._worth = False
        self._clear()

    def _clear(self) -> None:
        self._heads, self._tails = bytearray(), bytearray()
        self._of, self._offsets, self._lengths = array("I"), array("Q"), array("Q")
        self._paths: list[bytes] = []
        self._path_bytes = 0

    def add_file(self, path: bytes, size: int, sha256: bytes) -> None:
        """The regular file *path* has *size* bytes with that digest (32 bytes)."""
        if size:
            self._add(path, 0, size, sha256)

    def add_chunk(self, path: bytes, offset: int, length: int, sha256: bytes) -> None:
        """*length* bytes at *offset* of the file *path* have that digest. Those of one path are best told together."""
        if length:
            self._add(path, offset, length, sha256)

    def _add(self, path: bytes, offset: int, length: int, sha256: bytes) -> None:
        paths = self._paths
        if not paths or paths[-1] != path:
            paths.append(path)
            self._path_bytes += len(path) + 1
        self._heads += sha256[:_HEAD]
        self._tails += sha256[_HEAD:]
        self._of.append(len(paths) - 1)
        self._offsets.append(offset)
        self._lengths.append(length)
        self._worth |= length >= _TINY
        if len(self._of) >= _ROWS or self._path_bytes >= _PATH_BYTES:
            self._flush()

    def _flush(self) -> None:
        rows = len(self._of)
        if not rows:
            return
        rest = b"".join((*(_little(each).tobytes() for each in (self._of, self._offsets, self._lengths)),
                         b"\0".join(self._paths)))
        packed = zlib.compress(rest, 1)
        if self._file is None:
            self._file = Descriptor(NAME, NEW_FILE, dir_fd=self._dir_fd)
            fs.write_all(self._file.fd, _HEADER.pack(_MAGIC, _VERSION))
        block = b"".join((_BLOCK.pack(rows, len(self._paths), len(packed)), self._heads, self._tails, packed))
        fs.write_all(self._file.fd, block)
        self._clear()

    def start_over(self) -> None:
        """Forget what was told so far. The file, if there was one, has been removed."""
        self.close()
        self._file, self._worth = None, False
        self._clear()

    def finish(self) -> None:
        """Write what is left, and close the file."""
        if self._worth or self._file is not None:
            self._flush()
        self.close()

    def close(self) -> None:
        """Close the file without what was not written yet: readers take what is there."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None,
    ) -> None:
        self.close()


def prefix(digest: bytes) -> int:
    """By what a digest is looked for: the number that its first eight bytes are."""
    return int.from_bytes(digest[:_HEAD], "little")


def prefixes(wanted: Collection[bytes]) -> dict[int, list[bytes]]:
    """The digests *wanted* by their beginnings, for ``Reader.find``."""
    found: dict[int, list[bytes]] = {}
    for digest in wanted:
        found.setdefault(prefix(digest), []).append(digest)
    return found


class Reader:
    """The ``digests`` of the layer whose directory is *dir_fd*. FileNotFoundError if it has none.

    ``size`` is bytes; 0 for what is no such file. Nothing that is in it raises; what cannot be read raises OSError.
    """

    def __init__(self, dir_fd: int) -> None:
        self._file = open_regular(NAME, dir_fd)
        status = os.fstat(self._file.fd)
        header = os.pread(self._file.fd, _HEADER.size, 0)
        sound = header == _HEADER.pack(_MAGIC, _VERSION)   # of a fifo and the like there is nothing to read
        self.size = status.st_size if sound else 0

    def find(self, wanted: Mapping[int, Collection[bytes]]) -> Iterator[Found]:
        """Rows with digests that are *wanted* (``prefixes``), in the order of the file. The same digest may come again."""
        keys = set(wanted)
        for block in self._blocks():
            heads = _little(array("Q", os.pread(self._file.fd, block.rows * _HEAD, block.at)))
            hits = keys.intersection(heads)
            if hits:
                yield from self._rows(block, [n for n, head in enumerate(heads) if head in hits], heads, wanted)

    def _rows(
        self, block: _Block, numbers: list[int], heads: array[int], wanted: Mapping[int, Collection[bytes]],
    ) -> Iterator[Found]:
        tails = os.pread(self._file.fd, block.rows * _TAIL, block.at + block.rows * _HEAD)
        rest = self._rest(block)
        if rest is None or len(tails) != block.rows * _TAIL:
            return
        for n in numbers:
            digest = heads[n].to_bytes(_HEAD, "little") + tails[n * _TAIL : (n + 1) * _TAIL]
            if digest in wanted[heads[n]]:
                found = rest.row(n, digest)
                if found is not None:
                    yield found

    def paths(self) -> Iterator[Paths]:
        """What it says of paths, block by block: for who looks for a path rather than for a digest."""
        for block in self._blocks():
            rest = self._rest(block)
            if rest is not None:
                yield rest

    def _rest(self, block: _Block) -> Paths | None:
        packed = os.pread(self._file.fd, block.packed, block.at + block.rows * (_HEAD + _TAIL))
        unpacker = zlib.decompressobj()
        try:
            data = unpacker.decompress(packed, _MOST_REST)
        except zlib.error:
            return None
        if not unpacker.eof or len(data) < block.rows * _NUMBERS:
            return None
        return Paths(data, block.rows)

    def _blocks(self) -> Iterator[_Block]:
        at = _HEADER.size
        while at + _BLOCK.size <= self.size:
            header = os.pread(self._file.fd, _BLOCK.size, at)
            if len(header) != _BLOCK.size:
                return
            rows, _paths, packed = _BLOCK.unpack(header)
            at += _BLOCK.size
            end = at + rows * (_HEAD + _TAIL) + packed
            if not 0 < rows <= _MOST_ROWS or packed > _MOST_REST or end > self.size:
                return
            yield _Block(at, rows, packed)
            at = end

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Block(NamedTuple):
    at: int
    rows: int
    packed: int


class Paths:
    """The numbers and paths of one block."""

    def __init__(self, data: bytes, rows: int) -> None:
        self._of = _little(array("I", data[: rows * 4]))
        self._offsets = _little(array("Q", data[rows * 4 : rows * 12]))
        self._lengths = _little(array("Q", data[rows * 12 : rows * 20]))
        self.names = data[rows * _NUMBERS :].split(b"\0", rows)

    def whole_files(self) -> set[bytes]:
        """Paths of which it says one thing only: so it knows of no chunks in them."""
        names = self.names
        once = (number for number, rows in Counter(self._of).items() if rows == 1 and number < len(names))
        return {names[number] for number in once if _clean(names[number])}

    def row(self, n: int, digest: bytes) -> Found | None:
        """What row *n* says of *digest*; None where it cannot be."""
        number, offset, length = self._of[n], self._offsets[n], self._lengths[n]
        if number >= len(self.names) or not length or offset + length >= 1 << 63 or not _clean(self.names[number]):
            return None
        return Found(digest, self.names[number], offset, length)


def _clean(path: bytes) -> bool:
    return 0 < len(path) < _MOST_PATH and not any(part in (b"", b".", b"..") for part in path.split(b"/"))


def _little(numbers: array[int]) -> array[int]:
    """The same in the file's order of bytes, or back."""
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
