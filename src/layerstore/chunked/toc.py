"""The entries of a table of contents, one after the other out of its JSON. Nothing is checked but each for itself.

The text comes in pieces and is parsed entry by entry, so that what an author of nonsense can make us hold is one entry's
nonsense. Fields that we do not know are left out, as everywhere in the field; what we do know must be of its type.
Sources: containers/storage ``pkg/chunked/internal/minimal``, containerd/stargz-snapshotter ``docs/estargz.md``.
"""

from __future__ import annotations

import binascii
import codecs
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

from layerstore.chunked.annotations import Unsuitable
from layerstore.errors import LimitExceededError, TocError

__all__ = ["LONGEST_ENTRY", "TYPES", "Toc", "TocEntry"]

_KINDS = {
    "reg": "file", "hardlink": "hardlink", "symlink": "symlink", "char": "char", "block": "block", "dir": "dir",
    "fifo": "fifo", "chunk": "chunk",
}
TYPES = {kind: told for told, kind in _KINDS.items()}   # what a TOC calls each
LONGEST_ENTRY = 2 << 20                  # characters of one entry; a PAX header with its attributes has half of them
_END = 1 << 63
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})\Z")
_TIME = re.compile(r"(-?\d{4,9}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):(\d\d))\Z", re.ASCII)
_EPOCH = datetime(1970, 1, 1)            # noqa: DTZ001 - a difference is taken of it
_SPACE = re.compile(r"[ \t\r\n]*")
_BATCH = 1 << 16                         # characters that are parsed at once
_BETWEEN = ("},{", "},\n\t\t{")          # of two entries, as containers/storage and stargz-snapshotter write them
_CACHED = 40                             # characters of a time that is remembered: those of most files are few
_new = tuple.__new__                     # what a NamedTuple does, too, in twice the time
_NONE: Mapping[str, bytes] = {}


class TocEntry(NamedTuple):  # not a dataclass: one is made per file
    """One entry, as it says of itself. Sizes and places in bytes; ``mtime_ns`` nanoseconds since 1970.

    ``offset`` and ``end`` are places in the blob (0: none given), ``inner`` one in what lies at ``offset``, decompressed.
    ``digest`` is that of the file, ``chunk_digest`` that of this chunk of it: 32 bytes each, or None.
    """

    kind: str
    name: str
    mode: int
    size: int
    uid: int
    gid: int
    mtime_ns: int
    link: str
    major: int
    minor: int
    xattrs: Mapping[str, bytes]
    digest: bytes | None
    offset: int
    end: int
    inner: int
    chunk_offset: int
    chunk_size: int
    chunk_digest: bytes | None
    zeros: bool


class Toc:
    """Iterate over the entries of the TOC whose JSON comes as *pieces* of bytes, once; at most *most* of them.

    ``tar_split_digest`` is known at the end. TocError for what is no such TOC, LimitExceededError for too many entries;
    Unsuitable for one of another version than 1.
    """

    def __init__(self, pieces: Iterable[bytes], *, most: int) -> None:
        self.tar_split_digest: str | None = None
        self._text = _Text(pieces)
        self._most = most

    def __iter__(self) -> Iterator[TocEntry]:
        text, seen = self._text, set()
        text.expect("{")
        more = text.peek() != "}"
        while more:
            key = text.value()
            if not isinstance(key, str) or key in seen:
                raise TocError(f"the table of contents has the key {key!r:.80} twice, or it is none")
            seen.add(key)
            text.expect(":")
            if key == "entries":
                yield from self._entries()
            else:
                self._field(key, text.value())
            more = text.peek() == ","
            if more:
                text.expect(",")
        text.expect("}")
        text.finish()
        if not {"version", "entries"} <= seen:
            raise TocError("the table of contents has no version or no entries")

    def _field(self, key: str, value: Any) -> None:
        if key == "version":
            if type(value) is not int:
                raise TocError(f"the version of the table of contents is {value!r:.80}")
            if value != 1:
                raise Unsuitable(f"its table of contents has the unknown version {value!r:.80}")
        elif key == "tarSplitDigest" and value != "":
            _digest(value, "the tar-split")
            self.tar_split_digest = value

    def _entries(self) -> Iterator[TocEntry]:
        text = self._text
        if text.peek() == "n" and text.value() is None:   # as Go writes an empty list
            return
        text.expect("[")
        count, most = 0, self._most
        more = text.peek() != "]"
        while more:
            for value in text.values() or (text.value(),):
                count += 1
                if count > most:
                    raise LimitExceededError("the table of contents has too many entries", limit="max_toc", maximum=most)
                yield _entry(value, count)
            more = text.peek() == ","
            if more:
                text.expect(",")
        text.expect("]")


