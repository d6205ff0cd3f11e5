"""Files made by threads: the tree, the manifest and the tar-split are those that one thread would have made."""

import hashlib
import itertools
import os
import stat
import subprocess
import sys
import threading

import pytest
from tarmaker import END, chunks, directory, file, hardlink, pax, symlink
from test_unpack import FORM, Tree

from fuzz import nasties
from layerstore.trees.assemble import assembled
from layerstore.differs import tar
from layerstore.errors import ArchiveError, IoError, LayerstoreError, LimitExceededError
from layerstore.model import DiffTarget, Limits
from layerstore.system import kernel
from layerstore.system import threads as threads_module
from layerstore.system.threads import running
from layerstore.trees.unpack import files, making, process, records, regular, unpack
from layerstore.trees.unpack import hashing as hashing_module

MANY = b"".join(file(b"d%d/f%d" % (n % 7, n), b"%d" % n * (n % 50)) for n in range(500))
A, B = b"first content", b"another content"


@pytest.fixture
def trees(tmp_path):
    made = []

    def make(alone):
        made.append(Tree(tmp_path / f"layer{len(made)}", alone=alone))
        return made[-1]

    yield make
    for tree in made:
        tree.close()


def look(tree):
    """All that there is: the layer's directory, kept files and side files included."""
    found = {}
    for directory_, names, others in os.walk(tree.path):
        for name in names + others:
            path = os.path.join(directory_, name)
            s = os.lstat(path)
            content = None
            if stat.S_ISREG(s.st_mode):
                with open(path, "rb") as opened:
                    content = hashlib.sha256(opened.read()).hexdigest()
            times = s.st_mtime_ns if "diff/" in path else 0
            found[os.path.relpath(path, tree.path)] = (s.st_mode, s.st_uid, s.st_nlink, times, content)
    return found


def same(trees, data, *, end=True):
    one, other = trees(10**9), trees(0)
    for tree in (one, other):
        tree.unpack(data, end=end, chunk=3000)
    assert look(one) == look(other)
    assert one.result == other.result
    assert b"".join(assembled(other.fds[0])) == data + (END if end else b"")
    other.sound()
    return other


def threads():
    return [t.name for t in threading.enumerate() if t.name.startswith("layerstore-create")]


CLASHES = {
    "a file by a file": file(b"x", A) + MANY + file(b"x", B),
    "a file by a file at once": MANY + file(b"x", A) + file(b"x", B) + file(b"x", A),
    "an empty file": MANY + file(b"x") + file(b"x", B) + file(b"x"),
    "a symbolic link by a file": symlink(b"x", b"d1") + MANY + file(b"x", A),
    "a file by a symbolic link": MANY + file(b"x", A) + symlink(b"x", b"d1"),
    "a file by a directory": MANY + file(b"x", A) + directory(b"x/") + file(b"x/y", B),
    "a file by an implied directory's whiteout": MANY + file(b"x", A) + file(b".wh.x"),
    "a whiteout by a file": file(b".wh.x") + MANY + file(b"x", A),
    "a hard link to what is being made": MANY + file(b"x", A) + hardlink(b"y", b"x"),
    "a hard link in the place of what is being made": MANY + file(b"x", A) + file(b"y", B) + hardlink(b"y", b"x"),
    "a hard-linked file by a file": file(b"x", A) + hardlink(b"y", b"x") + MANY + file(b"y", B),
    "a directory with what is being made by a file": MANY + file(b"e/x", A) + file(b"e/y", B) + file(b"e", A),
    "a link through which the last one went": MANY + symlink(b"s", b"d1") + file(b"s/x", A) + file(b"s", B) + file(b"d1/x", B),
    "many entries behind one file": MANY + file(b"x", A) + b"".join(symlink(b"l%d" % n, b"x") for n in range(1500)),
    "what is large among what is small": file(b"x", A) + file(b"big", b"b" * 300_000) + file(b"y", B) + file(b"big", A),
}


