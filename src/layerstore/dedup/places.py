"""Content in committed layers: a ``Source`` is a layer that is held, a ``LayerPlace`` one piece of a file in it.

Nothing is handed out before it was found to have its digest. What has not is told apart: a hint that lied costs a
fetch; a file that is not what its manifest says is noted for ``check``.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from hashlib import sha256

from layerstore.dedup import suspects
from layerstore.errors import DamagedError, LayerstoreError
from layerstore.formats.digests import Found
from layerstore.formats.packed import open_regular
from layerstore.lifecycle import catalog
from layerstore.opening.beneath import home
from layerstore.opening.handle import Handle
from layerstore.opening.reading import ReaderLock
from layerstore.system import fs
from layerstore.system.descriptors import DIRECTORY, Descriptor
from layerstore.trees.dirfds import DirFds

__all__ = ["CLONED_FROM", "Cloning", "LayerPlace", "Source", "digest_of"]

_PIECE = 1 << 20                         # bytes read at once; what has not more is read once, and kept until it is hashed
_DIRECTORIES = 2                         # kept open in one layer: content is asked for in the order of its paths
_FAILURES = 8                            # so many places of a layer that were not what was said, and it is believed no more
CLONED_FROM = 1 << 16                    # bytes: what is smaller is written (docs/dedup.md has the numbers)
_CANNOT = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EXDEV, errno.EISDIR})


class Cloning:
    """Whether this file system lets files share blocks: not known until it was asked once."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self.possible = True

    def clone(self, fd: int) -> Descriptor | None:
        """A nameless file beside the trees being staged that shares the blocks of *fd*; None if it is not to be had."""
        if not self.possible:
            return None
        try:
            return fs.clone_nameless(fd, self._handle.dirs["staging"], point="dedup.clone")
        except OSError as error:         # whatever it is: who writes the file instead is told of what is really wrong
            if error.errno in _CANNOT:
                self.possible = False
            return None


