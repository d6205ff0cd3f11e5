"""Files being made by threads, and the record of all entries in the archive's order. Makes nothing itself.

An entry's record waits here for the files before it. ``InFlight`` knows by path what is not made yet: whoever
needs one of those names on the disk settles it first (``Unpacker.settle``).
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable

from layerstore.errors import ArchiveError, IoError
from layerstore.manifest import UNSET, ManifestEntry, ManifestWriter, storable_xattr
from layerstore.partial import Digests
from layerstore.tar import Entry
from layerstore.tarsplit import Member, TarSplitWriter
from layerstore.threads import Channel, Worker
from layerstore.unpack.files import NewFile

__all__ = ["Creator", "InFlight", "Records", "record_of"]

_BATCH_FILES = 64                        # what is handed to a thread at once: the hand-over costs as much as a file …
_BATCH_BYTES = 1 << 20                   # … but its memory, and …
_BATCH_DIRS = 8                          # … the directories that it keeps open, are bounded
_BATCHES = 4                             # handed out and not seen finished
_MAX_OWNERS = 65_536                     # different uids or gids: they become a field of the layer's row
_MOST_WAITING = 1_024                    # records that wait for a file being made
_MUCH_RAW = 1 << 20                      # bytes: of an entry that is no content, or of zeros at the end
_LOOK_SECONDS = 0.5


class _Batch:
    __slots__ = ("dirs", "done", "files", "size")

    def __init__(self) -> None:
        self.files: list[NewFile] = []
        self.dirs: set[int] = set()
        self.size = 0
        self.done: queue.SimpleQueue[None] = queue.SimpleQueue()


class Creator(Worker):
    """A thread that makes the files of one batch after the other, by *make*. What fails is said of the file."""

    def __init__(self, batches: Channel[_Batch], make: Callable[[NewFile], None]) -> None:
        super().__init__("layerstore-create")
        self._batches, self._make = batches, make
        self._stopped = False

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _work(self) -> None:
        while (batch := self._batches.get(self._goes_on)) is not None:
            try:
                for file in batch.files:
                    self._one(file)
            finally:
                batch.done.put(None)
        self._batches.end()              # passed on: whoever takes the end may not be whom it was meant for

    def _one(self, file: NewFile) -> None:
        if self._stopped:
            return
        try:
            self._make(file)
        except BaseException as error:  # noqa: BLE001 - raised by who reads the record, in the archive's order
            # without its traceback, which would hold the file, which holds the error: nothing waits for a collection
            file.error = error.with_traceback(None)
        file.done = True

    def complain(self) -> None:
        """Raise what ended the thread, if anything did."""
        if self._error is not None:
            raise self._take_error()

    def _goes_on(self) -> bool:
        return not self._stopped

    def close(self) -> None:
        """Stop after the file being made, and end the thread."""
        self._stopped = True
        if self._thread.is_alive():
            self._batches.end()
            self._thread.join()


class InFlight:
    """What was given to the threads and is not known to be made. Only the unpacking thread uses it."""

    def __init__(self) -> None:
        self.batches: Channel[_Batch] = Channel(_BATCHES)
        self.creators: list[Creator] = []
        self._filling = _Batch()
        self._given: deque[_Batch] = deque()
        self._paths: set[bytes] = set()

    def __contains__(self, path: bytes) -> bool:
        return path in self._paths

    def __bool__(self) -> bool:
        return bool(self._paths)

    def add(self, file: NewFile) -> bool:
        """Take *file*; whether a batch is full now and ``hand_out`` is due."""
        self._paths.add(file.path)
        batch = self._filling
        batch.files.append(file)
        batch.dirs.add(file.dir_fd)
        batch.size += len(file.data)
        return len(batch.files) >= _BATCH_FILES or batch.size >= _BATCH_BYTES or len(batch.dirs) >= _BATCH_DIRS

    def hand_out(self) -> None:
        """Give the batch that was being filled to a thread. Waits for the oldest if too many are out."""
        batch, self._filling = self._filling, _Batch()
        if batch.files:
            self._given.append(batch)
            if not self.batches.put(batch, self._alive):
                self._check_threads()
                raise IoError("the threads that make files take no more")
        while len(self._given) > _BATCHES:
            self.wait()

    def wait(self) -> None:
        """Wait until the oldest batch is made. There must be one."""
        batch = self._given[0]
        while True:
            try:
                batch.done.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                self._check_threads()    # one that ended may have had this batch, and nobody else has it now
            else:
                break
        self._given.popleft()
        if not batch.files[-1].done:     # not a file that failed, but the thread
            self._check_threads()
            raise IoError("a thread that makes files left some out")

    def wait_for_one(self) -> None:
        """Wait for the oldest batch, the one being filled if no other is out."""
        if not self._given:
            self.hand_out()
        self.wait()

    def landed(self, path: bytes) -> None:
        self._paths.discard(path)

    def _alive(self) -> bool:
        return all(creator.is_alive() for creator in self.creators)

    def _check_threads(self) -> None:
        """Raise what ended a thread; none ends by itself."""
        for creator in self.creators:
            creator.complain()
            if not creator.is_alive():
                raise IoError("a thread that makes files ended by itself")


class Records:
    """Manifest and tar-split, written in the archive's order; and what is counted of them."""

    def __init__(self, manifest: ManifestWriter, split: TarSplitWriter, digests: Digests | None = None) -> None:
        self._manifest, self._split, self._digests = manifest, split, digests
        self._raw: list[bytes] = []
        self._raw_size = self._waiting_size = 0
        # bytes of the stream before the member's data, what is recorded of it, and the member
        self._waiting: deque[tuple[bytes, ManifestEntry | NewFile | None, Member]] = deque()
        self.entries = self.unset = 0
        self.uids: set[int] = set()
        self.gids: set[int] = set()

    def are_many(self) -> bool:
        """Whether so much waits for a file being made that all is to be settled: entries, or bytes of their headers."""
        return len(self._waiting) >= _MOST_WAITING or self._waiting_size >= _MUCH_RAW

    def raw(self, data: bytes) -> bool:
        """Bytes of the stream that are no file's content; they belong before the next entry's data.

        True if there are many by now: then all that waits is to be settled, and ``write_raw`` called.
        """
        self._raw.append(data)
        self._raw_size += len(data)
        return self._raw_size >= _MUCH_RAW

    def add(self, what: ManifestEntry | NewFile | None, member: Member) -> None:
        """An entry, complete but for *what* a thread is still making."""
        raw = self._take_raw()
        if self._waiting or type(what) is NewFile:
            self._waiting.append((raw, what, member))
            self._waiting_size += len(raw)
        else:
            self._write(raw, what, member)

    def write_done(self, in_flight: InFlight) -> NewFile | None:
        """Write what waits for nobody any more, up to a file that could not be made, which is returned.

        That file is made by the caller, who then says ``mended``.
        """
        waiting = self._waiting
        while waiting:
            raw, file, member = waiting[0]
            if type(file) is NewFile:
                if not file.done:
                    return None
                if file.error is not None:
                    self._split.raw(raw)
                    self._waiting_size -= len(raw)
                    waiting[0] = (b"", file, member)
                    return file
                in_flight.landed(file.path)
            self._waiting_size -= len(raw)
            self._write(*waiting.popleft())
        return None

    def write_raw(self) -> None:
        """Write the bytes before the current entry's data; nothing may be waiting."""
        assert not self._waiting
        self._split.raw(self._take_raw())

    def _take_raw(self) -> bytes:
        raw = b"".join(self._raw)
        self._raw.clear()
        self._raw_size = 0
        return raw

    def _write(self, raw: bytes, what: ManifestEntry | NewFile | None, member: Member) -> None:
        if raw:
            self._split.raw(raw)
        if type(what) is NewFile:
            what = record_of(what.entry, what.path, what.unset, sha256=what.digest)
        if what is not None:
            self.record(what)   # type: ignore[arg-type]
        self._split.member(member)

    def record(self, entry: ManifestEntry) -> None:
        """A manifest record by itself, as of a directory at the end."""
        self.entries += 1
        if entry.unset:
            self.unset += (entry.unset & UNSET).bit_count()
        if entry.uid not in self.uids or entry.gid not in self.gids:
            self._new_owner(entry)
        self._manifest.add(entry)
        if self._digests is not None and entry.sha256 is not None:
            self._digests.add_file(entry.path, entry.size, entry.sha256)

    def _new_owner(self, entry: ManifestEntry) -> None:
        if entry.type in ("hardlink", "whiteout"):   # they have none
            return
        self.uids.add(entry.uid)
        self.gids.add(entry.gid)
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
        self._waiting.clear()
        self._manifest.abandon()
        self._split.abandon()


def record_of(
    entry: Entry, path: bytes, unset: int, *, sha256: bytes | None = None, opaque: bool = False, implicit: bool = False,
) -> ManifestEntry:
    """The manifest's record of what *entry* became at *path*."""
    xattrs = entry.xattrs
    if xattrs:
        xattrs = {name: value for name, value in xattrs.items() if storable_xattr(name)}
    return ManifestEntry(
        path, entry.type, entry.mode, entry.uid, entry.gid, entry.size, entry.mtime_ns, entry.linkname,
        entry.devmajor, entry.devminor, xattrs, sha256, opaque, implicit, unset,
    )
