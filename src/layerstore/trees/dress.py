"""Dressing: owner, extended attributes, mode and times of what an archive has just made us make.

In this order: chown clears setuid bits and capabilities, so attributes and mode come after it; times last. What an
ordinary user, or the file system, cannot have is told as bits of ``manifest``'s *unset*, and never an error; of files and
directories the attribute of ``override`` says it, too. A ``Dresser`` never changes: several threads may use one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping

from layerstore.formats.manifest import (
    MODE,
    NODE,
    OVERRIDE,
    OWNER,
    TIME,
    UNSET,
    XATTR,
    ManifestEntry,
    final_entries,
    meaningful_xattr,
    stored_xattrs,
)
from layerstore.formats.tar import Entry, os_text
from layerstore.system import filecaps
from layerstore.system.descriptors import NEW_FILE, Descriptor
from layerstore.system.idmap import IDENTITY, IdMap, Range
from layerstore.system.privilege import Powers, own_map
from layerstore.system.room import has_bytes
from layerstore.trees import override

__all__ = ["Dresser", "entry_text", "improvable", "is_safe_time"]

_UNKNOWN = (-1, -1, -1)
_SAFE_UNTIL = (1 << 31) * 1_000_000_000   # nanoseconds: every file system holds times this far from 1970
_SAFE_FROM = -_SAFE_UNTIL
# EINVAL: a value that this kernel does not know, or capabilities of a root whose ID this namespace does not map
_XATTR_UNSUPPORTED = frozenset({errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EINVAL})
_XATTR_TOO_LARGE = frozenset({errno.E2BIG, errno.ERANGE})


class Dresser:
    """Sets attributes as this process may, owners by way of *ids*. Each method returns bits: what could not be set."""

    def __init__(self, ids: IdMap = IDENTITY) -> None:
        self._powers = Powers.of_this_process()
        self._ids = ids
        self._mapped = ids != IDENTITY
        # fuse-overlayfs 1.x, once it finds the attribute at a layer's root, wants it on every file and directory
        self._says_all = not self._powers.chowns

    def open_file(
        self, fd: int, entry: Entry, *, override_stat: bool = False, born: tuple[int, int, int] = _UNKNOWN,
    ) -> int:
        """A file or directory that is open as *fd*; *born* with this owner, group and mode, if that is known.

        With *override_stat* it gets that attribute in any case.
        """
        unset = 0
        if self._mapped or (entry.uid, entry.gid) != born[:2]:
            unset = self._chown(entry, lambda uid, gid: os.fchown(fd, uid, gid))
        if entry.xattrs:
            unset |= self._set_xattrs(fd, entry)
        mode = entry.mode if self._powers.reads_all else override.readable(entry.type, entry.mode)
        if mode != entry.mode:
            unset |= MODE
        # before the mode: a file that its owner may not write can be given no attribute of user.* (xattr(7))
        if (override_stat or self._says_all or unset & (OWNER | MODE)) and override.write(fd, entry):
            unset |= OVERRIDE
        if mode != born[2]:
            os.fchmod(fd, mode)
        return unset | self.time(fd, entry.mtime_ns)

    @staticmethod
    def time(fd: int, mtime_ns: int) -> int:
        """Only the time, of a file that has all else."""
        os.utime(fd, ns=(mtime_ns, mtime_ns))
        if is_safe_time(mtime_ns):
            return 0
        return 0 if os.fstat(fd).st_mtime_ns == mtime_ns else TIME

    @property
    def sets_all(self) -> bool:
        """Whether owner and mode of a file become what is meant, as far as can be known, and nothing needs to say so."""
        return not self._mapped and not self._says_all and self._powers.reads_all

    def leaves(self, born: tuple[int, int, int], mode: int, uid: int, gid: int) -> bool:
        """Whether a file *born* so has that mode and owner already, and needs nothing that would say so."""
        return born == (uid, gid, mode) and self.sets_all

    def name(self, dir_fd: int, base: bytes, entry: Entry) -> int:
        """What cannot be opened: links and device nodes, just made by us at that name."""
        unset = self._chown(
            entry, lambda uid, gid: os.chown(base, uid, gid, dir_fd=dir_fd, follow_symlinks=False),
        )
        if entry.xattrs:
            unset |= self._set_xattrs(f"/proc/self/fd/{dir_fd}/".encode() + base, entry)
        if entry.type != "symlink":
            os.chmod(base, entry.mode, dir_fd=dir_fd)
        os.utime(base, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=dir_fd, follow_symlinks=False)
        if is_safe_time(entry.mtime_ns):
            return unset
        found = os.stat(base, dir_fd=dir_fd, follow_symlinks=False)
        return unset | (0 if found.st_mtime_ns == entry.mtime_ns else TIME)

    def stand_in(self, dir_fd: int, base: bytes, entry: Entry) -> int:
        """Make an empty file in the place of a device that may not be made, if it can carry what the device is.

        Else nothing is made, and the bits are without OVERRIDE. FileExistsError if something is there.
        """
        with Descriptor(base, NEW_FILE, dir_fd=dir_fd) as fd:
            if not override.write(fd, entry):
                os.unlink(base, dir_fd=dir_fd)
                return NODE
            return NODE | self.open_file(fd, entry, override_stat=True)

    def _chown(self, entry: Entry, call: Callable[[int, int], None]) -> int:
        uid: int | None = entry.uid
        gid: int | None = entry.gid
        unset = 0
        if self._mapped:
            uid, gid = self._ids.uid(entry.uid), self._ids.gid(entry.gid)
            if uid is None or gid is None:  # that the store does not map: then the container's root has it
                uid, gid, unset = self._ids.uid(0), self._ids.gid(0), OWNER
        if uid is None or gid is None:
            return OWNER
        if not self._powers.may_chown(uid):
            return OWNER
        try:
            call(uid, gid)
        except OSError as error:
            # EINVAL: an ID that this user namespace does not map
            if error.errno not in (errno.EPERM, errno.EINVAL):
                raise
            return OWNER
        return unset

    def _set_xattrs(self, where: int | bytes, entry: Entry) -> int:
        stored = stored_xattrs(entry.xattrs)
        unset = XATTR if any(name not in stored and meaningful_xattr(name) for name in entry.xattrs) else 0
        for name, value in stored.items():
            if self._mapped and name == filecaps.NAME:
                value = filecaps.to_disk(value, self._ids)  # noqa: PLW2901
            try:
                if isinstance(where, int):
                    os.setxattr(where, name, value)
                else:
                    os.setxattr(where, name, value, follow_symlinks=False)
            except OSError as error:
                if error.errno not in _XATTR_UNSUPPORTED and not _has_no_place(error.errno, where):
                    text = f"setting {os_text(name)} ({len(value)} bytes) on {entry_text(entry)}: {error.strerror}"
                    raise OSError(error.errno, text) from error
                unset |= XATTR
        return unset


def _has_no_place(number: int | None, where: int | bytes) -> bool:
    """Whether it is the attribute that is too large. ext4 (4 kB for all of a file's) and btrfs call that ENOSPC, too."""
    if number in _XATTR_TOO_LARGE:
        return True
    if number != errno.ENOSPC:
        return False
    return has_bytes(where if isinstance(where, int) else where.rpartition(b"/")[0])   # not what a link leads to


def improvable(manifest: int, ids: IdMap = IDENTITY) -> bool:
    """Whether this process could set something that the maker of the tree with that manifest (a descriptor) could not."""
    powers = Powers.of_this_process()
    here = {kind: own_map(kind) for kind in ("uid", "gid")} if powers.chowns else {}
    return any(_improvable(entry, powers, ids, here) for entry in final_entries(manifest) if entry.unset & UNSET)


def _improvable(
    entry: ManifestEntry, powers: Powers, ids: IdMap, here: Mapping[str, tuple[Range, ...]],
) -> bool:
    if entry.unset & NODE:
        return powers.makes_devices
    if entry.unset & OWNER and powers.chowns:
        owners = (("uid", ids.uid(entry.uid)), ("gid", ids.gid(entry.gid)))
        if all(n is not None and any(a <= n < a + size for a, _, size in here[kind]) for kind, n in owners):
            return True
    if entry.unset & XATTR and powers.is_root and stored_xattrs(entry.xattrs):   # the others nobody sets
        return True
    return bool(entry.unset & MODE and powers.reads_all)


def is_safe_time(mtime_ns: int) -> bool:
    """Whether every file system holds that time, so that nobody needs to look what became of it."""
    return _SAFE_FROM <= mtime_ns < _SAFE_UNTIL


def entry_text(entry: Entry) -> str:
    """An entry's name, for a message."""
    return repr(os_text(entry.name))
