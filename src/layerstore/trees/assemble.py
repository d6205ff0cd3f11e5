"""Assembling: a layer's tree and its tar-split become the original tar again, byte for byte, streaming.

Reads only, follows nothing, keeps one chunk in memory. Whoever wants to be sure compares the digest (``export``).
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from operator import itemgetter

from layerstore.errors import DamagedError
from layerstore.formats.packed import open_regular
from layerstore.formats.tarsplit import KEPT, NAME, End, Kept, Member, read_tar_split
from layerstore.system import fs
from layerstore.system.descriptors import DIRECTORY, Descriptor
from layerstore.trees.dirfds import DirFds

__all__ = ["Content", "assembled"]

_CHUNK = 1 << 20


def assembled(tree_fd: int) -> Iterator[bytes]:
    """The tar of the layer whose directory is open as *tree_fd*, in chunks of at most about 1 MiB.

    DamagedError if the tar-split is malformed or a file is missing or too short; OSError as it comes.
    """
    with open_regular(NAME, tree_fd) as split_fd, Content(tree_fd, split_fd) as content:
        for number, record in enumerate(read_tar_split(split_fd)):
            if isinstance(record, bytes):
                yield record
            elif isinstance(record, Member) and record.size:
                yield from content.of(record, number)


class Content:
    """The data of members, from ``diff/`` or, where a later entry took a file's place, from ``kept/``."""

    def __init__(self, tree_fd: int, split_fd: int) -> None:
        self._tree_fd = tree_fd
        self._kept: dict[bytes, list[tuple[int, int]]] = defaultdict(list)   # path: (position of the record, number)
        if _keeps(split_fd):
            for number, record in enumerate(read_tar_split(split_fd)):
                if isinstance(record, Kept):
                    self._kept[record.path].append((number, record.number))
        self._diff = Descriptor("diff", DIRECTORY, dir_fd=tree_fd)
        self._fds = DirFds(self._diff.fd)

    def __enter__(self) -> Content:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._fds.close()
        self._diff.close()

    def of(self, member: Member, position: int) -> Iterator[bytes]:
        """The data of *member*, the record at *position* of the tar-split."""
        assert member.path is not None
        with self._open(member.path, position) as fd:
            for start, length in member.segments or ((0, member.size),):
                yield from _read(fd, start, length, member.path)

    def is_kept(self, member: Member, position: int) -> int | None:
        """The number of the kept file that holds *member*'s data; None if it is still in its place."""
        kept = self._kept.get(member.path or b"", ())
        at = bisect_right(kept, position, key=itemgetter(0))   # one name may come as often as an archive has entries
        return kept[at][1] if at < len(kept) else None

    def _open(self, path: bytes, position: int) -> Descriptor:
        number = self.is_kept(Member(b"", path), position)
        try:
            if number is None:
                parent, _, name = path.rpartition(b"/")
                return open_regular(name, self._fds.get(parent))
            with fs.open_dir(KEPT, self._tree_fd) as kept_fd:
                return open_regular(str(number), kept_fd)
        except FileNotFoundError as error:
            raise DamagedError(f"the layer's file {os.fsdecode(path)!r} is missing") from error


def _keeps(split_fd: int) -> bool:
    """Whether any file was kept: known at the end only. Nearly never; then paths need not be remembered."""
    return any(isinstance(record, End) and record.kept for record in read_tar_split(split_fd))


def _read(fd: int, start: int, length: int, path: bytes) -> Iterator[bytes]:
    at, end = start, start + length
    while at < end:
        piece = os.pread(fd, min(_CHUNK, end - at), at)
        if not piece:
            raise DamagedError(f"the layer's file {os.fsdecode(path)!r} ends {end - at} bytes early")
        at += len(piece)
        yield piece
