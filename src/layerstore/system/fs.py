"""Effects on the disk outside the journal: making, writing, moving and syncing what is in a store, and reading it back.

Each effect passes a named fault point (``faults``) before and after; the caller names it, so that one function
serves several steps of the write order (docs/crash-model.md). Everything is relative to open directory
descriptors. No decisions are made here: what to do comes from the verbs and from recovery's plan.

Whole trees are removed by ``removing``, and what others read is made by ``public``. Layer content is written by ``unpack``
through descriptors handed out here; reading is anybody's.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress

from layerstore.errors import (
    BusyError,
    HostError,
    IoError,
    NoInodesError,
    NoSpaceError,
    PrivilegeError,
    ReadOnlyError,
)
from layerstore.system import faults, kernel
from layerstore.system.descriptors import DIRECTORY, NEW_FILE, Descriptor
from layerstore.system.room import free_bytes, free_inodes, has_bytes

_PIECE = 1 << 20
TXID_FILE = "txid"


class SyncError(OSError):
    """A sync failed: what it was to make durable may be lost, and the next one would not say so. Never tried again."""


def host_error(error: OSError, doing: str, *, at: int | None = None) -> HostError:
    """The typed error for a failing system call, naming what was being done; *at* is open where it was.

    A file system that is full says the same of bytes and of inodes; so it is asked what of them is left *at* there now.
    Of inodes alone it is full only where there are bytes: most that make inodes as they are needed reckon from free bytes
    how many there can be.
    """
    text = f"{doing}: {error.strerror or error}"
    number = error.errno
    if number == errno.ENOSPC and at is not None:
        if free_inodes(at) == 0 and has_bytes(at):
            return NoInodesError(f"{doing}: the file system has no inode left for another file", free=0)
        return NoSpaceError(text, free=free_bytes(at))
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return NoSpaceError(text)
    if number == errno.EROFS:
        return ReadOnlyError(text)
    if number in (errno.EPERM, errno.EACCES):
        return PrivilegeError(text)
    if number in (errno.EMFILE, errno.ENFILE):
        return BusyError(text, hint="raise the limit on open files (ulimit -n), or use fewer workers")
    return IoError(text)


def open_dir(name: str, dir_fd: int | None = None) -> Descriptor:
    return Descriptor(name, DIRECTORY, dir_fd=dir_fd)


def exists(dir_fd: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def has_entry(dir_fd: int, directory: str, name: str) -> bool:
    """Whether *directory* in *dir_fd* has *name*; False where that cannot be told."""
    try:
        os.stat(f"{directory}/{name}", dir_fd=dir_fd, follow_symlinks=False)
    except OSError:
        return False
    return True


def make_dir(dir_fd: int, name: str, *, point: str, mode: int = 0o700) -> None:
    with faults.point(point):
        os.mkdir(name, mode, dir_fd=dir_fd)


def write_all(fd: int, data: bytes) -> None:
    """write(2) until everything is written: a short write is not an error, and not the end."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]


def write_new(dir_fd: int, name: str, data: bytes, *, point: str, sync: bool = False) -> None:
    """Create *name* with *data*; it must not exist. With *sync* the file (not its directory) is fsynced."""
    with faults.point(point), Descriptor(name, NEW_FILE, dir_fd=dir_fd) as fd:
        write_all(fd, data)
        if sync:
            fsync(fd)


def extend(fd: int, parts: list[bytes], *, point: str) -> None:
    """Write *parts*, one after the other, at the end of the file open as *fd* with O_APPEND."""
    with faults.point(point):
        written = os.writev(fd, parts)
        if written < sum(map(len, parts)):
            write_all(fd, b"".join(parts)[written:])


def cut(fd: int, size: int, *, point: str) -> None:
    """Make the file end after *size* bytes."""
    with faults.point(point):
        os.ftruncate(fd, size)


def replace_file(dir_fd: int, name: str, data: bytes, *, point: str, sync: bool = False) -> None:
    """Put *data* at *name* by way of ``.<name>.new`` and rename: old content or new, never a mixture.

    The caller holds a lock under which nobody else replaces the same name. What a crash leaves beside it is
    overwritten by the next attempt.
    """
    aside = f".{name}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with faults.point(f"{point}.write"), Descriptor(aside, flags, dir_fd=dir_fd) as fd:
        write_all(fd, data)
        if sync:
            fsync(fd)
    with faults.point(f"{point}.rename"):
        os.rename(aside, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)


_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK


def append(dir_fd: int, name: str, data: bytes, *, point: str) -> None:
    """Add *data* to the end of *name*, which is made if it is missing. Never synced; a crash may tear it."""
    with faults.point(point), Descriptor(name, _APPEND, dir_fd=dir_fd) as fd:
        write_all(fd, data)


def append_each(dir_fd: int, what: Mapping[str, bytes], name: str, *, point: str) -> None:
    """The same in several directories in *dir_fd*, as one effect. Those in which it cannot be done are passed over."""
    with faults.point(point):
        for directory, data in what.items():
            with suppress(OSError), open_dir(directory, dir_fd) as own, Descriptor(name, _APPEND, dir_fd=own) as fd:
                write_all(fd, data)


def size(fd: int) -> int:
    """The bytes of an open file."""
    return os.fstat(fd).st_size


def allocate(dir_fd: int, name: str, size: int, *, point: str) -> None:
    """Make *name* a file of at least *size* allocated bytes, which nobody wrote. May be done again, by several at once.

    Where the file system cannot allocate without writing, it is written.
    """
    with faults.point(point), Descriptor(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, dir_fd=dir_fd) as fd:
        os.posix_fallocate(fd, 0, size)


