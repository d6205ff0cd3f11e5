"""Any bytes, unpacked, change nothing outside of their tree, and end in a tree that is what its manifest says, or in
a typed error. The same bytes give the same manifest (looked at for one input of eight: it takes as long again).
"""

from __future__ import annotations

import os
import zlib

from fuzz import scratch
from layerstore.errors import ArchiveError, LimitExceededError
from layerstore.model import DiffTarget, Limits
from layerstore.trees.unpack import unpack
from layerstore.trees.verify import tree_problems

LIMITS = Limits(max_entries=200, max_bytes=4 << 20, max_pax_record=1 << 14, max_depth=40)
FORM = "trusted" if os.geteuid() == 0 else "user"

State = list[tuple[object, ...]]


class Canary:
    """What a symbolic link or ``..`` of an archive would like to reach, beside and above the trees."""

    def __init__(self) -> None:
        self.outside = scratch.Outside()
        for name in ("etc", "canary", "trees"):
            os.mkdir(os.path.join(self.outside.path, name))
        with open(os.path.join(self.outside.path, "canary", "file"), "wb") as file:
            file.write(b"alive")
        os.symlink("canary/file", os.path.join(self.outside.path, "link"))
        self.trees = os.open(os.path.join(self.outside.path, "trees"), os.O_RDONLY)
        self._first = self.state()

    def state(self) -> State:
        """Of everything but the trees, in few system calls: who writes into a file changes its times."""
        found: State = []
        for name in (".", "etc", "canary", "canary/file", "link", "trees"):
            s = os.stat(name, dir_fd=self.outside.fd, follow_symlinks=False)
            inside = [] if name in ("canary/file", "link") else self._names(name)
            changing = () if name == "trees" else (s.st_nlink, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
            found.append((name, s.st_mode, s.st_uid, s.st_gid, *changing, inside))
        return found

    def _names(self, name: str) -> list[str]:
        return sorted(os.listdir(self.outside.path if name == "." else os.path.join(self.outside.path, name)))

    def check(self) -> None:
        assert self.state() == self._first, "something outside of the tree was changed"


_canary: list[Canary] = []


def check(data: bytes) -> None:
    if not _canary:
        _canary.append(Canary())
    canary = _canary[0]
    try:
        first = _unpack(data, canary)
        canary.check()
        if zlib.crc32(data) % 8 == 0:
            assert first == _unpack(data, canary, alone=0), "the same bytes gave two different layers"
    except AssertionError:
        _canary.clear()   # the next one begins with what is whole
        raise


def _unpack(data: bytes, canary: Canary, *, alone: int | None = None) -> tuple[str, str] | None:
    """The digests of manifest and tar-split; *alone* 0: small files are made by threads."""
    with scratch.layer("tree", canary.trees) as tree:
        target = DiffTarget(tree.dir_fd, tree.diff_fd, overlay_form=FORM, limits=LIMITS)
        try:
            made = unpack([data[:700], data[700:]], target, require_end=False, alone=alone)
        except (ArchiveError, LimitExceededError):
            return None
        problems = list(tree_problems(tree.dir_fd, made.manifest_digest, content=True, overlay_form=FORM))
        assert not problems, f"the tree is not what its manifest says: {problems[:3]}"
        return made.manifest_digest, made.tar_split_digest
