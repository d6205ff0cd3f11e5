"""Reading a remote blob through its spool: what is kept is read there, the rest is fetched and kept.

``through`` is what a differ runs its work in, whatever the blob's format. Nothing that comes from a spool is believed
more than what comes from the net: the differ's digests decide. The file itself, and its rules, are ``spool``'s.
"""

from __future__ import annotations

import io
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, BinaryIO, cast

from layerstore.errors import InputError, RangesUnsupportedError, SourceError
from layerstore.model import DiffOutput, DiffTarget
from layerstore.partial import BlobSource
from layerstore.system import fs
from layerstore.trees.spool import PIECE, Spool, start_over

__all__ = ["SpooledBlob", "is_bad_content", "through"]


def through(
    target: DiffTarget, blob: BlobSource, digest: str | None, run: Callable[[DiffTarget, BlobSource], DiffOutput],
) -> DiffOutput:
    """What *run* makes of *blob*, which it is to read through the blob that it is given, into the target it is given.

    A remote blob with a known *digest* goes through the spool in ``target.dir_fd``. If what *run* finds is bad and some
    of it came from there, the spool and what was made are removed and *run* is called once more, so that what has rotted
    there cannot make a pull fail for ever; what ``resumed`` and ``spared`` were told until then is taken back. ``progress``
    is told of what is fetched, ``resumed`` of what was kept before.

    Durability: none. The spool is left, for whoever asked to unlink once it is said that the tree is filled: a crash
    before that leaves a tree to go on with (ADR 0017).
    """
    if not blob.remote or digest is None:
        return run(target, blob)
    resumed, spared = _Sum(target.resumed), _Sum(target.spared)
    inside = replace(target, progress=_nobody, resumed=_nobody, spared=spared)
    with closing(Spool(target.dir_fd, digest, blob.size, target.keep_free)) as spool:
        through_spool = SpooledBlob(blob, spool, target.progress, resumed)
        try:
            return run(inside, through_spool)
        except InputError as error:
            if not through_spool.resumed or not is_bad_content(error):
                raise
    resumed(-resumed.told)
    spared(-spared.told)
    return _once_more(inside, blob, digest, target, run)


def _once_more(
    inside: DiffTarget, blob: BlobSource, digest: str, target: DiffTarget,
    run: Callable[[DiffTarget, BlobSource], DiffOutput],
) -> DiffOutput:
    start_over(target.dir_fd, keep=(fs.TXID_FILE,))
    if target.digests is not None:
        target.digests.start_over()
    kept = Spool(target.dir_fd, digest, blob.size, target.keep_free)
    with closing(kept) as spool, fs.open_dir("diff", target.dir_fd) as diff_fd:
        return run(replace(inside, diff_fd=diff_fd), SpooledBlob(blob, spool, target.progress, target.resumed))


def is_bad_content(error: BaseException) -> bool:
    """Whether the content itself is wrong, so that fetching the rest of it is of no use; not if it only did not come."""
    return isinstance(error, InputError) and not isinstance(error, SourceError)


def _nobody(_n: int) -> None:
    pass


class _Sum:
    """Tells *then* of each number; ``told`` is what they come to. For several threads."""

    def __init__(self, then: Callable[[int], None]) -> None:
        self.told = 0
        self._then, self._lock = then, threading.Lock()

    def __call__(self, n: int) -> None:
        with self._lock:
            self.told += n
        self._then(n)


class _Seen:
    """Which bytes of a blob were told of already, whether fetched or resumed. For several threads."""

    def __init__(self) -> None:
        self._starts: list[int] = []     # of stretches that lie apart, ascending, …
        self._ends: list[int] = []       # … and their ends
        self._lock = threading.Lock()

    def add(self, start: int, end: int) -> int:
        """Bytes from *start* to *end*; how many of them were not yet told of."""
        with self._lock:
            first, last = bisect_left(self._ends, start), bisect_right(self._starts, end)
            known = zip(self._starts[first:last], self._ends[first:last], strict=True)
            fresh = end - start - sum(max(0, min(end, until) - max(start, at)) for at, until in known)
            if first < last:
                start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
            self._starts[first:last], self._ends[first:last] = [start], [end]
        return fresh


