"""Effects on what others read, a view: files and directories for everybody, whatever the umask, and links that are turned.

Elsewhere in the store only its owner reads; those effects are ``fs``'s, and so are those that have no mode (links, syncs).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import suppress

from layerstore.system import faults
from layerstore.system.descriptors import NEW_FILE, Descriptor
from layerstore.system.fs import fsync, make_symlink, unlink, write_all

__all__ = ["make_dir", "put_file", "remove_if_empty", "turn_link", "write_pieces"]


def make_dir(dir_fd: int, name: str, *, point: str) -> None:
    """A directory that everybody may read, whatever the umask; one that is there is fine."""
    with faults.point(point), suppress(FileExistsError):
        os.mkdir(name, dir_fd=dir_fd)
        os.chmod(name, 0o755, dir_fd=dir_fd)  # noqa: S103 - that is its purpose


def write_pieces(dir_fd: int, name: str, pieces: Iterable[bytes], *, point: str) -> None:
    """Create *name* with all *pieces*; it must not exist. What is raised while they come leaves it torn. Not synced."""
    with faults.point(point), Descriptor(name, NEW_FILE, dir_fd=dir_fd) as fd:
        os.fchmod(fd, 0o644)
        for piece in pieces:
            write_all(fd, piece)


def put_file(dir_fd: int, name: str, pieces: Iterable[bytes], *, point: str) -> None:
    """Put *pieces* at *name* by way of ``.<name>.new``, synced, and rename: where the name is, all of it is."""
    aside = f".{name}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with faults.point(f"{point}.write"), Descriptor(aside, flags, dir_fd=dir_fd) as fd:
        os.fchmod(fd, 0o644)
        for piece in pieces:
            write_all(fd, piece)
        fsync(fd)
    with faults.point(f"{point}.rename"):
        os.rename(aside, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)


def turn_link(dir_fd: int, name: str, target: str, *, point: str) -> None:
    """Let the link *name* lead to *target*, by way of ``.<name>.new`` and rename: the old target or the new one."""
    aside = f".{name}.new"
    unlink(dir_fd, aside, point=f"{point}.clear")
    make_symlink(os.fsencode(target), dir_fd, aside, point=f"{point}.write")
    with faults.point(f"{point}.rename"):
        os.rename(aside, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)


def remove_if_empty(dir_fd: int, name: str, *, point: str) -> None:
    """Remove a directory, unless there is something in it, or mounted on it; one that is not there is fine."""
    with faults.point(point):
        try:
            os.rmdir(name, dir_fd=dir_fd)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
                raise
