"""Directories that are put away while an archive is read: the layer is the one that it would be with all in memory."""

import contextlib
import errno
import gc
import os
import tracemalloc

import hypothesis
import pytest

from hypothesis import settings
from hypothesis import strategies as st
from tarmaker import END, chunks, directory, file, hardlink, header, pax, symlink
from test_unpack import FORM, Tree
from test_unpack_threads import look

from fuzz import nasties
from layerstore.errors import ArchiveError, IoError, LimitExceededError
from layerstore.model import DiffTarget, Limits
from layerstore.trees.unpack import entries, nodes, unpack

FEW = 3   # directories in memory


@pytest.fixture
def trees(tmp_path):
    made = []

    def make():
        made.append(Tree(tmp_path / f"layer{len(made)}"))
        return made[-1]

    yield make
    for tree in made:
        tree.close()


@contextlib.contextmanager
def few(most=FEW):
    """As if so many directories were too many to be held."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nodes, "MOST_HELD", most)
        yield patch


@pytest.fixture
def taken(monkeypatch):
    """What came back from the file, by how many directories it was."""
    counts, take = [], nodes.Shelf.take

    def counting(shelf, away):
        found = take(shelf, away)
        counts.append(len(found))
        return found

    monkeypatch.setattr(nodes.Shelf, "take", counting)
    return counts


def outcome(tree, data):
    """What becomes of *data*, and where: the layer, or the error."""
    limits = Limits(max_entries=500, max_bytes=4 << 20, max_pax_record=1 << 14, max_depth=40)
    try:
        tree.result = unpack(chunks(data, 700), DiffTarget(*tree.fds, overlay_form=FORM, limits=limits), require_end=False)
    except (ArchiveError, LimitExceededError) as error:
        return str(error)
    tree.sound()
    return tree.result, look(tree)


def same(trees, data):
    expected = outcome(trees(), data)
    with few():
        found = outcome(trees(), data)
    assert found == expected
    return found


def descriptors():
    return sorted(os.listdir("/proc/self/fd"))


DIRS = b"".join(directory(b"d%d/e%d" % (n % 5, n), mode=0o700 + n % 8, mtime=n) for n in range(60))
CASES = {
    "directories, and a second look at each": DIRS + DIRS,
    "files in them, to and fro": DIRS + b"".join(file(b"d%d/e%d/f" % (n % 5, n), b"x" * n) for n in (0, 59, 1, 58, 2, 30)),
    "what is said of them twice": DIRS + directory(b"d1/e1", mode=0o711, mtime=77) + directory(b"d1", mode=0o500),
    "their attributes": pax((b"SCHILY.xattr.user.a", b"1")) + directory(b"a") + DIRS + file(b"a/f"),
    "implied directories": b"".join(file(b"i%d/j/k/f" % n) for n in range(30)) + directory(b"i7/j") + file(b"i3/j/f"),
    "an opaque directory": directory(b"o/p") + header(b"o/p/.wh..wh..opq") + DIRS + file(b"o/p/f"),
    "an opaque one, said late": directory(b"o/p") + DIRS + header(b"o/p/.wh..wh..opq"),
    "whiteouts, and directories in their place": header(b"w/.wh.x") + header(b"w/.wh.y") + DIRS + directory(b"w/x"),
    "a whiteout of a directory of the layer": directory(b"w/x/y") + DIRS + header(b"w/.wh.x") + file(b"w/x/y/z"),
    "links that lead through them": directory(b"t/u") + symlink(b"l", b"t/u") + DIRS + file(b"l/f") + hardlink(b"h", b"l/f"),
    "a file in the place of a directory": directory(b"g/h/i") + DIRS + file(b"g/h", b"1") + DIRS + directory(b"g/h"),
    "a file that is no directory": file(b"n") + DIRS + file(b"n/x"),
    "a chain": b"".join(directory(b"/".join([b"c"] * n)) for n in range(1, 40)) + DIRS + file(b"/".join([b"c"] * 39) + b"/f"),
    "a time beyond 64 bits": pax((b"mtime", b"99999999999999999999.5")) + directory(b"late") + DIRS + directory(b"d0"),
    "a time long ago": pax((b"mtime", b"-9999999999999.000000001")) + directory(b"early") + DIRS + directory(b"d0"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_layer_is_the_same_or_the_error(trees, taken, case):
    open_before = descriptors()
    same(trees, CASES[case])
    assert taken, "nothing was put away"
    assert len(descriptors()) == len(open_before) + 4   # those of the two trees


@pytest.mark.parametrize("number", range(len(nasties.seeds("unpack"))))
def test_every_hand_made_nasty_gives_the_same_layer_or_the_same_error(trees, number):
    same(trees, DIRS + nasties.seeds("unpack")[number])


PATHS = st.lists(st.sampled_from([b"a", b"b", b"c", b"dd"]), min_size=1, max_size=4).map(b"/".join)
ENTRIES = st.lists(st.one_of(
    st.tuples(st.just("dir"), PATHS, st.integers(0, 0o777)), st.tuples(st.just("file"), PATHS, st.integers(0, 9)),
    st.tuples(st.just("link"), PATHS, PATHS), st.tuples(st.just("whiteout"), PATHS, st.booleans()),
), max_size=40)


def archive(entries):
    parts = []
    for kind, path, more in entries:
        parent, _, base = path.rpartition(b"/")
        parts.append({
            "dir": lambda p=path, m=more: directory(p, mode=m, mtime=m), "file": lambda p=path, m=more: file(p, b"x" * m),
            "link": lambda p=path, m=more: symlink(p, m),
            "whiteout": lambda p=parent, b=base, m=more: header((p + b"/" if p else b"") + (b".wh..wh..opq" if m else b".wh." + b)),
        }[kind]())
    return b"".join(parts) + END


@settings(max_examples=150)
@hypothesis.given(given=ENTRIES, most=st.integers(0, 4))
def test_any_archive_gives_the_same_layer_or_the_same_error(tmp_path_factory, given, most):
    base, data = tmp_path_factory.mktemp("nodes"), archive(given)
    one, other = Tree(base / "one"), Tree(base / "other")
    try:
        expected = outcome(one, data)
        with few(most):
            assert outcome(other, data) == expected
    finally:
        one.close()
        other.close()


# what is put away of a directory, by its place in the row, and what it would be if it were forgotten
@pytest.mark.parametrize(("place", "forgotten", "case"), [
    (1, None, "what is said of them twice"), (2, 0, "what is said of them twice"), (3, False, "an opaque directory"),
    (6, 0, "a chain"),
], ids=["what is meant", "time", "opaque", "children"])
def test_what_would_be_forgotten_is_seen(trees, monkeypatch, place, forgotten, case):
    """A negative control: the comparison above is not deaf."""
    row = nodes._row
    monkeypatch.setattr(nodes, "_row", lambda *given: (*row(*given)[:place], forgotten, *row(*given)[place + 1:]))
    with pytest.raises((AssertionError, OSError)):
        same(trees, CASES[case])


def test_marked_whiteouts_are_put_away_too():
    """Of files that stand for whiteouts: where no device can be made."""
    node = nodes.Dir()
    node.mark(b"x")
    node.mark(b"y")
    node.mark(b"y", marked=False)
    shelf = nodes.Shelf(-1)
    away = shelf._put({b"name": node})
    assert shelf.take(away)[b"name"].marked == {b"x"}


# -- when the file cannot be had --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EOPNOTSUPP, errno.EMFILE, errno.EIO])
@pytest.mark.parametrize("call", ["open", "write"])
def test_if_nothing_can_be_written_all_stays_in_memory(trees, monkeypatch, taken, call, number):
    def refuse(*_given, **_more):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(nodes, "_PIECE", 1)
    monkeypatch.setattr(nodes, "Descriptor", refuse) if call == "open" else monkeypatch.setattr(os, "pwrite", refuse)
    same(trees, DIRS + DIRS)
    assert taken, "what waits to be written is there, too"


def test_a_disk_that_has_hardly_room_is_not_filled_with_it(trees, monkeypatch):
    written, pwrite = [], os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: written.append(at) or pwrite(fd, data, at))
    monkeypatch.setattr(nodes, "_PIECE", 1)
    monkeypatch.setattr(nodes, "free_bytes", lambda _fd: 199)
    for keep_free, expected in (99, True), (100, False):
        written.clear()
        tree = trees()
        with few(), monkeypatch.context() as room:
            room.setattr("layerstore.trees.unpack.regular.free_bytes", lambda _fd: 1 << 40)
            tree.unpack(DIRS, keep_free=keep_free)
        assert bool(written) is expected


def test_an_archive_that_goes_to_and_fro_makes_the_file_no_larger_than_it_may_be(trees, monkeypatch):
    ends, put = [], nodes.Shelf._put

    def putting(shelf, children):
        away = put(shelf, children)
        ends.append(away.at + away.length)
        return away

    monkeypatch.setattr(nodes.Shelf, "_put", putting)
    monkeypatch.setattr(nodes, "_MOST_BYTES", 20_000)
    same(trees, DIRS + b"".join(file(b"d%d/e%d/f" % (n % 5, n % 60)) for n in range(400)))
    assert 20_000 < max(ends) < 25_000   # the last of them is put whole


def test_what_the_disk_gives_back_otherwise_is_an_error_of_the_machine(trees, monkeypatch):
    for change in (lambda data: data[:-1] + b"\0" if data[-1:] != b"\0" else data[:-1] + b"1"), lambda data: data[:-1]:
        with monkeypatch.context() as patch, few():
            pread = os.pread
            patch.setattr(nodes, "_PIECE", 1)
            patch.setattr(os, "pread", lambda *given, c=change, p=pread: c(p(*given)))
            with pytest.raises(IoError, match="something else than was put away"):
                trees().unpack(DIRS + DIRS)


# -- how much of it stays ---------------------------------------------------------------------------------------------


def alive():
    return sum(type(each) is nodes.Dir for each in gc.get_objects())


def test_of_directories_that_were_left_behind_nothing_stays_in_memory(tmp_path, monkeypatch):
    tree, count, held, finished, finish = Tree(tmp_path / "layer"), 2_000, [], [], entries._Unpacker._finish_dir

    def parts():
        for part in range(6):
            yield b"".join(directory(b"p%d/d%d/e%d" % (part, n // 100, n)) for n in range(count))
            held.append(tracemalloc.get_traced_memory()[0])
        yield END

    def finishing(unpacker, path, node):
        finish(unpacker, path, node)
        if len(finished) % 500 == 0:
            finished.append(alive())
        else:
            finished.append(0)

    monkeypatch.setattr(entries._Unpacker, "_finish_dir", finishing)
    with few(500):
        tracemalloc.start()
        try:
            tree.result = unpack(parts(), DiffTarget(*tree.fds, overlay_form=FORM))
        finally:
            tracemalloc.stop()
    tree.sound()
    tree.close()
    assert (held[5] - held[1]) / count / 4 < 10, "bytes of each"
    assert len(finished) > 12_000 and max(finished) < 1_000, "nor do they all come back at the end"


def test_one_directory_with_very_many_is_put_away_when_the_archive_leaves_it_and_not_for_each_of_them(trees, monkeypatch):
    passes, put_away = [], nodes.Shelf.put_away
    monkeypatch.setattr(nodes.Shelf, "put_away", lambda shelf, way: (passes.append(shelf.held), put_away(shelf, way)))
    with few():
        trees().unpack(b"".join(directory(b"wide/%d" % n) for n in range(3_000)) + DIRS)
    assert len(passes) < 40


def test_what_was_held_of_a_wide_directory_is_let_go_of_when_the_archive_has_left_it(trees, monkeypatch):
    held, put_away = [], nodes.Shelf.put_away
    monkeypatch.setattr(nodes.Shelf, "put_away", lambda shelf, way: (put_away(shelf, way), held.append((shelf.held, shelf.most))))
    narrow = b"".join(directory(b"p%d" % n) + directory(b"p%d/q" % n) for n in range(1, 400))
    with few(30):
        trees().unpack(b"".join(directory(b"wide/%d" % n) for n in range(600)) + b"".join(
            directory(b"deep/%d/%d/%d" % (n % 7, n % 49, n)) for n in range(900)) + narrow)
    assert max(each for each, _ in held) >= 300
    assert any(each < 60 and most < 120 for each, most in held[-40:])
