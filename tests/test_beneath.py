"""Stores beneath: one look-up path, what stands on it, and what is said when it is not there (ADR 0026)."""

import errno
import hashlib
import json
import os
import shutil
import threading
from pathlib import Path

import pytest

import layerstore
from crash.beside import viewreading
from layerstore import PullOptions, errors
from layerstore.cli.commands import run
from layerstore.dedup import LayerFinder
from layerstore.opening import config
from layerstore.sources import open_source
from layerstore.testing import copy_store, kill_at, passings, run_child, telling
from layerstore.verbs.apply import apply_batch
from layerstore.verbs.batch import LayerSpec
from storekit import add, differ, digest, failing_at, image, killed_at, observed

SHARED = {"shared": bytes(range(256)) * 400}


class Both:
    """A store beneath with a layer, an image and their names, closed; and where the one above it is to be."""

    def __init__(self, home):
        self.home, self.below, self.above = home, home / "below", home / "above"
        self.made = image(home, name="base")
        with layerstore.open(self.below) as store:
            self.uuid = store.uuid
            self.base = add(store, {"base": b"beneath", **SHARED}, names=["base:1"])
            self.image = store.pull(self.made.reference, names=["app:1"])

    def open(self, **options):
        return layerstore.open(self.above, beneath=[self.below], **options)

    def pulled(self, store, **options):
        return store.pull(self.made.reference, **options)


@pytest.fixture
def both(tmp_path):
    return Both(tmp_path)


def bytes_of(directory):
    """Every file, and its content; but for locks, which a reader takes where it can write."""
    paths = [Path(at, name) for at, _, names in os.walk(directory) for name in names if name not in ("lock.mdb", "pidns")]
    return {path.relative_to(directory): path.read_bytes() if path.is_file() else None for path in paths}


# -- looking up ----------------------------------------------------------------------------------------------------


def test_listings_and_lookups_show_what_is_beneath_and_whose_it_is(both):
    with both.open() as store:
        own = add(store, {"own": b"1"})
        assert {each.id: each.store for each in store.layers()} == {
            own.id: None, **dict.fromkeys([both.base.id, *both.image.layers], both.uuid),
        }
        assert [each.id for each in store.layers()] == sorted(each.id for each in store.layers())
        assert store.layer(both.base.id).names == ("base:1",)
        assert [(each.id, each.store, each.names) for each in store.images()] == [(both.image.id, both.uuid, ("app:1",))]
        assert store.image(both.image.id).layers == both.image.layers
        assert store.resolve("app:1") == ("image", both.image.id)
        assert store.resolve(both.base.id[:12]) == ("layer", both.base.id)
        assert [each.id for each in store.chain(both.image.layers[-1])] == list(both.image.layers)
        assert [each.id for each in store.layers_by_digest(both.base.diff_id)] == [both.base.id]
        assert store.image_documents(both.image.id)[1] == both.made.config
        assert [each.uuid for each in store.beneath] == [both.uuid]


def test_what_is_not_committed_beneath_is_not_seen(both):
    with layerstore.open(both.below) as store:
        store.stage(differ({"left": b"staged"}, keyed=True)).release()
        doomed = add(store, {"doomed": b"1"})
        with store.layer_paths(doomed.id):
            store.delete_layer(doomed.id, wait=0.0)   # deferred: hidden, and still in its place
    os.rename(both.below / "layers" / both.base.id / "manifest", both.home / "manifest")
    with layerstore.open(both.below) as store:
        assert both.base.id in store.repair(layers=[both.base.id]).quarantined
    with both.open() as store:
        assert {each.id for each in store.layers()} == set(both.image.layers)
        for layer_id in (doomed.id, both.base.id):
            with pytest.raises(errors.UnknownLayerError):
                store.layer(layer_id)


def test_the_nearest_of_several_stores_wins(both):
    with layerstore.open(both.home / "second") as store:
        other = add(store, {"other": b"2"}, names=["base:1", "other:1"])
        add(store, {"base": b"beneath", **SHARED})
        second = store.uuid
    with layerstore.open(both.above, beneath=[both.below, both.home / "second"]) as store:
        assert store.layer(both.base.id).store == both.uuid
        assert store.resolve("base:1") == ("layer", both.base.id)
        assert (store.layer(other.id).store, store.layer(other.id).names) == (second, ("other:1",))
        assert len(store.layers()) == len({each.id for each in store.layers()}) == 5


