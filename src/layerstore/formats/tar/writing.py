"""Writing members of a canonical tar: POSIX ustar headers, and before one a PAX header with what does not fit.

The inverse of ``header`` and ``pax``. What goes into a tar, and in which order, is ``trees.pack``'s.
"""

from __future__ import annotations

import os

from layerstore.formats.tar.header import BLOCK

__all__ = ["encoded"]


def encoded(
    path: bytes, flag: bytes, *, mode: int, uid: int, gid: int, size: int, mtime_ns: int, link: bytes = b"",
    device: int = 0, xattrs: dict[bytes, bytes] | None = None,
) -> bytes:
    """A member's header; *xattrs* by names that are UTF-8 without ``=``, since a PAX record ends its key there."""
    pax: list[tuple[bytes, bytes]] = []
    split = _split(path)
    if split is None:
        pax.append((b"path", path))
        split = (b"", path[:100])
    if len(link) > 100:
        pax.append((b"linkpath", link))
    if size >= 1 << 33:
        pax.append((b"size", b"%d" % size))
    pax += [(key, b"%d" % value) for key, value in ((b"uid", uid), (b"gid", gid)) if value >= 1 << 21]
    seconds, nanoseconds = divmod(mtime_ns, 1_000_000_000)
    if nanoseconds or not 0 <= seconds < 1 << 33:
        pax.append((b"mtime", _decimal(mtime_ns)))
    pax += [(b"SCHILY.xattr." + name, value) for name, value in (xattrs or {}).items()]
    header = _ustar(
        split,
        flag,
        mode,
        uid if uid < 1 << 21 else 0,
        gid if gid < 1 << 21 else 0,
        size if size < 1 << 33 else 0,
        seconds if 0 <= seconds < 1 << 33 else 0,
        link[:100],
        device,
    )
    if not pax:
        return header
    data = b"".join(_record(key, value) for key, value in sorted(pax))
    outer = _ustar((b"", b"PaxHeader"), b"x", 0, 0, 0, len(data), 0, b"", 0)
    return outer + data + bytes(-len(data) % BLOCK) + header


def _decimal(nanoseconds: int) -> bytes:
    """Decimal seconds, exact, without trailing zeros."""
    sign = b"-" if nanoseconds < 0 else b""
    whole, fraction = divmod(abs(nanoseconds), 1_000_000_000)
    digits = b".%09d" % fraction
    return sign + b"%d" % whole + (digits.rstrip(b"0") if fraction else b"")


def _record(key: bytes, value: bytes) -> bytes:
    r"""``<length> <key>=<value>\n``, where the length counts its own digits too."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _split(path: bytes) -> tuple[bytes, bytes] | None:
    """*path* as ustar's prefix and name, or None if it does not fit."""
    if len(path) <= 100:
        return b"", path
    cut = path.rfind(b"/", 0, min(156, len(path) - 1))
    if cut <= 0 or len(path) - cut - 1 > 100:
        return None
    return path[:cut], path[cut + 1 :]


def _ustar(
    split: tuple[bytes, bytes],
    flag: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    link: bytes,
    device: int,
) -> bytes:
    head = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0" % (split[1].ljust(100, b"\0"), mode, uid, gid, size, mtime)
    tail = b"%s%sustar\x0000%s%07o\0%07o\0%s" % (
        flag,
        link.ljust(100, b"\0"),
        bytes(64),
        os.major(device),
        os.minor(device),
        split[0].ljust(155, b"\0"),
    )
    total = sum(head) + 8 * 0x20 + sum(tail)
    return (head + b"%06o\0 " % total + tail).ljust(BLOCK, b"\0")
