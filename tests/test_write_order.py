"""Single rules of the write order, each by itself: what a fault point that comes too early or too late would break."""

import errno
import os
import threading
from contextlib import closing

import pytest

import layerstore
from layerstore import errors
from layerstore.recovery import recover
from layerstore.system import faults, fs, flock
from layerstore.verbs import checkpoint
from layerstore.lifecycle.machine import fire
from layerstore.recovery.planner import Do
from layerstore.verbs.begin import Want, begin
from layerstore.verbs.staging import discard
from layerstore.lifecycle.states import Kind, Trigger
from storekit import add, differ, image, states, tree_names


def at(point, when, do):
    """A hook that does something, once, at a fault point."""
    left = [do]

    def hook(name, moment):
        if (name, moment) == (point, when) and left:
            left.pop()()

    return hook


def test_a_deletion_is_recorded_as_gone_only_when_its_tree_is_in_trash(store, root, armed):
    layer, seen = add(store), []
    armed(at("txn.delete.gone", "before", lambda: seen.append(tree_names(root, "trash"))))
    store.delete_layer(layer.id)
    assert seen == [[layer.txid]]


def test_trash_of_a_deletion_that_ended_while_the_checkpoint_synced_is_kept(store, root, armed):
    first, second = add(store, {"a": b""}), add(store, {"b": b""})
    store.delete_layer(first.id)
    armed(at("checkpoint.sync", "before", lambda: store.delete_layer(second.id)))
    store.checkpoint()
    assert tree_names(root, "trash") == [second.txid]


def test_the_trash_is_emptied_only_after_the_checkpoint_is_recorded(store, armed):
    """Until then a loss of power may bring the row of what was deleted back, and its tree must be there."""
    store.delete_layer(add(store, {"a": b""}).id)
    passed = []
    armed(lambda point, when: passed.append(point) if when == "before" else None)
    store.checkpoint()
    assert passed.index("checkpoint.sync") < passed.index("txn.checkpoint") < passed.index("checkpoint.empty.unlink")
    assert passed.count("checkpoint.empty.unlink") == passed[passed.index("txn.checkpoint"):].count("checkpoint.empty.unlink")


def test_the_oldest_open_transaction_holds_the_mark():
    class View:
        def scan(self, table):
            yield from {"a": {"first": 9, "state": "deleting"}, "b": {"first": 4, "state": "incomplete"},
                        "c": {"first": 2, "state": "staged"}, "d": {"first": 7, "state": "creating"}}.items()

    assert checkpoint._held_back(View()) == 4


def test_an_image_that_was_promised_right_after_the_mark_is_redone(root, tmp_path, armed):
    """Its promise is the first record that recovery reads."""
    made = image(tmp_path)
    with layerstore.open(root) as store:
        pulled = store.pull(made.reference)
        store.delete_image(pulled.id, keep_layers=True)
        store.checkpoint()
        armed(at("publish.image-file.rename", "after", store.checkpoint))
        again = store.pull(made.reference)
        documents = store.image_documents(again.id)
    os.unlink(root / "images" / again.id)
    with layerstore.open(root) as store:
        assert [action.do for action in store.recovery.actions] == [Do.REWRITE_IMAGE]
        assert store.image_documents(again.id) == documents


