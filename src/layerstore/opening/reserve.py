"""The reserve: space that the store keeps for deleting, rolling back and recovering on a disk that is full.

A file of allocated, unwritten blocks in the store's root. Whoever puts something in must first find it whole, or make it
(``ensure``); what frees space gives it back before it begins, if the disk is nearly full (``open_up``), and makes it again
when it is done (``renew``). It holds no data: a crash at any point leaves it whole, short or missing, and the next who puts
something in makes it again. ADR 0019.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from layerstore.errors import HostError, NoSpaceError
from layerstore.system import fs
from layerstore.system.room import free_bytes

__all__ = ["NAME", "ensure", "margin", "open_up", "renew", "size_for"]

NAME = "reserve"
SIZE = 4 << 20
"""What deletions, a checkpoint and a recovery were seen to need, several times over (ADR 0019)."""

_SHARE = 64   # of a small file system the reserve takes no more than a 64th
_MARGIN = 64 << 20
_MARGIN_SHARE = 16


def size_for(root_fd: int) -> int:
    """How large the reserve is to be here, in bytes."""
    status = os.fstatvfs(root_fd)
    return min(SIZE, status.f_blocks * status.f_frsize // _SHARE & ~4095)


def margin(root_fd: int) -> int:
    """How many bytes a layer that is being written leaves free, for the store's own files and for everybody else.

    Only large ones come to know of it: who writes looks from time to time (``DiffTarget.keep_free``).
    """
    status = os.fstatvfs(root_fd)
    return min(_MARGIN, status.f_blocks * status.f_frsize // _MARGIN_SHARE)


def held(root_fd: int) -> int:
    """How large it is."""
    try:
        status = os.stat(NAME, dir_fd=root_fd, follow_symlinks=False)
    except FileNotFoundError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def ensure(root_fd: int) -> None:
    """Make it, if it is not whole. NoSpaceError if it cannot be had: then nothing more is put into the store.

    Durability: none; after a loss of power it may be missing, and is made again.
    """
    wanted = size_for(root_fd)
    if held(root_fd) >= wanted:
        return
    try:
        fs.allocate(root_fd, NAME, wanted, point="reserve.make")
    except OSError as error:
        fs.unlink(root_fd, NAME, point="reserve.give-back")   # a part of it would only be in the way
        failure = fs.host_error(error, "making the reserve that deletions need on a full disk", at=root_fd)
        if type(failure) is NoSpaceError:
            raise NoSpaceError(str(failure), needed=wanted, free=free_bytes(root_fd)) from error
        raise failure from error


def renew(root_fd: int) -> None:
    """After something was freed: make it again, if there is room for twice as much. Only help, so it fails silently."""
    size = size_for(root_fd)
    if held(root_fd) < size and free_bytes(root_fd) > 2 * size:
        with suppress(HostError):
            ensure(root_fd)


def open_up(root_fd: int, *, always: bool = False) -> None:
    """Give it back, if the disk is nearly full (or *always*): what frees space is about to begin.

    Others may be quicker to take what is free then.
    """
    if (always or free_bytes(root_fd) < size_for(root_fd)) and held(root_fd):
        fs.unlink(root_fd, NAME, point="reserve.give-back")
