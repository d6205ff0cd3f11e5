"""Packing: a directory, or an overlay upper directory, becomes a canonical tar: the inverse of ``unpack``.

The same tree always gives the same bytes: entries sorted by name as bytes, every directory before what it
holds, POSIX ustar headers with a PAX header only for what does not fit, no names of users, no access times,
10240-byte records not used. Overlay's forms become the archive's: a device 0:0 is ``.wh.X``, an opaque
directory holds ``.wh..wh..opq``. Source of both: the OCI image specification, layer.md.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from layerstore.errors import SourceError
from layerstore.formats.manifest import storable_xattr
from layerstore.system.descriptors import DIRECTORY
from layerstore.trees.whiteouts import is_whiteout

__all__ = ["pack_tree"]

_BLOCK = 512
_CHUNK = 1 << 20
_FLAGS = {
    stat.S_IFREG: b"0", stat.S_IFLNK: b"2", stat.S_IFCHR: b"3", stat.S_IFBLK: b"4", stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}
_NEEDS_VALUE = (b"trusted.overlay.opaque", b"user.overlay.opaque")


def pack_tree(diff_fd: int) -> Iterator[bytes]:
    """The tree under the open directory *diff_fd* as a tar, in chunks of about 1 MiB.

    Owners, modes, times to the nanosecond, hard links (the first path in order is the file), devices and
    storable attributes are kept; holes become zeros; sockets are left out, as by every tar. Nothing is
    followed. SourceError if a file changes its size while it is read; OSError if something cannot be read.
    """
    pending: list[bytes] = []
    size = 0
    for piece in _Packer().tree(diff_fd):
        pending.append(piece)
        size += len(piece)
        if size >= _CHUNK:
            yield b"".join(pending)
            pending, size = [], 0
    pending.append(bytes(2 * _BLOCK))
    yield b"".join(pending)


class _Packer:
    def __init__(self) -> None:
        self._links: dict[tuple[int, int], bytes] = {}

    def tree(self, root_fd: int) -> Iterator[bytes]:
        own = os.open(".", DIRECTORY, dir_fd=root_fd)
        try:
            yield from self._directory(b"", own, os.fstat(own))
        finally:
            os.close(own)

    def _directory(self, path: bytes, fd: int, status: os.stat_result) -> Iterator[bytes]:
        """One directory and all beneath it.

        Recursive: depth is bounded by the path length the kernel lets us open.
        """
        names = {os.fsencode(name) for name in os.listxattr(fd)}
        yield _header(path + b"/" if path else b"./", status, b"5", xattrs=_xattrs(fd, names))
        if any(name in names and os.getxattr(fd, name) == b"y" for name in _NEEDS_VALUE):
            yield _whiteout(_join(path, b".wh..wh..opq"))
        for name in sorted(map(os.fsencode, os.listdir(fd))):
            child = _join(path, name)
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                child_fd = os.open(name, DIRECTORY, dir_fd=fd)
                try:
                    yield from self._directory(child, child_fd, os.fstat(child_fd))
                finally:
                    os.close(child_fd)
            elif not stat.S_ISSOCK(found.st_mode):
                yield from self._other(path, name, fd, found)

    def _other(self, parent: bytes, name: bytes, dir_fd: int, found: os.stat_result) -> Iterator[bytes]:
        path = _join(parent, name)
        if is_whiteout(found, name, dir_fd):
            yield _whiteout(_join(parent, b".wh." + name))
            return
        if name.startswith(b".wh."):
            raise SourceError(f"{os.fsdecode(path)!r} has a name that means a whiteout in a layer")
        if found.st_nlink > 1:
            first = self._links.setdefault((found.st_dev, found.st_ino), path)
            if first != path:
                yield _header(path, found, b"1", link=first)
                return
        where = f"/proc/self/fd/{dir_fd}/".encode() + name
        xattrs = _xattrs(where, {os.fsencode(n) for n in os.listxattr(where, follow_symlinks=False)})
        flag = _FLAGS[stat.S_IFMT(found.st_mode)]
        if flag == b"2":
            yield _header(path, found, flag, link=os.readlink(name, dir_fd=dir_fd), xattrs=xattrs)
        elif flag == b"0":
            yield from _file(path, name, dir_fd, found, xattrs)
        else:
            yield _header(path, found, flag, xattrs=xattrs)


def _file(
    path: bytes, name: bytes, dir_fd: int, found: os.stat_result, xattrs: dict[bytes, bytes]
) -> Iterator[bytes]:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != (found.st_dev, found.st_ino):
            raise SourceError(f"{os.fsdecode(path)!r} was replaced while it was read")
        yield _header(path, status, b"0", size=status.st_size, xattrs=xattrs)
        left = status.st_size
        while left:
            data = os.read(fd, min(left, _CHUNK))
            if not data:
                raise SourceError(f"{os.fsdecode(path)!r} became shorter while it was read")
            left -= len(data)
            yield data
        if os.read(fd, 1):
            raise SourceError(f"{os.fsdecode(path)!r} became longer while it was read")
        yield bytes(-status.st_size % _BLOCK)
    finally:
        os.close(fd)


def _xattrs(where: int | bytes, names: set[bytes]) -> dict[bytes, bytes]:
    kept = sorted(name for name in names if storable_xattr(name))
    if isinstance(where, int):
        return {name: os.getxattr(where, name) for name in kept}
    return {name: os.getxattr(where, name, follow_symlinks=False) for name in kept}


def _whiteout(path: bytes) -> bytes:
    """An empty file that means something by its name; the rest of it is always the same."""
    return _encode(path, b"0", mode=0, uid=0, gid=0, size=0, mtime_ns=0)


def _header(
    path: bytes, status: os.stat_result, flag: bytes, *, size: int = 0, link: bytes = b"",
    xattrs: dict[bytes, bytes] | None = None,
) -> bytes:
    device = status.st_rdev if flag in (b"3", b"4") else 0
    return _encode(
        path, flag, mode=stat.S_IMODE(status.st_mode) if flag != b"2" else 0o777, uid=status.st_uid,
        gid=status.st_gid, size=size, mtime_ns=status.st_mtime_ns, link=link, device=device, xattrs=xattrs,
    )


def _encode(
    path: bytes, flag: bytes, *, mode: int, uid: int, gid: int, size: int, mtime_ns: int, link: bytes = b"",
    device: int = 0, xattrs: dict[bytes, bytes] | None = None,
) -> bytes:
    """A ustar header, and before it a PAX header with what does not fit."""
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
    return outer + data + bytes(-len(data) % _BLOCK) + header


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
    return (head + b"%06o\0 " % total + tail).ljust(_BLOCK, b"\0")


def _join(parent: bytes, name: bytes) -> bytes:
    return parent + b"/" + name if parent else name