class SpooledBlob:
    """Implements ``BlobSource`` around *blob*: reads from *spool* what is there, and keeps there what is fetched.

    ``fetched`` and ``resumed`` are the bytes so far that came from *blob* and from *spool*; *fetching* and *resuming* are
    told of each, but of none that comes from the spool after it was told of: it is read twice. As with *blob*, nothing
    that it gives is verified, but for the spool's own checksums.
    """

    remote = True

    def __init__(
        self, blob: BlobSource, spool: Spool, fetching: Callable[[int], None] = _nobody,
        resuming: Callable[[int], None] = _nobody,
    ) -> None:
        self.label, self.size = blob.label, blob.size
        self.fetched = self.resumed = 0
        self._blob, self._spool, self._fetching, self._resuming = blob, spool, fetching, resuming
        self._seen = _Seen()

    def open(self, offset: int = 0) -> BinaryIO:
        """As in ``BlobSource``. It ends at the promised size, or with SourceError if the blob ends before that."""
        return cast("BinaryIO", io.BufferedReader(_Stream(self._from(offset)), PIECE))

    def ranges(self, wanted: Sequence[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
        """As in ``BlobSource``: one request for all that is not kept."""
        missing = [gap for start, length in wanted for gap in self._spool.missing(start, length)]
        fetched = self._fetch(missing)
        ahead = next(fetched, None)   # before anything is given, so that what cannot be had in ranges is told first
        for start, length in wanted:
            at, end = start, start + length
            while at < end:
                if ahead is not None and ahead[0] == at:
                    yield ahead
                    at += len(ahead[1])
                    ahead = next(fetched, None)
                    continue
                until = end if ahead is None or ahead[0] >= end else ahead[0]
                for piece in self._kept(at, until):
                    yield piece
                    at += len(piece[1])

    def _kept(self, start: int, until: int) -> Iterator[tuple[int, bytes]]:
        """From the spool, and what of it is not right, anew."""
        while start < until:
            data = self._resume(start, until - start)
            if data is not None:
                yield start, data
                start += len(data)
                continue
            for piece in self._fetch(self._hole(start, until)):
                yield piece
                start += len(piece[1])

    def _from(self, at: int) -> Iterator[bytes]:
        """All from byte *at* on, in pieces."""
        while at < self.size:
            data = self._resume(at)
            if data is not None:
                at += len(data)
                yield data
                continue
            for gap in self._hole(at, self.size):
                for data in self._gap(*gap):
                    at += len(data)
                    yield data

    def _hole(self, start: int, until: int) -> list[tuple[int, int]]:
        """What is not kept from byte *start* on; nothing if another thread has just kept it."""
        return [gap for gap in self._spool.missing(start, until - start)[:1] if gap[0] == start]

    def _gap(self, start: int, length: int) -> Iterator[bytes]:
        """What is not kept, up to what is: by range. If only the whole can be had, to the last gap's end, in one go."""
        if start + length < self.size:
            try:
                for _, data in self._fetch([(start, length)]):
                    yield data
            except RangesUnsupportedError:
                last = self._spool.missing(start, self.size - start)[-1]
                length = sum(last) - start   # or each gap would cost all that is before it
            else:
                return
        with self._blob.open(start) as stream:
            while length:
                data = self._read(stream, start, min(PIECE, length))
                yield data
                start, length = start + len(data), length - len(data)

    def _read(self, stream: BinaryIO, start: int, size: int) -> bytes:
        """*size* bytes of *stream*, which is at *start*; what has come is kept even if the rest does not."""
        parts: list[bytes] = []
        have = 0
        try:
            while have < size:
                part = stream.read(size - have)
                if not part:
                    raise SourceError(f"{self.label} ends {self.size - start - have} bytes early, at {start + have}")
                parts.append(part)
                have += len(part)
        finally:
            if have:
                self._keep(start, b"".join(parts))
        return b"".join(parts)

    def _fetch(self, wanted: Sequence[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
        if wanted:
            for at, data in self._blob.ranges(wanted):
                self._keep(at, data)
                yield at, data

    def _keep(self, start: int, data: bytes) -> None:
        self._spool.keep(start, data)
        self.fetched += len(data)
        self._seen.add(start, start + len(data))
        self._fetching(len(data))

    def _resume(self, start: int, length: int = PIECE) -> bytes | None:
        data = self._spool.read(start, length)
        if data is not None:
            self.resumed += len(data)
            fresh = self._seen.add(start, start + len(data))
            if fresh:
                self._resuming(fresh)
        return data


class _Stream(io.RawIOBase):
    """Pieces as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._left = pieces, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            self._left = memoryview(next(self._pieces, b""))
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def close(self) -> None:
        closing_now = getattr(self._pieces, "close", None)
        if closing_now is not None:
            closing_now()
        super().close()
