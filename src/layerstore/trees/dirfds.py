"""Directories of a tree by path, opened beneath its root and over no symbolic link: the whole defence against path tricks.

A directory whose parent is open is opened by its single component, with O_NOFOLLOW and O_DIRECTORY. A longer way is
left to the kernel: openat2 with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS. Where that is not to be had (before Linux 5.6,
and in sandboxes that refuse it), and where the way is longer than the kernel takes at once (PATH_MAX, 4096 bytes), it is
walked component by component, each opened as above. So no path here can leave the tree, whatever symbolic links are in it
(ADR 0011).
"""

from __future__ import annotations

import errno
from collections import OrderedDict

from layerstore.system import kernel
from layerstore.system.descriptors import DIRECTORY, Descriptor

__all__ = ["DIRECTORY", "DirFds"]

_CAPACITY = 96                           # descriptors: a process has 1024 by default, for several layers
_WAY = kernel.RESOLVE_BENEATH | kernel.RESOLVE_NO_SYMLINKS | kernel.RESOLVE_NO_MAGICLINKS | kernel.RESOLVE_NO_XDEV
# something was renamed meanwhile (openat2(2)); longer than PATH_MAX, or one component is, which the walk then finds
_NOT_THIS_ONE = frozenset({errno.EAGAIN, errno.ENAMETOOLONG})
_REFUSED = frozenset({errno.ENOSYS, errno.EPERM})   # an old kernel, or a sandbox: opening a directory gives no EPERM

_kernel_walks = True                     # until it was refused once


def _beneath(dir_fd: int, path: bytes) -> Descriptor | None:
    """The directory *path*, several components beneath *dir_fd*, opened by the kernel; None if it does not do that."""
    global _kernel_walks  # noqa: PLW0603 - a fact about the kernel, found out once
    if not _kernel_walks:
        return None
    call = kernel.openat2(dir_fd, path, DIRECTORY, _WAY)
    made = Descriptor.__new__(Descriptor)
    made.fd = call()                     # owned at once: an interrupt can only come after it
    try:
        kernel.checked(made.fd, path)
    except OSError as error:
        if error.errno in _NOT_THIS_ONE:
            return None
        if error.errno not in _REFUSED:
            raise
        _kernel_walks = False
        return None
    return made


class DirFds:
    """A bounded cache of open directories below *root_fd*, which the caller owns.

    Paths are clean, as ``tar.Entry`` has them; ``b""`` is the root. A descriptor stays open until the next
    call of ``get``; who needs it longer keeps its owner (``held``) or dups it. OSError as open(2) gives it: ENOENT,
    ENOTDIR, ELOOP for a symbolic link, EACCES.
    """

    def __init__(self, root_fd: int, *, capacity: int | None = None) -> None:
        self._root_fd, self._capacity = root_fd, capacity
        self._open: OrderedDict[bytes, Descriptor] = OrderedDict()
        # the last one that was asked for by ``held``: files come directory by directory
        self._held: tuple[bytes, tuple[int, Descriptor | None]] = (b"", (root_fd, None))

    def get(self, path: bytes) -> int:
        if not path:
            return self._root_fd
        here = self._open.get(path)
        if here is not None:
            self._open.move_to_end(path)
            return here.fd
        missing = [path]                 # from the path up to its nearest open ancestor
        fd = self._root_fd
        parent = path.rpartition(b"/")[0]
        while parent:
            known = self._open.get(parent)
            if known is not None:
                self._open.move_to_end(parent)  # so that it is not the one to be closed below
                fd = known.fd
                break
            missing.append(parent)
            parent = parent.rpartition(b"/")[0]
        beneath = _beneath(fd, path[len(parent) + 1 if parent else 0 :]) if len(missing) > 1 else None
        if beneath is not None:
            self._open[path] = beneath
            fd = beneath.fd
            missing.clear()
            self._evict()
        for each in reversed(missing):
            made = self._open[each] = Descriptor(each.rpartition(b"/")[2], DIRECTORY, dir_fd=fd)
            fd = made.fd
            self._evict()
        return fd

    def _evict(self) -> None:
        if len(self._open) > (self._capacity or _CAPACITY):
            path, _ = self._open.popitem(last=False)   # closed when nobody holds it any more
            if path == self._held[0]:
                self._held = (b"", (self._root_fd, None))

    def held(self, path: bytes) -> tuple[int, Descriptor | None]:
        """The same, with what keeps the descriptor open as long as it is kept (None: the root, which is the caller's)."""
        if path != self._held[0]:
            self._held = (path, (self.get(path), self._open.get(path)))
        return self._held[1]

    def forget(self, path: bytes) -> None:
        """Close what is open at or beneath *path*: it is about to be removed."""
        beneath = path + b"/"
        self._held = (b"", (self._root_fd, None))
        for each in [p for p in self._open if p == path or p.startswith(beneath)]:
            self._open.pop(each).close()

    def close(self) -> None:
        self._held = (b"", (self._root_fd, None))
        while self._open:
            self._open.popitem()[1].close()
