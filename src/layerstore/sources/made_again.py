"""A layer of containers/storage as the tar that it came as, from its tar-split and the files of its tree.

The tar-split (vbatts/tar-split, JSON lines, gzip) is a stranger's word like any archive: lines are bounded, files are
opened beneath the tree, and what comes out is checked by its reader against the diffID. Here each file's size and CRC-64
are compared, so that a torn one is called by its name.
"""

from __future__ import annotations

import base64
import io
import json
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from layerstore.errors import InputError, RangesUnsupportedError, SourceError
from layerstore.formats.compression import decompressed
from layerstore.formats.crc64 import crc64
from layerstore.formats.packed import read_chunks
from layerstore.model import Limits
from layerstore.system import kernel
from layerstore.system.descriptors import Descriptor

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["TreeBlob"]

_FILE, _SEGMENT = 1, 2
_PIECE = 1 << 20
_MAX_LINE = 64 << 20                     # bytes: padding and data that is in no file may come in one
_TREE = os.O_RDONLY | os.O_DIRECTORY
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_WAY = 0x10 | kernel.RESOLVE_NO_MAGICLINKS  # RESOLVE_IN_ROOT (openat2(2)): as in the container
_UNREADABLE = "read the store as its owner: root, or 'podman unshare layerstore …' for a rootless one"


class TreeBlob:
    """Implements ``BlobSource``: the plain tar. *tree* is the layer's ``diff``, *split* its ``.tar-split.gz``."""

    remote = False

    def __init__(self, tree: str, split: str, size: int, label: str) -> None:
        self._tree, self._split, self.size, self.label = tree, split, size, label

    def open(self, offset: int = 0) -> BinaryIO:
        """As in ``BlobSource``. What lies before *offset* is made, too."""
        stream = cast("BinaryIO", io.BufferedReader(_Stream(self._pieces()), _PIECE))
        while offset:
            skipped = len(stream.read(min(offset, _PIECE)))
            if not skipped:
                break
            offset -= skipped
        return stream

    def ranges(self, wanted: Sequence[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
        """As in ``BlobSource``: only the whole can be had."""
        raise RangesUnsupportedError(f"{self.label} can only be made as a whole ({len(wanted)} ranges)")

    def _pieces(self) -> Iterator[bytes]:
        try:
            with Descriptor(self._split, os.O_RDONLY) as split, Descriptor(self._tree, _TREE) as tree:
                yield from self._made(split, tree)
        except OSError as error:
            hint = _UNREADABLE if isinstance(error, PermissionError) else None
            raise SourceError(f"{self.label} cannot be read: {error.strerror}: {error.filename}", hint=hint) from error

    def _made(self, split: int, tree: int) -> Iterator[bytes]:
        for entry in self._entries(split):
            try:
                payload = base64.b64decode(entry.get("payload") or "", validate=True)
                kind, size = entry["type"], entry.get("size", 0)
                name = base64.b64decode(entry["name_raw"]) if "name_raw" in entry else entry.get("name", "").encode()
                if kind not in (_FILE, _SEGMENT) or type(size) is not int or size < 0 or b"\0" in name:
                    raise ValueError(f"type {kind!r}, size {size!r}")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise SourceError(f"the tar-split of {self.label} is malformed: {error}") from error
            if kind == _SEGMENT:
                yield payload
            elif size:
                yield from self._file(tree, name, size, payload)

    def _entries(self, split: int) -> Iterator[dict[str, Any]]:
        rest = b""
        try:
            for piece in decompressed(read_chunks(split), limits=Limits(max_ratio=1 << 20), compression="gzip"):
                *lines, rest = (rest + piece).split(b"\n")
                if len(rest) > _MAX_LINE:
                    raise SourceError(f"the tar-split of {self.label} has a line of more than {_MAX_LINE} bytes")
                for line in lines:
                    yield json.loads(line)
            if rest.strip():
                yield json.loads(rest)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"the tar-split of {self.label} is malformed: {error}") from error
        except SourceError:
            raise
        except (InputError, zlib.error) as error:
            raise SourceError(f"the tar-split of {self.label} is torn: {error}") from error

    def _file(self, tree: int, name: bytes, size: int, crc: bytes) -> Iterator[bytes]:
        shown = os.fsdecode(name)
        with _open_in(tree, name) as fd:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size != size:
                raise SourceError(
                    f"{self.label} is torn: {shown!r} should have {size} bytes, and has {status.st_size}",
                    hint="pull the image again, from where it came",
                )
            at = found = 0
            while at < size:
                piece = os.pread(fd, min(_PIECE, size - at), at)
                if not piece:
                    raise SourceError(f"{self.label} changes while it is read: {shown!r} became shorter")
                at, found = at + len(piece), crc64(piece, found)
                yield piece
        if crc and found.to_bytes(8, "big") != crc:
            raise SourceError(
                f"{self.label} is torn: {shown!r} has not the content that it had",
                hint="pull the image again, from where it came",
            )


def _open_in(tree: int, name: bytes) -> Descriptor:
    """The file of that name: links on the way lead within the tree, as they did when the layer was unpacked."""
    opening = kernel.openat2(tree, name.lstrip(b"/") or b".", _OPEN, _WAY)
    made = Descriptor.__new__(Descriptor)
    made.fd = opening()
    kernel.checked(made.fd, name)
    return made


class _Stream(io.RawIOBase):
    """Pieces as a stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(view), len(self._rest))
        view[:count], self._rest = self._rest[:count], self._rest[count:]
        return count
