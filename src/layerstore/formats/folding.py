"""What a layer holds in the end, of a manifest in which records replace others: few of them are kept in memory.

Most records of such a manifest are final, too. Three passes: which paths *may* come more than once (a filter of bits, and
the paths that it stops at); the records of those, replayed; all others as they come, and then what was replayed.
Memory: four bytes a record, and what may be replaced. How records are decoded is ``manifest``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from typing import Generic, Protocol, TypeVar

from layerstore.errors import DamagedError

__all__ = ["folded"]

_BITS = 32                               # of the filter for each record: one path in 256 is kept for nothing


class _Record(Protocol):
    @property
    def type(self) -> str: ...
    @property
    def linkname(self) -> bytes: ...


R = TypeVar("R", bound=_Record)
Records = Callable[[], Iterable[tuple[bytes, R | None]]]


def folded(
    records: Records[R], count: int, moved: Callable[[R, bytes], R], link: Callable[[bytes, bytes], R],
) -> Iterator[R]:
    """Each path once, in an order that is always the same. A hard link names a path that comes before it.

    It stands for the file that its target was when the link was made. *records* reads all of them again, *count* in number,
    each with its path; None is a path that is gone, with all beneath. *moved* gives a record at another path, *link* a hard
    link at a path to another. DamagedError if a link leads to what is not there before it, as far as the filter tells: to
    know it of every link would take memory for each.
    """
    replay = _Replay[R](*_suspects(records(), count))
    for path, record in records():
        replay.add(path, record)
    for path, record in records():
        if record is not None and not replay.has(path):
            yield record
    yield from replay.final(moved, link)


class _Filter:
    """Paths that it was given: it never says of one of them that it was not."""

    def __init__(self, count: int) -> None:
        self._size = max(64, count * _BITS)
        self._bits = bytearray(self._size // 8 + 1)

    def _places(self, path: bytes) -> tuple[int, int]:
        digest = blake2b(path, digest_size=16).digest()   # not hash(): the order shall be the same in every process
        return int.from_bytes(digest[:8], "big") % self._size, int.from_bytes(digest[8:], "big") % self._size

    def __contains__(self, path: bytes) -> bool:
        return all(self._bits[at >> 3] >> (at & 7) & 1 for at in self._places(path))

    def add(self, path: bytes) -> None:
        for at in self._places(path):
            self._bits[at >> 3] |= 1 << (at & 7)


def _suspects(records: Iterable[tuple[bytes, _Record | None]], count: int) -> tuple[set[bytes], set[bytes]]:
    """Paths that may come more than once, and those that were removed with all that is beneath."""
    seen = _Filter(count)
    often: set[bytes] = set()
    gone: set[bytes] = set()
    for path, record in records:
        if record is None:
            gone.add(path)
            continue
        if record.type == "hardlink" and record.linkname not in seen:
            raise _nowhere(path, record)
        if path in seen:
            often.add(path)
        else:
            seen.add(path)
    return often, gone


def _nowhere(path: bytes, record: _Record) -> DamagedError:
    return DamagedError(f"a manifest links {path!r} to {record.linkname!r}, which it lacks")


class _Node(Generic[R]):
    """One path while records are replayed.

    A tree, so that removing a directory costs its depth, not the layer.
    """

    __slots__ = ("children", "record")

    def __init__(self) -> None:
        self.children: dict[bytes, _Node[R]] | None = None
        self.record: R | None = None

    def at(self, path: bytes) -> _Node[R]:
        node = self
        for part in path.split(b"/") if path else ():
            if node.children is None:
                node.children = {}
            node = node.children.setdefault(part, _Node())
        return node


class _Replay(Generic[R]):
    """The records at paths that may be replaced, as they stand; a record in two places is one file with two names."""

    def __init__(self, often: set[bytes], gone: set[bytes]) -> None:
        self._here, self._gone = often, gone
        self._root = _Node[R]()

    def has(self, path: bytes) -> bool:
        """Whether the records at *path* are replayed."""
        return path in self._here or (bool(self._gone) and self._is_gone(path))

    def _is_gone(self, path: bytes) -> bool:
        while path not in self._gone:
            if not path:
                return False
            path = path.rpartition(b"/")[0]
        return True

    def add(self, path: bytes, record: R | None) -> None:
        if record is None:
            node = self._root.at(path)
            node.children = node.record = None
            return
        if record.type == "hardlink" and self.has(record.linkname):
            meant = self._root.at(record.linkname).record
            if meant is None:
                raise _nowhere(path, record)
            self._here.add(path)         # it may outlive what it is a link to
            self._root.at(path).record = meant
        elif self.has(path):
            self._root.at(path).record = record

    def final(self, moved: Callable[[R, bytes], R], link: Callable[[bytes, bytes], R]) -> Iterator[R]:
        first: dict[int, bytes] = {}     # a file (by its record) -> the path that now stands for it
        todo = [(b"", self._root)]
        while todo:
            path, node = todo.pop()
            if node.record is not None:
                original = first.setdefault(id(node.record), path)
                if original != path and node.record.type != "hardlink":   # that is one to a file that was not replaced
                    yield link(path, original)
                else:
                    yield moved(node.record, path)
            for name in sorted(node.children or (), reverse=True):
                assert node.children is not None
                todo.append((path + b"/" + name if path else name, node.children[name]))
