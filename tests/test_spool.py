"""The spool of a remote blob: what it keeps, what it believes, and reading a blob through it."""

import errno
import hashlib
import io
import os
from contextlib import closing, contextmanager

import pytest

import imagemaker
from layerstore import TarDiffer, errors
from layerstore.system import fs
from layerstore.trees import spool
from layerstore.model import Descriptor, DiffTarget
from layerstore.sources.blobs import LocalBlob
from layerstore.trees.spool import Spool
from layerstore.trees.spooled import SpooledBlob, through
from storekit import digest, failing_at, observed

DATA = hashlib.shake_256(b"blob").digest(1_000_000)
KEY = digest(DATA)
OTHER = digest(b"another")


class Net:
    """A blob whose reading is counted; *left* bytes come before the net is gone; *data* may change."""

    remote = True
    label = "the blob"

    def __init__(self, data=DATA, *, left=None, ranges=True):
        self.data, self.size, self.left, self.reads, self.opened = data, len(data), left, [], 0
        self.with_ranges, self.asked, self.streams = ranges, [], []

    def _take(self, at, count):
        if self.left is not None:
            count = min(count, self.left)
            self.left -= count
            if count == 0:
                raise errors.SourceError("the net is gone")
        data = self.data[at:at + count]
        self.reads.append((at, len(data)))
        return data

    def open(self, offset=0):
        net = self

        class Stream(io.RawIOBase):
            at = offset

            def read(self, size=-1):
                data = net._take(self.at, min(size, 10_000))
                self.at += len(data)
                return data

        self.opened += 1
        self.streams.append(Stream())
        return self.streams[-1]

    def ranges(self, wanted):
        if not self.with_ranges:
            raise errors.RangesUnsupportedError("whole only")
        self.asked.append(list(wanted))
        for start, length in wanted:
            for at in range(start, start + length, 100_000):
                yield at, self._take(at, min(100_000, start + length - at))

    @property
    def total(self):
        return sum(count for _, count in self.reads)


@pytest.fixture
def tree(tmp_path):
    with fs.open_dir(str(tmp_path)) as fd:
        yield fd


def file_of(tree):
    with open("blob", "rb", opener=lambda name, flags: os.open(name, flags, dir_fd=tree)) as file:
        return file.read()


def put(tree, data):
    with open("blob", "wb", opener=lambda name, flags: os.open(name, flags, 0o600, dir_fd=tree)) as file:
        file.write(data)


@contextmanager
def opened(tree, key=KEY, size=len(DATA)):
    with closing(Spool(tree, key, size)) as kept:
        yield kept


def with_pieces(tree, *pieces):
    with opened(tree) as kept:
        for start, end in pieces:
            kept.keep(start, DATA[start:end])


# -- the file ---------------------------------------------------------------------------------------------------------


def test_what_is_kept_is_there_when_it_is_opened_again(tree):
    with_pieces(tree, (0, 1000), (5000, 6000))
    with opened(tree) as kept:
        assert (kept.read(0), kept.read(5000), kept.read(5500, 10)) == (DATA[:1000], DATA[5000:6000], DATA[5500:5510])
        assert kept.read(1000) is None
        assert kept.missing(0, 7000) == [(1000, 4000), (6000, 1000)]


def test_opening_reads_headers_only(tree, monkeypatch):
    with_pieces(tree, (0, 200_000), (300_000, 500_000))
    read, pread = [], os.pread

    def counting(fd, count, at):
        read.append(count)
        return pread(fd, count, at)

    monkeypatch.setattr(os, "pread", counting)
    with opened(tree):
        assert sum(read) < 500


@pytest.mark.parametrize("cut", [1, 24, 25, 999, 1001, 1024])
def test_a_torn_tail_is_cut_off_and_what_is_before_it_stays(tree, cut):
    with_pieces(tree, (0, 1000), (1000, 2000))
    put(tree, file_of(tree)[:-cut])
    with opened(tree) as kept:
        assert kept.missing(0, 2000) == [(1000, 1000)]
        kept.keep(1000, DATA[1000:2000])
    with opened(tree) as kept:
        assert kept.read(1000) == DATA[1000:2000]


