"""The two meta pages of an LMDB 0.9 data file, read by hand, before the engine maps the file.

A file that is shorter than its meta page says kills the process that reads it, by SIGBUS. So this is asked first.
Layout (64-bit, little-endian; mdb.c of LMDB 0.9): a page header of 16 bytes with the flags at 10; magic (4),
version (4), address (8), map size (8), two databases of 48 bytes (the first's first field is the page size),
last page (8), transaction (8).
"""

from __future__ import annotations

import os
import struct

from layerjournal.errors import DamagedError, MissingError

_FIELDS = struct.Struct("<10xH4xIIQQI")     # flags, magic, version, address, map size, page size
_TAIL = struct.Struct("<QQ")                # last page, transaction
_TAIL_OFFSET = 136
_MAGIC = 0xBEEFC0DE
_VERSION = 1                                # of the 0.9 format; 1.0 has 3
_P_META = 0x08
_PAGE_SIZES = (4096, 8192, 16384, 32768, 65536)
_NEEDED = _TAIL_OFFSET + _TAIL.size


def expected_size(path: str) -> tuple[int, int]:
    """``(size, expected)`` of the data file *path*, in bytes: O(1). DamagedError if it has no valid meta page."""
    try:
        with open(path, "rb") as file:
            metas = list(_metas(file.fileno()))
            size = os.fstat(file.fileno()).st_size   # after the metas: a commit in between only makes it longer
    except FileNotFoundError as error:
        raise MissingError(f"there is no {path}") from error
    if not metas:
        raise DamagedError(f"{path} has no valid meta page: it is not an LMDB 0.9 file, or its beginning was lost")
    _transaction, last_page, page_size = max(metas)
    return size, (last_page + 1) * page_size


def _metas(fd: int) -> list[tuple[int, int, int]]:
    found = []
    for page_size in _PAGE_SIZES:
        for offset in (0, page_size):
            meta = _meta(os.pread(fd, _NEEDED, offset))
            if meta is not None and meta[2] == page_size:
                found.append(meta)
    return found


def _meta(data: bytes) -> tuple[int, int, int] | None:
    if len(data) < _NEEDED:
        return None
    flags, magic, version, _address, _map_size, page_size = _FIELDS.unpack_from(data)
    if magic != _MAGIC or version != _VERSION or not flags & _P_META:
        return None
    last_page, transaction = _TAIL.unpack_from(data, _TAIL_OFFSET)
    return transaction, last_page, page_size
