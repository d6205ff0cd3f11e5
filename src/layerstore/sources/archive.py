"""The members of an uncompressed tar file, by name: indexed without reading their data, read in place.

Links are followed inside the archive only, and only so far. A name that comes twice is refused when it is
asked for: readers disagree on which one counts.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from layerstore.errors import ArchiveError, SourceError
from layerstore.formats.tar import Entry, TarReader
from layerstore.model import Limits
from layerstore.sources.files import Opened, closed
from layerstore.sources.window import open_window, reopen
from layerstore.system.descriptors import Descriptor

__all__ = ["Archive", "Member"]

_READ = 64 << 10
_ZEROS = bytes(1 << 20)
_MAX_LINKS = 8
_ENTRIES = 1 << 16
_COMPRESSED = {   # first bytes, what of, how to undo it; of whole archives, for a helpful refusal
    b"\x1f\x8b": ("gzip", "gunzip"), b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"), b"\xfd7zXZ\0": ("xz", "unxz"),
    b"BZh": ("bzip2", "bunzip2"),
}


class Member(NamedTuple):
    """Where a regular file's data lies in the archive, in bytes."""

    offset: int
    size: int


class _Link(NamedTuple):
    target: str   # from the archive's root


class Archive:
    """A tar file, held open and indexed at first use. Implements ``Files``; safe to use from threads."""

    def __init__(self, path: str, limits: Limits) -> None:
        self.label = path
        self._limits = limits
        self._members: dict[str, list[Member | _Link | None]] | None = None
        try:
            file = Descriptor(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            raise SourceError(f"cannot open the image archive {path}: {error.strerror}") from error
        self._size = self._check(file.fd)
        self._file: Descriptor | None = file

    def find(self, name: str) -> Member | None:
        """The regular file of that name, links resolved; None if there is none.

        Raises SourceError for names that come twice, links that lead outside, nowhere or in circles, other
        types and archives that are no tar; LimitExceededError for too many members; ClosedError.
        """
        file = self._file   # kept open by this reference, should another thread close the archive meanwhile
        if file is None:
            raise closed(self.label)
        if self._members is None:
            self._members = self._index(file.fd)   # two threads may both make it: it is the same
        members = self._members
        at = name
        for _ in range(_MAX_LINKS):
            found = members.get(at, [])
            if len(found) > 1:
                raise SourceError(f"{self.label} holds {at!r} {len(found)} times: which one counts?")
            if not found and at != name:
                raise SourceError(f"{self.label} holds {name!r} as a link to {at!r}, which it does not hold")
            if not found:
                return None
            member = found[0]
            if member is None:
                raise SourceError(f"{at!r} in {self.label} is not a regular file")
            if isinstance(member, Member):
                return member
            at = member.target
        raise SourceError(f"{name!r} in {self.label} is a link through more than {_MAX_LINKS} others")

    def open(self, name: str) -> Opened | None:
        """As in ``Files``."""
        member = self.find(name)
        if member is None:
            return None
        file = self._file
        if file is None:
            raise closed(self.label)
        return Opened(open_window(reopen(file.fd), member.offset, member.size, f"{name} in {self.label}"), member.size)

    def close(self) -> None:
        """As in ``Files``."""
        self._file = None   # closed with the last reference: never while another thread reads its index

    def _check(self, fd: int) -> int:
        """Refuse what cannot be read at random, and say what to do; return the size in bytes."""
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            raise SourceError(f"{self.label} is a directory", hint="for an OCI layout directory write oci:")
        if not stat.S_ISREG(status.st_mode):
            raise SourceError(f"{self.label} is not a regular file", hint="save the archive to a file")
        head = os.pread(fd, 8, 0)
        for magic, (compression, tool) in _COMPRESSED.items():
            if head.startswith(magic):
                raise SourceError(
                    f"{self.label} is compressed with {compression}; only a plain tar can be read at random",
                    hint=f"uncompress it first: {tool} {self.label}",
                )
        return status.st_size

    def _index(self, fd: int) -> dict[str, list[Member | _Link | None]]:
        feed = _Feed(fd, self._size, self.label)
        limits = replace(   # those given are for one layer; the archive may hold many
            self._limits, max_bytes=max(self._limits.max_bytes, self._size),
            max_entries=max(self._limits.max_entries, _ENTRIES),
        )
        reader = TarReader(feed, limits)
        members: dict[str, list[Member | _Link | None]] = {}
        try:
            for entry in reader:
                if entry.type == "dir":
                    continue
                if entry.type == "file" and entry.sparse is None:
                    feed.skip_to = reader.offset + entry.size
                where = self._where(entry, reader.offset)
                members.setdefault(os.fsdecode(entry.name), []).append(where)
        except ArchiveError as error:
            raise SourceError(f"{self.label} is not an image archive that can be read: {error}") from error
        return members

    @staticmethod
    def _where(entry: Entry, data_offset: int) -> Member | _Link | None:
        if entry.type == "file" and entry.sparse is None:
            return Member(data_offset, entry.size)
        target = os.fsdecode(entry.linkname)
        if entry.type == "symlink":
            target = posixpath.join(posixpath.dirname(os.fsdecode(entry.name)), target)
        if entry.type in ("symlink", "hardlink"):
            target = posixpath.normpath(target)
            inside = not target.startswith(("/", "../")) and target not in ("..", ".")
            return _Link(target) if inside else None
        return None


class _Feed:
    """The archive's bytes in chunks, for a reader of headers: zeros instead of the data that it skips.

    So indexing costs the headers, not the layers. ``skip_to`` is the offset where the next header may begin.
    """

    def __init__(self, fd: int, size: int, label: str) -> None:
        self._fd, self._size, self._label = fd, size, label
        self.skip_to = 0

    def __iter__(self) -> Iterator[bytes]:
        position = 0
        while position < self._size:
            skipped = min(self.skip_to, self._size) - position
            chunk = _ZEROS[:skipped] if skipped > 0 else self._read(position)
            position += len(chunk)
            yield chunk

    def _read(self, position: int) -> bytes:
        try:
            chunk = os.pread(self._fd, min(_READ, self._size - position), position)
        except OSError as error:
            raise SourceError(f"cannot read {self._label} at byte {position}: {error.strerror}") from error
        if not chunk:
            raise SourceError(f"{self._label} shrank to {position} bytes while it was being read")
        return chunk
