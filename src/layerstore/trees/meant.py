"""What a tree's files are meant to be, where the process that made it could not make them so. Reads only.

From ``user.containers.override_stat`` of files and directories; from the manifest for what cannot carry it (symbolic
links, devices that nothing stands for) and what it does not tell (attributes, times). Only the latter are remembered:
for a tree made by an ordinary user that is its symbolic links, not its files.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from layerstore.formats.manifest import KINDS, MODE, NODE, OVERRIDE, OWNER, TIME, XATTR, ManifestEntry, final_entries
from layerstore.system.idmap import IDENTITY, IdMap
from layerstore.trees import override

__all__ = ["Meant", "Recorded", "as_found"]

_NOT_THERE = frozenset({errno.ENODATA, errno.ENOTSUP})
_NO_XATTRS: Mapping[bytes, bytes] = {}


class Meant(NamedTuple):
    """One path as its archive meant it. Ids are the archive's; None: nobody knows. ``xattrs`` are those not on disk."""

    kind: int
    mode: int
    uid: int | None
    gid: int | None
    mtime_ns: int
    rdev: int = 0
    xattrs: Mapping[bytes, bytes] = _NO_XATTRS


def as_found(found: os.stat_result, ids: IdMap) -> Meant:
    """A file that is what its status says."""
    return Meant(
        stat.S_IFMT(found.st_mode), stat.S_IMODE(found.st_mode), ids.container_uid(found.st_uid),
        ids.container_gid(found.st_gid), found.st_mtime_ns, found.st_rdev,
    )


class Recorded:
    """What is recorded of one tree of which something could not be set, by its manifest (a path or descriptor)."""

    def __init__(self, manifest: str | bytes | int, ids: IdMap = IDENTITY) -> None:
        self._ids = ids
        self._entries: dict[bytes, ManifestEntry] = {}
        self._absent: dict[bytes, list[bytes]] = defaultdict(list)
        for entry in final_entries(manifest):
            if entry.type == "hardlink":
                target = self._entries.get(entry.linkname)
                if target is not None:
                    self._entries[entry.path] = target
            elif entry.unset & (XATTR | TIME) or (entry.unset & (OWNER | NODE | MODE) and not entry.unset & OVERRIDE):
                self._entries[entry.path] = entry
                if entry.unset & NODE and not entry.unset & OVERRIDE:
                    parent, _, name = entry.path.rpartition(b"/")
                    self._absent[parent].append(name)

    def of(self, path: bytes, found: os.stat_result, where: int | bytes) -> Meant:
        """What *path*, which has the status *found* and is at *where* (a descriptor or a path), is meant to be."""
        meant = as_found(found, self._ids)
        entry = self._entries.get(path)
        if entry is not None:
            meant = self._by_manifest(meant, entry)
        if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode):
            said = _said(where)
            if said is not None:
                meant = meant._replace(uid=said.uid, gid=said.gid, mode=said.mode, kind=said.kind, rdev=said.rdev)
        return meant

    def absent(self, directory: bytes) -> list[tuple[bytes, Meant]]:
        """The devices of *directory* that nothing on disk stands for: names, and what they are."""
        found = []
        for name in self._absent.get(directory, ()):
            entry = self._entries[directory + b"/" + name if directory else name]
            device = os.makedev(entry.devmajor, entry.devminor)
            found.append((name, Meant(
                KINDS[entry.type], entry.mode, entry.uid, entry.gid, entry.mtime_ns, device, entry.xattrs,
            )))
        return found

    @staticmethod
    def _by_manifest(meant: Meant, entry: ManifestEntry) -> Meant:
        if entry.unset & OWNER:
            meant = meant._replace(uid=entry.uid, gid=entry.gid)
        if entry.unset & MODE:
            meant = meant._replace(mode=entry.mode)
        if entry.unset & TIME:
            meant = meant._replace(mtime_ns=entry.mtime_ns)
        return meant._replace(xattrs=entry.xattrs) if entry.unset & XATTR else meant


def _said(where: int | bytes) -> override.Stat | None:
    try:
        data = os.getxattr(where, override.NAME, follow_symlinks=isinstance(where, int))
    except OSError as error:
        if error.errno in _NOT_THERE:
            return None
        raise
    return override.parse(data)
