"""The two meta pages of an LMDB 0.9 data file, read by hand, before the engine maps the file.

They have no checksum, and a wrong one is worse than none: a page number too high kills the reader by SIGBUS, a
transaction number too high shows the state of before the last commit as the newest. So whatever they must agree upon is
asked first. Layout (64-bit, little-endian; mdb.c of LMDB 0.9): a page header of 16 bytes with the page's number at 0
and the flags at 10; magic (4), version (4), address (8), map size (8), two databases of 48 bytes (the first's first
field is the page size), last page (8), transaction (8). Transaction n is written to page n mod 2.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from layerjournal.effects import Descriptor
from layerjournal.errors import DamagedError, MissingError

P_META = 0x08
DATABASE = struct.Struct("<IHHQQQQQ")
_FIELDS = struct.Struct("<Q2xHIIIQQ")       # number, flags, (lower and upper), magic, version, address, map size
_TAIL = struct.Struct("<QQ")                # last page, transaction
_FREE, _MAIN, _TAIL_OFFSET = 40, 88, 136
_MAGIC = 0xBEEFC0DE
_VERSION = 1                                # of the 0.9 format; 1.0 has 3
_PAGE_SIZES = (4096, 8192, 16384, 32768, 65536)
_NEEDED = _TAIL_OFFSET + _TAIL.size
_INTEGER_KEYS = 0x08                        # the free list's keys are transaction numbers
_MAX_MAP = 1 << 47
_TRIES = 16


class Database(NamedTuple):
    """One B-tree's record: where its root is, and what it should have."""

    page_size: int      # of the free list only; else 0
    flags: int
    depth: int
    branch_pages: int
    leaf_pages: int
    overflow_pages: int
    entries: int
    root: int


class Meta(NamedTuple):
    """A meta page. Of two, the one with the higher transaction counts: it sorts last."""

    transaction: int
    last_page: int
    page_size: int
    map_size: int
    free: Database
    main: Database


def expected_size(path: str) -> tuple[int, int]:
    """``(size, expected)`` of the data file *path*, in bytes: O(1). DamagedError if its meta pages cannot be right."""
    try:
        with Descriptor(path, os.O_RDONLY) as fd:
            metas, problems = read_metas(fd)
            size = os.fstat(fd).st_size   # after the metas: a commit in between only makes it longer
    except FileNotFoundError as error:
        raise MissingError(f"there is no {path}") from error
    except IsADirectoryError as error:
        raise DamagedError(f"{path} is a directory") from error
    if not metas:
        raise DamagedError(f"{path} has no valid meta page: it is not an LMDB 0.9 file, or its beginning was lost")
    if problems:
        raise DamagedError(f"{path}: {'; '.join(problems)}")
    newest = metas[-1]
    return size, (newest.last_page + 1) * newest.page_size


def read_metas(fd: int) -> tuple[list[Meta], list[str]]:
    """The meta pages that can be read, the one that counts last; and what speaks against them, in words.

    A commit in between may show one of before and one of after it: then they are read again.
    """
    tries, found = _TRIES, _both(fd)
    while tries and found != (again := _both(fd)):
        tries, found = tries - 1, again
    page_size = next((meta.page_size for meta in found if meta is not None), 0)
    problems = []
    for number, meta in enumerate(found):
        problems += _problems(number, meta, page_size)
    first, second = (0 if meta is None else meta.transaction for meta in found)
    if not problems and abs(first - second) > 1:
        problems.append(f"its meta pages are of transactions {first} and {second}, which do not follow each other")
    return sorted(meta for meta in found if meta is not None), problems



def _both(fd: int) -> list[Meta | None]:
    for page_size in _PAGE_SIZES:
        found = [_meta(os.pread(fd, _NEEDED, offset), page_size) for offset in (0, page_size)]
        if any(found):
            return found
    return [None, None]


def _meta(data: bytes, page_size: int) -> Meta | None:
    if len(data) < _NEEDED:
        return None
    _number, flags, _bounds, magic, version, _address, map_size = _FIELDS.unpack_from(data)
    free, main = (Database(*DATABASE.unpack_from(data, offset)) for offset in (_FREE, _MAIN))
    if magic != _MAGIC or version != _VERSION or not flags & P_META or free.page_size != page_size:
        return None
    last_page, transaction = _TAIL.unpack_from(data, _TAIL_OFFSET)
    return Meta(transaction, last_page, page_size, map_size, free, main)


def _problems(number: int, meta: Meta | None, page_size: int) -> list[str]:
    if meta is None:
        return [f"its meta page {number} is not one"]
    found = []
    if meta.transaction and meta.transaction % 2 != number:
        found.append(f"its meta page {number} claims to be of transaction {meta.transaction}")
    if meta.map_size > _MAX_MAP or meta.map_size < (meta.last_page + 1) * page_size:
        found.append(f"its meta page {number} claims a map of {meta.map_size} bytes for {meta.last_page + 1} pages")
    if meta.free.flags != _INTEGER_KEYS or meta.main.flags != 0:
        found.append(f"its meta page {number} has flags that are never set")
    return found
