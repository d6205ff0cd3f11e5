"""What the first release wrote is read by this one, and means the same."""

import json
import pathlib
import shutil

import pytest

import make_golden
import parcels
from layerjournal import Journal, Replay, canonical_dump, segment
from parcels import Parcels, mark, pack

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "v1"
SEGMENTS = sorted((GOLDEN / "journal" / "segments").iterdir())


@pytest.fixture
def golden(tmp_path):
    shutil.copytree(GOLDEN / "journal", tmp_path / "golden")
    return tmp_path / "golden"


def expected(name):
    return json.loads((GOLDEN / name).read_text())


def test_a_golden_journal_is_sound(golden):
    with Replay.open([golden], Parcels()) as replay:
        report = replay.verify()
        assert report.sound, report.findings
        assert (report.records, report.segments) == (len(expected("records.json")), 2)


def test_its_records_are_read_as_they_were_written(golden):
    with Replay.open([golden]) as replay:
        assert [record.as_json() for record in replay.records()] == expected("records.json")


def test_its_tables_fold_to_the_same_bytes(golden):
    with Replay.open([golden], Parcels()) as replay:
        assert canonical_dump(replay.fold()) == (GOLDEN / "dump.msgpack").read_bytes()
        for seq, dump in expected("folds.json").items():
            assert canonical_dump(replay.fold(int(seq))).hex() == dump, seq


def test_its_segments_alone_tell_the_same():
    assert len(SEGMENTS) == 2
    with Replay.open(SEGMENTS, Parcels()) as replay:
        last = replay.head()[0]
        assert replay.verify().sound
        assert canonical_dump(replay.fold()).hex() == expected("folds.json")[str(last)]


def test_its_second_segment_can_stand_without_the_first():
    with Replay.open(SEGMENTS[1:], Parcels()) as replay:
        assert replay.verify().sound
        assert canonical_dump(replay.fold()).hex() == expected("folds.json")[str(replay.head()[0])]


def test_it_can_be_opened_and_gone_on_with(golden):
    with parcels.reopen(golden) as journal:
        assert (journal.uuid, journal.schema) == (parcels.UUID, "parcels 1")
        pack(journal, "today")
        mark(journal)
        assert journal.archive() is not None
        journal.drop_segments(keep=1)
        assert journal.verify().sound


def test_it_can_be_restored_from_its_segments(tmp_path):
    with Journal.restore(tmp_path / "restored", Parcels(), SEGMENTS) as journal:
        assert journal.verify().sound


def test_todays_code_writes_the_same_records_and_tables(tmp_path):
    make_golden.make(tmp_path / "today")
    for name in ("records.json", "folds.json", "dump.msgpack"):
        assert (tmp_path / "today" / name).read_bytes() == (GOLDEN / name).read_bytes(), name


def test_todays_code_writes_segments_of_the_same_content(tmp_path):
    make_golden.make(tmp_path / "today")
    for old in SEGMENTS:
        new = tmp_path / "today" / "journal" / "segments" / old.name
        was, is_ = segment.load(str(old)), segment.load(str(new))
        assert list(was._items()) == list(is_._items())
        assert (was.first, was.last, was.prev_link, was.last_link) == (is_.first, is_.last, is_.prev_link, is_.last_link)
