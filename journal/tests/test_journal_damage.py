"""What was altered on disk is found: by verify always, and on reading where it matters."""

import os
import random

import lmdb
import pytest

import parcels
from layerjournal import DamagedError, Journal, RecordError, Replay, RowError, SegmentError, canonical_dump, encode
from layerjournal.engine import Engine
from layerjournal.journal import OWN_TABLES
from layerjournal.views import store_row
from parcels import Parcels, in_child, pack


def forge(path, table, change):
    """Change the environment behind the journal's back: *change(transaction, database)*."""
    with lmdb.open(str(path), max_dbs=16, lib_version=0) as env:
        db = env.open_db(table.encode(), create=False)
        with env.begin(write=True) as txn:
            change(txn, db)


def codes(path):
    """What verify finds; offline where the damage is at the log's end, so that nothing can be appended to it."""
    try:
        with parcels.reopen(path) as journal:
            return [finding.code for finding in journal.verify().findings]
    except RecordError:
        with Replay.open([path], Parcels()) as replay:
            return [finding.code for finding in replay.verify().findings]


def seq(number):
    return number.to_bytes(8, "big")


def flipped(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_an_undamaged_journal_has_no_findings(written):
    with parcels.reopen(written) as journal:
        report = journal.verify()
    assert report.sound
    assert (report.records, report.head, report.segments) == (26, 26, 1)


@pytest.mark.parametrize("bit", [3, 90], ids=["checksum", "body"])
def test_a_row_that_was_altered_is_found_and_is_not_read(written, bit):
    forge(written, "parcels", lambda txn, db: txn.put(b"q", flipped(txn.get(b"q", db=db), bit), db=db))
    assert codes(written) == ["row"]
    with parcels.reopen(written) as journal, journal.read() as view:
        with pytest.raises(RowError, match="b'q'"):
            view.get("parcels", "q")
        assert view.get("parcels", "r")


def test_a_row_whose_key_is_no_text_any_more_is_found_and_is_not_read(written, tmp_path):
    def change(txn, db):
        txn.put(b"p3\x8c", txn.pop(b"p3", db=db), db=db)

    forge(written, "parcels", change)
    with parcels.reopen(written) as journal:
        with journal.read() as view, pytest.raises(RowError, match="p3"):
            list(view.scan("parcels"))
        with pytest.raises(RowError, match="p3"):
            journal.snapshot_to(tmp_path / "snapshot")
    assert "row" in codes(written)


def test_a_row_whose_key_only_looks_like_the_one_that_is_expected_is_found(path):
    with parcels.create(path) as journal:
        pack(journal, "p\ufffd")
        with journal.read() as view:
            (body,) = (stored[8:] for _, stored in view.stored_rows("parcels"))

    def change(txn, db):
        txn.delete("p\ufffd".encode(), db=db)
        txn.put(b"p\x8c", store_row("parcels", b"p\x8c", body), db=db)   # which decodes to it where errors are replaced

    forge(path, "parcels", change)
    assert sorted(codes(path)) == ["catalog", "row"]


def test_a_row_that_was_moved_is_as_wrong_as_one_that_was_altered(written):
    forge(written, "parcels", lambda txn, db: txn.put(b"r", txn.get(b"q", db=db), db=db))
    assert codes(written) == ["row"]


@pytest.mark.parametrize("change", [
    pytest.param(lambda txn, db: txn.delete(b"q", db=db), id="removed"),
    pytest.param(lambda txn, db: txn.put(b"new", store_row("parcels", b"new", encode({})), db=db), id="added"),
    pytest.param(lambda txn, db: txn.put(b"q", store_row("parcels", b"q", encode({"state": "here"})), db=db),
                 id="rewritten with its checksum"),
])
def test_a_table_that_is_not_what_the_log_says_is_found(written, change):
    forge(written, "parcels", change)
    assert codes(written) == ["catalog"]


def test_a_row_of_the_journals_own_that_was_rewritten_is_found(written):
    with parcels.reopen(written) as journal, journal.read() as view:
        meta = view.meta()
    forged = encode({**meta, "low_water": 26})
    forge(written, ".meta", lambda txn, db: txn.put(b"journal", store_row(".meta", b"journal", forged), db=db))
    assert codes(written) == ["catalog"]


@pytest.mark.parametrize("part", [0, 40 * 8], ids=["link", "body"])
@pytest.mark.parametrize("which", [23, 26], ids=["in the middle", "the last"])
def test_a_record_that_was_altered_is_found_and_is_not_read(written, which, part):
    forge(written, ".log", lambda txn, db: txn.put(seq(which), flipped(txn.get(seq(which), db=db), part), db=db))
    assert codes(written) == ["record"]
    with Replay.open([written], Parcels()) as replay:
        with pytest.raises(RecordError, match="does not chain"):
            list(replay.records())
        with pytest.raises(RecordError):
            replay.fold()
    if which == 26:
        with pytest.raises(RecordError, match="does not chain"):
            parcels.reopen(written)


@pytest.mark.parametrize("which, found", [(22, "record"), (24, "record"), (26, "catalog")])
def test_a_record_that_was_removed_is_found(written, which, found):
    forge(written, ".log", lambda txn, db: txn.delete(seq(which), db=db))
    assert codes(written)[0] == found


def test_two_records_that_were_exchanged_are_found(written):
    def exchange(txn, db):
        one, other = txn.get(seq(24), db=db), txn.get(seq(25), db=db)
        txn.put(seq(24), other, db=db)
        txn.put(seq(25), one, db=db)

    forge(written, ".log", exchange)
    assert codes(written) == ["record"]


def test_a_record_that_claims_a_group_that_is_over_is_found(written):
    from layerjournal.record import seal

    def regroup(txn, db):
        previous = bytes(txn.get(seq(25), db=db)[:32])
        _, stored = seal(
            previous, seq=26, group=22, txid="tx-q", entity="q", from_state="packed", to_state="sent", trigger="sent",
            payload={}, time_ns=1,
        )
        txn.put(seq(26), stored, db=db)

    forge(written, ".log", regroup)
    with parcels.reopen(written) as journal:
        assert [(f.code, f.seq) for f in journal.verify().findings] == [("group", 26)]


def test_a_record_that_the_projector_no_longer_takes_is_found(written):
    class Stricter(Parcels):
        def project(self, view, record):
            assert record.to_state != "sent"
            super().project(view, record)

    with Journal.open(written, Stricter()) as journal:
        assert [(f.code, f.seq) for f in journal.verify().findings] == [("projection", 26)]


def test_a_projector_that_has_no_memory_left_is_no_damage(written):
    class Starved(Parcels):
        def project(self, view, record):
            raise MemoryError

    with Journal.open(written, Starved()) as journal, pytest.raises(MemoryError):
        journal.verify()


def test_a_projector_that_projects_otherwise_is_found(written):
    class Other(Parcels):
        def project(self, view, record):
            super().project(view, record)
            if record.to_state == "sent":
                view.put("parcels", record.entity, {"state": "sent", "more": 1})

    with Journal.open(written, Other()) as journal:
        assert [f.code for f in journal.verify().findings] == ["catalog"]


# -- segments --------------------------------------------------------------------------------------------------------

def segment_of(path):
    (name,) = os.listdir(path / "segments")
    return path / "segments" / name


def test_a_segment_with_any_bit_flipped_is_found(written):
    file = segment_of(written)
    data, random_ = file.read_bytes(), random.Random(1)
    with parcels.reopen(written) as journal:
        for bit in random_.sample(range(len(data) * 8), 150):
            file.write_bytes(flipped(data, bit))
            assert [f.code for f in journal.verify().findings] == ["segment"]
            with pytest.raises(SegmentError):
                journal.fold()
        file.write_bytes(data)
        assert journal.verify().sound


def test_a_segment_of_any_other_length_is_found(written):
    file = segment_of(written)
    data = file.read_bytes()
    with parcels.reopen(written) as journal:
        for changed in [b"", data[:7], data[:40], data[:-1], data[:-33], data + b"\x00", data + data]:
            file.write_bytes(changed)
            assert [f.code for f in journal.verify().findings] == ["segment"]


@pytest.mark.parametrize("change", [
    pytest.param(lambda body: body[:-1], id="cut in its frame"),
    pytest.param(lambda body: body[:-5], id="cut before the frame's checksum"),
    pytest.param(lambda body: body + b"junk", id="with something after its frame"),
    pytest.param(lambda body: body + b"x" * 5000, id="with much after its frame"),
    pytest.param(lambda body: body + body[8:], id="with a second frame"),
    pytest.param(lambda body: body[:8], id="without a frame"),
])
def test_a_segment_whose_digest_was_made_to_fit_is_refused_all_the_same(written, tmp_path, change):
    import hashlib
    name = segment_of(written).name
    body = change(segment_of(written).read_bytes()[:-32])
    (tmp_path / name).write_bytes(body + hashlib.sha256(body).digest())
    with pytest.raises(SegmentError), Replay.open([tmp_path / name], Parcels()) as replay:
        assert not replay.verify().sound
        replay.fold()


def test_a_segment_that_is_missing_is_found(written):
    segment_of(written).unlink()
    assert codes(written) == ["segment"]
    with parcels.reopen(written) as journal, pytest.raises(SegmentError, match="missing"):
        journal.fold()


@pytest.mark.parametrize("change", [
    pytest.param(lambda rows: rows.update(p0=encode({"state": "here"})), id="altered"),
    pytest.param(lambda rows: rows.update(more=encode({"state": "here"})), id="added"),
    pytest.param(lambda rows: rows.pop("p0"), id="removed"),
])
def test_a_snapshot_that_is_not_what_the_records_say_is_found(written, tmp_path, change):
    from layerjournal import segment
    real = segment.load(str(segment_of(written)))
    bodies = real.snapshot()
    change(bodies["parcels"])
    forged = tmp_path / real.name
    forged.write_bytes(b"".join(segment.pack(
        uuid=real.uuid, first=real.first, last=real.last, prev_link=real.prev_link, last_link=real.last_link,
        stored=[stored for _, stored in real.stored_records()], tables=bodies,
    )))
    with Replay.open([forged], Parcels()) as replay:
        assert [f.code for f in replay.verify().findings] == ["snapshot"]


# -- the data file ---------------------------------------------------------------------------------------------------

def test_a_truncated_data_file_is_refused_at_open_instead_of_killing_the_process(written):
    file = written / "data.mdb"
    data = file.read_bytes()
    for length in [0, 100, 4096, 8191, 8192, len(data) // 2, len(data) - 4096]:
        file.write_bytes(data[:length])
        status, said = in_child(lambda: parcels.reopen(written).close())
        assert (status, said.split(":")[0]) == (70, "DamagedError"), length
    file.write_bytes(data)
    parcels.reopen(written).close()


def test_a_truncated_data_file_is_refused_also_where_nobody_looks_at_its_pages(written):
    """As when it was cut within the tick of the clock in which it was left, so that the note still vouches for it."""
    file = written / "data.mdb"
    os.truncate(file, os.path.getsize(file) // 2)
    status, said = in_child(lambda: Engine(str(written), OWN_TABLES, readonly=False, map_size=1 << 20, look=False))
    assert (status, said.split(":")[0]) == (70, "DamagedError")
    assert "truncated" in said


def test_a_data_file_that_is_longer_than_its_meta_page_says_is_no_damage(written):
    with open(written / "data.mdb", "ab") as file:   # as a growth that was aborted leaves it
        file.write(bytes(8192))
    assert codes(written) == []


def test_what_is_no_data_file_is_refused(written):
    (written / "data.mdb").write_bytes(os.urandom(65536))
    with pytest.raises(DamagedError, match="damaged in 1 places"):
        Replay.open([written], Parcels())
    with pytest.raises(DamagedError, match="no valid meta page"):
        parcels.reopen(written)


def test_no_bit_that_is_flipped_in_the_data_file_is_silent_or_kills_a_replay(written, tmp_path):
    """Whatever a flipped bit does: it is found, or nothing that can be read has changed."""
    def read(directory):
        with Replay.open([directory], Parcels()) as replay:
            report = replay.verify()
            tables = {}
            with replay._reading() as view:
                for table in Parcels.tables:
                    tables[table] = [[key, row] for key, row in view.scan(table)] if report.sound else None
            return [report.sound, canonical_dump(replay.fold()).hex() if report.sound else "", tables]

    copy = tmp_path / "copy"
    with parcels.reopen(written) as journal:
        journal.copy_to(copy)   # compacted: every page is in use
    _, truth = in_child(lambda: read(copy))
    assert truth[0] is True
    data, random_ = (copy / "data.mdb").read_bytes(), random.Random(2)
    used = [index for index, byte in enumerate(data) if byte]
    found = 0
    for bit in (index * 8 + random_.randrange(8) for index in random_.sample(used, 200)):
        (copy / "data.mdb").write_bytes(flipped(data, bit))
        status, said = in_child(lambda: read(copy))
        if status == 0 and said[0]:
            assert said == truth, f"bit {bit} was silent"
        else:
            found += 1
            assert status in (0, 70), f"bit {bit} killed the process: {status}"
            assert status == 0 or "Error" in said.split(":")[0], (bit, said)
    assert found > 100, "the experiment did not hit anything"
