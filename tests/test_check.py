"""``check``: what it finds at which depth, online, by and by. What is done about it is in ``test_repair``."""

import json
import os
import sys
import threading

import imagemaker
import pytest
from click.testing import CliRunner

import layerstore
from layerstore import errors
from layerstore.recovery import acting, looking
from layerstore.verbs.check.hashing import Pace
from layerstore.cli.commands import cli
from storekit import add, image, observed

PATHS = {"d/file": b"content" * 2000, "other": b"x" * 100, "link": imagemaker.Symlink("other")}


def tree(store, layer, *parts):
    return os.path.join(store.root, "layers", layer.id, *parts)


def flip(path, *, at=0, keep_time=True):
    status = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    if keep_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def codes(store, depth="structure", **options):
    return [(each.code, each.path) for each in store.check(depth=depth, **options).findings]


DEPTHS = ("structure", "metadata", "content")
DAMAGE = {   # what is done to a layer's directory, at which depth it is found, and as what
    "a flipped bit": (lambda t: flip(t + "/diff/d/file"), "content", ("path-content", "d/file")),
    "a truncated file": (lambda t: os.truncate(t + "/diff/other", 5), "metadata", ("path-size", "other")),
    "a removed file": (lambda t: os.unlink(t + "/diff/other"), "metadata", ("path-missing", "other")),
    "a stray file": (lambda t: open(t + "/diff/d/stray", "x").close(), "metadata", ("path-extra", "d/stray")),
    "a wrong mode": (lambda t: os.chmod(t + "/diff/other", 0o777), "metadata", ("path-metadata", "other")),
    "a wrong attribute": (lambda t: os.setxattr(t + "/diff/other", "user.x", b"1"), "metadata", ("path-metadata", "other")),
    "a flipped bit in the manifest": (lambda t: flip(t + "/manifest", at=30), "metadata", ("manifest-wrong", "manifest")),
    "a flipped bit in the tar-split": (lambda t: flip(t + "/tar-split", at=30), "metadata", ("tar-split-wrong", "tar-split")),
    "a flipped bit in the side file": (lambda t: flip(t + "/layer", at=30), "structure", ("side-file-damaged", "layer")),
    "no manifest": (lambda t: os.unlink(t + "/manifest"), "structure", ("part-missing", "manifest")),
    "no tar-split": (lambda t: os.unlink(t + "/tar-split"), "structure", ("part-missing", "tar-split")),
    "no diff": (lambda t: os.rename(t + "/diff", t + "/../../elsewhere"), "structure", ("part-missing", "diff")),
    "no txid": (lambda t: os.unlink(t + "/txid"), "structure", ("txid-damaged", "txid")),
    "a stray part": (lambda t: open(t + "/strange", "x").close(), "structure", ("part-extra", "strange")),
    "no big data": (lambda t: os.unlink(t + "/big-data/key"), "structure", ("big-data-damaged", "big-data/key")),
    "a directory for big data": (lambda t: (os.unlink(t + "/big-data/key"), os.mkdir(t + "/big-data/key")), "structure",
                                 ("big-data-damaged", "big-data/key")),
    "a stray in big data": (lambda t: os.mkdir(t + "/big-data/x"), "structure", ("part-extra", "big-data/x")),
    "a flipped bit in big data": (lambda t: flip(t + "/big-data/key"), "content", ("big-data-damaged", "big-data/key")),
}


@pytest.mark.parametrize(("damage", "depth", "found"), DAMAGE.values(), ids=DAMAGE)
def test_each_damage_is_found_from_its_depth_on_and_nothing_else_is(store, damage, depth, found):
    layer = add(store, PATHS, big_data={"key": b"value"})
    other = add(store, {"sound": b"all the time"})
    store.checkpoint()                   # else recovery has something to say, too
    damage(tree(store, layer))
    for each in DEPTHS:
        report = store.check(depth=each)
        seen = {(f.code, f.path) for f in report.findings}
        assert (found in seen) == (DEPTHS.index(each) >= DEPTHS.index(depth)), (each, seen)
        assert other.id not in {f.subject for f in report.findings}
        # a file's name coming or going is also seen in its directory's time
        assert {code for code, path in seen - {found}} <= {"path-metadata"}, seen


