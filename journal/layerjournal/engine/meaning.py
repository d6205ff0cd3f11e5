"""What an error of LMDB's means, as one of ours: by its class, and where it has none for it, by what it says."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

import lmdb

from layerjournal.effects import FULL, MORE_DESCRIPTORS, NO_DESCRIPTOR
from layerjournal.errors import (
    AlreadyOpenError,
    BusyError,
    DamagedError,
    HostError,
    JournalError,
    NoSpaceError,
    OutcomeUnknownError,
    ReadOnlyError,
    UsageError,
)

__all__ = ["is_disk_full", "is_full", "open_error", "tables_error", "use_error"]

_NEARLY_FULL = 1 << 16    # bytes


def _says(error: lmdb.Error, *numbers: int) -> bool:
    """Whether LMDB met one of these errnos: it has no classes for most of them."""
    return any(os.strerror(number) in str(error) for number in numbers)


def is_full(error: lmdb.Error) -> bool:
    return isinstance(error, lmdb.DiskError) or _says(error, *FULL)


def is_disk_full(path: str) -> bool:
    """LMDB reports the short write that fills a disk as EIO; then nothing is free now.

    Should another cause hide behind it, the outcome is known all the same: ``Engine._is_dead`` asks after the meta page.
    """
    status = os.statvfs(path)
    return min(status.f_bfree, status.f_bavail) * status.f_frsize < _NEARLY_FULL


def _host_error(error: lmdb.Error, what: str) -> HostError:
    if is_full(error):
        return NoSpaceError(what)
    if _says(error, *NO_DESCRIPTOR):
        return BusyError(what, hint=MORE_DESCRIPTORS)
    if _says(error, errno.EROFS):
        return ReadOnlyError(what)
    return HostError(what)


def open_error(error: lmdb.Error, path: str) -> JournalError:
    text = str(error)
    if "already open" in text:
        return AlreadyOpenError(f"this process has the journal at {path} open already")
    if isinstance(error, lmdb.InvalidError | lmdb.VersionMismatchError | lmdb.CorruptedError):
        return DamagedError(f"{path} is no journal, or was damaged: {text}")
    return _host_error(error, f"opening {path}: {text}")


def tables_error(error: lmdb.Error, path: str, names: Sequence[str]) -> JournalError:
    """Making a table is a commit, and may meet a full disk like any other."""
    what = f"the tables {list(names)} of {path} cannot be opened: {error}"
    if _says(error, errno.EIO):
        return NoSpaceError(what) if is_disk_full(path) else HostError(what)
    found = _host_error(error, what)
    return DamagedError(what) if type(found) is HostError else found


def use_error(error: lmdb.Error, path: str) -> JournalError:
    if isinstance(error, lmdb.CorruptedError | lmdb.PageNotFoundError | lmdb.InvalidError):
        return DamagedError(f"the journal at {path} was damaged: {error}")
    if isinstance(error, lmdb.BadTxnError):
        return UsageError(f"a transaction of {path} was used after its end, or after an error: {error}")
    if isinstance(error, lmdb.PanicError):
        return OutcomeUnknownError(f"the journal at {path} met a fatal error earlier: {error}")
    return _host_error(error, f"the journal at {path}: {error}")
