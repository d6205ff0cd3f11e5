"""The side file ``digests``: what is written is found, and nothing that is in it does harm."""

import hashlib
import os
import pathlib
import struct
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storekit import add, digest

from layerstore.formats import digests
from layerstore.formats.digests import DigestsWriter, Reader, prefixes

GOLDEN = pathlib.Path(__file__).parent / "golden" / "digests-v1"


@pytest.fixture
def fd(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def sha(data):
    return hashlib.sha256(data).digest()


def write(fd, rows):
    """Rows of path, offset, length and digest; offset None: a whole file."""
    with DigestsWriter(fd) as writer:
        for path, offset, length, each in rows:
            if offset is None:
                writer.add_file(path, length, each)
            else:
                writer.add_chunk(path, offset, length, each)
        writer.finish()


def found(fd, *wanted):
    with Reader(fd) as reader:
        return list(reader.find(prefixes(wanted)))


def test_what_is_written_is_found(fd):
    write(fd, [(b"a/b", None, 100, sha(b"1")), (b"a/b", 0, 60, sha(b"2")), (b"a/b", 64, 70, sha(b"3"))])
    assert found(fd, sha(b"3"), sha(b"1"), sha(b"no")) == [
        (sha(b"1"), b"a/b", 0, 100), (sha(b"3"), b"a/b", 64, 70),
    ]


def test_what_lies_in_several_blocks_is_found(fd, monkeypatch):
    monkeypatch.setattr(digests, "_ROWS", 3)
    write(fd, [(b"f%d" % n, None, 100 + n, sha(b"%d" % n)) for n in range(10)])
    assert found(fd, *(sha(b"%d" % n) for n in range(10))) == [(sha(b"%d" % n), b"f%d" % n, 0, 100 + n) for n in range(10)]


def test_digests_that_begin_alike_are_told_apart(fd):
    one, other = b"x" * 8 + b"1" * 24, b"x" * 8 + b"2" * 24
    write(fd, [(b"one", None, 100, one), (b"other", None, 100, other)])
    assert found(fd, other) == [(other, b"other", 0, 100)]


def test_a_layer_of_tiny_files_has_no_index(fd, tmp_path):
    write(fd, [(b"a", None, 63, sha(b"1")), (b"a", 0, 63, sha(b"2"))])
    assert os.listdir(tmp_path) == []


def test_a_tiny_file_has_a_row_and_an_empty_one_has_none(fd):
    write(fd, [(b"a", None, 1, sha(b"1")), (b"b", None, 0, sha(b"")), (b"c", None, 64, sha(b"2"))])
    assert found(fd, sha(b"1"), sha(b"")) == [(sha(b"1"), b"a", 0, 1)]


def test_memory_is_bounded_while_many_are_written(fd):
    tracemalloc.start()
    try:
        with DigestsWriter(fd) as writer:
            for n in range(100_000):
                writer.add_file(b"some/directory/of/a/layer/with/a/name/%d" % n, 1000, n.to_bytes(32, "big"))
            writer.finish()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 << 20


def test_every_truncation_is_read_up_to_its_last_whole_block(fd, tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "_ROWS", 2)
    write(fd, [(b"f%d" % n, None, 100, sha(b"%d" % n)) for n in range(5)])
    whole, seen = (tmp_path / "digests").read_bytes(), set()
    for length in range(len(whole)):
        (tmp_path / "digests").write_bytes(whole[:length])
        got = found(fd, *(sha(b"%d" % n) for n in range(5)))
        assert [each.path for each in got] == [b"f%d" % n for n in range(len(got))]
        seen.add(len(got))
    assert seen == {0, 2, 4}


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_changed_byte_does_no_harm(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("d")
    fd = os.open(path, os.O_RDONLY)
    try:
        write(fd, [(b"a/f%d" % n, None, 100, sha(b"%d" % n)) for n in range(5)])
        image = bytearray((path / "digests").read_bytes())
        image[data.draw(st.integers(0, len(image) - 1))] ^= data.draw(st.integers(1, 255))
        (path / "digests").write_bytes(image)
        for each in found(fd, *(sha(b"%d" % n) for n in range(5))):
            assert each.path
            assert not each.path.startswith(b"/")
            assert each.offset + each.length < 1 << 63
    finally:
        os.close(fd)


def forged(rest, rows=1, packed=None, head=None):
    packed = zlib.compress(rest) if packed is None else packed
    head = head if head is not None else struct.pack("<III", rows, 1, len(packed))
    return b"layerstore-digests\0\0" + struct.pack("<I", 1) + head + sha(b"1")[:8] + sha(b"1")[8:] + packed


@pytest.mark.parametrize("image", [
    b"", b"layerstore-digests\0\0", b"x" * 100,
    forged(struct.pack("<IQQ", 7, 0, 100) + b"a"),                      # a path that is not there
    forged(struct.pack("<IQQ", 0, 0, 0) + b"a"),                        # nothing
    forged(struct.pack("<IQQ", 0, 1 << 63, 1 << 63) + b"a"),            # beyond every file
    *(forged(struct.pack("<IQQ", 0, 0, 100) + p) for p in (b"", b"/etc/x", b"../x", b"a/../../x", b"a//b", b"x" * 5000)),
    forged(b"", packed=b"junk"),
    forged(bytes(1 << 24)),                                             # a bomb
    forged(b"", head=struct.pack("<III", 1 << 31, 1, 5)),
    forged(b"", head=struct.pack("<III", 1, 1, 1 << 31)),
    forged(b"", head=struct.pack("<III", 0, 0, 0)),
])
def test_what_cannot_be_right_says_nothing(fd, tmp_path, image):
    (tmp_path / "digests").write_bytes(image)
    assert found(fd, sha(b"1")) == []


def test_the_forger_of_these_tests_can_forge(fd, tmp_path):
    (tmp_path / "digests").write_bytes(forged(struct.pack("<IQQ", 0, 3, 100) + b"a"))
    assert found(fd, sha(b"1")) == [(sha(b"1"), b"a", 3, 100)]


def test_another_version_says_nothing(fd, tmp_path):
    write(fd, [(b"a", None, 100, sha(b"1"))])
    image = bytearray((tmp_path / "digests").read_bytes())
    image[20] = 2
    (tmp_path / "digests").write_bytes(image)
    assert found(fd, sha(b"1")) == []


def test_a_fifo_in_its_place_does_not_stop_the_reader(fd, tmp_path):
    os.mkfifo(tmp_path / "digests")
    with pytest.raises(OSError):
        Reader(fd)


def test_the_frozen_file_is_read(fd, tmp_path):
    (tmp_path / "digests").write_bytes(GOLDEN.read_bytes())
    assert found(fd, sha(b"1"), sha(b"2"), sha(b"3")) == [
        (sha(b"1"), b"etc/passwd", 0, 1000), (sha(b"2"), b"usr/lib/a.so", 0, 65536), (sha(b"3"), b"usr/lib/a.so", 65536, 99),
    ]


def test_a_staged_layer_says_what_it_holds(store, root):
    layer = add(store, {"d/large": b"x" * 500, "small": b"y"})
    tree = os.open(root / "layers" / layer.id, os.O_RDONLY)
    try:
        assert sorted(found(tree, sha(b"x" * 500), sha(b"y"))) == sorted(
            [(sha(b"x" * 500), b"d/large", 0, 500), (sha(b"y"), b"small", 0, 1)])
    finally:
        os.close(tree)
    assert digest(b"x" * 500).endswith(sha(b"x" * 500).hex())
