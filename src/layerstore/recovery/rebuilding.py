"""``layerstore.rebuild``: a store whose database is lost or damaged gets a new one. The old one is kept, never changed.

In order, and what a crash in each gap leaves:

1. the root locked exclusively (no handle anywhere); everything read, everything decided – nothing; a dry run ends here
2. ``rebuild.snapshot``: a snapshot that was named, copied into ``journal/segments/``, synced – a segment more
3. ``staging/rebuild/`` made, the new database in it (``rebuild.mkdir``, ``journal.create.*``) – the old database; what is
   in ``staging/`` without a row is cleared by the next rebuild, or removed by the next open
4. ``rebuild.set-aside``: what will have no row, and is not garbage, to ``quarantine/`` – the same, and it is out of the way
5. ``rebuild.keep``: the old database gets a second name, in ``quarantine/`` – the same; the next rebuild finds that name
6. ``rebuild.sync``: one syncfs, before the old database loses its first name: else a loss of power could take the second
7. ``rebuild.rename``: the new one over its first name – **the new database**, or after a loss of power the old one
8. ``rebuild.journal.sync``: where it came from, ``journal/``, ``segments/``, ``quarantine/`` – the new database
9. ``rebuild.clear``: ``staging/rebuild/`` goes; ``rebuild.set-aside`` of segments that are not good – the same

The new database is not recovered here: the next open does that, as after any crash.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from layerjournal import Salvaged, WriteTxn, pages
from layerstore.errors import AlreadyOpenError, InvalidArgumentError, JournalDamagedError, ReadOnlyError
from layerstore.opening import reserve
from layerstore.opening.config import ids_of, read_config
from layerstore.opening.handle import DIRECTORIES, is_open_here
from layerstore.opening.journaling import journal_errors, open_journal, rebuild_journal, salvage_journal
from layerstore.recovery.readopt import Item, Outcome, complete, deletions
from layerstore.recovery.remains import gather
from layerstore.system import filesystem, flock, fs
from layerstore.system.removing import remove_tree

__all__ = ["RebuildReport", "rebuild"]

_ASIDE = "rebuild"
_KEPT = "journal-data.mdb"
_OF_THE_ARCHIVE = frozenset({"segment", "gap", "snapshot"})


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """What came from where, and what could not be proven.

    ``damage``: what is wrong with the old database. ``archived`` is the last record that came from ``segments``
    (``first-last``), ``head`` the last that is proven; ``whole``: there were no later ones, so nothing is unproven.
    ``seen``: the last that the damaged database mentions. ``layers`` and ``images`` count those adopted from their
    files. ``items`` are whatever is not simply as the records say. ``kept``: where the old database is now.
    ``bad_segments``: (name, reason).
    """

    root: str
    damage: tuple[str, ...]
    segments: tuple[str, ...]
    bad_segments: tuple[tuple[str, str], ...]
    archived: int
    head: int
    whole: bool
    seen: int | None
    layers: int
    images: int
    items: tuple[Item, ...]
    kept: str | None
    planned_only: bool

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def rebuild(
    root: str | os.PathLike[str], *, source: str | os.PathLike[str] | None = None, content: bool = False,
    force: bool = False, dry_run: bool = False, wait: float = 10.0, allow_filesystem: Sequence[str] = (),
    clock: Callable[[], int] = time.time_ns,
) -> RebuildReport:
    """Make the database of the store at *root* anew, from what is left of it, the archive, and the layers on disk.

    Args:
        root: the store's directory. ``store.json`` must be there. Nobody may have the store open.
        source: a snapshot (``Store.snapshot``) to go by where it reaches further than the archive.
        content: also compare every file of the layers that are adopted; a layer that fails is quarantined.
        force: rebuild although the database looks sound, and do not believe that its log is whole (an old copy was
            put back, say).
        dry_run: only say what would be done; nothing is changed.
        wait: seconds to wait for others to close the store.
        allow_filesystem: as for ``layerstore.open``.
        clock: nanoseconds since 1970; only ever recorded.

    Returns:
        The report. Open the store afterwards as usual: that recovers it.

    Raises:
        InvalidArgumentError: there is no store, its database is sound, or *source* is no snapshot of it.
        AlreadyOpenError, BusyError: somebody has the store open.
        DamagedError: ``store.json`` cannot be understood. ReadOnlyError, NoSpaceError, HostError.

    Durability: when it returns, the new database is on disk. A crash before leaves the old one, which is refused as
    before, or the new one; no layer, image or database is ever removed.

    """
    path = os.path.abspath(os.fspath(root))
    try:
        with _Rebuild(path, tuple(allow_filesystem), clock, dry_run=dry_run, wait=wait) as work:
            return work.run(None if source is None else os.fspath(source), content=content, force=force)
    except OSError as error:
        raise fs.host_error(error, f"rebuilding the store at {path}") from error


class _Rebuild:
    def __init__(self, path: str, allow: tuple[str, ...], clock: Callable[[], int], *, dry_run: bool, wait: float) -> None:
        self._path, self._allow, self._clock, self._dry, self._wait = path, allow, clock, dry_run, wait
        self._stack = ExitStack()
        self._dirs: dict[str, int] = {}

    def __enter__(self) -> _Rebuild:
        with self._stack:
            try:
                self._root = self._stack.enter_context(fs.open_dir(self._path))
            except FileNotFoundError as error:
                raise InvalidArgumentError(f"there is no store at {self._path}") from error
            if is_open_here(self._root):
                raise AlreadyOpenError(f"this process has the store at {self._path} open")
            filesystem.probe(self._root, allow=self._allow)
            self._config = read_config(self._root, self._path, readonly=self._dry)
            if os.fstatvfs(self._root).f_flag & os.ST_RDONLY:
                if not self._dry:
                    raise ReadOnlyError(f"the file system of {self._path} is mounted read-only")
            else:
                flock.lock_root(self._root, exclusive=True, wait=self._wait)
            for name in DIRECTORIES:
                self._open(name)
            self._stack = self._stack.pop_all()
        return self

    def _open(self, name: str, inside: str | None = None) -> None:
        parent = self._root if inside is None else self._dirs[inside]
        self._dirs[name] = self._stack.enter_context(fs.open_dir(name, parent))

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    # -- looking -----------------------------------------------------------------------------------------------------

    def run(self, source: str | None, *, content: bool, force: bool) -> RebuildReport:
        damage = self._damage()
        if not damage and not force:
            raise InvalidArgumentError(
                f"the database of {self._path} is sound", hint="open it; or rebuild it all the same: force=True, --force",
            )
        left = self._salvage(source, force=force)
        whole = left.whole and not force
        bad = [each for each in left.bad if each[0] != source]
        decide: Callable[[Any], Outcome] = lambda _txn: Outcome()   # noqa: E731
        if not whole:
            found = gather(
                self._dirs, overlay_form=self._config["overlay_form"], ids=ids_of(self._config), content=content,
            )
            decide = partial(complete, found=found, deleted=self._deleted(left))
        if self._dry:
            outcome, kept = self._planned(left, decide), None
        else:
            outcome, kept = self._carry_out(left, decide, bad, source)
        head = left.head[0]
        if not whole:
            outcome.say("unproven", f"after record {head}", "names, leases and mounts are as they were then")
        return RebuildReport(
            root=self._path, damage=tuple(damage), segments=tuple(f"{each.first}-{each.last}" for each in left.segments),
            bad_segments=tuple((os.path.basename(name), why) for name, why in bad),
            archived=left.segments[-1].last if left.segments else 0, head=head, whole=whole, seen=left.seen,
            layers=outcome.layers, images=outcome.images, items=tuple(outcome.items), kept=kept, planned_only=self._dry,
        )

    def _damage(self) -> list[str]:
        """What keeps the database from being trusted. A damaged archive beside a sound one is not among it."""
        path = os.path.join(self._path, "journal")
        if found := pages.damage(os.path.join(path, "data.mdb")):   # first: opening may not look at all of a large one
            return found
        try:
            with journal_errors(None), open_journal(path, readonly=self._dry, clock=self._clock) as journal:
                if journal.uuid != self._config["uuid"]:
                    return [f"it is of the journal {journal.uuid}, and the store is {self._config['uuid']}"]
                findings = journal.verify().findings
        except JournalDamagedError as error:
            return [str(error)]
        return [f"{each.code}: {each.message}" for each in findings if each.code not in _OF_THE_ARCHIVE]

    def _salvage(self, source: str | None, *, force: bool) -> Salvaged:
        left = salvage_journal(self._path, self._config["uuid"])
        if source is None or (left.whole and not force):
            return left
        more = salvage_journal(self._path, self._config["uuid"], (source,))
        refused = [why for name, why in more.bad if name == source]
        if refused:
            raise InvalidArgumentError(f"{source} is no snapshot of this store: {refused[0]}")
        return more

    @staticmethod
    def _deleted(left: Salvaged) -> frozenset[str]:
        found = deletions(record for record, _ in left.tail)
        return found.union(*(deletions(segment.records()) for segment in left.segments))

    def _planned(self, left: Salvaged, decide: Callable[[Any], Outcome]) -> Outcome:
        """The same, into a database that is thrown away: elsewhere, because nothing here is to be changed."""
        import tempfile  # noqa: PLC0415

        with tempfile.TemporaryDirectory(prefix="layerstore-") as directory, journal_errors(None):
            return rebuild_journal(os.path.join(directory, "journal"), left, decide, clock=self._clock)

    # -- doing -------------------------------------------------------------------------------------------------------

    def _carry_out(
        self, left: Salvaged, decide: Callable[[WriteTxn], Outcome], bad: Sequence[tuple[str, str]], source: str | None,
    ) -> tuple[Outcome, str | None]:
        reserve.open_up(self._root)   # the disk may be full
        for name, inside in (("journal", None), ("segments", "journal")):   # they may be lost, too
            parent = self._root if inside is None else self._dirs[inside]
            if not fs.exists(parent, name):
                fs.make_dir(parent, name, point="rebuild.mkdir")
            self._open(name, inside)
        left = self._take_snapshot(left, source)
        with self._made(left, decide) as (made, outcome):
            for directory, name in outcome.aside:
                self._set_aside(directory, name)
            kept = self._keep_old()
            fs.sync_filesystem(self._root, point="rebuild.sync")
            fs.put_in_place(made, "data.mdb", self._dirs["journal"], "data.mdb", point="rebuild.rename")
            fs.sync_dir(made, point="rebuild.journal.sync")   # a rename is of both directories
            for name in ("journal", "segments", "quarantine"):
                fs.sync_dir(self._dirs[name], point="rebuild.journal.sync")
        self._clear()
        for name, _ in bad:
            self._set_aside("segments", os.path.basename(name))
        return outcome, kept

    def _take_snapshot(self, left: Salvaged, source: str | None) -> Salvaged:
        """A snapshot that the new database goes by is a segment from now on, and so belongs among them."""
        newest = left.segments[-1] if left.segments else None
        if source is None or newest is None or newest.path != source:
            return left
        name = f"{newest.first:020d}-{newest.last:020d}.seg"
        with open(source, "rb") as file:
            fs.replace_file(self._dirs["segments"], name, file.read(), point="rebuild.snapshot", sync=True)
        fs.sync_dir(self._dirs["segments"], point="rebuild.snapshot.sync")
        return salvage_journal(self._path, self._config["uuid"])

    @contextmanager
    def _made(self, left: Salvaged, decide: Callable[[WriteTxn], Outcome]) -> Iterator[tuple[int, Outcome]]:
        """The new database in ``staging/rebuild/``: its directory, and what was decided."""
        self._clear()
        fs.make_dir(self._dirs["staging"], _ASIDE, point="rebuild.mkdir")
        path = os.path.join(self._path, "staging", _ASIDE, "journal")
        with journal_errors(None):
            outcome = rebuild_journal(path, left, decide, clock=self._clock)
        with fs.open_dir(path) as made:
            yield made, outcome

    def _clear(self) -> None:
        remove_tree(self._dirs["staging"], _ASIDE, point="rebuild.clear")

    def _keep_old(self) -> str | None:
        """A second name for the old database; None if there is none. What is no file is moved away."""
        quarantine = self._dirs["quarantine"]
        try:
            status = os.stat("data.mdb", dir_fd=self._dirs["journal"], follow_symlinks=False)
        except FileNotFoundError:
            return None
        for name in fs.names_in(quarantine):   # one that was interrupted may have given it a name
            if name.startswith(_KEPT) and os.path.samestat(os.stat(name, dir_fd=quarantine, follow_symlinks=False), status):
                return f"quarantine/{name}"
        keep = partial(fs.keep_as if stat.S_ISREG(status.st_mode) else fs.move, self._dirs["journal"], "data.mdb")
        return self._under_a_free_name(_KEPT, partial(keep, point="rebuild.keep"))

    def _set_aside(self, directory: str, name: str) -> None:
        move = partial(fs.move, self._dirs[directory], name, point="rebuild.set-aside")
        self._under_a_free_name(f"{directory}-{name}", move)

    def _under_a_free_name(self, name: str, move: Callable[[int, str], None]) -> str:
        number = 0
        while True:
            try:
                move(self._dirs["quarantine"], f"{name}-{number}")
            except FileExistsError:
                number += 1
            else:
                return f"quarantine/{name}-{number}"


