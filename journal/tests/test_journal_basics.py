"""Appending, projecting, reading: the ordinary life of a journal."""

import threading

import pytest

import parcels
from layerjournal import (
    AlreadyOpenError, ClosedError, ExistsError, Journal, MissingError, ProjectionError, ReadOnlyError, UsageError,
)
from parcels import Parcels, move, pack, state


def test_a_record_changes_the_tables_in_the_same_transaction(journal):
    pack(journal, "a", "b")
    assert state(journal) == {"a": "packed", "b": "packed"}


def test_later_reads_of_an_update_see_what_it_appended(journal):
    def work(txn):
        move(txn, "a", "packed")
        seen = txn.get("parcels", "a"), [key for key, _ in txn.scan("where")]
        move(txn, "a", "sent")
        return seen

    assert journal.update("x", work) == ({"state": "packed"}, ["packed/a"])
    assert state(journal) == {"a": "sent"}


def test_the_records_of_one_update_are_one_group(journal):
    pack(journal, "a", "b")
    pack(journal, "c")
    with journal.read() as view:
        assert [(r.seq, r.group) for r in view.records()] == [(1, 1), (2, 2), (3, 2), (4, 4)]


def test_an_update_that_raises_changes_nothing(journal):
    def work(txn):
        move(txn, "a", "packed")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        journal.update("x", work)
    assert state(journal) == {}
    pack(journal, "b")   # and the writer's lock is free
    with journal.read() as view:
        assert view.head()[0] == 2


def test_a_record_that_the_projector_refuses_changes_nothing(journal):
    with pytest.raises(ProjectionError, match="from '' to 'here'"):
        journal.update("x", lambda txn: [move(txn, "a", "packed"), move(txn, "b", "here")])
    assert state(journal) == {}


def test_a_failed_append_cannot_be_swallowed_and_committed(journal):
    def work(txn):
        move(txn, "a", "packed")
        try:
            move(txn, "a", "here")
        except ProjectionError:
            pass

    with pytest.raises(UsageError, match="cannot be committed"):
        journal.update("x", work)
    assert state(journal) == {}


def test_an_update_without_a_record_commits_nothing(path):
    passed = []
    with parcels.create(path, hook=parcels.recorder(passed)) as journal:
        passed.clear()
        assert journal.update("look", lambda txn: txn.head()[0]) == 1
    assert passed == []


def test_the_commit_of_an_update_is_a_fault_point_of_its_name(path):
    passed = []
    with parcels.create(path, hook=parcels.recorder(passed)) as journal:
        passed.clear()
        pack(journal, "a")
    assert passed == [("txn.pack", "before"), ("txn.pack", "after")]


def test_updates_do_not_nest_and_say_so_instead_of_hanging(journal):
    with pytest.raises(UsageError, match="nest"):
        journal.update("outer", lambda txn: pack(journal, "a"))


def test_a_reader_keeps_its_snapshot_while_others_write(journal):
    pack(journal, "a")
    with journal.read() as view:
        pack(journal, "b")
        assert [key for key, _ in view.scan("parcels")] == ["a"]
        assert view.head()[0] == 2


def test_a_scan_is_in_the_order_of_the_keys_bytes(journal):
    names = ["b", "a", "ä", "a\x00", "aa", "Z", "\U0001f4e6"]
    pack(journal, *names)
    with journal.read() as view:
        assert [key for key, _ in view.scan("parcels")] == sorted(names, key=str.encode)
        assert [key for key, _ in view.scan("parcels", "a")] == ["a", "a\x00", "aa"]


def test_keys_are_told_without_a_row_being_read(journal, monkeypatch):
    names = ["b", "a", "ä", "a\x00"]
    pack(journal, *names)
    monkeypatch.setattr("layerjournal.txn.load_row", None)
    with journal.read() as view:
        assert list(view.keys("parcels")) == sorted(names, key=str.encode)
        with pytest.raises(UsageError):
            list(view.keys("nowhere"))
    assert journal.update("look", lambda t: list(t.keys("parcels"))) == sorted(names, key=str.encode)


def test_a_scan_goes_on_rightly_while_the_table_changes():
    class Clearing(Parcels):
        def project(self, view, record):
            if record.trigger == "clear":
                for key, _ in view.scan("where"):
                    view.delete("where", key)
            else:
                super().project(view, record)

    import tempfile
    with tempfile.TemporaryDirectory() as directory, \
            Journal.create(f"{directory}/j", Clearing(), uuid="u") as journal:
        pack(journal, *(f"p{n:03}" for n in range(300)))
        journal.update("clear", lambda t: t.append(txid="", entity="all", from_state="", to_state="", trigger="clear"))
        with journal.read() as view:
            assert list(view.scan("where")) == []
        assert journal.verify().sound


