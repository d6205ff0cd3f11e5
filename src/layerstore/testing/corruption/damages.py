"""What is done to a file, link or directory of a layer or image. Each kind is a function of a path and a draw.

Not here: where (``places``), and damage to the journal's files, byte by byte (``bytewise``).
"""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Callable

from layerstore.testing.corruption.places import ADVICE

__all__ = ["KINDS", "suits"]

_OF_FILES = frozenset({"flip", "truncate", "zero", "extend", "swap"})
_WORN = frozenset({"mode", "owner", "time", "xattr"})


def suits(kind: str, path: str, status: os.stat_result) -> bool:
    """Whether damage of that *kind* can be done to *path* (relative to the store), of which *status* is known."""
    parts = path.split("/")
    if len(parts) == 1:                       # the directory layers/ or images/ itself
        return kind == "stray"
    if parts[0] == "layers" and len(parts) == 2:   # a whole tree
        return kind == "remove"
    if kind == "swap" and parts[-1] in ADVICE:
        return False
    if kind in _OF_FILES:
        return stat.S_ISREG(status.st_mode) and (status.st_size > 0 or kind == "extend")
    if kind in _WORN:                         # of what is compared with the manifest
        return "diff" in parts and not stat.S_ISLNK(status.st_mode)
    return kind != "link" or stat.S_ISLNK(status.st_mode)


def _rewrite(path: str, change: Callable[[bytes], bytes]) -> bool:
    """In place, as a failing disk does it: the file's times stay."""
    status = os.stat(path)
    with open(path, "rb") as file:
        data = file.read()
    changed = change(data)
    with open(path, "wb") as file:
        file.write(changed)
    os.chmod(path, stat.S_IMODE(status.st_mode))   # writing takes set-user-ID bits away
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return changed != data


def _flip(path: str, draw: random.Random) -> bool:
    def flipped(data: bytes) -> bytes:
        bit = draw.randrange(8 * len(data))
        made = bytearray(data)
        made[bit // 8] ^= 1 << bit % 8
        return bytes(made)

    return _rewrite(path, flipped)


def _swap(path: str, draw: random.Random) -> bool:
    """With another file beside it."""
    directory = os.path.dirname(path)
    others = sorted(
        each for each in os.listdir(directory)
        if each != os.path.basename(path) and each not in ADVICE and os.path.isfile(os.path.join(directory, each))
        and not os.path.islink(os.path.join(directory, each))
    )
    if not others:
        return False
    other = os.path.join(directory, draw.choice(others))
    os.rename(path, f"{path}.swapping")
    os.rename(other, path)
    os.rename(f"{path}.swapping", other)
    return True


def _remove(path: str, _draw: random.Random) -> bool:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)
    return True


def _stray(path: str, draw: random.Random) -> bool:
    directory = path if os.path.isdir(path) and not os.path.islink(path) else os.path.dirname(path)
    name = os.path.join(directory, f"stray-{draw.randrange(1000)}")
    if draw.random() < 0.5:
        os.mkdir(name)
    with open(os.path.join(name, "inside") if os.path.isdir(name) else name, "wb") as file:
        file.write(b"nobody's")
    return True


def _mode(path: str, draw: random.Random) -> bool:
    before = os.stat(path).st_mode
    os.chmod(path, stat.S_IMODE(before) ^ draw.choice([0o100, 0o022, 0o4000, 0o1000]))
    return os.stat(path).st_mode != before


def _owner(path: str, draw: random.Random) -> bool:
    before = os.stat(path)
    try:
        os.chown(path, before.st_uid + draw.randrange(1, 9), before.st_gid)
    except PermissionError:
        return False
    return True


def _time(path: str, draw: random.Random) -> bool:
    before = os.stat(path).st_mtime_ns
    os.utime(path, ns=(before, before + draw.choice([1, -10**9, 10**12])))
    return os.stat(path).st_mtime_ns != before


def _xattr(path: str, draw: random.Random) -> bool:
    try:
        os.setxattr(path, f"user.wrong{draw.randrange(3)}", b"1")
    except OSError:
        return False
    return True


def _link(path: str, draw: random.Random) -> bool:
    status = os.lstat(path)
    os.unlink(path)
    os.symlink(f"elsewhere-{draw.randrange(9)}", path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
    return True


def _kind(path: str, draw: random.Random) -> bool:
    """Something of another kind is in its place."""
    is_dir = os.path.isdir(path) and not os.path.islink(path)
    _remove(path, draw)
    if is_dir:
        with open(path, "wb"):
            pass
    else:
        os.mkdir(path)
    return True


KINDS: dict[str, Callable[[str, random.Random], bool]] = {
    "flip": _flip, "truncate": lambda path, draw: _rewrite(path, lambda data: data[: draw.randrange(len(data))]),
    "zero": lambda path, _draw: _rewrite(path, lambda data: bytes(len(data))),
    "extend": lambda path, _draw: _rewrite(path, lambda data: data + b"more"),
    "swap": _swap, "remove": _remove, "stray": _stray, "mode": _mode, "owner": _owner, "time": _time, "xattr": _xattr,
    "link": _link, "kind": _kind,
}
"""The kinds of damage, by name; each says whether it changed anything."""
