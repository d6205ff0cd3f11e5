"""What LMDB says is told by its kind: whose fault it is, and whether anything was changed."""

import errno
import os

import lmdb
import pytest

import parcels
from layerjournal import (
    AlreadyOpenError,
    BusyError,
    DamagedError,
    HostError,
    NoSpaceError,
    OutcomeUnknownError,
    PoisonedError,
    ReadOnlyError,
    UsageError,
)
from layerjournal import engine as engine_module
from parcels import pack, state

FULL = os.strerror(errno.ENOSPC)


class Env:
    """LMDB's environment, with some of its calls replaced."""

    def __init__(self, env, **instead):
        self.__dict__.update(instead, _env=env)

    def __getattr__(self, name):
        return getattr(self._env, name)


def failing(error, times=1 << 30, then=None):
    left = [times]

    def call(*args, **kwargs):
        if left[0] > 0:
            left[0] -= 1
            raise error
        return then(*args, **kwargs)

    return call


def replace(journal, **calls):
    env = journal._engine.env
    journal._engine.env = Env(env, **{name: make(getattr(env, name)) for name, make in calls.items()})


KINDS = [
    (lmdb.DiskError("disk"), NoSpaceError), (lmdb.Error(FULL), NoSpaceError), (lmdb.CorruptedError("c"), DamagedError),
    (lmdb.PageNotFoundError("p"), DamagedError), (lmdb.InvalidError("i"), DamagedError),
    (lmdb.BadTxnError("b"), UsageError), (lmdb.PanicError("p"), OutcomeUnknownError), (lmdb.Error("other"), HostError),
    (lmdb.Error(os.strerror(errno.EMFILE)), BusyError), (lmdb.Error(os.strerror(errno.EROFS)), ReadOnlyError),
]
by_kind = pytest.mark.parametrize(("error", "expected"), KINDS, ids=lambda v: getattr(v, "__name__", type(v).__name__))


@by_kind
def test_a_read_that_cannot_begin_is_told_by_kind(journal, error, expected):
    replace(journal, begin=lambda real: failing(error, 1, real))
    with pytest.raises(expected), journal.read():
        pass
    assert state(journal) == {}


@by_kind
def test_an_error_inside_a_read_is_told_by_kind(journal, error, expected):
    with pytest.raises(expected), journal.read():
        raise error


@by_kind
def test_an_update_that_cannot_begin_changes_nothing(journal, error, expected):
    replace(journal, begin=lambda real: failing(error, 1, real))
    with pytest.raises(expected):
        pack(journal, "a")
    assert state(journal) == {}


def test_an_error_inside_an_update_changes_nothing(journal):
    def damaged(txn):
        parcels.move(txn, "a", "packed")
        raise lmdb.CorruptedError("x")

    with pytest.raises(DamagedError):
        journal.update("x", damaged)
    assert state(journal) == {}


@pytest.mark.parametrize(("error", "expected"), [
    (lmdb.Error("xyz already open in this process"), AlreadyOpenError), (lmdb.DiskError("d"), NoSpaceError),
    (lmdb.InvalidError("i"), DamagedError), (lmdb.VersionMismatchError("v"), DamagedError),
    (lmdb.CorruptedError("c"), DamagedError), (lmdb.Error("other"), HostError),
], ids=lambda v: getattr(v, "__name__", str(v)))
def test_what_keeps_an_environment_from_being_opened_is_told_by_kind(path, monkeypatch, error, expected):
    parcels.create(path).close()
    with monkeypatch.context() as patch:
        patch.setattr(lmdb, "open", failing(error))
        with pytest.raises(expected):
            parcels.reopen(path)
    parcels.reopen(path).close()


def test_an_environment_that_is_no_journal_is_damaged(path):
    path.mkdir()
    with lmdb.open(str(path), max_dbs=2, lib_version=0) as env, env.begin(write=True) as txn:
        txn.put(b"a", b"b")
    with pytest.raises(DamagedError, match="is damaged"):
        parcels.reopen(path)


def test_an_environment_of_other_tables_is_damaged(path):
    path.mkdir()
    with lmdb.open(str(path), max_dbs=2, lib_version=0) as env:
        env.open_db(b"a")
    with pytest.raises(DamagedError, match="the tables"):
        parcels.reopen(path)


# -- commits -----------------------------------------------------------------------------------------------------------


def failing_commit(path, error):
    def hook(name, when):
        if (name, when) == ("txn.pack", "before"):
            raise error

    parcels.create(path).close()
    return parcels.reopen(path, hook=hook)


def test_a_commit_for_which_there_is_no_space_changed_nothing(path):
    with failing_commit(path, lmdb.Error(FULL)) as journal:
        with pytest.raises(NoSpaceError):
            pack(journal, "a")
        assert state(journal) == {}
        journal.update("other", lambda txn: parcels.move(txn, "b", "packed"))


