"""Resume and single flight: what was fetched is not fetched again, by whoever goes on, and whatever ended before."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import pytest

import chunkedmaker
import imagemaker
import layerstore
from crash.content import picture
from crash.remote import Reads, RemoteBlob, remotely
from layerstore import PullOptions, errors
from layerstore.system import faults
from layerstore.trees import spool
from layerstore.recovery.planner import Do
from layerstore.sources.blobs import LocalBlob
from layerstore.testing import Passing, copy_store, violations
from storekit import SIGKILL, digest, failing_at, in_child, killed_at, observed, states, tree_names

SIZE = 1_500_000
ONE = PullOptions(workers=1)


def data(label, size=SIZE):
    return hashlib.shake_256(label.encode()).digest(size)


def make_image(directory, *, compression=("gzip",), layers=1, size=SIZE):
    made = imagemaker.Image([
        imagemaker.Layer({f"big{n}": data(f"{n}", size), f"small{n}": b"x"}, compression=compression[n % len(compression)])
        for n in range(layers)
    ])
    return made.write_oci(directory, tag="latest")


@pytest.fixture
def image(tmp_path):
    return make_image(tmp_path / "image")


@pytest.fixture
def reads(tmp_path):
    return Reads(str(tmp_path / "reads"))


def pull(root, image, reads=None, *, ending_at=None, progress=None, options=ONE):
    with remotely(reads, ending_at=ending_at), layerstore.open(root) as store:
        return store.pull(image.reference, options=options, progress=progress)


def killed_fetching(root, image, point="stage.spool.keep", when="after", nth=3):
    killed_at(point, when, lambda: pull(root, image), nth)


def cut_off(root, image, share=0.9):
    """A pull whose net is gone at that share of the bytes."""
    with pytest.raises(errors.SourceError, match="gone"):
        pull(root, image, ending_at=int(image_bytes(image) * share))


def image_bytes(image):
    with remotely(), layerstore.sources.open_source(image.reference) as source:
        return sum(each.descriptor.size for each in source.resolve().layers)


def holds_the_content(root, image, size=SIZE):
    assert violations(str(root)) == []
    with layerstore.open(root) as store:
        layers = store.image(store.images()[0].id).layers
        for n, layer in enumerate(layers):
            with store.layer_paths(layer) as paths, open(os.path.join(paths[-1], f"big{n}"), "rb") as file:
                assert file.read() == data(f"{n}", size)
        assert states(store) == ["committed"] * len(layers)


# -- resume ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_a_pull_that_was_killed_at_90_percent_fetches_no_more_than_15_the_second_time(tmp_path, root, reads, compression):
    # so large that what either layer has in hand when it is killed, a piece and a read, is little of it
    image = make_image(tmp_path / "image", compression=(compression,), layers=2, size=4 * SIZE)
    whole = image_bytes(image)

    def dies():
        with remotely(reads, killed_at=int(whole * 0.9)), layerstore.open(root) as store:
            store.pull(image.reference, options=PullOptions(workers=2))

    assert in_child(dies) == SIGKILL
    assert sum(reads.total().values()) >= 0.85 * whole
    reads.clear()
    pull(root, image, reads)
    assert 0 < sum(reads.total().values()) <= 0.15 * whole
    holds_the_content(root, image, 4 * SIZE)


def test_a_pull_whose_net_was_gone_at_90_percent_fetches_the_rest(root, image, reads):
    cut_off(root, image)
    with layerstore.open(root) as store:
        assert store.recovery.clean
        assert states(store) == ["staging"]
    tally = layerstore.Tally()
    pull(root, image, reads, progress=tally)
    whole = image_bytes(image)
    assert sum(reads.total().values()) <= 0.15 * whole
    total = tally.total()
    assert (total.fetched, total.fetched + total.resumed) == (sum(reads.total().values()), whole)
    holds_the_content(root, image)


def test_a_loss_of_nothing_but_the_net_costs_nothing_however_often(root, image, reads):
    for _ in range(6):
        with pytest.raises(errors.SourceError):
            pull(root, image, reads, ending_at=200_000)
    pull(root, image, reads)
    assert sum(reads.total().values()) <= image_bytes(image) + 6 * 65_536
    holds_the_content(root, image)


def test_an_interrupted_pull_keeps_what_it_fetched(root, image, reads):
    def hook(name, when):
        if (name, when) == ("stage.spool.keep", "after"):
            seen.append(name)
            if len(seen) == 3:
                raise KeyboardInterrupt

    seen, before = [], faults.install(hook)
    try:
        with pytest.raises(KeyboardInterrupt):
            pull(root, image)
    finally:
        faults.install(before)
    pull(root, image, reads)
    assert sum(reads.total().values()) == image_bytes(image) - 3 * spool.PIECE


def test_what_is_not_worth_it_is_not_kept(root, image):
    with pytest.raises(errors.SourceError):
        pull(root, image, ending_at=spool.WORTH_BYTES - 1000)
    assert tree_names(root, "staging") == []


@pytest.mark.parametrize("how", ["killed", "failed"])
def test_an_unfinished_tree_is_kept_by_the_next_open_only_with_a_spool(root, image, how):
    if how == "killed":
        killed_fetching(root, image)
    else:
        cut_off(root, image)
    with layerstore.open(root) as store:
        assert store.recovery.clean
    (txid,) = tree_names(root, "staging")
    os.unlink(root / "staging" / txid / "blob")
    with layerstore.open(root) as store:
        assert [each.do for each in store.recovery.actions] == [Do.SWEEP]


@pytest.mark.parametrize("file", ["txid", "blob"])
def test_a_tree_whose_txid_or_spool_is_torn_is_swept(root, image, file):
    killed_fetching(root, image)
    (txid,) = tree_names(root, "staging")
    path = root / "staging" / txid / file
    path.write_bytes(bytes(path.stat().st_size))
    with layerstore.open(root) as store:
        assert [each.do for each in store.recovery.actions] == [Do.SWEEP]


def stale(kept):
    """One piece is another, which once was right: all checksums hold, and only the content's digest can tell."""
    at, head = spool._HEAD_BYTES, spool._PIECE_HEAD
    mark, start, length, _crc = head.unpack_from(kept, at)
    other = bytes(length)
    piece = spool._sealed(head.pack(mark, start, length, zlib.crc32(other))) + other
    return kept[:at] + piece + kept[at + len(piece):]