def test_two_stores_of_one_process_have_the_same_one_beneath(both):
    with both.open() as first, layerstore.open(both.home / "other", beneath=[both.below]) as second:
        first.close()
        assert second.layer(both.base.id).store == both.uuid
    with layerstore.open(both.below) as store:   # let go of by both
        add(store, {"later": b"1"})


# -- standing on it ------------------------------------------------------------------------------------------------


def test_a_layer_stands_on_one_beneath_and_its_row_and_side_file_say_so(both):
    with both.open() as store:
        child = add(store, {"child": b"c"}, parent=both.base.id)
        top = add(store, {"top": b"t"}, parent=child.id)
        assert child.parent_beneath == layerstore.Beneath(both.uuid, both.base.diff_id)
        assert top.parent_beneath is None
        assert [each.id for each in store.chain(top.id)] == [both.base.id, child.id, top.id]
        assert store.check(content=True).sound
    side = (both.above / "layers" / child.id / "layer").read_bytes()
    assert both.uuid.encode() in side and both.base.diff_id.encode() in side
    assert both.uuid.encode() not in (both.above / "layers" / top.id / "layer").read_bytes()


def test_an_image_beneath_is_pulled_without_a_layer_and_keeps_its_documents(both):
    for each in both.made.layers:   # not one of them is read
        (both.made.path / "blobs" / "sha256" / each.digest.removeprefix("sha256:")).write_bytes(bytes(each.size))
    with both.open() as store:
        pulled = both.pulled(store, names=["mine:1"], options=PullOptions(workers=1))
        assert (pulled.created, pulled.store, set(pulled.beneath)) == (True, None, set(pulled.layers))
        assert os.listdir(both.above / "layers") == []
        assert both.pulled(store, names=["mine:1"]).created is False
        assert store.image_documents(pulled.id)[1] == both.made.config
        assert store.resolve("mine:1") == ("image", pulled.id)
        assert store.check(content=True).sound


@pytest.mark.parametrize("before", [False, True])
def test_a_name_that_an_image_has_beneath_too_is_the_stores_own_once_it_is_pulled_by_it(both, before):
    with both.open() as store:
        if before:
            both.pulled(store)           # there is a row already
        pulled = both.pulled(store, names=["app:1"])
        with observed([]) as passed:
            both.pulled(store, names=["app:1"])
        assert not [point for point in passed if point.startswith("txn.")]
    os.rename(both.below, both.home / "gone")
    with layerstore.open(both.above) as store:
        assert store.resolve("app:1") == ("image", pulled.id)


def test_a_pull_fetches_only_the_layers_that_are_not_beneath(both):
    more = image(both.home, name="more", layers=4)
    with layerstore.open(both.below) as store:
        first = [each.id for each in store.chain(both.image.layers[0])]
    with both.open() as store:
        pulled = store.pull(more.reference, names=["more:1"])
        assert pulled.layers[0] == first[0] and first[0] not in os.listdir(both.above / "layers")
        assert set(os.listdir(both.above / "layers")) == set(pulled.layers) - set(pulled.beneath)
        assert store.check(content=True).sound


def test_content_that_is_beneath_is_a_duplicate_and_other_content_refused(both):
    with both.open() as store:
        again = add(store, {"base": b"beneath", **SHARED})
        assert (again.id, again.created, again.store) == (both.base.id, False, both.uuid)
        assert os.listdir(both.above / "layers") == []
        with pytest.raises(errors.DuplicateLayerError):
            add(store, {"other": b"content"}, id=both.base.id)


def test_a_name_beneath_is_moved_only_on_request(both):
    with both.open() as store:
        with pytest.raises(errors.DuplicateNameError):
            add(store, {"own": b"1"}, names=["base:1"])
        own = add(store, {"own": b"1"}, names=["base:1"], replace_names=True)
        assert store.resolve("base:1") == ("layer", own.id)
        assert store.layer(both.base.id).names == ()
        store.drop_name("base:1")
        assert store.resolve("base:1") == ("layer", both.base.id)
        with pytest.raises(errors.BeneathError):
            store.drop_name("base:1")
        store.set_name("mine", both.base.id)
        assert set(store.layer(both.base.id).names) == {"base:1", "mine"}