def test_ctrl_c_between_claim_and_promise_rolls_back_to_staged_at_once(store):
    with store.stage(differ(keyed=True)) as staged:
        def interrupt(name, moment):
            if (name, moment) == ("apply.big-data.write", "before"):
                faults.install(None)
                raise KeyboardInterrupt

        faults.install(interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.apply_staged_layer(staged, names=["n"], big_data={"k": b"v"})
        assert states(store) == ["staged"]
        assert store.apply_staged_layer(staged, names=["n"], big_data={"k": b"v"}).names == ("n",)


def test_a_promise_that_was_on_its_way_when_a_sync_failed_in_another_thread_is_not_made(store, monkeypatch):
    real = store._handle.journal.update

    def late(label, fn):
        store._handle.set_poison("a sync failed meanwhile")
        return real(label, fn)

    ran = []
    monkeypatch.setattr(store._handle.journal, "update", late)
    with pytest.raises(errors.PoisonedError):
        store._handle.update("x", ran.append)
    assert ran == []


def test_two_stagings_hear_of_the_same_failed_write_back(store, monkeypatch):
    """The kernel tells an error once per open file description: with one for both, the second would hear of success."""
    told, outcome = set(), []

    def other():
        try:
            add(store, {"other": b"2"})
            outcome.append("staged")
        except errors.LayerstoreError as error:
            outcome.append(type(error))

    def syncfs(fd):
        if fd in told:
            return
        told.add(fd)
        if len(told) == 1:   # the first has its error, but has not come to poison the handle yet
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        raise OSError(errno.EIO, "write-back failed")

    monkeypatch.setattr(fs.kernel, "syncfs", syncfs)
    with pytest.raises(errors.OutcomeUnknownError):
        add(store, {"one": b"1"})
    assert outcome == [errors.OutcomeUnknownError]


def test_recovery_looks_at_nothing_that_began_after_it_did(root, monkeypatch):
    with layerstore.open(root) as store:
        add(store)
        asked, real = [], recover.gather

        def gather(handle, upto=None):
            asked.append(upto)
            return real(handle, upto)

        monkeypatch.setattr(recover, "gather", gather)
        with store._handle.read() as view:
            head = view.head()[0]
        store.recover()
        assert asked
        assert set(asked) == {head}


def test_a_batch_becomes_visible_at_once_and_only_when_every_tree_is_in_its_place(store, root, tmp_path, armed):
    """Whatever a reader sees at any fault point of a pull: nothing, or all of it with its trees."""
    made, seen = image(tmp_path), set()

    def look(_name, _moment):
        with store._handle.read() as view:
            committed = [row["layer_id"] for _, row in view.scan("layers") if row["state"] == "committed"]
            images = [key for key, row in view.scan("images") if row["state"] == "committed"]
        assert all((root / "layers" / layer).exists() for layer in committed)
        seen.add((len(committed), len(images)))

    armed(look)
    store.pull(made.reference)
    armed(None)
    assert seen == {(0, 0), (3, 1)}


def test_a_tree_that_was_promised_meanwhile_is_not_discarded_but_let_go_of(store, root):
    staged = store.stage(differ())
    staged.seal()
    staging, txid = staged._staging, staged._staging.txid
    claim = {"layer_id": "a" * 64, "parent": None, "names": [], "replace_names": False, "batch": "b" * 32, "big_data": {}}

    def promise(txn):
        fire(txn, Kind.LAYER, txid, Trigger.CLAIM, txid=txid, payload=claim)
        fire(txn, Kind.LAYER, txid, Trigger.PROMISE, txid=txid)

    store._handle.update("promise", promise)
    discard(store._handle, staging)
    assert tree_names(root, "staging", txid, "diff") == ["hello"]
    store.recover()
    assert [layer.state for layer in store.layers()] == ["committed"]


def test_the_tree_that_is_locked_is_the_one_that_is_there_when_the_lock_is_had(store, root, armed):
    (root / "staging" / "t").mkdir()

    def replace():
        os.rename(root / "staging" / "t", root / "trash" / "t")
        (root / "staging" / "t").mkdir()

    armed(at("the.lock", "before", replace))
    with closing(flock.lock_tree(store._handle.dirs["staging"], "t", point="the.lock")) as lock:
        assert os.fstat(lock.fd).st_ino == (root / "staging" / "t").stat().st_ino
    armed(at("the.lock", "before", lambda: os.rmdir(root / "staging" / "t")))
    assert flock.lock_tree(store._handle.dirs["staging"], "t", point="the.lock") is None


def test_a_tree_that_somebody_is_staging_is_nothing_to_recover_or_to_wait_for(store):
    (staging,) = begin(store._handle, [Want("key")])
    assert states(store) == ["staging"]
    assert recover.dry_run(store._handle).actions == ()
    discard(store._handle, staging)
