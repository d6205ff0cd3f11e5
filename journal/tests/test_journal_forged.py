"""Segments and records that were put together by somebody else: with every digest right, and yet not what they say."""

import hashlib
import os

import pytest
import zstandard

import parcels
from layerjournal import DamagedError, ProjectionError, Replay, RowError, SegmentError, UsageError, decode, encode
from layerjournal import control, segment
from layerjournal.control import Whole
from layerjournal.folding import History, fold_at
from layerjournal.record import genesis, seal
from layerjournal.verifying import Verifier
from layerjournal.views import MemoryView, check_row, key_bytes, row_body, store_row
from parcels import Parcels, mark, pack


@pytest.fixture
def sealed(path):
    """A segment's path; the journal that it is of is closed."""
    with parcels.create(path) as journal:
        pack(journal, "a", "b", noise=os.urandom(5000))
        mark(journal)
        made = journal.archive()
    return made.path


def items_of(path):
    return list(segment._read_items(path))


def write(path, items, *, frame=None):
    """A segment file of *items* with a right digest; *frame* instead of the compressed items."""
    raw = b"".join(len(item).to_bytes(4, "big") + item for item in items)
    data = segment.MAGIC + (zstandard.ZstdCompressor().compress(raw) if frame is None else frame)
    with open(path, "wb") as file:
        file.write(data + hashlib.sha256(data).digest())
    return path


def with_header(path, **changes):
    header, *rest = items_of(path)
    return write(path, [encode({**decode(header), **changes}), *rest])


def test_the_forger_can_make_a_good_one(sealed):
    write(sealed, items_of(sealed))
    loaded = segment.load(sealed)
    assert list(loaded.records())
    assert loaded.snapshot()


@pytest.mark.parametrize("changes", [
    {"version": 2}, {"extra": 1}, {"uuid": 7}, {"first": "1"}, {"tables": ["b", "a"]}, {"tables": [1]},
    {"records": 99}, {"rows": -1}, {"first": 4, "last": 3, "records": 0}, {"prev_link": b"short"},
], ids=str)
def test_a_header_that_makes_no_sense_is_refused(sealed, changes):
    with pytest.raises(SegmentError):
        segment.load(with_header(sealed, **changes))


def test_a_header_that_is_no_map_is_refused(sealed):
    for first in (b"\xc1", encode([1]), b""):
        with pytest.raises(SegmentError):
            segment.load(write(sealed, [first, *items_of(sealed)[1:]]))


def test_records_that_end_on_another_link_are_refused(sealed):
    loaded = segment.load(with_header(sealed, last_link=b"x" * 32))
    with pytest.raises(SegmentError, match="another link"):
        list(loaded.records())


@pytest.mark.parametrize("more", [1, -1])
def test_more_or_fewer_items_than_the_header_says_are_refused(sealed, more):
    rows = decode(items_of(sealed)[0])["rows"]
    with pytest.raises(SegmentError, match="items than its header says"):
        segment.load(with_header(sealed, rows=rows + more)).snapshot()


def test_a_snapshot_out_of_order_is_refused(sealed):
    *rest, last, after = items_of(sealed)
    with pytest.raises(SegmentError, match="out of place"):
        segment.load(write(sealed, [*rest, after, last])).snapshot()


@pytest.mark.parametrize("expected", [False, True], ids=["of itself", "beside what is expected"])
@pytest.mark.parametrize("row", [
    encode(["parcels", "z"]), encode(["where", "z", b"\xc1"]), encode(["where", "z", encode(1)]), encode(["where", "z", None]),
    encode(["where", ["z"], None]), b"\xc1", None,
])
def test_a_row_of_a_snapshot_that_is_none_is_refused(sealed, row, expected):
    *rest, last = items_of(sealed)
    known = segment.load(sealed).snapshot() if expected else {}
    if row is None:
        row = b"\xdc\x00\x03" + last[1:]   # the same, but for the length of the array, which is longer than it must be
    records, snapshot = segment.load(write(sealed, [*rest, row])).both()
    assert list(records)
    with pytest.raises(SegmentError, match="cannot be understood"):
        snapshot(known)