@pytest.mark.parametrize("case", CLASHES)
def test_whatever_takes_the_place_of_a_file_that_is_being_made_the_layer_is_the_same(trees, case):
    same(trees, CLASHES[case])


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_entries_of_one_name_count_in_the_archives_order(trees, order):
    parts = [file(b"n", A), file(b"n", B), symlink(b"n", b"d2"), file(b".wh.n")]
    same(trees, MANY + b"".join(parts[i] for i in order))


def test_every_hand_made_nasty_gives_the_same_layer_or_the_same_error(trees):
    def outcome(tree, data):
        limits = Limits(max_entries=500, max_bytes=4 << 20, max_pax_record=1 << 14, max_depth=40)
        try:
            target = DiffTarget(*tree.fds, overlay_form=FORM, limits=limits)
            return unpack(chunks(data, 700), target, require_end=False, alone=tree.alone)
        except (ArchiveError, LimitExceededError) as error:
            return str(error)

    accepted = 0
    for data in nasties.seeds("unpack"):
        one, other = trees(10**9), trees(0)
        first = outcome(one, data)
        assert first == outcome(other, data)
        if not isinstance(first, str):
            assert look(one) == look(other)
            accepted += 1
    assert accepted > 5


@pytest.mark.parametrize("case", ["beneath", "link"])
def test_what_leads_through_a_file_that_is_being_made_is_refused_alike(trees, case):
    data = {"beneath": file(b"x", A) + file(b"x/y", B), "link": symlink(b"s", b"d1") + file(b"s", A) + file(b"s/y", B)}[case]
    texts = []
    for alone in (10**9, 0):
        with pytest.raises(ArchiveError, match="lies beneath") as caught:
            trees(alone).unpack(MANY + data)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


def test_files_are_made_by_threads_and_the_threads_end(trees, monkeypatch):
    makers = set()
    monkeypatch.setattr(files, "_write", lambda fd, data, write=files._write: (
        makers.add(threading.current_thread().name), write(fd, data)))
    trees(0).unpack(MANY)
    assert makers == {"layerstore-create"}
    assert threads() == []


def test_threads_that_wait_all_hear_of_the_end_and_none_has_to_look_for_it(monkeypatch):
    from layerstore.system import threads as module

    monkeypatch.setattr(module, "_LOOK_SECONDS", 3600)   # who had to look would not be back for an hour
    in_flight = making.InFlight()
    creators = [making.Creator(in_flight.batches, lambda _file: None) for _ in range(5)]
    for each in creators:
        each.start()
    for each in reversed(creators):   # as an ExitStack does: the end goes to another first
        each.close()
    assert threads() == []


def test_a_small_layer_needs_no_thread(trees, monkeypatch):
    monkeypatch.setattr(making.Creator, "start", None)   # calling it would fail
    trees(None).unpack(b"".join(file(b"f%d" % n, A) for n in range(60)))


def test_the_first_failure_in_the_archives_order_is_the_one_that_is_raised(trees, monkeypatch):
    def failing(file, **more):
        if file.name in (b"f100", b"f300"):
            raise OSError(28, f"no room for {file.name.decode()}")
        made(file, **more)

    made = files.make
    monkeypatch.setattr("layerstore.trees.unpack.regular.make", failing)
    with pytest.raises(OSError, match="no room for f100"):
        trees(0).unpack(MANY)
    assert threads() == []


def test_a_thread_that_dies_is_noticed(trees, monkeypatch):
    def dying(self, file):
        raise MemoryError("in the thread")

    monkeypatch.setattr(making.Creator, "_one", dying)
    with pytest.raises((MemoryError, LayerstoreError)):
        trees(0).unpack(MANY)
    assert threads() == []


@pytest.mark.timeout(60)
def test_a_thread_that_dies_with_a_batch_in_its_hands_is_noticed_while_the_other_lives(trees, monkeypatch):
    from layerstore.system.threads import Channel

    def losing(self, alive):
        item = taken(self, alive)
        if item is not None and not lost:
            lost.append(item)
            raise MemoryError("after it was taken")
        return item

    lost = []
    taken = Channel.get
    monkeypatch.setattr(Channel, "get", losing)
    with pytest.raises(MemoryError, match="after it was taken"):
        trees(0).unpack(MANY)
    assert threads() == []


