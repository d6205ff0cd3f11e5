"""Recovery: the planner is pure and total, redo covers what power may have lost, and evidence is never destroyed."""

import fcntl
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

import layerstore
from layerstore.system import faults
from layerstore.recovery.planner import CELLS, Action, Do, Place, Probe, Subjects, TreeFacts, decide, plan
from layerstore.lifecycle.states import Kind, State, TRANSITIONS
from layerstore.testing import dump, violations
from storekit import add, differ, image, killed_at, states, tree_names

LAYER_STATES = sorted({s for t in TRANSITIONS if t.kind is Kind.LAYER for s in (t.source, t.dest)} - {State.ABSENT})
PLACES = [frozenset(c) for n in range(4) for c in itertools.combinations(Place, n)]

# what a crash can leave, by design (docs/crash-model.md): each of these has a cell of its own, the rest the default
REACHABLE = {
    (State.STAGING, ()), (State.STAGING, ("staging",)), (State.STAGED, ("staging",)), (State.CREATING, ("staging",)),
    (State.INCOMPLETE, ("staging",)), (State.INCOMPLETE, ("layers",)), (State.COMMITTED, ("layers",)),
    (State.COMMITTED, ("staging",)), (State.DELETING, ("layers",)), (State.DELETING, ("trash",)),
    (State.DELETING, ("staging",)), (State.GONE, ("trash",)), (State.GONE, ("staging",)), (State.GONE, ("layers",)),
    (State.GONE, ()),
}


def test_every_state_and_place_and_lock_has_a_decision():
    either = (False, True)
    every = itertools.product(LAYER_STATES, PLACES, either, either, either, either)
    for state, places, locked, right, filled, resumable in every:
        facts = TreeFacts(places, locked=locked, side_file_right=right, filled=filled, resumable=resumable)
        do, why = decide({"state": state.value}, facts)
        assert isinstance(do, Do)
        assert why


@pytest.mark.parametrize("cell", sorted(REACHABLE), ids=lambda c: f"{c[0].value}-{'+'.join(c[1]) or 'nowhere'}")
def test_every_cell_that_a_crash_can_reach_is_decided_explicitly(cell):
    assert (cell[0], frozenset(map(Place, cell[1]))) in CELLS


def test_impossible_cells_quarantine_what_was_promised_and_set_aside_what_was_not():
    two = TreeFacts(frozenset({Place.STAGING, Place.LAYERS}))
    assert decide({"state": "committed"}, two)[0] is Do.QUARANTINE
    assert decide({"state": "incomplete"}, two)[0] is Do.QUARANTINE
    assert decide({"state": "staged"}, two)[0] is Do.SET_ASIDE
    assert decide({"state": "committed"}, TreeFacts(frozenset()))[0] is Do.QUARANTINE


def test_a_tree_that_was_filled_is_left_for_the_next_stage_and_one_that_was_not_is_swept():
    staging = frozenset({Place.STAGING})
    assert decide({"state": "staging"}, TreeFacts(staging))[0] is Do.SWEEP
    assert decide({"state": "staging"}, TreeFacts(staging, filled=True))[0] is Do.LEAVE
    assert decide({"state": "staging"}, TreeFacts(frozenset(), filled=True))[0] is Do.DROP_ROW


def test_a_tree_with_a_spool_is_left_for_the_next_stage_of_its_content_and_only_there():
    staging = frozenset({Place.STAGING})
    assert decide({"state": "staging"}, TreeFacts(staging, resumable=True))[0] is Do.LEAVE
    assert decide({"state": "staging"}, TreeFacts(staging, locked=True, resumable=True))[0] is Do.LEAVE
    assert decide({"state": "staging"}, TreeFacts(frozenset(), resumable=True))[0] is Do.DROP_ROW
    two = frozenset({Place.STAGING, Place.LAYERS})
    assert decide({"state": "staging"}, TreeFacts(two, resumable=True))[0] is Do.SET_ASIDE


