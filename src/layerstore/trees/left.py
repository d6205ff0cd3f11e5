"""Trees that a dead process left filled: whether all of one is there, although no record vouches for it.

Such a tree was never synced by anybody who would have told. After a loss of power any part of it may be missing; after
a write-back error that somebody else was told of, its pages may be called clean and never have reached the disk. So
nothing is believed: what is clean is read from the disk, every file is held to the manifest, and the tar that tree and
tar-split make has the diffID. What is still dirty is made durable later, by the sync of whoever adopts it, through a
descriptor that was open before the first look: an error that nobody has been told of, or a later one, is reported to it.

Reads only, follows nothing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress

from layerstore.errors import DamagedError
from layerstore.formats.packed import file_digest, open_regular
from layerstore.model import DiffOutput
from layerstore.system import fs
from layerstore.system.descriptors import DIRECTORY, Descriptor
from layerstore.system.idmap import IDENTITY, IdMap
from layerstore.trees.assemble import assembled
from layerstore.trees.verify import tree_problems

__all__ = ["drop_cached", "is_whole"]


def is_whole(tree_fd: int, output: DiffOutput, *, overlay_form: str, ids: IdMap = IDENTITY) -> bool:
    """Whether the tree open as *tree_fd* is, in every byte, what *output* says. What may not be read, is not."""
    try:
        drop_cached(tree_fd)
        problems = tree_problems(
            tree_fd, output.manifest_digest, content=True, overlay_form=overlay_form, tar_split=output.tar_split_digest,
            ids=ids,
        )
        return (
            not any(True for _ in problems) and _big_data_right(tree_fd, output.big_data)
            and (output.tar_split_digest is None or _digest(assembled(tree_fd)) == output.diff_id)
        )
    except (DamagedError, OSError):
        return False


def drop_cached(dir_fd: int) -> None:
    """Ask the kernel to forget the clean pages of every file beneath, so that what is read comes from the disk.

    Source: posix_fadvise(2), POSIX_FADV_DONTNEED. Dirty pages stay. What may not be opened is left out.
    """
    with suppress(PermissionError), os.scandir(dir_fd) as entries:
        for entry in entries:
            with suppress(PermissionError):
                if entry.is_dir(follow_symlinks=False):
                    with Descriptor(entry.name, DIRECTORY, dir_fd=dir_fd) as child:
                        drop_cached(child)
                elif entry.is_file(follow_symlinks=False):
                    with open_regular(entry.name, dir_fd) as fd:
                        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _big_data_right(tree_fd: int, wanted: Mapping[str, str]) -> bool:
    if not wanted:
        return True
    with fs.open_dir("big-data", tree_fd) as directory:
        return all(file_digest(directory, key) == digest for key, digest in wanted.items())


def _digest(chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"
