"""The pages of an LMDB 0.9 data file, read by hand: whether the engine may read them, and what is on them.

The engine trusts its pages: a wrong offset, length or page number makes it read outside of the file, which ends the
process by SIGBUS, SIGSEGV or abort. ``problems`` walks the trees that a meta page names and finds each of these; where
it finds none, the engine reads what is there. ``readings`` take what can still be read out of a damaged file. Nothing
here maps the file, and no bytes in it can do more than give a wrong answer; whether values are right their checksums
and the chain tell. For a file that nobody writes to, or under a read transaction, which keeps its pages from reuse.

Layout (64-bit, little-endian; mdb.c of LMDB 0.9): a page header of 16 bytes: number (8), padding (2), flags (2), lower
and upper bound of the free space (2, 2), or how many pages a large value has (4). Then the offsets of the nodes: each
length or child's number (2, 2), flags (2), length of the key (2), key, value.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise

from layerjournal.effects import Descriptor
from layerjournal.errors import DamagedError
from layerjournal.metapage import DATABASE, Database, Meta, read_metas

_HEAD = struct.Struct("<QHHHH")
_NODE = struct.Struct("<HHHH")
_NUMBER = struct.Struct("<Q")
_HEAD_BYTES, _NODE_BYTES = 16, 8
_BRANCH, _LEAF, _OVERFLOW = 0x01, 0x02, 0x04
_BIG, _SUB = 0x01, 0x02
_NONE = (1 << 64) - 1
_MAX_DEPTH = 32
_MAX_KEY = 511
_MAX_NAMED = 5
LOST = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO)
"""What the system says of a file that is not there, not a file, or not to be read any more."""

_Node = tuple[int, int, bytes, int]   # flags, length of the value or child's number, key, where the value begins


class _WrongError(Exception):
    """What a page shows cannot be. Never leaves this module."""


def problems(path: str) -> list[str]:
    """What is wrong with the structure of the data file *path*, in words. About 9 µs a page.

    A short file is a problem like others. OSError for one that is missing, or cannot be read.
    """
    with Descriptor(path, os.O_RDONLY) as fd:
        metas, wrong = read_metas(fd)
        if not metas or wrong:
            return wrong[:_MAX_NAMED]
        walk = _Walk(fd, metas[-1])
        walk.all()
        return walk.found[:_MAX_NAMED]


def damage(path: str) -> list[str]:
    """As ``problems``; that it is missing, no file, or lies on bad sectors, is one, too."""
    try:
        return problems(path)
    except OSError as error:
        if error.errno not in LOST:
            raise
        return [str(error)]


class Reading:
    """What can be read of one table, as one of the meta pages knows it. ``problems`` fills while it is read."""

    def __init__(self, path: str, meta: Meta, problems: Sequence[str], table: str) -> None:
        self._path, self._meta, self._table = path, meta, table.encode()
        self.problems = list(problems)

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values, in order; what cannot be read is left out, and said in ``problems``."""
        with Descriptor(self._path, os.O_RDONLY) as fd:
            walk = _Walk(fd, self._meta, lenient=True)
            walk.found = self.problems
            found = [value for key, value in walk.tree(self._meta.main, "main", subs=True) if key == self._table]
            if len(found) != 1 or len(found[0]) != DATABASE.size:
                self.problems.append(f"there is no table {self._table.decode()!r}")
                return
            yield from walk.tree(Database(*DATABASE.unpack(found[0])), self._table.decode())


def readings(path: str, table: str) -> list[Reading]:
    """One for each meta page that can be read, the one that counts first. OSError if these, or the file, cannot be."""
    with Descriptor(path, os.O_RDONLY) as fd:
        metas, wrong = read_metas(fd)
    return [Reading(path, meta, wrong, table) for meta in reversed(metas)]