@pytest.mark.parametrize("where", [3, 20, 54, 58, 65, 80])
def test_a_header_with_one_bit_wrong_is_not_believed(tree, where):
    with_pieces(tree, (0, 1000))
    data = bytearray(file_of(tree))
    data[where] ^= 1
    put(tree, bytes(data))
    with opened(tree) as kept:
        assert kept.missing(0, 1000) == [(0, 1000)]


def test_a_file_of_zeros_as_a_loss_of_power_leaves_it_is_replaced(tree):
    put(tree, bytes(5000))
    with_pieces(tree, (0, 1000))
    with opened(tree) as kept:
        assert kept.read(0) == DATA[:1000]


def test_a_piece_whose_data_are_not_right_is_not_there(tree):
    with_pieces(tree, (0, 1000), (1000, 2000))
    data = bytearray(file_of(tree))
    data[-1] ^= 1
    put(tree, bytes(data))
    with opened(tree) as kept:
        assert kept.missing(0, 2000) == []
        assert kept.read(1000) is None
        assert kept.missing(0, 2000) == [(1000, 1000)]


@pytest.mark.parametrize(("key", "size"), [(OTHER, len(DATA)), (KEY, 999_999)])
def test_the_spool_of_another_blob_is_replaced(tree, key, size):
    with_pieces(tree, (0, 1000))
    with opened(tree, key, size) as kept:
        assert kept.missing(0, 1000) == [(0, 1000)]


def test_what_is_not_a_file_is_replaced(tree):
    os.mkfifo("blob", dir_fd=tree)
    with_pieces(tree, (0, 1000))
    assert len(file_of(tree)) > 1000


def test_a_link_is_replaced_and_not_followed(tree, tmp_path):
    (tmp_path / "target").write_bytes(b"precious")
    os.symlink("target", "blob", dir_fd=tree)
    with_pieces(tree, (0, 1000))
    assert (tmp_path / "target").read_bytes() == b"precious"


def test_what_is_there_already_is_not_kept_again(tree):
    with_pieces(tree, (1000, 2000))
    before = len(file_of(tree))
    with_pieces(tree, (1000, 2000), (1200, 1300))
    assert len(file_of(tree)) == before
    with_pieces(tree, (0, 3000))
    with opened(tree) as kept:
        assert kept.missing(0, 3000) == []
        assert kept.read(2000) == DATA[2000:3000]
    assert len(file_of(tree)) < 3000 + 400


def test_it_grows_no_larger_than_the_blob_and_its_headers_whatever_rots(tree):
    for _ in range(10):
        with opened(tree) as kept:
            for start in range(0, len(DATA), 100_000):
                if kept.read(start) is None:
                    kept.keep(start, DATA[start:start + 100_000])
        data = bytearray(file_of(tree))
        for at in range(150, len(data), 50_000):
            data[at] ^= 1
        put(tree, bytes(data))
    assert len(file_of(tree)) <= len(DATA) * 1.02


@pytest.mark.parametrize("bad", ["beyond", "overlapping", "endless"])
def test_a_piece_that_cannot_be_ends_the_reading_of_headers(tree, bad):
    with_pieces(tree, (0, 1000))
    start, length = {"beyond": (len(DATA) - 10, 20), "overlapping": (500, 1000), "endless": (2000, 1 << 31)}[bad]
    head = spool._sealed(spool._PIECE_HEAD.pack(b"piece", start, length, 0))
    put(tree, file_of(tree) + head + bytes(min(length, 2000)))
    with opened(tree) as kept:
        assert kept.missing(0, len(DATA)) == [(1000, len(DATA) - 1000)]


@pytest.mark.parametrize("point", ["stage.spool.create", "stage.spool.keep"])
def test_a_disk_that_fails_ends_the_keeping_and_nothing_else(tree, point):
    with failing_at(point, "ENOSPC"), opened(tree) as kept:
        kept.keep(0, DATA[:1000])
        kept.keep(1000, DATA[1000:2000])
        assert kept.missing(0, 2000) == [(0, 2000)]
    assert not fs.exists(tree, "blob")


@pytest.mark.parametrize("use", [lambda kept: kept.read(0), lambda kept: kept.keep(1000, DATA[1000:2000])], ids=["read", "keep"])
def test_what_is_kept_makes_room_where_hardly_any_is_left(tree, use):
    with_pieces(tree, (0, 1000))
    with closing(Spool(tree, KEY, len(DATA), keep_free=1 << 60)) as kept:
        assert use(kept) is None
        assert kept.missing(0, 2000) == [(0, 2000)]
    assert not fs.exists(tree, "blob")


