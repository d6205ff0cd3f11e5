"""What a damaged journal still proves, going on from it, and snapshots of a journal that others write to."""

import os
import shutil
import threading

import lmdb
import pytest

import parcels
from layerjournal import (
    ExistsError,
    Journal,
    Replay,
    RowError,
    UsageError,
    archive,
    canonical_dump,
    salvage,
)
from layerjournal.salvage import best_chain
from layerjournal.segment import load
from parcels import Parcels, mark, pack, recorder

PAGE = 4096


@pytest.fixture
def written(path):
    """Two segments, then a log: records 1 to 30."""
    with parcels.create(path) as journal:
        for n in range(2):
            pack(journal, *(f"{n}-{m}" for m in range(5)))
            mark(journal)
            journal.archive()
        for n in range(12):
            pack(journal, f"log{n}", text="x" * (9000 if n == 6 else 600))
        truth = (canonical_dump(journal.fold()), end(journal))
    return path, truth


def end(journal):
    with journal.read() as view:
        return view.head()


def left(path, *more):
    return salvage(str(path), parcels.UUID, str(path / "segments"), more)


def names(path):
    return sorted(os.listdir(path / "segments"))


def gone_on(path, what, then=lambda txn: None):
    """Rebuild beside *path*, put the new data file in, and open it."""
    Journal.rebuild(path.parent / "new", Parcels(), what, then, clock=parcels.Clock())
    os.replace(path.parent / "new" / "data.mdb", path / "data.mdb")
    shutil.rmtree(path.parent / "new")
    return parcels.reopen(path)


def forget_the_transaction_before(path):
    """Both meta pages know what was done last."""
    with lmdb.open(str(path), max_dbs=16, lib_version=0) as env, env.begin(write=True) as txn:
        txn.put(b"log0", txn.get(b"log0", db=(db := env.open_db(b"parcels", txn=txn, create=False))), db=db)


def dumped(journal):
    return canonical_dump(journal.fold())


# -- what is proven -----------------------------------------------------------------------------------------------------


def test_of_a_sound_journal_everything_is_proven(written):
    path, (dump, head) = written
    found = left(path)
    assert (found.whole, found.head, found.seen, found.bad, found.problems) == (True, head, head[0], (), ())
    with gone_on(path, found) as journal:
        assert dumped(journal) == dump
        assert journal.verify().sound
        with journal.read() as view:
            restored = list(view.records())[-1]
    assert (restored.trigger, restored.payload["old_head"], restored.payload["old_link"]) == ("restore", *head)


def test_a_row_that_was_altered_takes_nothing_from_the_log(written):
    path, (dump, _) = written
    with lmdb.open(str(path), max_dbs=16, lib_version=0) as env:
        with env.begin(write=True) as txn:
            txn.put(b"log3", b"rubbish!", db=env.open_db(b"parcels", txn=txn, create=False))
    with gone_on(path, left(path)) as journal:
        assert dumped(journal) == dump


def test_a_lost_file_leaves_the_archive(written):
    path, _ = written
    os.unlink(path / "data.mdb")
    found = left(path)
    assert (found.whole, found.tail, found.seen, len(found.segments)) == (False, (), None, 2)
    with gone_on(path, found) as journal:
        assert parcels.state(journal).keys() == {f"{n}-{m}" for n in range(2) for m in range(5)}
        assert journal.verify().sound
        pack(journal, "more")
        mark(journal)
        journal.archive()
        assert journal.verify().sound


def test_a_page_of_the_log_that_is_lost_ends_it_before_the_group_that_may_be_cut(written):
    path, (_, head) = written
    data = (path / "data.mdb").read_bytes()
    shown = set()
    for start in range(2 * PAGE, len(data), PAGE):
        (path / "data.mdb").write_bytes(data[:start] + bytes(PAGE) + data[start + PAGE:])
        found = left(path)
        assert not found.whole or found.head == head
        if not found.whole and found.tail:
            shown.add(found.head[0])
            assert found.tail[-1][0].group == found.tail[-1][0].seq
            assert found.problems
    assert shown, "no page of the log was hit"


def test_a_truncated_file_still_gives_what_is_in_it(written):
    path, (_, head) = written
    data = (path / "data.mdb").read_bytes()
    heads = []
    for length in range(0, len(data), PAGE):
        (path / "data.mdb").write_bytes(data[:length])
        found = left(path)
        heads.append(found.head[0])
        assert len(found.segments) == 2
    assert max(heads) > found.segments[-1].last
    assert all(each <= head[0] for each in heads)