# -- taking out ----------------------------------------------------------------------------------------------------


def test_a_chain_across_both_is_extracted_exported_and_pushed(both):
    more = image(both.home, name="more", layers=4)
    with both.open() as store:
        child = add(store, {"child": b"c"}, parent=both.base.id)
        store.extract(child.id, both.home / "out")
        assert (both.home / "out" / "base").read_bytes() == b"beneath" and (both.home / "out" / "child").exists()
        with store.diff(both.base.id) as chunks:
            assert digest(b"".join(chunks)) == both.base.diff_id
        with store.layer_paths(child.id) as paths:
            assert paths == [str(both.below / "layers" / both.base.id / "diff"), str(both.above / "layers" / child.id / "diff")]
        pulled = store.pull(more.reference, names=["more:1"])
        store.push("more:1", f"oci:{both.home}/pushed:x")
        store.push("app:1", f"oci:{both.home}/pushed:app")   # the image beneath, as it is
    with layerstore.open(both.home / "elsewhere") as store:
        assert store.pull(f"oci:{both.home}/pushed:x").id == pulled.id
        assert store.pull(f"oci:{both.home}/pushed:app").id == both.image.id


def test_a_view_shows_images_across_both_and_leaves_out_what_vanished(both):
    with both.open() as store:
        pulled = store.pull(image(both.home, name="more", layers=4).reference, names=["more:1"])
        store.view(both.home / "view")
        assert set(viewreading.read_view(both.home / "view")) == {pulled.id, both.image.id}
    os.rename(both.below, both.home / "gone")
    with layerstore.open(both.above) as store:
        assert list(store.view(both.home / "view").left_out) == [pulled.id]
        assert viewreading.read_view(both.home / "view") == {}


@pytest.mark.root
def test_a_chain_across_both_is_mounted_written_to_and_committed(both):
    target = both.home / "target"
    target.mkdir()

    def work():
        from crash.disk.kernel_calls import own_mounts

        own_mounts()
        with both.open() as store:
            pulled = both.pulled(store, names=["mine:1"])
            store.mount("mine:1", target, writable=True)
            (target / "written").write_bytes(b"above")
            made = store.commit(target, names=["mine:2"])
            store.unmount(target)
            store.mount("mine:2", target)
            seen = (target / "written").read_bytes(), (target / "layer1").exists(), (target / "layer0").exists()
            store.unmount(target)
            assert store.check(content=True).sound
            return seen, made.layers[:-1] == pulled.layers, store.layer(made.layers[-1]).parent_beneath.store

    assert telling(work) == ((b"above", True, False), True, both.uuid)


@pytest.mark.root
@pytest.mark.parametrize("change", ["gone", "another"])
def test_what_a_kept_mount_was_on_top_of_is_compared_before_it_is_committed_or_mounted_again(both, change):
    from crash.disk.kernel_calls import own_mounts

    target = both.home / "target"
    target.mkdir()
    with layerstore.open(both.below) as store:
        odd = add(store, {"odd": b"1"}, id="e" * 64)

    def work():
        own_mounts()
        with both.open() as store:
            store.mount(odd.id, target, writable=True)
            (target / "written").write_bytes(b"above")
            store.unmount(target, keep_upper=True)

    telling(work)
    with layerstore.open(both.below) as store:
        store.delete_layer(odd.id)
        if change == "another":
            add(store, {"odd": b"2"}, id="e" * 64)

    def again():
        own_mounts()
        told = []
        with both.open() as store:
            for call in (lambda: store.commit(target), lambda: store.mount(odd.id, target, writable=True)):
                try:
                    call()
                except errors.LayerstoreError as error:
                    told.append(type(error).__name__)
        return told

    missing = "BeneathMissingError"
    assert telling(again) == [missing, missing if change == "another" else "UnknownImageError"]   # nothing has that ID now


# -- keeping -------------------------------------------------------------------------------------------------------


