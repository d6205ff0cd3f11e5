"""Whether two unpacked trees are the same: names, types, modes, owners, times, link targets, contents. Not attributes and
holes: peers are run without them."""

from __future__ import annotations

import filecmp
import os
import stat
from collections.abc import Iterator


def differences(one: str, other: str) -> list[str]:
    """One line for each; empty if they are the same."""
    filecmp.clear_cache()   # it goes by size and time, which are what they were told to be
    a, b = dict(_entries(one)), dict(_entries(other))
    lines = [f"{path}: only in {one if path in a else other}" for path in sorted(a.keys() ^ b.keys())]
    for path in sorted(a.keys() & b.keys()):
        if a[path] != b[path]:
            lines.append(f"{path}: {a[path]} != {b[path]}")
        elif stat.S_ISREG(a[path][0]) and not filecmp.cmp(os.path.join(one, path), os.path.join(other, path), shallow=False):
            lines.append(f"{path}: contents")
    return lines


def _entries(root: str) -> Iterator[tuple[str, tuple[object, ...]]]:
    todo = [""]
    while todo:
        with os.scandir(os.path.join(root, todo.pop())) as found:
            for entry in found:
                path = os.path.relpath(entry.path, root)
                status = entry.stat(follow_symlinks=False)
                size = status.st_size if stat.S_ISREG(status.st_mode) else 0
                target = os.readlink(entry.path) if entry.is_symlink() else ""
                yield path, (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, size, target, status.st_rdev)
                if entry.is_dir(follow_symlinks=False):
                    todo.append(path)
