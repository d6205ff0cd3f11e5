"""The data file before LMDB may have it: whether it can be read, is as long as it says, and has the structure of one."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from lmdb.verify import VerifyError
from lmdb.verify import verify as lmdb_verify

from layerjournal import pages
from layerjournal.errors import DamagedError, HostError
from layerjournal.metapage import expected_size

__all__ = ["DATA_FILE", "check_size", "identity", "readable", "structural_problems"]

DATA_FILE = "data.mdb"
_UNREADABLE = "look at the kernel's log; what can still be read of it can be salvaged"


@contextmanager
def readable(path: str) -> Iterator[None]:
    """A device that does not give back what it has is the machine's error: nothing was written, and nothing is unknown."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise HostError(f"{path} cannot be read: {error}", hint=_UNREADABLE) from error


def check_size(path: str) -> None:
    """DamagedError when *path* is shorter than its newest meta page says: reading it would kill us by SIGBUS.

    O(1) in the ordinary case. Pages at the very end that were allocated and freed unwritten may be missing
    legitimately; then the structural walk decides.
    """
    size, expected = expected_size(path)
    if size < expected and structural_problems(path):
        raise DamagedError(f"{path} is truncated: it has {size} of {expected} bytes")


def structural_problems(path: str) -> list[str]:
    """What LMDB's own offline walk finds wrong with a data file, and ours: structure, not values. About 80 MB/s."""
    try:
        found = [str(problem) for problem in lmdb_verify(path)]  # type: ignore[no-untyped-call]
    except VerifyError as error:
        found = [str(error)]
    return found or pages.damage(path)


def identity(path: str) -> tuple[int, int]:
    """Which file it is, by whatever path."""
    status = os.stat(path)
    return status.st_dev, status.st_ino
