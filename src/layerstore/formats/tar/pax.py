"""PAX extended headers: their records, and what of them we honour. Pure functions over bytes.

Sources: POSIX pax, "pax Extended Header"; GNU tar manual, "Storing Sparse Files"; star's SCHILY.xattr and
libarchive's LIBARCHIVE.xattr records.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from layerstore.errors import ArchiveError, LimitExceededError
from layerstore.model import Limits
from layerstore.system import filecaps

__all__ = ["Overrides", "Records", "SparseMap", "decimal", "instant", "matters", "overrides", "parse"]

_TIME = re.compile(rb"(-?)(\d+)(?:\.(\d*))?\Z")
_MAX_DIGITS = 20                         # 2^64 has twenty; also keeps int() away from megabytes of digits
_SCHILY = "SCHILY.xattr."
_LIBARCHIVE = "LIBARCHIVE.xattr."
_KEYS = frozenset({"path", "linkpath", "size", "uid", "gid", "mtime", "SCHILY.realsize", "SUN.holesdata"})
_TEXTS = frozenset({b"linkpath", b"uname", b"gname"})   # and path, which has its own words for it
_BARE = frozenset({b"user.", b"trusted.", b"security.", b"system."})   # of which Linux has no attribute (xattr(7))
_SPARSE = "GNU.sparse."
_SPARSE_KEYS = {                         # those of each version; no other's may stand beside them
    (b"1", b"0"): frozenset({"major", "minor", "name", "realsize"}),
    (b"0", b"1"): frozenset({"major", "minor", "name", "size", "numblocks", "map"}),
    (b"0", b"0"): frozenset({"major", "minor", "name", "size", "numblocks", "offset", "numbytes"}),
}


@dataclass(frozen=True, slots=True)
class Records:
    """The records of one header: the last value of each key, and GNU sparse 0.0's repeated keys in order."""

    values: Mapping[str, bytes]
    sparse_pairs: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class SparseMap:
    """A sparse file's size in bytes and its (offset, length) segments; None if they precede the data."""

    size: int
    segments: tuple[tuple[int, int], ...] | None


@dataclass(slots=True)
class Overrides:
    """What the PAX records say instead of, or beyond, the ustar header. None: nothing."""

    path: bytes | None = None
    linkpath: bytes | None = None
    size: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)
    sparse: SparseMap | None = None


def decimal(text: bytes, what: str, offset: int) -> int:
    """A number of decimal digits and nothing else, else ArchiveError."""
    if not text.isdigit() or len(text) > _MAX_DIGITS:
        raise ArchiveError(f"a {what} that is not a decimal number: {text[:40]!r}", offset=offset)
    return int(text)


def parse(data: bytes, offset: int) -> Records:
    r"""Split a header's data into records ``<length> <key>=<value>\n``.

    ArchiveError for anything that is not one.
    """
    values: dict[str, bytes] = {}
    pairs: list[tuple[bytes, bytes]] = []
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + _MAX_DIGITS + 1)
        if space < 0:
            raise ArchiveError("a PAX record without a length", offset=offset)
        end = at + decimal(data[at:space], "PAX record length", offset)
        if end > len(data) or end <= space + 1 or data[end - 1] != 0x0A:
            raise ArchiveError(f"a PAX record whose length is wrong: {data[at : at + 40]!r}", offset=offset)
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or not key:
            raise ArchiveError(f"a PAX record without a key: {data[at : at + 40]!r}", offset=offset)
        if 0 in key or (0 in value and key in _TEXTS):   # readers in C see only what is before it
            raise ArchiveError(f"a NUL byte in a PAX record: {data[at : at + 40]!r}", offset=offset)
        try:
            name = key.decode("utf-8")
        except UnicodeDecodeError:
            raise ArchiveError(f"a PAX key that is not UTF-8: {key[:40]!r}", offset=offset) from None
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            pairs.append((key, value))
        elif name.startswith(_SPARSE) and name in values:   # GNU tar adds one map to the other
            raise ArchiveError(f"two PAX records {name!r}", offset=offset)
        values[name] = value
        at = end
    return Records(values, tuple(pairs))


def matters(key: str) -> bool:
    """Whether a record of this name says anything of an entry that is honoured, or refused, here."""
    return key in _KEYS or key.startswith((_SCHILY, _LIBARCHIVE, _SPARSE))


def overrides(records: Records, offset: int, limits: Limits) -> Overrides:
    """What an entry's *records* mean for it. An empty value takes a record back: the header's field stands.

    LimitExceededError beyond the *limits* on one entry's extended attributes.
    """
    values = records.values
    found = Overrides()
    xattrs: dict[bytes, bytes] = {}
    weak: dict[bytes, bytes] = {}
    for key, value in values.items():
        if key.startswith(_SCHILY):      # here alone an empty value is a value
            xattrs[key[len(_SCHILY) :].encode()] = value
        elif not value:
            continue
        elif key.startswith(_LIBARCHIVE):
            weak[_unquoted(key[len(_LIBARCHIVE) :])] = _base64(value, offset)
        elif key == "path":
            found.path = value
        elif key == "linkpath":
            found.linkpath = value
        elif key == "size":
            found.size = decimal(value, "PAX size", offset)
        elif key == "uid":
            found.uid = decimal(value, "PAX uid", offset)
        elif key == "gid":
            found.gid = decimal(value, "PAX gid", offset)
        elif key == "mtime":
            found.mtime_ns = instant(value, offset)
    if weak or xattrs:
        found.xattrs = {**weak, **xattrs}
        _check_xattrs(found.xattrs, offset, limits)
    if any(key.startswith(_SPARSE) for key in values):
        _sparse(found, records, offset)
    if values.get("SCHILY.realsize") or values.get("SUN.holesdata"):
        raise ArchiveError("a sparse file as only star or Solaris have it", offset=offset)
    return found


