"""The chunked differ: of a zstd:chunked or eStargz blob only what is not here is fetched, and the layer's tar made again.

The tar then goes the way of every tar, so that all that a full pull guarantees holds here too: the strict reader, the
limits, the manifest, and the diffID over every byte. Fetching runs ahead in a thread of its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace

from layerstore.chunked import Unsuitable
from layerstore.chunked.assembly import Assembler, completed
from layerstore.chunked.layout import File
from layerstore.chunked.opening import Opened, open_chunked
from layerstore.chunked.plan import Local, Plan, make_plan, merged, wanted
from layerstore.differs.tar import fill, fill_from
from layerstore.errors import (
    DamagedError,
    DigestMismatchError,
    InvalidArgumentError,
    RangesUnsupportedError,
    SizeMismatchError,
    SourceError,
)
from layerstore.model import Descriptor, DiffOutput, DiffTarget, check_digest
from layerstore.partial import Ahead as Here
from layerstore.partial import BlobSource, Digests, Finder, Place, ReadsAhead, until
from layerstore.system.room import check_inodes
from layerstore.system.threads import Channel, Worker, running
from layerstore.trees.donors import Donors
from layerstore.trees.spooled import through

__all__ = ["ChunkedDiffer"]

_DEPTH = 16                              # pieces of at most 1 MiB that are fetched ahead


class ChunkedDiffer:
    """Unpack a layer by its table of contents, taking from *finder* what is here and from *blob* the rest.

    *expect* is the blob's descriptor, with its annotations; *diff_id* the promised digest of the tar. *tell* is told, in
    one line, why the whole blob is read instead, or that content here was found damaged. After ``apply_diff``, ``whole``
    says why all was read, or is None: then the blob's own digest was not checked, for most of it was never here; the
    diffID says that the tar is right. ``target.progress`` is told of bytes of the blob fetched, ``target.spared`` of
    those that need not be, for what is in them is here: once, before anything is unpacked (and of a negative number if
    some of them must be after all).

    The blob is read as a whole where it announces no TOC, or one of an unknown kind or too large (``Limits.max_toc``),
    and where ranges cannot be had. A TOC that lies is an error.

    ``apply_diff`` raises TocError for what the TOC says that is not so, and what ``TarDiffer`` raises.
    """

    def __init__(
        self, blob: BlobSource, *, expect: Descriptor, diff_id: str, finder: Finder | None = None,
        tell: Callable[[str], None] = lambda _line: None,
    ) -> None:
        check_digest(expect.digest, "the blob's digest")
        check_digest(diff_id, "diff_id")
        if expect.size < 0:
            raise InvalidArgumentError(f"the blob's size {expect.size} is negative")
        self.whole: str | None = None
        self._blob: BlobSource | None = blob
        self._expect, self._diff_id, self._finder, self._tell = expect, diff_id, finder, tell
        self._stop = threading.Event()   # nothing more is wanted of the blob

    @property
    def content_key(self) -> str:
        """The blob's promised digest."""
        return self._expect.digest

    @property
    def diff_id(self) -> str:
        """The promised digest of the tar."""
        return self._diff_id

    def apply_diff(self, target: DiffTarget) -> DiffOutput:
        """See ``model.Differ``. Durability: nothing is synced here."""
        if self._blob is None:
            raise InvalidArgumentError("a differ is good for one use")
        blob, self._blob = self._blob, None
        if blob.size != self._expect.size:
            wrong = "the layer's blob has not the promised size"
            raise SizeMismatchError(wrong, expected=self._expect.size, actual=blob.size)
        return through(target, until(blob, self._stop, target.cancelled), self.content_key, self._apply)

    def _apply(self, target: DiffTarget, blob: BlobSource) -> DiffOutput:
        self._stop.clear()   # it may be the second time
        with ExitStack() as stack:
            try:
                donors = stack.enter_context(Donors())
                opened, assembler = self._begin(blob, target, donors, stack)
            except (Unsuitable, RangesUnsupportedError) as error:
                self.whole = str(error)
            else:
                return self._fill(target, opened, assembler, donors)
        self._tell(f"{blob.label} is read as a whole: {self.whole}")
        return fill_from(target, blob.open, expect=self._expect, diff_id=self._diff_id, stop=self._stop)

    def _begin(
        self, blob: BlobSource, target: DiffTarget, donors: Donors, stack: ExitStack,
    ) -> tuple[Opened, Assembler]:
        """All that may find that the blob must be read as a whole; nothing was unpacked yet."""
        reader = _Reader(blob, target.progress)
        opened = open_chunked(self._expect, reader.read, target.limits)
        _heed_inodes(target.diff_fd, opened)
        places = stack.enter_context(_find(self._finder, *wanted(opened.items)))
        plan = make_plan(opened.items, {digest: place.size for digest, place in places.items()})
        opened = opened._replace(items=[])   # the plan has all that is to be known of them
        local = [places[part.digest] for part in plan.parts if isinstance(part, Local)]
        here = stack.enter_context(_read_ahead(self._finder, local))
        ahead = stack.enter_context(running(_Ahead(blob, plan, target.progress, self._stop)))
        ahead.begin()
        target.spared(plan.spared)

        def again(start: int, length: int) -> Iterator[bytes]:
            target.spared(-length)
            return map(bytes, reader.read([(start, length)]))

        def damaged(error: DamagedError) -> None:
            self._tell(f"content that is here is damaged, and fetched instead: {error}")

        assembler = Assembler(
            opened, plan.parts, places, fetched=ahead.unit, again=again, damaged=damaged, max_ratio=target.limits.max_ratio,
            donors=donors, here=here,
        )
        return opened, assembler

    def _fill(self, target: DiffTarget, opened: Opened, assembler: Assembler, donors: Donors) -> DiffOutput:
        # the tar's bytes are not the blob's
        quiet = replace(target, progress=lambda _n: None, donors=donors, digests=_Compared(opened, target.digests))
        pieces = completed(assembler, self._diff_id, self._tell) if opened.lines is None else assembler
        output = fill(quiet, pieces, diff_id=self._diff_id, compression="none", is_blob=False, stop=self._stop)
        return replace(output, toc_digest=opened.toc_digest, compression=opened.codec)


