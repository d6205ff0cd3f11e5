"""Which segments' snapshots ``verify`` compares, and what that costs: counted in rows, not in seconds."""

import pytest

from layerjournal import segment
from layerjournal.codec import encode
from parcels import mark, move, pack


def archived(journal, number):
    pack(journal, f"p{number}")
    mark(journal)
    return journal.archive()


@pytest.fixture
def rows(monkeypatch):
    """One entry for each row of a segment that is read."""
    read = []
    real = segment.Segment._row

    def row(own, item, known):
        read.append(own.name)
        return real(own, item, known)

    monkeypatch.setattr(segment.Segment, "_row", row)
    return read


def sealed_wrong(journal, monkeypatch, number):
    """A segment that is what was sealed, and was sealed with what its records do not make."""
    real = segment.pack

    def pack_wrong(*, tables, **rest):
        changed = {name: dict(bodies) for name, bodies in tables.items()}
        changed["where"][f"packed/p{number}"] = encode({"since": 1_000})
        return real(tables=changed, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(segment, "pack", pack_wrong)
        return archived(journal, number)


def found(report):
    return [(f.code, f.seq) for f in report.findings]


def test_of_many_segments_the_rows_of_one_are_read_or_those_of_all(journal, rows):
    made = [archived(journal, number) for number in range(40)]
    rows.clear()                         # archiving reads, too
    assert journal.verify(every_snapshot=False).sound
    assert len(rows) == made[-1].row_count and set(rows) == {made[-1].name}
    rows.clear()
    assert journal.verify().sound
    assert len(rows) == sum(each.row_count for each in made) > 20 * made[-1].row_count


def test_what_was_done_to_an_older_segment_is_found_without_reading_its_rows(journal, path, rows):
    made = [archived(journal, number) for number in range(3)]
    file = path / "segments" / made[1].name
    data = bytearray(file.read_bytes())
    data[-40] ^= 1                       # in its snapshot, which is last
    file.write_bytes(data)
    rows.clear()
    assert [f.code for f in journal.verify(every_snapshot=False).findings] == ["segment"]
    assert made[1].name not in rows


def test_the_newest_snapshot_is_compared_always(journal, monkeypatch):
    archived(journal, 0)
    made = sealed_wrong(journal, monkeypatch, 1)
    assert found(journal.verify(every_snapshot=False))[0] == found(journal.verify())[0] == ("snapshot", made.last)


def test_what_is_wrong_in_a_snapshot_is_in_those_made_from_it_and_so_in_the_newest(journal, monkeypatch):
    sealed_wrong(journal, monkeypatch, 0)
    made = [archived(journal, number) for number in (1, 2)]
    assert found(journal.verify(every_snapshot=False))[0] == ("snapshot", made[-1].last)


def test_an_older_snapshot_that_was_wrong_in_what_changed_since_is_found_when_every_one_is_compared(journal, monkeypatch):
    made = sealed_wrong(journal, monkeypatch, 0)
    journal.update("send", lambda txn: move(txn, "p0", "sent"))
    archived(journal, 1)
    assert journal.verify(every_snapshot=False).sound
    assert found(journal.verify()) == [("snapshot", made.last)]


def test_after_a_segment_that_is_gone_the_next_ones_snapshot_is_gone_on_from(journal, path, rows):
    made = [archived(journal, number) for number in range(4)]
    (path / "segments" / made[1].name).unlink()
    rows.clear()
    assert [f.code for f in journal.verify(every_snapshot=False).findings] == ["segment"]
    assert set(rows) == {made[2].name, made[3].name}
