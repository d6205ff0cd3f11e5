"""Stores as bytes: copies of them, and prints by which equal ones are known. Nothing here opens a store.

A rig copies a store for every state, so copying costs no process and no block that holds nothing: what is allocated and
was never written, as the store's reserve, is a hole in the copy.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator

_CHUNK = 1 << 20


def copy_store(source: str, target: str) -> None:
    """Copy a store that nobody has open, with all that matters to it: links, times, modes, owners, xattrs, device nodes.

    Args:
        source: a directory.
        target: a path where nothing is.

    Raises:
        OSError: as it comes; what was copied by then is left.

    Durability: nothing is synced.

    """
    _copy(source, target, os.lstat(source), {})


def copy_entry(source: str, target: str) -> None:
    """Copy one file, link or node of a store, as ``copy_store`` does: *target* is a file of its own. Nothing is synced."""
    _copy(source, target, os.lstat(source), {})


def _copy(source: str, target: str, status: os.stat_result, linked: dict[tuple[int, int], str]) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if status.st_nlink > 1 and kind != stat.S_IFDIR:
        first = linked.setdefault((status.st_dev, status.st_ino), target)
        if first is not target:
            os.link(first, target, follow_symlinks=False)
            return
    if kind == stat.S_IFDIR:
        os.mkdir(target, 0o700)
        with os.scandir(source) as entries:
            for each in entries:
                _copy(each.path, f"{target}/{each.name}", each.stat(follow_symlinks=False), linked)
    elif kind == stat.S_IFREG:
        _copy_file(source, target, status.st_size)
    elif kind == stat.S_IFLNK:
        os.symlink(os.readlink(source), target)
    else:
        os.mknod(target, status.st_mode, status.st_rdev)
    dress(source, target, status)


def dress(source: str, target: str, status: os.stat_result) -> None:
    """Give *target* the attributes of *source*, whose *status* is known.

    The owner first, as that takes set-user-ID bits and capabilities away; xattrs while the file can be written to.
    """
    os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
    for name in os.listxattr(source, follow_symlinks=False):
        if name != "security.selinux":   # the host's own affair
            os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=False), follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)


def _copy_file(source: str, target: str, size: int) -> None:
    inward = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        outward = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            at = 0
            for start, end in _data(inward, size):
                at = start
                while at < end:
                    at += os.pwrite(outward, os.pread(inward, min(_CHUNK, end - at), at), at)
            if at < size:
                os.ftruncate(outward, size)
        finally:
            os.close(outward)
    finally:
        os.close(inward)


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a file has something written, as (start, end); all else reads as zeros."""
    if size <= _CHUNK // 16:   # not worth asking
        yield from [(0, size)] if size else []
        return
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:   # ENXIO: nothing more
            return
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield start, end


def disk_print(directory: str) -> str:
    """Digest all that a store's directory holds and that recovery may look at: names, types, modes, contents, xattrs.

    LMDB's lock file is left out: it says who is alive, and nobody is. Times are left out, too: recovery asks none. So is
    the second line of ``pidns``, a note of the data file's inode and times: it is true of no copy.

    Args:
        directory: a directory that nobody writes to.

    Returns:
        A digest; equal ones are equal states. (Of equal states in which not the same zeros were written, prints may
        differ.)

    Durability: reads only.

    """
    digest = hashlib.sha256()
    for parent, folders, files in os.walk(directory):
        folders.sort()
        for name in sorted([*folders, *files]):
            path = os.path.join(parent, name)
            status = os.lstat(path)
            size = 0 if name == "pidns" else status.st_size
            digest.update(f"{path[len(directory):]} {status.st_mode} {status.st_rdev} {size}\n".encode())
            if name == "pidns":
                with open(path, "rb") as file:
                    digest.update(file.readline())
            elif stat.S_ISREG(status.st_mode) and name != "lock.mdb":
                _print_file(path, status.st_size, digest)
            elif stat.S_ISLNK(status.st_mode):
                digest.update(os.fsencode(os.readlink(path)))
            for attribute in sorted(os.listxattr(path, follow_symlinks=False)):
                digest.update(attribute.encode() + os.getxattr(path, attribute, follow_symlinks=False))
    return digest.hexdigest()


def _print_file(path: str, size: int, digest: hashlib._Hash) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        for start, end in _data(fd, size):
            digest.update(f"{start} {end}\n".encode())
            for at in range(start, end, _CHUNK):
                digest.update(os.pread(fd, min(_CHUNK, end - at), at))
    finally:
        os.close(fd)


__all__ = ["copy_entry", "copy_store", "disk_print", "dress"]
