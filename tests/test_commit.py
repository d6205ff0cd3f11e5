"""Committing a writable mount: what was written becomes a layer and an image; what changes meanwhile is not committed."""

import hashlib
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import treediff
from test_overlay import in_namespace

import imagemaker
import layerstore
from layerstore import CommitOptions, errors
from layerstore.system import faults
from layerstore.testing import CrashExplorer, copy_store, layer, name, still_clock
from layerstore.testing import image as an_image
from layerstore.trees.mounted import is_overlay_mounted
from storekit import add, differ

pytestmark = pytest.mark.root


def image(tmp_path, name="base", *, layers=None, config=None):
    files = {"etc": imagemaker.Dir(), "etc/old": b"1", "etc/gone": b"2", "dir": imagemaker.Dir(), "dir/hidden": b"3"}
    made = imagemaker.Image(layers or [imagemaker.Layer(files)], **({"config": config} if config else {}))
    return made.write_oci(tmp_path / name, tag="latest")


def mounted(store, tmp_path, reference):
    target = tmp_path / "target"
    target.mkdir(exist_ok=True)
    store.mount(reference, target, writable=True)
    return target


def work_in(target):
    """Everything that an upper directory can say of what is beneath it."""
    (target / "etc" / "new").write_text("written")
    (target / "etc" / "old").write_text("changed")
    (target / "etc" / "gone").unlink()
    subprocess.run(["rm", "-r", target / "dir"], check=True)
    (target / "dir").mkdir()
    (target / "dir" / "other").symlink_to("../etc/new")


@contextmanager
def once_it_was_read(act):
    """Do something when the second entry, the only file that was written, has been unpacked."""
    passed, done = [], []

    def hook(point, when):
        if (point, when) == ("unpack.entry", "after"):
            passed.append(point)
            if len(passed) == 2:
                done.append(act())

    previous = faults.install(hook)
    try:
        yield done
    finally:
        faults.install(previous)


@in_namespace
def test_an_image_of_a_mount_is_what_was_seen_in_it(tmp_path):
    with layerstore.open(tmp_path / "store") as store:
        base = store.pull(image(tmp_path).reference)
        target = mounted(store, tmp_path, base.id)
        work_in(target)
        made = store.commit(target, names=["worked:1"])
        assert made.created
        assert (made.names, made.layers[:-1]) == (("worked:1",), base.layers)
        store.extract("worked:1", tmp_path / "out")
        treediff.assert_same(treediff.snapshot(target), treediff.snapshot(tmp_path / "out"))
        assert store.check(content=True).sound


@in_namespace
def test_its_documents_are_those_of_its_base_with_one_layer_more(tmp_path):
    with layerstore.open(tmp_path / "store", clock=lambda: 1_700_000_000_000_000_000) as store:
        base = store.pull(image(tmp_path).reference)
        target = mounted(store, tmp_path, base.id)
        (target / "new").write_text("written")
        made = store.commit(target, options=CommitOptions(config={"Cmd": ["new"]}, comment="so"))
        before, now = [[json.loads(text) for text in store.image_documents(each)] for each in (base.id, made.id)]
        manifest, config = store.image_documents(made.id)
        layer = store.layer(made.layers[-1])
    assert now[0]["layers"][:-1] == before[0]["layers"]
    assert (now[0]["layers"][-1]["digest"], now[0]["layers"][-1]["size"]) == (layer.diff_id, layer.diff_size)
    assert now[0]["annotations"] == {"org.opencontainers.image.base.digest": base.manifest_digest}
    assert now[0]["config"]["digest"] == "sha256:" + hashlib.sha256(config).hexdigest() == made.config_digest
    assert made.manifest_digest == "sha256:" + hashlib.sha256(manifest).hexdigest()
    assert now[1]["rootfs"]["diff_ids"] == [*before[1]["rootfs"]["diff_ids"], layer.diff_id]
    assert now[1]["config"] == {**(before[1].get("config") or {}), "Cmd": ["new"]}
    assert now[1]["created"] == "2023-11-14T22:13:20Z"
    assert now[1].get("history", [{"comment": "so"}])[-1]["comment"] == "so"