def test_nothing_beneath_is_deleted_by_delete_or_gc(both):
    with both.open() as store:
        pulled = both.pulled(store, names=["mine:1"])
        for call in (lambda: store.delete_layer(both.base.id), lambda: store.repair(layers=[both.base.id])):
            with pytest.raises(errors.BeneathError) as caught:
                call()
            assert both.uuid in str(caught.value) and isinstance(caught.value, errors.CallerError)
        assert store.delete_image(pulled.id).layers == ()
        with pytest.raises(errors.BeneathError):   # what is left of it is beneath
            store.delete_image(pulled.id)
        lone = add(store, {"lone": b"1"}, parent=both.base.id)
        assert store.collect_garbage(retention=0, grace=0).layers == (lone.id,)
        assert store.image(both.image.id).store == both.uuid


def test_no_verb_changes_a_byte_of_a_store_beneath(both):
    before = bytes_of(both.below)
    with both.open() as store:
        both.pulled(store, names=["mine:1"])
        add(store, {"child": b"c"}, parent=both.base.id)
        store.view(both.home / "view")
        store.check(content=True, beneath=True, budget=10.0)
        store.repair()
        store.collect_garbage(retention=0, grace=0)
        store.checkpoint()
        store.extract("mine:1", both.home / "out")
    assert bytes_of(both.below) == before


def test_content_is_taken_from_beneath_and_rot_there_is_told_to_nobody_beneath(both):
    found, sha = [], hashlib.sha256(SHARED["shared"]).digest()
    with both.open() as store:
        with LayerFinder(store._handle).find([sha]) as places:
            found.append(b"".join(places[sha].read()))
            assert places[sha]._source.cloning is None   # an attempt between mounts would end all others, too
        (both.below / "layers" / both.base.id / "diff" / "shared").write_bytes(b"x" * len(SHARED["shared"]))
        with LayerFinder(store._handle).find([sha]) as places, pytest.raises(errors.DamagedError):
            b"".join(places[sha].read())
    assert found == [SHARED["shared"]]
    assert not (both.below / "layers" / both.base.id / "suspects").exists()


@pytest.mark.parametrize("indexed", [True, False], ids=["in an index", "in none"])
def test_a_repair_takes_content_from_beneath(both, indexed):
    content = SHARED["shared"]
    if not indexed:
        (both.below / "layers" / both.base.id / "digests").unlink()
    with both.open() as store:
        own = add(store, {"copy": content, "own": b"1"})
        (both.above / "layers" / own.id / "diff" / "copy").write_bytes(b"rotten")
        report = store.repair()
        assert report.mended == (own.id,) and f"layer {both.base.id}" in {step.source for step in report.steps}
        assert store.check(content=True).sound


def test_a_layer_that_is_in_another_store_when_its_lock_is_had_is_read_there(both, monkeypatch):
    from layerstore.opening import reading

    with layerstore.open(both.above) as store:
        add(store, {"base": b"beneath", **SHARED})
    with both.open() as store:
        looked, at = [], reading.home

        def home(handle, layer_id):
            found = at(handle, layer_id)
            looked.append(found.root)
            if len(looked) == 1:
                store.delete_layer(layer_id)
            return found

        monkeypatch.setattr(reading, "home", home)
        with store.layer_paths(both.base.id) as paths:
            assert paths == [str(both.below / "layers" / both.base.id / "diff")]
        assert looked == [str(both.above), str(both.below)]


def test_a_check_looks_beneath_only_when_asked_and_names_the_store(both):
    with both.open() as store:
        (both.below / "layers" / both.base.id / "diff" / "base").write_bytes(b"rotten!")
        assert store.check(content=True).sound
        found = store.check(content=True, beneath=True).findings
        assert ("path-content", "base") in {(each.code, each.path) for each in found}
        assert {(each.subject, each.store) for each in found} == {(both.base.id, both.uuid)}


# -- when it is not there --------------------------------------------------------------------------------------------


