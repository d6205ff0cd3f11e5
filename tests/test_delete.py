"""Deleting: refused while used, hidden at once, finished by whoever can, and the ID is free afterwards."""

import threading
import time

import pytest

import layerstore
from layerstore import errors
from storekit import add, failing_at, image, killed_at, states, tree_names


def test_a_deleted_layer_is_hidden_and_its_tree_waits_in_trash_for_a_checkpoint(store, root):
    layer = add(store)
    assert store.delete_layer(layer.id).layers == (layer.id,)
    assert store.layers() == []
    assert tree_names(root, "layers") == []
    assert tree_names(root, "trash") == [layer.txid]
    assert store.checkpoint().emptied == 1
    assert tree_names(root, "trash") == []
    assert states(store) == []


def test_the_id_can_be_made_again_at_once(store, root):
    first = add(store, id="a" * 64)
    store.delete_layer(first.id)
    second = add(store, {"other": b""}, id="a" * 64)
    assert second.created
    assert store.check(content=True).sound
    assert tree_names(root, "trash") == [first.txid]


def test_an_unknown_layer_is_said_to_be(store):
    with pytest.raises(errors.UnknownLayerError):
        store.delete_layer("a" * 64)
    with pytest.raises(errors.InvalidArgumentError):
        store.delete_layer("abc")


def test_names_go_with_their_layer(store):
    layer = add(store, names=["n"])
    store.delete_layer(layer.id)
    assert add(store, {"b": b""}, names=["n"]).names == ("n",)


def test_a_lease_keeps_a_layer_beyond_the_process(root):
    with layerstore.open(root) as store:
        layer = add(store)
        store.take_lease("mine", [layer.id])
    with layerstore.open(root) as store:
        assert [lease.name for lease in store.leases()] == ["mine"]
        with pytest.raises(errors.InUseError, match="lease mine"):
            store.delete_layer(layer.id)
        store.drop_lease("mine")
        store.delete_layer(layer.id)


def test_a_reader_defers_the_deletion_but_the_layer_is_hidden(store, root):
    layer = add(store)
    with store.layer_paths(layer.id) as (diff,):
        report = store.delete_layer(layer.id, wait=0.05)
        assert (report.layers, report.deferred) == ((), (layer.id,))
        assert store.layers() == []
        assert tree_names(root, "layers") == [layer.id], "the reader's tree stays where it is"
        assert open(f"{diff}/hello", "rb").read() == b"world\n"
        with pytest.raises(errors.UnknownLayerError):
            store.layer(layer.id)
    assert [a.do.value for a in store.recover().actions] == ["finish-delete"]
    assert tree_names(root, "layers") == []


def test_an_id_that_is_still_being_deleted_cannot_be_claimed(store, monkeypatch):
    from layerstore.verbs import claiming

    monkeypatch.setattr(claiming, "_PATIENCE_SECONDS", 0.2)
    layer = add(store)
    with store.layer_paths(layer.id):
        store.delete_layer(layer.id, wait=0.0)
        with pytest.raises(errors.BusyError):
            add(store)
    assert add(store).created


def test_a_delete_waits_for_a_reader_that_goes_away_in_time(store):
    layer = add(store)
    entered, leave = threading.Event(), threading.Event()

    def read():
        with store.layer_paths(layer.id):
            entered.set()
            leave.wait(10)

    reader = threading.Thread(target=read)
    reader.start()
    entered.wait(10)
    begun = time.monotonic()
    threading.Timer(0.2, leave.set).start()
    assert store.delete_layer(layer.id, wait=10).layers == (layer.id,)
    assert time.monotonic() - begun >= 0.1
    reader.join()


def test_a_failure_after_the_promise_is_pending_and_finished_by_the_next_open(root):
    with layerstore.open(root) as store:
        layer = add(store)
        with failing_at("delete.rename", "EIO"), pytest.raises(errors.PendingError):
            store.delete_layer(layer.id)
        assert store.layers() == []
    with layerstore.open(root) as store:
        assert [a.do.value for a in store.recovery.actions] == ["finish-delete"]
        assert states(store) == ["gone"]


