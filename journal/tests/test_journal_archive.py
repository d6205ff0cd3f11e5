"""Checkpoints, archived segments, folding back, and copies."""

import os
import shutil
import threading

import pytest

import parcels
from layerjournal import Journal, Replay, SegmentError, UsageError, canonical_dump
from parcels import Parcels, mark, move, pack, state


def archived(journal, *names):
    pack(journal, *names)
    mark(journal)
    return journal.archive()


def segment_files(path):
    return sorted(os.listdir(path / "segments"))


# -- checkpoints -----------------------------------------------------------------------------------------------------

def test_a_checkpoint_does_not_cover_what_is_appended_while_it_syncs(journal):
    pack(journal, "a")                                       # record 2
    made = journal.checkpoint(lambda: pack(journal, "b"), lambda view: None)
    assert (made.low_water, made.seq) == (2, 4)
    with journal.read() as view:
        assert view.low_water() == 2


def test_a_checkpoint_stays_below_what_is_held(journal):
    pack(journal, "a", "b")
    assert journal.checkpoint(lambda: None, lambda view: 3).low_water == 2


def test_hold_is_asked_about_what_was_appended_while_syncing(journal):
    pack(journal, "a")
    made = journal.checkpoint(
        lambda: journal.update("x", lambda txn: move(txn, "a", "sent")),
        lambda view: 2 if view.get("parcels", "a")["state"] == "sent" else None,
    )
    assert made.low_water == 1


def test_the_mark_never_goes_backwards(journal):
    pack(journal, "a")
    assert mark(journal).low_water == 2
    assert journal.checkpoint(lambda: None, lambda view: 1).low_water == 2


def test_a_sync_that_fails_leaves_the_old_mark(journal):
    def fail():
        raise OSError(5, "no")

    with pytest.raises(OSError, match="no"):
        journal.checkpoint(fail, lambda view: None)
    with journal.read() as view:
        assert (view.low_water(), view.head()[0]) == (0, 1)


# -- archiving -------------------------------------------------------------------------------------------------------

def test_nothing_is_archived_without_a_checkpoint(journal):
    pack(journal, "a")
    assert journal.archive() is None


def test_archive_moves_the_log_up_to_the_mark_and_changes_no_table(journal, path):
    pack(journal, "a", "b")
    mark(journal)
    before = canonical_dump(journal.fold())
    made = journal.archive()
    assert (made.first, made.last) == (1, 3)
    assert segment_files(path) == [made.name]
    with journal.read() as view:
        assert [(r.seq, r.trigger) for r in view.records()] == [(4, "checkpoint"), (5, "archive")]
    assert canonical_dump(journal.fold()) == before
    assert journal.verify().sound


def test_archive_cuts_no_group(journal):
    pack(journal, "a")
    pack(journal, "b", "c", "d")                             # records 3 to 5
    journal.checkpoint(lambda: None, lambda view: 5)         # the mark lies inside them
    assert journal.archive().last == 2


def test_archiving_again_goes_on_from_there(journal, path):
    first, second = archived(journal, "a"), archived(journal, "b")
    assert (second.first, second.prev_link) == (first.last + 1, first.last_link)
    assert segment_files(path) == [first.name, second.name]
    assert journal.verify().sound


def test_a_segment_that_a_crash_left_is_replaced(journal, path):
    pack(journal, "a")
    mark(journal)
    stray = path / "segments" / f"{1:020}-{2:020}.seg"
    stray.write_bytes(b"half a segment")
    (path / "segments" / ".new").write_bytes(b"less")
    made = journal.archive()
    assert segment_files(path) == [made.name]
    assert journal.verify().sound


def test_a_second_archive_waits_for_the_first_whose_segment_it_would_take_for_garbage(path):
    second, made = [], []

    def hook(name, when):
        if (name, when) == ("archive.sync", "after") and not second:   # written, and not yet recorded
            second.append(threading.Thread(target=lambda: made.append(journal.archive())))
            second[0].start()
            second[0].join(0.2)
            assert second[0].is_alive()

    with parcels.create(path, hook=hook) as journal:
        pack(journal, "a")
        mark(journal)
        first = journal.archive()
        second[0].join(30)
        assert made == [None]
        assert segment_files(path) == [first.name]
        assert journal.verify().sound


