"""A tree that is gone from ``layers/`` is put back from its source, whole; what cannot be is quarantined."""

import errno
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

import layerstore
from layerstore.model import DiffOutput
from layerstore.system import faults
from layerstore.testing import read_tree, violations
from layerstore.verbs.check import layers
from layerstore.verbs.repair import whole
from layerstore.verbs.repair.plan import Do
from storekit import add, failing_at, image, killed_at, observed
from test_repair import replaced, tree
from test_repair_verdicts import blob_of, state_of
from test_check import flip

STEPS = ("txn.repair", "repair.put-back.side-file.rename", "repair.put-back.sync", "repair.put-back.rename", "repair.settle")


def read(path):
    with open(path, "rb") as file:
        return file.read()


def files_of(root, layer):
    """All that is promised of a layer's directory."""
    own = os.path.join(root, "layers", layer.id)
    parts = {name: read(os.path.join(own, name)) for name in ("txid", "layer", "manifest", "tar-split")}
    return parts, read_tree(os.path.join(own, "diff"))


def pulled(store, tmp_path):
    """A layer of an image with a source, that source, and what its tree was."""
    made = image(tmp_path)
    layer = store.layer(store.pull(made.reference).layers[1])
    store.checkpoint()
    return layer, made, files_of(store.root, layer)


def gone(root, layer):
    shutil.rmtree(os.path.join(root, "layers", layer.id))


@pytest.mark.parametrize("before", ["committed", "quarantined"])
def test_a_tree_that_is_gone_is_put_back_from_its_source(root, tmp_path, before):
    with layerstore.open(root) as store:
        layer, made, was = pulled(store, tmp_path)
        gone(root, layer)
        if before == "quarantined":
            assert store.repair().quarantined == (layer.id,)
        planned = store.repair(source=made.reference, dry_run=True)
        assert [step.do for step in planned.steps] == [Do.PUT_BACK]
        report = store.repair(source=made.reference)
        assert (report.mended, report.clean, report.evidence) == ((layer.id,), True, ())
        assert files_of(root, layer) == was
        assert store.check(content=True).findings == ()
        assert [each.id for each in store.layers_by_digest(layer.diff_id)] == [layer.id]
        assert os.listdir(os.path.join(root, "staging")) == []
        assert store.repair(source=made.reference).steps == ()
    assert violations(root) == []


@pytest.mark.parametrize("before", ["committed", "quarantined"])
@pytest.mark.parametrize("point", STEPS)
def test_a_tree_that_was_being_put_back_when_the_process_was_killed_can_be_put_back_again(root, tmp_path, before, point):
    with layerstore.open(root) as store:
        layer, made, was = pulled(store, tmp_path)
        gone(root, layer)
        if before == "quarantined":
            store.repair()

    def work():
        with layerstore.open(root) as store:
            store.repair(source=made.reference)

    killed_at(point, "after", work)
    with layerstore.open(root) as store:
        there = os.path.exists(os.path.join(root, "layers", layer.id))
        assert there == (point in ("repair.put-back.rename", "repair.settle"))
        assert state_of(store, layer) == ("committed" if there and before == "committed" else "quarantined")
        assert os.listdir(os.path.join(root, "staging")) == []
    with layerstore.open(root) as store:
        assert store.recovery.clean
        store.repair(source=made.reference)
        assert state_of(store, layer) == "committed"
        assert files_of(root, layer) == was
        assert store.check(content=True).sound
    assert violations(root) == []


@pytest.mark.parametrize("instead", [os.mkdir, lambda path: open(path, "x").close(), lambda path: os.symlink(".", path)],
                         ids=["directory", "file", "link"])
def test_what_nobody_owns_in_its_place_is_kept_as_evidence(root, tmp_path, instead):
    with layerstore.open(root) as store:
        layer, made, was = pulled(store, tmp_path)
        replaced(tree(store, layer), instead)
        report = store.repair(source=made.reference)
        assert (report.mended, bool(report.evidence)) == ((layer.id,), True), report
        assert files_of(root, layer) == was
        assert store.check(content=True).sound


def test_something_that_is_no_directory_in_its_place_quarantines_it_where_there_is_no_source(root, tmp_path):
    with layerstore.open(root) as store:
        layer, _, _ = pulled(store, tmp_path)
        replaced(tree(store, layer), lambda path: open(path, "x").close())
        report = store.repair(layers=[layer.id])
        assert (report.quarantined, report.failed) == ((layer.id,), {})


def test_a_source_whose_tree_has_another_manifest_is_refused(root, tmp_path, monkeypatch):
    with layerstore.open(root) as store:
        layer, made, _ = pulled(store, tmp_path)
        gone(root, layer)
        monkeypatch.setattr(whole, "is_it", lambda *_args: False)
        report = store.repair(source=made.reference)
        assert (report.quarantined, list(report.refused)) == ((layer.id,), [layer.id])
        assert layer.id not in os.listdir(os.path.join(root, "layers"))
    assert os.listdir(os.path.join(root, "staging")) == []