def test_without_the_store_beneath_lookups_and_check_name_store_and_layer(both):
    with both.open() as store:
        child, alone = add(store, {"child": b"c"}, parent=both.base.id), add(store, {"alone": b"a"})
        pulled = both.pulled(store, names=["mine:1"])
    os.rename(both.below, both.home / "gone")
    with layerstore.open(both.above) as store:
        assert [each.missing for each in store.beneath] == ["there is nothing"]
        assert store.chain(alone.id)
        with pytest.raises(errors.BeneathMissingError) as caught:
            store.extract(child.id, both.home / "out")
        assert (caught.value.store, caught.value.layer_id) == (both.uuid, both.base.id)
        assert str(both.below) in str(caught.value) and isinstance(caught.value, errors.HostError)
        with pytest.raises(errors.BeneathMissingError):
            store.push("mine:1", f"oci:{both.home}/pushed:x")
        found = store.check().findings
        assert {each.code for each in found} == {"beneath-missing"}
        assert {each.subject for each in found} == {child.id, pulled.id}
        before = [child.id, alone.id]
        store.repair()                   # nothing of this store's is damaged: nothing is quarantined
        assert {each.id for each in store.layers() if each.state == "committed"} == set(before)
    with layerstore.open(both.above, beneath=[both.home / "gone"]) as store:   # it is back, elsewhere
        assert store.check().sound and store.chain(child.id)
    with layerstore.open(both.above) as store:
        assert [each.path for each in store.beneath] == [str(both.home / "gone")]


@pytest.mark.parametrize(("failure", "told"), [
    (errors.BusyError("being rebuilt"), errors.BusyError), (OSError(errno.EMFILE, "too many"), errors.BusyError),
    (OSError(errno.ENOMEM, "no memory"), errors.IoError), (PermissionError(errno.EACCES, "denied"), None),
    (errors.JournalDamagedError("torn"), None),
])
def test_what_passes_makes_no_store_beneath_missing(both, monkeypatch, failure, told):
    from layerstore.opening import beneath

    def failing(_path):
        raise failure

    with both.open() as store:
        child = add(store, {"child": b"c"}, parent=both.base.id)
    with monkeypatch.context() as patched:
        patched.setattr(beneath, "_open", failing)
        if told is None:
            with layerstore.open(both.above) as store:
                assert str(failure) in store.beneath[0].missing
        else:
            with pytest.raises(told):
                layerstore.open(both.above)
    with layerstore.open(both.above) as store:
        assert store.chain(child.id)


def test_who_waits_for_one_store_beneath_keeps_nobody_from_another(both, monkeypatch):
    from layerstore.opening import beneath

    waiting, go, opening, passed = threading.Event(), threading.Event(), beneath._open, []

    def slow(path):
        if path == str(both.below):
            waiting.set()
            passed.append(go.wait(300))
        return opening(path)

    with layerstore.open(both.home / "second"):
        pass
    monkeypatch.setattr(beneath, "_open", slow)
    other = threading.Thread(target=lambda: both.open().close())
    other.start()
    assert waiting.wait(300)
    with layerstore.open(both.home / "third", beneath=[both.home / "second"]) as store:
        assert len(store.beneath) == 1
    go.set()
    other.join()
    assert passed == [True]


def test_a_layer_that_vanished_beneath_is_pulled_again_and_stood_on(both):
    with both.open() as store:
        both.pulled(store, names=["mine:1"])
        child = add(store, {"child": b"c"}, parent=both.image.layers[-1])
    with layerstore.open(both.below) as store:
        store.delete_image(both.image.id)
    with layerstore.open(both.above) as store:
        with pytest.raises(errors.BeneathMissingError):
            store.chain(child.id)
        both.pulled(store, names=["mine:1"])
        assert [each.store for each in store.chain(child.id)] == [None] * 4
        assert store.check(content=True).sound
        with pytest.raises(errors.InUseError):   # the child holds it now
            store.delete_layer(both.image.layers[-1])


def test_another_layer_under_the_recorded_id_is_not_stood_on(both):
    with layerstore.open(both.below) as store:
        odd = add(store, {"odd": b"1"}, id="e" * 64)
    with both.open() as store:
        child = add(store, {"child": b"c"}, parent=odd.id)
    with layerstore.open(both.below) as store:
        store.delete_layer(odd.id)
        add(store, {"odd": b"2"}, id="e" * 64)
    with layerstore.open(both.above) as store, pytest.raises(errors.BeneathMissingError, match="another layer"):
        store.chain(child.id)


def of_own_ids(both, store, x, y):
    """An image of two layers whose IDs the caller chose, the second on the first."""
    with open_source(both.made.reference, platform=None) as source:
        wanted = source.resolve()
    with store.stage(differ({"x": x})) as first, store.stage(differ({"y": y})) as second:
        specs = [LayerSpec(first, id="e" * 64), LayerSpec(second, id="f" * 64, parent="e" * 64)]
        apply_batch(store._handle, specs, image=wanted, image_layers=["e" * 64, "f" * 64], image_names=["odd:1"])