def test_a_record_that_was_altered_ends_what_is_proven(written):
    path, (_, head) = written
    with lmdb.open(str(path), max_dbs=16, lib_version=0) as env:
        with env.begin(write=True) as txn:
            log = env.open_db(b".log", txn=txn, create=False)
            key = (head[0] - 3).to_bytes(8, "big")
            txn.put(key, txn.get(key, db=log) + b"x", db=log)
    forget_the_transaction_before(path)
    found = left(path)
    assert (found.whole, found.head[0], found.seen) == (False, head[0] - 5, head[0])   # the last group may be cut


def test_a_gap_in_the_log_and_keys_that_are_none_end_what_is_proven(written):
    path, (_, head) = written
    with lmdb.open(str(path), max_dbs=16, lib_version=0) as env:
        with env.begin(write=True) as txn:
            log = env.open_db(b".log", txn=txn, create=False)
            txn.delete((head[0] - 3).to_bytes(8, "big"), db=log)
            txn.put(b"zz", b"no record", db=log)
    forget_the_transaction_before(path)
    found = left(path)
    assert (found.whole, found.head[0], found.seen) == (False, head[0] - 5, head[0])


def test_an_older_copy_does_not_pass_for_the_whole(written):
    path, _ = written
    data = (path / "data.mdb").read_bytes()
    with parcels.reopen(path) as journal:
        mark(journal)
        journal.archive()
        pack(journal, "later")
    (path / "data.mdb").write_bytes(data)
    found = left(path)
    assert (found.whole, found.tail, len(found.segments)) == (False, (), 3)
    assert "is known" in " ".join(found.problems)


def test_a_log_of_another_chain_is_not_gone_on_from(written, tmp_path):
    path, _ = written
    with parcels.create(tmp_path / "other") as other:
        pack(other, *(f"o{n}" for n in range(20)))
    shutil.copy(tmp_path / "other" / "data.mdb", path / "data.mdb")
    found = left(path)
    assert (found.whole, found.tail) == (False, ())


def test_without_anything_left_a_journal_begins_anew(tmp_path):
    (tmp_path / "journal" / "segments").mkdir(parents=True)
    path = tmp_path / "journal"
    found = left(path)
    assert found.head[0] == 0
    with gone_on(path, found, lambda txn: parcels.move(txn, "a", "packed")) as journal:
        assert journal.uuid == parcels.UUID
        assert parcels.state(journal) == {"a": "packed"}
        assert journal.verify().sound


def test_a_file_without_a_table_or_meta_page_proves_nothing(written):
    path, _ = written
    shutil.rmtree(path / "segments")
    (path / "segments").mkdir()
    with lmdb.open(str(path.parent / "empty"), max_dbs=1, lib_version=0):
        pass
    shutil.copy(path.parent / "empty" / "data.mdb", path / "data.mdb")
    assert "no table '.log'" in " ".join(left(path).problems)
    (path / "data.mdb").write_bytes(os.urandom(8 * PAGE))
    assert left(path).problems == ("it has no meta page that can be read",)


def test_what_then_appends_is_in_the_same_transaction(written):
    path, _ = written
    def fail(txn):
        parcels.move(txn, "more", "packed")
        raise KeyError("no")

    with pytest.raises(KeyError):
        gone_on(path, left(path), fail)
    assert not (path.parent / "new").exists()


def test_a_journal_is_not_rebuilt_with_other_tables(written):
    class Others(Parcels):
        tables = ("others",)

    path, _ = written
    with pytest.raises(UsageError, match="the segments hold the tables"):
        Journal.rebuild(path.parent / "new", Others(), left(path), lambda txn: None)


# -- segments ------------------------------------------------------------------------------------------------------------