def test_an_archive_that_turns_out_wrong_ends_the_threads(trees):
    with pytest.raises(ArchiveError):
        trees(0).unpack(MANY + file(b"../x"))
    assert threads() == []


def test_a_layer_that_is_no_longer_wanted_ends_the_threads(tmp_path):
    cancelled = threading.Event()
    tree = Tree(tmp_path / "layer")

    def stream():
        yield MANY
        cancelled.set()
        yield MANY.replace(b"d1/", b"e1/")

    with pytest.raises(LayerstoreError, match="cancelled"):
        unpack(stream(), DiffTarget(*tree.fds, overlay_form=FORM, cancelled=cancelled), alone=0)
    assert threads() == []
    tree.close()


def test_few_records_wait_for_a_file_that_is_being_made(trees, monkeypatch):
    most = 0

    def add_row(self, *args):
        nonlocal most
        full = added(self, *args)
        most = max(most, len(self.filling.rows) + sum(len(batch.rows) for batch in self._given))
        return full

    added = making.InFlight.add_row
    monkeypatch.setattr(making.InFlight, "add_row", add_row)
    trees(0).unpack(file(b"x", A) + b"".join(symlink(b"l%d" % n, b"x") for n in range(5000)))
    assert 1 < most <= (making._BATCHES + 1) * (making._FULL // making._ROW_COST)


@pytest.mark.parametrize("where", ["of an entry that is no content", "after the end"])
def test_little_of_the_stream_is_held_behind_a_file_that_is_being_made(trees, monkeypatch, where):
    held = []

    def is_much(self):
        held.append(sum(map(len, self.raw)))
        return asked(self)

    asked = records.Records.is_much
    monkeypatch.setattr(records.Records, "is_much", is_much)
    zeros = bytes(20 << 20)
    rest = file(b".wh..wh.plnk", zeros) + END if where.startswith("of") else END + zeros
    same(trees, file(b"x", A) + rest, end=False)
    assert 1 << 19 < max(held) <= 2 << 20


def test_files_being_made_hold_a_bounded_part_of_the_stream():
    in_flight = making.InFlight()
    size = 100_000
    taken = 0
    while True:
        in_flight.add(files.NewFile(3, None, b"n", b"p%d" % taken, None, memoryview(bytes(size))))
        if in_flight.add_row((b"", None, None)):
            break
        taken += 1
    assert (taken + 1) * size <= making._FULL + size


def test_modes_that_the_umask_cuts_are_right_in_threads_too(trees):
    old = os.umask(0o077)
    try:
        tree = trees(0)
        tree.unpack(b"".join(file(b"f%d" % n, A, mode=mode) for n, mode in enumerate([0o644, 0o755, 0o4755, 0o2711, 0o400, 0] * 20)))
        tree.sound()
    finally:
        os.umask(old)


def test_attributes_of_files_made_by_threads_are_set(trees):
    tree = trees(0)
    tree.unpack(MANY + pax((b"SCHILY.xattr.user.note", b"hello")) + file(b"x", A, mode=0o444))
    assert os.getxattr(tree.diff / "x", "user.note") == b"hello"


def hashing():
    return [t.name for t in threading.enumerate() if t.name == "layerstore-digest"]


def test_a_large_file_is_hashed_by_a_thread_meanwhile_and_the_layer_is_the_same(trees, monkeypatch):
    started = []
    monkeypatch.setattr(regular, "Hasher", lambda: started.append(hashing_module.Hasher()) or started[-1])
    data = file(b"a", A) + file(b"large", b"0123456789" * 500_000) + file(b"b", B) + file(b"other", b"x" * (5 << 20))
    one, other = trees(0), trees(10**9)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    one.unpack(data)
    assert len(started) == 1             # one for all of them
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
    other.unpack(data)
    assert len(started) == 1             # where there is one processor the unpacking thread does it
    assert look(one) == look(other)
    assert one.result == other.result
    one.sound()
    assert hashing() == []


def test_an_archive_that_ends_within_a_large_file_ends_the_thread_that_hashes_it(trees, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    with pytest.raises(ArchiveError, match="ends inside"):
        trees(0).unpack(file(b"large", b"x" * (5 << 20))[: 3 << 20], end=False)
    assert hashing() == []


def test_what_stops_the_hashing_is_raised_and_nobody_waits_for_it_for_ever():
    class Bad:
        def update(self, _piece):
            raise MemoryError("while hashing")

    with pytest.raises(MemoryError, match="while hashing"), running(hashing_module.Hasher()) as hasher:
        hasher.add(Bad(), memoryview(b"x"))
        hasher.settle()
    assert hashing() == []


AFTER_MAIN = """
import hashlib, sys, threading
from layerstore.differs.tar import _Hashes
from layerstore.system import threads
from layerstore.trees.unpack.hashing import Hasher

def tar(hashes):
    hashes.tar(b"one")
    hashes._thread.join(0.2)             # as if the stream stood still
    hashes.tar(b" and two")
    return hashes.finish()[1].removeprefix("sha256:")

def large(hasher):
    digest = hashlib.sha256(b"one")
    hasher._thread.join(0.2)
    hasher.add(digest, memoryview(b" and two"))
    hasher.settle()
    return digest.hexdigest()

def work():
    for kind, digest in (_Hashes, tar), (Hasher, large):
        with threads.running(kind()) as worker:
            while threading.main_thread().is_alive():
                worker._thread.join(0.01)
            print(digest(worker) == hashlib.sha256(b"one and two").hexdigest(), flush=True)

threads._LOOK_SECONDS = 0.01
threading.Thread(target=work).start()
"""


def test_a_thread_that_outlives_the_main_one_has_all_hashed_and_does_not_hang():
    done = subprocess.run([sys.executable, "-c", AFTER_MAIN], check=False, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("True\nTrue\n", "")


@pytest.mark.timeout(60)
def test_a_hashing_thread_that_ended_before_its_end_gives_no_digest_and_nobody_waits_for_it(monkeypatch):
    monkeypatch.setattr(threads_module, "_LOOK_SECONDS", 0.01)
    workers = []

    def make():                          # and be gone
        workers.extend((hashing_module.Hasher(), tar._Hashes()))
        for each in workers:
            each.start()

    maker = threading.Thread(target=make)
    maker.start()
    maker.join()
    hasher, hashes = workers
    for each in workers:
        each._thread.join()
    with pytest.raises(IoError, match="ended by itself"):
        hasher.settle()
    hashes.tar(b"x")
    with pytest.raises(IoError, match="ended by itself"):
        hashes.finish()
    with pytest.raises(IoError, match="ended by itself"):
        for _ in range(100):
            hashes.tar(b"x")


def test_much_of_one_file_is_on_its_way_to_the_disk_before_the_sync(trees, monkeypatch):
    begun = []
    monkeypatch.setattr(files, "start_writeback", lambda fd: begun.append(os.fstat(fd).st_size >> 20))
    trees(0).unpack(file(b"a", A) + file(b"large", b"much" * (5 << 20)) + file(b"b", b"x" * (5 << 20)))
    assert begun == [8, 16]


def test_that_it_is_on_its_way_is_a_hint_and_never_fails(monkeypatch):
    kernel.start_writeback(-1)
    monkeypatch.setattr(kernel, "_sync_file_range", None)   # as of a libc that lacks it
    kernel.start_writeback(-1)


@pytest.mark.parametrize("alone", [10**9, 0])
def test_a_write_that_the_kernel_cuts_short_is_gone_on_with(trees, monkeypatch, alone):
    """As it does on a full disk, and at 2 GiB."""
    real = os.write
    monkeypatch.setattr(process, "_is_possible", lambda _dress: False)
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:1000]))
    tree = trees(alone)
    tree.unpack(b"".join(file(b"f%d" % n, bytes([n]) * size) for n, size in enumerate((999, 5_000, 300_000), 1)))
    monkeypatch.undo()
    assert [(tree.diff / f"f{n}").read_bytes() for n in (1, 2, 3)] == [b"\1" * 999, b"\2" * 5_000, b"\3" * 300_000]
    tree.sound()
