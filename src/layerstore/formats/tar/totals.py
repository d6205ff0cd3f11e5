"""What the entries so far add up to, against the limits on a whole archive. Counting only."""

from __future__ import annotations

from collections.abc import Mapping

from layerstore.errors import LimitExceededError
from layerstore.formats.tar.names import show
from layerstore.model import Limits

__all__ = ["Totals"]

_XATTR_COST = 64                         # bytes that an attribute takes beside its name and value


class Totals:
    """Add what an entry brings; LimitExceededError if it is too much with all that came before."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._bytes = self._holes = self._xattrs = 0

    def file(self, size: int, holes: int, name: bytes) -> None:
        """A file of *size* bytes; *holes* of them are holes, which count as bytes too: each will be hashed as a zero."""
        self._bytes += size
        if self._bytes > self._limits.max_bytes:
            raise LimitExceededError(
                f"the files up to {show(name)} ({size} bytes) have too many bytes together", limit="max_bytes",
                maximum=self._limits.max_bytes,
            )
        if holes:
            self._holes += holes
            if self._holes > self._limits.max_hole_bytes:
                raise LimitExceededError(
                    f"the sparse files up to {show(name)} have too many bytes of holes together", limit="max_hole_bytes",
                    maximum=self._limits.max_hole_bytes,
                )

    def xattrs(self, xattrs: Mapping[bytes, bytes]) -> None:
        """One entry's extended attributes."""
        self._xattrs += sum(len(name) + len(value) + _XATTR_COST for name, value in xattrs.items())
        if self._xattrs > self._limits.max_xattr_bytes:
            raise LimitExceededError(
                "the extended attributes of all entries are too long together", limit="max_xattr_bytes",
                maximum=self._limits.max_xattr_bytes,
            )
