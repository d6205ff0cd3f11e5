"""``du``: who uses what space, and what would become free."""

import dataclasses
import errno
import json
import os

import imagemaker
import pytest
from click.testing import CliRunner
from disks import on_disk
from storekit import add

import layerstore
from crash.content import content
from crash.taking import TakingDiffer
from layerstore.system import fs, flock
from layerstore.cli.commands import cli
from layerstore.dedup import LayerFinder
from layerstore.trees.dirfds import DirFds
from layerstore.trees.measure import measure

BASE, ONE, TWO = ({name: name.encode() * 20_000} for name in ("base", "one", "two"))


def pull(store, tmp_path, name, *specs):
    made = imagemaker.Image([imagemaker.Layer(spec) for spec in specs]).write_oci(tmp_path / name, tag="latest")
    return store.pull(made.reference, names=[name])


def by_name(report):
    return {each.names[0]: each for each in report.images}


def test_layers_that_images_share_are_told_from_their_own(store, tmp_path):
    pull(store, tmp_path, "a", BASE, ONE)
    pull(store, tmp_path, "b", BASE, TWO)
    report = store.usage()
    for each in report.images:
        assert each.layers == 2
        assert each.allocated == each.unique + each.shared
        assert each.shared >= 80_000
        assert 60_000 <= each.reclaimable == each.unique
    assert by_name(report)["a"].logical == 80_000 + 60_000
    assert (report.layers, report.logical) == (3, 80_000 + 60_000 + 60_000)
    assert report.allocated == report.unique + report.shared + report.loose
    assert report.shared == report.images[0].shared
    assert report.reclaimable == report.loose == 0


def test_what_deleting_an_image_frees_is_what_was_said(store, tmp_path):
    pull(store, tmp_path, "a", BASE, ONE)
    pull(store, tmp_path, "b", BASE, TWO)
    before = store.usage()
    said = by_name(before)["a"]
    store.delete_image(said.id)
    store.checkpoint()
    assert before.allocated - store.usage().allocated == said.reclaimable


@pytest.mark.parametrize("how", ["name", "lease", "child"])
def test_what_something_else_keeps_is_not_reclaimable(store, tmp_path, how):
    image = pull(store, tmp_path, "a", BASE, ONE)
    free = store.usage().images[0].reclaimable
    if how == "name":
        store.set_name("kept", image.layers[1])
    elif how == "lease":
        store.take_lease("kept", [image.layers[1]])
    else:
        add(store, TWO, parent=image.layers[1])
    assert free > 0
    assert store.usage().images[0].reclaimable == 0


def test_loose_layers_and_trash_are_reclaimable(store):
    layer = add(store, ONE)
    report = store.usage()
    assert report.loose == report.allocated == report.reclaimable > 60_000
    store.delete_layer(layer.id)
    report = store.usage()
    assert report.allocated == 0
    assert report.reclaimable == store.space().trash > 60_000


def test_a_chain_of_layers_that_nothing_uses_is_reclaimable_as_a_whole_and_gc_frees_that(store):
    base = add(store, BASE)
    add(store, ONE, parent=base.id)
    before = store.usage()
    assert before.reclaimable == before.allocated > 140_000
    store.collect_garbage(grace=0.0)
    assert store.usage().allocated == store.space().trash == 0


def test_what_this_process_cannot_read_or_goes_meanwhile_is_left_out(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"x" * 40_000)
    (tmp_path / "closed").mkdir()
    (tmp_path / "link").symlink_to("/")
    with fs.open_dir(tmp_path) as fd:
        whole = measure(fd)
        assert (whole.logical, whole.unread) == (40_000, 0)
        real_list, real_get = os.listdir, DirFds.get

        def get(self, path):
            if path == b"closed":
                raise PermissionError(errno.EACCES, "refused")
            return real_get(self, path)

        monkeypatch.setattr(os, "listdir", lambda fd: [*real_list(fd), "gone"])
        monkeypatch.setattr(DirFds, "get", get)
        assert measure(fd) == dataclasses.replace(whole, unread=1)


def test_a_file_of_two_names_is_counted_once(store):
    spec = {"a": b"x" * 50_000, "b": imagemaker.Hardlink("a")}
    add(store, spec)
    assert store.usage().logical == 50_000


def test_it_is_said_not_to_be_known_where_the_file_system_does_not_tell(store, tmp_path):
    pull(store, tmp_path, "a", BASE)
    report = store.usage()
    assert report.reflinked is None
    assert report.images[0].reflinked is None


def test_a_layer_that_is_being_deleted_is_passed_over(store):
    layer = add(store, ONE)
    with flock.lock_tree(store._handle.dirs["layers"], layer.id):
        report = store.usage()
    assert (report.allocated, report.unread) == (0, 1)


def test_the_command_prints_a_table_and_json(store, root, tmp_path):
    pull(store, tmp_path, "a", BASE)
    store.close()
    said = json.loads(CliRunner().invoke(cli, ["--root", str(root), "du", "--json"]).output)
    assert said["images"][0]["logical"] == said["logical"] == 80_000
    lines = CliRunner().invoke(cli, ["--root", str(root), "du"]).output.splitlines()
    assert "80.0 kB" in lines[0]
    assert lines[1].startswith("total\t1 layers\t80.0 kB")


def _reflinked(directory):
    what = content("du1", size=1 << 20)
    with layerstore.open(os.path.join(directory, "store")) as store:
        for layer_id in ("1" * 64, "2" * 64):
            with store.stage(TakingDiffer(what.tar, LayerFinder(store._handle))) as staged:
                store.apply_staged_layer(staged, id=layer_id)
        os.sync()
        report = store.usage()
        return report.reflinked, report.allocated - report.reclaimable


@pytest.mark.root
@pytest.mark.parametrize("name", ["xfs", "btrfs"])
def test_shared_blocks_are_told_and_not_promised_to_become_free(name):
    assert on_disk(name, _reflinked) == (2 << 20, 2 << 20)
