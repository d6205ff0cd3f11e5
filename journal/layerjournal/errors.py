"""Every error of layerjournal, by whose fault it is.

::

    JournalError
    ├── UsageError              the call was wrong; nothing was changed
    │   ├── ExistsError            there is something where a journal was to be made (a FileExistsError too)
    │   ├── MissingError           there is no journal there (a FileNotFoundError too)
    │   ├── AlreadyOpenError       this process has the journal open already
    │   ├── ForkedError            the handle, or the open journal, was inherited by fork
    │   ├── ClosedError            the handle is closed
    │   └── ProjectionError        the projector refused a record
    ├── DamagedError            what is on disk is not what was written
    │   ├── RecordError            bytes that are not a record, or do not chain
    │   ├── RowError               a row whose checksum does not fit
    │   └── SegmentError           an archived segment that is torn, altered or missing
    ├── HostError               the machine does not let us
    │   ├── NoSpaceError           the disk or a quota is full; nothing was changed
    │   ├── ReadOnlyError          the journal is open, or its file system mounted, read-only; nothing was changed
    │   ├── BusyError              a lock, or a descriptor, was not to be had
    │   └── PidNamespaceError      another pid namespace has the journal open
    ├── OutcomeUnknownError     a commit or a sync failed half-way; only a reopen can tell
    └── PoisonedError           such a failure came before; reopen

Each carries ``hint``: one line that says what to do. Nothing else belongs here.
"""

from __future__ import annotations


class JournalError(Exception):
    """The root of every error here. ``str(e)`` says what happened; ``e.hint`` says what to do."""

    default_hint = "see the message"

    def __init__(self, what: str, *, hint: str | None = None) -> None:
        super().__init__(what)
        self.hint = hint or self.default_hint


class UsageError(JournalError):
    """The call was wrong. Nothing was changed."""

    default_hint = "correct the call"


class ExistsError(UsageError, FileExistsError):
    default_hint = "open it instead, or name another place"


class MissingError(UsageError, FileNotFoundError):
    default_hint = "create it first, or correct the path"


class AlreadyOpenError(UsageError):
    default_hint = "share the handle between threads, or close it first"


class ForkedError(UsageError):
    """Its locks belong to the parent. A child that was forked in the middle of a transaction cannot reopen it."""

    default_hint = "open the journal in the child itself, or start the child by multiprocessing's 'spawn'"


class ClosedError(UsageError):
    default_hint = "open it again"


class ProjectionError(UsageError):
    default_hint = "the record is not legal here: a bug in the caller, or a log of another projector"


class DamagedError(JournalError):
    """What is on disk is not what was written. Nothing was changed."""

    default_hint = "keep a copy, then verify it; archived segments may hold what is lost"


class RecordError(DamagedError):
    pass


class RowError(DamagedError):
    pass


class SegmentError(DamagedError):
    pass


class HostError(JournalError):
    """The machine does not let us."""

    default_hint = "look at permissions, at the file system and at the kernel's log"


class NoSpaceError(HostError):
    default_hint = "free space on the journal's file system; nothing was changed"


class ReadOnlyError(HostError):
    default_hint = "open it writable, on a file system that is mounted read-write"


class BusyError(HostError):
    default_hint = "try again when the other one is done"


class PidNamespaceError(HostError):
    default_hint = "open the journal from one pid namespace at a time"


class OutcomeUnknownError(JournalError):
    default_hint = "close the journal and open it again: the log tells what became of it"


class PoisonedError(JournalError):
    default_hint = "close the journal and open it again"
