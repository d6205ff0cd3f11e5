"""Every effect of layerjournal on the disk outside LMDB, each a named fault point of the hook that is passed in.

Also here: descriptors that close themselves, locks on directories, and what an ``OSError`` means to a caller.
Points are named in FORMAT.md's neighbour, the README; a hook is called as ``hook(point, "before" | "after")``,
"after" only when it succeeded.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from layerjournal.errors import BusyError, HostError, JournalError, NoSpaceError, OutcomeUnknownError, ReadOnlyError

FaultHook = Callable[[str, str], None]
FULL = (errno.ENOSPC, errno.EDQUOT)
NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
MORE_DESCRIPTORS = "raise the limit on open files (ulimit -n)"
_RENAME_NOREPLACE = 1
_AT_FDCWD = -100


class Descriptor:
    """An open descriptor that is closed when it is left, closed or forgotten.

    It opens by itself, so that an interrupt at any line leaves either nothing open or an owner that closes it.
    """

    fd = -1

    def __init__(self, path: str, flags: int, mode: int = 0o600) -> None:
        self.fd = os.open(path, flags | os.O_CLOEXEC, mode)

    def close(self) -> None:
        """Close it, once."""
        if self.fd >= 0:
            # on one line: Python looks for signals after calls, and here no call comes between
            fd, self.fd = self.fd, -1; os.close(fd)  # noqa: E702

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class Effects:
    """The disk, with a fault hook around each effect."""

    def __init__(self, hook: FaultHook | None = None) -> None:
        self._hook = hook

    @contextmanager
    def point(self, name: str) -> Iterator[None]:
        if self._hook is not None:
            self._hook(name, "before")
        yield
        if self._hook is not None:
            self._hook(name, "after")

    def make_dir(self, path: str, *, point: str) -> None:
        with self.point(point):
            os.mkdir(path, 0o700)

    def write_synced(self, path: str, chunks: Iterable[bytes], *, point: str) -> None:
        """Write a new file and fsync it (not its directory). FileExistsError if there is one.

        A new inode every time: after a failed fsync the old one's pages may be marked clean and yet not be on disk.
        """
        with self.point(point), Descriptor(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW) as fd:
            for chunk in chunks:
                view = memoryview(chunk)
                while view:
                    view = view[os.write(fd, view):]
            os.fsync(fd)

    def rename_new(self, source: str, target: str, *, point: str) -> None:
        """renameat2(RENAME_NOREPLACE): FileExistsError rather than over anything."""
        with self.point(point):
            libc = ctypes.CDLL(None, use_errno=True)
            result = libc.renameat2(
                _AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), ctypes.c_uint(_RENAME_NOREPLACE),
            )
            if result != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), target)

    def sync_path(self, path: str, *, point: str) -> None:
        """Fsync a file or directory by path."""
        with self.point(point), Descriptor(path, os.O_RDONLY) as fd:
            os.fsync(fd)

    def copy_synced(self, source: str, target: str, *, point: str) -> None:
        """Copy a file's content and fsync it (not its directory)."""
        with open(source, "rb") as file:
            self.write_synced(target, iter(lambda: file.read(1 << 20), b""), point=point)

    def unlink(self, path: str, *, point: str) -> None:
        with self.point(point), suppress(FileNotFoundError):
            os.unlink(path)


@contextmanager
def locked(path: str, *, wait: bool = True) -> Iterator[int]:
    """Hold an exclusive flock on the directory *path*; the descriptor. BlockingIOError if it is held and not *wait*.

    The lock dies with its holder, so whatever is found under it was left by the dead.
    """
    with Descriptor(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield fd


@contextmanager
def host_errors(doing: str) -> Iterator[None]:
    """Turn an OSError into ours, by what it says of the outcome."""
    try:
        yield
    except JournalError:   # some of ours are OSErrors too
        raise
    except OSError as error:
        raise host_error(error, doing) from error


def host_error(error: OSError, doing: str) -> JournalError:
    """NoSpaceError when full; OutcomeUnknownError for EIO, after which the page cache may lie; else of HostError's kin."""
    if error.errno in FULL:
        return NoSpaceError(f"{doing}: {error}")
    if error.errno in NO_DESCRIPTOR:
        return BusyError(f"{doing}: {error}", hint=MORE_DESCRIPTORS)
    if error.errno == errno.EROFS:
        return ReadOnlyError(f"{doing}: {error}")
    if error.errno == errno.EIO:
        return OutcomeUnknownError(f"{doing}: {error}")
    return HostError(f"{doing}: {error}")


def is_writable(path: str) -> bool:
    """Whether this process could write in the directory *path*."""
    return os.access(path, os.W_OK) and not os.statvfs(path).f_flag & os.ST_RDONLY
