"""Packed side files: one zstd frame of msgpack arrays, one after another. The only module that imports msgpack.

``manifest`` and ``tar-split`` are such files. Each begins with ``[magic, version]`` and lies beside ``diff/``; its
sha256 is in the store's journal, so that it vouches for what the file says. What the arrays mean is their owner's.
"""

from __future__ import annotations

import hashlib
import os
import reprlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import msgpack

from layerstore.errors import CompressionError, DamagedError, LimitExceededError
from layerstore.formats.compression import decompressed
from layerstore.formats.compression.writing import ZstdWriter
from layerstore.model import Limits
from layerstore.system.descriptors import NEW_FILE, Descriptor

__all__ = ["PackedWriter", "file_digest", "open_regular", "pack", "read_chunks", "read_packed", "unpack"]

_CHUNK = 1 << 20
_MAX_RECORD = 32 << 20                   # bytes; names and a whole PAX header of attributes fit many times
_BATCH = 256                             # records, or …
_BATCH_BYTES = 1 << 18                   # … bytes that are compressed at once: the call costs more than a record


def pack(value: Any) -> bytes:
    """One value by itself, as it is."""
    return bytes(msgpack.packb(value))


def unpack(data: bytes) -> Any:
    """The value of ``pack``; its lists are tuples. For bytes that are known to be those."""
    return msgpack.unpackb(data, use_list=False, strict_map_key=False)


class PackedWriter:
    """Write the file *name* into *dir_fd*, record by record. It must not exist.

    Durability: none here: the tree is made durable as a whole, later (the write order, step 4).
    """

    def __init__(self, dir_fd: int, name: str, magic: str, version: int) -> None:
        def make(name: str, _flags: int) -> int:
            return os.open(name, NEW_FILE, 0o600, dir_fd=dir_fd)

        self._file = open(name, "wb", buffering=_CHUNK, opener=make)  # noqa: SIM115 - closed by finish and abandon
        self._hash = hashlib.sha256()
        self._zstd = ZstdWriter(_sink(self._file, self._hash))
        self._packer = msgpack.Packer(use_bin_type=True, autoreset=False)   # gathers what is packed
        self._pack = self._packer.pack
        self._pending = 0
        self.put((magic, version))

    def put(self, record: Any) -> None:
        """Add one record: whatever msgpack can hold."""
        self._pack(record)
        self._pending += 1
        if self._pending >= _BATCH or self._packer.getbuffer().nbytes >= _BATCH_BYTES:
            self._flush()

    def put_all(self, records: list[Any]) -> None:
        """The same of several, which are not long together."""
        for record in records:
            self._pack(record)
        self._pending += len(records)
        if self._pending >= _BATCH or self._packer.getbuffer().nbytes >= _BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        self._zstd.write(self._packer.bytes())
        self._packer.reset()
        self._pending = 0

    def finish(self) -> str:
        """End the file, close it, and return its digest."""
        self._flush()
        self._zstd.close()
        self._file.close()
        return "sha256:" + self._hash.hexdigest()

    def abandon(self) -> None:
        """Close the file without ending it: a reader will refuse it."""
        self._file.close()


def _sink(file: BinaryIO, digest: Any) -> Callable[[bytes], None]:
    """Not a method: what refers to its own owner is closed only when Python collects cycles."""
    def sink(data: bytes) -> None:
        digest.update(data)
        file.write(data)

    return sink


def read_packed(fd: int, magic: str, version: int, what: str) -> Iterator[Any]:
    """The records of the file open as *fd*, after its first. DamagedError, naming *what*, if they cannot be decoded."""
    try:
        yield from _decode(fd, magic, version, what)
    except (CompressionError, LimitExceededError) as error:
        raise DamagedError(f"{what} cannot be decompressed: {error}") from error
    except (ValueError, msgpack.UnpackException) as error:
        raise DamagedError(f"{what} is malformed: {error}") from error


def _decode(fd: int, magic: str, version: int, what: str) -> Iterator[Any]:
    unpacker = msgpack.Unpacker(
        raw=False, use_list=False, strict_map_key=True, max_buffer_size=_MAX_RECORD + 2 * _CHUNK,
    )
    header = None
    # our own file, vouched for by its digest: the ratio limit is for strangers (names compress very well)
    for chunk in decompressed(read_chunks(fd), limits=Limits(max_ratio=1 << 62), compression="zstd"):
        for start in range(0, len(chunk), _CHUNK):
            unpacker.feed(chunk[start : start + _CHUNK])
            for item in unpacker:
                if header is not None:
                    yield item
                    continue
                header = item
                if header != (magic, version):
                    raise DamagedError(f"{what} is none of version {version}: {reprlib.repr(header)}")
    if header is None:
        raise DamagedError(f"{what} is empty")


def file_digest(dir_fd: int, name: str | bytes, read: Callable[[int], None] = lambda _n: None) -> str:
    """The digest of a whole file in *dir_fd*; *read* is told of each *n* bytes. OSError if it cannot be read."""
    digest = hashlib.sha256()
    with open_regular(name, dir_fd) as fd:
        for chunk in read_chunks(fd):
            digest.update(chunk)
            read(len(chunk))
    return "sha256:" + digest.hexdigest()


def open_regular(name: str | bytes, dir_fd: int | None) -> Descriptor:
    """A descriptor for reading a file; nothing is followed, nothing blocks."""
    return Descriptor(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dir_fd)


def read_chunks(fd: int) -> Iterator[bytes]:
    """The bytes of an open file from its beginning, whatever the descriptor's position."""
    at = 0
    while chunk := os.pread(fd, _CHUNK, at):  # pread: a caller's descriptor keeps its position
        at += len(chunk)
        yield chunk
