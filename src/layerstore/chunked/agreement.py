"""Whether a table of contents says what the tar's own headers say, entry by entry. Pure.

The headers are those of the tar-split, read by our own tar reader, without the data of files. Both lists have the
same order, because both were written while the tar passed. A layer whose two views differ would show one tree to who
goes by the TOC and another to who unpacks the tar. Source of the rule: containers/storage, ``ensureTOCMatchesTarSplit``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from layerstore.chunked.annotations import Unsuitable
from layerstore.chunked.golines import Payload
from layerstore.chunked.toc import TocEntry
from layerstore.errors import TocError
from layerstore.formats.tar import Entry, TarReader, os_text
from layerstore.model import Limits

__all__ = ["check_agreement"]

_LIBARCHIVES = b"LIBARCHIVE.xattr."      # how its keys of attributes begin


def check_agreement(entries: Iterable[TocEntry], lines: Iterable[bytes | Payload], limits: Limits) -> None:
    """Look whether *entries* and the tar-split's *lines* agree, entry by entry.

    TocError where they do not; ArchiveError, LimitExceededError for headers that no layer may have; Unsuitable for sparse
    files, whose data a tar-split cannot place.
    """
    tar = _Headers(lines)
    reader = TarReader(tar, limits, require_end=False, raw=tar.passed, with_data=False)
    told = (entry for entry in entries if entry.kind != "chunk")
    names: set[bytes] = set()
    waiting: deque[tuple[bytes, Entry]] = deque()
    for entry in reader:
        if entry.sparse is not None:
            raise Unsuitable("it has sparse files, of which a tar-split cannot say where their data is")
        if entry.name in names:
            raise TocError(f"the layer has {_show(reader.raw_name)} twice")
        names.add(entry.name)
        tar.expect(reader.leave_out_data(), reader.raw_name)
        _compare(next(told, None), entry, reader.raw_name, tar.is_libarchives())
        waiting.append((reader.raw_name, entry))
        _settle(waiting, tar.payloads)
    _settle(waiting, tar.payloads)
    if waiting or tar.payloads:
        raise TocError("the tar-split does not have a place for each member's data")
    left = next(told, None)
    if left is not None:
        raise TocError(f"the table of contents has {left.name!r:.200}, which the tar has not")


class _Headers:
    """The chunks of a tar without its files' data: what else is in the lines. Where data goes must be where it is said."""

    def __init__(self, lines: Iterable[bytes | Payload]) -> None:
        self.payloads: deque[Payload] = deque()
        self._lines = lines
        self._is_libarchives, self._end = False, b""   # the end: of what was passed, where the mark may have begun
        self._due, self._name = 0, b""   # bytes of data that the next lines must have, before any others; and of whom

    def __iter__(self) -> Iterator[bytes]:
        found = 0
        for line in self._lines:
            if not isinstance(line, bytes):
                self.payloads.append(line)
                found += line.size
            elif line:
                if found != self._due:
                    raise self._misplaced(found)
                found = self._due = 0
                yield line
        if found != self._due:
            raise self._misplaced(found)

    def expect(self, data: int | None, name: bytes) -> None:
        """The header of *name* was read, and *data* bytes follow it; None: other bytes do, though it has data."""
        self._due, self._name = data or 0, name
        if data is None:
            raise self._misplaced(0)

    def _misplaced(self, found: int) -> TocError:
        return TocError(f"the tar-split has {found} bytes of data at the place for that of {_show(self._name)}")

    def passed(self, data: bytes) -> None:
        """Told of the bytes that are read, or skipped. None are kept: zeros after the end are as many as one likes."""
        seen = self._end + data
        self._is_libarchives = self._is_libarchives or _LIBARCHIVES in seen
        self._end = seen[1 - len(_LIBARCHIVES) :]

    def is_libarchives(self) -> bool:
        """Whether the bytes since the last call, padding and the headers of one entry, have attributes in its way."""
        found, self._is_libarchives, self._end = self._is_libarchives, False, b""
        return found


def _settle(waiting: deque[tuple[bytes, Entry]], payloads: deque[Payload]) -> None:
    """Compare members with the places for their data, as far as both are known."""
    while waiting and payloads:
        (name, entry), payload = waiting.popleft(), payloads.popleft()
        if payload.name != name or payload.size != entry.size:
            place = f"{payload.size} bytes of {_show(payload.name)}"
            raise TocError(f"the tar-split has {place} where the tar has {entry.size} of {_show(name)}")


_COMPARED = ("type", "size", "mode", "uid", "gid", "time")


def _compare(told: TocEntry | None, entry: Entry, name: bytes, is_libarchives: bool) -> None:
    if told is None:
        raise TocError(f"the tar has {_show(name)}, which the table of contents has not")
    if told.name != _lossy(name):
        raise TocError(f"the table of contents has {told.name!r:.200} where the tar has {_show(name)}")
    says = (told.kind, told.size, told.mode & 0o7777, told.uid, told.gid, told.mtime_ns)
    is_so = (entry.type, entry.size, entry.mode, entry.uid, entry.gid, entry.mtime_ns)
    if says != is_so:
        what = next(number for number in range(len(_COMPARED)) if says[number] != is_so[number])
        raise _differs(told, _COMPARED[what], says[what], is_so[what])
    if entry.linkname and _link(told, entry) != _lossy(entry.linkname):
        raise _differs(told, "target", told.link, os_text(entry.linkname))
    if entry.type in ("char", "block") and (told.major, told.minor) != (entry.devmajor, entry.devminor):
        raise _differs(told, "device", (told.major, told.minor), (entry.devmajor, entry.devminor))
    if told.xattrs or entry.xattrs:
        _compare_xattrs(told, entry, is_libarchives)


def _compare_xattrs(told: TocEntry, entry: Entry, is_libarchives: bool) -> None:
    says = {key.encode("utf-8", "surrogatepass"): value for key, value in told.xattrs.items()}
    if says == entry.xattrs:
        return
    if is_libarchives and says.items() <= entry.xattrs.items():
        return                           # who writes TOCs knows only the other way of writing attributes
    raise _differs(told, "attributes", sorted(says), sorted(entry.xattrs))


def _link(told: TocEntry, entry: Entry) -> str:
    if entry.type == "symlink":
        return told.link
    return "/".join(part for part in told.link.split("/") if part not in ("", "."))


def _differs(told: TocEntry, what: str, says: object, is_so: object) -> TocError:
    where = f"the {what} of {told.name!r:.200}"
    return TocError(f"the table of contents says that {where} is {says!r:.200}, the tar that it is {is_so!r:.200}")


def _lossy(name: bytes) -> str:
    """*name* as Go writes it in JSON: a replacement character for every byte that is not UTF-8."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        text = name.decode("utf-8", "surrogateescape")
        return "".join("\ufffd" if "\ud800" <= each <= "\udfff" else each for each in text)


def _show(name: bytes) -> str:
    return repr(os_text(name[:200]))
