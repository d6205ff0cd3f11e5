"""Exporting: a committed layer as the very tar that it came as, streaming, verified, and without holding up anyone.

While a tar is read its layer's tree is locked shared: it can be deleted, which hides it at once, but not taken away
under the reader. Nothing else waits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from layerstore.errors import DamagedError, InvalidArgumentError, LayerDamagedError, PrivilegeError
from layerstore.formats import records
from layerstore.formats.packed import file_digest, open_regular, read_chunks
from layerstore.formats.tarsplit import NAME
from layerstore.lifecycle import catalog
from layerstore.model import BLOB_KEY, Layer, check_id
from layerstore.opening.beneath import home_of_image, looking, open_tree
from layerstore.opening.handle import Handle
from layerstore.opening.reading import ReaderLock
from layerstore.system import fs
from layerstore.trees.assemble import assembled
from layerstore.trees.gotarsplit import lines

_UNREADABLE = "run as root, or in the user namespace that made the layer (podman unshare layerstore export …)"


@contextmanager
def diff(handle: Handle, layer_id: str) -> Iterator[Iterator[bytes]]:
    """The chunks of the layer's original, uncompressed tar; the last comes only if their digest is the diffID."""
    with _reading(handle, layer_id) as (layer, tree_fd):
        yield _digested(layer, assembled(tree_fd), layer.diff_id, "diff")


@contextmanager
def go_tar_split(handle: Handle, layer_id: str) -> Iterator[Iterator[bytes]]:
    """The layer's tar-split as the Go tools read it, in chunks (``gotarsplit``); the last as ``diff`` has it.

    Its checksums are made of what is read here, so no reader of it could tell what is not what it was.
    """
    tar = hashlib.sha256()
    with _reading(handle, layer_id) as (layer, tree_fd):
        yield _verified(layer, lines(tree_fd, tar.update), tar, layer.diff_id, "diff")


@contextmanager
def kept_blob(handle: Handle, layer_id: str) -> Iterator[Iterator[bytes]]:
    """The chunks of the layer's compressed blob, which was kept; the last comes only if their digest is what it was."""
    with _reading(handle, layer_id) as (layer, tree_fd), fs.open_dir("big-data", tree_fd) as directory, open_regular(
            BLOB_KEY, directory) as fd:
        yield _digested(layer, read_chunks(fd), layer.big_data[BLOB_KEY], "big-data")


def image_documents(handle: Handle, image_id: str) -> tuple[bytes, bytes]:
    """The exact bytes of a committed image's manifest and config. DamagedError if its side file is."""
    at = home_of_image(handle, image_id).dirs["images"]
    record = records.read(fs.read_file(at, image_id), f"the side file of image {image_id}")
    return record["manifest"], record["config"]


@contextmanager
def _reading(handle: Handle, layer_id: str) -> Iterator[tuple[Layer, int]]:
    handle.check_usable()
    check_id(layer_id)
    with ReaderLock(handle, [layer_id]):
        with looking(handle) as view:
            layer = catalog.layer(view, layer_id)
        if layer.tar_split_digest is None:
            raise InvalidArgumentError(
                f"layer {layer_id} has no tar-split: the differ that made it wrote none",
                hint="extract it, or stage it again from its tar",
            )
        with open_tree(handle, layer_id) as tree_fd:
            _check_split(layer, tree_fd)
            yield layer, tree_fd


def _check_split(layer: Layer, tree_fd: int) -> None:
    """Its digest first: only then is it decoded."""
    try:
        actual = file_digest(tree_fd, NAME)
    except FileNotFoundError as error:
        raise _damaged(layer, NAME, "it is missing") from error
    if actual != layer.tar_split_digest:
        raise _damaged(layer, NAME, f"its digest is {actual}, not {layer.tar_split_digest}")


def _digested(layer: Layer, chunks: Iterator[bytes], expected: str, name: str) -> Iterator[bytes]:
    """The *chunks*, the last only if the digest of all is the *expected* one."""
    digest = hashlib.sha256()

    def fed() -> Iterator[bytes]:
        for chunk in chunks:
            digest.update(chunk)
            yield chunk

    return _verified(layer, fed(), digest, expected, name)


def _verified(layer: Layer, chunks: Iterator[bytes], digest: hashlib._Hash, expected: str, name: str) -> Iterator[bytes]:
    """The *chunks*, the last only if *digest*, into which they put what they are made of, is then the *expected* one."""
    held = b""
    try:
        for chunk in chunks:
            if held:
                yield held
            held = chunk
    except DamagedError as error:
        raise _damaged(layer, name, str(error)) from error
    except PermissionError as error:
        raise PrivilegeError(f"exporting layer {layer.id}: {error.strerror}", hint=_UNREADABLE) from error
    except OSError as error:
        raise fs.host_error(error, f"exporting layer {layer.id}") from error
    if f"sha256:{digest.hexdigest()}" != expected:   # nobody gets a whole tar, or blob, that is not the right one
        raise _damaged(layer, name, f"what it makes has the digest sha256:{digest.hexdigest()}, not {expected}")
    yield held


def _damaged(layer: Layer, name: str, what: str) -> LayerDamagedError:
    return LayerDamagedError(f"layer {layer.id} cannot be exported: {name}: {what}", layer_id=layer.id, files=(name,))


__all__ = ["diff", "go_tar_split", "image_documents", "kept_blob"]