def _heed_inodes(fd: int, opened: Opened) -> None:
    """NoInodesError if there are fewer than files with content: else it fails when all but the last have been made.

    NoSpaceError where it is bytes that they are made of, and that are lacking.
    """
    needed = len({item.path for item in opened.items if isinstance(item, File)})
    check_inodes(fd, needed, "the layer's files need")


def _find(
    finder: Finder | None, digests: Collection[bytes], at: Mapping[bytes, tuple[bytes, int, int]],
) -> AbstractContextManager[Mapping[bytes, Place]]:
    nothing: Mapping[bytes, Place] = {}
    return finder.find(digests, at) if finder is not None and digests else nullcontext(nothing)


def _read_ahead(finder: Finder | None, places: Sequence[Place]) -> AbstractContextManager[Here | None]:
    return finder.ahead(places) if isinstance(finder, ReadsAhead) else nullcontext()


class _Compared:
    """What the unpacker tells of files, passed on to *told*: with their chunks, and only if the TOC says the same.

    The diffID says nothing of the digests that the TOC gives; later pulls would go by them. Implements ``Digests``.
    """

    def __init__(self, opened: Opened, told: Digests | None) -> None:
        self._opened, self._told = opened, told

    def add_file(self, path: bytes, size: int, sha256: bytes) -> None:
        promised = self._opened.digests.get(path)
        if promised is not None and sha256 != promised:
            raise DigestMismatchError(
                f"{os.fsdecode(path)!r} is another file than the table of contents promises",
                expected="sha256:" + promised.hex(), actual="sha256:" + sha256.hex(),
            )
        if self._told is not None:
            self._told.add_file(path, size, sha256)
            at = 0
            for chunk in self._opened.chunks.get(path, ()) if promised is not None else ():
                if chunk.digest is not None and not chunk.zeros:
                    self._told.add_chunk(path, at, chunk.size, chunk.digest)
                at += chunk.size

    def add_chunk(self, path: bytes, offset: int, length: int, sha256: bytes) -> None:
        if self._told is not None:
            self._told.add_chunk(path, offset, length, sha256)

    def start_over(self) -> None:
        if self._told is not None:
            self._told.start_over()


