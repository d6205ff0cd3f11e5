"""What an archive would like to reach, around the tree that it is unpacked into: whether anything of it was changed.

Nothing of the product is imported here.
"""

from __future__ import annotations

import os

from fuzz import scratch

_LONG_AGO = 1_000_000_000                # seconds since 1970: whoever writes there makes it younger
_OURS = {"diff", "kept", "manifest", "tar-split"}


class Canary:
    """What a symbolic link or ``..`` of an archive would like to reach, beside and above the tree."""

    def __init__(self) -> None:
        self.outside = scratch.Outside()
        for name in ("etc", "canary", "trees"):
            os.mkdir(os.path.join(self.outside.path, name))
        with open(os.path.join(self.outside.path, "canary", "file"), "wb") as file:
            file.write(b"alive")
        os.symlink("canary/file", os.path.join(self.outside.path, "link"))
        self._fds = [self._held(name) for name in ("canary/file", "link", "etc", "canary", "trees", ".")]
        self.tree = scratch.Layer("tree", self._fds[4])
        for name in ("canary/file", "etc", "canary", "trees", "."):
            os.utime(name, (_LONG_AGO, _LONG_AGO), dir_fd=self.outside.fd)
        self._first = self._state()

    def _held(self, name: str) -> int:
        return os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=self.outside.fd)

    def _state(self) -> list[tuple[int, ...]]:
        """In few system calls: who makes, renames or removes a name, or writes into a file, changes a time of these."""
        found = map(os.fstat, self._fds)
        return [(s.st_mode, s.st_uid, s.st_gid, s.st_nlink, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in found]

    def check(self) -> None:
        assert self._state() == self._first, "something outside of the tree was changed"
        assert _OURS.issuperset(self.tree.names()), "something beside the tree was made"