def test_what_stands_on_what_beneath_is_not_resolved_to_another_layer_of_that_id(both):
    with layerstore.open(both.home / "second") as store:
        of_own_ids(both, store, b"1", b"2")
        uuid = store.uuid
        assert len(store.chain("f" * 64)) == 2
    with layerstore.open(both.above) as store:   # before it has any store beneath
        add(store, {"x": b"other"}, id="e" * 64)
    with layerstore.open(both.above, beneath=[both.home / "second"]) as store:
        assert store.layer("f" * 64).parent_beneath.store == uuid
        for call in (lambda: store.chain("f" * 64), lambda: store.extract("odd:1", both.home / "out"),
                     lambda: store.push("odd:1", f"oci:{both.home}/pushed:x")):
            with pytest.raises(errors.BeneathMissingError, match="another layer"):
                call()
        assert list(store.view(both.home / "view").left_out) == [both.image.id]
        child = add(store, {"child": b"c"}, parent="f" * 64)
        assert [(each.code, each.subject) for each in store.check().findings] == [("beneath-missing", child.id)]


def leads(view):
    return {os.readlink(view / "overlay" / each / "diff") for each in os.listdir(view / "overlay") if each != "l"}


def test_a_refreshed_view_leads_to_where_the_store_beneath_is_now_and_a_kill_leaves_it_whole(both):
    link, view = both.home / "link", both.home / "view"
    copy_store(str(both.below), str(both.home / "next"))

    def refreshed():
        with layerstore.open(both.above, beneath=[link]) as store:
            store.view(view)

    def turn(place):
        link.unlink(missing_ok=True)
        link.symlink_to(place)

    turn(both.below)
    refreshed()
    assert all(each.startswith(f"{both.below}/") for each in leads(view))
    turn(both.home / "next")
    points = [each for each in passings(refreshed) if each.point.startswith(("view.turn", "view.s")) and each.when == "before"]
    for passing in [each for each in points if each.nth == 2 or each.point == "view.sync"]:   # the second of three links
        turn(both.below)
        refreshed()
        turn(both.home / "next")
        kill_at(passing, refreshed)
        assert all(map(os.path.isdir, leads(view))) and len(viewreading.read_view(view)) == 1, passing
        refreshed()
        assert all(each.startswith(f"{both.home}/next/") for each in leads(view)), passing
    with observed([]) as passed:
        refreshed()
    assert not [point for point in passed if point.startswith("view.turn")]


def test_a_view_leaves_out_an_image_whose_layer_stands_on_others_here(both):
    with layerstore.open(both.home / "second") as store:
        of_own_ids(both, store, b"1", b"2")
    with layerstore.open(both.above) as store:
        add(store, {"x": b"1"}, id="e" * 64, parent=add(store, {"under": b"1"}).id)
    with layerstore.open(both.above, beneath=[both.home / "second"]) as store:
        assert list(store.view(both.home / "view").left_out) == [both.image.id]


def test_of_two_stores_beneath_each_layer_stands_on_what_its_own_store_has(both):
    for name, x in (("first", b"other"), ("second", b"1")):
        with layerstore.open(both.home / name) as store:
            add(store, {"x": x}, id="e" * 64)
            if name == "second":
                add(store, {"y": b"2"}, id="f" * 64, parent="e" * 64)
    with layerstore.open(both.above, beneath=[both.home / "first", both.home / "second"]) as store:
        with pytest.raises(errors.BeneathMissingError, match="another layer"):
            store.chain("f" * 64)
    with layerstore.open(both.above, beneath=[both.home / "second", both.home / "first"]) as store:
        assert len(store.chain("f" * 64)) == 2


def test_a_tree_that_is_gone_beneath_is_a_typed_error(both):
    with both.open() as store:
        child = add(store, {"child": b"c"}, parent=both.base.id)
        shutil.rmtree(both.below / "layers" / both.base.id)
        with pytest.raises(errors.BeneathMissingError) as caught:
            store.extract(child.id, both.home / "out")
    assert caught.value.layer_id == both.base.id