def test_nothing_that_was_promised_is_ever_swept_or_discarded():
    for places, locked in itertools.product(PLACES, (False, True)):
        for state in (State.INCOMPLETE, State.COMMITTED, State.QUARANTINED):
            do, _ = decide({"state": state.value}, TreeFacts(places, locked=locked))
            assert do not in (Do.SWEEP, Do.DROP_ROW, Do.SET_ASIDE, Do.REMOVE_STRAY, Do.RELEASE)


def test_a_held_lock_keeps_recovery_off_and_only_a_promise_is_waited_for():
    held = TreeFacts(frozenset({Place.STAGING}), locked=True)
    assert decide({"state": "staging"}, held)[0] is Do.LEAVE
    assert decide({"state": "creating"}, held)[0] is Do.LEAVE
    assert decide({"state": "incomplete"}, held)[0] is Do.WAIT
    assert decide({"state": "committed"}, held)[0] is Do.WAIT
    assert decide({"state": "deleting"}, TreeFacts(frozenset({Place.LAYERS}), locked=True))[0] is Do.DEFER


def some_subjects():
    rows = {f"{n:032x}": {"state": s.value, "layer_id": "a" * 64, "batch": "b"} for n, s in enumerate(LAYER_STATES)}
    trees = {txid: TreeFacts(PLACES[n % len(PLACES)]) for n, txid in enumerate(rows)}
    return Subjects(rows, frozenset(rows)), Probe(trees, strays={"staging/x": False, "trash/y": True})


def test_the_same_journal_and_probe_give_the_same_plan_whatever_the_order():
    subjects, probe = some_subjects()
    backwards = Subjects(dict(reversed(subjects.layers.items())), subjects.redo)
    again = Probe(dict(reversed(probe.trees.items())), strays=dict(reversed(probe.strays.items())))
    assert plan(subjects, probe) == plan(backwards, again)


def test_the_planner_reads_nothing_but_its_arguments(monkeypatch):
    subjects, probe = some_subjects()
    import builtins
    import time

    for module, name in ((os, "stat"), (os, "open"), (os, "listdir"), (builtins, "open"), (time, "time")):
        monkeypatch.setattr(module, name, lambda *a, **k: pytest.fail("the planner did something"))
    assert plan(subjects, probe)


def test_gone_trees_leave_before_others_move_in():
    rows = {"1" * 32: {"state": "gone", "layer_id": "a" * 64}, "2" * 32: {"state": "committed", "layer_id": "a" * 64}}
    probe = Probe({
        "1" * 32: TreeFacts(frozenset({Place.LAYERS})), "2" * 32: TreeFacts(frozenset({Place.STAGING}), occupant="1" * 32),
    })
    assert [a.do for a in plan(Subjects(rows, frozenset(rows)), probe)] == [Do.TO_TRASH, Do.REPUBLISH]
    assert isinstance(plan(Subjects(rows, frozenset(rows)), probe)[0], Action)


# -- on a real store: what power may have lost, made by hand ---------------------------------------------------------


def test_a_lost_rename_of_a_committed_layer_is_redone(root):
    with layerstore.open(root) as store:
        layer = add(store)
    os.rename(root / "layers" / layer.id, root / "staging" / layer.txid)
    with layerstore.open(root) as store:
        assert [a.do for a in store.recovery.actions] == [Do.REPUBLISH]
        assert store.check(content=True).sound
    assert violations(str(root)) == []


def test_a_tree_that_moved_before_it_could_be_locked_is_not_moved_without_its_lock(root):
    """Recovery saw it in staging/; meanwhile another handle put it in place and promised its deletion."""
    with layerstore.open(root) as store:
        layer = add(store)
    path = root / "layers" / layer.id
    os.rename(path, root / "staging" / layer.txid)   # the rename was lost with the power
    other = "import sys, layerstore\nwith layerstore.open(sys.argv[1]) as s: s.delete_layer(sys.argv[2])"
    locked = []

    def meanwhile(point, when):
        if (point, when) == ("recover.lock", "before") and not path.exists():
            killed = subprocess.run(
                [sys.executable, "-c", other, str(root), layer.id], check=False,
                env={**os.environ, "LAYERSTORE_FAULT": "delete.lock:before:kill"},
            )
            assert killed.returncode == -signal.SIGKILL
            assert path.exists()
        if (point, when) == ("delete.rename", "before"):
            fd = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                locked.append(False)
            except BlockingIOError:
                locked.append(True)
            finally:
                os.close(fd)

    previous = faults.install(meanwhile)
    try:
        layerstore.open(root).close()
    finally:
        faults.install(previous)
    assert locked == [True]
    assert violations(str(root)) == []


