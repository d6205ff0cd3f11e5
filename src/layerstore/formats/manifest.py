"""A layer's manifest: what each file is meant to be, with a digest of every content.

The file ``manifest`` lies beside ``diff/`` and is written once, while the tree is made. Its own sha256 is in the
store's journal, so that it vouches for the whole tree.

Format: a packed file (``packed``) of arrays::

    ["layerstore-manifest", 1]
    [path, type, mode, uid, gid, size, mtime_ns, linkname, major, minor, {xattr: value}, sha256 | nil, flags,
    unset]
    ["gone", path]                       whatever the records so far put at *path* or beneath it is no longer
    there
    ["end", records, folds]

Paths, link names, attributes and digests are binary. A later record of a path replaces an earlier one.
*folds* counts replacements: if it is 0, every record is final and a reader needs no memory, else some (``folding``).
Directories come last, each once.
"""

from __future__ import annotations

import reprlib
import stat
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from layerstore.errors import DamagedError
from layerstore.formats.folding import folded
from layerstore.formats.packed import PackedWriter, file_digest, open_regular, read_packed
from layerstore.system import filecaps
from layerstore.system.descriptors import Descriptor

__all__ = [
    "KINDS", "MODE", "NAME", "NODE", "OVERRIDE", "OWNER", "TIME", "UNSET", "XATTR", "ManifestEntry", "ManifestWriter",
    "final_entries", "manifest_digest", "meaningful_xattr", "read_manifest", "storable_xattr", "stored_xattrs",
]

NAME = "manifest"
MAGIC = "layerstore-manifest"
VERSION = 1
_WHAT = "a layer's manifest"
KINDS = {
    "file": stat.S_IFREG, "dir": stat.S_IFDIR, "symlink": stat.S_IFLNK, "char": stat.S_IFCHR, "block": stat.S_IFBLK,
    "fifo": stat.S_IFIFO,
}
"""What stat(2) calls each type, but for those that are told by more than their mode."""
TYPES = frozenset({*KINDS, "hardlink", "whiteout"})

OWNER, XATTR, NODE, TIME, MODE = 1, 2, 4, 8, 16  # bits of ``unset``: what this host did not let us set
OVERRIDE = 32                            # and this one: ``user.containers.override_stat`` says it, too
UNSET = OWNER | XATTR | NODE | TIME | MODE
_OPAQUE, _IMPLICIT = 1, 2                # bits of ``flags``
_FIELDS = 14
_KINDS = frozenset(   # exactly these: a bool is no number
    (bytes, str, *[int] * 5, bytes, int, int, dict, digest, int, int) for digest in (bytes, type(None))
)
_UNCLEAN = frozenset({b"", b".", b".."})
_KEPT = frozenset({b"security.capability", b"security.ima"})
# what overlayfs, fuse-overlayfs and rootless stores interpret; no archive may plant it, and none is given it
_ACLS = frozenset({b"system.posix_acl_access", b"system.posix_acl_default"})
_INTERPRETED = (b"trusted.overlay.", b"user.overlay.", b"user.fuseoverlayfs.", b"user.containers.")


class ManifestEntry(NamedTuple):  # not a dataclass: one is made per file
    """One path of a layer as its archive meant it. ``path`` is relative; ``b""`` is the tree's own.

    ``type`` is one of ``TYPES``; a ``hardlink`` has only ``linkname``, the path of the file it is. ``size``
    is bytes, ``sha256`` 32 bytes (holes count as zeros), for files only. ``opaque`` directories hide what
    lower layers have. ``implicit`` directories were not in the archive, only needed. ``unset`` are bits:
    OWNER, XATTR (some of them), NODE (a device that could not be made: nothing is on disk or, with OVERRIDE,
    an empty file in its place), TIME (one that the file system cannot hold), MODE (its owner could not have
    read it: ``override.readable``); OVERRIDE: the attribute of that module says what it is meant to be.
    """

    path: bytes
    type: str
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    linkname: bytes = b""
    devmajor: int = 0
    devminor: int = 0
    xattrs: Mapping[bytes, bytes] = {}
    sha256: bytes | None = None
    opaque: bool = False
    implicit: bool = False
    unset: int = 0


class ManifestWriter:
    """Write ``manifest`` into *dir_fd*, record by record. It must not exist.

    Durability: none here: the tree is made durable as a whole, later (the write order, step 4).
    """

    def __init__(self, dir_fd: int) -> None:
        self._file = PackedWriter(dir_fd, NAME, MAGIC, VERSION)
        self._records = 0
        self.folds = 0                   # the unpacker counts replacements here

    def add(self, entry: ManifestEntry) -> None:
        flags = (_OPAQUE if entry.opaque else 0) | (_IMPLICIT if entry.implicit else 0)
        xattrs = dict(sorted(entry.xattrs.items())) if entry.xattrs else {}
        self._records += 1
        self._file.put((*entry[:10], xattrs, entry.sha256, flags, entry.unset))

    def add_rows(self, rows: list[tuple[Any, ...]]) -> None:
        """Records of plain files, without extended attributes, as the format has them."""
        self._records += len(rows)
        self._file.put_all(rows)

    def gone(self, path: bytes) -> None:
        """What was recorded at *path* and beneath it was removed again."""
        self.folds += 1
        self._file.put(("gone", path))

    def finish(self) -> str:
        """End the file, close it, and return its digest."""
        self._file.put(("end", self._records, self.folds))
        return self._file.finish()

    def abandon(self) -> None:
        """Close the file without ending it: a reader will refuse it."""
        self._file.abandon()