def test_items_longer_than_may_be_or_cut_off_are_refused(sealed):
    raw = b"".join(len(item).to_bytes(4, "big") + item for item in items_of(sealed))
    compress = zstandard.ZstdCompressor().compress
    for frame, why in ((compress((1 << 31).to_bytes(4, "big")), "at most"), (compress(raw[:-1]), "past the end"),
                       (b"no frame", "decompressed")):
        with pytest.raises(SegmentError, match=why):
            list(segment._read_items(write(sealed, [], frame=frame)))


def test_segments_of_two_journals_do_not_follow_each_other(sealed, tmp_path):
    with parcels.Journal.create(tmp_path / "other", Parcels(), uuid="other") as journal:
        pack(journal, "x")
        mark(journal)
        other = journal.archive()
        with pytest.raises(UsageError, match="of the journal"):
            segment.check_sequence([segment.load(sealed), other])


def test_there_are_no_segments_where_there_is_no_directory(tmp_path):
    assert segment.list_names(str(tmp_path / "absent")) == []


# -- the journal's own records ----------------------------------------------------------------------------------------


def project(*records):
    view = MemoryView(Whole(Parcels(), Parcels.tables).tables)
    for trigger, payload in records:
        record, _ = seal(genesis("u"), seq=1, group=1, txid="", entity=control.CONTROL, from_state="", to_state="",
                         trigger=trigger, payload=payload, time_ns=0)
        Whole(Parcels(), Parcels.tables).project(view, record)


CREATE = ("create", {"uuid": "u", "format": 1, "schema": "", "tables": ["parcels", "where"]})


@pytest.mark.parametrize(("records", "why"), [
    ([("explode", {})], "knows no"),
    ([("create", {**CREATE[1], "format": 2})], "format 2"),
    ([("create", {})], "wrong 'create'"),
    ([("checkpoint", {"low_water": 1})], "before 'create'"),
    ([CREATE, ("checkpoint", {"low_water": "x"})], "wrong 'checkpoint'"),
    ([CREATE, ("archive", {"first": 7, "prev_link": b""})], "does not follow"),
], ids=["trigger", "format", "fields", "too early", "type", "gap"])
def test_a_record_of_the_journals_own_that_cannot_be_is_refused(records, why):
    with pytest.raises(ProjectionError, match=why):
        project(*records)


def test_an_archived_beginning_without_a_segment_is_damage():
    with pytest.raises(DamagedError, match="there is no segment"):
        fold_at(Whole(Parcels(), Parcels.tables), History("u", (), head=9, log_after=4), (), None)


# -- rows, keys, gaps ---------------------------------------------------------------------------------------------------


def test_a_row_with_a_right_checksum_that_is_no_canonical_map_is_found():
    for body in (b"\xc1", encode([1])):
        with pytest.raises(RowError):
            check_row("parcels", b"k", store_row("parcels", b"k", body))


@pytest.mark.parametrize("key", ["", "\ud800", "x" * 512, 7])
def test_what_cannot_be_a_key_is_refused(key):
    with pytest.raises(UsageError):
        key_bytes(key)


def test_what_is_no_map_or_no_table_is_refused():
    with pytest.raises(UsageError, match="a row is a map"):
        row_body([1])
    with pytest.raises(UsageError, match="no table"):
        MemoryView(["a"]).get("b", "k")


def test_a_segment_or_a_log_that_does_not_follow_is_a_gap(sealed):
    loaded = segment.load(sealed)
    verifier = Verifier(Whole(Parcels(), Parcels.tables), "another journal")
    verifier.segments([lambda: loaded])
    assert [finding.code for finding in verifier.findings] == ["gap"]
    verifier = Verifier(Whole(Parcels(), Parcels.tables), loaded.uuid)
    verifier.segments([lambda: loaded])
    verifier.log((), after=loaded.last + 1, link=loaded.last_link)
    assert [finding.code for finding in verifier.findings] == ["gap"]


def test_bare_segments_tell_the_last_mark_that_is_archived_in_them(path):
    with parcels.create(path) as journal:
        for name in "ab":
            pack(journal, name)
            mark(journal)
            journal.archive()
        files = sorted((path / "segments").iterdir())
        with Replay.open(files, Parcels()) as replay:
            assert replay.low_water() == 2
            assert [record.seq for record in replay.records(after=2, upto=3)] == [3]
        with Replay.open(files[:1], Parcels()) as replay:
            assert replay.low_water() == 0
