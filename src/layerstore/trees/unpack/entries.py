"""What each kind of entry does to the tree, and what is recorded of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import ClassVar

from layerstore.errors import ArchiveError, PrivilegeError
from layerstore.formats.manifest import OVERRIDE, ManifestEntry, ManifestWriter
from layerstore.formats.tar import Entry, TarReader, os_text
from layerstore.formats.tarsplit import Member, TarSplitWriter
from layerstore.model import DiffTarget
from layerstore.system import faults
from layerstore.system.descriptors import Descriptor
from layerstore.trees import whiteouts
from layerstore.trees.dress import entry_text
from layerstore.trees.unpack.nodes import Dir, Meant
from layerstore.trees.unpack.records import Records, record_of
from layerstore.trees.unpack.regular import Files, split
from layerstore.trees.unpack.tree import deepest_first, join
from layerstore.trees.whiteouts import is_whiteout

__all__ = ["Unpacked", "unpack"]

_NODE_TYPES = {"char": stat.S_IFCHR, "block": stat.S_IFBLK, "fifo": stat.S_IFIFO}
_WHITEOUT = b".wh."
_META = b".wh..wh."
_OPAQUE = b".wh..wh..opq"
_IMPLIED: Meant = (0o755, 0, 0, {})      # a directory that only others need


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What became of a tar.

    ``entries`` counts manifest records; ``unset`` attributes only the manifest has.
    """

    manifest_digest: str
    tar_split_digest: str
    entries: int
    uids: tuple[int, ...]
    gids: tuple[int, ...]
    unset: int


def unpack(
    chunks: Iterable[bytes], target: DiffTarget, *, require_end: bool = True, alone: int | None = None,
) -> Unpacked:
    """Unpack the plain tar in *chunks* into ``target.diff_fd``, which is empty.

    Writes ``manifest`` and ``tar-split`` into ``target.dir_fd``.

    *require_end* false accepts an archive without its end marker:
    only for who verifies a digest of all of it. The first *alone* files are made by the calling thread, the other small
    ones by threads (None: a few, or all on a machine with one processor). Raises ArchiveError and
    LimitExceededError for what is wrong with the archive, PrivilegeError if whiteouts cannot be made, OSError
    for the machine's failures; LayerstoreError soon after ``target.cancelled`` is set.

    Durability: none here: the tree is made durable as a whole, later. On any error it is incomplete, to be
    removed.
    """
    writer, split = ManifestWriter(target.dir_fd), TarSplitWriter(target.dir_fd)
    records = Records(writer, split, target.digests)
    with ExitStack() as threads:
        unpacker = _Unpacker(target, records, threads, alone)
        try:
            reader = TarReader(
                unpacker.heeded(chunks), target.limits, require_end=require_end, raw=records.raw.append)
            for entry in reader:
                faults.before("unpack.entry")
                unpacker.add(entry, reader)
                faults.after("unpack.entry")
            unpacked = unpacker.finish()
            threads.close()
            unpacker.heed_threads()
            return unpacked
        finally:
            threads.close()
            unpacker.fds.close()
            unpacker.shelf.close()
            records.abandon()