def test_a_disk_that_does_not_say_what_is_free_ends_the_keeping_and_nothing_else(tree, monkeypatch):
    def failing(_fd):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fstatvfs", failing)
    with closing(Spool(tree, KEY, len(DATA), keep_free=1)) as kept:
        kept.keep(0, DATA[:1000])
        assert kept.missing(0, 1000) == [(0, 1000)]


def test_a_spool_that_cannot_be_cut_is_made_anew(tree):
    with_pieces(tree, (0, 1000), (1000, 2000))
    put(tree, file_of(tree)[:-1])
    with failing_at("stage.spool.cut", "EIO"), opened(tree) as kept:
        kept.keep(1000, DATA[1000:2000])
        assert kept.missing(0, 2000) == [(0, 1000)]


def test_only_what_is_of_that_content_and_large_enough_is_worth_keeping(tree):
    assert spool.kept_ns(tree, KEY) is None
    with_pieces(tree, (0, spool.WORTH_BYTES // 2))
    assert spool.kept_ns(tree, KEY) is None
    with_pieces(tree, (0, spool.WORTH_BYTES))
    assert spool.kept_ns(tree, KEY) == os.stat("blob", dir_fd=tree).st_mtime_ns
    assert spool.kept_ns(tree, OTHER) is None
    assert spool.kept_ns(tree, None) is None
    put(tree, bytes(spool.WORTH_BYTES * 2))
    assert spool.kept_ns(tree, KEY) is None


def test_starting_over_leaves_what_is_to_be_kept_and_an_empty_tree(tree, tmp_path):
    for name in ("txid", "manifest", "output", "diff/a/b", "kept/x", "blob"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    spool.start_over(tree, keep=("txid", "blob"))
    assert sorted(os.listdir(tmp_path)) == ["blob", "diff", "txid"]
    assert os.listdir(tmp_path / "diff") == []


# -- reading through it -------------------------------------------------------------------------------------------------


@contextmanager
def spooled(tree, net):
    with opened(tree, digest(DATA), net.size) as kept:
        yield SpooledBlob(net, kept)


def test_a_stream_that_ended_early_goes_on_where_it_ended(tree):
    first, second = Net(left=905_000), Net()
    with spooled(tree, first) as blob, blob.open() as stream, pytest.raises(errors.SourceError, match="gone"):
        stream.read()
    with spooled(tree, second) as blob:
        with blob.open() as stream:
            assert stream.read() == DATA
        assert (blob.resumed, blob.fetched) == (905_000, 95_000)
    assert second.total == 95_000
    with spooled(tree, third := Net()) as blob, blob.open() as stream:
        assert stream.read() == DATA
    assert third.total == third.opened == 0


def test_a_stream_begins_where_it_is_told_to(tree):
    with_pieces(tree, (0, 500_000))
    with spooled(tree, Net()) as blob:
        for offset in (0, 1, 499_999, 500_000, 700_001, len(DATA)):
            with blob.open(offset) as stream:
                assert stream.read() == DATA[offset:]


def test_only_the_piece_that_has_rotted_is_fetched_again(tree):
    with_pieces(tree, (0, 300_000), (300_000, 600_000), (600_000, len(DATA)))
    data = bytearray(file_of(tree))
    data[400_000] ^= 1
    put(tree, bytes(data))
    with spooled(tree, net := Net()) as blob, blob.open() as stream:
        assert stream.read() == DATA
    assert net.asked == [[(300_000, 300_000)]]
    assert net.opened == 0


def test_where_only_the_whole_can_be_had_a_hole_is_read_by_going_on_from_there(tree):
    with_pieces(tree, (0, 300_000), (400_000, len(DATA)))
    with spooled(tree, net := Net(ranges=False)) as blob, blob.open() as stream:
        assert stream.read() == DATA
    assert net.total == 100_000
    assert net.streams[0].closed


def test_where_only_the_whole_can_be_had_many_holes_cost_one_stream(tree):
    with_pieces(tree, *((at, at + 10_000) for at in range(0, len(DATA) - 100_000, 20_000)))
    with spooled(tree, net := Net(ranges=False)) as blob, blob.open() as stream:
        assert stream.read() == DATA
    assert net.opened == 1
    assert net.total <= len(DATA)


def test_a_stream_that_is_closed_early_closes_the_connection(tree):
    with spooled(tree, net := Net()) as blob:
        with blob.open() as stream:
            stream.read(10)
        assert net.streams[0].closed


def test_a_blob_that_ends_before_its_size_is_the_sources_fault(tree):
    net = Net()
    net.data = DATA[:-10]
    with spooled(tree, net) as blob, blob.open() as stream, pytest.raises(errors.SourceError, match="ends 10 bytes early"):
        stream.read()


def test_ranges_are_asked_for_in_one_request_without_what_is_kept(tree):
    with_pieces(tree, (0, 1000), (5000, 6000), (7000, 8000))
    wanted = [(500, 5000), (5800, 1500), (9000, 250_000)]
    with spooled(tree, net := Net()) as blob:
        got = list(blob.ranges(wanted))
    assert net.asked == [[(1000, 4000), (6000, 1000), (9000, 250_000)]]
    assert [at for at, _ in got] == sorted(at for at, _ in got)
    for start, length in wanted:
        inside = [(at, data) for at, data in got if start <= at < start + length]
        assert b"".join(data for _, data in inside) == DATA[start:start + length]
        assert all(DATA[at:at + len(data)] == data for at, data in inside)
    with spooled(tree, again := Net()) as blob:
        assert b"".join(data for _, data in blob.ranges(wanted)) == b"".join(DATA[s:s + n] for s, n in wanted)
    assert again.total == 0


def test_a_range_whose_piece_has_rotted_is_fetched_again(tree):
    with_pieces(tree, (0, 1000), (1000, 2000))
    data = bytearray(file_of(tree))
    data[-1] ^= 1
    put(tree, bytes(data))
    with spooled(tree, net := Net()) as blob:
        assert b"".join(data for _, data in blob.ranges([(500, 1400)])) == DATA[500:1900]
    assert net.asked == [[(1000, 900)]]


def test_that_only_the_whole_can_be_had_is_said_before_the_first_piece(tree):
    with_pieces(tree, (0, 1000))
    with spooled(tree, Net(ranges=False)) as blob, pytest.raises(errors.RangesUnsupportedError):
        next(iter(blob.ranges([(0, 2000)])))


# -- a differ that reads through it --------------------------------------------------------------------------------------


TAR = imagemaker.make_tar({"file": hashlib.shake_256(b"file").digest(400_000), "dir/other": b"other"})


@contextmanager
def target(tmp_path, **more):
    os.makedirs(tmp_path / "diff", exist_ok=True)
    with fs.open_dir(str(tmp_path)) as dir_fd, fs.open_dir("diff", dir_fd) as diff_fd:
        yield DiffTarget(dir_fd, diff_fd, **more)


def tar_differ(net):
    return TarDiffer(net, expect=Descriptor("", digest(TAR), len(TAR)), diff_id=digest(TAR))


def test_a_differ_of_a_remote_blob_keeps_it_and_leaves_it_to_who_says_that_the_tree_is_filled(tmp_path):
    told, passed = [], []
    with target(tmp_path, progress=told.append) as into, observed(passed):
        tar_differ(Net(TAR)).apply_diff(into)
    assert sum(told) == len(TAR)
    assert passed.count("stage.spool.keep") == 4
    assert "stage.spool.unlink" not in passed
    with fs.open_dir(str(tmp_path)) as fd, opened(fd, digest(TAR), len(TAR)) as kept:
        assert kept.missing(0, len(TAR)) == []


def test_a_differ_of_a_local_blob_keeps_nothing(tmp_path):
    passed = []
    blob = LocalBlob(lambda: io.BytesIO(TAR), len(TAR), "the blob")
    with target(tmp_path) as into, observed(passed):
        tar_differ(blob).apply_diff(into)
    assert not [each for each in passed if "spool" in each]


def test_without_a_digest_nothing_is_kept(tmp_path):
    passed = []
    with target(tmp_path) as into, observed(passed):
        TarDiffer(Net(TAR)).apply_diff(into)
    assert not [each for each in passed if "spool" in each]


def test_what_is_resumed_and_what_is_fetched_are_told_apart(tmp_path):
    with target(tmp_path) as into, pytest.raises(errors.SourceError):
        tar_differ(Net(TAR, left=300_000)).apply_diff(into)
    fetched, resumed = [], []
    with target(tmp_path, progress=fetched.append, resumed=resumed.append) as into:
        spool.start_over(into.dir_fd, keep=("blob",))
    with target(tmp_path, progress=fetched.append, resumed=resumed.append) as into:
        tar_differ(net := Net(TAR)).apply_diff(into)
    assert (sum(fetched), sum(resumed)) == (len(TAR) - 300_000, 300_000)
    assert net.total == sum(fetched)


def rotten(tmp_path):
    """A spool with right checksums of wrong content, as of a server that gave something else the first time."""
    wrong = bytearray(TAR)
    wrong[100_000] ^= 1
    with target(tmp_path) as into, closing(Spool(into.dir_fd, digest(TAR), len(TAR))) as kept:
        kept.keep(0, bytes(wrong[:200_000]))


def test_content_that_is_bad_because_of_what_was_kept_is_fetched_once_more(tmp_path):
    rotten(tmp_path)
    with target(tmp_path) as into:
        output = tar_differ(net := Net(TAR)).apply_diff(into)
    assert output.diff_id == digest(TAR)
    assert net.total == 2 * len(TAR) - 200_000
    assert (tmp_path / "diff" / "file").read_bytes() == hashlib.shake_256(b"file").digest(400_000)
    assert sorted(os.listdir(tmp_path)) == ["blob", "diff", "manifest", "tar-split"]


def test_what_was_found_and_resumed_before_a_second_try_is_taken_back(tmp_path):
    rotten(tmp_path)
    fetched, resumed, spared = [], [], []

    def run(into, blob):
        into.spared(1000)
        with blob.open() as stream:
            if stream.read() != TAR:
                raise errors.DigestMismatchError("another", expected="", actual="")
        return "done"

    with target(tmp_path, progress=fetched.append, resumed=resumed.append, spared=spared.append) as into:
        assert through(into, Net(TAR), digest(TAR), run) == "done"
    assert (sum(fetched), sum(resumed), sum(spared)) == (2 * len(TAR) - 200_000, 0, 1000)


def test_what_is_read_twice_is_told_of_once(tmp_path):
    with target(tmp_path) as into, closing(Spool(into.dir_fd, digest(TAR), len(TAR))) as kept:
        kept.keep(0, TAR[:1000])
    fetched, resumed = [], []

    def run(_into, blob):
        assert [at for at, _ in blob.ranges([(500, 1000), (5000, 1000)])] == [500, 1000, 5000]
        with blob.open() as stream:
            return stream.read()

    with target(tmp_path, progress=fetched.append, resumed=resumed.append) as into:
        assert through(into, Net(TAR), digest(TAR), run) == TAR
    assert (sum(fetched), sum(resumed)) == (len(TAR) - 1000, 1000)


def test_content_that_is_bad_by_itself_is_not_fetched_twice(tmp_path):
    wrong = bytearray(TAR)
    wrong[100_000] ^= 1
    with target(tmp_path) as into, pytest.raises(errors.DigestMismatchError):
        tar_differ(net := Net(bytes(wrong))).apply_diff(into)
    assert net.total == len(TAR)


def test_content_that_is_bad_the_second_time_too_is_bad(tmp_path):
    rotten(tmp_path)
    wrong = bytearray(TAR)
    wrong[300_000] ^= 1
    with target(tmp_path) as into, pytest.raises(errors.DigestMismatchError):
        tar_differ(net := Net(bytes(wrong))).apply_diff(into)
    assert net.total == 2 * len(TAR) - 200_000


def test_a_net_that_goes_while_what_was_kept_is_not_right_leaves_the_new_spool(tmp_path):
    rotten(tmp_path)
    with target(tmp_path) as into, pytest.raises(errors.SourceError):
        tar_differ(Net(TAR, left=len(TAR) - 200_000 + 270_000)).apply_diff(into)
    with target(tmp_path) as into, closing(Spool(into.dir_fd, digest(TAR), len(TAR))) as kept:
        assert kept.missing(0, 270_000) == []
        assert kept.read(0) == TAR[:spool.PIECE]


def test_through_gives_a_local_blob_as_it_is(tmp_path):
    blob = LocalBlob(lambda: io.BytesIO(TAR), len(TAR), "the blob")
    with target(tmp_path) as into:
        assert through(into, blob, digest(TAR), lambda *given: given) == (into, blob)