def _check_xattrs(xattrs: Mapping[bytes, bytes], offset: int, limits: Limits) -> None:
    if len(xattrs) > limits.max_xattrs:
        raise LimitExceededError(
            f"the entry at offset {offset} has {len(xattrs)} extended attributes", limit="max_xattrs",
            maximum=limits.max_xattrs,
        )
    for name, value in xattrs.items():
        if not name or name in _BARE or b"\0" in name or len(name) > 255:
            raise ArchiveError(f"an extended attribute named {name[:80]!r}", offset=offset)
        if name == filecaps.NAME and not filecaps.is_whole(value):
            raise ArchiveError(f"capabilities of a file that no kernel takes: {value[:32]!r}", offset=offset)
        if len(value) > limits.max_xattr_value:
            raise LimitExceededError(
                f"the attribute {name!r} at offset {offset} has {len(value)} bytes", limit="max_xattr_value",
                maximum=limits.max_xattr_value,
            )


def _unquoted(name: str) -> bytes:
    from urllib.parse import unquote_to_bytes  # noqa: PLC0415 - rarely needed, and slow to import

    return unquote_to_bytes(name)


def _base64(value: bytes, offset: int) -> bytes:
    try:
        return binascii.a2b_base64(value + b"=" * (-len(value) % 4), strict_mode=True)
    except binascii.Error as error:
        raise ArchiveError(f"an attribute that is not base64: {value[:40]!r}", offset=offset) from error


def instant(text: bytes, offset: int) -> int:
    """Decimal seconds as nanoseconds, exactly; further digits are cut off towards the past. ArchiveError for no number."""
    match = _TIME.match(text)
    if match is None or len(text) > 64:
        raise ArchiveError(f"a PAX time that is not a number: {text[:40]!r}", offset=offset)
    sign, whole, fraction = match.groups(b"")
    value = int(whole) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0"))
    if sign:
        value = -value - (1 if fraction[9:].strip(b"0") else 0)
    return value


def _sparse(found: Overrides, records: Records, offset: int) -> None:
    """Recognise GNU sparse 0.0, 0.1 and 1.0 by their keys; set size, segments and the real name."""
    get = records.values.get
    version = _sparse_version(records.values, offset)
    segments: tuple[tuple[int, int], ...] | None
    if version == (b"1", b"0"):
        size, segments = get("GNU.sparse.realsize"), None
    elif version == (b"0", b"1"):
        size = get("GNU.sparse.size")
        text = get("GNU.sparse.map") or b""
        numbers = [decimal(n, "sparse map", offset) for n in text.split(b",")] if text else []
        if len(numbers) % 2:
            raise ArchiveError("a sparse map with an odd number of numbers", offset=offset)
        segments = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    elif version == (b"0", b"0"):
        size = get("GNU.sparse.size")
        keys = [key for key, _ in records.sparse_pairs]
        if keys != [b"GNU.sparse.offset", b"GNU.sparse.numbytes"] * (len(keys) // 2):
            raise ArchiveError("a sparse map whose offsets and lengths do not alternate", offset=offset)
        numbers = [decimal(value, "sparse map", offset) for _, value in records.sparse_pairs]
        segments = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    else:
        raise ArchiveError(f"a sparse file of the unknown version {version!r}", offset=offset)
    others = {key for key in records.values if key.startswith(_SPARSE)} - {_SPARSE + key for key in _SPARSE_KEYS[version]}
    if others:
        raise ArchiveError(f"a sparse file of two versions: {sorted(others)} in one of {version!r}", offset=offset)
    if size is None:
        raise ArchiveError("a sparse file without its real size", offset=offset)
    if segments is not None:
        if not segments:                 # GNU tar writes one that is empty for a file that is all hole
            raise ArchiveError("a sparse file without a map", offset=offset)
        count = decimal(get("GNU.sparse.numblocks") or b"", "sparse count", offset)
        if count != len(segments):
            raise ArchiveError(f"a sparse map of {len(segments)} segments, not {count}", offset=offset)
    found.path = get("GNU.sparse.name") or found.path
    found.sparse = SparseMap(decimal(size, "sparse file size", offset), segments)


def _sparse_version(values: Mapping[str, bytes], offset: int) -> tuple[bytes, bytes]:
    """Major and minor: both are there or, before 1.0, neither. With one of them Go's reader has a file without holes."""
    major, minor = values.get("GNU.sparse.major"), values.get("GNU.sparse.minor")
    if major is not None and minor is not None:
        return major, minor
    if major is not None or minor is not None:
        raise ArchiveError("a sparse file of half a version", offset=offset)
    return (b"0", b"1") if "GNU.sparse.map" in values else (b"0", b"0")
