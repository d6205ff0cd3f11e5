"""Recovery where two are at it at once, where damage left what no crash leaves, and where somebody was quicker."""

import dataclasses
import fcntl
import os
import runpy
import shutil
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import layerstore
from layerstore import errors
from layerstore.recovery import acting, batches, executor, looking, mounting, moving, recover
from layerstore.lifecycle.machine import fire
from layerstore.recovery.planner import Action, Do, Probe, Subjects, TreeFacts, plan, possibilities
from layerstore.lifecycle.states import Kind, State, Trigger
from layerstore.testing import violations
from layerstore.trees import mounted as mount_table
from storekit import add, differ, image, killed_at, states, tree_names


def copy(source, target):
    subprocess.run(["cp", "-a", source, target], check=True)


def row_of(store, txid):
    with store._handle.read() as view:
        return view.get("layers", txid)


@contextmanager
def held(path):
    """Somebody else's lock on a tree."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


# -- somebody was quicker ------------------------------------------------------------------------------------------------


def test_what_has_no_row_needs_nothing(store):
    assert executor.resolve(store._handle, "0" * 32) is None
    assert executor.finish_delete(store._handle, "0" * 32, wait=0.0)


def test_what_is_not_there_or_no_directory_does_not_say_that_it_is_filled(store, root):
    (root / "staging" / ("f" * 32)).write_bytes(b"")
    assert looking.left_at(store._handle, "0" * 32) is None
    assert looking.left_at(store._handle, "f" * 32) is None
    assert looking.spool_at(store._handle, "f" * 32, {"content_key": None}) is None


@pytest.mark.parametrize("looks", [1, 2])
def test_a_row_that_goes_while_its_tree_is_being_locked_needs_nothing_more(root, monkeypatch, looks):
    with layerstore.open(root) as store:
        staged = store.stage(differ(keyed=True))
        txid = staged._staging.txid
        staged.seal()
        staged.release()
        shutil.rmtree(root / "staging" / txid)
        row = row_of(store, txid)
        rows = iter([row] * looks)
        for module in (executor, acting):
            monkeypatch.setattr(module, "row_of", lambda handle, txid: next(rows, None))
        assert executor.resolve(store._handle, txid) is None
        monkeypatch.undo()
        assert states(store) == ["staged"]


def test_a_deletion_that_somebody_finished_while_its_tree_was_being_locked_is_done(store, monkeypatch):
    layer = add(store)
    monkeypatch.setattr(acting, "lock_where_it_is", lambda *a, **k: None)
    with store._handle.read() as view:
        assert view.get("layers", layer.txid)
    store._handle.update("d", lambda txn: fire(txn, Kind.LAYER, layer.txid, Trigger.DELETE, txid=layer.txid))
    assert executor.finish_delete(store._handle, layer.txid, wait=0.0)


def test_a_row_that_is_further_along_is_left_as_it_is(store):
    layer = add(store)
    stale = {**row_of(store, layer.txid), "state": State.INCOMPLETE.value}
    acting._fire(store._handle, "x", layer.txid, stale, Trigger.COMMIT)
    assert row_of(store, layer.txid)["state"] == "committed"
    batches._lock_member(store._handle, ExitStack(), layer.txid, None)   # does not wait: nothing is promised any more


def test_a_tree_that_vanishes_while_it_is_looked_at_has_no_side_file(store):
    assert looking.side_file(store._handle, "layers", "f" * 64) is None


def test_an_image_that_somebody_finished_is_not_finished_again(store, tmp_path):
    pulled = store.pull(image(tmp_path).reference)
    assert recover.carry_out(store._handle, Action(Do.FINISH_IMAGE, pulled.id, "promised"))
    assert [x.id for x in store.images()] == [pulled.id]


# -- two at it at once -----------------------------------------------------------------------------------------------


def promised_beside(store, root):
    """A layer that another process promised and died, while *store* was open; its txid and row."""
    def other():
        with layerstore.open(root) as mine:
            add(mine, {"other": b"1"})

    killed_at("txn.claim", "after", other)
    with store._handle.read() as view:
        return next((t, r) for t, r in view.scan("layers") if r["state"] == "incomplete")


def test_a_promise_whose_tree_somebody_holds_is_waited_for_as_long_as_asked(store, root):
    txid, row = promised_beside(store, root)
    with held(root / "staging" / txid), pytest.raises(errors.BusyError):
        batches.finish_batch(store._handle, row["batch"], wait=0.0)
    batches.finish_batch(store._handle, row["batch"], wait=60.0)
    assert [layer.id for layer in store.layers()] == [row["layer_id"]]


def test_a_stranger_at_the_place_of_a_promised_layer_is_not_taken_for_it(store, root):
    txid, row = promised_beside(store, root)
    shutil.rmtree(root / "staging" / txid)
    (root / "layers" / row["layer_id"]).mkdir()
    batches.finish_batch(store._handle, row["batch"])
    assert [layer.state for layer in store.layers()] == ["quarantined"]


def test_promises_of_another_batch_are_not_finished_with_it(root, tmp_path):
    made = image(tmp_path)
    killed_at("txn.claim", "after", lambda: layerstore.open(root).pull(made.reference))
    with layerstore.open(root, readonly=True) as store, store._handle.read() as view:
        assert batches.batch_members(view, "another") == ({}, {})


def test_a_stray_that_is_alive_or_has_a_row_by_now_is_left(store, root, tmp_path):
    staged = store.stage(differ(keyed=True))
    txid = staged._staging.txid
    assert not executor.remove_stray(store._handle, f"staging/{txid}")      # its lock is held
    staged.release()
    assert not executor.remove_stray(store._handle, f"staging/{txid}")      # it has a row
    pulled = store.pull(image(tmp_path).reference)
    assert not executor.remove_stray(store._handle, f"images/{pulled.id}")
    (root / "staging" / "file").write_bytes(b"")
    assert executor.remove_stray(store._handle, "staging/file")
    assert tree_names(root, "staging") == [txid]


# -- what no crash leaves ----------------------------------------------------------------------------------------------


def make_staging(root):
    killed_at("txn.begin", "after", lambda: layerstore.open(root).stage(differ()))


def make_creating(root):
    def claim():
        with layerstore.open(root) as store, store.stage(differ()) as staged:
            store.apply_staged_layer(staged, big_data={"k": b"v"})

    killed_at("txn.claim", "after", claim)


def make_filled(root):
    with layerstore.open(root) as store:
        store.stage(differ(keyed=True)).release()


def make_staged(root):
    with layerstore.open(root) as store:
        staged = store.stage(differ(keyed=True))
        staged.seal()
        staged.release()


def make_gone(root):
    with layerstore.open(root) as store:
        store.delete_layer(add(store).id)


def make_deleting(root):
    with layerstore.open(root) as store:
        layer = add(store)
    killed_at("txn.delete", "after", lambda: layerstore.open(root).delete_layer(layer.id))


@pytest.mark.parametrize(("make", "there", "left"), [
    (make_staging, "staging", []), (make_filled, "staging", []), (make_staged, "staging", []), (make_creating, "staging", []),
    (make_gone, "trash", ["gone"]), (make_deleting, "layers", ["gone"]),
], ids=["staging", "filled", "staged", "creating", "gone", "deleting"])
def test_a_tree_that_is_in_two_places_is_set_aside_and_its_row_resolved(root, make, there, left):
    make(root)
    (name,) = tree_names(root, there)
    txid = (root / there / name / "txid").read_text().strip()
    copy(root / there / name, root / ("trash" if there != "trash" else "staging") / txid)
    with layerstore.open(root) as store:
        assert Do.SET_ASIDE in {action.do for action in store.recovery.actions}
        assert states(store) == left
        assert len(tree_names(root, "quarantine")) == 2
    assert violations(str(root)) == []


def test_evidence_of_the_same_name_is_kept_beside_the_other(store, root):
    for n in range(3):
        (root / "layers" / "odd").mkdir()
        assert moving.set_aside(store._handle, "layers", "odd") == f"quarantine/layers-odd-{n}"


def test_a_deleted_tree_in_the_way_goes_to_trash_and_the_new_one_moves_in(root):
    with layerstore.open(root) as store:
        first = add(store, {"old": b""}, id="a" * 64)
        store.delete_layer(first.id)
        second = add(store, {"new": b""}, id="a" * 64)
        os.rename(root / "layers" / second.id, root / "staging" / second.txid)
        os.rename(root / "trash" / first.txid, root / "layers" / first.id)
        executor.resolve(store._handle, second.txid)
        assert tree_names(root, "trash") == [first.txid]
    assert violations(str(root)) == []


def test_an_image_file_that_was_being_written_is_left_to_whoever_finishes_the_image(root, tmp_path):
    made = image(tmp_path)
    killed_at("publish.image-file.write", "after", lambda: layerstore.open(root).pull(made.reference))
    assert [name[0] for name in tree_names(root, "images")] == ["."]
    with layerstore.open(root, readonly=True) as store:
        assert not [action for action in store.recovery.actions if action.do is Do.REMOVE_STRAY]
    with layerstore.open(root) as store:
        assert len(store.images()) == 1
    assert violations(str(root)) == []


def test_an_image_whose_layers_are_all_there_is_finished_by_itself(root, tmp_path):
    made = image(tmp_path)
    with layerstore.open(root) as store:
        pulled = store.pull(made.reference)
        store.delete_image(pulled.id, keep_layers=True)
    killed_at("txn.claim", "after", lambda: layerstore.open(root).pull(made.reference))
    with layerstore.open(root) as store:
        assert [action.do for action in store.recovery.actions] == [Do.FINISH_IMAGE]
        assert [x.id for x in store.images()] == [pulled.id]
    assert violations(str(root)) == []


def test_what_keeps_coming_back_is_reported_as_damage(root, monkeypatch):
    make_staging(root)
    monkeypatch.setattr(recover, "carry_out", lambda handle, action: True)
    with pytest.raises(errors.DamagedError, match="cannot bring"):
        layerstore.open(root)


def refuse(*_args, **_options):
    raise errors.PrivilegeError("removing it: Operation not permitted")


def test_garbage_that_may_not_be_removed_does_not_keep_a_store_from_opening(root, monkeypatch):
    def work():
        with layerstore.open(root) as store:
            store.stage(differ())

    killed_at("txn.begin", "after", work)
    with monkeypatch.context() as patch:
        for module in (acting, executor):
            patch.setattr(module, "remove_tree", refuse)
        for done in (["sweep"], []):         # its row goes; the tree is a stray from then on
            with layerstore.open(root) as store:
                assert [action.do.value for action in store.recovery.actions] == done
                assert [(action.do, "not permitted" in action.why) for action in store.recovery.deferred] == [(Do.DEFER, True)]
                assert not states(store)
        assert len(tree_names(root, "staging")) == 1
    with layerstore.open(root) as store:
        assert [action.do for action in store.recovery.actions] == [Do.REMOVE_STRAY]
        assert not store.recovery.deferred
    assert not tree_names(root, "staging")


def test_a_privilege_that_is_wanting_for_anything_else_is_an_error(root, monkeypatch):
    def work():
        with layerstore.open(root) as store:
            add(store)

    killed_at("publish.rename", "before", work)
    monkeypatch.setattr(recover, "carry_out", refuse)
    with pytest.raises(errors.PrivilegeError):
        layerstore.open(root)


def test_an_image_without_a_promise_in_the_log_cannot_be_written_again(store):
    with pytest.raises(errors.DamagedError, match="its promise is not in the log"):
        recover._rewrite_image(store._handle, "f" * 64)


def test_records_whose_rows_are_gone_and_images_whose_promise_is_archived_are_not_redone():
    class Record:
        def __init__(self, entity, trigger, to_state):
            self.entity, self.trigger, self.to_state = entity, trigger, to_state

    class View:
        rows = {"kept": {"state": "committed"}}

        def low_water(self):
            return 1

        def head(self):
            return 9, b""

        def scan(self, table):
            return iter(())

        def get(self, table, key):
            return self.rows.get(key)

        def records(self, after, upto):
            return iter([Record("layer:lost", "commit", State.COMMITTED), Record("image:kept", "commit", State.COMMITTED),
                         Record("name:n", "take", State.HELD), Record("layer:kept", "commit", State.COMMITTED)])

    class Handle:
        @contextmanager
        def read(self):
            yield View()

    found = recover.gather(Handle())
    assert (found.redo, found.redo_images) == ({"kept"}, frozenset())


# -- mounts ------------------------------------------------------------------------------------------------------------


def mounted(store, *, mount_id="m" * 32, **row):
    layer = add(store)
    payload = {"target": "/nowhere", "layers": [layer.id], "writable": False, "boot_id": "another boot", **row}
    for trigger, data in ((Trigger.TAKE, payload), (Trigger.ATTACH, {})):
        store._handle.update("t", lambda txn: fire(txn, Kind.MOUNT, mount_id, trigger, txid="m", payload=data))


def mounting_elsewhere():
    """What a row says of a mount in another mount namespace of this boot: nobody here can say whether it is there."""
    return {"boot_id": mounting.boot_id(), "namespace": 1}


@pytest.mark.parametrize("writable", [False, True])
def test_a_mount_of_another_boot_is_let_go_of_and_only_a_writable_one_keeps_its_row(root, writable):
    with layerstore.open(root) as store:
        mounted(store, writable=writable)
    (root / "uppers" / ("m" * 32)).mkdir()
    with layerstore.open(root) as store:
        assert [action.do for action in store.recovery.actions] == [Do.DETACH]
        assert [mount.mounted for mount in store.mounts()] == ([False] if writable else [])
        assert store.recover().clean
        assert tree_names(root, "uppers") == (["m" * 32] if writable else [])


def test_what_lies_in_uppers_without_a_row_is_removed(root):
    with layerstore.open(root) as store:
        add(store)
    (root / "uppers" / "left").mkdir()
    with layerstore.open(root) as store:
        assert [(action.do, action.key) for action in store.recovery.actions] == [(Do.REMOVE_STRAY, "uppers/left")]
        assert tree_names(root, "uppers") == []


def test_a_mount_is_looked_for_only_where_it_could_be_seen(store):
    seen = mounting.look(store._handle)
    here = {"target": "/nowhere", "boot_id": mounting.boot_id(), "namespace": mounting.namespace()}
    assert mounting.is_there(seen, here) is False
    assert mounting.is_there(seen, {**here, "namespace": 1}) is None
    assert mounting.is_there(seen, {**here, "namespace": 1, "boot_id": "another"}) is False
    seen = dataclasses.replace(seen, overlays=frozenset({"/nowhere"}))
    assert mounting.is_there(seen, here) is True
    assert mounting.is_there(seen, {**here, "uppers": [0, 0]}) is False   # of a store that this one is a copy of


def test_a_mount_is_found_though_a_directory_above_it_is_reached_by_a_link_now(store, tmp_path):
    seen = dataclasses.replace(mounting.look(store._handle), overlays=frozenset({f"{tmp_path.resolve()}/moved/target"}))
    (tmp_path / "was").symlink_to("moved")
    row = {"target": f"{tmp_path}/was/target", "boot_id": mounting.boot_id(), "namespace": mounting.namespace()}
    assert mounting.is_there(seen, row) is True


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("mounts", [0, 1, 30])
def test_opening_reads_the_table_of_mounts_once_however_many_there_are(root, monkeypatch, mounts, readonly):
    """It has a line for each of them: to read it for each would cost their square."""
    with layerstore.open(root) as store:
        for number in range(mounts):
            mounted(store, mount_id=f"{number:032}", target=f"/nowhere/{number}", **mounting_elsewhere())
    reads = []

    def opening(path, *arguments, **keywords):
        reads.append(path)
        return open(path, *arguments, **keywords)

    monkeypatch.setattr(mount_table, "open", opening, raising=False)
    with layerstore.open(root, readonly=readonly) as store:
        assert store.recovery.clean and len(store.mounts()) == mounts
    assert reads == ["/proc/self/mountinfo"] * min(mounts, 1)


# -- the plan, told ----------------------------------------------------------------------------------------------------


def test_a_mount_that_is_there_or_cannot_be_seen_is_left():
    rows = {"a": {"state": "mounted", "target": "/a"}, "b": {"state": "mounted", "target": "/b"}}
    probe = Probe({}, mounted={"a": True, "b": None})
    assert plan(Subjects({}, frozenset(), mounts=rows), probe) == ()


def test_a_tree_that_its_row_says_is_elsewhere_and_a_live_stray():
    probe = Probe({}, strays={"staging/live": True}, misplaced=("staging/x",))
    assert [(a.do, a.key) for a in plan(Subjects({}, frozenset()), probe)] == [(Do.SET_ASIDE, "staging/x")]


def test_without_the_disk_every_place_is_told():
    assert ("staging, filled", Do.LEAVE) in [told[:2] for told in possibilities({"state": "staging"})]
    assert ("staging, with a spool", Do.LEAVE) in [told[:2] for told in possibilities({"state": "staging"})]
    told = possibilities({"state": "committed"})
    assert {(place, do) for place, do, _ in told} == {("layers", Do.LEAVE), ("staging", Do.REPUBLISH)}
    assert TreeFacts(frozenset()).places == frozenset()


def test_the_page_of_states_is_what_the_module_prints(capsys, monkeypatch):
    monkeypatch.delitem(__import__("sys").modules, "layerstore.lifecycle.states")
    runpy.run_module("layerstore.lifecycle.states", run_name="__main__")
    assert capsys.readouterr().out == Path(__file__).parent.parent.joinpath("docs", "states.md").read_text()
