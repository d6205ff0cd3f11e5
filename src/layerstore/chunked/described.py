"""What a table of contents says of a member of a tar: its fields as Go's reader has them, for TOCs are compared with that.

Our own reader makes of a header what it means (a mode without its type, a clean target, every kind of attribute). A TOC
has what is in it. What the two could not agree about has no TOC: better none than one that others refuse. Pure.

Sources: containers/storage ``pkg/chunked/internal/minimal`` (``NewFileMetadata``), ``ensureFileMetadataAttributesMatch``;
vbatts/tar-split ``archive/tar``, whose reader both use.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from layerstore.chunked.annotations import Unsuitable
from layerstore.chunked.toc import TYPES
from layerstore.errors import ArchiveError
from layerstore.formats.tar import Entry, pax
from layerstore.formats.tar.header import BLOCK, TIME_END, device, number

__all__ = ["described"]

_FLAGS = {
    b"0": "file", b"1": "hardlink", b"2": "symlink", b"3": "char", b"4": "block", b"5": "dir", b"6": "fifo",
}
_XATTR = "SCHILY.xattr."
_EPOCH = datetime(1970, 1, 1)            # noqa: DTZ001 - a difference is added to it
_SECOND = 1_000_000_000
_NONE: Mapping[str, bytes] = {}


class _Headers(NamedTuple):
    """The header of a member, the PAX records before it, and GNU's long target, if it has one."""

    block: bytes
    records: Mapping[str, bytes]
    long_link: bytes | None


def described(entry: Entry, name: bytes, raw: bytes) -> dict[str, Any]:
    """The fields of the member's *entry*, without its content's: *name* as the archive has it, *raw* its headers' bytes.

    In the order in which they are written; those that are 0 or empty are left out. Unsuitable for a member that a TOC
    cannot describe in the way that all readers have it.
    """
    if entry.sparse is not None:
        raise Unsuitable("it has sparse files, of which a tar-split cannot say where their data is")
    try:
        found = _headers(raw)
        _check_kind(entry, found)
        link = _link(found).decode()
        major, minor = _device(entry, found.block)
        fields = {
            "type": TYPES[entry.type], "name": name.decode(), "linkName": link,
            "mode": number(found.block[100:108], "mode", 0), "size": entry.size, "uid": entry.uid, "gid": entry.gid,
            "modtime": _time(entry.mtime_ns), "accesstime": _pax_time(found, "atime"),
            "changetime": _pax_time(found, "ctime"), "devMajor": major, "devMinor": minor, "xattrs": _xattrs(found.records),
        }
    except UnicodeDecodeError:
        raise Unsuitable("it has a name that is not UTF-8, which JSON cannot say") from None
    except ArchiveError as error:        # in a field that our reader has no use for
        raise Unsuitable(f"it has a header that not every reader takes: {error}") from None
    return {key: value for key, value in fields.items() if value}


def _headers(raw: bytes) -> _Headers:
    records, long_link, at = _NONE, None, 0
    while True:
        block = raw[at : at + BLOCK]
        flag = block[156:157]
        if flag == b"g":
            raise Unsuitable("it has a global PAX header, which the tools of the field take for a member")
        if flag not in (b"x", b"L", b"K"):
            return _Headers(block, records, long_link)
        size = number(block[124:136], "size", at)
        data = raw[at + BLOCK : at + BLOCK + size]
        if flag == b"x":
            records = pax.parse(data, at).values
        elif flag == b"K":
            long_link = data.partition(b"\0")[0]
        at += BLOCK + size + -size % BLOCK


def _check_kind(entry: Entry, found: _Headers) -> None:
    block, flag = found.block, found.block[156:157]
    if _FLAGS.get(flag) != entry.type and not (flag == b"\0" and entry.type in ("file", "dir")):
        raise Unsuitable(f"it has a member of type {flag!r}, which others take for something else")
    size = found.records.get("size") or b""
    if entry.type != "file" and (size.strip(b"0") or number(block[124:136], "size", 0)):
        raise Unsuitable(f"it has a {entry.type} that says a size")
    gnu = block[257:265] == b"ustar  \0"
    if (gnu and (block[345] or block[357])) or (block[257:263] == b"ustar\0" and block[508:512] == b"tar\0"):
        raise Unsuitable("it has headers of GNU's or star's own, with times that we do not read")


def _link(found: _Headers) -> bytes:
    own = found.block[157:257].partition(b"\0")[0] if found.long_link is None else found.long_link
    return found.records.get("linkpath") or own


def _device(entry: Entry, block: bytes) -> tuple[int, int]:
    """The header's numbers, whatever it is the header of."""
    if block[257:263] == b"ustar\0" or block[257:265] == b"ustar  \0":
        return device(block, 0)
    if (entry.devmajor, entry.devminor) != (0, 0):
        raise Unsuitable("it has a device in a header of before ustar, where others see no number")
    return 0, 0


def _pax_time(found: _Headers, key: str) -> str:
    text = found.records.get(key)
    return _time(pax.instant(text, 0)) if text else ""


def _time(at_ns: int) -> str:
    """RFC 3339 in UTC, with as many digits as are needed. 1970 is said, too: a header always has a time."""
    seconds, fraction = divmod(at_ns, _SECOND)
    if not -TIME_END < at_ns < TIME_END - 1 or (at_ns < 0 and fraction):
        raise Unsuitable("it has a time that not every reader rounds alike")
    text = (_EPOCH + timedelta(seconds=seconds)).isoformat()
    return f"{text}.{fraction:09}".rstrip("0") + "Z" if fraction else text + "Z"


def _xattrs(records: Mapping[str, bytes]) -> dict[str, str]:
    """Of libarchive's own way of writing them the field's tools know nothing."""
    return {
        key.removeprefix(_XATTR): base64.b64encode(records[key]).decode()
        for key in sorted(records) if key.startswith(_XATTR)
    }