def test_a_commit_that_fails_otherwise_poisons_the_handle(path):
    with failing_commit(path, lmdb.Error(os.strerror(errno.EIO))) as journal:
        with pytest.raises(OutcomeUnknownError):
            pack(journal, "a")
        with pytest.raises(PoisonedError):
            pack(journal, "b")


def test_an_eio_on_a_disk_where_nothing_is_free_is_the_full_disk(path, monkeypatch):
    class Full:
        f_bfree = f_bavail = 1
        f_frsize = 4096
        f_flag = 0

    with failing_commit(path, lmdb.Error(os.strerror(errno.EIO))) as journal:
        monkeypatch.setattr(os, "statvfs", lambda where: Full)
        with pytest.raises(NoSpaceError):
            pack(journal, "a")


def test_when_the_environment_is_given_up_even_a_full_disk_leaves_the_outcome_unknown(path):
    with failing_commit(path, lmdb.DiskError("d")) as journal:
        begin = journal._engine.env.begin
        replace(journal, begin=lambda real: lambda *a, **k: begin(*a, **k) if k.get("write") else failing(lmdb.PanicError("p"))())
        with pytest.raises(OutcomeUnknownError):
            pack(journal, "a")


# -- the map -----------------------------------------------------------------------------------------------------------


def test_a_map_that_another_process_grew_is_adopted_by_reads_and_updates(journal):
    replace(journal, begin=lambda real: failing(lmdb.MapResizedError("grown"), 1, real))
    assert state(journal) == {}
    replace(journal, begin=lambda real: failing(lmdb.MapResizedError("grown"), 1, real))
    pack(journal, "a")
    assert state(journal) == {"a": "packed"}


def test_a_map_that_never_stops_growing_is_busy(journal):
    replace(journal, begin=lambda real: failing(lmdb.MapResizedError("grown")))
    with pytest.raises(BusyError), journal.read():
        pass
    with pytest.raises(BusyError):
        pack(journal, "a")


def test_a_map_that_never_stops_growing_while_it_is_opened_is_busy(path, monkeypatch):
    parcels.create(path).close()
    real = lmdb.open
    with monkeypatch.context() as patch:
        patch.setattr(lmdb, "open", lambda *a, **k: Env(real(*a, **k), open_db=failing(lmdb.MapResizedError("grown"))))
        with pytest.raises(BusyError):
            parcels.reopen(path)


def test_there_is_an_end_to_growing(path, monkeypatch):
    with parcels.create(path, map_size=1 << 20) as journal:
        monkeypatch.setattr(engine_module, "MAX_MAP", 1 << 20)
        with pytest.raises(NoSpaceError, match="has reached"):
            pack(journal, "a", data=b"x" * (2 << 20))
        assert state(journal) == {}
        pack(journal, "b")


def test_a_map_that_another_thread_has_grown_already_is_not_grown_again(path):
    with parcels.create(path, map_size=1 << 20) as journal:
        journal._engine._grow(1 << 19)
        assert journal._engine.env.info()["map_size"] == 1 << 20


def test_a_map_that_cannot_be_moved_is_the_hosts_fault(path):
    with parcels.create(path, map_size=1 << 20) as journal:
        replace(journal, set_mapsize=lambda real: failing(lmdb.Error("no address space")))
        with pytest.raises(HostError, match="cannot be made"):
            pack(journal, "a", data=b"x" * (2 << 20))
        assert state(journal) == {}


def test_a_copy_that_fails_is_told_by_kind(journal, tmp_path):
    replace(journal, copy=lambda real: failing(lmdb.Error(FULL)))
    with pytest.raises(NoSpaceError):
        journal.copy_to(tmp_path / "copy")


def test_a_map_that_is_full_only_at_the_commit_grows_and_the_update_runs_again(path):
    left = [lmdb.MapFullError("full")]

    def hook(name, when):
        if (name, when) == ("txn.pack", "before") and left:
            raise left.pop()

    parcels.create(path, map_size=1 << 20).close()
    with parcels.reopen(path, hook=hook, map_size=1 << 20) as journal:
        pack(journal, "a")
        assert state(journal) == {"a": "packed"}
        assert journal._engine.env.info()["map_size"] == 2 << 20


@pytest.mark.parametrize(("free", "expected"), [(1 << 30, HostError), (1, NoSpaceError)], ids=["free", "full"])
def test_an_eio_while_tables_are_opened_is_the_hosts_or_the_full_disk(path, monkeypatch, free, expected):
    class Status:
        f_bfree = f_bavail = free
        f_frsize = 4096
        f_flag = 0

    parcels.create(path).close()
    real = lmdb.open
    with monkeypatch.context() as patch:
        patch.setattr(lmdb, "open", lambda *a, **k: Env(real(*a, **k), open_db=failing(lmdb.Error(os.strerror(errno.EIO)))))
        patch.setattr(os, "statvfs", lambda where: Status)
        with pytest.raises(expected):
            parcels.reopen(path)
    parcels.reopen(path).close()
