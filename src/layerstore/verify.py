"""A tree against its manifest: is every file still what it was when the layer was made? Reads only, follows nothing.

``check`` and the adoption of staged trees stand on it. What a manifest says, and how it is written, is ``manifest``'s.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Collection, Iterator
from typing import NamedTuple

from layerstore import dirfds, filecaps, override
from layerstore.descriptors import Descriptor
from layerstore.idmap import IDENTITY, IdMap
from layerstore.manifest import (
    MODE,
    NAME,
    NODE,
    OVERRIDE,
    OWNER,
    TIME,
    XATTR,
    ManifestEntry,
    final_entries,
    manifest_digest,
    storable_xattr,
)
from layerstore.packed import open_regular, read_chunks
from layerstore.tarsplit import NAME as SPLIT_NAME
from layerstore.tarsplit import kept_problems
from layerstore.whiteouts import is_whiteout

__all__ = ["Problem", "tree_problems", "verify_tree"]

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
_OPAQUE_XATTRS = (b"trusted.overlay.opaque", b"user.overlay.opaque")


class Problem(NamedTuple):
    """One thing that is not as the manifest says.

    ``unreadable``: this process may not look, so it cannot be told.
    """

    path: bytes
    what: str
    unreadable: bool = False


def tree_problems(
    tree_fd: int, digest: str, *, content: bool, overlay_form: str | None = None, tar_split: str | None = None,
    ids: IdMap = IDENTITY, only: Collection[bytes] | None = None,
) -> Iterator[Problem]:
    """What is wrong with a layer's directory (``manifest``, ``diff/``), given its manifest's *digest*.

    Reads only. *content* also compares every file's bytes; *only* of these paths (None: of all). *overlay_form* and *ids*
    are the store's. *tar_split* is the digest of ``tar-split``, if it has one. DamagedError if manifest or tar-split
    cannot be decoded.
    """
    if tar_split is not None:
        try:
            yield from (Problem(SPLIT_NAME.encode(), what) for what in kept_problems(tree_fd, tar_split))
        except OSError as error:
            yield _unlooked(SPLIT_NAME.encode(), error)
    try:
        actual = manifest_digest(tree_fd)
        if actual != digest:
            yield Problem(NAME.encode(), f"the manifest's digest is {actual}, not {digest}")
            return
        diff = Descriptor("diff", dirfds.DIRECTORY, dir_fd=tree_fd)
    except OSError as error:
        yield _unlooked(b"", error)
        return
    with diff as diff_fd, open_regular(NAME, tree_fd) as manifest_fd:
        yield from verify_tree(diff_fd, manifest_fd, content=content, overlay_form=overlay_form, ids=ids, only=only)


def verify_tree(
    diff_fd: int, manifest: str | bytes | int, *, content: bool, overlay_form: str | None = None, ids: IdMap = IDENTITY,
    only: Collection[bytes] | None = None,
) -> Iterator[Problem]:
    """Compare the tree under *diff_fd* with a manifest.

    Compared are type, mode, size, mtime, owner, link target, attributes, what is missing, what is too many
    and, with *content*, every byte. What ``unset`` names is not. With *only*, of those paths, and nothing is too many.

    Reads only, follows nothing. DamagedError if the manifest is malformed.
    """
    fds = dirfds.DirFds(diff_fd)
    present = listed = 0
    sound = True
    try:
        for entry in final_entries(manifest):
            if (entry.unset & NODE and not entry.unset & OVERRIDE) or (only is not None and entry.path not in only):
                continue
            present += 1
            for problem in _problems(fds, entry, content=content, form=overlay_form, ids=ids):
                sound = False
                yield problem
            if entry.type == "dir" and sound and only is None:
                listed += len(os.listdir(fds.get(entry.path)))
        # else nothing can be too many, and no paths need to be remembered
        if only is None and (not sound or listed + 1 > present):
            yield from _surplus(fds, {entry.path for entry in final_entries(manifest)})
    finally:
        fds.close()


def _unlooked(path: bytes, error: OSError) -> Problem:
    # EOVERFLOW: capabilities for the root of another user namespace
    if error.errno in (errno.EACCES, errno.EPERM, errno.EOVERFLOW):
        return Problem(path, "this process may not read it", unreadable=True)
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        return Problem(path, "missing")
    return Problem(path, f"cannot be read: {error.strerror}")


def _problems(
    fds: dirfds.DirFds, entry: ManifestEntry, *, content: bool, form: str | None, ids: IdMap,
) -> Iterator[Problem]:
    try:
        found = list(_compare(fds, entry, content=content, form=form, ids=ids))
        if entry.type == "dir" and not found:
            os.listdir(fds.get(entry.path))
        yield from found
    except OSError as error:
        yield _unlooked(entry.path, error)


def _compare(
    fds: dirfds.DirFds, entry: ManifestEntry, *, content: bool, form: str | None, ids: IdMap,
) -> Iterator[Problem]:
    path = entry.path
    parent, _, name = path.rpartition(b"/")
    dir_fd = fds.get(parent)
    found = os.stat(name or b".", dir_fd=dir_fd, follow_symlinks=False)
    if entry.type == "hardlink":
        target_parent, _, target = entry.linkname.rpartition(b"/")
        other = os.stat(target, dir_fd=fds.get(target_parent), follow_symlinks=False)
        if (found.st_dev, found.st_ino) != (other.st_dev, other.st_ino):
            yield Problem(path, f"no longer a hard link to {entry.linkname!r}")
        return
    kind = _KINDS.get(stat.S_IFMT(found.st_mode), "unknown")
    if (kind == "char" or entry.type == "whiteout") and is_whiteout(found, name, dir_fd):
        kind = "whiteout"
    expected = "file" if entry.unset & NODE else entry.type   # what stands for a device is an empty file
    if kind != expected:
        yield Problem(path, f"is a {kind}, not a {expected}")
        return
    if kind == "whiteout":
        return
    wrong = []
    mode = override.readable(entry.type, entry.mode) if entry.unset & MODE else entry.mode
    if kind != "symlink" and stat.S_IMODE(found.st_mode) != mode:
        wrong.append(f"mode {stat.S_IMODE(found.st_mode):04o}, not {mode:04o}")
    wrong += _owner_wrong(found, entry, ids)
    if not entry.unset & TIME and found.st_mtime_ns != entry.mtime_ns:
        wrong.append(f"mtime {found.st_mtime_ns}, not {entry.mtime_ns} (nanoseconds)")
    device = (os.major(found.st_rdev), os.minor(found.st_rdev))
    if kind in ("char", "block") and device != (entry.devmajor, entry.devminor):
        wrong.append(f"device {device[0]}:{device[1]}, not {entry.devmajor}:{entry.devminor}")
    if kind == "symlink" and os.readlink(name, dir_fd=dir_fd) != entry.linkname:
        wrong.append(f"link target is not {entry.linkname!r}")
    if kind == "file" and found.st_size != entry.size:
        wrong.append(f"size {found.st_size}, not {entry.size} bytes")
    elif kind == "file" and content and not entry.unset & NODE and _content(name, dir_fd) != entry.sha256:
        wrong.append("its content changed")
    wrong += _xattrs_wrong(f"/proc/self/fd/{dir_fd}/".encode() + (name or b"."), entry, form, ids)
    if wrong:
        yield Problem(path, "; ".join(wrong))


def _owner_wrong(found: os.stat_result, entry: ManifestEntry, ids: IdMap) -> Iterator[str]:
    if entry.unset & OWNER:
        return
    uid, gid = ids.uid(entry.uid), ids.gid(entry.gid)
    # None: it was set in another user namespace, and this one does not have the ID: nobody here can tell
    if (uid is not None and found.st_uid != uid) or (gid is not None and found.st_gid != gid):
        yield f"owner {found.st_uid}:{found.st_gid}, not {uid}:{gid}"


def _content(name: bytes, dir_fd: int) -> bytes:
    digest = hashlib.sha256()
    with open_regular(name, dir_fd) as fd:
        for chunk in read_chunks(fd):
            digest.update(chunk)
    return digest.digest()


def _xattrs_wrong(path: bytes, entry: ManifestEntry, form: str | None, ids: IdMap) -> Iterator[str]:
    names = {os.fsencode(n) for n in os.listxattr(path, follow_symlinks=False)}
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


def _surplus(fds: dirfds.DirFds, known: set[bytes]) -> Iterator[Problem]:
    todo = [b""]
    while todo:
        path = todo.pop()
        try:
            with os.scandir(fds.get(path)) as children:
                found = [(os.fsencode(c.name), c.is_dir(follow_symlinks=False)) for c in children]
        except OSError:
            continue                     # already told
        for name, is_dir in sorted(found):
            child = path + b"/" + name if path else name
            if child not in known:
                yield Problem(child, "is not in the manifest")
            elif is_dir:
                todo.append(child)
