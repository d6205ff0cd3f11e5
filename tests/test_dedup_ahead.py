"""Content of layers that a process beside reads ahead: what is right is handed on, and everything else is left to who asked."""

import array
import errno
import hashlib
import io
import os
import pathlib
import random
import socket
import time

import pytest
from storekit import add
from test_dedup_finder import findings, sha, spoil

import chunkedmaker
import layerstore
from layerstore.dedup import LayerFinder, ahead, places, reading
from layerstore.system import beside
from layerstore.trees.unpack import creating

FILES = {f"d{n // 10}/e/f{n}": random.Random(n).randbytes(2_000 + 97 * n) for n in range(300)}


@pytest.fixture
def at_once(monkeypatch):
    """There is a process, however few places and processors there are."""
    monkeypatch.setattr(ahead, "_FEWEST", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    monkeypatch.setattr(beside, "_never_start", set())


def no_process_is_left():
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    return True


def taken(store, wanted):
    """What is read ahead of the content *wanted*, in order; None where it was not."""
    finder = LayerFinder(store._handle)
    with finder.find([sha(each) for each in wanted]) as found, finder.ahead([found[sha(each)] for each in wanted]) as reader:
        wait_for(reader)
        return [reader.take() for _ in wanted]


def wait_for(reader):
    """Until the process can be asked, or never will."""
    while reader._begins is None and reader._thread.is_alive():
        time.sleep(0.01)


def test_everything_is_read_there_in_order_and_as_often_as_it_is_wanted(store, at_once, monkeypatch):
    add(store, FILES)
    monkeypatch.setattr(places.LayerPlace, "read", None)   # calling it would fail
    wanted = [data for _, data in sorted(FILES.items())] * 3   # several requests, and both windows again
    assert taken(store, wanted) == wanted
    assert no_process_is_left()


def test_what_is_rotten_or_gone_is_not_handed_on(store, root, at_once):
    layer = add(store, FILES)
    spoil(root, layer, "d1/e/f11")
    (root / "layers" / layer.id / "diff" / "d1/e/f12").unlink()
    (root / "layers" / layer.id / "diff" / "d1/e/f13").write_bytes(b"short")
    names = [f"d1/e/f{n}" for n in range(10, 16)]
    assert taken(store, [FILES[name] for name in names]) == [FILES[names[0]], None, None, None, FILES[names[4]], FILES[names[5]]]


def test_a_process_that_ends_in_the_middle_leaves_the_rest_to_who_asked(store, at_once, monkeypatch, tmp_path):
    add(store, FILES)
    wanted = list(FILES.values())
    program = tmp_path / "reading.py"
    # its end would take the first answer along, were a request left unread
    ending = "peer.send(right); peer.recvmsg(MESSAGE, room); return"
    program.write_text(pathlib.Path(reading.__file__).read_text().replace("peer.send(right)", ending))
    monkeypatch.setattr(reading, "__file__", str(program))
    found = taken(store, wanted)
    assert found[0] == wanted[0]
    assert found[-1] is None
    assert all(each in (None, data) for each, data in zip(found, wanted, strict=True))
    assert no_process_is_left()


class Refusing:
    """A socket that sends everything but the message of one number; what came through is counted."""

    def __init__(self, peer, refused):
        self._peer, self._refused, self.tried = peer, refused, 0

    def __getattr__(self, name):
        return getattr(self._peer, name)

    def sendmsg(self, *what):
        self.tried += 1
        if self.tried == self._refused:
            raise OSError(errno.EMSGSIZE, "too long")
        return self._peer.sendmsg(*what)


@pytest.mark.parametrize("refused", [1, 2, 3])
def test_a_request_that_was_not_sent_is_not_waited_for_and_is_the_last(store, at_once, monkeypatch, refused):
    peers = []

    def start(*given, real=beside.Beside, **what):
        helper = real(*given, **what)
        helper._peer = Refusing(helper._peer, refused)
        peers.append(helper._peer)
        return helper

    add(store, FILES)                    # with processes of other programs
    monkeypatch.setattr(beside, "Beside", start)
    monkeypatch.setattr(ahead, "_MOST_PLACES", 10)
    wanted = list(FILES.values())[:50]
    sent = (refused - 1) * 10
    assert taken(store, wanted) == wanted[:sent] + [None] * (50 - sent)
    assert [peer.tried for peer in peers] == [refused]
    assert no_process_is_left()


def test_who_takes_no_more_is_not_waited_for(store, at_once):
    add(store, FILES)
    digests = [sha(each) for each in FILES.values()] * 4
    finder = LayerFinder(store._handle)
    with finder.find(digests) as found, finder.ahead([found[each] for each in digests]) as reader:
        while reader._begins is None:
            time.sleep(0.01)
        reader.take()
    assert not reader._thread.is_alive()
    assert no_process_is_left()


def test_few_places_are_worth_no_process_and_one_processor_cannot_have_one_beside(store, monkeypatch):
    add(store, FILES)
    finder = LayerFinder(store._handle)
    for count, processors, worth in ((ahead._FEWEST - 1, 2, False), (ahead._FEWEST, 2, True), (ahead._FEWEST, 1, False)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid, processors=processors: set(range(processors)))
        with finder.find([sha(each) for each in list(FILES.values())[:count]]) as found:
            assert ahead.is_worth_it(list(found.values())) is worth


def test_a_program_that_cannot_run_leaves_everything_to_who_asked_and_is_not_tried_again(store, at_once, monkeypatch, tmp_path):
    add(store, FILES)
    program = tmp_path / "reading.py"
    program.write_text("1 / 0")
    monkeypatch.setattr(reading, "__file__", str(program))
    assert taken(store, list(FILES.values())) == [None] * len(FILES)
    assert no_process_is_left()
    assert not beside.can_start(reading.__file__)
    assert beside.can_start(creating.__file__)   # of other programs that says nothing


def test_large_pieces_are_not_read_there(store, at_once):
    large = random.Random(1).randbytes(ahead._LARGEST + 1)
    add(store, {"large": large, "a": b"a" * 100, "b": b"b" * 100})
    assert taken(store, [b"a" * 100, large, b"b" * 100]) == [b"a" * 100, None, b"b" * 100]


# -- the program -----------------------------------------------------------------------------------------------------


def asked(directory, *wanted, size=1000):
    memory = bytearray(size)
    tree = os.open(directory, os.O_RDONLY)
    try:
        rows = [(0, path, offset, len(data), hashlib.sha256(data).digest()) for path, offset, data in wanted]
        return list(reading.read(rows, array.array("i", [tree]), memoryview(memory))), bytes(memory)
    finally:
        os.close(tree)


def test_the_program_reads_pieces_one_after_another_and_leaves_room_for_those_that_it_cannot_read(tmp_path):
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "f").write_bytes(b"0123456789")
    (tmp_path / "d" / "e" / "g").write_bytes(b"more")
    right, memory = asked(tmp_path, (b"d/f", 2, b"2345"), (b"d/none", 0, b"xx"), (b"d/e/g", 0, b"more"), (b"d/f", 0, b"0123"),
                          (b"d/f", 8, b"89x"), (b"d/f", 0, b"other"))
    assert right == [1, 0, 1, 1, 0, 0]
    assert memory[:14] == b"2345\0\0more0123"


