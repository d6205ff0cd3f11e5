"""Files being made by threads, batch by batch in the archive's order. Makes nothing itself, and writes nothing down.

A batch holds what is recorded of some entries that follow one another, and which of them are files to be made. ``InFlight``
knows by path what is not made yet: whoever needs one of those names on the disk settles it first (``Unpacker.settle``).
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Protocol

from layerstore.errors import IoError
from layerstore.system.threads import Channel, Worker
from layerstore.trees.unpack.files import NewFile
from layerstore.trees.unpack.records import Row

__all__ = ["Batch", "Creator", "InFlight"]

_FULL = 1 << 20                          # a batch: bytes of content and of headers, where other things count as so many:
_FILE_COST = 8 << 10                     # a file (the hand-over of a batch costs as much as one),
_DIR_COST = 64 << 10                     # a directory that is kept open,
_ROW_COST = 2 << 10                      # and what waits to be written down
_BATCHES = 4                             # handed out and not seen finished
_ITSELF = 3                              # that a thread makes itself before it wants help: starting that takes as long
_LOOK_SECONDS = 0.5


class Batch:
    """Entries that follow one another; ``failed`` if one of the files could not be made."""

    __slots__ = ("dir_fd", "done", "failed", "files", "rows", "size")

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.files: list[NewFile] = []
        self.dir_fd = -1                 # the last file's
        self.size = 0
        self.failed = False
        self.done: queue.SimpleQueue[None] = queue.SimpleQueue()


class Helper(Protocol):
    """What makes files for a thread."""

    def is_ready(self) -> bool:
        """Whether it can be asked by now."""

    def make(self, files: Sequence[NewFile]) -> list[NewFile]:
        """Make them; those that it did not make."""


class Creator(Worker):
    """A thread that makes the files of one batch after the other, by *make*. What fails is said of the file.

    After the first few batches *help* is entered, and what that gives, if anything, makes what it can instead.
    """

    def __init__(
        self, batches: Channel[Batch], make: Callable[[NewFile], None],
        help: Callable[[], AbstractContextManager[Helper | None]] = nullcontext,  # noqa: A002 - what it is
    ) -> None:
        super().__init__("layerstore-create")
        self._batches, self._make, self._help = batches, make, help
        self._stopped = False

    def _work(self) -> None:
        helper, left = None, _ITSELF
        with ExitStack() as stack:
            while (batch := self._batches.get(self._goes_on)) is not None:
                try:
                    if left == 0:
                        helper = stack.enter_context(self._help())
                    left -= 1
                    self._all(batch, helper)
                finally:
                    batch.done.put(None)
        self._batches.end()              # passed on: whoever takes the end may not be whom it was meant for

    def _all(self, batch: Batch, helper: Helper | None) -> None:
        files: Sequence[NewFile] = batch.files
        if helper is not None and helper.is_ready() and not self._stopped:
            try:
                files = helper.make(files)
            except BaseException as error:  # noqa: BLE001 - as in ``_one``
                for file in files:
                    file.error, file.done = error.with_traceback(None), True
                files, batch.failed = (), True
        for file in files:
            if not self._one(file):
                batch.failed = True

    def _one(self, file: NewFile) -> bool:
        if self._stopped:
            return False
        try:
            self._make(file)
        except BaseException as error:  # noqa: BLE001 - raised by who writes the record, in the archive's order
            # without its traceback, which would hold the file, which holds the error: nothing waits for a collection
            file.error = error.with_traceback(None)
        file.done = True
        return file.error is None

    def complain(self) -> None:
        """Raise what ended the thread, if anything did."""
        if self._error is not None:
            raise self._take_error()

    def _goes_on(self) -> bool:
        return not self._stopped

    def _stop(self) -> None:
        """After the file being made."""
        self._stopped = True
        self._batches.end()


class InFlight:
    """The batch being filled, and those that were given to the threads. Only the unpacking thread uses it.

    ``paths`` are those of files that are not known to be made.
    """

    def __init__(self) -> None:
        self.batches: Channel[Batch] = Channel(_BATCHES)
        self.creators: list[Creator] = []
        self.filling = Batch()
        self.paths: set[bytes] = set()
        self._given: deque[Batch] = deque()

    def __bool__(self) -> bool:
        """Whether there are rows that are not written."""
        return bool(self._given or self.filling.rows)

    def add(self, file: NewFile) -> None:
        """A file that a thread shall make."""
        self.paths.add(file.path)
        batch = self.filling
        batch.files.append(file)
        batch.size += len(file.data) + _FILE_COST
        if file.dir_fd != batch.dir_fd:
            batch.dir_fd = file.dir_fd
            batch.size += _DIR_COST

    def add_row(self, row: Row) -> bool:
        """What is recorded of the next entry; whether the batch is full now, and ``hand_out`` is due."""
        batch = self.filling
        batch.rows.append(row)
        batch.size += len(row[0]) + _ROW_COST
        return batch.size >= _FULL

    def are_out(self) -> bool:
        """Whether a batch was handed out."""
        return bool(self._given)

    def hand_out(self) -> None:
        """Give the batch that was being filled to a thread, if it has files for one."""
        batch, self.filling = self.filling, Batch()
        if not batch.files:
            batch.done.put(None)
        elif not self.batches.put(batch, self._alive):
            self._check_threads()
            raise IoError("the threads that make files take no more")
        self._given.append(batch)

    def made(self, *, wait: bool) -> Batch | None:
        """The oldest batch, once it is made; None if there is none, or it is not made and *wait* does not say to wait.

        Waits in any case if too many are out.
        """
        given = self._given
        if not given or not (wait or len(given) > _BATCHES or not given[0].done.empty()):
            return None
        self._wait_for(given[0])
        batch = given.popleft()
        self.paths.difference_update([file.path for file in batch.files])
        return batch

    def _wait_for(self, batch: Batch) -> None:
        while True:
            try:
                batch.done.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                self._check_threads()    # one that ended may have had this batch, and nobody else has it now
            else:
                break
        if not all(file.done for file in batch.files):   # not a file that failed, but the thread
            self._check_threads()
            raise IoError("a thread that makes files left some out")

    def _alive(self) -> bool:
        return all(creator.is_alive() for creator in self.creators)

    def _check_threads(self) -> None:
        """Raise what ended a thread; none ends by itself."""
        for creator in self.creators:
            creator.complain()
            if not creator.is_alive():
                raise IoError("a thread that makes files ended by itself")