def test_deleting_an_image_deletes_the_layers_that_nothing_else_uses(store, tmp_path):
    shared = store.pull(image(tmp_path, name="one", layers=2).reference)
    other = store.pull(image(tmp_path, name="two", layers=3).reference)
    assert shared.layers[0] == other.layers[0]
    report = store.delete_image(other.id)
    assert set(report.layers) == set(other.layers) - set(shared.layers)
    assert [i.id for i in store.images()] == [shared.id]
    assert store.check(content=True).sound


def test_an_image_in_use_cannot_lose_a_layer(store, tmp_path):
    pulled = store.pull(image(tmp_path).reference)
    for layer in pulled.layers:
        with pytest.raises(errors.InUseError):
            store.delete_layer(layer)


def test_a_named_layer_survives_its_image(store, tmp_path):
    pulled = store.pull(image(tmp_path).reference)
    store.set_name("keep", pulled.layers[0])
    store.delete_image(pulled.id)
    assert [layer.id for layer in store.layers()] == [pulled.layers[0]]


def test_a_deletion_killed_anywhere_is_finished_or_was_never_promised(root):
    with layerstore.open(root) as store:
        layer = add(store)

    def scenario():
        with layerstore.open(root) as store:
            store.delete_layer(layer.id)

    killed_at("txn.delete", "after", scenario)
    with layerstore.open(root) as store:
        assert store.layers() == []
        assert states(store) == ["gone"]


def test_gc_takes_old_staged_trees_and_unreferenced_layers_but_nothing_live(store, root, tmp_path):
    from storekit import differ

    kept = store.pull(image(tmp_path).reference)
    add(store, {"loose": b""})
    store.stage(differ({"old": b""}, keyed=True)).release()
    sealed = store.stage(differ({"sealed": b""}, keyed=True))
    sealed.seal()
    sealed.release()
    killed_at("txn.begin", "after", lambda: layerstore.open(root).stage(differ({"unfinished": b""}, keyed=True)))
    with store.stage(differ({"live": b""})) as live:
        dry = store.collect_garbage(retention=0, grace=0, dry_run=True)
        assert (len(dry.staged), len(dry.layers)) == (2, 1)
        report = store.collect_garbage(retention=0, grace=0)
        assert (len(report.staged), len(report.layers)) == (2, 1)
        assert store.apply_staged_layer(live).created
    assert {layer.id for layer in store.layers()} >= set(kept.layers)
    assert tree_names(root, "trash") == []
    store.recover()
    assert store.check(content=True).sound


def test_gc_keeps_what_is_young(store):
    from storekit import differ

    add(store, {"loose": b""})
    store.stage(differ({"young": b""}, keyed=True)).release()
    sealed = store.stage(differ({"sealed": b""}, keyed=True))
    sealed.seal()
    sealed.release()
    report = store.collect_garbage()
    assert (report.staged, report.layers) == ((), ())


def test_what_fails_after_garbage_was_collected_says_that_it_was(store):
    below = add(store)
    above = add(store, {"above": b"1"}, parent=below.id)
    with failing_at("checkpoint.empty.unlink", "EROFS"), pytest.raises(errors.PendingError):
        store.collect_garbage(retention=0, grace=0)
    assert store.layers() == [], f"{below.id} and {above.id} are gone, as it said"
    with failing_at("checkpoint.sync", "ENOSPC"), pytest.raises(errors.LayerstoreError) as raised:
        store.collect_garbage(retention=0, grace=0)
    assert not isinstance(raised.value, errors.PendingError), "nothing was collected that time"


def test_a_deletion_whose_directories_cannot_be_synced_is_pending_and_poisons(store, root):
    layer = add(store)
    with failing_at("delete.sync", "EIO"), pytest.raises(errors.PendingError):
        store.delete_layer(layer.id)
    with pytest.raises(errors.PoisonedError):
        store.checkpoint()
    store.close()
    with layerstore.open(root) as again:
        assert again.layers() == []
