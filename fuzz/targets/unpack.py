"""Any bytes, unpacked, change nothing outside of their tree, and end in a tree that is what its manifest says, or in
a typed error. The same bytes give the same manifest (looked at for one input of 64, with threads: it takes as long again).

Of seven inputs of eight the headers' sums are set right first.
"""

from __future__ import annotations

import os

from fuzz import scratch
from fuzz.pieces import one_of
from fuzz.sums import with_right_sums
from layerstore.errors import ArchiveError, LimitExceededError
from layerstore.model import DiffTarget, Limits
from layerstore.trees.unpack import unpack
from layerstore.trees.verify import tree_problems

LIMITS = Limits(max_entries=200, max_bytes=4 << 20, max_pax_record=1 << 14, max_depth=40)
FORM = "trusted" if os.geteuid() == 0 else "user"

_LONG_AGO = 1_000_000_000                # seconds since 1970: whoever writes there makes it younger


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


_OURS = {"diff", "kept", "manifest", "tar-split"}
_canary: list[Canary] = []


def check(data: bytes) -> None:
    if not _canary:
        _canary.append(Canary())
    canary, tar = _canary[0], with_right_sums(data)
    try:
        first = _unpack(tar, canary)
        if one_of(data, 64):
            assert first == _unpack(tar, canary, alone=0), "the same bytes gave two different layers"
    except AssertionError:
        _canary.clear()   # the next one begins with what is whole
        raise


def _unpack(tar: bytes, canary: Canary, *, alone: int | None = None) -> tuple[str, str] | None:
    """The digests of manifest and tar-split; *alone* 0: small files are made by threads."""
    tree = canary.tree.emptied()
    target = DiffTarget(tree.dir_fd, tree.diff_fd, overlay_form=FORM, limits=LIMITS)
    try:
        made = unpack([tar[:700], tar[700:]], target, require_end=False, alone=alone)
    except (ArchiveError, LimitExceededError):
        return None
    finally:
        canary.check()
    problems = list(tree_problems(tree.dir_fd, made.manifest_digest, content=True, overlay_form=FORM))
    assert not problems, f"the tree is not what its manifest says: {problems[:3]}"
    return made.manifest_digest, made.tar_split_digest
