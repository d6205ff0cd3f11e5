"""What happens once in a long life: races while a journal is made, opened or closed, and what is left of it."""

import ctypes
import errno
import fcntl
import gc
import os
import shutil
import threading
import weakref
from contextlib import contextmanager

import lmdb
import pytest

import parcels
from layerjournal import BusyError, ClosedError, DamagedError, HostError, Journal, MissingError, Replay, UsageError
from layerjournal import archive, creating, effects, folding, gate, lockfile, namespace
from layerjournal import journal as journal_module
from layerjournal import replay as replay_module
from parcels import Parcels, mark, pack, state

# -- making one -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_a_directory_aside_that_its_maker_takes_away_between_look_and_lock_is_made_again(path, monkeypatch, change):
    real, times = creating.locked, []

    def locked(where, *, wait):
        held = real(where, wait=wait)
        if not times:
            times.append(where)
            fd = held.__enter__()
            os.rmdir(where)
            if change == "replaced":
                os.mkdir(where)
            os.close(os.dup(fd))
            return _entered(held, fd)
        return held

    monkeypatch.setattr(creating, "locked", locked)
    parcels.create(path).close()
    assert times
    with parcels.reopen(path) as journal:
        assert journal.verify().sound


class _entered:
    def __init__(self, manager, fd):
        self.manager, self.fd = manager, fd

    def __enter__(self):
        return self.fd

    def __exit__(self, *exc):
        return self.manager.__exit__(*exc)


def test_a_directory_aside_that_is_gone_before_it_can_be_locked_is_made_again(path):
    gone = []

    def hook(name, when):
        if (name, when) == ("journal.create.mkdir", "after") and not gone:
            gone.append(os.rmdir(f"{path}.new"))

    parcels.create(path, hook=hook).close()
    assert gone


def test_a_journal_is_not_restored_with_other_tables(path, tmp_path):
    with parcels.create(path) as journal:
        pack(journal, "a")
        mark(journal)
        made = journal.archive().path

    class Others(Parcels):
        tables = ("parcels", "elsewhere")

    with pytest.raises(UsageError, match="hold the tables"):
        Journal.restore(tmp_path / "other", Others(), [made])


