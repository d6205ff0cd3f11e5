"""Unpacking: a tar stream becomes a tree in overlay on-disk form, and a manifest. Hostile input stays inside.

The rules, where archives or the field leave a choice:

* Every path is walked component by component (``dirfds``). A parent that is a symbolic link *of this layer*
  is followed as if the tree's root were ``/`` (as a chroot would, and as the field does); where the link's
  target is not in this layer the archive is refused: whatever it was meant to reach lies in another layer's
  tree.
* A later entry replaces an earlier one, and what was beneath it; only a directory on a directory merges.
* Parents that the archive lacks are made 0755, root's, with time 0, so that the same archive always gives the
  same tree. The same holds for the tree's own directory if there is no entry ``./``.
* ``.wh.X`` is a whiteout at X (``whiteouts``). By the OCI specification it hides only what *lower* layers have:
  if this layer has X itself, in whatever order, that X stays, opaque if it is a directory. ``.wh..wh..opq``
  makes its directory opaque; anything else of AUFS's (``.wh..wh.*``) is skipped. A device 0:0 in an archive
  is refused.
* A hard link brings nothing of its own: owner, mode and times are those of the file it names.
* Of extended attributes only those that ``storable_xattr`` names are taken.
* What an ordinary user (or a file system) cannot have — other owners, devices, privileged attributes — is
  counted and kept in the manifest and, where it can be, in ``user.containers.override_stat`` (``override``); for a
  device that cannot be made an empty file stands. It never fails an unpacking.

Directories get owner, attributes, mode and time when all is in place, deepest first: until then they are
0700.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

from layerstore import faults, fs, whiteouts
from layerstore.descriptors import Descriptor
from layerstore.dirfds import DirFds
from layerstore.dress import Dresser, entry_text
from layerstore.errors import ArchiveError, LayerstoreError, LimitExceededError, PrivilegeError
from layerstore.manifest import OVERRIDE, UNSET, ManifestEntry, ManifestWriter, storable_xattr
from layerstore.model import DiffTarget
from layerstore.tar import Entry, TarReader, os_text
from layerstore.tarsplit import Member, TarSplitWriter
from layerstore.whiteouts import is_whiteout

__all__ = ["Unpacked", "unpack"]

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NODE_TYPES = {"char": stat.S_IFCHR, "block": stat.S_IFBLK, "fifo": stat.S_IFIFO}
_WHITEOUT = b".wh."
_META = b".wh..wh."
_OPAQUE = b".wh..wh..opq"
_MAX_LINKS = 40                          # symbolic links in one path, as in the kernel (path_resolution(7))
_MAX_OWNERS = 65_536                     # different uids or gids: they become a field of the layer's row
_ZEROS = memoryview(bytes(1 << 20))


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


def unpack(chunks: Iterable[bytes], target: DiffTarget, *, require_end: bool = True) -> Unpacked:
    """Unpack the plain tar in *chunks* into ``target.diff_fd``, which is empty.

    Writes ``manifest`` and ``tar-split`` into ``target.dir_fd``.

    *require_end* false accepts an archive without its end marker:
    only for who verifies a digest of all of it. Raises ArchiveError and LimitExceededError for what is wrong
    with the archive, PrivilegeError if whiteouts cannot be made, OSError for the machine's failures;
    LayerstoreError soon after ``target.cancelled`` is set.

    Durability: none here: the tree is made durable as a whole, later. On any error it is incomplete, to be
    removed.
    """
    writer, split = ManifestWriter(target.dir_fd), TarSplitWriter(target.dir_fd)
    unpacker = _Unpacker(target, writer, split)
    try:
        reader = TarReader(chunks, target.limits, require_end=require_end, raw=split.raw)
        for entry in reader:
            faults.before("unpack.entry")
            unpacker.add(entry, reader)
            faults.after("unpack.entry")
        return unpacker.finish()
    finally:
        unpacker.close()
        writer.abandon()
        split.abandon()


class _Dir:
    """A directory of the tree being made. ``entry`` is None as long as only its children needed it."""

    __slots__ = ("children", "entry", "marked", "opaque")

    def __init__(self, *, opaque: bool = False) -> None:
        self.children: dict[bytes, _Dir] = {}
        self.entry: Entry | None = None
        self.opaque = opaque
        self.marked: set[bytes] = set()  # whiteouts in it that are marked files


class _Unpacker:
    def __init__(self, target: DiffTarget, writer: ManifestWriter, split: TarSplitWriter) -> None:
        self._limits = target.limits
        self._form = target.overlay_form
        self._opaque_xattr = f"{target.overlay_form}.overlay.opaque"
        self._cancelled = target.cancelled
        self._writer, self._split = writer, split
        self._dress = Dresser(target.ids)
        self._fds = DirFds(target.diff_fd)
        self._root = _Dir()
        # the last parent: its name in the archive, its real path, its node
        self._resolved: tuple[bytes, bytes, _Dir] = (b"", b"", self._root)
        self._absent: dict[bytes, ManifestEntry] = {}  # devices that nothing stands for
        self._uids: set[int] = set()
        self._gids: set[int] = set()
        self._entries = self._unset = self._made = 0

    def add(self, entry: Entry, reader: TarReader) -> None:
        self._check_cancelled()
        self._count()
        parent, _, base = entry.name.rpartition(b"/")
        if _WHITEOUT in entry.name and self._whiteout(entry, parent, base):
            self._split.member(Member(reader.raw_name))
            return
        if entry.type == "dir":
            self._dir(entry, parent, base)
            self._split.member(Member(reader.raw_name))
        else:
            if not base:
                raise ArchiveError(f"the layer's root is a {entry.type}", offset=entry.offset)
            real, node = self._parent(parent, entry)
            if base in node.children:
                self._clear_dir(entry, real, node, base)
            self._MAKERS[entry.type](self, entry, reader, real, base)
            self._split.member(_member(entry, reader.raw_name, _join(real, base)))

    def _count(self) -> None:
        self._made += 1
        if self._made > self._limits.max_entries:
            raise LimitExceededError(
                "the archive has too many entries, with the directories that they imply", limit="max_entries",
                maximum=self._limits.max_entries,
            )

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise LayerstoreError("cancelled: the layer is no longer wanted")

    def finish(self) -> Unpacked:
        """Complete the directories, deepest first, and the manifest."""
        for path, node in _deepest_first(self._root):
            self._check_cancelled()
            self._finish_dir(path, node)
        return Unpacked(
            self._writer.finish(),
            self._split.finish(),
            self._entries,
            tuple(sorted(self._uids)),
            tuple(sorted(self._gids)),
            self._unset,
        )

    def close(self) -> None:
        self._fds.close()

    # -- where things go ----------------------------------------------------------------------------------

    def _parent(self, path: bytes, entry: Entry, *, make: bool = True) -> tuple[bytes, _Dir]:
        """The real path and node of the directory *path*, which is made if it is missing (with *make*)."""
        if path == self._resolved[0]:
            return self._resolved[1:]
        real, node = self._walk(path, entry, make=make)
        self._resolved = (path, real, node)
        return real, node

    def _walk(self, path: bytes, entry: Entry, *, make: bool) -> tuple[bytes, _Dir]:
        trail: list[tuple[bytes, _Dir]] = [(b"", self._root)]
        todo = [(part, make) for part in reversed(path.split(b"/"))] if path else []
        links = 0
        while todo:
            name, may_make = todo.pop()
            if name == b"..":            # only from a link's target; above the root is the root
                if len(trail) > 1:
                    trail.pop()
                continue
            if name in (b"", b"."):
                continue
            real, node = trail[-1]
            child_path = real + b"/" + name if real else name
            child = node.children.get(name)
            if child is None:
                made = self._enter(real, node, name, child_path, entry, make=may_make)
                if isinstance(made, bytes):
                    links += 1
                    if links > _MAX_LINKS:
                        raise ArchiveError(f"too many symbolic links: {entry_text(entry)}", offset=entry.offset)
                    if made.startswith(b"/"):
                        del trail[1:]
                    todo.extend((part, False) for part in reversed(made.split(b"/")))
                    continue
                child = made
            if len(trail) > self._limits.max_depth:
                raise LimitExceededError(
                    f"by way of symbolic links {entry_text(entry)} lies too deep", limit="max_depth",
                    maximum=self._limits.max_depth,
                )
            trail.append((child_path, child))
        return trail[-1]

    def _enter(
        self, real: bytes, node: _Dir, name: bytes, path: bytes, entry: Entry, *, make: bool
    ) -> _Dir | bytes:
        """Make the missing directory *name* in *real*; or return the target of the link that is there."""
        dir_fd = self._fds.get(real)
        try:
            found: os.stat_result | None = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            found = None
        if found is not None and stat.S_ISLNK(found.st_mode):
            return os.readlink(name, dir_fd=dir_fd)
        hidden = found is not None and is_whiteout(found, name, dir_fd)
        if (found is not None and not hidden) or path in self._absent:
            raise ArchiveError(
                f"{entry_text(entry)} lies beneath {os_text(path)!r}, which is not a directory",
                offset=entry.offset,
            )
        if not make:
            raise ArchiveError(
                f"{entry_text(entry)} leads to {os_text(path)!r}, which is not in this layer", offset=entry.offset
            )
        if hidden:
            os.unlink(name, dir_fd=dir_fd)
            node.marked.discard(name)
            self._writer.folds += 1
        self._count()                    # one name may imply hundreds of directories
        os.mkdir(name, 0o700, dir_fd=dir_fd)
        child = node.children[name] = _Dir(opaque=hidden)
        return child

    def _is_hidden(self, real: bytes, base: bytes) -> bool:
        """Whether a whiteout is there."""
        if _join(real, base) in self._absent:
            return False
        dir_fd = self._fds.get(real)
        return is_whiteout(os.stat(base, dir_fd=dir_fd, follow_symlinks=False), base, dir_fd)

    def _make_room(self, real: bytes, base: bytes) -> None:
        """Remove the file that an earlier entry put there."""
        self._resolved = (b"", b"", self._root)  # it may be a symbolic link that the last parent led through
        self._writer.folds += 1
        path = _join(real, base)
        if self._absent.pop(path, None) is not None:
            return
        self._remove(self._fds.get(real), base, path)

    def _remove(self, dir_fd: int, name: bytes, path: bytes) -> None:
        """Unlink what is no directory; a file with content is kept: the tar cannot be made again without it."""
        found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        if stat.S_ISREG(found.st_mode) and found.st_size:
            self._split.keep(dir_fd, name, path)
        else:
            os.unlink(name, dir_fd=dir_fd)

    def _clear_dir(self, entry: Entry, real: bytes, node: _Dir, base: bytes) -> None:
        """Remove a directory: something that is none takes its place."""
        path = _join(real, base)
        if entry.type == "hardlink" and (entry.linkname + b"/").startswith(path + b"/"):
            raise ArchiveError(f"{entry_text(entry)} is a hard link to what it would replace", offset=entry.offset)
        self._resolved = (b"", b"", self._root)
        self._keep_beneath(path, node.children[base])
        self._fds.forget(path)
        fs.remove_tree(self._fds.get(real), os.fsdecode(base), point="unpack.replace")
        del node.children[base]
        for absent in [p for p in self._absent if p.startswith(path + b"/")]:
            del self._absent[absent]
        self._writer.gone(path)

    def _keep_beneath(self, path: bytes, node: _Dir) -> None:
        for directory, _node in _deepest_first(node):
            where = _join(path, directory) if directory else path
            dir_fd = self._fds.get(where)
            for name in sorted(map(os.fsencode, os.listdir(dir_fd))):
                if stat.S_ISREG(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
                    self._remove(dir_fd, name, _join(where, name))

    def _create(self, real: bytes, base: bytes, make: Callable[[int], Any]) -> Any:
        """Call ``make(dir_fd)``; if the name is taken, by no directory, make room and call it again."""
        if self._absent and _join(real, base) in self._absent:
            self._make_room(real, base)
        try:
            return make(self._fds.get(real))
        except FileExistsError:
            self._make_room(real, base)
            return make(self._fds.get(real))

    # -- the kinds of entries -----------------------------------------------------------------------------

    def _file(self, entry: Entry, reader: TarReader, real: bytes, base: bytes) -> None:
        with self._create(real, base, lambda dir_fd: Descriptor(base, _NEW_FILE, dir_fd=dir_fd)) as fd:
            whole = reader.read_whole() if entry.sparse is None else None
            if whole is not None:
                digest = hashlib.sha256(whole)
                _write(fd, whole)
            else:
                digest = hashlib.sha256()
                if entry.sparse is not None:
                    self._write_sparse(fd, entry, reader.read_data(entry), digest)
                else:
                    self._write_all(fd, reader.read_data(entry), digest)
            unset = self._dress.open_file(fd, entry)
        self._record(entry, _join(real, base), unset, sha256=digest.digest())

    def _write_all(self, fd: int, data: Iterator[memoryview], digest: Any) -> None:
        for piece in data:
            self._check_cancelled()
            digest.update(piece)
            _write(fd, piece)

    def _write_sparse(self, fd: int, entry: Entry, data: Iterator[memoryview], digest: Any) -> None:
        """Write the segments where they belong, with holes between; hash it all as it will be read."""
        assert entry.sparse is not None
        at = 0
        piece = memoryview(b"")
        for start, length in entry.sparse:
            self._hash_zeros(digest, start - at)
            at = start
            while at < start + length:
                if not piece:
                    piece = next(data)
                part = piece[: start + length - at]
                piece = piece[len(part) :]
                digest.update(part)
                os.lseek(fd, at, os.SEEK_SET)
                _write(fd, part)
                at += len(part)
        self._hash_zeros(digest, entry.size - at)
        os.ftruncate(fd, entry.size)

    def _hash_zeros(self, digest: Any, count: int) -> None:
        while count > 0:
            self._check_cancelled()
            digest.update(_ZEROS[:count])
            count -= len(_ZEROS)

    def _symlink(self, entry: Entry, _reader: TarReader, real: bytes, base: bytes) -> None:
        self._create(real, base, lambda dir_fd: os.symlink(entry.linkname, base, dir_fd=dir_fd))
        self._record(entry, _join(real, base), self._dress.name(self._fds.get(real), base, entry))

    def _hardlink(self, entry: Entry, _reader: TarReader, real: bytes, base: bytes) -> None:
        parent, _, name = entry.linkname.rpartition(b"/")
        target_real, _node = self._walk(parent, entry, make=False)
        target, path = _join(target_real, name), _join(real, base)
        if target == path:
            return                       # a link to itself changes nothing, as with GNU tar
        if target in self._absent:
            self._create(real, base, lambda _fd: None)
            copy = self._absent[path] = self._absent[target]._replace(path=path)
            self._add(copy)
            return
        # its own: the next directory opened may close this one
        with Descriptor.duplicate(self._fds.get(target_real)) as src_fd:
            self._check_link_target(src_fd, name, entry)
            dst = self._fds.get(real)
            try:
                taken: os.stat_result | None = os.stat(base, dir_fd=dst, follow_symlinks=False)
            except FileNotFoundError:
                taken = None
            source = os.stat(name, dir_fd=src_fd, follow_symlinks=False)
            if taken is not None and os.path.samestat(taken, source):
                return  # already the same file
            self._create(
                real,
                base,
                lambda dir_fd: os.link(
                    name, base, src_dir_fd=src_fd, dst_dir_fd=dir_fd, follow_symlinks=False
                ),
            )
        self._add(ManifestEntry(path, "hardlink", linkname=target))

    @staticmethod
    def _check_link_target(src_fd: int, name: bytes, entry: Entry) -> None:
        text = f"{entry_text(entry)} is a hard link to {os_text(entry.linkname)!r}"
        try:
            found = os.stat(name or b".", dir_fd=src_fd, follow_symlinks=False)
        except FileNotFoundError:
            raise ArchiveError(f"{text}, which is not in this layer before it", offset=entry.offset) from None
        if stat.S_ISDIR(found.st_mode):
            raise ArchiveError(f"{text}, a directory", offset=entry.offset)
        if is_whiteout(found, name, src_fd):
            raise ArchiveError(f"{text}, a whiteout", offset=entry.offset)

    def _node(self, entry: Entry, _reader: TarReader, real: bytes, base: bytes) -> None:
        device = os.makedev(entry.devmajor, entry.devminor)
        if entry.type == "char" and not device:
            raise ArchiveError(f"{entry_text(entry)} is a device 0:0: a whiteout", offset=entry.offset)
        path = _join(real, base)
        try:
            self._create(
                real, base,
                lambda dir_fd: os.mknod(base, _NODE_TYPES[entry.type] | 0o600, device, dir_fd=dir_fd),
            )
        except PermissionError:
            if entry.type == "fifo":
                raise
            unset = self._create(real, base, lambda dir_fd: self._dress.stand_in(dir_fd, base, entry))
            record = self._record(entry, path, unset)
            if not unset & OVERRIDE:
                self._absent[path] = record
            return
        self._record(entry, path, self._dress.name(self._fds.get(real), base, entry))

    def _dir(self, entry: Entry, parent: bytes, base: bytes) -> None:
        if not base:
            self._root.entry = entry
            return
        real, node = self._parent(parent, entry)
        child = node.children.get(base)
        if child is None:
            child = _Dir()
            try:
                if self._absent and _join(real, base) in self._absent:
                    self._make_room(real, base)
                os.mkdir(base, 0o700, dir_fd=self._fds.get(real))
            except FileExistsError:
                child.opaque = self._is_hidden(real, base)
                self._make_room(real, base)
                node.marked.discard(base)
                os.mkdir(base, 0o700, dir_fd=self._fds.get(real))
            node.children[base] = child
        child.entry = entry

    def _whiteout(self, entry: Entry, parent: bytes, base: bytes) -> bool:
        """Deal with AUFS names; False if the entry is not of that kind after all."""
        parts = parent.split(b"/")
        if (base.startswith(_META) and base != _OPAQUE) or any(part.startswith(_META) for part in parts):
            return True                  # AUFS's own bookkeeping: not content
        if any(part.startswith(_WHITEOUT) for part in parts):
            raise ArchiveError(f"{entry_text(entry)} lies beneath a whiteout", offset=entry.offset)
        if not base.startswith(_WHITEOUT):
            return False
        real, node = self._parent(parent, entry)
        if base == _OPAQUE:
            node.opaque = True
            return True
        hidden = base[len(_WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise ArchiveError(f"{entry_text(entry)} is a whiteout of nothing", offset=entry.offset)
        child = node.children.get(hidden)
        if child is not None:
            child.opaque = True
            return True
        path = _join(real, hidden)
        if path in self._absent:
            return True
        dir_fd = self._fds.get(real)
        try:
            if whiteouts.make(hidden, dir_fd, self._form):
                node.marked.add(hidden)
        except FileExistsError:
            return True                  # this layer's own file hides the lower one already
        except PermissionError as error:
            raise PrivilegeError(
                f"this system does not let an ordinary user make the whiteout {os_text(path)!r}",
                hint="run as root, or on Linux 5.8 or newer (6.7 on an overlay, as a container's root is)",
            ) from error
        os.utime(hidden, ns=(0, 0), dir_fd=dir_fd, follow_symlinks=False)
        self._add(ManifestEntry(path, "whiteout"))
        return True

    # not bound to an instance: what refers to itself is closed only when Python collects cycles
    _MAKERS: ClassVar[dict[str, Callable[[_Unpacker, Entry, TarReader, bytes, bytes], None]]] = {
        "file": _file, "symlink": _symlink, "hardlink": _hardlink, "char": _node, "block": _node, "fifo": _node,
    }

    def _drop_marked(self, fd: int, path: bytes, names: set[bytes]) -> None:
        """In an opaque directory whiteouts are needless, and overlayfs does not look for marked files: it shows them."""
        for name in sorted(names):
            with suppress(FileNotFoundError):
                if is_whiteout(os.stat(name, dir_fd=fd, follow_symlinks=False), name, fd):
                    os.unlink(name, dir_fd=fd)
                    self._writer.gone(_join(path, name))

    def _finish_dir(self, path: bytes, node: _Dir) -> None:
        implicit = node.entry is None
        entry = node.entry or Entry(path, "dir", 0o755, 0, 0, 0, 0, b"", 0, 0, {}, None, 0)
        fd = self._fds.get(path)
        if node.opaque:
            self._drop_marked(fd, path, node.marked)
        if node.opaque or node.marked:
            try:
                os.setxattr(fd, self._opaque_xattr, b"y" if node.opaque else b"x")
            except PermissionError as error:
                text = f"setting {self._opaque_xattr} on {os_text(path)!r}: {error.strerror}"
                raise PrivilegeError(text) from error
        unset = self._dress.open_file(fd, entry)
        self._record(entry, path, unset, opaque=node.opaque, implicit=implicit)

    # -- the record ---------------------------------------------------------------------------------------

    def _record(
        self, entry: Entry, path: bytes, unset: int, *, sha256: bytes | None = None, opaque: bool = False,
        implicit: bool = False,
    ) -> ManifestEntry:
        xattrs: Mapping[bytes, bytes] = {}
        if entry.xattrs:
            xattrs = {name: value for name, value in entry.xattrs.items() if storable_xattr(name)}
        record = ManifestEntry(
            path, entry.type, entry.mode, entry.uid, entry.gid, entry.size, entry.mtime_ns, entry.linkname,
            entry.devmajor, entry.devminor, xattrs, sha256, opaque, implicit, unset,
        )
        self._uids.add(entry.uid)
        self._gids.add(entry.gid)
        if len(self._uids) > _MAX_OWNERS or len(self._gids) > _MAX_OWNERS:
            raise ArchiveError(f"more than {_MAX_OWNERS} different owners", offset=entry.offset)
        self._add(record)
        return record

    def _add(self, record: ManifestEntry) -> None:
        self._entries += 1
        self._unset += (record.unset & UNSET).bit_count()
        self._writer.add(record)


def _deepest_first(root: _Dir) -> Iterator[tuple[bytes, _Dir]]:
    """Every directory after all that it holds. Iterative: depth is the archive's choice."""
    stack: list[tuple[bytes, _Dir, Iterator[tuple[bytes, _Dir]]]] = [(b"", root, iter(root.children.items()))]
    while stack:
        path, node, children = stack[-1]
        child = next(children, None)
        if child is None:
            stack.pop()
            yield path, node
        else:
            stack.append((_join(path, child[0]), child[1], iter(child[1].children.items())))


def _member(entry: Entry, raw_name: bytes, path: bytes) -> Member:
    """What the tar-split says of it; whoever has no content has none in the tree."""
    stored = entry.size if entry.sparse is None else sum(length for _, length in entry.sparse)
    return Member(raw_name, path, stored, entry.sparse) if stored else Member(raw_name)


def _join(parent: bytes, name: bytes) -> bytes:
    return parent + b"/" + name if parent else name


def _write(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]