def test_the_longest_key_can_be_written_and_scanned(journal):
    pack(journal, "k" * 504)   # 511 with what the table 'where' puts before it
    with journal.read() as view:
        assert len(list(view.scan("where"))) == 1
    for key in ("", "k" * 512):
        with journal.read() as view, pytest.raises(UsageError, match="bytes"):
            view.get("parcels", key)


def test_records_can_be_read_from_the_middle(journal):
    pack(journal, "a", "b", "c", "d")
    with journal.read() as view:
        assert [r.seq for r in view.records(after=2, upto=4)] == [3, 4]
        assert list(view.records(after=5)) == [] == list(view.records(after=99))


def test_a_row_that_was_read_is_the_readers_own():
    from layerjournal import DictView
    view = DictView({"t": {"k": {"list": [1]}}})
    view.get("t", "k")["list"].append(2)
    assert view.get("t", "k") == {"list": [1]}


def test_only_the_projectors_tables_can_be_reached(journal):
    with journal.read() as view, pytest.raises(UsageError, match="no table 'nosuch'"):
        view.get("nosuch", "a")


def test_a_projector_cannot_touch_the_journals_own_tables(path):
    class Thief(Parcels):
        def project(self, view, record):
            view.put(".meta", "journal", {})

    with Journal.create(path, Thief(), uuid="u") as journal:
        with pytest.raises(UsageError, match="no table '.meta'"):
            pack(journal, "a")


def test_the_journals_own_entity_is_refused(journal):
    with pytest.raises(UsageError, match="the journal's own"):
        journal.update("x", lambda t: t.append(txid="", entity="journal", from_state="", to_state="", trigger="drop"))


@pytest.mark.parametrize("names", [("Upper",), (".meta",), ("a", "a"), ("",), ("a b",)])
def test_table_names_are_checked(path, names):
    projector = Parcels()
    projector.tables = names
    with pytest.raises(UsageError):
        Journal.create(path, projector, uuid="u")
    assert not path.exists()


def test_what_was_written_is_there_after_reopening(path):
    with parcels.create(path, schema="parcels 1") as journal:
        pack(journal, "a")
        head = None
        with journal.read() as view:
            head = view.head()
    with parcels.reopen(path) as journal:
        assert (journal.uuid, journal.schema) == (parcels.UUID, "parcels 1")
        assert state(journal) == {"a": "packed"}
        with journal.read() as view:
            assert view.head() == head


def test_the_first_record_says_what_the_journal_is(path):
    with parcels.create(path, schema="parcels 1") as journal, journal.read() as view:
        first = next(view.records())
    assert (first.entity, first.trigger) == ("journal", "create")
    assert first.payload == {"uuid": parcels.UUID, "format": 1, "schema": "parcels 1", "tables": ["parcels", "where"]}


def test_another_projector_is_refused_at_open(path):
    parcels.create(path).close()
    other = Parcels()
    other.tables = ("parcels",)
    with pytest.raises(UsageError, match="the projector"):
        Journal.open(path, other)
    parcels.reopen(path).close()   # and nothing is left open by the refusal


def test_creating_over_something_and_opening_nothing_are_refused(path, tmp_path):
    with pytest.raises(MissingError):
        parcels.reopen(path)
    path.write_text("mine")
    with pytest.raises(ExistsError):
        parcels.create(path)
    assert path.read_text() == "mine"


def test_a_process_opens_a_journal_once(journal, path, tmp_path):
    (tmp_path / "alias").symlink_to(path)
    for name in (path, tmp_path / "alias"):
        with pytest.raises(AlreadyOpenError):
            parcels.reopen(name)
    pack(journal, "a")   # and the first handle is none the worse


def test_a_closed_journal_refuses_everything_and_closing_twice_is_fine(path):
    journal = parcels.create(path)
    journal.close()
    journal.close()
    with pytest.raises(ClosedError):
        pack(journal, "a")
    with pytest.raises(ClosedError), journal.read():
        pass


def test_a_readonly_journal_reads_beside_a_writer_and_writes_nothing(path):
    parcels.create(path).close()

    def beside():
        with parcels.reopen(path, readonly=True) as journal:
            before = state(journal)
            try:
                pack(journal, "x")
            except ReadOnlyError:
                return before
        return None

    with parcels.reopen(path) as journal:
        pack(journal, "a")
    assert parcels.in_child(beside) == (0, {"a": "packed"})


def test_many_threads_write_and_read_at_once(journal):
    def write(n):
        for i in range(25):
            pack(journal, f"{n}-{i}")
            with journal.read() as view:
                assert view.get("parcels", f"{n}-{i}") == {"state": "packed"}

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(state(journal)) == 100
    assert journal.verify().sound


def test_a_transaction_used_after_its_end_is_refused(journal):
    with journal.read() as view:
        pass
    kept = []
    journal.update("x", lambda txn: kept.append(txn) or move(txn, "a", "packed"))
    for use in (lambda: view.get("parcels", "a"), lambda: move(kept[0], "b", "packed")):
        with pytest.raises(UsageError, match="after its end"):
            use()