def test_an_untouched_store_is_sound_at_every_depth(store, tmp_path):
    store.pull(image(tmp_path).reference)
    add(store, PATHS, big_data={"key": b"value"})
    for depth in DEPTHS:
        report = store.check(depth=depth)
        assert (report.findings, report.depth, report.looked_at) == ((), depth, 4)


def test_what_nobody_owns_in_layers_is_named(store):
    add(store)
    os.mkdir(os.path.join(store.root, "layers", "stray"))
    assert [(f.code, f.subject) for f in store.check().findings] == [("ownerless", "layers/stray")]


def test_a_layer_that_is_deleted_while_it_is_read_is_no_finding_and_nobody_waits_for_the_check(store, monkeypatch):
    layer = add(store, PATHS)
    add(store, {"later": b"1"})
    real = os.preadv
    deleted = []

    def reading(fd, buffers, offset, *rest):
        if not deleted:
            deleted.append(store.delete_layer(layer.id, wait=0.0))
            store.checkpoint()                                            # its tree is unlinked under the reader's hands
        return real(fd, buffers, offset, *rest)

    monkeypatch.setattr("layerstore.trees.compare._PIECE", 10)
    monkeypatch.setattr(os, "preadv", reading)
    report = store.check(depth="content", workers=1)
    assert deleted[0].layers == (layer.id,)
    assert report.findings == ()


def test_a_check_takes_no_lock_of_a_tree(store, monkeypatch):
    add(store, PATHS)
    passed = []
    with observed(passed):
        assert store.check(depth="content").sound
    assert passed == []


def test_threads_find_what_one_finds(store):
    layer = add(store, {f"d{n % 7}/{n}": os.urandom(200_000) for n in range(100)})
    for number in range(0, 100, 9):
        flip(tree(store, layer, "diff", f"d{number % 7}", str(number)))
    one = store.check(depth="content", workers=1)
    several = store.check(depth="content", workers=3)
    assert len(one.findings) == 12
    assert sorted(several.findings, key=str) == sorted(one.findings, key=str)
    assert several.bytes == one.bytes == 100 * 200_000
    assert not [t for t in threading.enumerate() if t.name == "layerstore-check"]


