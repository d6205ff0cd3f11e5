"""Blobs on their way out: compressed, and digested.

The same tar gives the same blob, as long as zlib and zstd are the same: no time, no name, no thread count goes into it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, cast

from layerstore.chunked.writing import write_chunked
from layerstore.formats.compression.writing import ZstdWriter
from layerstore.model import Descriptor
from layerstore.system.descriptors import Descriptor as Opened
from layerstore.targets import OutgoingLayer
from layerstore.targets.manifests import layer_type

__all__ = ["expected", "scratch", "write_blob"]

_GZIP, _LEVEL = 31, 6                    # zlib.h, deflateInit2: a gzip wrapper, without a time
_SPOOLED = 4 << 20                       # bytes of a table of contents, or a tar-split, that are kept in memory


class _Tally:
    def __init__(self, out: BinaryIO) -> None:
        self._out, self._hash, self.size = out, hashlib.sha256(), 0

    def write(self, data: bytes) -> None:
        self._hash.update(data)
        self.size += len(data)
        self._out.write(data)

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


def expected(layer: OutgoingLayer) -> Descriptor | None:
    """The blob that will come of the layer, where that is known without making it: what was kept, or its tar as it is."""
    if layer.kept is not None:
        return layer.was
    if layer.compression != "none":
        return None
    plain = Descriptor(layer_type("none"), layer.diff_id, layer.diff_size)
    return layer.was if layer.was.digest == layer.diff_id else plain


def scratch(directory: str) -> BinaryIO:
    """A file without a name on *directory*'s disk, gone when closed, be it by a crash; in $TMPDIR if that cannot be."""
    try:
        made = Opened(directory, os.O_TMPFILE | os.O_RDWR)
    except OSError:   # a file system without them, or a store that this user only reads
        return cast("BinaryIO", tempfile.TemporaryFile())
    return open(made.release(), "w+b")


def write_blob(layer: OutgoingLayer, out: BinaryIO, progress: Callable[[int], None]) -> Descriptor:
    """Write the layer's blob to *out*, and say what it is. What reading the layer raises comes out."""
    tally = _Tally(out)
    notes: dict[str, str] = {}
    if layer.kept is not None:
        with layer.kept() as chunks:
            _write(chunks, "none", tally)
        progress(layer.diff_size)
    else:
        with layer.open() as chunks:
            notes = _write(_told(chunks, progress), layer.compression, tally)
    same = (tally.digest, tally.size) == (layer.was.digest, layer.was.size)
    return layer.was if same else Descriptor(layer_type(layer.compression), tally.digest, tally.size, notes)


def _told(chunks: Iterator[bytes], progress: Callable[[int], None]) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        progress(len(chunk))


def _write(chunks: Iterator[bytes], compression: str, tally: _Tally) -> dict[str, str]:
    """Write all of *chunks*; the annotations that the blob needs."""
    if compression == "zstd:chunked":
        return write_chunked(chunks, tally.write, _spool).annotations
    write, close = _compressor(compression, tally)
    for chunk in chunks:
        write(chunk)
    close()
    return {}


def _spool() -> BinaryIO:
    return cast("BinaryIO", tempfile.SpooledTemporaryFile(_SPOOLED))


def _compressor(compression: str, tally: _Tally) -> tuple[Callable[[bytes], object], Callable[[], object]]:
    if compression == "none":
        return tally.write, lambda: None
    if compression == "zstd":
        zstd = ZstdWriter(tally.write)
        return zstd.write, zstd.close
    gzip = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    return (lambda data: tally.write(gzip.compress(data))), (lambda: tally.write(gzip.flush()))