def manifest_digest(dir_fd: int, read: Callable[[int], None] = lambda _n: None) -> str:
    """The digest of the file ``manifest`` in *dir_fd*; *read* is told of each *n* bytes. OSError if it cannot be read."""
    return file_digest(dir_fd, NAME, read)


def read_manifest(source: str | bytes | int) -> Iterator[ManifestEntry]:
    """Every record of the manifest at a path, or in the file open as a descriptor, in order.

    Only for looking at a manifest as it was written; for what the layer holds use ``final_entries``.
    DamagedError if it is not a whole and well-formed manifest; OSError if it cannot be read.
    """
    for record in _records(source):
        if isinstance(record, ManifestEntry):
            yield record


def final_entries(source: str | bytes | int) -> Iterator[ManifestEntry]:
    """What the layer holds in the end: each path once. A hard link names a path that comes before it, maybe another link.

    Streams if no record replaces another; else keeps what may be replaced (``folding``). DamagedError as ``read_manifest``;
    not for each link to what is nowhere: none is where nothing is replaced, and else one in 256 passes the filter. No
    manifest of ours has one, and its digest says whether it is ours; whoever follows links is to expect it all the same.
    """
    end = _End(0, 0)
    for record in _records(source):
        if isinstance(record, _End):
            end = record
    if end.folds:
        yield from _folded(source, end.records)
    else:
        yield from read_manifest(source)


class _Gone(NamedTuple):
    path: bytes


class _End(NamedTuple):
    records: int
    folds: int


def _folded(source: str | bytes | int, count: int) -> Iterator[ManifestEntry]:
    """Replay the records: a hard link stands for the file that its target was when the link was made."""
    def records() -> Iterator[tuple[bytes, ManifestEntry | None]]:
        for record in _records(source):
            if not isinstance(record, _End):
                yield record.path, None if isinstance(record, _Gone) else record

    return folded(
        records, count, lambda record, path: record._replace(path=path),
        lambda path, to: ManifestEntry(path, "hardlink", linkname=to),
    )


def _records(source: str | bytes | int) -> Iterator[ManifestEntry | _Gone | _End]:
    with Descriptor.duplicate(source) if isinstance(source, int) else open_regular(source, None) as fd:
        yield from _decode(fd)


def _decode(fd: int) -> Iterator[ManifestEntry | _Gone | _End]:
    end = None
    records = 0
    for item in read_packed(fd, MAGIC, VERSION, _WHAT):
        if end is not None:
            raise DamagedError("a layer's manifest has records after its end")
        decoded = _entry(item)
        if isinstance(decoded, _End):
            end = decoded
            if end.records != records:
                raise DamagedError(f"a layer's manifest has {records} records, not {end.records}")
        elif isinstance(decoded, ManifestEntry):
            records += 1
        yield decoded
    if end is None:
        raise DamagedError(f"a layer's manifest ends after {records} records without an end record")


def _entry(item: Any) -> ManifestEntry | _Gone | _End:
    if isinstance(item, tuple):
        if len(item) == _FIELDS:
            return _full(item)
        if len(item) == 2 and item[0] == "gone" and isinstance(item[1], bytes):
            return _Gone(item[1])
        if len(item) == 3 and item[0] == "end" and type(item[1]) is int and type(item[2]) is int:
            return _End(item[1], item[2])
    # reprlib: what is nested a thousand deep cannot be shown by repr
    raise DamagedError(f"a layer's manifest has the unknown record {reprlib.repr(item)}")


def _full(item: tuple[Any, ...]) -> ManifestEntry:
    path, kind, mode, uid, gid, size, mtime_ns, linkname, major, minor, xattrs, digest, flags, unset = item
    sound = (
        tuple(map(type, item)) in _KINDS and kind in TYPES
        and 0 <= flags <= 3 and 0 <= unset <= (UNSET | OVERRIDE) and min(mode, uid, gid, size, major, minor) >= 0
        and (not xattrs or all(isinstance(k, bytes) and isinstance(v, bytes) for k, v in xattrs.items()))
        and ((digest is not None and len(digest) == 32) if kind == "file" else digest is None)
        and _clean(path) and (kind != "hardlink" or (_clean(linkname) and bool(linkname)))
    )
    if not sound:
        raise DamagedError(f"a layer's manifest has the malformed record {reprlib.repr(item)}")
    return ManifestEntry(
        path,
        kind,
        mode,
        uid,
        gid,
        size,
        mtime_ns,
        linkname,
        major,
        minor,
        xattrs,
        digest,
        bool(flags & _OPAQUE),
        bool(flags & _IMPLICIT),
        unset,
    )


def _clean(path: bytes) -> bool:
    return not path or _UNCLEAN.isdisjoint(path.split(b"/"))


def storable_xattr(name: bytes) -> bool:
    """Whether a layer's tree may carry this extended attribute: no other is set in one that an archive becomes."""
    return name in _KEPT or (name.startswith(b"user.") and not name.startswith(_INTERPRETED))


def stored_xattrs(xattrs: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Those of an archive's attributes that the tree carries: such, but no capabilities that name a host's ID."""
    return {
        name: value for name, value in xattrs.items()
        if storable_xattr(name) and not (name == filecaps.NAME and filecaps.is_of_another_root(value))
    }


def meaningful_xattr(name: bytes) -> bool:
    """Whether this extended attribute of an archive says anything of a layer.

    Those do that its tree may carry, and those that only its manifest has, with the bit XATTR: ``trusted.*`` but
    overlayfs's, and ACLs (ADR 0028). Labels of a host's (``security.selinux`` and its like) do not: they are its policy's.
    """
    return storable_xattr(name) or name in _ACLS or (name.startswith(b"trusted.") and not name.startswith(_INTERPRETED))
