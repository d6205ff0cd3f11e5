"""Directories of a tree by path, opened one component at a time: the whole defence against path tricks.

Every open names a single component, relative to a descriptor, with O_NOFOLLOW and O_DIRECTORY. So no path
here can leave the tree, whatever symbolic links are in it, on any kernel and in any sandbox. (openat2 with
RESOLVE_BENEATH would ask the kernel for the same; through ctypes it costs more than the one or two plain
opens that a cached parent leaves to do, and would need this very code as its fallback.)
"""

from __future__ import annotations

import os
from collections import OrderedDict

from layerstore.descriptors import Descriptor

__all__ = ["DIRECTORY", "DirFds"]

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CAPACITY = 96                           # descriptors: a process has 1024 by default, for several layers


class DirFds:
    """A bounded cache of open directories below *root_fd*, which the caller owns.

    Paths are clean, as ``tar.Entry`` has them; ``b""`` is the root. A descriptor stays open until the next
    call of ``get``; who needs it longer keeps its owner (``held``) or dups it. OSError as open(2) gives it: ENOENT,
    ENOTDIR, ELOOP for a symbolic link, EACCES.
    """

    def __init__(self, root_fd: int) -> None:
        self._root_fd = root_fd
        self._open: OrderedDict[bytes, Descriptor] = OrderedDict()

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
        for each in reversed(missing):
            made = self._open[each] = Descriptor(each.rpartition(b"/")[2], DIRECTORY, dir_fd=fd)
            fd = made.fd
            if len(self._open) > _CAPACITY:
                self._open.popitem(last=False)   # closed when nobody holds it any more
        return fd

    def held(self, path: bytes) -> tuple[int, Descriptor | None]:
        """The same, with what keeps the descriptor open as long as it is kept (None: the root, which is the caller's)."""
        return self.get(path), self._open.get(path)

    def forget(self, path: bytes) -> None:
        """Close what is open at or beneath *path*: it is about to be removed."""
        beneath = path + b"/"
        for each in [p for p in self._open if p == path or p.startswith(beneath)]:
            self._open.pop(each).close()

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()