def test_a_rebuild_needs_no_store_beneath_and_loses_nothing_that_stands_on_one(both):
    with both.open() as store:
        child = add(store, {"child": b"c"}, parent=both.base.id, names=["child:1"])
        pulled = both.pulled(store, names=["mine:1"])
        store.take_lease("lease", [both.base.id, child.id])
    os.rename(both.below, both.home / "gone")
    os.unlink(both.above / "journal" / "data.mdb")
    report = layerstore.rebuild(both.above)
    assert (report.layers, report.images) == (1, 1) and "set-aside" not in {each.code for each in report.items}
    os.rename(both.home / "gone", both.below)
    with layerstore.open(both.above) as store:
        assert store.layer(child.id).parent_beneath == child.parent_beneath
        assert store.image(pulled.id).beneath == pulled.beneath
        assert {"child:1", "mine:1"} <= {name for each in (*store.layers(), *store.images()) for name in each.names}
        assert store.check(content=True).sound


def test_a_rebuild_from_the_archive_keeps_what_stands_on_a_store_beneath(both):
    with both.open() as store:
        child = add(store, {"child": b"c"}, parent=both.base.id)
        pulled = both.pulled(store, names=["mine:1"])
        store.take_lease("lease", [both.base.id])
        store.checkpoint(archive=True)
        late = add(store, {"late": b"c"}, parent=both.base.id)
    os.unlink(both.above / "journal" / "data.mdb")
    assert not [each for each in layerstore.rebuild(both.above).items if each.code in ("released-since", "deleted-since")]
    with layerstore.open(both.above) as store:
        assert {child.id, late.id} <= {each.id for each in store.layers()} and store.image(pulled.id).store is None
        assert [each.name for each in store.leases()] == ["lease"] and store.check(content=True).sound


@pytest.mark.parametrize("point", ["txn.claim", "publish.rename", "txn.commit"])
def test_a_pull_across_both_that_is_killed_is_finished_without_the_store_beneath(both, point):
    more = image(both.home, name="more", layers=4)

    def pull():
        with both.open() as store:
            store.pull(more.reference, names=["more:1"])

    with both.open():
        pass
    killed_at(point, "after", pull)
    os.rename(both.below, both.home / "gone")
    with layerstore.open(both.above) as store:
        assert store.resolve("more:1")[0] == "image"
        assert {each.code for each in store.check(content=True).findings} == {"beneath-missing"}
    os.rename(both.home / "gone", both.below)
    with layerstore.open(both.above) as store:
        assert store.check(content=True).sound


# -- being recorded ------------------------------------------------------------------------------------------------


def test_a_writable_opening_that_is_given_them_records_them_and_others_do_not(both):
    with layerstore.open(both.above):
        pass
    before = (both.above / "store.json").read_bytes()
    with layerstore.open(both.above, readonly=True, beneath=[both.below]) as store:
        assert store.layer(both.base.id)
    assert (both.above / "store.json").read_bytes() == before
    with both.open():
        pass
    written = json.loads((both.above / "store.json").read_text())
    assert written["features"]["incompatible"] == ["beneath"]
    with layerstore.open(both.above, readonly=True) as store:
        assert store.layer(both.base.id)
    with layerstore.open(both.above, beneath=[]) as store:
        assert store.beneath == [] and store.layers() == []
    assert json.loads((both.above / "store.json").read_text())["features"]["incompatible"] == ["beneath"]


def test_an_older_reader_refuses_a_store_with_stores_beneath(both, monkeypatch):
    with both.open():
        pass
    monkeypatch.setattr(config, "KNOWN_FEATURES", frozenset({"id-map"}))
    with pytest.raises(errors.UnsupportedFormatError):
        layerstore.open(both.above, readonly=True)


def test_recording_waits_for_whoever_has_the_store_open(both, monkeypatch):
    from layerstore.opening import beneath

    wait = beneath.flock.lock_root
    monkeypatch.setattr(beneath.flock, "lock_root", lambda fd, **options: wait(fd, **{**options, "wait": 0.0}))
    with layerstore.open(both.above), pytest.raises(errors.BusyError):
        beneath.record(str(both.above), beneath.found_at([both.below]))


