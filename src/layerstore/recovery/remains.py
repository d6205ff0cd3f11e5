"""What the disk alone says of a store whose database is lost: trees, image files, trash. Reads only, decides nothing.

A layer's side file vouches for itself by a checksum, and for its tree by the digest of the manifest; an image's has the
documents themselves. What else was true of them (later names, leases, mounts, deletions) no file says.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from layerstore.errors import DamagedError
from layerstore.formats import records
from layerstore.formats.manifest import NAME as MANIFEST
from layerstore.formats.packed import file_digest
from layerstore.formats.tarsplit import NAME as TAR_SPLIT
from layerstore.model import DiffOutput
from layerstore.system import fs
from layerstore.system.idmap import IdMap
from layerstore.trees.verify import tree_problems

__all__ = ["ImageFile", "Remains", "Tree", "gather"]

Record = Mapping[str, Any]
_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO)


@dataclass(frozen=True, slots=True)
class Tree:
    """One tree. ``side`` is its side file ``layer``, ``output`` the file of that name, each None unless whole.

    ``torn``: there is a side file, and it is not whole. ``wrong``: why it cannot be told what the tree is. ``bad``: it
    is known what it is, and it is not that any more. ``unread``: the machine did not let it be compared, which proves
    nothing against it. ``written_ns``: when the side file was written; a hint, no more.
    """

    place: str
    name: str
    txid: str | None
    side: Record | None = None
    output: Record | None = None
    torn: bool = False
    wrong: str = ""
    bad: str = ""
    unread: str = ""
    written_ns: int = 0


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One file of ``images/``. ``record`` is None unless it is whole and its documents have their digests."""

    name: str
    record: Record | None
    wrong: str = ""
    written_ns: int = 0


@dataclass(frozen=True, slots=True)
class Remains:
    """``layers`` by layer ID (or whatever the name is), ``staging`` and ``trash`` by txid, ``images`` by name."""

    layers: Mapping[str, Tree]
    staging: Mapping[str, Tree]
    trash: frozenset[str]
    images: Mapping[str, ImageFile]
    uppers: tuple[str, ...]
    overlay_form: str


def gather(dirs: Mapping[str, int], *, overlay_form: str, ids: IdMap, content: bool) -> Remains:
    """Look. Trees with a whole side file are held to it: their manifest's digest, and with *content* every file."""
    look = _Look(dirs, overlay_form, ids, content)
    return Remains(
        layers={name: look.tree("layers", name) for name in fs.names_in(dirs["layers"])},
        staging={name: look.tree("staging", name) for name in fs.names_in(dirs["staging"])},
        trash=frozenset(fs.names_in(dirs["trash"])),
        images={name: look.image(name) for name in fs.names_in(dirs["images"])},
        uppers=tuple(fs.names_in(dirs["uppers"])),
        overlay_form=overlay_form,
    )


class _Look:
    def __init__(self, dirs: Mapping[str, int], overlay_form: str, ids: IdMap, content: bool) -> None:
        self._dirs, self._form, self._ids, self._content = dirs, overlay_form, ids, content

    def tree(self, place: str, name: str) -> Tree:
        try:
            with fs.open_dir(name, self._dirs[place]) as fd:
                return self._opened(place, name, fd)
        except NotADirectoryError:
            return Tree(place, name, None, wrong="it is no directory")

    def _opened(self, place: str, name: str, fd: int) -> Tree:
        txid = fs.read_txid(fd)
        output = _output(fd, txid)
        try:
            side = records.read(fs.read_file(fd, records.LAYER_FILE), "its side file 'layer'")
            written = os.stat(records.LAYER_FILE, dir_fd=fd).st_mtime_ns
            wrong = self._misfit(place, name, txid, side)
        except DamagedError as error:
            torn = fs.exists(fd, records.LAYER_FILE)
            return Tree(place, name, txid, output=output, torn=torn, wrong=str(error))
        if wrong:
            return Tree(place, name, txid, output=output, wrong=wrong)
        bad, unread = "", ""
        try:
            bad = next(self._problems(fd, side), "")
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            unread = str(error)
        return Tree(place, name, txid, side, output, bad=bad, unread=unread, written_ns=written)

    def _misfit(self, place: str, name: str, txid: str | None, side: Record) -> str:
        if side["txid"] != txid:
            return f"its side file is of the tree {side['txid']}, and the tree says {txid}"
        if name != (side["layer_id"] if place == "layers" else txid):
            return f"its side file is of the layer {side['layer_id']}"
        if side["overlay_form"] != self._form:
            return f"it is of the form {side['overlay_form']}, and the store is not"
        return ""

    def _problems(self, fd: int, side: Record) -> Iterator[str]:
        """Cheap ones first: who asks for one alone stops there."""
        output = DiffOutput(**{**side["output"], "uids": (), "gids": ()})
        try:
            for file, digest in ((MANIFEST, output.manifest_digest), (TAR_SPLIT, output.tar_split_digest)):
                if digest is not None and file_digest(fd, file) != digest:
                    yield f"its {file} is not the one that was recorded"
            if self._content:
                yield from (
                    f"{os.fsdecode(problem.path)}: {problem.what}" for problem in tree_problems(
                        fd, output.manifest_digest, content=True, overlay_form=self._form,
                        tar_split=output.tar_split_digest, ids=self._ids,
                    ) if not problem.unreadable
                )
        except (DamagedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_FILE:
                raise
            yield str(error)

    def image(self, name: str) -> ImageFile:
        directory = self._dirs["images"]
        try:
            record = records.read(fs.read_file(directory, name), "the file")
        except DamagedError as error:
            return ImageFile(name, None, str(error))
        written = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime_ns
        for document in ("manifest", "config"):
            if _digest(record[document]) != record[f"{document}_digest"]:
                return ImageFile(name, None, f"its {document} has another digest than it says")
        if record["image_id"] != name or record["config_digest"] != f"sha256:{name}":
            return ImageFile(name, None, f"it is of the image {record['image_id']}")
        return ImageFile(name, record, "", written)


def _output(fd: int, txid: str | None) -> Record | None:
    try:
        found = records.read(fs.read_file(fd, records.OUTPUT_FILE), "its file 'output'")
    except DamagedError:
        return None
    return found if found["txid"] == txid else None


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
