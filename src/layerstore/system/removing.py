"""Removing a whole tree: whatever modes its directories have, and whosever it is, as far as this user may.

Nothing is decided here; a tree that anyone was promised is moved (``fs``), and comes here from the trash.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice

from layerstore.errors import PrivilegeError
from layerstore.system import faults, namespace
from layerstore.system.descriptors import DIRECTORY, Descriptor

__all__ = ["remove_tree"]

_LARGE = 64 << 20                        # bytes: so many more, and a file that is removed counts once more
_LISTED = 4_096                          # names of a directory that are held at once while it is removed
_NOT_REMOVABLE = (
    "remove it as root, or in the user namespace that made it ('podman unshare layerstore gc'); or install uidmap and "
    "give this user ranges in /etc/subuid and /etc/subgid"
)


def remove_tree(dir_fd: int, name: str, *, point: str, pause: Callable[[int], None] | None = None) -> None:
    """Unlink a whole tree, by descriptors, following nothing; one that is not there is fine.

    *pause*, if given, is called before each of its files, and may wait, or raise: then the rest stays. It is told for how
    many that file counts: one more for each 64 MiB that are allocated to it.

    What belongs to subordinate ids of this user is removed in a user namespace that has them (``namespace``).
    PrivilegeError for what this process may not remove; what it may has gone by then.
    """
    with faults.point(point):
        try:
            status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return
        is_dir = stat.S_ISDIR(status.st_mode)
        try:
            _remove(dir_fd, os.fsencode(name), is_dir=is_dir, pause=pause)
        except PermissionError as error:
            _remove_as_subids(dir_fd, name, error, is_dir=is_dir)


def _remove_as_subids(dir_fd: int, name: str, denied: PermissionError, *, is_dir: bool) -> None:
    why = str(denied.strerror)
    if os.geteuid() != 0:
        try:
            why = namespace.remove_as_subids(dir_fd, name) or why
        except namespace.SubidsError as error:
            why = f"{why}; {error}"
        else:
            with suppress(PermissionError):   # of somebody else's, or kept by an attribute of the file system (chattr(1))
                return _remove(dir_fd, os.fsencode(name), is_dir=is_dir)   # what is left says why by its error
    raise PrivilegeError(f"removing the tree {name}: {why}", hint=_NOT_REMOVABLE) from denied


def _weight(dir_fd: int, name: bytes) -> int:
    try:
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except OSError:
        return 1
    return 1 if status.st_nlink > 1 else 1 + status.st_blocks * 512 // _LARGE


def _remove(dir_fd: int, name: bytes, *, is_dir: bool, pause: Callable[[int], None] | None = None) -> None:
    if pause is not None:
        pause(1 if is_dir else _weight(dir_fd, name))
    if not is_dir:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=dir_fd)
        return
    try:
        directory = Descriptor(name, DIRECTORY, dir_fd=dir_fd)
    except FileNotFoundError:   # somebody else is removing the same garbage
        return
    except PermissionError:  # a layer may hold directories of mode 0 that an ordinary user made
        os.chmod(name, 0o700, dir_fd=dir_fd)
        directory = Descriptor(name, DIRECTORY, dir_fd=dir_fd)
    with directory as fd:
        # depth is bounded by Limits.max_depth plus the store's own levels, so recursion and descriptors are too
        for child, child_is_dir in _children(fd):
            try:
                _remove(fd, child, is_dir=child_is_dir, pause=pause)
            except PermissionError:
                os.fchmod(fd, 0o700)
                _remove(fd, child, is_dir=child_is_dir, pause=pause)
    with suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=dir_fd)


def _children(fd: int) -> Iterator[tuple[bytes, bool]]:
    """Name, and whether it is a directory, of what is in the directory *fd*, which may be removed meanwhile.

    Of a directory with very many no more names are held than ``_LISTED``; only for such a one a descriptor stays open.
    """
    with os.scandir(fd) as entries:
        while found := [(os.fsencode(e.name), e.is_dir(follow_symlinks=False)) for e in islice(entries, _LISTED)]:
            if len(found) < _LISTED:
                entries.close()
            yield from found
            if len(found) < _LISTED:
                return
