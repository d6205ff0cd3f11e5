"""Keeping a layer's compressed blob beside its tree, as big data, so that it can be sent on byte for byte.

Only what is compressed: a plain tar is made again from the tree. It is written while it is read, is no longer than was
promised, and its digest is the blob's, which the differ compares; whoever reads it later compares it again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from layerstore.formats.compression import detect
from layerstore.model import BLOB_KEY, DiffTarget
from layerstore.system import fs
from layerstore.system.descriptors import NEW_FILE, Descriptor

__all__ = ["kept"]


def kept(chunks: Iterable[bytes], target: DiffTarget) -> Iterator[bytes]:
    """The same chunks, which are appended to ``big-data/layer-blob`` as they pass, if they begin a compressed stream."""
    passing = iter(chunks)
    first = next(passing, b"")
    if detect(first) == "none":
        if first:
            yield first
        yield from passing
        return
    fs.make_dir(target.dir_fd, "big-data", point="unpack.blob.mkdir")
    with fs.open_dir("big-data", target.dir_fd) as directory, Descriptor(
            BLOB_KEY, NEW_FILE | os.O_APPEND, dir_fd=directory) as fd:
        chunk: bytes | None = first
        while chunk:
            fs.extend(fd, [chunk], point="unpack.blob")
            yield chunk
            chunk = next(passing, None)