def test_old_segments_can_be_dropped_and_the_newest_still_holds_everything(journal, path):
    for name in "abc":
        archived(journal, name)
    before, names = canonical_dump(journal.fold()), segment_files(path)
    assert journal.drop_segments(keep=1) == names[:2]
    assert segment_files(path) == names[2:]
    assert canonical_dump(journal.fold()) == before
    assert journal.verify().sound


def test_nothing_is_dropped_for_a_newest_segment_that_is_damaged(journal, path):
    for name in "ab":
        archived(journal, name)
    newest = path / "segments" / segment_files(path)[-1]
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    with pytest.raises(SegmentError):
        journal.drop_segments(keep=1)
    assert len(segment_files(path)) == 2


def test_the_newest_segment_cannot_be_dropped(journal):
    with pytest.raises(UsageError, match="newest"):
        journal.drop_segments(keep=0)


def test_a_segment_is_not_mistaken_for_another_that_is_sound(journal, path, tmp_path):
    archived(journal, "a")
    with parcels.Journal.create(tmp_path / "other", Parcels(), uuid="other") as other:
        archived(other, "z")
        shutil.copy(tmp_path / "other" / "segments" / segment_files(path)[0], path / "segments")
    assert [f.code for f in journal.verify().findings] == ["segment"]
    with pytest.raises(SegmentError, match="another file"):
        journal.fold()


# -- folding ---------------------------------------------------------------------------------------------------------

def test_a_fold_to_any_record_is_what_the_tables_were_then(journal):
    seen = {}

    def remember(_record=None):
        with journal.read() as view:
            seen[view.head()[0]] = {t: dict(view.scan(t)) for t in Parcels.tables}

    remember()
    for step in range(12):
        pack(journal, f"p{step}")
        remember()
        journal.update("send", lambda txn: move(txn, f"p{step}", "sent"))
        remember()
        if step % 4 == 3:
            mark(journal)
            remember()
            journal.archive()
            remember()
    for seq, tables in seen.items():
        folded = journal.fold(seq)
        assert (folded.seq, folded.tables) == (seq, tables)


def test_a_fold_is_no_farther_back_than_the_oldest_snapshot(journal):
    for name in "abc":
        archived(journal, name)
    journal.drop_segments(keep=2)
    with journal.read() as view:
        oldest = view.segment_rows()[0]
    assert journal.fold(oldest["last"]).seq == oldest["last"]
    with pytest.raises(UsageError, match="cannot be rebuilt"):
        journal.fold(oldest["last"] - 1)


@pytest.mark.parametrize("at", [-1, 99])
def test_there_is_no_fold_to_a_record_that_is_not_there(journal, at):
    with pytest.raises(UsageError, match="no record"):
        journal.fold(at)


def test_the_newest_state_is_folded_from_the_newest_segment_alone(journal, path):
    for name in "ab":
        archived(journal, name)
    (path / "segments" / segment_files(path)[0]).write_bytes(b"damaged")
    assert journal.fold().tables["parcels"] == {"a": {"state": "packed"}, "b": {"state": "packed"}}


def test_equal_tables_have_equal_dumps_and_others_have_others(tmp_path):
    dumps = []
    for n, order in enumerate([("a", "b"), ("b", "a"), ("a", "c")]):
        with Journal.create(tmp_path / str(n), Unordered(), uuid=str(n)) as journal:
            for parcel in order:
                pack(journal, parcel)
            dumps.append(canonical_dump(journal.fold()))
    assert dumps[0] == dumps[1] != dumps[2]


class Unordered(Parcels):
    """Does not keep when a parcel was packed."""

    tables = ("parcels",)

    def project(self, view, record):
        view.put("parcels", record.entity, {"state": record.to_state})


def test_a_dump_may_be_larger_than_any_one_value(journal):
    for n in range(5):
        pack(journal, *(f"{n}-{i}" for i in range(4)), blob=b"x" * 1_000_000)
    assert len(canonical_dump(journal.fold())) > 16 << 20


# -- copies, replays, restoring --------------------------------------------------------------------------------------

