"""One path of a tree against its entry in the manifest: metadata here and now, content by whoever has the time.

What a manifest says is ``manifest``'s; walking one, and what is too many, is ``verify``'s. Reads only, follows nothing.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from layerstore.formats.manifest import KINDS, MODE, NODE, OVERRIDE, OWNER, TIME, XATTR, ManifestEntry, storable_xattr
from layerstore.formats.packed import open_regular
from layerstore.system import filecaps
from layerstore.system.idmap import IdMap
from layerstore.trees import dirfds, override
from layerstore.trees.whiteouts import is_whiteout

__all__ = ["OURS", "Hashed", "Problem", "compare", "content_problem", "unlooked"]

_NAMES = {kind: name for name, kind in KINDS.items()} | {stat.S_IFSOCK: "socket"}
_OPAQUE_XATTRS = (b"trusted.overlay.opaque", b"user.overlay.opaque")
OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR})
"""Errors of this process: they say nothing of what was to be looked at."""
_PIECE = 1 << 18                         # read at once: large enough for the calls not to count, and it stays in the cache


class Hashed(Protocol):
    """What a file is to hold. An entry of a manifest is one."""

    @property
    def path(self) -> bytes: ...
    @property
    def size(self) -> int: ...
    @property
    def sha256(self) -> bytes | None: ...


class Problem(NamedTuple):
    """One thing that is not as the manifest says.

    ``unreadable``: this process may not look, so it cannot be told. ``code`` is what kind of thing it is; the whole list,
    with what each means, is in docs/check.md.
    """

    path: bytes
    what: str
    unreadable: bool = False
    code: str = "path-metadata"


def unlooked(path: bytes, error: OSError, *, missing: str = "path-missing", failed: str = "path-unreadable") -> Problem:
    """What *error* says of *path*, which was to be looked at; *missing* and *failed* are the codes of what it may be."""
    if error.errno in OURS:
        raise error
    # EOVERFLOW: capabilities for the root of another user namespace
    if error.errno in (errno.EACCES, errno.EPERM, errno.EOVERFLOW):
        return Problem(path, "this process may not read it", True, failed)
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        return Problem(path, "missing", False, missing)
    return Problem(path, f"cannot be read: {error.strerror}", False, failed)


def compare(
    fds: dirfds.DirFds, entry: ManifestEntry, *, form: str | None, ids: IdMap,
    content: Callable[[ManifestEntry], Problem | None] | None,
) -> Iterator[Problem]:
    """What is wrong with the path of *entry*. OSError if it cannot be looked at.

    *content* is asked of each file whose size is right, last; None: nobody looks at content.
    """
    path = entry.path
    parent, _, name = path.rpartition(b"/")
    dir_fd = fds.get(parent)
    found = os.stat(name or b".", dir_fd=dir_fd, follow_symlinks=False)
    if entry.type == "hardlink":
        target_parent, _, target = entry.linkname.rpartition(b"/")
        other = os.stat(target, dir_fd=fds.get(target_parent), follow_symlinks=False)
        if (found.st_dev, found.st_ino) != (other.st_dev, other.st_ino):
            yield Problem(path, f"no longer a hard link to {entry.linkname!r}", code="path-link")
        return
    kind = _NAMES.get(stat.S_IFMT(found.st_mode), "unknown")
    if (kind == "char" or entry.type == "whiteout") and is_whiteout(found, name, dir_fd):
        kind = "whiteout"
    expected = "file" if entry.unset & NODE else entry.type   # what stands for a device is an empty file
    if kind != expected:
        yield Problem(path, f"is a {kind}, not a {expected}", code="path-type")
        return
    if kind == "whiteout":
        return
    if (lost := _target_wrong(entry, kind, found, dir_fd, name)) is not None:
        yield Problem(path, lost, code="path-target")
    wrong = list(_metadata_wrong(entry, kind, found, dir_fd, name, form, ids))
    if kind == "file" and found.st_size != entry.size:
        wrong.append(f"size {found.st_size}, not {entry.size} bytes")
        yield Problem(path, "; ".join(wrong), code="path-size")
        return
    if wrong:
        yield Problem(path, "; ".join(wrong))
    if kind == "file" and content is not None and not entry.unset & NODE:
        problem = content(entry)
        if problem is not None:
            yield problem


def content_problem(
    fds: dirfds.DirFds, entry: Hashed, read: Callable[[int], None] = lambda _n: None,
) -> Problem | None:
    """What is wrong with the content of the file of *entry*; *read* is told of each *n* bytes."""
    parent, _, name = entry.path.rpartition(b"/")
    digest = hashlib.sha256()
    try:
        with open_regular(name, fds.get(parent)) as fd:
            if entry.size <= _PIECE:
                _small(fd, digest, read)
            else:
                _large(fd, digest, read)
    except OSError as error:
        return unlooked(entry.path, error)
    if digest.digest() == entry.sha256:
        return None
    return Problem(entry.path, "its content changed", code="path-content")


def _small(fd: int, digest: hashlib._Hash, read: Callable[[int], None]) -> None:
    at = 0
    while data := os.pread(fd, _PIECE, at):
        digest.update(data)
        at += len(data)
        read(len(data))


def _large(fd: int, digest: hashlib._Hash, read: Callable[[int], None]) -> None:
    buffer = bytearray(_PIECE)
    view, at = memoryview(buffer), 0
    while count := os.preadv(fd, [buffer], at):
        digest.update(view[:count])
        at += count
        read(count)


def _metadata_wrong(
    entry: ManifestEntry, kind: str, found: os.stat_result, dir_fd: int, name: bytes, form: str | None, ids: IdMap,
) -> Iterator[str]:
    mode = override.readable(entry.type, entry.mode) if entry.unset & MODE else entry.mode
    if kind != "symlink" and stat.S_IMODE(found.st_mode) != mode:
        yield f"mode {stat.S_IMODE(found.st_mode):04o}, not {mode:04o}"
    yield from _owner_wrong(found, entry, ids)
    if not entry.unset & TIME and found.st_mtime_ns != entry.mtime_ns:
        yield f"mtime {found.st_mtime_ns}, not {entry.mtime_ns} (nanoseconds)"
    yield from _xattrs_wrong(f"/proc/self/fd/{dir_fd}/".encode() + (name or b"."), entry, form, ids)


def _target_wrong(entry: ManifestEntry, kind: str, found: os.stat_result, dir_fd: int, name: bytes) -> str | None:
    """What cannot be put right but by making it anew."""
    device = (os.major(found.st_rdev), os.minor(found.st_rdev))
    if kind in ("char", "block") and device != (entry.devmajor, entry.devminor):
        return f"device {device[0]}:{device[1]}, not {entry.devmajor}:{entry.devminor}"
    if kind == "symlink" and os.readlink(name, dir_fd=dir_fd) != entry.linkname:
        return f"link target is not {entry.linkname!r}"
    return None


def _owner_wrong(found: os.stat_result, entry: ManifestEntry, ids: IdMap) -> Iterator[str]:
    if entry.unset & OWNER:
        return
    uid, gid = ids.uid(entry.uid), ids.gid(entry.gid)
    # None: it was set in another user namespace, and this one does not have the ID: nobody here can tell
    if (uid is not None and found.st_uid != uid) or (gid is not None and found.st_gid != gid):
        yield f"owner {found.st_uid}:{found.st_gid}, not {uid}:{gid}"


def _attributes(path: bytes) -> set[bytes]:
    """The names of a path's attributes. A squashfs in which nothing has any says that it knows of none at all."""
    try:
        return {os.fsencode(n) for n in os.listxattr(path, follow_symlinks=False)}
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return set()


