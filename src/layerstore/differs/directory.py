"""The directory differ: a directory is packed as a canonical tar, which goes the way of every tar."""

from __future__ import annotations

import os

from layerstore.differs.tar import fill
from layerstore.errors import InvalidArgumentError, SourceError
from layerstore.model import DiffOutput, DiffTarget
from layerstore.system.descriptors import Descriptor
from layerstore.trees.pack import pack_tree

__all__ = ["DirectoryDiffer"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class DirectoryDiffer:
    """Store a directory's content, or an overlay upper directory's, as a layer.

    Its diffID is that of the canonical tar (``pack``). *path* may be a symbolic link to a directory; nothing
    beneath it is followed. A directory that changes while it is read gives an error or some mixture: whoever
    needs a moment in time makes a snapshot first. ``apply_diff`` raises SourceError if it cannot be read, or holds what a
    layer cannot (an overlay's file without its content, say: ``pack``), and what ``TarDiffer`` raises.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path: str | None = os.fspath(path)

    @property
    def content_key(self) -> str | None:
        """None: what a directory holds is known only when it was read."""
        return None

    def apply_diff(self, target: DiffTarget) -> DiffOutput:
        """See ``model.Differ``. Durability: nothing is synced here."""
        if self._path is None:
            raise InvalidArgumentError("a differ is good for one use")
        path, self._path = self._path, None
        try:
            directory = Descriptor(path, _DIRECTORY)
        except OSError as error:
            raise SourceError(f"cannot open the directory {path!r}: {error.strerror}") from error
        with directory as fd:
            return fill(target, pack_tree(fd, target.limits.max_depth), compression="none", is_blob=False)