def test_a_copy_is_enough_to_replay(journal, tmp_path):
    archived(journal, "a")
    pack(journal, "b")
    journal.copy_to(tmp_path / "copy")
    pack(journal, "c")
    with Replay.open([tmp_path / "copy"], Parcels()) as replay:
        assert replay.uuid == parcels.UUID
        assert replay.verify().sound
        assert list(replay.fold().tables["parcels"]) == ["a", "b"]
        assert [r.seq for r in replay.records()] == list(range(1, 6))
        assert [r.seq for r in replay.records(after=1, upto=4)] == [2, 3, 4]
        assert replay.low_water() == 2


def test_a_replay_writes_nothing(journal, tmp_path):
    archived(journal, "a")
    journal.copy_to(tmp_path / "copy")

    def picture():
        return {
            name: ((tmp_path / "copy" / name).read_bytes(), (tmp_path / "copy" / name).stat().st_mtime_ns)
            for name in ["data.mdb", f"segments/{segment_files(tmp_path / 'copy')[0]}"]
        }, sorted(os.listdir(tmp_path / "copy"))

    before = picture()
    with Replay.open([tmp_path / "copy"], Parcels()) as replay:
        replay.verify(), replay.fold()
    assert picture() == before
    assert before[1] == ["data.mdb", "segments"]


def test_bare_segments_can_be_replayed_in_any_order(journal, path):
    for name in "abc":
        archived(journal, name)
    files = [path / "segments" / name for name in segment_files(path)]
    with Replay.open(reversed(files), Parcels()) as replay:
        last = replay.segments[-1].last
        assert replay.verify().sound
        assert canonical_dump(replay.fold()) == canonical_dump(journal.fold(last))
        assert replay.head()[0] == last
    with pytest.raises(UsageError, match="missing"):
        Replay.open([files[0], files[2]], Parcels())


def test_records_can_be_read_without_a_projector_and_not_folded(journal, tmp_path):
    pack(journal, "a")
    journal.copy_to(tmp_path / "copy")
    with Replay.open([tmp_path / "copy"]) as replay:
        assert [r.entity for r in replay.records()] == ["journal", "a"]
        with pytest.raises(UsageError, match="projector"):
            replay.fold()


def test_replaying_nothing_that_is_known_is_refused(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(UsageError, match="neither"):
        Replay.open([tmp_path / "x"], Parcels())
    with pytest.raises(UsageError, match="no segments"):
        Replay.open([], Parcels())


def test_copying_over_something_is_refused(journal, tmp_path):
    (tmp_path / "copy").mkdir()
    with pytest.raises(FileExistsError):
        journal.copy_to(tmp_path / "copy")


def test_a_journal_whose_log_is_lost_goes_on_from_its_segments(path, tmp_path):
    with parcels.create(path) as journal:
        for name in "abc":
            archived(journal, name)
        pack(journal, "lost")
        files = [path / "segments" / name for name in segment_files(path)]
    with Journal.restore(tmp_path / "restored", Parcels(), files[::-1], clock=parcels.Clock()) as restored:
        assert state(restored) == dict.fromkeys("abc", "packed")
        assert restored.uuid == parcels.UUID
        with restored.read() as view:
            assert next(view.records()).trigger == "restore"
            assert view.low_water() == view.meta()["archived"]
        pack(restored, "d")
        mark(restored)
        assert restored.archive() is not None
        report = restored.verify()
        assert report.sound, report.findings
        restored.drop_segments(keep=1)
        assert restored.verify().sound
        assert restored.fold().tables["parcels"].keys() == set("abcd")
    assert segment_files(path) == [os.path.basename(f) for f in files]


def test_an_open_journal_has_all_records_the_archived_ones_too(journal):
    archived(journal, "a", "b")
    pack(journal, "c")
    everything = list(journal.records())
    assert [r.seq for r in everything] == list(range(1, everything[-1].seq + 1))
    with journal.read() as view:
        assert everything[-1].seq == view.head()[0]
        assert view.meta()["archived"] > 1
    assert [r.seq for r in journal.records(after=1, upto=3)] == [2, 3]
    assert [r.seq for r in journal.records(after=everything[-2].seq)] == [everything[-1].seq]