def test_threads_that_hash_let_others_have_the_processor_and_the_caller_keeps_its_own(store, monkeypatch):
    for n in range(3):
        add(store, {f"f{n}": os.urandom(12 << 20)})
    hashing = sys.modules["layerstore.verbs.check.hashing"]
    nice, hashed = set(), hashing.content_problem

    def seen(*given):
        nice.add((threading.current_thread() is threading.main_thread(), os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
        return hashed(*given)

    monkeypatch.setattr(hashing, "content_problem", seen)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    assert store.check(depth="content", workers=2).sound
    assert (False, 19) in nice
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


def test_a_walk_that_breaks_off_waits_for_nothing(store, monkeypatch):
    from layerstore.trees import verify

    real = verify.final_entries

    def broken(manifest):
        for number, entry in enumerate(real(manifest)):
            if number == 2:
                raise errors.DamagedError("a malformed record")
            yield entry

    add(store, PATHS)
    monkeypatch.setattr(verify, "final_entries", broken)
    assert codes(store, "content") == [("manifest-damaged", "manifest")]


def test_a_budget_ends_it_after_a_layer_and_the_next_check_goes_on_with_the_oldest(store):
    layers = {add(store, {"f": bytes([n]) * 50}).id for n in range(4)}
    seen = []

    class Watch:
        def event(self, what, **fields):
            if what == "checked" and fields["depth"] == "content":
                seen.append(fields["layer_id"])

    store._handle.observer = Watch()
    for left in (3, 3, 3, 3, 3):
        report = store.check(depth="content", budget=0.0)
        assert (report.looked_at, report.left, report.sound) == (1, left, True)
    assert set(seen[:4]) == layers and seen[4] == seen[0]


def test_what_was_found_sound_since_then_is_left_out_and_what_was_damaged_is_not(store):
    layer, other = add(store, PATHS), add(store, {"f": b"1"})
    flip(tree(store, layer, "diff", "d", "file"))
    begun = store._handle.clock()
    assert store.check(depth="content", note=True).looked_at == 2
    report = store.check(depth="content", since_ns=begun)
    assert (report.recent, report.looked_at) == (1, 1)
    assert [f.subject for f in report.findings] == [layer.id]
    assert store.check(depth="metadata", since_ns=begun).recent == 1       # who has seen all digests has seen all else
    assert other.id != layer.id


def test_a_check_of_metadata_does_not_count_as_one_of_content(store):
    add(store, PATHS)
    assert store.check(depth="metadata", since_ns=0).recent == 0           # it never was looked at
    assert store.check(depth="content", since_ns=1).recent == 0
    assert store.check(depth="content", since_ns=1).recent == 1


def test_a_plain_check_writes_nothing(store):
    layer = add(store, PATHS)
    store.check(depth="content")
    assert not os.path.exists(tree(store, layer, "checked"))


@pytest.mark.parametrize("said", [b"", b"nonsense", b"[1]", b'{"content": "x"}', b'{"deep": 1}', b"[" * 3000])
def test_what_is_noted_is_advice_and_may_be_anything(store, said):
    layer = add(store, PATHS)
    with open(tree(store, layer, "checked"), "wb") as file:
        file.write(said)
    report = store.check(depth="content", since_ns=1)
    assert (report.looked_at, report.sound) == (1, True)


def test_layers_that_no_checkpoint_covers_are_looked_at_first(store):
    covered = [add(store, {"f": bytes([n])}).id for n in range(5)]
    store.checkpoint()
    new = add(store, {"new": b"1"}).id
    order = []

    class Watch:
        def event(self, what, **fields):
            if what == "checked":
                order.append(fields["layer_id"])

    store._handle.observer = Watch()
    store.check()
    assert order[0] == new and set(order[1:]) == set(covered)


def test_a_rate_makes_it_wait():
    now, slept = [0.0], []

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    pace = Pace(100.0, clock=lambda: now[0], sleep=sleep)
    for _ in range(10):
        pace.read(50)
    assert now[0] == pytest.approx(5.0)
    assert Pace(None).bytes == 0


def test_a_quarantined_layer_is_named_with_its_bad_files_and_its_image_says_so(store, tmp_path):
    pulled = store.pull(image(tmp_path).reference)
    bad = store.layer(pulled.layers[1])
    row = looking.row_of(store._handle, bad.txid)
    from layerstore.lifecycle.states import Trigger
    acting._fire(store._handle, "t", bad.txid, row, Trigger.QUARANTINE, {"why": "rot", "files": [b"diff/shared/file"]})
    found = store.check().findings
    assert [f.code for f in found] == ["layer-quarantined", "image-layer-missing"]
    assert "shared/file" in found[0].message
    with pytest.raises(errors.LayerDamagedError) as raised:
        store.chain(pulled.layers[2])
    assert raised.value.files == ("diff/shared/file",)


def test_an_option_that_cannot_be_is_refused(store):
    for options in ({"depth": "deep"}, {"budget": -1}, {"workers": 0}, {"rate": 0}):
        with pytest.raises(errors.InvalidArgumentError):
            store.check(**options)


def test_the_command_checks_says_so_in_json_and_ends_with_3(root):
    with layerstore.open(root) as store:
        layer = add(store, PATHS)
        flip(tree(store, layer, "diff", "d", "file"))
    run = CliRunner()
    assert run.invoke(cli, ["--root", root, "check", "--depth", "metadata"]).exit_code == 0
    done = run.invoke(cli, ["--root", root, "check", "--depth", "content", "--json", "--workers", "2"])
    said = json.loads(done.stdout)
    assert (done.exit_code, said["sound"], said["depth"]) == (3, False, "content")
    assert [(f["code"], f["path"]) for f in said["findings"]] == [("path-content", "d/file")]
    done = run.invoke(cli, ["--root", root, "check", "--content", "--since", "1h", "--budget", "30s", "--rate", "1000"])
    assert done.exit_code == 3 and "1 findings" in done.output
    assert run.invoke(cli, ["--root", root, "check", "--since", "yesterday"]).exit_code == 2


def test_the_snapshots_of_older_segments_are_compared_at_content_alone(store, monkeypatch):
    from layerjournal import segment

    for number in range(3):
        add(store, {"f": bytes([number])})
        store.checkpoint(archive=True)
    segments, read = sorted(os.listdir(os.path.join(store.root, "journal", "segments"))), set()
    real = segment.Segment._row
    monkeypatch.setattr(segment.Segment, "_row", lambda own, *rest: (read.add(own.name), real(own, *rest))[1])
    for depth, compared in (("structure", segments[-1:]), ("metadata", segments[-1:]), ("content", segments)):
        read.clear()
        assert store.check(depth=depth).sound
        assert sorted(read) == compared


@pytest.fixture
def paced(monkeypatch):
    """The seconds that checks with a rate wait for, by a clock of their own."""
    now, module = [0.0], sys.modules["layerstore.verbs.check"]

    def sleep(seconds):
        now[0] += seconds

    monkeypatch.setattr(module, "Pace", lambda rate: Pace(rate, clock=lambda: now[0], sleep=sleep))
    return now


KEPT = [("file", b"first" * 1000), ("file", b"second")]   # of the first the tar-split keeps the content


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("depth", ["metadata", "content"])
def test_a_rate_holds_for_all_that_is_hashed(store, paced, depth, workers):
    import io
    import tarfile

    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in [*KEPT, ("large", b"x" * 1_000_000)]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with store.stage(layerstore.TarDiffer(archive.getvalue())) as staged:
        layer = store.apply_staged_layer(staged, big_data={"key": b"value" * 100_000})
    parts = [os.path.getsize(tree(store, layer, *each)) for each in (("manifest",), ("tar-split",), ("kept", "0"))]
    content = 6 + 1_000_000 + 500_000 if depth == "content" else 0
    assert parts[2] == 5_000
    report = store.check(depth=depth, rate=1_000.0, workers=workers)
    assert report.sound and report.bytes == content
    assert paced[0] == pytest.approx((sum(parts) + content) / 1_000)


def test_big_data_is_hashed_by_threads_like_any_other_content(store, monkeypatch):
    add(store, {"f": os.urandom(20 << 20)}, big_data={"blob": os.urandom(9 << 20)})
    add(store, {"g": b"1"}, big_data={"blob": os.urandom(9 << 20)})
    hashing, hashed = sys.modules["layerstore.verbs.check.hashing"], []
    real = hashing.content_problem

    def seen(fds, entry, *rest):
        hashed.append((entry.path, threading.current_thread() is threading.main_thread()))
        return real(fds, entry, *rest)

    monkeypatch.setattr(hashing, "content_problem", seen)
    assert store.check(depth="content", workers=2).sound
    assert (b"blob", False) in hashed


def test_big_data_that_cannot_be_read_is_named(store, monkeypatch):
    import errno

    add(store, PATHS, big_data={"key": b"value"})
    compare, real = sys.modules["layerstore.trees.compare"], sys.modules["layerstore.trees.compare"].open_regular

    def failing(name, dir_fd):
        if name == b"key":
            raise OSError(errno.EIO, "Input/output error")
        return real(name, dir_fd)

    monkeypatch.setattr(compare, "open_regular", failing)
    assert codes(store, "content") == [("big-data-damaged", "big-data/key")]