class _Reader:
    """Reads ranges of a blob into memory, and counts them: for what is small, or must be there as a whole."""

    def __init__(self, blob: BlobSource, progress: Callable[[int], None]) -> None:
        self.bytes = 0
        self._blob, self._progress = blob, progress

    def read(self, ranges: list[tuple[int, int]]) -> list[bytes | memoryview]:
        """The bytes of *ranges*: (start, length), ascending and apart; near ones are fetched as one."""
        found: list[tuple[int, bytearray]] = []
        for start, _length in (asked := merged(ranges)):
            found.append((start, bytearray()))
        at = 0
        for offset, piece in self._blob.ranges(asked):
            while at < len(asked) and len(found[at][1]) == asked[at][1]:
                at += 1
            if at == len(asked) or offset != found[at][0] + len(found[at][1]):
                raise SourceError(f"{self._blob.label} gave bytes at {offset} that were not asked for")
            found[at][1].extend(piece)
            self.bytes += len(piece)
            self._progress(len(piece))
        if any(len(data) != length for (_, data), (_, length) in zip(found, asked, strict=True)):
            raise SourceError(f"{self._blob.label} gave fewer bytes than were asked for")
        return [
            memoryview(data)[start - begin : start - begin + length]
            for start, length in ranges for begin, data in found if begin <= start < begin + len(data)
        ]


class _Ahead(Worker):
    """Fetches the plan's ranges, some pieces ahead of who takes units out of them, in order."""

    def __init__(self, blob: BlobSource, plan: Plan, progress: Callable[[int], None], stop: threading.Event) -> None:
        super().__init__("layerstore-fetch")
        self._blob, self._ranges, self._progress, self._no_more = blob, plan.ranges, progress, stop
        self._pieces: Channel[tuple[int, bytes]] = Channel(_DEPTH)
        self._stopped = False
        self._at, self._piece = 0, memoryview(b"")

    def _work(self) -> None:
        if self._ranges:
            for each in self._blob.ranges(self._ranges):
                self._progress(len(each[1]))
                if self._stopped or not self._pieces.put(each, self._goes_on):
                    return
        self._whole = True

    def _goes_on(self) -> bool:
        return not self._stopped

    def _ended(self) -> None:
        self._pieces.end()

    def begin(self) -> None:
        """Wait for the first piece, so that what a source cannot do at all is said now."""
        if self._ranges:
            self._next()

    def _next(self) -> None:
        """The next piece. What stopped the thread, or SourceError if there is none."""
        found = self._pieces.get(self.is_alive)
        if found is None:
            self._wait()
            self._check()
            raise SourceError(f"{self._blob.label} gave fewer bytes than were asked for")
        self._at, self._piece = found[0], memoryview(found[1])

    def unit(self, start: int, length: int) -> Iterator[bytes]:
        """The bytes of the blob from *start*, so many. What is before them and was not taken is dropped."""
        while length:
            while start >= self._at + len(self._piece):
                self._next()
            skip = start - self._at
            if skip < 0:
                raise SourceError(f"{self._blob.label} gave the bytes at {self._at} where those at {start} were asked for")
            part = self._piece[skip : skip + length]
            start, length = start + len(part), length - len(part)
            yield bytes(part)

    def _stop(self) -> None:
        """After the piece being fetched, or rather than wait for it."""
        self._stopped = True
        self._no_more.set()
        self._pieces.make_room()