def test_a_source_whose_blob_is_rotten_does_not_put_it_back(root, tmp_path):
    with layerstore.open(root) as store:
        layer, made, _ = pulled(store, tmp_path)
        gone(root, layer)
        flip(blob_of(made, layer), at=40)
        report = store.repair(source=made.reference)
        assert (report.quarantined, list(report.refused)) == ((layer.id,), [layer.id])


@pytest.mark.parametrize("point", ["repair.put-back.side-file.write", "repair.put-back.rename"])
def test_a_full_disk_leaves_the_layer_in_its_state_and_nothing_behind(root, tmp_path, point):
    with layerstore.open(root) as store:
        layer, made, _ = pulled(store, tmp_path)
        gone(root, layer)
        with failing_at(point, "ENOSPC"):
            report = store.repair(source=made.reference)
        assert (list(report.failed), report.quarantined) == ([layer.id], ())
        assert state_of(store, layer) == "committed"
        assert os.listdir(os.path.join(root, "staging")) == []
        assert store.repair(source=made.reference).mended == (layer.id,)
    assert violations(root) == []


@pytest.mark.parametrize("before", ["committed", "quarantined"])
def test_what_keeps_it_from_being_looked_at_in_its_place_leaves_no_mark(root, tmp_path, monkeypatch, before):
    """A layer with one is looked at by no check until the next recovery."""
    with layerstore.open(root) as store:
        layer, made, was = pulled(store, tmp_path)
        gone(root, layer)
        if before == "quarantined":
            store.repair()
        real = layers.begin

        def failing(handle, which, row, *rest, **more):
            if "repair" in row:
                raise OSError(errno.EMFILE, "Too many open files")
            return real(handle, which, row, *rest, **more)

        monkeypatch.setattr(layers, "begin", failing)
        report = store.repair(source=made.reference)
        assert list(report.failed) == [layer.id]
        with store._handle.read() as view:
            assert "repair" not in view.get("layers", layer.txid)
        monkeypatch.undo()
        assert files_of(root, layer) == was
        store.repair()
        assert store.check(content=True).sound
    assert violations(root) == []


@pytest.mark.parametrize("before", ["committed", "quarantined"])
def test_who_recovers_the_store_meanwhile_does_not_keep_it_from_being_put_back(root, tmp_path, before):
    def recovering(point, when):
        if (point, when) == ("repair.put-back.sync", "after"):
            faults.install(None)
            subprocess.run([sys.executable, "-m", "layerstore", "--root", root, "recover"], check=True, capture_output=True)

    with layerstore.open(root) as store:
        layer, made, was = pulled(store, tmp_path)
        gone(root, layer)
        if before == "quarantined":
            store.repair()
        faults.install(recovering)
        try:
            assert store.repair(source=made.reference).mended == (layer.id,)
        finally:
            faults.install(None)
        assert files_of(root, layer) == was
        assert state_of(store, layer) == "committed"
    assert violations(root) == []


def test_two_layers_of_the_same_content_are_both_put_back(root, tmp_path):
    with layerstore.open(root) as store:
        layer, made, _ = pulled(store, tmp_path)
        twin = add(store, {"layer1": b"1", "shared/file": b"from 1"}, id="a" * 64)
        assert twin.diff_id == layer.diff_id
        gone(root, layer)
        gone(root, twin)
        assert set(store.repair(source=made.reference).mended) == {layer.id, twin.id}
        assert store.check(content=True).sound


def test_it_is_on_disk_before_it_takes_its_place_and_in_it_before_it_is_told(root, tmp_path):
    with layerstore.open(root) as store:
        layer, made, _ = pulled(store, tmp_path)
        gone(root, layer)
        with observed([]) as passed:
            store.repair(source=made.reference)
    steps = ["txn.repair", "repair.put-back.sync", "repair.put-back.rename", "repair.settle", "txn.mend"]
    assert [each for each in passed if each in steps] == steps


def test_only_a_tree_with_the_manifest_and_tar_split_of_the_row_is_the_same(root, tmp_path):
    with layerstore.open(root) as store:
        layer, _, _ = pulled(store, tmp_path)
    output = DiffOutput(layer.diff_id, layer.diff_size, layer.manifest_digest, layer.entries, tar_split_digest=layer.tar_split_digest)
    assert whole.is_it(layer, output)
    assert whole.is_it(replace(layer, tar_split_digest=None), output)
    assert not whole.is_it(replace(layer, manifest_digest="sha256:" + "0" * 64), output)
    assert not whole.is_it(replace(layer, tar_split_digest="sha256:" + "0" * 64), output)
