"""What is in a layer's tree is given the attributes that its manifest says, where it lost them.

Exactly what ``compare`` goes by: what the maker of the tree could not set (``unset``) is not set here either. In this
order: owner (which clears set-user-ID and capabilities), extended attributes, mode, time. ``dress`` is for what is
just being made from an archive; this is for what is there.
"""

from __future__ import annotations

import os
import stat

from layerstore.formats.manifest import (
    KINDS,
    MODE,
    NODE,
    OVERRIDE,
    OWNER,
    TIME,
    XATTR,
    ManifestEntry,
    storable_xattr,
    stored_xattrs,
)
from layerstore.system import faults, filecaps
from layerstore.system.idmap import IdMap
from layerstore.trees import override

__all__ = ["wear"]



def wear(dir_fd: int, name: bytes, entry: ManifestEntry, *, form: str, ids: IdMap, point: str) -> bool:
    """Give *name* in *dir_fd* (``b"."``: itself) what *entry* says. False if it is of another kind, or needs nothing.

    OSError if it cannot be given it. Durability: none here; doing it again does no harm.
    """
    kind = stat.S_IFREG if entry.unset & NODE else KINDS.get(entry.type)
    status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    if kind is None or stat.S_IFMT(status.st_mode) != kind:
        return False                     # a whiteout has no attributes; what is something else is not worn by it
    with faults.point(point):
        _own(dir_fd, name, entry, status, ids)
        if kind != stat.S_IFLNK:
            os.chmod(name, stat.S_IMODE(status.st_mode) | stat.S_IWUSR, dir_fd=dir_fd)   # xattr(7): user.* wants that
        _attributes(f"/proc/self/fd/{dir_fd}/".encode() + name, entry, form, ids)
        if kind != stat.S_IFLNK:
            mode = override.readable(entry.type, entry.mode) if entry.unset & MODE else entry.mode
            os.chmod(name, mode, dir_fd=dir_fd)
        if not entry.unset & TIME:
            os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=dir_fd, follow_symlinks=False)
    return True


def _own(dir_fd: int, name: bytes, entry: ManifestEntry, status: os.stat_result, ids: IdMap) -> None:
    if entry.unset & OWNER:
        return
    uid, gid = ids.uid(entry.uid), ids.gid(entry.gid)
    wanted = (status.st_uid if uid is None else uid, status.st_gid if gid is None else gid)
    if wanted != (status.st_uid, status.st_gid):
        os.chown(name, *wanted, dir_fd=dir_fd, follow_symlinks=False)


def _attributes(path: bytes, entry: ManifestEntry, form: str, ids: IdMap) -> None:
    here = {os.fsencode(each) for each in os.listxattr(path, follow_symlinks=False)}
    wanted = stored_xattrs(entry.xattrs)
    if filecaps.NAME in wanted:
        wanted[filecaps.NAME] = filecaps.to_disk(wanted[filecaps.NAME], ids)
    if entry.unset & OVERRIDE:
        wanted[override.NAME] = override.value(entry)
    opaque = f"{form}.overlay.opaque".encode()
    if entry.type == "dir" and entry.opaque:
        wanted[opaque] = b"y"
    for each in sorted(here - wanted.keys()):
        if storable_xattr(each) or each == override.NAME or (
            each == opaque and entry.type == "dir" and os.getxattr(path, each, follow_symlinks=False) == b"y"
        ):
            os.removexattr(path, each, follow_symlinks=False)
    for each, value in sorted(wanted.items()):
        if each not in here or os.getxattr(path, each, follow_symlinks=False) != value:
            _set(path, each, value, entry)


def _set(path: bytes, name: bytes, value: bytes, entry: ManifestEntry) -> None:
    try:
        os.setxattr(path, name, value, follow_symlinks=False)
    except OSError:
        if not entry.unset & XATTR:      # what its maker could not set either is not missed
            raise
