"""Repair of what is no layer's: images' side files, and trees in ``layers/`` that nobody owns."""

import os
import shutil

import pytest

import layerstore
from layerstore.testing import violations
from storekit import add, failing_at, image, killed_at, observed
from test_check import flip


@pytest.fixture
def root(tmp_path):
    return str(tmp_path / "store")


def damaged_image(root, tmp_path, damage=flip):
    """A store with an image whose side file is damaged: its ID, what the file was, and what it is."""
    with layerstore.open(root) as store:
        pulled = store.pull(image(tmp_path).reference)
        store.checkpoint()
    path = os.path.join(root, "images", pulled.id)
    good = read(path)
    damage(path)
    return pulled.id, good, read(path)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def kept(root):
    directory = os.path.join(root, "quarantine")
    return {read(os.path.join(directory, each)) for each in os.listdir(directory)}


def in_order(passed, *points):
    return [each for each in passed if each in points] == list(points)


def repair(root, **options):
    with layerstore.open(root) as store:
        return store.repair(**options)


def test_the_side_file_that_an_image_had_is_kept_as_evidence(root, tmp_path):
    image_id, good, bad = damaged_image(root, tmp_path)
    report = repair(root)
    assert (report.mended, report.evidence) == ((image_id,), (f"quarantine/images-{image_id}-0",))
    assert read(os.path.join(root, "images", image_id)) == good
    assert kept(root) == {bad}


def test_what_was_kept_before_is_not_replaced(root, tmp_path):
    image_id, _, bad = damaged_image(root, tmp_path)
    repair(root)
    with open(os.path.join(root, "images", image_id), "wb") as file:
        file.write(b"another damage")
    assert repair(root).evidence == (f"quarantine/images-{image_id}-1",)
    assert kept(root) == {bad, b"another damage"}


def test_a_directory_in_the_place_of_a_side_file_is_kept_too(root, tmp_path):
    with layerstore.open(root) as store:
        pulled = store.pull(image(tmp_path).reference)
        store.checkpoint()
        path = os.path.join(root, "images", pulled.id)
        os.unlink(path)
        os.mkdir(path)
        report = store.repair()
        assert (report.mended, report.failed) == ((pulled.id,), {})
        assert os.path.isdir(os.path.join(root, *report.evidence[0].split("/")))
        assert store.check().sound


def test_the_new_side_file_and_what_was_kept_are_on_disk_before_it_takes_its_place(root, tmp_path):
    damaged_image(root, tmp_path)
    with layerstore.open(root) as store, observed([]) as passed:
        store.repair()
    assert in_order(passed, *(f"repair.image.{step}" for step in ("keep", "write", "sync", "rename", "settle")))


@pytest.mark.parametrize("point", ["keep", "write", "sync", "rename"])
def test_a_repair_of_a_side_file_that_is_killed_is_done_again_and_loses_no_evidence(root, tmp_path, point):
    image_id, good, bad = damaged_image(root, tmp_path)
    killed_at(f"repair.image.{point}", "after", lambda: repair(root))
    assert read(os.path.join(root, "images", image_id)) == (good if point == "rename" else bad)
    repair(root)
    assert read(os.path.join(root, "images", image_id)) == good
    assert kept(root) == {bad}
    assert violations(root) == []


def test_a_full_disk_leaves_the_side_file_as_it_was_and_is_told(root, tmp_path):
    image_id, _, bad = damaged_image(root, tmp_path)
    with layerstore.open(root) as store:
        with failing_at("repair.image.write", "ENOSPC"):
            assert list(store.repair().failed) == [image_id]
        assert read(os.path.join(root, "images", image_id)) == bad
        assert store.repair().mended == (image_id,)


def test_a_tree_that_is_set_aside_is_so_on_disk_when_the_repair_returns(root):
    with layerstore.open(root) as store, observed([]) as passed:
        os.mkdir(os.path.join(root, "layers", "stray"))
        store.repair()
    assert in_order(passed, "recover.set-aside", "repair.aside.sync")
