"""``repair``: what is damaged is put right from the nearest good copy, or quarantined; nothing is deleted."""

import json
import os
import shutil
import sys
from pathlib import Path
from collections import Counter

import imagemaker
import pytest
from click.testing import CliRunner

import layerstore
import signing
import tarmaker
from layerstore import TarDiffer, errors
from layerstore.verbs.check import Finding
from layerstore.cli.commands import cli
from layerstore.formats.manifest import ManifestEntry
from layerstore.verbs.repair.plan import Do, Known, plan
from layerstore.testing import read_tree, violations
from storekit import add, failing_at, image, killed_at, observed
from test_check import flip

BIG = b"big" * 50_000
SPEC = {
    "d": imagemaker.Dir(mode=0o750), "d/file": b"content" * 2000, "d/sub/deep": b"deep" * 40, "same": b"content" * 2000,
    "other": imagemaker.File(b"x" * 100, mode=0o600), "empty": b"", "link": imagemaker.Symlink("other"),
    "hard": imagemaker.Hardlink("d/sub/deep"), "fifo": imagemaker.Fifo(), "big": BIG,
}


def tree(store, layer, *parts):
    return os.path.join(store.root, "layers", layer.id, *parts)


def pair(store):
    """A layer, and another one that has all of its content."""
    layer = add(store, SPEC)
    spare = add(store, {**{path: node for path, node in SPEC.items() if path != "hard"}, "d/more": b"1"})
    store.checkpoint()
    return layer, spare


def removed(path):
    shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)


def replaced(path, make):
    removed(path)
    make(path)