def _xattrs_wrong(path: bytes, entry: ManifestEntry, form: str | None, ids: IdMap) -> Iterator[str]:
    names = _attributes(path)
    if entry.type == "dir":
        # an ordinary user does not even see trusted.*: only if the tree is of the form user.* can a loss be told
        marks = [n for n in _OPAQUE_XATTRS if n in names]
        opaque = any(os.getxattr(path, n, follow_symlinks=False) == b"y" for n in marks)
        if opaque != entry.opaque and (opaque or form == "user" or os.geteuid() == 0):
            yield f"opaque is {opaque}, not {entry.opaque}"
    said = os.getxattr(path, override.NAME, follow_symlinks=False) if override.NAME in names else None
    if said != (override.value(entry) if entry.unset & OVERRIDE else None):
        yield f"the attribute {override.NAME!r} is {said!r}"
    kept = {n for n in names if storable_xattr(n)}
    for extra in sorted(kept - entry.xattrs.keys()):
        yield f"the attribute {extra!r} is not its own"
    for name, value in entry.xattrs.items():
        if name in kept:
            here = os.getxattr(path, name, follow_symlinks=False)
            if (filecaps.from_disk(here, ids) if name == filecaps.NAME else here) != value:
                yield f"the attribute {name!r} changed"
        elif not entry.unset & XATTR:
            yield f"the attribute {name!r} is missing"
