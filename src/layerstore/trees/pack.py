"""Packing: a directory, or an overlay upper directory, becomes a canonical tar: the inverse of ``unpack``.

The same tree always gives the same bytes: entries sorted by name as bytes, every directory before what it
holds, POSIX ustar headers with a PAX header only for what does not fit, no names of users, no access times,
10240-byte records not used. Overlay's forms become the archive's: a device 0:0 is ``.wh.X``, an opaque
directory holds ``.wh..wh..opq``. Source of both: the OCI image specification, layer.md.
How a header is written is ``formats.tar.writing``'s.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from layerstore.errors import LimitExceededError, SourceError
from layerstore.formats.manifest import meaningful_xattr
from layerstore.formats.tar import BLOCK
from layerstore.formats.tar.writing import encoded
from layerstore.system import filecaps
from layerstore.system.descriptors import DIRECTORY, Descriptor
from layerstore.trees.whiteouts import is_whiteout

__all__ = ["pack_tree"]

_CHUNK = 1 << 20
_FLAGS = {
    stat.S_IFREG: b"0", stat.S_IFLNK: b"2", stat.S_IFCHR: b"3", stat.S_IFBLK: b"4", stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}
_NEEDS_VALUE = (b"trusted.overlay.opaque", b"user.overlay.opaque")
# an upper directory's entry that is only part of one: what it lacks is in a layer below, in the end by another name
_PARTIAL = {
    f"{form}.overlay.{mark}".encode(): f"overlayfs has only {what} here ({form}.overlay.{mark})"
    for form in ("trusted", "user")
    for mark, what in (("metacopy", "attributes, and not the content"), ("redirect", "what is not in another place below"))
}

_WHOLE_HINT = "pack the directory where the overlay is mounted, or make the changes with redirect_dir=off,metacopy=off"


def pack_tree(diff_fd: int, max_depth: int) -> Iterator[bytes]:
    """The tree under the open directory *diff_fd* as a tar, in chunks of about 1 MiB.

    Owners, modes, times to the nanosecond, hard links (the first path in order is the file), devices and
    meaningful attributes (ACLs, too) are kept; holes become zeros; sockets are left out, as by every tar. Nothing is
    followed. Owner, mode and type are those on the disk: ``user.containers.override_stat``, which says others, is left
    out and not heeded, since whoever owns a file may set it.

    SourceError for what no layer can say (an attribute whose name has ``=`` or is not UTF-8; a name that means a
    whiteout), for what overlayfs has only a part of, by ``metacopy=on`` or ``redirect_dir=on`` (``trusted.overlay.*`` is
    seen by root only), and if a file changes its size while it is read. LimitExceededError for directories more than
    *max_depth* deep, each of which is one open descriptor. OSError if something cannot be read.
    """
    pending: list[bytes] = []
    size = 0
    for piece in _Packer(max_depth).tree(diff_fd):
        pending.append(piece)
        size += len(piece)
        if size >= _CHUNK:
            yield b"".join(pending)
            pending, size = [], 0
    pending.append(bytes(2 * BLOCK))
    yield b"".join(pending)


class _Packer:
    def __init__(self, max_depth: int) -> None:
        self._max_depth = max_depth
        self._links: dict[tuple[int, int], bytes] = {}

    def tree(self, root_fd: int) -> Iterator[bytes]:
        """All of it. Not recursive: how deep it is was the choice of whoever made it."""
        # directories from the root down, which are open: path, descriptor, and what of it is still to come
        way: list[tuple[bytes, Descriptor, Iterator[bytes]]] = []

        def enter(path: bytes, name: str | bytes, dir_fd: int) -> Iterator[bytes]:
            directory = Descriptor(name, DIRECTORY, dir_fd=dir_fd)
            way.append((path, directory, iter(())))
            way[-1] = path, directory, iter(sorted(map(os.fsencode, os.listdir(directory.fd))))
            return self._directory(path, directory.fd)

        try:
            yield from enter(b"", ".", root_fd)
            while way:
                path, directory, names = way[-1]
                name = next(names, None)
                if name is None:
                    way.pop()
                    directory.close()
                    continue
                found = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    if len(way) > self._max_depth:
                        raise LimitExceededError(
                            f"{os.fsdecode(_join(path, name))!r} lies too deep", limit="max_depth", maximum=self._max_depth,
                        )
                    yield from enter(_join(path, name), name, directory.fd)
                elif not stat.S_ISSOCK(found.st_mode):
                    yield from self._other(path, name, directory.fd, found)
        finally:
            for _, directory, _ in way:
                directory.close()

    @staticmethod
    def _directory(path: bytes, fd: int) -> Iterator[bytes]:
        names = {os.fsencode(name) for name in os.listxattr(fd)}
        yield _header(path + b"/" if path else b"./", os.fstat(fd), b"5", xattrs=_xattrs(fd, names, path))
        if any(name in names and os.getxattr(fd, name) == b"y" for name in _NEEDS_VALUE):
            yield _whiteout(_join(path, b".wh..wh..opq"))

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
        xattrs = _xattrs(where, {os.fsencode(n) for n in os.listxattr(where, follow_symlinks=False)}, path)
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
        yield bytes(-status.st_size % BLOCK)
    finally:
        os.close(fd)


def _xattrs(where: int | bytes, names: set[bytes], path: bytes) -> dict[bytes, bytes]:
    """Those of *names* that a layer may have. SourceError for *path* if they say it is not whole, or cannot be said."""
    for name in sorted(names):
        if name in _PARTIAL:
            raise SourceError(f"{os.fsdecode(path or b'.')!r} is not whole: {_PARTIAL[name]}", hint=_WHOLE_HINT)
    kept = sorted(name for name in names if meaningful_xattr(name))
    for name in kept:
        if b"=" in name or not _is_utf8(name):
            raise SourceError(
                f"{os.fsdecode(path or b'.')!r} has the attribute {os.fsdecode(name)!r}: no tar can have one of that name",
                hint="remove it (setfattr -x)",
            )
    follow = isinstance(where, int)
    found = {name: os.getxattr(where, name, follow_symlinks=follow) for name in kept}
    return {name: filecaps.portable(value) if name == filecaps.NAME else value for name, value in found.items()}


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _whiteout(path: bytes) -> bytes:
    """An empty file that means something by its name; the rest of it is always the same."""
    return encoded(path, b"0", mode=0, uid=0, gid=0, size=0, mtime_ns=0)


def _header(
    path: bytes, status: os.stat_result, flag: bytes, *, size: int = 0, link: bytes = b"",
    xattrs: dict[bytes, bytes] | None = None,
) -> bytes:
    device = status.st_rdev if flag in (b"3", b"4") else 0
    return encoded(
        path, flag, mode=stat.S_IMODE(status.st_mode) if flag != b"2" else 0o777, uid=status.st_uid,
        gid=status.st_gid, size=size, mtime_ns=status.st_mtime_ns, link=link, device=device, xattrs=xattrs,
    )


def _join(parent: bytes, name: bytes) -> bytes:
    return parent + b"/" + name if parent else name