DAMAGE = {
    "a flipped bit, a twin in the layer": lambda t: flip(t + "/diff/same"),
    "a flipped bit, a twin elsewhere": lambda t: flip(t + "/diff/other"),
    "both twins": lambda t: (flip(t + "/diff/same"), flip(t + "/diff/d/file")),
    "a truncated file": lambda t: os.truncate(t + "/diff/other", 5),
    "a file of zeros": lambda t: open(t + "/diff/other", "wb").write(bytes(100)),
    "a removed file": lambda t: os.unlink(t + "/diff/other"),
    "a removed empty file": lambda t: os.unlink(t + "/diff/empty"),
    "a removed link": lambda t: os.unlink(t + "/diff/link"),
    "another link target": lambda t: replaced(t + "/diff/link", lambda p: os.symlink("else", p)),
    "a removed fifo": lambda t: os.unlink(t + "/diff/fifo"),
    "a directory with all that is in it": lambda t: removed(t + "/diff/d"),
    "a file where a directory was": lambda t: replaced(t + "/diff/d", lambda p: open(p, "w").close()),
    "a directory where a file was": lambda t: replaced(t + "/diff/other", lambda p: os.makedirs(p + "/x")),
    "a flipped bit in a hard-linked file": lambda t: flip(t + "/diff/d/sub/deep"),
    "a hard link come apart": lambda t: replaced(t + "/diff/hard", lambda p: open(p, "wb").write(b"deep" * 40)),
    "the file of a hard link removed": lambda t: os.unlink(t + "/diff/d/sub/deep"),
    "a stray file": lambda t: open(t + "/diff/d/stray", "x").close(),
    "a stray directory": lambda t: os.makedirs(t + "/diff/stray/deep"),
    "two files swapped": lambda t: (os.rename(t + "/diff/d/file", t + "/diff/x"), os.rename(t + "/diff/big", t + "/diff/d/file"),
                                    os.rename(t + "/diff/x", t + "/diff/big")),
    "a wrong mode": lambda t: os.chmod(t + "/diff/other", 0o4777),
    "a wrong mode of the root": lambda t: os.chmod(t + "/diff", 0o700),
    "a wrong time": lambda t: os.utime(t + "/diff/d", (1, 1)),
    "a wrong time of a link": lambda t: os.utime(t + "/diff/link", (1, 1), follow_symlinks=False),
    "a strange attribute": lambda t: os.setxattr(t + "/diff/other", "user.x", b"1"),
    "the whole content gone": lambda t: removed(t + "/diff"),
    "the side file": lambda t: flip(t + "/layer", at=20),
    "no side file": lambda t: os.unlink(t + "/layer"),
    "the txid": lambda t: flip(t + "/txid", at=3),
    "a stray part": lambda t: os.mkdir(t + "/strange"),
    "everything at once": lambda t: [removed(t + "/diff/" + each) for each in os.listdir(t + "/diff")],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_each_damage_is_mended_to_the_byte_from_what_is_here(store, damage):
    layer, spare = pair(store)
    before = read_tree(tree(store, layer, "diff"))
    damage(tree(store, layer))
    assert not store.check(content=True).sound
    planned = store.repair(dry_run=True)
    assert planned.steps and not store.check(content=True).sound, "a dry run changed something"
    report = store.repair()
    assert (report.mended, report.quarantined, report.clean) == ((layer.id,), (), True), report
    assert store.check(content=True).findings == ()
    assert read_tree(tree(store, layer, "diff")) == before
    assert not os.path.exists(tree(store, layer, "mending"))
    assert store.repair().steps == ()
    assert spare.id not in report.mended


@pytest.mark.root
def test_owners_and_privileged_attributes_are_given_back(store):
    layer, _ = pair(store)
    before = read_tree(tree(store, layer, "diff"))
    os.chown(tree(store, layer, "diff", "other"), 5, 6)
    os.setxattr(tree(store, layer, "diff", "d"), "trusted.overlay.opaque", b"y")
    assert store.repair().mended == (layer.id,)
    assert read_tree(tree(store, layer, "diff")) == before


def _apart(tree):
    """A link to a link that goes on being one, of another file."""
    for name in ("m", "c"):
        os.unlink(tree + name)
    Path(tree + "m").write_bytes(b"content" * 100)
    os.link(tree + "m", tree + "c")


CHAINED = {
    "only the last link has the content": lambda t: (os.unlink(t + "z"), os.unlink(t + "m")),
    "another layer has the content": lambda t: flip(t + "z"),
    "the links are gone": lambda t: (os.unlink(t + "m"), os.unlink(t + "c")),
    "all but the link between is gone": lambda t: (flip(t + "z"), os.unlink(t + "z"), os.unlink(t + "c")),
    "the links are another file's": _apart,
}


@pytest.mark.parametrize("damage", CHAINED.values(), ids=CHAINED)
def test_links_to_links_are_names_of_one_file_again(store, damage):
    head = tarmaker.file(b"z", b"content" * 100)
    data = head + tarmaker.hardlink(b"m", b"z") + tarmaker.hardlink(b"c", b"m") + tarmaker.END
    with store.stage(TarDiffer(data)) as staged:
        layer = store.apply_staged_layer(staged)
    if damage is not CHAINED["only the last link has the content"]:
        add(store, {"spare": b"content" * 100})
    diff = tree(store, layer, "diff/")
    damage(diff)
    assert (store.repair().mended, store.check(content=True).findings) == ((layer.id,), ())
    assert os.path.samefile(diff + "c", diff + "z") and os.path.samefile(diff + "m", diff + "z")
    assert Path(diff + "c").read_bytes() == b"content" * 100


def test_what_it_replaces_is_kept_as_evidence(store):
    layer, _ = pair(store)
    with open(tree(store, layer, "diff", "other"), "wb") as file:
        file.write(b"somebody's")
    open(tree(store, layer, "diff", "stray"), "x").close()
    (kept,) = store.repair().evidence
    found = {open(os.path.join(store.root, kept, each), "rb").read() for each in os.listdir(os.path.join(store.root, kept))}
    assert found == {b"somebody's", b""}


def test_what_nobody_has_is_quarantined_and_everything_else_stays_available(store, tmp_path):
    made = image(tmp_path)
    pulled = store.pull(made.reference)
    other = add(store, {"x": b"something else"})
    flip(tree(store, store.layer(pulled.layers[1]), "diff", "layer1"))
    open(tree(store, store.layer(pulled.layers[1]), "diff", "stray"), "x").close()
    report = store.repair()
    assert (report.quarantined, report.mended, report.clean) == ((pulled.layers[1],), (), False)
    with pytest.raises(errors.LayerDamagedError) as raised:
        store.layer(pulled.layers[1])
    assert raised.value.files == ("diff/layer1",)                          # the stray one was taken out all the same
    with pytest.raises(errors.LayerDamagedError):
        store.extract(pulled.id, tmp_path / "out")
    assert store.layer(other.id) and store.layer(pulled.layers[0])
    assert [f.code for f in store.check(content=True).findings] == ["layer-quarantined", "image-layer-missing"]
    assert store.repair().quarantined == (pulled.layers[1],)              # again, and nothing worse


@pytest.mark.parametrize("lost", ["diff/layer1", "manifest", "tar-split"])
def test_a_source_has_what_nobody_here_has(store, tmp_path, lost):
    made = image(tmp_path)
    pulled = store.pull(made.reference)
    bad = store.layer(pulled.layers[1])
    before = read_tree(tree(store, bad, "diff"))
    os.unlink(tree(store, bad, *lost.split("/")))
    assert store.repair().quarantined == (bad.id,)
    planned = store.repair(source=made.reference, dry_run=True)
    assert {step.source for step in planned.steps} >= {f"source {made.reference}"}
    report = store.repair(source=made.reference)
    assert (report.mended, report.quarantined) == ((bad.id,), ())
    assert read_tree(tree(store, bad, "diff")) == before
    assert store.check(content=True).findings == ()
    assert [each.id for each in store.layers_by_digest(bad.diff_id)] == [bad.id]
    assert os.listdir(os.path.join(store.root, "staging")) == []


def test_a_damaged_manifest_is_restored_and_what_it_tells_then_too(store, tmp_path):
    made = image(tmp_path)
    bad = store.layer(store.pull(made.reference).layers[1])
    flip(tree(store, bad, "manifest"), at=30)
    os.truncate(tree(store, bad, "diff", "layer1"), 0)
    assert store.repair(source=made.reference).mended == (bad.id,)
    assert store.check(content=True).sound


def test_a_donor_that_is_rotten_itself_is_passed_over(store):
    rotten = add(store, {"d/file": BIG, "first": b"1" * 80})
    good = add(store, {"copy": BIG, "second": b"2" * 80})
    layer = add(store, {"mine": BIG})
    flip(tree(store, rotten, "diff", "d", "file"))
    flip(tree(store, layer, "diff", "mine"))
    assert set(store.repair().mended) == {layer.id, rotten.id}
    assert store.check(content=True).sound and good


def test_an_images_side_file_is_written_again_from_the_log_its_archive_or_the_source(store, tmp_path):
    made = image(tmp_path)
    pulled = store.pull(made.reference, names=["first"])
    path = os.path.join(store.root, "images", pulled.id)
    before = open(path, "rb").read()
    flip(path, at=10)
    assert store.repair().mended == (pulled.id,)
    assert open(path, "rb").read() == before
    store.set_name("second", pulled.id)
    store.checkpoint(archive=True)
    os.unlink(path)
    assert store.repair().mended == (pulled.id,)
    assert open(path, "rb").read() == before
    segments = os.path.join(store.root, "journal", "segments")
    for each in os.listdir(segments):
        os.unlink(os.path.join(segments, each))
    os.unlink(path)
    assert [step.do for step in store.repair().steps] == [Do.LEAVE]
    assert store.repair(source=made.reference).mended == (pulled.id,)
    assert {each.code for each in store.check().findings} == {"journal-segment"}


def test_an_image_that_was_deleted_and_came_again_gets_the_side_file_of_its_last_promise(store, tmp_path):
    made = image(tmp_path)
    store.delete_image(store.pull(made.reference, names=["before"]).id)
    pulled = store.pull(made.reference, names=["after"])
    path = os.path.join(store.root, "images", pulled.id)
    data = open(path, "rb").read()
    os.unlink(path)
    assert store.repair().mended == (pulled.id,)
    assert open(path, "rb").read() == data


def manifest_and_signatures(image):
    return image.manifest_digest, image.signatures


@pytest.mark.parametrize("change", ["manifest", "signatures", "unsigned"])
def test_an_image_that_came_again_as_another_does_not_get_the_side_file_of_its_first(root, tmp_path, change):
    """The archive has the first promise, and its end; the second was lost with the database."""
    made = image(tmp_path)
    if change == "unsigned":
        signing.refer(made.path, made.manifest_digest)
    with layerstore.open(root) as store:
        store.delete_image(store.pull(made.reference).id)
        store.checkpoint(archive=True)   # its end
        store.checkpoint(archive=True)   # and that the file is gone
        if change == "manifest":
            signing.by_another_manifest(made)
        if change == "signatures":
            signing.refer(made.path, made.manifest_digest)
        pulled = store.pull(made.reference, options=layerstore.PullOptions(signatures=change != "unsigned"))
    os.unlink(os.path.join(root, "journal", "data.mdb"))
    layerstore.rebuild(root)
    path = os.path.join(root, "images", pulled.id)
    before = open(path, "rb").read()
    os.unlink(path)
    with layerstore.open(root) as store:
        assert manifest_and_signatures(store.image(pulled.id)) == manifest_and_signatures(pulled)
        if change == "manifest":
            assert [step.do for step in store.repair().steps] == [Do.LEAVE]
        assert store.repair(source=made.reference).mended == (pulled.id,)
        assert store.check().sound
    assert open(path, "rb").read() == before


def test_a_tree_that_nobody_owns_is_set_aside(store):
    os.mkdir(os.path.join(store.root, "layers", "stray"))
    assert [step.do for step in store.repair().steps] == [Do.SET_ASIDE]
    assert store.check().sound
    assert os.listdir(os.path.join(store.root, "quarantine")) == ["layers-stray-0"]


def test_a_missing_tree_is_quarantined(store):
    layer, _ = pair(store)
    removed(tree(store, layer))
    assert store.repair().quarantined == (layer.id,)
    with pytest.raises(errors.LayerDamagedError):
        store.chain(layer.id)


def test_a_layer_that_readers_hold_is_left_and_said_so(store):
    layer, _ = pair(store)
    flip(tree(store, layer, "diff", "other"))
    with store.layer_paths(layer.id):
        report = store.repair(wait=0.0)
    assert (report.busy, report.mended) == ((layer.id,), ())
    assert store.repair().mended == (layer.id,)


def test_a_repair_that_fails_leaves_the_layer_as_it_was_and_can_be_done_again(store):
    layer, _ = pair(store)
    flip(tree(store, layer, "diff", "other"))
    with failing_at("repair.write", "ENOSPC"):
        assert list(store.repair().failed) == [layer.id]
    assert os.listdir(os.path.join(store.root, "quarantine")) == []
    assert [f.code for f in store.check(content=True).findings] == ["path-content"]
    assert store.repair().mended == (layer.id,)


def test_a_commit_that_fails_after_the_exchange_does_not_say_that_nothing_happened(store, monkeypatch):
    from layerstore.recovery import mending

    layer, _ = pair(store)
    flip(tree(store, layer, "diff", "other"))

    def full(*_args, **_options):
        monkeypatch.undo()
        raise errors.NoSpaceError("the disk is full")

    monkeypatch.setattr(mending, "end", full)
    assert list(store.repair().failed) == [layer.id]
    assert store.check(content=True).sound                                # it was exchanged, and settled


def test_a_sync_that_fails_poisons_and_the_next_open_ends_the_repair(root):
    with layerstore.open(root) as store:
        layer, _ = pair(store)
        flip(tree(store, layer, "diff", "other"))
        with failing_at("repair.settle", "EIO"), pytest.raises(errors.OutcomeUnknownError):
            store.repair()
        with pytest.raises(errors.PoisonedError):
            store.repair()
    with layerstore.open(root) as store:
        assert [each.do.value for each in store.recovery.actions] == ["end-repair"]
        assert store.check(content=True).sound
    assert violations(root) == []


def test_after_a_sync_that_failed_a_repair_syncs_no_more(root):
    with layerstore.open(root) as store:
        layer, _ = pair(store)
        flip(tree(store, layer, "diff", "other"))
        with failing_at("repair.sync", "EIO"), observed([]) as passed, pytest.raises(errors.OutcomeUnknownError):
            store.repair()
    assert "repair.settle" not in passed


@pytest.mark.parametrize("txid", [None, "0" * 32])
def test_a_repair_of_a_txid_that_was_killed_leaves_the_layer_committed(root, txid):
    with layerstore.open(root) as store:
        layer, _ = pair(store)
    path = os.path.join(root, "layers", layer.id, "txid")
    os.unlink(path)
    if txid is not None:
        Path(path).write_text(txid)

    def work():
        with layerstore.open(root) as store:
            store.repair()

    killed_at("repair.write", "before", work)
    for expected in (["end-repair"], []):
        with layerstore.open(root) as store:
            assert [each.do.value for each in store.recovery.actions] == expected
            assert store.layer(layer.id).state == "committed"
    assert Path(path).read_text() == layer.txid


def test_a_source_s_tree_that_cannot_be_given_up_is_no_error_of_the_repair(root, tmp_path):
    made = image(tmp_path)
    with layerstore.open(root) as store:
        pulled = store.pull(made.reference)
        os.unlink(tree(store, store.layer(pulled.layers[1]), "diff", "layer1"))
        with failing_at("txn.discard", "ENOSPC"):
            assert store.repair(source=made.reference).mended == (pulled.layers[1],)
    assert violations(root) == []


@pytest.mark.parametrize("point", ["txn.repair", "repair.exchange", "repair.wear", "repair.set-aside"])
def test_a_killed_repair_is_ended_by_the_next_open_and_done_again(root, point):
    with layerstore.open(root) as store:
        layer, _ = pair(store)
        before = read_tree(tree(store, layer, "diff"))
        for path in ("other", "d/sub/deep", "big"):
            flip(tree(store, layer, "diff", path))

    def work():
        with layerstore.open(root) as store:
            store.repair()

    killed_at(point, "after", work)
    with layerstore.open(root) as store:
        assert [each.do.value for each in store.recovery.actions] == ["end-repair"]
        assert {f.code for f in store.check(content=True).findings} <= {"path-content"}
        store.repair()
        assert store.check(content=True).sound
        assert read_tree(tree(store, layer, "diff")) == before
    assert violations(root) == []


def test_a_mount_of_what_was_repaired_is_to_be_mounted_again(store, tmp_path):
    from layerstore.lifecycle.machine import fire
    from layerstore.lifecycle.states import Kind, Trigger

    layer, spare = pair(store)
    for target, what in (("/a", layer), ("/b", spare)):
        payload = {"target": target, "layers": [what.id], "writable": False, "boot_id": "b"}
        for trigger, data in ((Trigger.TAKE, payload), (Trigger.ATTACH, {})):
            store._handle.update("t", lambda txn, t=trigger, d=data, k=target: fire(
                txn, Kind.MOUNT, "m" * 8 + k[1], t, txid="m", payload=d))
    flip(tree(store, layer, "diff", "other"))
    assert store.repair().remount == ("/a",)


def test_a_plan_is_made_of_findings_alone():
    entries = {
        b"a": ManifestEntry(b"a", "file", size=3, sha256=b"a" * 32), b"b": ManifestEntry(b"b", "hardlink", linkname=b"a"),
        b"c": ManifestEntry(b"c", "file", size=3, sha256=b"c" * 32), b"d": ManifestEntry(b"d", "dir"),
    }
    found = [Finding(code, "L", "why", path) for code, path in (
        ("path-metadata", "a"), ("path-content", "a"), ("path-content", "c"), ("path-missing", "d/x"), ("path-missing", "d"),
        ("path-extra", "z"), ("path-metadata", "c"), ("side-file-wrong", "layer"), ("journal-row", ""),
    )]
    known = Known(entries, {b"a" * 32: "layer M"})
    steps = [(step.do.value, step.path, step.source) for step in plan(found, known)]
    assert steps == [
        ("take-out", "diff/z", "nobody needs it"), ("rewrite", "layer", "the catalog"),
        ("leave", "", "no repair of a layer mends that"), ("restore", "diff/a", "layer M"),
        ("quarantine", "diff/c", "nobody has its content"), ("make", "diff/d", "the manifest"),
        ("quarantine", "diff/d/x", "nothing says what it was"), ("link", "diff/b", "its own file a"),
    ]
    assert plan(found, known) == plan(list(found), known)


def test_the_command_shows_its_plan_and_ends_with_3_if_anything_is_left(root, tmp_path):
    made = image(tmp_path)
    with layerstore.open(root) as store:
        bad = store.layer(store.pull(made.reference).layers[1])
        flip(tree(store, bad, "diff", "layer1"))
    run = CliRunner()
    done = run.invoke(cli, ["--root", root, "repair", "--dry-run"])
    assert done.exit_code == 3 and "quarantine" in done.output and "layer1" in done.output
    assert run.invoke(cli, ["--root", root, "repair"]).exit_code == 3
    done = run.invoke(cli, ["--root", root, "repair", "--from", made.reference, "--json"])
    assert (done.exit_code, json.loads(done.stdout)["mended"]) == (0, [bad.id])


def test_a_quarantined_layer_is_served_to_who_asks_for_it_and_its_image_says_so(store, tmp_path):
    pulled = store.pull(image(tmp_path).reference)
    bad = pulled.layers[1]
    flip(tree(store, store.layer(bad), "diff", "layer1"))
    assert store.image(pulled.id).damaged == ()
    store.repair()
    assert store.image(pulled.id).damaged == (bad,)
    assert [each.damaged for each in store.images()] == [(bad,)]
    assert store.layer(bad, damaged=True).damaged_files == ("diff/layer1",)
    assert [each.id for each in store.chain(pulled.layers[2], damaged=True)] == list(pulled.layers)
    for asking in (lambda: store.chain(pulled.layers[2]), lambda: store.extract(pulled.id, tmp_path / "no"),
                   lambda: store.layer_paths(bad).__enter__()):
        with pytest.raises(errors.LayerDamagedError):
            asking()
    store.extract(pulled.id, tmp_path / "out", damaged=True)
    assert (tmp_path / "out" / "layer2").exists()
    with store.layer_paths(bad, damaged=True) as paths:
        assert len(paths) == 2


@pytest.mark.parametrize("content", [b"1", b"content" * 2000], ids=["of one byte", "of many"])
def test_what_no_index_has_is_found_in_another_layer_by_its_manifest(store, content):
    layer = add(store, {"file": content, "twice": content})
    spare = add(store, {"elsewhere": content})
    for name in ("file", "twice"):
        flip(tree(store, layer, "diff", name))
    with open(tree(store, spare, "digests"), "wb"):
        pass
    report = store.repair()
    assert (report.mended, report.clean) == ((layer.id,), True)
    assert {step.source for step in report.steps if step.do is Do.RESTORE} == {f"layer {spare.id}"}
    assert store.check(content=True).sound


def directory_at(path):
    os.unlink(path)
    os.mkdir(path)


def test_a_link_is_made_after_its_file_however_deep_that_lies(store):
    layer, _ = pair(store)
    directory_at(tree(store, layer, "diff", "d", "sub", "deep"))
    report = store.repair()
    assert (report.mended, report.failed) == ((layer.id,), {})
    assert [step.do for step in report.steps if step.path in ("diff/hard", "diff/d/sub/deep")] == [Do.RESTORE, Do.LINK]
    assert os.path.samefile(tree(store, layer, "diff", "hard"), tree(store, layer, "diff", "d", "sub", "deep"))


def test_a_link_to_what_nobody_has_is_quarantined_and_no_failure(store):
    layer = add(store, {"file": b"only here" * 20, "link": imagemaker.Hardlink("file")})
    directory_at(tree(store, layer, "diff", "file"))
    flip(tree(store, layer, "diff", "link"))
    report = store.repair()
    assert (report.quarantined, report.failed) == ((layer.id,), {})


@pytest.mark.parametrize("instead", [lambda path: open(path, "w").close(), lambda path: os.symlink(".", path)], ids=["file", "link"])
def test_a_tree_in_whose_place_is_something_else_is_made_again(store, instead):
    layer = add(store, {"file": b"here and there" * 20})
    add(store, {"other": b"here and there" * 20})
    replaced(tree(store, layer, "diff"), instead)
    assert [(each.code, each.path) for each in store.check().findings] == [("part-missing", "diff")]
    assert store.repair().mended == (layer.id,)
    assert store.check(content=True).sound


@pytest.fixture
def opened(monkeypatch):
    """How often each name was opened, by its last component."""
    counted = Counter()
    real = os.open

    def counting(path, *args, **options):
        counted[os.path.basename(os.fsencode(path))] += 1
        return real(path, *args, **options)

    monkeypatch.setattr(os, "open", counting)
    return counted


MANY = {f"d{n % 16}/{n:04}": (b"%04d" % (n % 600)) * (8 if n % 3 else 20) for n in range(1_000)}


@pytest.mark.parametrize("from_source", [False, True], ids=["another layer", "the source"])
def test_manifests_and_indexes_are_read_as_often_for_many_files_as_for_few(store, tmp_path, opened, from_source):
    if from_source:
        made = imagemaker.Image([imagemaker.Layer(MANY)]).write_oci(tmp_path / "image")
        layer = store.layer(store.pull(made.reference).layers[0])
    else:
        layer = add(store, MANY)
        add(store, {**MANY, "more": b"1"})
    before = read_tree(tree(store, layer, "diff"))
    removed(tree(store, layer, "diff"))
    opened.clear()
    report = store.repair(source=made.reference if from_source else None)
    assert (report.mended, report.clean) == ((layer.id,), True)
    assert read_tree(tree(store, layer, "diff")) == before
    assert 0 < opened[b"manifest"] <= 40 and (not from_source) <= opened[b"digests"] <= 8, opened.most_common(12)
    assert sum(opened.values()) <= 16 * len(MANY)


def test_under_its_lock_a_layer_is_looked_at_where_it_was_damaged_and_nowhere_else(store, monkeypatch, opened):
    from layerstore.system import flock

    names = [f"file{n}" for n in range(40)]
    layer = add(store, {"d": imagemaker.Dir(), **{f"d/{name}": name.encode() * 30 for name in names}})
    add(store, {f"elsewhere{n}": name.encode() * 30 for n, name in enumerate(names)})
    before = read_tree(tree(store, layer, "diff"))
    flip(tree(store, layer, "diff", "d", "file7"))
    os.unlink(tree(store, layer, "diff", "d", "file8"))
    open(tree(store, layer, "diff", "stray"), "x").close()
    real = flock.lock_tree

    def locking(*args, **options):
        lock = real(*args, **options)
        if options.get("point") == "repair.lock":
            opened.clear()
        return lock

    monkeypatch.setattr(flock, "lock_tree", locking)
    assert store.repair().mended == (layer.id,)
    assert {name for name in names if opened[name.encode()]} == {"file7", "file8"}
    monkeypatch.undo()
    assert store.check(content=True).sound and read_tree(tree(store, layer, "diff")) == before


def test_what_another_repair_did_meanwhile_is_not_done_again(store, monkeypatch):
    from layerstore.verbs.repair import making

    layer, _ = pair(store)
    flip(tree(store, layer, "diff", "other"))
    real, done = making.carry_out, []

    def counting(*args):
        done.append(args)
        return real(*args)

    monkeypatch.setattr(making, "carry_out", counting)
    from layerstore.system import flock
    locking = flock.lock_tree

    def second_first(*args, **options):
        if options.get("point") == "repair.lock":
            monkeypatch.setattr(flock, "lock_tree", locking)
            assert store.repair().mended == (layer.id,)
        return locking(*args, **options)

    monkeypatch.setattr(flock, "lock_tree", second_first)
    report = store.repair()
    assert (report.mended, report.quarantined, report.failed, len(done)) == ((), (), {}, 1)
    assert store.check(content=True).sound


def test_a_mount_that_waits_for_a_layer_keeps_no_other_mount_waiting(store, tmp_path, monkeypatch):
    from layerstore.system import flock
    from layerstore.verbs import mount

    layer, _ = pair(store)
    held = []

    def busy(handle, *_args, **_options):
        held.append(flock.is_locked(handle.root_fd, "uppers"))
        raise errors.BusyError("it is being repaired")

    monkeypatch.setattr(mount, "ReaderLock", busy)
    with pytest.raises(errors.BusyError):
        store.mount(layer.id, tmp_path)
    assert held == [False]


def test_a_repair_hashes_by_as_many_workers_and_as_fast_as_it_is_told(root, monkeypatch):
    hashing = sys.modules["layerstore.verbs.check.hashing"]   # the package has a function of that name
    rates, threads = [], []
    rate, hasher = hashing.Pace.__init__, hashing._Hasher.__init__
    monkeypatch.setattr(hashing.Pace, "__init__", lambda self, most: (rates.append(most), rate(self, most))[1])
    monkeypatch.setattr(hashing._Hasher, "__init__", lambda self, *args: (threads.append(self), hasher(self, *args))[1])
    monkeypatch.setattr(hashing, "_THREADS_FROM", 1)
    with layerstore.open(root) as store:
        layer, _ = pair(store)
        flip(tree(store, layer, "diff", "other"))
        with pytest.raises(errors.InvalidArgumentError):
            store.repair(workers=0)
    done = CliRunner().invoke(cli, ["--root", root, "repair", "--workers", "3", "--rate", "1000"])
    assert (done.exit_code, rates, len(threads)) == (0, [1e9], 3), done.output


def test_what_a_restored_manifest_tells_is_looked_at_without_the_lock(store, tmp_path, monkeypatch):
    from layerstore.system import flock

    files = {f"file{n}": b"%d" % n * 90 for n in range(9)}
    made = imagemaker.Image([imagemaker.Layer(files)]).write_oci(tmp_path / "image")
    bad = store.layer(store.pull(made.reference).layers[0])
    flip(tree(store, bad, "manifest"), at=30)
    flip(tree(store, bad, "diff", "file3"))
    held, under = [], Counter()
    real, lock, close = os.open, flock.lock_tree, flock.TreeLock.close

    def locking(*args, **options):
        made = lock(*args, **options)
        held.extend([made] * (options.get("point") == "repair.lock"))
        return made

    def counting(path, *args, **options):
        under[os.fsdecode(path)] += len(held)
        return real(path, *args, **options)

    monkeypatch.setattr(flock, "lock_tree", locking)
    monkeypatch.setattr(flock.TreeLock, "close", lambda self: (held.remove(self) if self in held else None, close(self))[1])
    monkeypatch.setattr(os, "open", counting)
    assert store.repair(source=made.reference).mended == (bad.id,)
    assert {name for name in files if under[name]} == {"file3"}
    monkeypatch.undo()
    assert store.check(content=True).sound