@pytest.mark.parametrize(("tear", "again"), [
    (lambda kept: kept[:len(kept) // 2], 0.66),
    (lambda kept: kept[:len(kept) // 2] + bytes(len(kept) - len(kept) // 2), 0.66),   # its length came, its last pages did not
    (lambda kept: kept[:400_000] + bytes(8192) + kept[408_192:], 0.9),                # pages in the middle did not
    (stale, 1.2),
], ids=["short", "zeros", "hole", "stale"])
def test_what_a_loss_of_power_made_of_a_spool_is_not_believed_and_the_rest_is_used(root, image, reads, tear, again):
    cut_off(root, image, 0.9)
    (tree,) = tree_names(root, "staging")
    path = Path(root, "staging", tree, "blob")
    path.write_bytes(tear(path.read_bytes()))
    pull(root, image, reads)
    assert sum(reads.total().values()) <= again * image_bytes(image)
    holds_the_content(root, image)


def test_what_does_not_verify_is_not_kept(tmp_path, root, image):
    blob = image.layer_path(0)
    whole = bytearray(blob.read_bytes())
    whole[700_000] ^= 1
    blob.write_bytes(bytes(whole))
    with pytest.raises(errors.InputError):
        pull(root, image)
    assert tree_names(root, "staging") == []


def test_a_full_disk_is_not_held_by_what_was_fetched(root, image):
    with failing_at("stage.output", "ENOSPC"), pytest.raises(errors.NoSpaceError):
        pull(root, image)
    assert tree_names(root, "staging") == []


def test_a_pull_goes_on_when_what_it_fetches_cannot_be_kept(root, image, reads):
    with failing_at("stage.spool.keep", "ENOSPC", nth=2):
        pull(root, image, reads)
    assert sum(reads.total().values()) == image_bytes(image)
    holds_the_content(root, image)


def test_another_layer_that_was_to_be_gone_on_with_is_kept_when_the_first_fails(tmp_path, root, reads):
    image = make_image(tmp_path / "image", layers=2)
    whole = image_bytes(image)
    cut_off(root, image, 0.45)                       # in the first, by content key
    with pytest.raises(errors.SourceError):
        pull(root, image, ending_at=int(whole * 0.3))        # in the second
    with pytest.raises(errors.SourceError):
        pull(root, image, ending_at=0)
    pull(root, image, reads)
    assert sum(reads.total().values()) <= 0.35 * whole
    holds_the_content(root, image)


def test_nothing_of_the_half_made_tree_is_built_on(root, image):
    killed_fetching(root, image)
    (txid,) = tree_names(root, "staging")
    planted = root / "staging" / txid
    (planted / "diff" / "evil").write_text("from the dead")
    (planted / "kept").mkdir()
    (planted / "kept" / "evil").write_text("from the dead")
    pull(root, image)
    (layer,) = tree_names(root, "layers")
    assert tree_names(root, "layers", layer) == ["diff", "digests", "layer", "manifest", "output", "tar-split", "txid"]
    assert tree_names(root, "layers", layer, "diff") == ["big0", "small0"]
    holds_the_content(root, image)


def test_a_spool_that_a_loss_of_power_brought_back_is_removed_by_who_adopts_the_tree(root, image):
    killed_at("txn.claim", "before", lambda: pull(root, image))
    (txid,) = tree_names(root, "staging")
    (root / "staging" / txid / "blob").write_bytes(b"back again")
    pull(root, image)
    (layer,) = tree_names(root, "layers")
    assert "blob" not in tree_names(root, "layers", layer)


def test_a_finished_tree_that_lost_its_content_is_made_again_from_the_spool_that_lies_in_it(root, image, reads):
    killed_at("stage.spool.unlink", "before", lambda: pull(root, image))   # as a loss of power can leave it
    (txid,) = tree_names(root, "staging")
    assert {"output", "blob"} <= set(tree_names(root, "staging", txid))
    os.truncate(root / "staging" / txid / "diff" / "big0", 1000)
    pull(root, image, reads)
    assert sum(reads.total().values()) == 0
    holds_the_content(root, image)


@pytest.mark.root
def test_a_tree_that_may_not_be_emptied_is_given_up_and_the_content_fetched_anew(root, image, monkeypatch, reads):
    killed_fetching(root, image)

    def denied(tree_fd, *, keep):
        raise errors.PrivilegeError("may not")

    monkeypatch.setattr(spool, "start_over", denied)
    pull(root, image, reads)
    assert sum(reads.total().values()) == image_bytes(image)


def test_an_error_while_a_tree_is_emptied_leaves_it_to_be_gone_on_with(root, image, reads):
    killed_fetching(root, image, nth=5)
    with failing_at("stage.over.unlink", "EIO"), pytest.raises(errors.IoError):
        pull(root, image)
    pull(root, image, reads)
    assert sum(reads.total().values()) <= image_bytes(image) - 5 * spool.PIECE


def test_the_write_order_of_going_on(root, image):
    killed_fetching(root, image)
    passed = []
    with observed(passed):
        pull(root, image)
    passed = list(dict.fromkeys(each for each in passed if each.startswith("stage.")))
    assert passed == [
        "stage.join", "stage.over.unlink", "stage.diff", "stage.spool.keep", "stage.output", "stage.spool.unlink", "stage.sync",
    ]


# -- layers with a table of contents --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [chunkedmaker.CURRENT, chunkedmaker.OF_2022, chunkedmaker.STARGZ])
def test_a_layer_with_a_table_of_contents_goes_on_at_90_percent_too(root, reads, form):
    made = chunkedmaker.make(form, [chunkedmaker.member(f"file{n}", data(str(n), 300_000)) for n in range(10)], chunk=100_000)
    local = LocalBlob(lambda: io.BytesIO(made.blob), len(made.blob), "the layer")
    left = [int(0.9 * len(made.blob))]

    def until_the_net_is_gone(at, count):
        left[0] -= count
        if left[0] < 0:
            raise errors.SourceError("the net is gone")

    def stage(reading):
        differ = layerstore.ChunkedDiffer(RemoteBlob(local, reading), expect=made.descriptor, diff_id=made.diff_id)
        with layerstore.open(root) as store, store.stage(differ) as staged:
            assert differ.whole is None
            store.apply_staged_layer(staged)

    with pytest.raises(errors.SourceError, match="gone"):
        stage(until_the_net_is_gone)
    with layerstore.open(root) as store:
        assert store.recovery.clean
    stage(lambda at, count: reads.note("layer", at, count))
    assert 0 < reads.total()["layer"] <= 0.15 * len(made.blob)
    assert violations(str(root)) == []


# -- gc ----------------------------------------------------------------------------------------------------------------


def test_what_nobody_goes_on_with_is_collected_by_the_age_of_its_spool(root, image):
    killed_fetching(root, image)
    (txid,) = tree_names(root, "staging")
    with layerstore.open(root) as store:
        assert store.collect_garbage().staged == ()
        old = time.time() - 8 * 86_400
        os.utime(root / "staging" / txid / "blob", (old, old))
        assert store.collect_garbage(dry_run=True).staged == (txid,)
        assert store.collect_garbage().staged == (txid,)
        assert states(store) == []
    assert tree_names(root, "staging") == []


# -- single flight -----------------------------------------------------------------------------------------------------


def forked(fn):
    """Run *fn* in a child; its pid."""
    from layerstore.testing.children import start_child

    return start_child(fn)


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@dataclass(frozen=True)
class Blob:
    """A layer as ``crash.content.picture`` takes it."""

    made: chunkedmaker.Made

    @property
    def blob(self):
        return self.made.blob

    @property
    def diff_id(self):
        return self.made.diff_id

    @property
    def descriptor(self):
        said = self.made.descriptor
        return {"mediaType": said.media_type, "digest": said.digest, "size": said.size, "annotations": dict(said.annotations)}


def versions(directory, form):
    """Two images of one layer with a table of contents of the *form*, which share much of their content."""
    def made(version):
        changed = data("both", 90_000)[:60_000] + data(version, 30_000)
        members = [chunkedmaker.member("own", data(f"own {version}", 150_000)), chunkedmaker.member("same", data("same", 100_000)),
                   chunkedmaker.member("changed", changed), chunkedmaker.member("last", data(f"last {version}", 50_000))]
        return Blob(chunkedmaker.make(form, members, chunk=30_000))

    return [picture(str(directory / version), [made(version)]) for version in ("old", "new")]


def with_old(root, old):
    with layerstore.open(root) as store:
        store.pull(old.reference, names=["old"])


def least(work, old, image):
    """The bytes that a single pull of *image* fetches where *old* is."""
    alone, root = Reads(str(work / "alone")), work / "a-store"
    with_old(root, old)
    pull(root, image, alone)
    return sum(alone.total().values())


FORMS = [chunkedmaker.CURRENT, chunkedmaker.OF_2022]


@pytest.mark.parametrize("form", FORMS)
def test_eight_processes_that_pull_what_is_partly_here_fetch_each_missing_byte_once(tmp_path, root, reads, form):
    old, image = versions(tmp_path, form)
    with_old(root, old)
    children = [forked(lambda: pull(root, image, reads)) for _ in range(8)]
    assert [ended(child) for child in children] == [0] * 8
    seen = reads.lines()
    assert len(set(seen)) == len(seen)
    assert sum(reads.total().values()) == least(tmp_path, old, image) < 0.8 * image_bytes(image)
    assert violations(str(root)) == []


def test_eight_processes_that_pull_one_image_fetch_each_byte_once(tmp_path, root, reads):
    image = make_image(tmp_path / "image", layers=3, compression=("gzip", "zstd", "none"))
    layerstore.open(root).close()
    children = [forked(lambda: pull(root, image, reads, options=PullOptions(workers=2))) for _ in range(8)]
    assert [ended(child) for child in children] == [0] * 8
    seen = reads.lines()
    assert len(set(seen)) == len(seen)
    assert sum(reads.total().values()) == image_bytes(image)
    holds_the_content(root, image)


def test_who_waits_takes_over_from_one_that_dies_and_fetches_only_the_rest(root, image, reads):
    layerstore.open(root).close()
    said, says = os.pipe()
    stop, go = os.pipe()

    def dies():
        def hook(name, when):
            if (name, when) == ("stage.spool.keep", "after"):
                kept.append(name)
                if len(kept) == 4:
                    os.write(says, b"4")
                    os.read(stop, 1)
                    os.kill(os.getpid(), 9)

        kept = []
        faults.install(hook)
        pull(root, image)

    def waits():
        class Told(layerstore.Quiet):
            def awaited(self, layer, n):
                os.write(go, b"x")

        tally = Told()
        pull(root, image, reads, progress=tally)

    first = forked(dies)
    os.read(said, 1)
    second = forked(waits)       # is told that another fetches it, and lets that one die
    assert (ended(first), ended(second)) == (-9, 0)
    assert sum(reads.total().values()) == image_bytes(image) - 4 * spool.PIECE
    holds_the_content(root, image)
    for fd in (said, says, stop, go):
        os.close(fd)


def test_who_waits_is_told_how_much_the_other_has_fetched(root, image):
    layerstore.open(root).close()
    said, says = os.pipe()
    stop, go = os.pipe()

    def fetches():
        def hook(name, when):
            if (name, when) == ("stage.spool.keep", "after"):
                kept.append(name)
                if len(kept) == 3:
                    os.write(says, b"3")
                    os.read(stop, 1)

        kept = []
        faults.install(hook)
        pull(root, image)

    child = forked(fetches)
    os.read(said, 1)

    class Watching(layerstore.Tally):
        def awaited(self, layer, n):
            super().awaited(layer, n)
            seen.append(self.total().done)
            os.write(go, b"x")

    seen, tally = [], Watching()
    pull(root, image, progress=tally)
    assert ended(child) == 0
    assert 3 * spool.PIECE <= seen[0] <= 3 * spool.PIECE + 1000
    assert (tally.total().fetched, tally.total().done) == (0, image_bytes(image))
    for fd in (said, says, stop, go):
        os.close(fd)


def test_a_thread_of_the_same_process_goes_on_too(root, image, reads):
    with remotely(reads, ending_at=1_000_000), layerstore.open(root) as store, pytest.raises(errors.SourceError):
        store.pull(image.reference)
    with remotely(reads), layerstore.open(root) as store:
        pulls = [threading.Thread(target=store.pull, args=(image.reference,)) for _ in range(4)]
        for each in pulls:
            each.start()
        for each in pulls:
            each.join()
    assert sum(reads.total().values()) <= image_bytes(image) + 65_536
    holds_the_content(root, image)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_pull_waits_for_another_no_longer_than_it_is_told_to(root, image, armed, workers):
    there, over = threading.Event(), threading.Event()

    def hook(name, when):
        if name == "unpack.entry" and threading.current_thread() is not threading.main_thread():
            there.set()
            over.wait()

    with layerstore.open(root) as store:
        armed(hook)
        other = threading.Thread(target=store.pull, args=(image.reference,))
        other.start()
        there.wait()
        try:
            with pytest.raises(errors.BusyError):
                store.pull(image.reference, options=PullOptions(workers=workers, wait=0.1))
            command = [sys.executable, "-m", "layerstore", "--root", root, "pull", "--wait", "0", "-q", image.reference]
            ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
            assert (ran.returncode, "still being staged" in ran.stderr) == (1, True)
        finally:
            over.set()
            other.join()
        assert store.pull(image.reference, options=PullOptions(wait=0.1)).id
    holds_the_content(root, image)


def test_a_stage_of_the_same_content_from_elsewhere_takes_the_tree_and_leaves_no_spool_in_it(root, image):
    killed_fetching(root, image)
    (txid,) = tree_names(root, "staging")
    blob = image.layer_path(0).read_bytes()
    with layerstore.open(root) as store:
        local = layerstore.TarDiffer(blob, expect=layerstore.Descriptor("", digest(blob), len(blob)))
        with store.stage(local) as staged:
            layer = store.apply_staged_layer(staged)
        assert layer.txid == txid
    assert violations(str(root)) == []



# -- any of them dies, anywhere ------------------------------------------------------------------------------------------


def distinct_points(work, image):
    """Every fault point of a pull, before and after, at its first passing and, if there are more, at its last."""
    from layerstore.testing import Passing, passings

    found = {}
    for each in passings(lambda: pull(work / "whole", image)):
        found.setdefault((each.point, each.when), []).append(each.nth)
    opening = {each.point for each in passings(lambda: layerstore.open(work / "whole").close())}
    return [
        Passing(point, when, nth) for (point, when), all_ in found.items()
        if point not in opening and not point.startswith("create.") and not point.startswith("journal.")
        for nth in sorted({all_[0], all_[-1]})
    ]


@pytest.fixture
def work():
    """On a RAM disk: a kill does not lose what was written."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as directory:
        yield Path(directory)


@pytest.mark.timeout(900)
def test_killing_one_of_three_that_pull_at_any_fault_point_costs_no_other_its_success(work, reads, record_property):
    """The others wait for its tree already when it dies, if it has one."""
    image = make_image(work / "image", layers=1, size=300_000)
    points = distinct_points(work, image)
    for number, point in enumerate(points):
        root = work / f"store{number}"
        layerstore.open(root).close()
        first_dies(root, image, reads, point, most=image_bytes(image))
    record_property("states", len(points))
    assert len(points) >= 40


OF_PARTS = ("stage.spool.create", "stage.spool.keep", "reader.lock", "unpack.entry", "stage.output", "stage.spool.unlink")


@pytest.mark.parametrize("form", FORMS)
def test_killing_one_of_three_that_pull_what_is_partly_here_costs_no_other_its_success(work, reads, record_property, form):
    """At the points that a pull in parts passes in another order than a whole one."""
    old, image = versions(work, form)
    with_old(work / "whole", old)
    copy_store(work / "whole", work / "start")
    points = [each for each in distinct_points(work, image) if each.point in OF_PARTS and each.when == "after"]
    most = least(work, old, image)
    for number, point in enumerate(points):
        root = work / f"store{number}"
        copy_store(work / "start", root)
        first_dies(root, image, reads, point, most=most, images=2)
    record_property("states", len(points))
    assert {each.point for each in points} == set(OF_PARTS)


def first_dies(root, image, reads, point, *, most, images=1):
    """Of three the first is killed at *point*; no more than *most* bytes and one piece are fetched by all together."""
    reads.clear()
    assert three_that_pull(root, image, reads, first=dying_at(point)) == [SIGKILL, 0, 0], point
    assert violations(str(root)) == [], point
    with layerstore.open(root) as store:
        assert len(store.images()) == images, point
        assert set(states(store)) <= {"committed"}, point
    assert sum(reads.total().values()) <= most + spool.PIECE, point
    shutil.rmtree(root)


@pytest.mark.parametrize("form", ["plain", chunkedmaker.CURRENT])
def test_killing_one_that_waits_at_any_fault_point_costs_no_other_its_success(work, reads, record_property, form):
    """The one that it waits for, and one that waits as it does, fetch each byte once; what it left is recovered."""
    old, image = versions(work, chunkedmaker.CURRENT)
    if form == "plain":
        image = make_image(work / "image", layers=1, size=300_000)
    with_old(work / "start", old)
    points, most = waiters_points(work, image, reads), sum(reads.total().values())
    for number, point in enumerate(points):
        root = work / f"store{number}"
        copy_store(work / "start", root)
        reads.clear()
        assert three_that_pull(root, image, reads, second=dying_at(point)) == [0, SIGKILL, 0], point
        assert violations(str(root)) == [], point
        with layerstore.open(root) as store:
            assert store.recovery.clean
            assert len(store.images()) == 2, point
        assert sum(reads.total().values()) == most, point
        shutil.rmtree(root)
    record_property("states", len(points))
    assert len(points) >= 2


def waiters_points(work, image, reads):
    """The fault points that one that waits passes from then on, each once: before and after."""
    root, path = work / "waited", work / "passed"
    copy_store(work / "start", root)

    def hook(name, when):
        with open(path, "a") as file:
            file.write(f"{name} {when}\n")

    assert three_that_pull(root, image, reads, second=hook) == [0, 0, 0]
    return [Passing(*line.split(), 1) for line in dict.fromkeys(path.read_text().splitlines())]


def dying_at(point):
    left = [point.nth]

    def hook(name, when):
        if (name, when) == (point.point, point.when):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), 9)

    return hook


def three_that_pull(root, image, reads, *, first=lambda _name, _when: None, second=lambda _name, _when: None):
    """One begins, and two wait for its tree before it goes on. *first* is a hook in that one, *second* in one that waits,
    from then on. How each ended.
    """
    said, says = os.pipe()      # closed or written to when the others may begin
    heard, hear = os.pipe()     # written to by each of the others when it waits

    def begins():
        def hook(name, when):
            if (name, when) == ("txn.begin", "after"):
                os.write(says, b"1")
                os.read(heard, 1)
                os.read(heard, 1)
            first(name, when)

        faults.install(hook)
        pull(root, image, reads)

    def waits(hook):
        class Waiting(layerstore.Quiet):
            def layer(self, layer, *, state, size):
                if state == "waiting":
                    faults.install(hook)
                    os.write(hear, b"w")

        pull(root, image, reads, progress=Waiting())

    children = [forked(begins)]
    os.close(says)
    os.read(said, 1)
    children += [forked(lambda hook=hook: waits(hook)) for hook in (second, None)]
    status = ended(children[0])
    for fd in (said, heard):
        os.close(fd)
    found = [status, *(ended(each) for each in children[1:])]
    os.close(hear)
    return found