@pytest.mark.parametrize("damage", ["lost", "torn", "empty"])
def test_a_lost_or_torn_side_file_is_written_again(root, damage):
    with layerstore.open(root) as store:
        layer = add(store)
    path = root / "layers" / layer.id / "layer"
    whole = path.read_bytes()
    path.unlink()
    if damage != "lost":
        path.write_bytes(whole[:len(whole) // 2] if damage == "torn" else b"")
    with layerstore.open(root) as store:
        assert [a.do for a in store.recovery.actions] == [Do.REWRITE_SIDE]
    assert path.read_bytes() == whole


def test_a_lost_image_file_is_written_again_from_the_promise(root, tmp_path):
    with layerstore.open(root) as store:
        pulled = store.pull(image(tmp_path).reference)
        documents = store.image_documents(pulled.id)
    (root / "images" / pulled.id).unlink()
    with layerstore.open(root) as store:
        assert [a.do for a in store.recovery.actions] == [Do.REWRITE_IMAGE]
        assert store.image_documents(pulled.id) == documents


def test_delete_and_create_again_then_both_renames_lost_is_sorted_out_by_path(root):
    with layerstore.open(root) as store:
        first = add(store, {"old": b""}, id="a" * 64)
        store.delete_layer(first.id)
        second = add(store, {"new": b""}, id="a" * 64)
    # the power took both renames: the old tree is back at the path, the new one still in staging
    os.rename(root / "layers" / second.id, root / "staging" / second.txid)
    os.rename(root / "trash" / first.txid, root / "layers" / first.id)
    with layerstore.open(root) as store:
        assert [a.do for a in store.recovery.actions] == [Do.TO_TRASH, Do.REPUBLISH]
        with store.layer_paths("a" * 64) as (diff,):
            assert os.listdir(diff) == ["new"]
    assert violations(str(root)) == []


def test_a_committed_layer_whose_tree_is_gone_is_quarantined_not_served(root):
    with layerstore.open(root) as store:
        layer = add(store)
    shutil.rmtree(root / "layers" / layer.id)
    with layerstore.open(root) as store:
        assert [a.do for a in store.recovery.actions] == [Do.QUARANTINE]
        with pytest.raises(layerstore.errors.LayerDamagedError):
            store.layer(layer.id)
        assert [x.state for x in store.layers()] == ["quarantined"]
        with pytest.raises(layerstore.errors.LayerDamagedError):
            add(store)


def test_a_promised_layer_whose_tree_is_gone_takes_its_image_with_it(root, tmp_path):
    made = image(tmp_path)

    def scenario():
        with layerstore.open(root) as store:
            store.pull(made.reference)

    killed_at("txn.claim", "after", scenario)
    shutil.rmtree(root / "staging" / tree_names(root, "staging")[0])
    with layerstore.open(root) as store:
        assert store.images() == []
        assert sorted(x.state for x in store.layers()) == ["committed", "committed", "quarantined"]


def test_a_stranger_at_a_layers_place_is_set_aside_as_evidence(root):
    with layerstore.open(root) as store:
        layer = add(store)
    os.rename(root / "layers" / layer.id, root / "staging" / layer.txid)
    (root / "layers" / layer.id).mkdir()
    (root / "layers" / layer.id / "evidence").write_bytes(b"?")
    with layerstore.open(root) as store:
        assert store.check(content=True).sound
    (kept,) = tree_names(root, "quarantine")
    assert (root / "quarantine" / kept / "evidence").exists()


def test_below_the_mark_recovery_does_not_look(root):
    with layerstore.open(root) as store:
        for n in range(20):
            add(store, {f"f{n}": b""})
        store.checkpoint()
    with layerstore.open(root, readonly=True) as store:
        from layerstore.recovery.recover import gather

        assert not gather(store._handle).layers


def test_strays_in_staging_and_trash_are_removed_but_a_live_one_is_left(root):
    with layerstore.open(root) as store:
        add(store)
    (root / "staging" / ("a" * 32)).mkdir()
    (root / "trash" / "garbage").mkdir()
    (root / "images" / "x").write_bytes(b"")
    import fcntl

    (root / "staging" / ("b" * 32)).mkdir()
    fd = os.open(root / "staging" / ("b" * 32), os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with layerstore.open(root) as store:
        assert sorted(a.key for a in store.recovery.actions) == ["images/x", "staging/" + "a" * 32, "trash/garbage"]
        assert tree_names(root, "staging") == ["b" * 32]
        os.close(fd)
        store.recover()
        assert tree_names(root, "staging") == []


def test_a_tree_being_staged_by_a_dead_owner_is_swept(root):
    def scenario():
        with layerstore.open(root) as store:
            store.stage(differ())

    killed_at("unpack.entry", "after", scenario)
    with layerstore.open(root) as store:
        assert [a.do for a in store.recovery.actions] == [Do.SWEEP]
        assert tree_names(root, "staging") == []


def test_a_claim_that_was_not_promised_is_rolled_back_to_staged(root):
    def scenario():
        with layerstore.open(root) as store, store.stage(differ(keyed=True)) as staged:
            store.apply_staged_layer(staged, names=["n"], big_data={"k": b"v"})

    killed_at("txn.claim", "after", scenario)
    with layerstore.open(root) as store:
        assert [a.do for a in store.recovery.actions] == [Do.RELEASE]
        assert states(store) == ["staged"]
        with store.stage(differ(keyed=True)) as staged:
            assert staged.adopted
            assert store.apply_staged_layer(staged, names=["n"], big_data={"k": b"w"}).names == ("n",)
        assert store.check(content=True).sound


def test_a_second_recovery_does_nothing_and_leaves_the_same_dump(root, tmp_path):
    made = image(tmp_path)
    killed_at("publish.rename", "after", lambda: layerstore.open(root).pull(made.reference))
    with layerstore.open(root) as store:
        assert store.recovery.actions
        first = dump(store)
        assert store.recover().clean
        assert dump(store) == first
    with layerstore.open(root) as store:
        assert store.recovery.clean
        assert dump(store) == first


def test_a_dry_run_says_the_same_and_touches_nothing(root, tmp_path):
    made = image(tmp_path)
    killed_at("publish.rename", "after", lambda: layerstore.open(root).pull(made.reference))
    def times():
        """Of all but what every reader may write: who is in."""
        return {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.suffix != ".mdb" and p.name != "pidns"}

    before = times()
    with layerstore.open(root, readonly=True) as store:
        planned = store.recovery
    assert before == times()
    assert planned.planned_only
    with layerstore.open(root) as store:
        assert [a.key for a in store.recovery.actions if a.do is Do.FINISH]
    assert {a.do for a in planned.actions} == {Do.FINISH}
    assert json.dumps(planned.as_json())


@pytest.mark.parametrize("what", ["layer", "image"])
def test_a_directory_in_the_place_of_a_side_file_does_not_keep_a_store_from_opening(tmp_path, what):
    root = tmp_path / "s"
    with layerstore.open(root) as store:
        pulled = store.pull(image(tmp_path).reference)
    path = root / "layers" / pulled.layers[0] / "layer" if what == "layer" else root / "images" / pulled.id
    path.unlink()
    (path / "inside").mkdir(parents=True)
    with layerstore.open(root) as store:
        assert store.check(content=True).sound
        (kept,) = os.listdir(root / "quarantine")
        assert os.listdir(root / "quarantine" / kept) == ["inside"]


def test_a_strange_directory_among_the_images_is_set_aside_and_does_not_keep_a_store_from_opening(tmp_path):
    root = tmp_path / "s"
    layerstore.open(root).close()
    (root / "images" / "stray" / "inside").mkdir(parents=True)
    with layerstore.open(root):
        assert os.listdir(root / "images") == []
        assert os.listdir(root / "quarantine") == ["images-stray-0"]