class _Walk:
    """One walk over the trees of one meta page. ``found`` is what is wrong."""

    def __init__(self, fd: int, meta: Meta, *, lenient: bool = False) -> None:
        self._fd, self._meta, self._lenient = fd, meta, lenient
        self._size = meta.page_size
        self._seen: set[int] = set()
        self.found: list[str] = []

    def all(self) -> None:
        """Every tree; and that the list of free pages names none that is in use."""
        for key, value in self.tree(self._meta.main, "main", subs=True):
            name = key.decode(errors="replace")
            if len(value) != DATABASE.size or (database := Database(*DATABASE.unpack(value))).flags:
                self.found.append(f"the table {name!r} is not one")
                continue
            for _ in self.tree(database, name):
                pass
        free = [value for _, value in self.tree(self._meta.free, "free")]
        for value in free:
            self._free(value)

    def _free(self, value: bytes) -> None:
        numbers = struct.unpack(f"<{len(value) // 8}Q", value[:len(value) // 8 * 8])
        if not numbers or len(value) % 8 or numbers[0] > len(numbers) - 1:
            self.found.append("a list of free pages is not one")
            return
        for number in numbers[1:numbers[0] + 1]:
            if not 2 <= number <= self._meta.last_page:
                self.found.append(f"page {number} is called free, and does not exist")
            elif number in self._seen:
                self.found.append(f"page {number} is called free, and is in use or called so twice")
            self._seen.add(number)

    def tree(self, database: Database, name: str, *, subs: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """The tree's keys and values, in order. *subs*: it holds the records of other trees, and nothing else."""
        if database.root == _NONE:
            if database.depth or database.entries:
                self.found.append(f"{name}: it is empty, and should have {database.entries} entries")
            return
        count = [0, 0, 0, 0]   # entries, branches, leaves, pages of large values
        try:
            if not 1 <= database.depth <= _MAX_DEPTH:
                raise _WrongError(f"a depth of {database.depth}")
            integers = database.flags != 0
            yield from self._page(database.root, database.depth, (None, None), count, subs=subs, integers=integers)
        except _WrongError as error:
            self.found.append(f"{name}: {error}")
            return
        wanted = [database.entries, database.branch_pages, database.leaf_pages, database.overflow_pages]
        if count != wanted:
            self.found.append(f"{name}: it has {count} entries and pages of each kind, and should have {wanted}")

    def _page(
        self, number: int, depth: int, bounds: tuple[bytes | None, bytes | None], count: list[int], *, subs: bool,
        integers: bool,
    ) -> Iterator[tuple[bytes, bytes]]:
        try:
            page = self._load(number, _LEAF if depth == 1 else _BRANCH)
            nodes = self._nodes(page, branch=depth > 1)
            self._in_order([node[2] for node in nodes][1 if depth > 1 else 0:], bounds, integers=integers)
            if len(nodes) < (2 if depth > 1 else 1):
                raise _WrongError(f"page {number} holds {len(nodes)} entries")
        except _WrongError as error:
            if not self._lenient:
                raise
            self.found.append(str(error))
            return
        count[2 if depth == 1 else 1] += 1
        if depth == 1:
            count[0] += len(nodes)
            for flags, length, key, start in nodes:
                yield from self._value(page, flags, length, key, start, count, subs=subs)
            return
        keys = [bounds[0], *(key for _, _, key, _ in nodes[1:]), bounds[1]]
        for (_, child, _, _), below in zip(nodes, pairwise(keys), strict=True):
            yield from self._page(child, depth - 1, below, count, subs=subs, integers=integers)

    def _value(
        self, page: bytes, flags: int, length: int, key: bytes, start: int, count: list[int], *, subs: bool,
    ) -> Iterator[tuple[bytes, bytes]]:
        try:
            if flags not in ((_SUB,) if subs else (0, _BIG)):
                raise _WrongError(f"the entry {key[:40]!r} has the flags {flags}")
            yield key, self._large(page, length, start, count) if flags == _BIG else page[start:start + length]
        except _WrongError as error:
            if not self._lenient:
                raise
            self.found.append(str(error))

    def _large(self, page: bytes, length: int, start: int, count: list[int]) -> bytes:
        (first,) = _NUMBER.unpack_from(page, start)
        pages = (_HEAD_BYTES - 1 + length) // self._size + 1
        if not 2 <= first <= self._meta.last_page - pages + 1:
            raise _WrongError(f"a value of {length} bytes cannot be at page {first}")
        for number in range(first, first + pages):
            self._use(number)
        data = self._read(first, _HEAD_BYTES + length)
        if len(data) < _HEAD_BYTES + length:
            raise _WrongError(f"page {first} and what follows reach past the end of the file")
        stored, _, flags, low, high = _HEAD.unpack_from(data)
        if stored != first or flags != _OVERFLOW or low + (high << 16) != pages:
            raise _WrongError(f"page {first} should begin a value of {length} bytes, and does not")
        count[3] += pages
        return data[_HEAD_BYTES:]

    def _load(self, number: int, kind: int) -> bytes:
        self._use(number)
        page = self._read(number, self._size)
        if len(page) < self._size:
            raise _WrongError(f"page {number} is past the end of the file")
        stored, _, flags, lower, upper = _HEAD.unpack_from(page)
        if stored != number or flags != kind:
            raise _WrongError(f"page {number} is another page, or of another kind")
        if not _HEAD_BYTES <= lower <= upper <= self._size or lower % 2:
            raise _WrongError(f"page {number} has bounds that cannot be")
        return page

    def _read(self, number: int, count: int) -> bytes:
        try:
            return os.pread(self._fd, count, number * self._size)
        except OSError as error:
            if not self._lenient or error.errno != errno.EIO:
                raise
            raise _WrongError(f"page {number} cannot be read: {error}") from error

    def _nodes(self, page: bytes, *, branch: bool) -> list[_Node]:
        number, _, _, lower, upper = _HEAD.unpack_from(page)
        nodes, taken = [], []
        for offset in struct.unpack_from(f"<{(lower - _HEAD_BYTES) // 2}H", page, _HEAD_BYTES):
            if not upper <= offset <= self._size - _NODE_BYTES:
                raise _WrongError(f"page {number} has an entry outside of itself")
            low, high, flags, key_bytes = _NODE.unpack_from(page, offset)
            start = offset + _NODE_BYTES + key_bytes
            length = low | high << 16 | (flags << 32 if branch else 0)
            end = start if branch else start + (8 if flags == _BIG else length)
            if key_bytes > _MAX_KEY or end > self._size:
                raise _WrongError(f"page {number} has an entry that reaches past its end")
            nodes.append((flags, length, page[offset + _NODE_BYTES:start], start))
            taken.append((offset, end))
        taken.sort()
        if any(before[1] > after[0] for before, after in pairwise(taken)):
            raise _WrongError(f"page {number} has entries that overlap")
        return nodes

    @staticmethod
    def _in_order(keys: list[bytes], bounds: tuple[bytes | None, bytes | None], *, integers: bool) -> None:
        least, limit = bounds
        if integers:   # of the free list
            keys = [key[::-1] for key in keys]
            least, limit = (bound and bound[::-1] for bound in bounds)
        if any(before >= after for before, after in pairwise(keys)):
            raise _WrongError("keys are out of order")
        if keys and ((least is not None and keys[0] < least) or (limit is not None and keys[-1] >= limit)):
            raise _WrongError("keys are where nobody looks for them")

    def _use(self, number: int) -> None:
        if not 2 <= number <= self._meta.last_page or number in self._seen:
            raise _WrongError(f"page {number} is in two places, or does not exist")
        self._seen.add(number)


def check(path: str, *, tries: int = 8) -> None:
    """DamagedError unless the engine may read the data file *path*.

    Where nothing keeps its pages from reuse, commits in between can look like damage: then it is looked at again.
    """
    for _ in range(tries):
        before = _metas(path)
        found = problems(path)
        if not found:
            return
        if _metas(path) == before:
            break
    raise DamagedError(f"{path} is damaged: {'; '.join(found)}")


def _metas(path: str) -> list[Meta]:
    with Descriptor(path, os.O_RDONLY) as fd:
        return read_metas(fd)[0]
