"""Regular files: by whom each is made, here or by threads; and writing down what became of all entries, in order."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial

from layerstore.errors import LayerstoreError, NoSpaceError
from layerstore.formats.manifest import ManifestEntry
from layerstore.formats.tar import Entry, TarReader
from layerstore.formats.tarsplit import MemberRow
from layerstore.model import DiffTarget
from layerstore.partial import Donor
from layerstore.system.room import free_bytes
from layerstore.system.threads import running
from layerstore.trees.dress import Dresser
from layerstore.trees.unpack.donated import check_donor, link_in
from layerstore.trees.unpack.files import SMALL, Births, NewFile, make, make_from
from layerstore.trees.unpack.hashing import Hasher
from layerstore.trees.unpack.making import Batch, Creator, InFlight
from layerstore.trees.unpack.process import beside
from layerstore.trees.unpack.records import Records, record_of
from layerstore.trees.unpack.tree import Tree

__all__ = ["Files", "split"]

_ALONE = 64                              # files made before threads help: most layers of tests and configs have fewer
_CREATORS = 2                            # threads that make files; more wait for Python's lock
_LARGE = 1 << 22                         # bytes of a file that a thread hashes while it is written
_LOOK = 4 << 20                          # bytes of the stream, after which it is looked how much of the disk is free
_NO_DATA = memoryview(b"")


class Files(Tree):
    """The tree, and its files on their way into it."""

    def __init__(self, target: DiffTarget, records: Records, threads: ExitStack, alone: int | None) -> None:
        super().__init__(target, records)
        self._cancelled, self._donors = target.cancelled, target.donors
        self._lock_fd, self._dress, self._births = target.dir_fd, Dresser(target.ids), Births()
        self._threads = threads
        self._several = len(os.sched_getaffinity(0)) > 1
        if alone is None:
            alone = _ALONE if self._several else sys.maxsize
        self._alone = alone
        self._hasher: Hasher | None = None
        self._in_flight = InFlight()
        self._diff_fd, self._keep_free = target.diff_fd, target.keep_free
        self._step = min(_LOOK, target.keep_free // 4)   # of the stream: no more is written between two looks

    def check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise LayerstoreError("cancelled: the layer is no longer wanted")

    def _check_free(self) -> None:
        """Limits know nothing of this disk; what is a bomb here may be a layer elsewhere, and several grow at once."""
        free = free_bytes(self._diff_fd)
        if free < self._keep_free:
            raise NoSpaceError(
                f"the layer would fill the disk: {free} bytes are free, and {self._keep_free} shall stay so", free=free,
            )

    # -- making -------------------------------------------------------------------------------------------

    def file(self, entry: Entry, reader: TarReader, real: bytes, base: bytes) -> None:
        """Make the file, or have it made, and record it."""
        path = real + b"/" + base if real else base
        donor = self._donors.take(entry.name) if self._donors is not None else None
        if donor is not None and entry.sparse is None:
            what: ManifestEntry | NewFile = self._donated(donor, entry, reader, real, base, path)
        elif entry.sparse is not None or (whole := reader.read_whole()) is None:
            digest, unset = self.create(real, base, lambda dir_fd: make_from(
                dir_fd, base, entry, reader.read_data(entry), self._dress, self._births, self.check_cancelled,
                self._hasher_for(entry),
            ))
            what = record_of(entry, path, unset, sha256=digest)
        elif self._alone > 0 or len(whole) > SMALL:
            self._alone -= 1
            what = self.create(real, base, lambda dir_fd: self._make(NewFile(dir_fd, None, base, path, entry, whole)))
        else:
            what = self._handed_over(entry, whole, real, base, path)
        stored = entry.size if entry.sparse is None else sum(length for _, length in entry.sparse)
        # whoever has no content has none in the tree
        self.record(what, (reader.raw_name, path, stored, entry.sparse) if stored else (reader.raw_name, None, 0, None))

    def _donated(
        self, donor: Donor, entry: Entry, reader: TarReader, real: bytes, base: bytes, path: bytes
    ) -> ManifestEntry:
        digest = check_donor(donor, entry, reader.read_data(entry), self.check_cancelled)
        unset = self.create(real, base, lambda dir_fd: link_in(donor, dir_fd, base, entry, self._dress))
        return record_of(entry, path, unset, sha256=digest)

    def _handed_over(self, entry: Entry, whole: memoryview, real: bytes, base: bytes, path: bytes) -> NewFile:
        in_flight = self._in_flight
        if path in in_flight.paths:
            self.settle(path)
        if self.absent and path in self.absent:
            self.make_room(real, base)
        if not in_flight.creators:
            self._start_threads()
        file = NewFile(*self.fds.held(real), base, path, entry, whole)
        in_flight.add(file)
        return file

    def _make(self, file: NewFile) -> NewFile:
        make(file, self._dress, self._births)
        file.data = _NO_DATA             # what waits to be written down holds none of the stream
        return file

    def _hasher_for(self, entry: Entry) -> Hasher | None:
        """What hashes the file's pieces while they are written: of one that is large, where there is a processor for it."""
        if entry.size < _LARGE or not self._several:
            return None
        if self._hasher is None:
            self._hasher = self._threads.enter_context(running(Hasher()))
        return self._hasher

    def _start_threads(self) -> None:
        creators = self._in_flight.creators
        while len(creators) < _CREATORS:
            # no methods of ours: what refers to itself is closed only when Python collects cycles
            creator = Creator(self._in_flight.batches, partial(make, dress=self._dress, births=self._births),
                              partial(beside, self._lock_fd, self._dress))
            creators.append(self._threads.enter_context(running(creator)))

    def heed_threads(self) -> None:
        """Raise what a thread ended with although all was made: nothing that was raised is lost."""
        for creator in self._in_flight.creators:
            creator.complain()

    # -- writing down -------------------------------------------------------------------------------------

    def heeded(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """*chunks*; and before each further one what is to be done from time to time, however long an entry is."""
        since = 0
        for chunk in chunks:
            self.check_cancelled()
            since += len(chunk)
            if since >= self._step and self._keep_free:
                self._check_free()
                since = 0
            if self.records.is_much():
                self.settle()
                self.records.write_raw()
            yield chunk

    def record(self, what: ManifestEntry | NewFile | None, member: MemberRow) -> None:
        """What became of an entry."""
        in_flight = self._in_flight
        if in_flight.add_row((self.records.take_raw(), what, member)):
            self.check_cancelled()
            in_flight.hand_out()
            self._write_made()

    def settle(self, path: bytes | None = None) -> None:
        in_flight = self._in_flight
        while in_flight if path is None else path in in_flight.paths:
            if not in_flight.are_out():
                in_flight.hand_out()
            self._write_made(wait=True)

    def _write_made(self, *, wait: bool = False) -> None:
        """Write down the batches that are made; with *wait* at least one."""
        while (batch := self._in_flight.made(wait=wait)) is not None:
            if batch.failed:
                self._write_failed(batch)
            else:
                self.records.write(batch.rows)
            wait = False

    def _write_failed(self, batch: Batch) -> None:
        """A batch with a file that could not be made: as it is written here, an earlier one may have its name."""
        for raw, what, member in batch.rows:
            rest = raw
            if type(what) is NewFile and what.error is not None:
                error, what.error = what.error, None
                if not isinstance(error, FileExistsError):
                    raise error
                self.records.write_raw(raw)
                rest = b""
                self.take_away(*split(what.path))
                self._make(what)
            self.records.write([(rest, what, member)])


def split(path: bytes) -> tuple[bytes, bytes]:
    """The directory of *path*, and its name there."""
    parent, _, base = path.rpartition(b"/")
    return parent, base
