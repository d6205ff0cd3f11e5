"""A data file that somebody cuts short, removes or makes unreadable while it is open: told before it is touched."""

import errno
import os
from dataclasses import replace
from itertools import count

import pytest

import parcels
from layerjournal import DamagedError, HostError, OutcomeUnknownError
from layerjournal.engine import Engine
from parcels import in_child, move, pack, state


@pytest.mark.parametrize("length", [0, 100, 4096, 8192, 20_000])
@pytest.mark.parametrize("use", [
    lambda journal: state(journal), lambda journal: pack(journal, "new"), lambda journal: journal.verify(),
    lambda journal: journal.copy_to(f"{journal.path}-copy"),
], ids=["read", "update", "verify", "copy"])
def test_a_data_file_that_somebody_truncates_while_it_is_open_is_refused_instead_of_killing_the_process(written, length, use):
    def child():
        with parcels.reopen(written) as journal:
            os.truncate(written / "data.mdb", length)
            use(journal)

    status, said = in_child(child)
    assert (status, said.split(":")[0]) == (70, "DamagedError")
    assert "truncated while it is open" in said


def test_what_another_process_made_longer_and_somebody_cut_off_again_is_refused(written):
    with parcels.reopen(written) as journal:
        before = os.path.getsize(written / "data.mdb")
        in_child(lambda: parcels.reopen(written).update("grow", lambda txn: [move(txn, f"g{n}", "packed") for n in range(400)]))
        assert os.path.getsize(written / "data.mdb") > before
        os.truncate(written / "data.mdb", before)
        with pytest.raises(DamagedError, match="truncated while it is open"):
            state(journal)


def test_a_data_file_that_was_short_once_is_not_used_when_somebody_makes_it_long_again(written):
    size = os.path.getsize(written / "data.mdb")
    with parcels.reopen(written) as journal:
        os.truncate(written / "data.mdb", size // 2)
        with pytest.raises(DamagedError):
            state(journal)
        os.truncate(written / "data.mdb", size)
        with pytest.raises(DamagedError):
            pack(journal, "new")


def test_a_data_file_that_is_removed_while_it_is_open_is_refused(written):
    with parcels.reopen(written) as journal:
        os.unlink(written / "data.mdb")
        with pytest.raises(DamagedError, match="removed while it is open"):
            pack(journal, "new")


@pytest.fixture
def sparse(written, monkeypatch):
    """An open journal that says it is longer than its file, and by how much; and how often that is walked."""
    with parcels.reopen(written) as journal:
        engine, walked, more = journal._engine, [], [1 << 30]
        real = engine._said
        monkeypatch.setattr(engine.mapped, "_problems", lambda path: walked.append(path) or [])
        monkeypatch.setattr(engine, "_said", lambda: replace(real(), length=more[0]))
        yield journal, more, walked


def test_a_data_file_whose_last_pages_were_never_written_is_used(sparse):
    journal, _, walked = sparse
    assert state(journal) == state(journal)
    assert len(walked) == 1, "that it is whole is found out once"


def test_problems_of_a_data_file_that_others_change_while_it_is_walked_tell_nothing(sparse, monkeypatch):
    journal, _, walked = sparse
    engine, numbers = journal._engine, count(1 << 40)
    said = engine._said
    monkeypatch.setattr(engine.mapped, "_problems", lambda path: walked.append(path) or ["a page is gone"])
    with monkeypatch.context() as busy:
        busy.setattr(engine, "_said", lambda: replace(said(), transaction=next(numbers)))
        state(journal)
    assert len(walked) == 3, "it is walked again, three times at most"
    with pytest.raises(DamagedError, match="truncated while it is open"):
        state(journal)


def test_a_data_file_that_is_as_long_as_it_says_at_a_second_look_is_not_walked(sparse, monkeypatch):
    journal, _, walked = sparse
    engine, first = journal._engine, iter([1 << 30])
    said = Engine._said
    monkeypatch.setattr(engine, "_said", lambda: replace(said(engine), length=next(first, said(engine).length)))
    state(journal)
    assert next(first, None) is None, "it was looked at"
    assert walked == []


def test_a_commit_is_no_reason_to_walk_a_data_file_again_whose_last_pages_were_never_written(sparse):
    journal, _, walked = sparse
    sizes = []
    for number in range(30):
        sizes.append(os.path.getsize(f"{journal.path}/data.mdb"))
        pack(journal, f"n{number}")
    assert len(set(sizes)) < 15, "most commits left it as long as it was"
    assert len(walked) == len(set(sizes))


def test_a_data_file_that_says_more_or_is_longer_than_when_it_was_walked_is_walked_again(sparse):
    journal, more, walked = sparse
    state(journal)
    more[0] += 4096
    assert state(journal) == state(journal)
    assert len(walked) == 2
    with open(f"{journal.path}/data.mdb", "ab") as file:
        file.write(bytes(4096))
    assert state(journal) == state(journal)
    assert len(walked) == 3


@pytest.mark.parametrize("use", [state, lambda journal: pack(journal, "new")], ids=["read", "update"])
def test_a_data_file_that_must_be_walked_and_is_not_at_its_place_any_more_is_an_error_of_the_host(written, monkeypatch, use):
    with parcels.reopen(written) as journal:
        said = journal._engine._said()
        monkeypatch.setattr(journal._engine, "_said", lambda: replace(said, length=1 << 30))
        os.rename(written, f"{written}-elsewhere")
        with pytest.raises(HostError, match="No such file"):
            use(journal)
        os.rename(f"{written}-elsewhere", written)


def test_a_data_file_that_the_device_does_not_give_back_leaves_no_outcome_unknown(sparse, monkeypatch):
    journal, _, _ = sparse

    def broken(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(journal._engine.mapped, "_problems", broken)
        with pytest.raises(HostError, match="cannot be read") as caught:
            pack(journal, "new")
        assert not isinstance(caught.value, OutcomeUnknownError)
    pack(journal, "new")
