"""Any bytes, unpacked, change nothing outside of their tree, and end in a tree that is what its manifest says, or in
a typed error. The same bytes give the same manifest.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile

from layerstore.errors import ArchiveError, LimitExceededError
from layerstore.model import DiffTarget, Limits
from layerstore.unpack import unpack
from layerstore.verify import tree_problems

LIMITS = Limits(max_entries=200, max_bytes=4 << 20, max_pax_record=1 << 14, max_depth=40)
_BASE = "/dev/shm" if os.path.isdir("/dev/shm") else None
FORM = "trusted" if os.geteuid() == 0 else "user"


def check(data: bytes) -> None:
    outside = tempfile.mkdtemp(prefix="layerstore-fuzz-", dir=_BASE)
    try:
        _plant(outside)
        before = _state(outside)
        first = _unpack(data, os.path.join(outside, "one"))
        second = _unpack(data, os.path.join(outside, "two"))
        for name in ("one", "two"):
            remove(os.path.join(outside, name))
        assert _state(outside) == before, "something outside of the tree was changed"
        assert first == second, "the same bytes gave two different manifests"
    finally:
        remove(outside)


def _plant(outside: str) -> None:
    """What a symbolic link or ``..`` of an archive would like to reach."""
    for name in ("etc", "canary"):
        os.mkdir(os.path.join(outside, name))
    with open(os.path.join(outside, "canary", "file"), "wb") as file:
        file.write(b"alive")
    os.symlink("canary/file", os.path.join(outside, "link"))


def _state(root: str) -> list[tuple[str, int, int, int, bytes]]:
    found = []
    for directory, names, files in os.walk(root):
        for name in sorted(names + files):
            path = os.path.join(directory, name)
            s = os.lstat(path)
            content = b""
            if stat.S_ISREG(s.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            found.append((path, s.st_mode, s.st_uid, s.st_nlink, content))
    return sorted(found)


def _unpack(data: bytes, tree: str) -> str | None:
    os.makedirs(os.path.join(tree, "diff"))
    dir_fd, diff_fd = os.open(tree, os.O_RDONLY), os.open(os.path.join(tree, "diff"), os.O_RDONLY)
    try:
        target = DiffTarget(dir_fd, diff_fd, overlay_form=FORM, limits=LIMITS)
        try:
            made = unpack([data[:700], data[700:]], target, require_end=False)
        except (ArchiveError, LimitExceededError):
            return None
        problems = list(tree_problems(dir_fd, made.manifest_digest, content=True, overlay_form=FORM))
        assert not problems, f"the tree is not what its manifest says: {problems[:3]}"
        return made.manifest_digest
    finally:
        os.close(diff_fd)
        os.close(dir_fd)


def remove(path: str) -> None:
    """A tree may hold directories of mode 0."""
    for directory, names, _ in os.walk(path):
        for name in names:
            full = os.path.join(directory, name)
            if not os.path.islink(full):
                os.chmod(full, 0o700)
    shutil.rmtree(path)
