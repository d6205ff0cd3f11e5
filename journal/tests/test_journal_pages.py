"""A damaged data file is refused before the engine reads it, whatever is wrong with it, and no process dies of it.

Every page of a small journal is hit: bits are flipped, pages zeroed, exchanged, cut off. A child opens and reads what is
left; how it ended is looked at. What is damaged is found, or nothing that can be read has changed.
"""

import errno
import faulthandler
import os
import random
import shutil
import struct

import pytest

import parcels
from layerjournal import (
    BusyError,
    DamagedError,
    HostError,
    Journal,
    MissingError,
    Replay,
    canonical_dump,
    engine,
    metapage,
    pages,
    salvage,
)
from layerjournal.effects import Descriptor
from parcels import Parcels, in_child, mark, pack

PAGE = 4096


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A closed journal with branches, a free list, large values, a segment and a log; its data file, and its dump."""
    path = tmp_path_factory.mktemp("pages") / "journal"
    with parcels.create(path) as journal:
        pack(journal, *(f"p{n:03}" for n in range(120)))
        mark(journal)
        journal.archive()
        for n in range(12):
            pack(journal, f"large{n}", text="x" * 700 * n)
        dump = canonical_dump(journal.fold())
    return path, (path / "data.mdb").read_bytes(), dump


@pytest.fixture
def copy(written, tmp_path):
    path, data, dump = written
    shutil.copytree(path, tmp_path / "copy")
    return tmp_path / "copy", data, dump


def flipped(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def patched(data, offset, new):
    return data[:offset] + new + data[offset + len(new):]


def looked_at(path):
    """Open it for writing and look at all of it, in a child: ``(how it ended, [sound, dump] or the error)``."""
    def look():
        faulthandler.disable()   # how it dies is looked at
        with parcels.reopen(path) as journal:
            sound = journal.verify().sound
            with journal.read() as view:
                for table in Parcels.tables:
                    assert all(view.get(table, key) == row for key, row in view.scan(table)) or not sound
            return [sound, canonical_dump(journal.fold()).hex() if sound else ""]

    return in_child(look)


def outcome(copy, changed):
    """``refused``, ``found`` or ``without effect``; fails for a death, and for damage that nobody sees."""
    path, _, dump = copy
    (path / "data.mdb").write_bytes(changed)
    status, said = looked_at(path)
    assert status in (0, 70), f"died: {status}"
    if status == 70:
        assert said.split(":")[0].removesuffix("Error") in ("Damaged", "Row", "Record"), said
        return "refused"
    if not said[0]:
        return "found"
    assert said[1] == dump.hex(), "silently another catalog"
    return "without effect"


def hits(data):
    """For each page three of: a bit in its header, in its offsets, in its middle, near its end; eight bytes; all of it."""
    random_ = random.Random(1)
    for start in range(0, len(data), PAGE):
        at = start + random_.randrange(16, PAGE - 8)
        made = [flipped(data, (start + random_.randrange(low, high)) * 8 + random_.randrange(8))
                for low, high in ((0, 16), (16, 32), (100, 140), (1000, 3000), (PAGE - 96, PAGE))]
        made += [patched(data, at, random_.randbytes(8)), patched(data, start, bytes(PAGE)),
                 patched(data, start, data[(start + 5 * PAGE) % len(data):][:PAGE])]
        yield from random_.sample(made, 3)


def test_every_page_that_is_hit_is_found_or_it_did_not_matter_and_no_process_dies(copy):
    seen = {"refused": 0, "found": 0, "without effect": 0}
    for changed in hits(copy[1]):
        seen[outcome(copy, changed)] += 1
    assert seen["refused"] > 40 and seen["found"] > 0, seen
    assert seen["without effect"] < sum(seen.values()) * 0.7, seen


def test_every_bit_of_the_meta_pages_is_found_or_without_effect(copy):
    _, data, _ = copy
    seen = [outcome(copy, flipped(data, bit)) for start in (0, PAGE) for bit in range(start * 8, (start + 152) * 8, 7)]
    assert seen.count("refused") > 0.4 * len(seen)


def test_a_file_that_ends_at_any_page_is_refused(copy):
    path, data, _ = copy
    for length in {*range(0, len(data), PAGE), 1, 100, len(data) - 1}:
        (path / "data.mdb").write_bytes(data[:length])
        status, said = in_child(lambda: parcels.reopen(path).close())
        assert (status, said.split(":")[0]) == (70, "DamagedError"), (length, said)


def test_without_the_walk_a_process_dies(copy, monkeypatch):
    """The control: the campaign sees what it is there for."""
    monkeypatch.setattr(pages, "check", lambda path, tries=8: None)
    monkeypatch.setattr(engine, "structural_problems", lambda path: [])
    path, data, _ = copy
    died = 0
    for changed in list(hits(data))[16:]:
        (path / "data.mdb").write_bytes(changed)
        died += looked_at(path)[0] not in (0, 70)
        if died:
            return
    pytest.fail("nothing died: the walk is not needed, or the campaign hits nothing")


def test_a_commit_in_between_is_not_taken_for_damage(copy, monkeypatch):
    path, _, _ = copy
    real, commits = pages.problems, []

    def disturbed(file):
        commits.append(1)
        return ["page 3 is another page"] if len(commits) < 3 else real(file)

    states = iter([[1], [2], [2], [3]])
    monkeypatch.setattr(pages, "problems", disturbed)
    monkeypatch.setattr(pages, "_metas", lambda file: next(states, [3]))
    pages.check(str(path / "data.mdb"))
    assert len(commits) == 3


def test_damage_that_keeps_changing_is_refused_all_the_same(copy, monkeypatch):
    path, _, _ = copy
    counter = iter(range(100))
    monkeypatch.setattr(pages, "problems", lambda file: ["odd"])
    monkeypatch.setattr(pages, "_metas", lambda file: [next(counter)])
    with pytest.raises(DamagedError, match="odd"):
        pages.check(str(path / "data.mdb"))


# -- one thing at a time ------------------------------------------------------------------------------------------------


def of(data):
    """The newest meta page of *data* and where it is."""
    transactions = [struct.unpack_from("<Q", data, start + 144)[0] for start in (0, PAGE)]
    return PAGE * (transactions[1] > transactions[0])


def tree(data, table):
    """Where the record of *table*'s tree is in *data*."""
    (root,) = struct.unpack_from("<Q", data, of(data) + 88 + 40)
    page = data[root * PAGE:(root + 1) * PAGE]
    return root * PAGE + page.rindex(table.encode()) + len(table)


