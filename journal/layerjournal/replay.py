"""Offline: a copied journal directory, or bare segment files, read without a store around, changing nothing.

No lock is taken and no file is written, so a copy may lie on read-only media; for the same reason a directory that
somebody writes to is to be copied first (``Journal.copy_to``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from layerjournal import archive, segment
from layerjournal.codec import decode_own
from layerjournal.control import META, META_KEY, OWN_TABLES, Whole
from layerjournal.creating import SEGMENTS_DIR
from layerjournal.engine import Engine
from layerjournal.engine.datafile import DATA_FILE, structural_problems
from layerjournal.errors import ClosedError, DamagedError, UsageError
from layerjournal.folding import Folded, History, fold_at
from layerjournal.journal import check_all
from layerjournal.record import Record
from layerjournal.segment import Segment
from layerjournal.txn import ReadTxn
from layerjournal.verifying import Verifier, VerifyReport
from layerjournal.views import Projector


class Replay:
    """What was journaled, from copies. Open one with ``Replay.open``; close it, or use it as a context manager."""

    def __init__(self, directory: str | None, segments: tuple[Segment, ...], projector: Projector | None) -> None:
        self.directory, self.segments, self.projector = directory, segments, projector
        self._engine: Engine | None = None
        if directory is None:
            self.uuid, tables = segments[0].uuid, segments[-1].tables
            self._whole = Whole(projector, [name for name in tables if name not in OWN_TABLES])
            return
        self._inside = os.path.join(directory, SEGMENTS_DIR)
        data = os.path.join(directory, DATA_FILE)
        if problems := structural_problems(data):   # LMDB itself may die of these
            raise DamagedError(
                f"{data} is damaged in {len(problems)} places: {'; '.join(problems[:3])}",
                hint="replay its archived segments instead, or restore the journal from them",
            )
        self._engine = Engine(directory, OWN_TABLES, readonly=True, map_size=1 << 20, lock=False, look=False)
        try:
            with self._engine.reading() as txn:
                meta = ReadTxn(self._engine, txn).meta()
            self.uuid = meta["uuid"]
            self._whole = Whole(projector, meta["tables"])
            self._engine.open_tables(self._whole.users)
        except BaseException:
            self._engine.close()
            raise

    @classmethod
    def open(cls, paths: Sequence[str | os.PathLike[str]], projector: Projector | None = None) -> Replay:
        """Open one journal directory (or one that holds it as ``journal/``), or segment files, in any order.

        Without *projector* records can be read, and neither folded nor verified.
        UsageError for anything else, or for segments that do not follow each other; DamagedError for damage that
        keeps it from being opened.
        """
        directories, files = _sort_out(paths)
        if directories and (files or len(directories) > 1):
            raise UsageError("one journal directory, or segment files; not both, and not several directories")
        loaded = tuple(sorted((segment.load(path) for path in files), key=lambda s: s.first))
        if not directories:
            segment.check_sequence(loaded)
        return cls(directories[0] if directories else None, loaded, projector)

    def records(self, after: int = 0, upto: int | None = None) -> Iterator[Record]:
        """Every record there is, archived or not, after *after* and up to *upto*, in order and verified."""
        with self._reading() as view:
            yield from archive.every_record(self._history(view).segments, view, after, upto)

    def fold(self, at: int | None = None) -> Folded:
        """The tables after record *at* (None: the last there is). UsageError where nothing reaches back to it."""
        with self._reading() as view:
            if view is None:
                return fold_at(self._whole, self._history(None), (), at)
            return fold_at(self._whole, archive.base_only(self._inside, view, at), view.records(upto=at), at)

    def head(self) -> tuple[int, bytes]:
        """The last record's sequence number and link."""
        with self._reading() as view:
            return view.head() if view is not None else (self.segments[-1].last, self.segments[-1].last_link)

    def low_water(self) -> int:
        """The last checkpoint's mark; for bare segments, as it was after their last record."""
        with self._reading() as view:
            if view is not None:
                return view.low_water()
        row = decode_own(self.segments[-1].snapshot()[META][META_KEY])
        return int(row["low_water"])

    def verify(self) -> VerifyReport:
        """As ``Journal.verify``; with bare segments, of what is in them."""
        verifier = Verifier(self._whole, self.uuid)
        with self._reading() as view:
            if view is None:
                verifier.segments([partial(segment.load, s.path, s.as_payload()) for s in self.segments])
            else:
                check_all(verifier, self._inside, view, ())   # the pages were walked at open
        return verifier.report()

    def _history(self, view: ReadTxn | None) -> History:
        if view is None:
            last = self.segments[-1].last
            return History(self.uuid, self.segments, last, last)
        return archive.history(self._inside, view)

    @contextmanager
    def _reading(self) -> Iterator[ReadTxn | None]:
        if self.directory is None:
            yield None
            return
        if self._engine is None:
            raise ClosedError(f"the replay of {self.directory} is closed")
        with self._engine.reading() as txn:
            yield ReadTxn(self._engine, txn)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _sort_out(paths: Sequence[str | os.PathLike[str]]) -> tuple[list[str], list[str]]:
    directories: list[str] = []
    files: list[str] = []
    for given in paths:
        path = os.path.abspath(os.fspath(given))
        if not os.path.exists(os.path.join(path, DATA_FILE)) and os.path.isdir(os.path.join(path, "journal")):
            path = os.path.join(path, "journal")
        if os.path.isfile(os.path.join(path, DATA_FILE)):
            directories.append(path)
        elif os.path.isfile(path):
            files.append(path)
        else:
            raise UsageError(f"{path} is neither a journal, nor holds one, nor is it a segment")
    return directories, files


