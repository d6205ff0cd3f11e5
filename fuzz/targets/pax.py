"""Any bytes as a PAX header are refused by a typed error, or are exactly their records joined, and mean values of the
right kinds.
"""

from __future__ import annotations

from layerstore.errors import ArchiveError, LimitExceededError
from layerstore.formats.tar import pax
from layerstore.model import Limits

_LIMITS = Limits(max_xattr_value=256, max_xattrs=8)


def check(data: bytes) -> None:
    try:
        records = pax.parse(data, 0)
    except ArchiveError:
        return
    again = _joined(data)
    assert again is not None, "accepted, though its lengths do not add up"
    last = dict(again)
    assert {key.encode(): value for key, value in records.values.items()} == last, "other records than were written"
    _mean(records)


def _joined(data: bytes) -> list[tuple[bytes, bytes]] | None:
    """The records, by a reader as simple as the format."""
    found = []
    while data:
        length = int(data.split(b" ", 1)[0])
        line, data = data[:length], data[length:]
        if len(line) != length or line[-1:] != b"\n":
            return None
        key, _, value = line[:-1].split(b" ", 1)[1].partition(b"=")
        found.append((key, value))
    return found


def _mean(records: pax.Records) -> None:
    try:
        over = pax.overrides(records, 0, _LIMITS)
    except (ArchiveError, LimitExceededError):
        return
    assert all(n is None or n >= 0 for n in (over.size, over.uid, over.gid)), "a negative number"
    assert over.mtime_ns is None or isinstance(over.mtime_ns, int)
    for name, value in over.xattrs.items():
        assert name, "an attribute without a name"
        assert b"\0" not in name, "a NUL in a name"
        assert len(value) <= _LIMITS.max_xattr_value, "a value beyond the limit"
    if over.sparse is not None:
        assert over.sparse.size >= 0
        assert all(at >= 0 and length >= 0 for at, length in over.sparse.segments or ())