class _Text:
    """JSON text that comes in pieces: its values, one after the other."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._decoder = json.JSONDecoder(object_pairs_hook=_once, parse_float=_no_number, parse_constant=_no_number)
        self._text, self._at = "", 0
        self._ended = False
        self._between: tuple[str, ...] = _BETWEEN

    def _more(self) -> bool:
        """Read another piece; False at the end."""
        if self._ended:
            return False
        piece = next(self._pieces, None)
        self._ended = piece is None
        try:
            fresh = self._utf8.decode(piece or b"", final=self._ended)
        except UnicodeDecodeError as error:
            raise TocError("the table of contents is not UTF-8") from error
        self._text, self._at = self._text[self._at :] + fresh, 0
        return True

    def peek(self) -> str:
        """The next character that is no white space, or "" at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            assert match is not None
            self._at = match.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def expect(self, character: str) -> None:
        if self.peek() != character:
            raise TocError(f"the table of contents is malformed: no {character!r} where one should be")
        self._at += 1

    def value(self) -> Any:
        """The next value, whatever it is."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except TocError:
                raise
            except (ValueError, RecursionError) as error:   # malformed, or not all of it is here yet
                if len(self._text) - self._at >= LONGEST_ENTRY or not self._more():
                    what = f"the table of contents is malformed, or one entry of it too long: {error!s:.200}"
                    raise TocError(what) from None
                continue
            if end == len(self._text) and self._more():
                continue                 # a number may go on
            self._at = end
            return value

    def values(self) -> list[Any]:
        """Some of the next values of a list, all but the last of what is here; none if they cannot be told apart quickly.

        What reads as a list up to some place is read the same however it goes on.
        """
        cuts = [self._text.rfind(between, self._at, self._at + _BATCH) for between in self._between]
        cut = max(cuts, default=-1)
        if cut < 0:
            return []
        try:
            found: list[Any] = self._decoder.decode(f"[{self._text[self._at : cut + 1]}]")
        except TocError:
            raise
        except (ValueError, RecursionError):
            self._between = ()           # it is within a name, or nonsense: that cost its time once, and shall not again
            return []
        self._at = cut + 1
        return found

    def finish(self) -> None:
        if self.peek():
            raise TocError("something follows the table of contents")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise TocError(f"a key that comes twice in the table of contents, among {[key for key, _ in pairs[:8]]!r:.200}")
    return found


def _no_number(text: str) -> Any:
    raise TocError(f"a number in the table of contents that is none: {text!r:.80}")


def _entry(raw: Any, number: int) -> TocEntry:
    if not isinstance(raw, dict):
        raise TocError(f"entry {number} of the table of contents is no object")
    kind, name, link, chunk_type, modtime, digest, chunk_digest, xattrs, *numbers = _said({**_UNSAID, **raw})
    kind = _KINDS.get(kind) if type(kind) is str else None
    if kind is None or not isinstance(name, str) or not name or not isinstance(link, str):
        raise TocError(f"entry {number} of the table of contents has no name or no known type: {name!r:.200}")
    if chunk_type not in ("", "zeros"):
        raise Unsuitable(f"its table of contents has chunks of the unknown type {chunk_type!r:.80}")
    mode, size, uid, gid, major, minor, offset, end, inner, chunk_offset, chunk_size = numbers
    try:                                 # all of them at once: one that is negative, or too large, makes the whole so
        united = mode | size | uid | gid | major | minor | offset | end | inner | chunk_offset | chunk_size
    except TypeError:
        raise _no_numbers(numbers, name) from None
    if not 0 <= united < _END or bool in map(type, numbers):
        raise _no_numbers(numbers, name)
    return _new(TocEntry, (
        kind, name, mode, size, uid, gid, _time(modtime, name), link, major, minor,
        _xattrs(xattrs, name) if xattrs else _NONE, _digest(digest, name) if digest else None, offset, end, inner,
        chunk_offset, chunk_size, _digest(chunk_digest, name) if chunk_digest else None, chunk_type == "zeros",
    ))


_NUMBERS = (
    "mode", "size", "uid", "gid", "devMajor", "devMinor", "offset", "endOffset", "innerOffset", "chunkOffset", "chunkSize",
)

_UNSAID: dict[str, Any] = {
    "type": None, "name": None, "linkName": "", "chunkType": "", "modtime": None, "digest": None, "chunkDigest": None,
    "xattrs": None, **dict.fromkeys(_NUMBERS, 0),
}
_said = itemgetter(*_UNSAID)


def _no_numbers(numbers: list[Any], name: str) -> TocError:
    pairs = zip(_NUMBERS, numbers, strict=True)
    key, value = next((key, value) for key, value in pairs if type(value) is not int or not 0 <= value < _END)
    return TocError(f"{key} of {name!r:.200} in the table of contents is {value!r:.80}")


def _digest(value: Any, of: str) -> bytes:
    match = _DIGEST.match(value) if isinstance(value, str) else None
    if match is None:
        raise TocError(f"the digest of {of!r:.200} in the table of contents is none: {value!r:.100}")
    return bytes.fromhex(match[1])


def _time(value: Any, name: str) -> int:
    """RFC 3339, to the nanosecond; nothing at all is 1970."""
    if value is None or value == "":
        return 0
    try:
        return _instant(value) if type(value) is str and len(value) <= _CACHED else _instant.__wrapped__(value)
    except (TypeError, ValueError):
        raise TocError(f"the time of {name!r:.200} in the table of contents is none: {value!r:.80}") from None


@lru_cache(maxsize=1024)
def _instant(text: str) -> int:
    match = _TIME.match(text)
    if match is None:
        raise ValueError(text)
    whole, fraction, sign, hours, minutes = match.groups()
    since = datetime.fromisoformat(whole) - _EPOCH
    seconds = since // timedelta(seconds=1)
    if sign is not None:
        east = int(hours) * 3600 + int(minutes) * 60
        seconds -= east if sign == "+" else -east
    return seconds * 1_000_000_000 + int((fraction or "").ljust(9, "0"))


def _xattrs(value: Any, name: str) -> Mapping[str, bytes]:
    if not isinstance(value, dict):
        raise TocError(f"the attributes of {name!r:.200} in the table of contents are none")
    try:
        return {key: binascii.a2b_base64(text or "", strict_mode=True) for key, text in value.items()}
    except (binascii.Error, TypeError, ValueError) as error:
        raise TocError(f"an attribute of {name!r:.200} in the table of contents is not base64") from error