def leaf(data, table="where", *, last=False):
    """Where the first or last leaf of *table* begins."""
    at, depth = struct.unpack_from("<Q", data, tree(data, table) + 40)[0], struct.unpack_from("<H", data, tree(data, table) + 6)[0]
    for _ in range(depth - 1):
        (lower,) = struct.unpack_from("<H", data, at * PAGE + 12)
        (offset,) = struct.unpack_from("<H", data, at * PAGE + (lower - 2 if last else 16))
        at = struct.unpack_from("<H", data, at * PAGE + offset)[0]
    return at * PAGE


def node(data, page, number=0):
    return page + struct.unpack_from("<H", data, page + 16 + 2 * number)[0]


def big(data):
    """Where an entry is whose value has pages of its own."""
    page = leaf(data, "parcels")
    numbers = range((struct.unpack_from("<H", data, page + 12)[0] - 16) // 2)
    return next((node(data, page, n) for n in numbers if struct.unpack_from("<H", data, node(data, page, n) + 4)[0] == 1), None)


def u16(value):
    return struct.pack("<H", value)


def u64(value):
    return struct.pack("<Q", value)


CASES = {
    "a key out of order": (lambda d: patched(d, node(d, leaf(d)) + 8, b"zz"), "out of order"),
    "a key that is not where it is looked for": (
        lambda d: patched(d, node(d, leaf(d, last=True)) + 8, b"\x00"), "where nobody looks"),
    "an entry outside of its page": (lambda d: patched(d, leaf(d) + 16, u16(4095)), "outside of itself"),
    "an entry that reaches past the end": (lambda d: patched(d, node(d, leaf(d)), u16(60_000)), "past its end"),
    "entries that overlap": (lambda d: patched(d, leaf(d) + 18, d[leaf(d) + 16:leaf(d) + 18]), "overlap"),
    "bounds that cannot be": (lambda d: patched(d, leaf(d) + 12, u16(17)), "bounds"),
    "no entries": (lambda d: patched(d, leaf(d) + 12, u16(16)), "0 entries"),
    "flags that are never set": (lambda d: patched(d, node(d, leaf(d)) + 4, u16(4)), "has the flags 4"),
    "another page's number": (lambda d: patched(d, leaf(d), u64(3)), "another page"),
    "a root twice": (lambda d: patched(d, tree(d, "where") + 40, d[tree(d, "parcels") + 40:][:8]), "two places|should have|another"),
    "a root that does not exist": (lambda d: patched(d, tree(d, "where") + 40, u64(1 << 40)), "does not exist"),
    "an impossible depth": (lambda d: patched(d, tree(d, "where") + 6, u16(99)), "depth"),
    "a wrong number of entries": (lambda d: patched(d, tree(d, "where") + 32, u64(5)), "should have"),
    "an empty tree that is not": (lambda d: patched(d, tree(d, "where") + 40, u64((1 << 64) - 1)), "it is empty"),
    "a table of another kind": (lambda d: patched(d, tree(d, "where") + 4, u16(4)), "is not one"),
    "meta pages far apart": (lambda d: patched(d, of(d) + 144, u64(1000 + of(d) // PAGE)), "follow each other"),
    "a meta page in the other's place": (lambda d: patched(d, of(d) + 144, u64(1001 - of(d) // PAGE)), "claims to be of"),
    "an impossible map": (lambda d: patched(d, of(d) + 32, u64(1 << 60)), "a map of"),
    "flags of the free list": (lambda d: patched(d, of(d) + 44, u16(0)), "never set"),
    "one meta page gone": (lambda d: patched(d, PAGE, bytes(PAGE)), "meta page 1 is not one"),
    "no meta pages": (lambda d: bytes(2 * PAGE) + d[2 * PAGE:], "no valid meta page"),
}


@pytest.mark.parametrize("name", CASES)
def test_each_kind_of_damage_is_named(copy, name):
    path, data, _ = copy
    change, words = CASES[name]
    (path / "data.mdb").write_bytes(change(data))
    assert pages.problems(str(path / "data.mdb")) or name == "no meta pages"
    with pytest.raises(DamagedError, match=words):
        parcels.reopen(path)


def test_meta_pages_that_change_while_they_are_read_are_read_again(copy, monkeypatch):
    path, _, _ = copy
    real, calls = metapage._both, []

    def torn(until):
        calls.append(1)
        return [None, None] if len(calls) % 2 and len(calls) < until else real(fd.fd)

    with Descriptor(str(path / "data.mdb"), os.O_RDONLY) as number:
        fd = Descriptor(str(path / "data.mdb"), os.O_RDONLY)
        for until, reads in ((3, 3), (99, 17)):   # once; always: then it is taken as it is
            calls.clear()
            monkeypatch.setattr(metapage, "_both", lambda _fd, until=until: torn(until))
            metapage.read_metas(number)
            assert len(calls) == reads
        fd.close()


def large_value(data):
    at = big(data)
    assert at is not None
    key_bytes = struct.unpack_from("<H", data, at + 6)[0]
    return at + 8 + key_bytes


LARGE_CASES = {
    "a large value that is nowhere": (lambda d: patched(d, large_value(d), u64(1 << 40)), "cannot be at page"),
    "a large value that another page is": (
        lambda d: patched(d, struct.unpack_from("<Q", d, large_value(d))[0] * PAGE + 10, u16(2)), "should begin a value"),
}


@pytest.mark.parametrize("name", LARGE_CASES)
def test_each_kind_of_damage_to_a_large_value_is_named(copy, name):
    path, data, _ = copy
    change, words = LARGE_CASES[name]
    (path / "data.mdb").write_bytes(change(data))
    with pytest.raises(DamagedError, match=words):
        parcels.reopen(path)


def free_list(data):
    """Where the value of the free list's first entry begins."""
    (root,) = struct.unpack_from("<Q", data, of(data) + 40 + 40)
    return node(data, root * PAGE) + 16


@pytest.mark.parametrize("change, words", [
    (lambda d: patched(d, free_list(d) + 8, d[tree(d, "where") + 40:][:8]), "is in use"),
    (lambda d: patched(d, free_list(d) + 8, u64(1 << 40)), "does not exist"),
    (lambda d: patched(d, free_list(d), u64(1 << 20)), "list of free pages"),
], ids=["a page in use", "a page that does not exist", "a length that cannot be"])
def test_a_free_list_that_would_have_pages_overwritten_is_refused(copy, change, words):
    path, data, _ = copy
    (path / "data.mdb").write_bytes(change(data))
    with pytest.raises(DamagedError, match=words):
        parcels.reopen(path)


def test_what_is_no_file_at_all_is_damage_or_missing(copy):
    path, _, _ = copy
    os.unlink(path / "data.mdb")
    with pytest.raises(MissingError):
        parcels.reopen(path)
    assert pages.damage(str(path / "data.mdb"))
    os.mkdir(path / "data.mdb")
    with pytest.raises(DamagedError, match="directory"):
        parcels.reopen(path)
    assert pages.damage(str(path / "data.mdb"))


def test_pages_of_another_size_are_read_too(tmp_path):
    """A machine with larger pages makes them so."""
    meta = struct.pack("<Q2xHIIIQQ", 0, 8, 0, 0xBEEFC0DE, 1, 0, 1 << 30)
    bodies = struct.pack("<IHHQQQQQ", 16384, 8, 0, 0, 0, 0, 0, (1 << 64) - 1) + struct.pack("<IHHQQQQQ", 0, 0, 0, 0, 0, 0, 0, (1 << 64) - 1)
    page = (meta + bodies + struct.pack("<QQ", 1, 0)).ljust(16384, b"\0")
    (tmp_path / "data.mdb").write_bytes(page + page)
    assert metapage.expected_size(str(tmp_path / "data.mdb")) == (32768, 32768)
    assert pages.problems(str(tmp_path / "data.mdb")) == []


@pytest.mark.parametrize("odd", ["garbage", "empty", "short", "absent"])
def test_a_lock_file_that_is_odd_is_made_anew_when_nobody_else_is_in(copy, odd):
    path, _, dump = copy
    lock = path / "lock.mdb"
    if odd == "absent":
        lock.unlink(missing_ok=True)
    else:
        lock.write_bytes({"garbage": os.urandom(70_000), "empty": b"", "short": b"\xff" * 100}[odd])
    assert looked_at(path) == (0, [True, dump.hex()])


def test_an_end_of_the_log_that_does_not_chain_is_refused_before_anything_is_appended(copy):
    path, data, _ = copy
    with Journal.open(path, Parcels()) as journal, journal.read() as view:
        link = view.head()[1]
    (path / "data.mdb").write_bytes(data.replace(link, bytes(32)))
    with pytest.raises(DamagedError, match="does not chain"):
        parcels.reopen(path)


def test_a_log_that_ends_before_the_archive_does_is_an_older_copy(copy):
    path, data, _ = copy
    with parcels.reopen(path) as journal:
        pack(journal, "later")
        mark(journal)
        journal.archive()
    (path / "data.mdb").write_bytes(data)
    with pytest.raises(DamagedError, match="an older copy"):
        parcels.reopen(path)
    with Replay.open([path], Parcels()) as replay:   # looking at it is another matter
        assert replay.verify().sound


# -- bad sectors --------------------------------------------------------------------------------------------------------


def large_page(data):
    return struct.unpack_from("<Q", data, large_value(data))[0] * PAGE


def bad_sectors(monkeypatch, pages_lost, number=errno.EIO):
    """From now on these pages cannot be read."""
    real = os.pread

    def pread(fd, count, offset):
        if os.readlink(f"/proc/self/fd/{fd}").endswith("data.mdb") and any(
            offset <= page * PAGE < offset + count or page * PAGE <= offset < (page + 1) * PAGE for page in pages_lost
        ):
            raise OSError(number, os.strerror(number))
        return real(fd, count, offset)

    monkeypatch.setattr(os, "pread", pread)


@pytest.mark.parametrize("where", [lambda data: 0, leaf, large_page], ids=["a meta page", "a leaf", "a large value"])
def test_a_device_that_does_not_read_is_the_machines_error_and_not_damage(copy, monkeypatch, where):
    path, data, _ = copy
    bad_sectors(monkeypatch, [where(data) // PAGE])
    with pytest.raises(HostError, match="cannot be read") as caught:
        parcels.reopen(path)
    assert type(caught.value) is HostError
    assert pages.damage(str(path / "data.mdb")) == [f"[Errno {errno.EIO}] {os.strerror(errno.EIO)}"]


def test_other_errors_of_the_machine_come_out_as_they_are(copy, monkeypatch):
    path, _, _ = copy
    bad_sectors(monkeypatch, [0], errno.EMFILE)
    with pytest.raises(BusyError):
        parcels.reopen(path)
    for look in (lambda: pages.damage(str(path / "data.mdb")), lambda: salvage(str(path), parcels.UUID, str(path / "segments"))):
        with pytest.raises(OSError, match="Too many open files"):
            look()
    bad_sectors(monkeypatch, [6], errno.EMFILE)


def test_around_bad_sectors_everything_else_is_salvaged(copy, monkeypatch):
    path, data, _ = copy
    heads = set()
    for page in range(2, len(data) // PAGE):
        with monkeypatch.context() as here:
            bad_sectors(here, [page])
            left = salvage(str(path), parcels.UUID, str(path / "segments"))
        assert len(left.segments) == 1
        heads.add((left.head[0], left.whole))
    assert len(heads) > 1 and any(whole for _, whole in heads)
    bad_sectors(monkeypatch, [0])
    left = salvage(str(path), parcels.UUID, str(path / "segments"))
    assert (left.tail, left.whole) == ((), False)