@in_namespace
def test_of_a_layer_that_is_no_images_an_image_is_made_all_the_same_and_again_on_it(tmp_path):
    with layerstore.open(tmp_path / "store") as store:
        layer = add(store)
        target = mounted(store, tmp_path, layer.id)
        (target / "one").write_text("1")
        first = store.commit(target)
        (target / "two").write_text("2")
        second = store.commit(target)
        assert (first.layers[:-1], second.layers[:-1]) == ((layer.id,), (layer.id,))
        config = json.loads(store.image_documents(second.id)[1])
        assert len(config["history"]) == len(config["rootfs"]["diff_ids"]) == 2
        store.extract(second.id, tmp_path / "out")
        assert sorted(os.listdir(tmp_path / "out")) == ["hello", "one", "two"]


@in_namespace
def test_what_cannot_be_committed_is_refused(tmp_path):
    with layerstore.open(tmp_path / "store") as store:
        layer = add(store)
        (tmp_path / "readonly").mkdir()
        store.mount(layer.id, tmp_path / "readonly")
        with pytest.raises(errors.InvalidArgumentError, match="read-only"):
            store.commit(tmp_path / "readonly")
        with pytest.raises(errors.UnknownMountError):
            store.commit(tmp_path / "nowhere")
        assert store.images() == []


@in_namespace
def test_whose_config_it_takes_over_must_be_said_if_there_are_two(tmp_path):
    with layerstore.open(tmp_path / "store") as store:
        one = store.pull(image(tmp_path, "one").reference, names=["one"])
        target = mounted(store, tmp_path, one.id)
        twin = store.commit(target)             # nothing was written: one layer more, and empty
        other = store.commit(target, options=CommitOptions(config={"Cmd": ["other"]}))
        assert (other.layers, other.id != twin.id) == (twin.layers, True)
        store.unmount(target)
        mounted(store, tmp_path, twin.id)
        with pytest.raises(errors.InvalidArgumentError, match="2 images"):
            store.commit(target)
        with pytest.raises(errors.InvalidArgumentError, match="not an image of the layers"):
            store.commit(target, options=CommitOptions(base="one"))
        made = store.commit(target, options=CommitOptions(base=other.id))
        assert json.loads(store.image_documents(made.id)[1])["config"]["Cmd"] == ["other"]


@in_namespace
@pytest.mark.parametrize("change", [
    lambda target: (target / "new").write_text("other!!"),                     # as long as before
    lambda target: (target / "later").touch(),
    lambda target: (target / "new").unlink(),
    lambda target: os.chmod(target / "new", 0o600),
    lambda target: os.rename(target / "new", target / "renamed"),
], ids=["write", "make", "unlink", "chmod", "rename"])
def test_what_changes_while_it_is_read_is_not_committed(tmp_path, change):
    with layerstore.open(tmp_path / "store") as store:
        layer = add(store)
        target = mounted(store, tmp_path, layer.id)
        (target / "new").write_text("written")
        with once_it_was_read(lambda: change(target)) as done:
            with pytest.raises(errors.BusyError, match="changed while it was read"):
                store.commit(target)
        assert done
        assert store.images() == []
        assert [each.id for each in store.layers()] == [layer.id]
        assert store.commit(target).created


@in_namespace
def test_a_directory_that_never_rests_is_not_committed(tmp_path, monkeypatch):
    from layerstore.verbs import commit

    monkeypatch.setattr(commit, "_TRIES", 3)
    monkeypatch.setattr(commit, "_TICK_NS", 3_600 * 10**9)   # however slow the machine is
    with layerstore.open(tmp_path / "store") as store:
        target = mounted(store, tmp_path, add(store).id)
        monkeypatch.setattr(commit.time, "sleep", lambda _seconds: (target / "busy").write_text(str(time.time_ns())))
        (target / "busy").touch()
        with pytest.raises(errors.BusyError, match="changed"):
            store.commit(target)


@in_namespace
def test_a_mount_that_is_being_committed_is_not_unmounted(tmp_path):
    with layerstore.open(tmp_path / "store") as store:
        target = mounted(store, tmp_path, add(store).id)
        (target / "new").write_text("written")

        def unmount():
            with pytest.raises(errors.BusyError, match="being committed"):
                store.unmount(target)

        with once_it_was_read(unmount) as done:
            store.commit(target)
        assert done
        store.unmount(target)
        assert not is_overlay_mounted(str(target))


