"""What is recorded of entries, in the archive's order: manifest and tar-split, and what is counted of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from layerstore.errors import ArchiveError
from layerstore.formats.manifest import UNSET, ManifestEntry, ManifestWriter, meaningful_xattr
from layerstore.formats.tar import Entry
from layerstore.formats.tarsplit import MemberRow, TarSplitWriter
from layerstore.partial import Digests
from layerstore.trees.unpack.files import NewFile

__all__ = ["Records", "Row", "record_of"]

_MAX_OWNERS = 65_536                     # different uids or gids: they become a field of the layer's row
_MUCH_RAW = 1 << 20                      # bytes: of an entry that is no content, or of zeros at the end
_NO_XATTRS: dict[bytes, bytes] = {}

# bytes of the stream before the member's data, what is recorded of it in the manifest, and the member
Row = tuple[bytes, ManifestEntry | NewFile | None, MemberRow]


class Records:
    """Manifest and tar-split. In ``raw`` the stream's bytes that are no file's content wait for the next entry."""

    def __init__(self, manifest: ManifestWriter, split: TarSplitWriter, digests: Digests | None = None) -> None:
        self._manifest, self._split, self._digests = manifest, split, digests
        self.raw: list[bytes] = []       # of the stream, to be written before the next entry's data
        self.entries = self.unset = 0
        self.uids: set[int] = set()
        self.gids: set[int] = set()
        self._owner = (-1, -1)           # the last one

    def is_much(self) -> bool:
        """Whether so many bytes wait that all rows are to be written, and then these, without an entry."""
        return sum(map(len, self.raw)) >= _MUCH_RAW

    def take_raw(self) -> bytes:
        raw = b"".join(self.raw)         # mostly of one, which then is not copied
        self.raw.clear()
        return raw

    def write_raw(self, raw: bytes | None = None) -> None:
        """Write bytes before an entry's data: those that wait if none are given. All rows before it are written."""
        self._split.raw(self.take_raw() if raw is None else raw)

    def write(self, rows: Sequence[Row]) -> None:
        """Write what is recorded of entries that are all there."""
        found: list[tuple[Any, ...]] = []
        for _, what, _ in rows:
            if type(what) is NewFile and not what.entry.xattrs:
                entry = what.entry
                if what.unset:
                    self.unset += (what.unset & UNSET).bit_count()
                if entry[3:5] != self._owner:
                    self._new_owner(entry.uid, entry.gid)
                found.append((what.path, *entry[1:10], _NO_XATTRS, what.digest, 0, what.unset))
            elif what is not None:
                self._write_files(found)
                found = []
                if type(what) is NewFile:
                    what = record_of(what.entry, what.path, what.unset, sha256=what.digest)  # noqa: PLW2901
                self.record(what)   # type: ignore[arg-type]
        self._write_files(found)
        self._split.members(rows)

    def _write_files(self, rows: list[tuple[Any, ...]]) -> None:
        if rows:
            self.entries += len(rows)
            self._manifest.add_rows(rows)
            if self._digests is not None:
                for path, _, _, _, _, size, *_, digest, _, _ in rows:
                    self._digests.add_file(path, size, digest)

    def record(self, entry: ManifestEntry) -> None:
        """A manifest record by itself, as of a directory at the end."""
        self.entries += 1
        if entry.unset:
            self.unset += (entry.unset & UNSET).bit_count()
        if (entry.uid, entry.gid) != self._owner and entry.type not in ("hardlink", "whiteout"):   # they have none
            self._new_owner(entry.uid, entry.gid)
        self._manifest.add(entry)
        if self._digests is not None and entry.sha256 is not None:
            self._digests.add_file(entry.path, entry.size, entry.sha256)

    def _new_owner(self, uid: int, gid: int) -> None:
        self._owner = (uid, gid)
        self.uids.add(uid)
        self.gids.add(gid)
        if len(self.uids) > _MAX_OWNERS or len(self.gids) > _MAX_OWNERS:
            raise ArchiveError(f"more than {_MAX_OWNERS} different owners")

    def replaced(self) -> None:
        self._manifest.folds += 1

    def gone(self, path: bytes) -> None:
        self._manifest.gone(path)

    def keep(self, dir_fd: int, name: bytes, path: bytes) -> None:
        self._split.keep(dir_fd, name, path)

    def finish(self) -> tuple[str, str]:
        """End both files; the digests of manifest and tar-split."""
        self.write_raw()
        return self._manifest.finish(), self._split.finish()

    def abandon(self) -> None:
        """Let go of everything: a reader will refuse both files."""
        self._manifest.abandon()
        self._split.abandon()


def record_of(
    entry: Entry, path: bytes, unset: int, *, sha256: bytes | None = None, opaque: bool = False, implicit: bool = False,
) -> ManifestEntry:
    """The manifest's record of what *entry* became at *path*."""
    xattrs = entry.xattrs
    if xattrs:
        xattrs = {name: value for name, value in xattrs.items() if meaningful_xattr(name)}
    return ManifestEntry(
        path, entry.type, entry.mode, entry.uid, entry.gid, entry.size, entry.mtime_ns, entry.linkname,
        entry.devmajor, entry.devminor, xattrs, sha256, opaque, implicit, unset,
    )