def test_a_rename_goes_over_nothing(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(FileExistsError):
        effects.Effects().rename_new(str(tmp_path / "a"), str(tmp_path / "b"), point="x")


def test_an_error_of_the_host_is_said_to_be():
    with pytest.raises(HostError), effects.host_errors("trying"):
        raise OSError(errno.EMFILE, "too many")


# -- opening one ------------------------------------------------------------------------------------------------------


def test_a_directory_without_an_environment_is_no_journal(path):
    path.mkdir()
    with pytest.raises(MissingError):
        parcels.reopen(path)


def test_an_empty_log_is_damage(path):
    parcels.create(path).close()
    with lmdb.open(str(path), max_dbs=16, lib_version=0) as env:
        log = env.open_db(b".log", create=False)
        with env.begin(write=True) as txn:
            txn.drop(log, delete=False)
    with pytest.raises(DamagedError, match="empty"):
        parcels.reopen(path)


def test_a_log_that_ends_where_the_archive_does_is_damage(path):
    with parcels.create(path) as journal:
        parcels.mark(journal)
        archived = journal.archive().last
    with lmdb.open(str(path), max_dbs=16, lib_version=0) as env:
        log = env.open_db(b".log", create=False)
        with env.begin(write=True) as txn:
            txn.drop(log, delete=False)
            txn.put(archived.to_bytes(8, "big"), bytes(40), db=log)
    with pytest.raises(DamagedError, match="is archived"):
        parcels.reopen(path)


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(namespace, "PATIENCE_SECONDS", 0.05)


@pytest.mark.parametrize("mode", [fcntl.LOCK_EX, fcntl.LOCK_SH], ids=["exclusively", "shared, before it is named"])
def test_a_namespace_file_that_stays_locked_is_busy(tmp_path, hurried, mode):
    with open(tmp_path / "pidns", "w+") as file:
        fcntl.flock(file, mode)
        with pytest.raises(BusyError, match="stays locked"):
            namespace.enter(str(tmp_path / "pidns"), str(tmp_path / "data.mdb"))
    membership = namespace.enter(str(tmp_path / "pidns"), str(tmp_path / "data.mdb"))
    membership.close()
    membership.close()   # once is enough, twice is no harm


# -- closing, and being alone ------------------------------------------------------------------------------------------


def test_two_who_want_to_be_alone_wait_for_each_other_and_not_for_ever():
    door, inside, leave = gate.Gate(patience=0.05), threading.Event(), threading.Event()

    def first():
        with door.alone("the first is in"):
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(60)
    try:
        with pytest.raises(BusyError, match="another thread"), door.alone("the second waits"):
            pass
    finally:
        leave.set()
        thread.join()
    with door.alone("now it is free"):
        pass


@pytest.mark.parametrize("use", [
    state, lambda journal: pack(journal, "a"), lambda journal: journal.copy_to(f"{journal.path}-copy"),
], ids=["read", "update", "copy"])
def test_who_waits_at_the_gate_while_the_journal_is_closed_is_told_so(path, monkeypatch, use):
    journal = parcels.create(path)
    real = journal._engine._gate.inside

    @contextmanager
    def inside():
        with monkeypatch.context() as patch:
            patch.setattr(journal._engine._gate, "inside", real)
            journal.close()
        with real():
            yield

    monkeypatch.setattr(journal._engine._gate, "inside", inside)
    with pytest.raises(ClosedError):
        use(journal)


@pytest.mark.parametrize("change", [lambda engine: engine._grow(1 << 20), lambda engine: engine._adopt_map()], ids=[
    "grow", "adopt",
])
def test_who_would_move_the_map_of_a_journal_that_is_closed_meanwhile_is_told_so(path, change):
    journal = parcels.create(path)
    journal.close()
    with pytest.raises(ClosedError):
        change(journal._engine)


def test_what_was_open_is_let_go_of_without_waiting_for_cycles_to_be_collected(path):
    journal = parcels.create(path)
    pack(journal, "a")
    engine = weakref.ref(journal._engine)
    journal.close()
    gc.disable()
    try:
        del journal
        assert engine() is None
    finally:
        gc.enable()


def test_a_closed_replay_says_so(path):
    parcels.create(path).close()
    replay = Replay.open([path], Parcels())
    replay.close()
    replay.close()
    with pytest.raises(ClosedError):
        replay.head()


# -- looking back -------------------------------------------------------------------------------------------------------


def test_pages_that_are_damaged_are_told_with_what_the_segments_say_and_nothing_else_is_read(journal, monkeypatch):
    pack(journal, "a")
    mark(journal)
    journal.archive()
    monkeypatch.setattr(journal_module, "structural_problems", lambda path: ["page 7 is used twice"])
    report = journal.verify()
    assert [(finding.code, finding.message) for finding in report.findings] == [("structure", "page 7 is used twice")]
    assert (report.segments, report.records) == (1, 2)


def test_directories_and_segments_are_not_replayed_together(path, tmp_path):
    with parcels.create(path) as journal:
        pack(journal, "a")
        mark(journal)
        made = journal.archive().path
    with pytest.raises(UsageError, match="not both"):
        Replay.open([path, made], Parcels())


def test_a_directory_that_holds_a_journal_is_replayed_as_that_journal(path, tmp_path):
    parcels.create(path).close()
    shutil.copytree(path, tmp_path / "store" / "journal")
    with Replay.open([tmp_path / "store"], Parcels()) as replay:
        assert replay.head()[0] == 1


def test_records_are_taken_from_segments_and_log_as_far_as_asked(journal, tmp_path):
    for name in "abc":
        pack(journal, name)
        mark(journal)
        journal.archive() if name != "c" else None
    journal.copy_to(tmp_path / "copy")
    with Replay.open([tmp_path / "copy"], Parcels()) as replay:
        last = replay.head()[0]
        for after in range(last + 1):
            for upto in range(last + 1):
                assert [r.seq for r in replay.records(after=after, upto=upto)] == list(range(after + 1, upto + 1))


def test_tables_can_be_shown_to_people(journal):
    pack(journal, "a", seal=b"\xff")
    shown = folding.as_json(journal.fold())
    assert shown["seq"] == 2
    assert shown["tables"]["parcels"]["a"] == {"seal": "ff", "state": "packed"}


def test_a_mark_that_covers_every_record_archives_every_whole_group():
    class Record:
        def __init__(self, seq, group):
            self.seq, self.group = seq, group

    class View:
        def meta(self):
            return {"low_water": 4, "archived": 0}

        def records(self):
            return iter([Record(1, 1), Record(2, 2), Record(3, 2), Record(4, 4)])

    assert archive.whole_groups(View()) == (4, 4)


# -- what is missing inside ---------------------------------------------------------------------------------------------


def without(path, change):
    parcels.create(path).close()
    with lmdb.open(str(path), max_dbs=16, lib_version=0) as env:
        change(env)
    return path


def drop_table(env):
    where = env.open_db(b"where", create=False)
    with env.begin(write=True) as txn:
        txn.drop(where, delete=True)


def test_a_journal_that_lost_a_table_is_damaged_for_a_program_and_for_a_replay(path):
    without(path, drop_table)
    with pytest.raises(DamagedError, match="the tables"):
        parcels.reopen(path)
    with pytest.raises(DamagedError, match="the tables"):
        Replay.open([path], Parcels())


def test_a_journal_that_lost_its_own_row_is_damaged(path):
    def drop_row(env):
        meta = env.open_db(b".meta", create=False)
        with env.begin(write=True) as txn:
            txn.delete(b"journal", db=meta)

    without(path, drop_row)
    with pytest.raises(DamagedError, match="own row"):
        parcels.reopen(path)


def test_a_journal_with_damaged_pages_is_not_replayed(path, monkeypatch):
    parcels.create(path).close()
    monkeypatch.setattr(replay_module, "structural_problems", lambda data: ["page 7 is used twice"])
    with pytest.raises(DamagedError, match="damaged in 1 places"):
        Replay.open([path], Parcels())


def test_dropping_no_more_than_is_there_drops_nothing(journal):
    pack(journal, "a")
    mark(journal)
    journal.archive()
    assert journal.drop_segments(keep=5) == []


def test_a_short_write_of_a_segment_is_gone_on_with(journal, monkeypatch):
    pack(journal, "a", noise="x" * 1000)
    mark(journal)
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:7]))
    made = journal.archive()
    monkeypatch.undo()
    assert [record.seq for record in made.records()] == [1, 2]
    assert journal.verify().sound


