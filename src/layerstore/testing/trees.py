"""Trees as the oracle sees them: read from the disk, or from a tar, by code that knows nothing of layerstore.

A tree is a mapping of relative path to ``Entry``. It stands for what a user would miss: type, permission bits, what
a file says or a link points to, and overlayfs's marks. Times and owners are not in it: ``Store.check`` compares those
with the manifest, and an independent reader must be simple enough to be believed.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

_MARKS = ("trusted.overlay.", "user.overlay.")


class Entry(NamedTuple):
    """One thing in a tree. ``content``: a file's ``sha256:hex``, a link's target, else empty."""

    type: str
    mode: int
    content: str = ""


Tree = Mapping[str, Entry]
WHITEOUT = Entry("whiteout", 0)


def read_tree(path: str) -> dict[str, Entry]:
    """Read a tree from the disk.

    Args:
        path: a directory (an overlayfs ``diff``); it is not in the tree itself.

    Returns:
        Everything under it, by relative path.

    Raises:
        OSError: as it comes.

    Durability: reads only.

    """
    found: dict[str, Entry] = {}
    _read(os.fsencode(path), b"", found)
    return found


def _read(directory: bytes, prefix: bytes, found: dict[str, Entry]) -> None:
    for name in sorted(os.listdir(directory)):
        path, relative = os.path.join(directory, name), os.path.join(prefix, name)
        status = os.lstat(path)
        found[os.fsdecode(relative)] = _entry(path, status)
        if stat.S_ISDIR(status.st_mode):
            _read(path, relative, found)


def _entry(path: bytes, status: os.stat_result) -> Entry:
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISREG(status.st_mode):
        if status.st_size == 0 and _marked(path, "whiteout"):
            return WHITEOUT
        with open(path, "rb") as file:
            return Entry("file", mode, "sha256:" + hashlib.file_digest(file, "sha256").hexdigest())
    if stat.S_ISDIR(status.st_mode):
        return Entry("dir", mode, "opaque" if _marked(path, "opaque") == b"y" else "")
    if stat.S_ISLNK(status.st_mode):
        return Entry("symlink", 0o777, os.fsdecode(os.readlink(path)))
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
        return WHITEOUT
    return Entry(f"special {stat.S_IFMT(status.st_mode):o}", mode, str(status.st_rdev))


def _marked(path: bytes, what: str) -> bytes:
    for prefix in _MARKS:
        with suppress(OSError):
            return os.getxattr(path, prefix + what)
    return b""


def tree_of_tar(data: bytes) -> dict[str, Entry]:
    """Say which tree a layer's tar must become, by Python's ``tarfile``.

    Whiteouts as in the OCI image specification, layer.md, "Whiteouts".

    Args:
        data: the uncompressed tar; each directory named before what is in it, no devices.

    Returns:
        The tree.

    Raises:
        ValueError: there is something in it that this small reader does not know; tarfile.TarError.

    Durability: touches no disk.

    """
    found: dict[str, Entry] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            path = member.name.removeprefix("./").strip("/")
            folder, base = os.path.split(path)
            if base == ".wh..wh..opq":
                found[folder] = found[folder]._replace(content="opaque")
            elif base.startswith(".wh."):
                found[os.path.join(folder, base[4:])] = WHITEOUT
            elif path not in ("", "."):
                found[path] = _tar_entry(archive, member, found)
    return found


def _tar_entry(archive: tarfile.TarFile, member: tarfile.TarInfo, found: Tree) -> Entry:
    if member.isdir():
        return Entry("dir", member.mode & 0o7777)
    if member.issym():
        return Entry("symlink", 0o777, member.linkname)
    if member.islnk():
        return found[member.linkname.removeprefix("./")]
    if not member.isreg():
        raise ValueError(f"{member.name}: type {member.type!r} is not in this small reader")
    file = archive.extractfile(member)
    assert file is not None
    return Entry("file", member.mode & 0o7777, "sha256:" + hashlib.sha256(file.read()).hexdigest())


def differences(wanted: Tree, found: Tree) -> list[str]:
    """Compare two trees.

    Args:
        wanted: what should be there.
        found: what is.

    Returns:
        A line for each difference; the first few are enough to see what happened.

    Durability: touches no disk.

    """
    lines = [f"{path}: missing" for path in sorted(wanted.keys() - found.keys())]
    lines += [f"{path}: should not be there" for path in sorted(found.keys() - wanted.keys())]
    lines += [
        f"{path}: {found[path]} instead of {wanted[path]}"
        for path in sorted(wanted.keys() & found.keys()) if found[path] != wanted[path]
    ]
    return lines


__all__ = ["WHITEOUT", "Entry", "Tree", "differences", "read_tree", "tree_of_tar"]
