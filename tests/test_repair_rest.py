"""Repair of what is no layer's: images' side files, and trees in ``layers/`` that nobody owns."""

import os
import shutil

import pytest
from click.testing import CliRunner

import layerstore
from layerstore import errors
from layerstore.cli.commands import cli
from layerstore.testing import violations
from layerstore.verbs.check import layers, structure
from layerstore.verbs.repair import promises, remounts
from layerstore.verbs.repair.plan import Do
from storekit import add, failing_at, image, killed_at, observed
from test_check import flip


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


def older_database(root):
    """A store whose database is older than one of its layers; the layer."""
    data, spare = os.path.join(root, "journal", "data.mdb"), os.path.join(root, "journal", "spare")
    with layerstore.open(root) as store:
        add(store, {"first": b"1"})
    shutil.copy(data, spare)
    with layerstore.open(root) as store:
        layer = add(store, {"second": b"2"})
    os.rename(spare, data)
    return layer


def test_a_tree_with_the_side_file_of_a_layer_is_left_for_a_rebuild(root):
    layer = older_database(root)
    report = repair(root)
    assert ([step.do for step in report.steps], report.clean, report.evidence) == ([Do.LEAVE], False, ())
    assert "rebuild --force" in report.steps[0].source
    layerstore.rebuild(root, force=True)
    with layerstore.open(root) as store:
        assert store.layer(layer.id).state == "committed"
        assert store.check(content=True).sound


def test_it_is_set_aside_for_who_asks_for_it(root):
    layer = older_database(root)
    assert repair(root, set_aside=True).evidence == (f"quarantine/layers-{layer.id}-0",)
    with layerstore.open(root) as store:
        assert store.check().sound


@pytest.mark.parametrize("damage", [
    lambda own: flip(os.path.join(own, "layer"), at=20), lambda own: os.unlink(os.path.join(own, "txid")),
    lambda own: os.rename(own, os.path.join(os.path.dirname(own), "another")),
], ids=["a torn side file", "no txid", "another place"])
def test_a_tree_of_which_no_rebuild_would_make_a_layer_is_set_aside(root, damage):
    layer = older_database(root)
    damage(os.path.join(root, "layers", layer.id))
    report = repair(root)
    assert ([step.do for step in report.steps], report.clean) == ([Do.SET_ASIDE], True)


def test_the_command_leaves_it_and_sets_it_aside_if_asked(root):
    older_database(root)
    run = CliRunner()
    done = run.invoke(cli, ["--root", root, "repair"])
    assert (done.exit_code, "rebuild --force" in done.output) == (3, True)
    assert run.invoke(cli, ["--root", root, "repair", "--set-aside"]).exit_code == 0


@pytest.mark.parametrize("wrong", [{"depth": "deep"}, {"wait": -1.0}, {"wait": float("nan")}])
def test_options_that_cannot_be_right_are_refused_before_anything_is_done(root, wrong):
    with layerstore.open(root) as store, pytest.raises(errors.InvalidArgumentError):
        store.repair(**wrong)


QUOTA_DAMAGE = {
    "torn": lambda path: os.truncate(path, 5), "zeros": lambda path: write(path, bytes(20)), "empty": lambda path: write(path, b""),
    "no number": lambda path: write(path, b'{"bytes": "many"}'), "too long": lambda path: write(path, b" " * 5_000),
    "a directory": lambda path: (os.unlink(path), os.mkdir(path)), "a link": lambda path: (os.unlink(path), os.symlink("x", path)),
}


def write(path, data):
    with open(path, "wb") as file:
        file.write(data)


@pytest.mark.parametrize("damage", QUOTA_DAMAGE.values(), ids=QUOTA_DAMAGE)
def test_a_damaged_quota_is_found_left_by_a_repair_and_can_be_set_again(root, damage):
    with layerstore.open(root) as store:
        store.set_quota(10_000)
        damage(os.path.join(root, "quota.json"))
        assert [(each.code, each.subject) for each in store.check().findings] == [("quota-file-damaged", "quota.json")]
        with pytest.raises(errors.DamagedError):
            store.quota()                # nor is it taken for none
        report = store.repair()
        assert ([step.do for step in report.steps], report.clean) == ([Do.LEAVE], False)
        store.set_quota(20_000)
        assert (store.quota(), store.check().sound, store.repair().clean) == (20_000, True, True)
        assert add(store, {"a": b"1"})


def test_a_store_beneath_is_not_asked_for_its_quota(tmp_path):
    with layerstore.open(tmp_path / "below") as store:
        store.set_quota(10_000)
    write(tmp_path / "below" / "quota.json", b"")
    with layerstore.open(tmp_path / "store", beneath=[tmp_path / "below"]) as store:
        assert store.check(beneath=True).sound


@pytest.mark.parametrize(("module", "name", "told"), [
    (structure, "ownerless", "layers"), (structure, "quota_file", "quota.json"), (promises, "of", "an image"),
    (remounts, "of", "mounts"),
])
def test_what_fails_after_a_layer_was_mended_does_not_say_that_nothing_happened(root, tmp_path, monkeypatch, module, name, told):
    image_id, _, _ = damaged_image(root, tmp_path)

    def failing(*_args):
        raise OSError(24, "Too many open files")

    with layerstore.open(root) as store:
        layer = store.layers()[0]
        os.unlink(os.path.join(root, "layers", layer.id, "layer"))
        monkeypatch.setattr(module, name, failing)
        report = store.repair()
        assert layer.id in report.mended
        assert list(report.failed) == [image_id if told == "an image" else told]


@pytest.mark.parametrize(("place", "name"), [(layers, "begin"), (layers.Look, "wait")])
def test_a_layer_that_cannot_be_looked_at_does_not_hide_that_another_was_mended(root, monkeypatch, place, name):
    with layerstore.open(root) as store:
        first, second = sorted((add(store, {"a": b"1" * 100}), add(store, {"b": b"2" * 100})), key=lambda each: each.id)
        os.unlink(os.path.join(root, "layers", first.id, "layer"))
        real = getattr(place, name)

        def failing(*args, **options):
            if second.id in str(args):
                raise OSError(24, "Too many open files")
            return real(*args, **options)

        monkeypatch.setattr(place, name, failing)
        report = store.repair()
        assert (report.mended, list(report.failed)) == ((first.id,), [second.id])