def test_the_program_follows_no_link_and_reads_regular_files_only(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "f").write_bytes(b"data")
    (tmp_path / "way").symlink_to("real")
    (tmp_path / "link").symlink_to("real/f")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        right, _ = asked(tmp_path, *((path, 0, b"data") for path in (b"way/f", b"link", b"fifo", b"socket", b"real", b"real/f")))
    assert right == [0, 0, 0, 0, 0, 1]


def test_the_program_keeps_no_more_directories_open_than_it_may(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    deep = "/".join(["d"] * reading._DEEPEST)
    (tmp_path / deep / "d").mkdir(parents=True)
    (tmp_path / deep / "f").write_bytes(b"data")
    (tmp_path / deep / "d" / "f").write_bytes(b"data")
    wanted = [(f"{way}/f".encode(), 0, b"data") for way in (deep, f"{deep}/d", "d/none", deep)]
    assert asked(tmp_path, *wanted)[0] == [1, 0, 0, 1]
    assert len(os.listdir("/proc/self/fd")) == before


# -- of a layer in parts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rotten", [False, True])
@pytest.mark.parametrize("form", [chunkedmaker.CURRENT, chunkedmaker.OF_2022])
def test_a_layer_in_parts_is_the_same_and_a_rotten_source_is_fetched_and_told_to_check(store, root, at_once, monkeypatch, form, rotten):
    def take(reader, real=ahead.Ahead.take):
        wait_for(reader)
        answers.append(real(reader))
        return answers[-1]

    answers = []
    monkeypatch.setattr(ahead.Ahead, "take", take)
    members = [chunkedmaker.member(name, data) for name, data in FILES.items()]
    made = chunkedmaker.make(form, [*members, chunkedmaker.member("new", b"new" * 1000)])
    layer = add(store, FILES)
    if rotten:
        spoil(root, layer, "d3/e/f33")
    blob = layerstore.LocalBlob(lambda: io.BytesIO(made.blob), len(made.blob), "a blob")
    differ = layerstore.ChunkedDiffer(blob, expect=made.descriptor, diff_id=made.diff_id, finder=store.finder())
    with store.stage(differ) as staged:
        assert store.apply_staged_layer(staged).diff_id == made.diff_id
    assert bool(findings(store)) is rotten
    assert answers == [None if rotten and name == "d3/e/f33" else data for name, data in FILES.items()]
    assert no_process_is_left()