class Source:
    """A committed layer, held by a reader's lock until it is closed. For several threads.

    UnknownLayerError, LayerDamagedError or BusyError if it cannot be held now: nobody waits for a layer to take from.
    """

    def __init__(self, handle: Handle, layer_id: str, cloning: Cloning) -> None:
        self._store = home(handle, layer_id)
        self.cloning = cloning if self._store is handle else None   # between mounts nobody shares blocks
        self.layer_id = layer_id
        self._guard = threading.Lock()
        self._failures = 0
        self._lock = ReaderLock(handle, [layer_id], wait=0.0)
        try:
            with self._store.read() as view:
                self._manifest_digest = catalog.layer(view, layer_id).manifest_digest
            self._tree = Descriptor(layer_id, DIRECTORY, dir_fd=self._store.dirs["layers"])
            self._diff = Descriptor("diff", DIRECTORY, dir_fd=self._tree.fd)
            self._fds = DirFds(self._diff.fd, capacity=_DIRECTORIES)
        except BaseException:            # the descriptors go with this object
            self._lock.close()
            raise

    @property
    def diff_fd(self) -> int:
        """The layer's tree, open as long as it is held."""
        return self._diff.fd

    def open(self, path: bytes) -> tuple[Descriptor, int]:
        """The regular file *path*, over no symbolic link, and its size. OSError; DamagedError: nothing here is believed."""
        with self._guard:
            if self._diff.fd < 0:
                raise DamagedError(f"layer {self.layer_id} is no longer held")
            if self._failures >= _FAILURES:
                raise DamagedError(f"too much of layer {self.layer_id} is not what it is said to be")
            parent, _, name = path.rpartition(b"/")
            file = open_regular(name, self._fds.get(parent))
        found = os.fstat(file.fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        return file, found.st_size

    def wrong(self, path: bytes, why: str) -> DamagedError:
        """*path* was not what was said: note it if the layer itself is damaged. The error to raise."""
        with self._guard:
            self._failures += 1
            believed = self._failures <= _FAILURES
        if believed:
            handle = self._store
            try:
                rotten = suspects.is_rotten(
                    self._tree.fd, self._manifest_digest, path, overlay_form=handle.overlay_form, ids=handle.ids,
                )
            except LayerstoreError:      # the manifest is none
                rotten = True
            if rotten and not handle.readonly:
                suspects.note(self._tree.fd, path)
        return DamagedError(
            f"{os.fsdecode(path)} in layer {self.layer_id} {why}", hint="'layerstore check' looks at it first",
        )

    def close(self) -> None:
        with self._guard:
            self._fds.close()
            self._diff.close()
            self._tree.close()
            self._lock.close()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class LayerPlace:
    """Where content is: see ``partial.Place``."""

    __slots__ = ("_found", "_source", "size")

    def __init__(self, source: Source, found: Found) -> None:
        self._source, self._found = source, found
        self.size = found.length

    @property
    def layer_id(self) -> str:
        """The layer that it is in."""
        return self._source.layer_id

    @property
    def found(self) -> Found:
        """What an index says that is there."""
        return self._found

    def to_be_read(self, most: int) -> tuple[int, Found] | None:
        """The open tree that it is in, and where, if it has no more than *most* bytes, and is not to be cloned."""
        return None if self._found.length > most or self._cloning() is not None else (self._source.diff_fd, self._found)

    def _cloning(self) -> Cloning | None:
        """By what it may be cloned: if it is large, and not only a part that does not begin its file."""
        cloning = self._source.cloning
        if self._found.offset or self._found.length < CLONED_FROM or cloning is None or not cloning.possible:
            return None
        return cloning

    def read(self) -> Iterator[bytes]:
        """See ``partial.Place``. What is larger than a piece is read twice, through one descriptor."""
        return iter((self._small(),)) if self._found.length <= _PIECE else self._large()

    def _small(self) -> bytes:
        found = self._found
        with self._open()[0] as fd:
            data = b"".join(_pieces(fd, found.offset, found.length))
        self._check(sha256(data).digest())
        return data

    def _large(self) -> Iterator[bytes]:
        found = self._found
        with self._open()[0] as fd:
            self._check(digest_of(fd, found.offset, found.length))
            yield from _pieces(fd, found.offset, found.length)

    def clone(self) -> Descriptor | None:
        """See ``partial.Place``. What is hashed is the clone itself: no later change of the layer's file reaches it."""
        found, cloning = self._found, self._cloning()
        if cloning is None:
            return None
        file, size = self._open()
        with file as fd:
            if size != found.length:
                return None              # only a part of the file
            made = cloning.clone(fd)
        if made is None:
            return None
        self._check(digest_of(made.fd, 0, found.length))
        return made

    def _open(self) -> tuple[Descriptor, int]:
        found = self._found
        try:
            file, size = self._source.open(found.path)
        except OSError as error:
            raise self._source.wrong(found.path, f"cannot be opened: {error.strerror}") from error
        if size < found.offset + found.length:
            raise self._source.wrong(found.path, "is shorter than it was")
        return file, size

    def _check(self, digest: bytes) -> None:
        if digest != self._found.digest:
            raise self._source.wrong(self._found.path, "has not the content that it is said to have")


def digest_of(fd: int, offset: int, length: int) -> bytes:
    """That of *length* bytes at *offset*, or of those that can be read: a piece of 1 MiB at a time is held."""
    digest = sha256()
    for piece in _pieces(fd, offset, length):
        digest.update(piece)
    return digest.digest()


def _pieces(fd: int, offset: int, length: int) -> Iterator[bytes]:
    """The bytes there are, in pieces. A read that fails ends them, as the end of the file does: the digest tells."""
    end = offset + length
    while offset < end:
        try:
            piece = os.pread(fd, min(_PIECE, end - offset), offset)
        except OSError:
            return
        if not piece:
            return
        offset += len(piece)
        yield piece