def test_a_segment_that_is_not_good_is_named_and_what_is_before_it_is_gone_by(written):
    path, _ = written
    newest = path / "segments" / names(path)[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    (path / "segments" / f"{90:020}-{91:020}.seg").mkdir()
    found = left(path)
    assert [os.path.basename(name) for name, _ in found.bad] == names(path)[1:]
    assert len(found.segments) == 1 and not found.whole


def test_a_segment_of_another_journal_is_not_good(written, tmp_path):
    path, _ = written
    with Journal.create(tmp_path / "other", Parcels(), uuid="another") as other:
        mark(other)
        other.archive()
    found = left(path, *(str(tmp_path / "other" / "segments" / name) for name in names(tmp_path / "other")))
    assert "of the journal another" in found.bad[0][1]
    assert len(found.segments) == 2


def test_the_chain_that_reaches_furthest_is_taken_and_of_these_the_longest(written, tmp_path):
    path, _ = written
    with parcels.reopen(path) as journal:
        journal.snapshot_to(tmp_path / "one")
        mark(journal)
        journal.archive()
        journal.snapshot_to(tmp_path / "two")
    files = [load(str(path / "segments" / name)) for name in names(path)]
    one, two = load(str(tmp_path / "one")), load(str(tmp_path / "two"))
    assert best_chain(files[::-1]) == tuple(files)
    assert best_chain([*files, one, two]) == (*files, two)
    assert best_chain([one, files[1], files[0]]) == (*files[:2], one)
    assert best_chain([files[1]]) == (files[1],)
    assert best_chain([]) == ()


# -- snapshots -----------------------------------------------------------------------------------------------------------


def test_a_snapshot_replays_to_the_same_anywhere(written, tmp_path):
    path, (dump, head) = written
    with parcels.reopen(path) as journal:
        made = journal.snapshot_to(tmp_path / "snap")
        low = journal._engine and end(journal)
        with journal.read() as view:
            low = view.low_water()
    assert made.last == head[0]
    with Replay.open([tmp_path / "snap"], Parcels()) as replay:
        assert (dumped(replay), replay.head(), replay.low_water()) == (dump, head, low)
        assert replay.verify().sound


def test_a_snapshot_is_gone_on_from_when_all_else_is_lost(written, tmp_path):
    path, (dump, _) = written
    with parcels.reopen(path) as journal:
        journal.snapshot_to(tmp_path / "snap")
    shutil.rmtree(path)
    (path / "segments").mkdir(parents=True)
    target = path / "segments" / f"{13:020}-{26:020}.seg"
    shutil.copy(tmp_path / "snap", target)
    found = left(path)
    os.rename(target, path / "segments" / f"{found.segments[0].first:020}-{found.segments[0].last:020}.seg")
    with gone_on(path, left(path)) as journal:
        assert dumped(journal) == dump


def test_a_snapshot_is_never_put_over_anything(written, tmp_path):
    (tmp_path / "snap").write_text("mine")
    with parcels.reopen(written[0]) as journal, pytest.raises(ExistsError):
        journal.snapshot_to(tmp_path / "snap")
    assert (tmp_path / "snap").read_text() == "mine"


def test_a_snapshot_of_a_damaged_row_is_refused_rather_than_made(written, tmp_path):
    path, _ = written
    with lmdb.open(str(path), max_dbs=16, lib_version=0) as env:
        with env.begin(write=True) as txn:
            txn.put(b"log3", b"rubbish!", db=env.open_db(b"parcels", txn=txn, create=False))
    with parcels.reopen(path) as journal, pytest.raises(RowError):
        journal.snapshot_to(tmp_path / "snap")
    assert os.listdir(tmp_path) == ["journal"]


def test_a_snapshot_that_was_interrupted_leaves_a_part_that_the_next_replaces(written, tmp_path):
    path, _ = written
    def fail(point, when):
        if (point, when) == ("snapshot.rename", "before"):
            raise KeyboardInterrupt

    with parcels.reopen(path, hook=fail) as journal, pytest.raises(KeyboardInterrupt):
        journal.snapshot_to(tmp_path / "snap")
    assert (tmp_path / "snap.part").exists()
    passed = []
    with parcels.reopen(path, hook=recorder(passed)) as journal:
        journal.snapshot_to(tmp_path / "snap")
    assert not (tmp_path / "snap.part").exists()
    assert [point for point, when in passed if when == "after"] == [
        "snapshot.clear", "snapshot.write", "snapshot.rename", "snapshot.sync",
    ]


def test_snapshots_beside_four_writers_are_each_of_one_moment_and_nobody_waits(written, tmp_path):
    path, _ = written
    with parcels.reopen(path) as journal:
        go_on, done = threading.Event(), []

        def write(who):
            for n in range(30):
                pack(journal, f"{who}-{n}-a", f"{who}-{n}-b")
                done.append(who)
            go_on.set()

        writers = [threading.Thread(target=write, args=(f"w{n}",)) for n in range(4)]
        real = archive.segment.pack

        def held(**given):   # a writer commits in the middle of each snapshot
            before = len(done)
            yield from real(**given)
            while len(done) == before and any(each.is_alive() for each in writers):
                go_on.wait(0.01)

        archive.segment.pack = held
        try:
            for each in writers:
                each.start()
            for number in range(4):
                journal.snapshot_to(tmp_path / f"snap{number}")
            for each in writers:
                each.join()
        finally:
            archive.segment.pack = real
    for number in range(4):
        with Replay.open([tmp_path / f"snap{number}"], Parcels()) as replay:
            assert replay.verify().sound
            packed = replay.fold().tables["parcels"]
            assert all(f"{key[:-1]}b" in packed for key in packed if key.endswith("-a"))


