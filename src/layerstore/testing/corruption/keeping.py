"""A copy of a store that is damaged over and over: what is another than it was, and how it becomes that again.

The kernel gives a file another change time whatever is done to it, and nobody can set one. So whatever has the inode and
the change time that it had when it was last read is, to the byte, what it was then: only the rest is read, or copied,
again. Nothing of the store's own code is used.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator, Mapping

from layerstore.testing.copies import copy_entry, copy_store, dress

__all__ = ["Changes", "Facts", "Kept"]

Facts = tuple[object, ...]
Changes = Mapping[str, tuple[Facts | None, Facts | None]]
Mark = tuple[int, int, int]              # inode, change time, type
_COARSE = 5                              # CLOCK_REALTIME_COARSE of clock_gettime(2): what change times are taken from


class Kept:
    """*root*, made as a copy of *whole*, which nobody changes.

    Durability: nothing is synced.
    """

    def __init__(self, whole: str, root: str) -> None:
        self.whole, self.root = whole, root
        self._now: dict[str, Mark] | None = None
        copy_store(whole, root)
        self._marks = _marks(root)
        names = _names(self._marks)
        self.facts = {path: _facts(root, path, mark, names) for path, mark in self._marks.items() if _is_kept(path)}
        self._groups: dict[int, list[str]] = {}
        for path in sorted(self._marks):
            status = os.lstat(f"{whole}/{path}")
            if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                self._groups.setdefault(status.st_ino, []).append(path)
        self._settle()

    def paths(self) -> Iterator[str]:
        """All that there was, relative to the root."""
        return iter(self._marks)

    def changed(self, top: str = "") -> Changes:
        """What is another than it was in layers and images: path → what it was and what it is; None: not there.

        *top*: only beneath it. Without it, ``restore`` goes by what was seen here.
        """
        now = _marks(self.root, top)
        if not top:
            self._now = now
        names = _names(now)
        there = {p for p in self._marks if p == top or p.startswith(f"{top}/")} if top else self._marks.keys()
        found: dict[str, tuple[Facts | None, Facts | None]] = {}
        for path in now.keys() | there:
            if now.get(path) != self._marks.get(path) and _is_kept(path):
                before = self.facts.get(path)
                after = _facts(self.root, path, now[path], names) if path in now else None
                if before != after:
                    found[path] = (before, after)
        return found

    def restore(self) -> None:
        """Make it what it was: only what is another is touched. Nobody changed it since ``changed``, if that was asked."""
        now = self._now if self._now is not None else _marks(self.root)
        self._now = None
        wrong = {path for path in now.keys() | self._marks.keys() if now.get(path) != self._marks.get(path)}
        wrong |= {other for path in wrong for other in self._linked(path)}
        for path in sorted(wrong & now.keys(), reverse=True):
            self._take_away(path)
        for path in sorted(wrong & self._marks.keys()):
            self._put_back(path)
        parents = {os.path.dirname(path) for path in wrong}
        directories = {path for path in wrong | parents if path in self._marks and stat.S_ISDIR(self._marks[path][2])}
        for path in sorted(directories, reverse=True):   # the deepest first: their times are the last to be set
            _strip(f"{self.root}/{path}")
            dress(f"{self.whole}/{path}", f"{self.root}/{path}", os.lstat(f"{self.whole}/{path}"))
        for path in wrong & self._marks.keys() | directories:
            self._marks[path] = _mark(os.lstat(f"{self.root}/{path}"))
        self._settle()

    def _linked(self, path: str) -> list[str]:
        """All names of the file that *path* was."""
        if path not in self._marks:
            return []
        status = os.lstat(f"{self.whole}/{path}")
        return self._groups.get(status.st_ino, []) if not stat.S_ISDIR(status.st_mode) else []

    def _take_away(self, path: str) -> None:
        there = os.lstat(f"{self.root}/{path}")
        if not stat.S_ISDIR(there.st_mode):
            os.unlink(f"{self.root}/{path}")
        elif path not in self._marks or not stat.S_ISDIR(self._marks[path][2]):
            os.rmdir(f"{self.root}/{path}")   # what was in it is gone by now: it was not there before, either

    def _put_back(self, path: str) -> None:
        source, target = f"{self.whole}/{path}", f"{self.root}/{path}"
        if stat.S_ISDIR(self._marks[path][2]):
            if not os.path.isdir(target):
                os.mkdir(target, 0o700)
            return
        first = next(iter(self._linked(path)), path)
        if first != path:
            os.link(f"{self.root}/{first}", target, follow_symlinks=False)
        else:
            copy_entry(source, target)

    def _settle(self) -> None:
        """Until a change from now on gets another change time: they are only as fine as the kernel's tick."""
        newest = max(mark[1] for mark in self._marks.values())
        while time.clock_gettime_ns(_COARSE) <= newest:
            time.sleep(0.001)


def _marks(root: str, top: str = "") -> dict[str, Mark]:
    """Of all that is beneath *top* in *root*, and of *top*."""
    found: dict[str, Mark] = {}
    path = f"{root}/{top}" if top else root
    try:
        found[top] = _mark(os.lstat(path))
    except FileNotFoundError:
        return found
    waiting = [top] if stat.S_ISDIR(found[top][2]) else []
    while waiting:
        directory = waiting.pop()
        with os.scandir(f"{root}/{directory}") as entries:
            for each in entries:
                inside = f"{directory}/{each.name}" if directory else each.name
                found[inside] = mark = _mark(each.stat(follow_symlinks=False))
                if stat.S_ISDIR(mark[2]):
                    waiting.append(inside)
    return found


def _mark(status: os.stat_result) -> Mark:
    return status.st_ino, status.st_ctime_ns, stat.S_IFMT(status.st_mode)


def _names(marks: Mapping[str, Mark]) -> dict[int, list[str]]:
    """All names of each file in layers and images, by its inode.

    Not those in ``quarantine/``, which what was taken out has.
    """
    found: dict[int, list[str]] = {}
    for path, mark in marks.items():
        if mark[2] == stat.S_IFREG and _is_kept(path):
            found.setdefault(mark[0], []).append(path)
    return found


def _strip(path: str) -> None:
    for name in os.listxattr(path):
        if name != "security.selinux":   # the host's own affair
            os.removexattr(path, name)


def _is_kept(path: str) -> bool:
    return path.split("/", maxsplit=1)[0] in ("layers", "images")


def _in_tree(path: str) -> bool:
    parts = path.split("/")
    return parts[0] == "layers" and len(parts) > 2 and parts[2] == "diff"


def _facts(root: str, path: str, mark: Mark, names: Mapping[int, list[str]]) -> Facts:
    """Type, and content's digest or target; of a layer's content all that a manifest says, and other names of it, too."""
    where = f"{root}/{path}"
    status = os.lstat(where)
    kind = stat.S_IFMT(status.st_mode)
    content: object = status.st_rdev
    if stat.S_ISREG(kind):
        with open(where, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    elif stat.S_ISLNK(kind):
        content = os.readlink(where)
    if not _in_tree(path):               # beside the tree only content counts
        return (kind, content)
    if stat.S_ISCHR(kind) and status.st_rdev == 0:   # a whiteout: nothing else of it counts
        return (kind, content)
    given = sorted(os.listxattr(where, follow_symlinks=False))
    attributes = tuple((each, os.getxattr(where, each, follow_symlinks=False)) for each in given)
    others = tuple(sorted(each for each in names.get(mark[0], ()) if each != path))
    return (kind, content, status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, attributes, others)