def read_file(dir_fd: int, name: str, *, maximum: int = 64 << 20) -> bytes | None:
    """The content of *name*, or None if it is not there, not a regular file, or larger than *maximum* bytes."""
    try:
        file = Descriptor(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            return None
        raise
    with file as fd:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > maximum:
            return None
        return _read_all(fd, maximum)


def _read_all(fd: int, maximum: int) -> bytes:
    """What it holds, up to one byte more than *maximum*: read(2) may give less than it was asked for."""
    pieces = []
    while maximum >= 0 and (piece := os.read(fd, min(maximum + 1, _PIECE))):
        pieces.append(piece)
        maximum -= len(piece)
    return b"".join(pieces)


def move(src_fd: int, src: str, dst_fd: int, dst: str, *, point: str) -> None:
    """renameat2(RENAME_NOREPLACE): never over anything. FileExistsError if *dst* is there.

    A kernel or file system that does not know the flag is refused at open (``filesystem.probe``).
    """
    with faults.point(point):
        kernel.renameat2(src_fd, src, dst_fd, dst, kernel.RENAME_NOREPLACE)


def keep_as(src_fd: int, src: str | bytes, dst_fd: int, dst: str, *, point: str) -> None:
    """Give a file a second name, so that what it holds outlives the first. FileExistsError if *dst* is there."""
    with faults.point(point):
        os.link(src, dst, src_dir_fd=src_fd, dst_dir_fd=dst_fd, follow_symlinks=False)


def put_in_place(src_fd: int, src: str, dst_fd: int, dst: str, *, point: str) -> None:
    """rename(2), over what is there: what was *dst* is another name's, too, or nobody's (see ``keep_as``)."""
    with faults.point(point):
        os.rename(src, dst, src_dir_fd=src_fd, dst_dir_fd=dst_fd)


def exchange(src_fd: int, src: str, dst_fd: int, dst: str, *, point: str) -> None:
    """renameat2(RENAME_EXCHANGE): each has the other's name, in one step. FileNotFoundError unless both are there."""
    with faults.point(point):
        kernel.renameat2(src_fd, src, dst_fd, dst, kernel.RENAME_EXCHANGE)


def make_symlink(target: bytes, dir_fd: int, name: str, *, point: str) -> None:
    with faults.point(point):
        os.symlink(target, os.fsencode(name), dir_fd=dir_fd)


def make_node(dir_fd: int, name: str, kind: int, device: int, *, point: str) -> None:
    """A device or fifo; *kind* as in stat(2)'s S_IFMT."""
    with faults.point(point):
        os.mknod(name, kind | 0o600, device, dir_fd=dir_fd)


def write_pieces(dir_fd: int, name: str, pieces: Iterable[bytes], *, point: str) -> None:
    """Create *name* with all *pieces*; it must not exist. What is raised while they come leaves it torn. Not synced."""
    with faults.point(point), Descriptor(name, NEW_FILE, dir_fd=dir_fd) as fd:
        for piece in pieces:
            write_all(fd, piece)


def unlink(dir_fd: int, name: str, *, point: str) -> None:
    """Remove a file; one that is not there is fine."""
    with faults.point(point), suppress(FileNotFoundError):
        os.unlink(name, dir_fd=dir_fd)


def clone_nameless(source: int, dir_fd: int, *, point: str) -> Descriptor:
    """A new file without a name on *dir_fd*'s file system, open for reading and writing, that shares *source*'s blocks.

    OSError where the file system cannot do that (EOPNOTSUPP, EINVAL, ENOTTY, EXDEV …). Closed without a name, it is gone.
    """
    with faults.point(point):
        made = Descriptor(".", os.O_TMPFILE | os.O_RDWR, dir_fd=dir_fd)
        fcntl.ioctl(made.fd, kernel.FICLONE, source)
        return made


def link_nameless(fd: int, dir_fd: int, name: bytes, *, point: str) -> None:
    """Give a file that has no name one. FileExistsError if it is taken."""
    with faults.point(point):
        os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=dir_fd, follow_symlinks=True)


def sync_filesystem(fd: int, *, point: str) -> None:
    """One syncfs for everything dirty on *fd*'s file system. An error is reported once per descriptor: never retry."""
    with faults.point(point):
        kernel.syncfs(fd)


def sync_dir(fd: int, *, point: str) -> None:
    with faults.point(point):
        fsync(fd)


def fsync(fd: int) -> None:
    """fsync(2) within an effect, which has the fault point. SyncError."""
    try:
        os.fsync(fd)
    except OSError as error:
        raise SyncError(error.errno, error.strerror) from error


# -- trees ---------------------------------------------------------------------------------------------------------


def read_txid(tree_fd: int) -> str | None:
    """The txid written inside a tree, or None if there is none that can be read."""
    data = read_file(tree_fd, TXID_FILE, maximum=64)
    if data is None:
        return None
    text = data.decode("ascii", "replace").strip()
    return text if len(text) == 32 and not text.strip("0123456789abcdef") else None


def txid_at(dir_fd: int, name: str) -> str | None:
    """The txid inside the tree at *name*; ``""`` for a tree without one; None if nothing is there."""
    try:
        with open_dir(name, dir_fd) as fd:
            return read_txid(fd) or ""
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            return ""
        raise


def names_in(dir_fd: int) -> list[str]:
    """The names in a directory, sorted: the order must not depend on the file system."""
    with open_dir(".", dir_fd) as own:
        return sorted(os.listdir(own))


def names_in_or_none(dir_fd: int, name: str) -> list[str]:
    """The names in the directory *name*, sorted; none if it is not there."""
    try:
        with open_dir(name, dir_fd) as own:
            return sorted(os.listdir(own))
    except FileNotFoundError:
        return []