@in_namespace
def test_a_commit_killed_anywhere_leaves_an_image_or_none_and_keeps_what_was_written(tmp_path):
    """Of an upper directory that was kept: stores with mounts cannot be copied, which the explorer does."""
    target = tmp_path / "target"
    (tmp_path / "work").mkdir()

    def prepare(root, ledger):
        with layerstore.open(root) as store, store.stage(differ()) as staged:
            base = staged.output.diff_id
            with ledger.asking(layer(base.removeprefix("sha256:"), base)):
                base = store.apply_staged_layer(staged)
            mounted(store, tmp_path, base.id)
            (target / "new").write_text("written")
            store.unmount(target, keep_upper=True)
        copy_store(root, f"{root}-trial")      # what will come of it: tried out in a copy
        with layerstore.open(f"{root}-trial", clock=still_clock) as trial:
            made = trial.commit(target)
            top = trial.layer(made.layers[-1])
        (tmp_path / "expected").write_text(json.dumps([made.id, top.id, top.diff_id]))

    def run(root, ledger):
        image_id, layer_id, diff_id = json.loads((tmp_path / "expected").read_text())
        asked = layer(layer_id, diff_id), an_image(image_id), name("made", "image", image_id)
        with layerstore.open(root, clock=still_clock) as store, ledger.asking(*asked):
            store.commit(target, names=["made"])

    def again(store):
        made = store.commit(target, names=["made"], options=CommitOptions(replace_names=True))
        assert len(store.images()) in (1, 2)
        with store.layer_paths(made.layers[-1]) as paths:
            with open(f"{paths[-1]}/new") as file:
                assert file.read() == "written"

    explorer = CrashExplorer(str(tmp_path / "work"), prepare, run, again=again)
    outcomes = list(explorer.explore((0.3,)))
    assert [each for each in outcomes if each.violations] == []
    assert len(outcomes) >= 8


@in_namespace
def test_the_command_prints_the_image(tmp_path):
    with layerstore.open(tmp_path / "store") as store:
        target = mounted(store, tmp_path, add(store).id)
        (target / "new").write_text("written")
    done = subprocess.run(
        [sys.executable, "-m", "layerstore", "--root", tmp_path / "store", "commit", target, "--name", "made:1",
         "--change", "ENV A=1"],
        capture_output=True, text=True, check=True,
    )
    with layerstore.open(tmp_path / "store", readonly=True) as store:
        assert store.resolve("made:1") == ("image", done.stdout.strip())
        assert json.loads(store.image_documents(done.stdout.strip())[1])["config"] == {"Env": ["A=1"]}


@in_namespace
def test_what_the_bases_manifest_says_of_the_base_alone_is_not_said_of_the_new_image(tmp_path):
    made = image(tmp_path)
    layout = tmp_path / "base"
    index = json.loads((layout / "index.json").read_text())
    old = layout / "blobs" / "sha256" / index["manifests"][0]["digest"][7:]
    told = {"annotations": {"org.opencontainers.image.revision": "abc"}, "artifactType": "application/vnd.test",
            "subject": {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": "sha256:" + "1" * 64, "size": 2}}
    text = imagemaker.encode({**json.loads(old.read_bytes()), **told})
    digest = imagemaker.digest_of(text)
    (layout / "blobs" / "sha256" / digest[7:]).write_bytes(text)
    index["manifests"][0] |= {"digest": digest, "size": len(text)}
    (layout / "index.json").write_bytes(imagemaker.encode(index))
    with layerstore.open(tmp_path / "store") as store:
        base = store.pull(made.reference)
        target = mounted(store, tmp_path, base.id)
        (target / "new").write_text("written")
        manifest = json.loads(store.image_documents(store.commit(target).id)[0])
    assert base.manifest_digest == digest
    assert not {"subject", "artifactType"} & manifest.keys()
    assert manifest["annotations"] == {"org.opencontainers.image.base.digest": digest}