class _Unpacker(Files):
    def __init__(self, target: DiffTarget, records: Records, threads: ExitStack, alone: int | None) -> None:
        super().__init__(target, records, threads, alone)
        self._form = target.overlay_form
        self._opaque_xattr = f"{target.overlay_form}.overlay.opaque"

    def add(self, entry: Entry, reader: TarReader) -> None:
        self.count()
        if self.shelf.held > self.shelf.most:
            self.put_away()
        parent, _, base = entry.name.rpartition(b"/")
        hidden = self._whiteout(entry, parent, base) if entry.name.find(_WHITEOUT) >= 0 else None   # faster than in
        if hidden is not None:
            self.record(*hidden, Member(reader.raw_name))
            return
        if entry.type == "dir":
            self._dir(entry, parent, base)
            self.record(None, Member(reader.raw_name))
            return
        if not base:
            raise ArchiveError(f"the layer's root is a {entry.type}", offset=entry.offset)
        real, node = self.parent(parent, entry)
        if base in node.children:
            self.clear_dir(entry, real, node, base)
        if entry.type == "file":
            self.file(entry, reader, real, base)
        else:
            self.record(self._MAKERS[entry.type](self, entry, real, base), Member(reader.raw_name))

    def finish(self) -> Unpacked:
        """Complete the directories, deepest first, and the manifest."""
        self.settle()
        self.records.write_raw()
        for path, node in deepest_first(self.root):
            self.check_cancelled()
            self._finish_dir(path, node)
        records = self.records
        digests = records.finish()
        return Unpacked(
            *digests, records.entries, tuple(sorted(records.uids)), tuple(sorted(records.gids)), records.unset,
        )

    # -- the other kinds ----------------------------------------------------------------------------------

    def _symlink(self, entry: Entry, real: bytes, base: bytes) -> ManifestEntry:
        self.create(real, base, lambda dir_fd: os.symlink(entry.linkname, base, dir_fd=dir_fd))
        return record_of(entry, join(real, base), self._dress.name(self.fds.get(real), base, entry))

    def _hardlink(self, entry: Entry, real: bytes, base: bytes) -> ManifestEntry | None:
        parent, name = split(entry.linkname)
        target_real, _node = self.walk(parent, entry, make=False)
        target, path = join(target_real, name), join(real, base)
        self.settle(target)
        self.settle(path)
        if target in self.absent:
            if target == path:
                return None              # a link to itself changes nothing
            self.create(real, base, lambda _fd: None)
            copy = self.absent[path] = self.absent[target]._replace(path=path)
            return copy
        # its own: the next directory opened may close this one
        with Descriptor.duplicate(self.fds.get(target_real)) as src_fd:
            source = self._link_target(src_fd, name, entry)
            dst = self.fds.get(real)
            try:
                taken: os.stat_result | None = os.stat(base, dir_fd=dst, follow_symlinks=False)
            except FileNotFoundError:
                taken = None
            if taken is not None and os.path.samestat(taken, source):
                return None              # already the same file
            self.create(
                real, base,
                lambda dir_fd: os.link(name, base, src_dir_fd=src_fd, dst_dir_fd=dir_fd, follow_symlinks=False),
            )
        return ManifestEntry(path, "hardlink", linkname=target)

    @staticmethod
    def _link_target(src_fd: int, name: bytes, entry: Entry) -> os.stat_result:
        text = f"{entry_text(entry)} is a hard link to {os_text(entry.linkname)!r}"
        try:
            found = os.stat(name or b".", dir_fd=src_fd, follow_symlinks=False)
        except FileNotFoundError:
            raise ArchiveError(f"{text}, which is not in this layer before it", offset=entry.offset) from None
        if stat.S_ISDIR(found.st_mode):
            raise ArchiveError(f"{text}, a directory", offset=entry.offset)
        if is_whiteout(found, name, src_fd):
            raise ArchiveError(f"{text}, a whiteout", offset=entry.offset)
        return found

    def _node(self, entry: Entry, real: bytes, base: bytes) -> ManifestEntry:
        device = os.makedev(entry.devmajor, entry.devminor)
        if entry.type == "char" and not device:
            raise ArchiveError(f"{entry_text(entry)} is a device 0:0: a whiteout", offset=entry.offset)
        path = join(real, base)
        try:
            self.create(
                real, base,
                lambda dir_fd: os.mknod(base, _NODE_TYPES[entry.type] | 0o600, device, dir_fd=dir_fd),
            )
        except PermissionError:
            if entry.type == "fifo":
                raise
            unset = self.create(real, base, lambda dir_fd: self._dress.stand_in(dir_fd, base, entry))
            record = record_of(entry, path, unset)
            if not unset & OVERRIDE:
                self.absent[path] = record
            return record
        return record_of(entry, path, self._dress.name(self.fds.get(real), base, entry))

    def _dir(self, entry: Entry, parent: bytes, base: bytes) -> None:
        meant = self.shelf.meant(entry.mode, entry.uid, entry.gid, entry.xattrs)
        if not base:
            self.root.meant, self.root.mtime_ns = meant, entry.mtime_ns
            return
        real, node = self.parent(parent, entry)
        child = node.children.get(base)
        if child is None:
            child = self.new_dir()
            path = join(real, base)
            self.settle(path)
            try:
                if path in self.absent:
                    self.make_room(real, base)
                os.mkdir(base, 0o700, dir_fd=self.fds.get(real))
            except FileExistsError:
                child.opaque = self.is_hidden(real, base)
                self.make_room(real, base)
                node.mark(base, marked=False)
                os.mkdir(base, 0o700, dir_fd=self.fds.get(real))
            node.add(base, child)
        child.meant, child.mtime_ns = meant, entry.mtime_ns

    def _whiteout(self, entry: Entry, parent: bytes, base: bytes) -> tuple[ManifestEntry | None] | None:
        """Deal with AUFS names: what is recorded, if anything; None if the entry is not of that kind after all."""
        parts = parent.split(b"/")
        if (base.startswith(_META) and base != _OPAQUE) or any(part.startswith(_META) for part in parts):
            return (None,)               # AUFS's own bookkeeping: not content
        if any(part.startswith(_WHITEOUT) for part in parts):
            raise ArchiveError(f"{entry_text(entry)} lies beneath a whiteout", offset=entry.offset)
        if not base.startswith(_WHITEOUT):
            return None
        real, node = self.parent(parent, entry)
        if base == _OPAQUE:
            node.opaque = True
            return (None,)
        hidden = base[len(_WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise ArchiveError(f"{entry_text(entry)} is a whiteout of nothing", offset=entry.offset)
        child = node.children.get(hidden)
        if child is not None:
            child.opaque = True
            return (None,)
        path = join(real, hidden)
        self.settle(path)
        if path in self.absent or not self._hide(real, node, hidden):
            return (None,)               # this layer's own file hides the lower one already
        return (ManifestEntry(path, "whiteout"),)

    def _hide(self, real: bytes, node: Dir, name: bytes) -> bool:
        """Make the whiteout *name* in *real*; False if something is there."""
        dir_fd = self.fds.get(real)
        try:
            if whiteouts.make(name, dir_fd, self._form):
                node.mark(name)
        except FileExistsError:
            return False
        except PermissionError as error:
            raise PrivilegeError(
                f"this system does not let an ordinary user make the whiteout {os_text(join(real, name))!r}",
                hint="run as root, or on Linux 5.8 or newer (6.7 on an overlay, as a container's root is)",
            ) from error
        os.utime(name, ns=(0, 0), dir_fd=dir_fd, follow_symlinks=False)
        return True

    # not bound to an instance: what refers to itself is closed only when Python collects cycles
    _MAKERS: ClassVar[dict[str, Callable[..., ManifestEntry | None]]] = {
        "symlink": _symlink, "hardlink": _hardlink, "char": _node, "block": _node, "fifo": _node,
    }

    # -- directories, at the end --------------------------------------------------------------------------

    def _drop_marked(self, fd: int, path: bytes, names: Iterable[bytes]) -> None:
        """In an opaque directory whiteouts are needless, and overlayfs does not look for marked files: it shows them."""
        for name in sorted(names):
            with suppress(FileNotFoundError):
                if is_whiteout(os.stat(name, dir_fd=fd, follow_symlinks=False), name, fd):
                    os.unlink(name, dir_fd=fd)
                    self.records.gone(join(path, name))

    def _finish_dir(self, path: bytes, node: Dir) -> None:
        implicit = node.meant is None
        mode, uid, gid, xattrs = node.meant or _IMPLIED
        entry = Entry(path, "dir", mode, uid, gid, 0, node.mtime_ns, b"", 0, 0, xattrs, None, 0)
        fd = self.fds.get(path)
        if node.opaque:
            self._drop_marked(fd, path, node.marked)
        if node.opaque or node.marked:
            try:
                os.setxattr(fd, self._opaque_xattr, b"y" if node.opaque else b"x")
            except PermissionError as error:
                text = f"setting {self._opaque_xattr} on {os_text(path)!r}: {error.strerror}"
                raise PrivilegeError(text) from error
        unset = self._dress.open_file(fd, entry)
        self.records.record(record_of(entry, path, unset, opaque=node.opaque, implicit=implicit))