@pytest.mark.parametrize("point", ["beneath.config.write", "beneath.config.rename", "beneath.root.sync"])
def test_an_opening_that_fails_while_recording_leaves_the_old_list_or_the_new_one(both, point):
    with layerstore.open(both.above):
        pass
    with failing_at(point, "EIO"), pytest.raises(errors.HostError):
        both.open()
    with layerstore.open(both.above) as store:
        assert [each.uuid for each in store.beneath] in ([], [both.uuid])
    with both.open() as store:
        assert [each.uuid for each in store.beneath] == [both.uuid]


def test_what_cannot_be_beneath_is_refused_and_not_written_down(both):
    with pytest.raises(errors.InvalidArgumentError, match="no store"):
        layerstore.open(both.above, beneath=[both.home / "nothing"])
    with pytest.raises(errors.InvalidArgumentError, match="the same"):
        layerstore.open(both.above, beneath=[both.below, both.below])
    copy_store(str(both.below), str(both.home / "copy"))
    with pytest.raises(errors.InvalidArgumentError, match="a copy"):
        layerstore.open(both.home / "copy", beneath=[both.below])
    with layerstore.open(both.home / "user", overlay_form="user" if os.geteuid() == 0 else "trusted"):
        pass
    with pytest.raises(errors.InvalidArgumentError, match="overlay form"):
        layerstore.open(both.home / "user", beneath=[both.below])
    with pytest.raises(errors.InvalidArgumentError, match="itself"):
        layerstore.open(both.below, beneath=[both.below])
    for each in ("above", "below", "copy", "user"):   # the feature could not be taken back
        config = both.home / each / "store.json"
        assert not config.exists() or json.loads(config.read_text())["features"]["incompatible"] == []


def test_a_store_beneath_that_may_not_be_opened_is_a_typed_error(both, monkeypatch):
    from layerstore.opening import beneath

    def denied(_path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(beneath.fs, "open_dir", denied)
    with pytest.raises(errors.HostError):
        layerstore.open(both.above, beneath=[both.below])


def test_a_new_store_has_the_overlay_form_of_the_one_beneath(both):
    with layerstore.open(both.home / "user", overlay_form="user"):
        pass
    with layerstore.open(both.home / "upper", beneath=[both.home / "user"]):
        pass
    assert json.loads((both.home / "upper" / "store.json").read_text())["overlay_form"] == "user"


def test_another_store_where_the_recorded_one_was_is_not_taken_for_it(both):
    with both.open():
        pass
    shutil.rmtree(both.below)
    with layerstore.open(both.below) as store:
        other = add(store, {"other": b"1"})
    with layerstore.open(both.above) as store:
        assert "and not" in store.beneath[0].missing
        with pytest.raises(errors.UnknownLayerError):
            store.layer(other.id)


def test_a_link_is_followed_to_where_it_leads_when_the_store_is_opened(both):
    link = both.home / "link"
    link.symlink_to(both.below)
    with layerstore.open(both.above, beneath=[link]) as store:
        assert store.layer(both.base.id)
    copy_store(str(both.below), str(both.home / "next"))
    with layerstore.open(both.home / "next") as store:
        later = add(store, {"later": b"1"})
    link.unlink()
    link.symlink_to(both.home / "next")
    with layerstore.open(both.above) as store:
        assert store.layer(later.id).store == both.uuid


def test_a_child_of_a_process_with_a_store_beneath_opens_both_itself(both):
    def child():
        with both.open() as store:
            assert store.layer(both.base.id).store == both.uuid

    with both.open() as store:
        assert run_child(child) == 0
        assert store.layer(both.base.id)


# -- the command line ------------------------------------------------------------------------------------------------


def test_the_command_line_records_lists_and_says_what_is_missing(both, capsys):
    def layerstore_(*arguments):
        status = run(["--root", str(both.above), *arguments])
        return status, *capsys.readouterr()

    assert layerstore_("--beneath", str(both.below), "create")[0] == 0
    assert "\tbeneath\t" in layerstore_("layers")[1]
    assert "(beneath)" in layerstore_("images")[1]
    assert json.loads(layerstore_("layers", "--json")[1])[0]["store"] == both.uuid
    assert layerstore_("rm", both.base.id)[0] == 1
    assert layerstore_("check", "--beneath")[0] == 0
    shutil.rmtree(both.below)
    status, out, err = layerstore_("layers")
    assert (status, out) == (0, "") and both.uuid in err
    status, out, _ = layerstore_("check", "--beneath")
    assert status == 3 and out.startswith("beneath-missing")