def test_what_has_no_more_to_be_said_of_is_the_hosts_fault():
    with pytest.raises(HostError), effects.host_errors("trying"):
        raise OSError(errno.EXDEV, "elsewhere")


@pytest.mark.parametrize(("answers", "raises"), [
    ([errno.EINTR], None), ([errno.EOPNOTSUPP], None), ([errno.ENOSYS], None), ([errno.EINTR, errno.ENOSPC], errno.ENOSPC),
], ids=["interrupted", "not supported", "not known", "full"])
def test_the_lock_files_space_is_asked_for_again_done_without_or_refused(tmp_path, monkeypatch, answers, raises):
    left = list(answers)

    class Libc:
        def fallocate(self, *_args):
            ctypes.set_errno(left[0] if left else 0)
            return -1 if left and left.pop(0) else 0

    monkeypatch.setattr(lockfile.ctypes, "CDLL", lambda *_a, **_k: Libc())
    if raises is None:
        lockfile.reserve(str(tmp_path), 1)
    else:
        with pytest.raises(OSError) as told:
            lockfile.reserve(str(tmp_path), 1)
        assert told.value.errno == raises
    assert left == []


def test_an_engine_whose_environment_never_opened_is_given_up(path, monkeypatch):
    parcels.create(path).close()

    def refuse(*_args, **_kwargs):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(lmdb, "open", refuse)
        with pytest.raises(MemoryError):
            parcels.reopen(path)
    parcels.reopen(path).close()
