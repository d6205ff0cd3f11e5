"""The model: its small scopes are closed without a violation, and every broken row or rule has a counter-example."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import layerstore
from crash.model.explore import Explorer
from crash.model.process import Proc, follow
from crash.model.rules import PRODUCT, Rules
from crash.model.scopes import SCOPES
from crash.model.space import Space
from crash.model.world import (
    LAYERS, STAGING, TRASH, Tree, World, canonical, losses, move, syncfs, write_side,
)
from layerstore.lifecycle import states
from layerstore.system import faults
from layerstore.recovery.planner import Do
from layerstore.lifecycle.states import State
from storekit import add, differ, killed_at

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.timeout(1800)


def explored(scope, rules=PRODUCT):
    return Explorer(SCOPES[scope], rules).run()


# -- the product's protocol ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scope", "floor"), [("one", 4_000), ("two", 90_000), ("fetch", 20_000), ("pair", 20_000), ("small", 1_200_000)])
def test_every_state_of_the_scope_is_visited_and_none_violates_anything(scope, floor, record_property):
    result = Explorer(SCOPES[scope], keep=False).run()
    assert (result.violation, result.closed) == (None, True)
    assert result.states >= floor
    record_property("model_states", result.states)


def test_the_planner_is_asked_in_every_cell_that_can_be_reached_and_in_no_other(monkeypatch):
    """Also that the worlds are rich enough: each lost rename, each interrupted deletion is met."""
    from crash.model import resting
    from layerstore.recovery import planner

    asked = set()
    decide = planner.decide

    def recorded(row, facts):
        asked.add((row["state"], "+".join(sorted(facts.places)) or "nowhere"))
        return decide(row, facts)

    monkeypatch.setattr(planner, "decide", recorded)
    resting._decide.cache_clear()
    for scope in ("one", "two", "pair"):
        explored(scope)
    assert asked == {
        ("staging", "nowhere"), ("staging", "staging"), ("staged", "staging"), ("creating", "staging"),
        ("incomplete", "staging"), ("incomplete", "layers"), ("committed", "layers"), ("committed", "staging"),
        ("deleting", "layers"), ("deleting", "staging"), ("deleting", "trash"),
        ("gone", "trash"), ("gone", "layers"), ("gone", "staging"), ("gone", "nowhere"),
        # seen so only by who has no lock and looked while it was moved; the transaction finds the row changed
        ("incomplete", "nowhere"), ("committed", "nowhere"), ("deleting", "nowhere"),
    }


# -- a broken table --------------------------------------------------------------------------------------------------

USED = [   # quarantine, repair, and the rebuild of a lost database, are not in the model
    row for row in states.TRANSITIONS if row.kind is states.Kind.LAYER
    and State.QUARANTINED not in (row.source, row.dest)
    and row.trigger not in (states.Trigger.ADOPT, states.Trigger.REPAIR, states.Trigger.MEND)
]


@pytest.mark.parametrize("row", USED, ids=lambda row: f"{row.trigger}-from-{row.source}")
def test_without_any_row_of_the_table_the_model_comes_to_a_stop(row, monkeypatch):
    """It is the product's table: nothing is allowed here that is not allowed there."""
    monkeypatch.delitem(states._DEST, (row.kind, row.trigger, row.source))
    result = explored("one")
    assert result.violation == f"the table has no {row.trigger.value!r} from {row.source.value!r}"
    assert result.trace


def test_a_row_that_leads_elsewhere_has_a_counter_example(monkeypatch):
    """A roll back that forgets the tree instead of keeping it staged."""
    monkeypatch.setitem(states._DEST, ("layer", "release", "creating"), State.ABSENT)
    assert explored("one").violation is not None


@pytest.mark.parametrize(("state", "place", "do", "what"), [
    (State.COMMITTED, "staging", Do.LEAVE, "T1 (layers/A) is acknowledged, but is in staging/"),
    (State.STAGED, "staging", Do.WAIT, "recovery does not come to an end"),
    (State.DELETING, "layers", Do.LEAVE, "after a recovery that was alone T1 is still deleting"),
    (State.COMMITTED, "layers", Do.REWRITE_SIDE, "a second recovery finds something to do"),
    (State.GONE, "layers", Do.LEAVE, "T1 was deleted, acknowledged, and is back in layers/"),
], ids=lambda value: str(value).replace(" ", "-")[:24])
def test_a_planner_that_decides_otherwise_has_a_counter_example(state, place, do, what, monkeypatch):
    """It is the product's planner, too."""
    from crash.model import resting
    from layerstore.recovery import planner

    monkeypatch.setitem(planner.CELLS, (state, frozenset({planner.Place(place)})), (do, "broken"))
    resting._decide.cache_clear()
    try:
        assert what in (explored("one").violation or "")
    finally:
        resting._decide.cache_clear()


# -- a broken rule ---------------------------------------------------------------------------------------------------

BROKEN = {
    "seal_without_sync": ("one", "its content is not durable"),
    "adopt_unseen": ("one", "its content is not durable"),
    "sweep_the_filled": ("one", "is filled, and is swept"),
    "sweep_the_resumable": ("fetch", "is to be gone on with, and is swept"),
    "adopt_half_made": ("fetch", "content is (bad|not durable)"),
    "resume_the_living": ("fetch", "content is (bad|not durable)"),
    "leave_the_spool": ("fetch", "still has its spool"),
    "finish_without_lock": ("one", "below the mark, but its side file is not durable"),
    "delete_a_path": ("two", r"T\d \(layers/A\) is acknowledged, but is in trash/"),
    "batch_layer_by_layer": ("pair", r"T\d \(layers/B\) is visible, but its parent layers/A is not"),
    "redo_only_renames": ("one", "its side file is lost or torn"),
    "skip_held_redo": ("one", "is acknowledged, but is in staging/"),
    "unlink_before_row": ("one", "is staged, but its content is bad"),
    "claim_while_deleting": ("two", r"T\d cannot move in: T\d, deleting, is at layers/A"),
    "head_after_sync": ("one", "below the mark, but its rename is not durable"),
    "trust_committed": ("one", "is acknowledged, but is in staging/"),
    "empty_uncovered": ("one", "is in layers/A, and the journal does not know it"),
    "archive_past_mark": ("two", "its way to trash is not durable"),
    "archive_unsynced": ("two", "the log has a gap"),
    "commit_before_rename": ("one", "is acknowledged, but is in staging/"),
    "sweep_the_living": ("one", "its content is (bad|not durable)"),
    "no_look_after_lock": ("one", "is not where it was found"),
    "act_unlocked": ("one", "is not where it was found"),
    "lock_in_any_order": ("pair", "deadlock"),
    "trash_last": ("two", r"T\d cannot move in: T\d, gone, is at layers/A"),
}
HARMLESS = {"mark_passes_open"}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_has_a_counter_example(rule, record_property):
    scope, what = BROKEN[rule]
    result = explored(scope, dataclasses.replace(PRODUCT, **{rule: True}))
    record_property("caught", int(result.violation is not None))
    assert result.violation is not None, f"{rule} is not noticed in {result.states} states"
    assert re.search(what, result.violation)
    assert result.trace[-1] == f"  ⇒ {result.violation}"


@pytest.mark.parametrize("scope", ["one", "two", "pair"])
def test_for_layers_alone_the_mark_need_not_be_held_back(scope):
    """Layers are redone from their rows; only an image's side file is redone from the log (docs/adr/0004)."""
    result = explored(scope, Rules(mark_passes_open=True))
    assert (result.violation, result.closed) == (None, True)


def test_every_switch_is_tried():
    assert {rule.name for rule in dataclasses.fields(Rules)} == set(BROKEN) | HARMLESS


def test_the_shortest_counter_example_reads_like_a_story():
    result = explored("one", Rules(trust_committed=True))
    assert result.trace == """\
  1 P1 open: read the log's head
      nothing
  2 P1 recovery: nothing left to do; the handle is usable
      nothing
  3 P1 stage: mkdir staging/T1
      T1 no row @staging/ [or nowhere]
  4 P1 stage: lock T1
      T1 no row @staging/ [or nowhere]
  5 P1 stage: txn begin T1
      T1 staging @staging/ [or nowhere]
  6 P1 stage: fill T1
      T1 staging @staging/ [or nowhere, content]
  7 P1 stage: say in T1 that it is filled
      T1 staging @staging/ [or nowhere, content, output]
  8 P1 syncfs, for T1
      T1 staging @staging/
  9 P1 apply: txn claim layers/A for T1, sealed with it
      T1 creating A @staging/ +
 10 P1 apply: txn promise T1
      T1 incomplete A @staging/ +
 11 P1 write the side file of T1
      T1 incomplete A @staging/ [side file] +
 12 P1 rename T1 to layers/A
      T1 incomplete A @layers/ [or staging/, side file] +
 13 P1 txn commit T1
      T1 committed A @layers/ [or staging/, side file] +
 14 the power fails
      T1 committed A @staging/ +
 15 P2 open: read the log's head
      T1 committed A @staging/ +
 16 P2 recovery: nothing left to do; the handle is usable
      T1 committed A @staging/ +
  ⇒ T1 (layers/A) is acknowledged, but is in staging/""".splitlines()


# -- its parts -------------------------------------------------------------------------------------------------------


def moved_in(**more):
    tree = Tree(State.COMMITTED, "A", at=STAGING, may=1 << STAGING, good=1, good_durable=1, **more)
    return move(write_side(World((tree,), (0,)), 0), 0, LAYERS)


def test_a_loss_of_power_takes_any_subset_of_what_is_not_durable():
    found = {(w.trees[0].at, w.trees[0].side) for w in losses(moved_in())}
    assert found == {(STAGING, 0), (STAGING, 1), (LAYERS, 0), (LAYERS, 1)}


def test_after_a_syncfs_a_loss_of_power_takes_nothing():
    assert {(w.trees[0].at, w.trees[0].side) for w in losses(syncfs(moved_in()))} == {(LAYERS, 1)}


def test_no_path_holds_two_trees_after_a_loss_of_power():
    old = Tree(State.GONE, "A", at=TRASH, may=1 << LAYERS | 1 << TRASH)
    new = Tree(State.INCOMPLETE, "A", at=STAGING, may=1 << STAGING, good=1, good_durable=1, side=1, side_durable=1)
    places = {tuple(tree.at for tree in w.trees) for w in losses(move(World((old, new), (0, 1)), 1, LAYERS))}
    assert places == {(LAYERS, STAGING), (TRASH, STAGING), (TRASH, LAYERS)}


def test_worlds_that_differ_by_their_txids_only_are_one_and_processes_follow():
    a, b = Tree(State.STAGED, at=STAGING, may=2), Tree(State.CREATING, "A", at=STAGING, may=2)
    one, change = canonical(World((a, b), (1,)))
    two, other = canonical(World((b, a), (0,)))
    assert one == two
    first, second = Proc("promise", 1, 0b10, todo=((0, 1),)), Proc("promise", 0, 0b01, todo=((0, 0),))
    assert [follow(p, c) if c else p for p, c in ((first, change), (second, other))] == [second, second]


def test_the_same_run_whatever_the_hash_seed(tmp_path):
    found = []
    for seed in ("1", "2"):
        path = tmp_path / seed
        subprocess.run(
            [sys.executable, "-m", "crash.model", "--scope", "pair", "--json", str(path)], check=True, cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.DEVNULL,
        )
        found.append({**json.loads(path.read_text())["scopes"][0], "seconds": 0})
    assert found[0] == found[1]
    assert found[0]["closed"]


def test_the_command_ends_with_1_and_prints_the_trace_of_what_it_finds():
    done = subprocess.run(
        [sys.executable, "-m", "crash.model", "--scope", "one", "--break", "head_after_sync"], check=False, cwd=ROOT,
        capture_output=True, text=True,
    )
    assert done.returncode == 1
    assert "VIOLATED: T1 (layers/A) is acknowledged and below the mark, but its rename is not durable" in done.stdout
    assert "checkpoint: read the log's head" in done.stdout


# -- the same steps as the code --------------------------------------------------------------------------------------

POINTS = {   # the model's label: the product's fault point
    r"stage: mkdir": "stage.mkdir", r"stage: lock": "stage.lock", r"stage: txn begin": "txn.begin",
    r"stage: say in": "stage.output", r"syncfs": "stage.sync", r"txn seal": "txn.seal", r"apply: txn claim": "txn.claim",
    r"apply: txn promise": "txn.promise", r"write the side file": "publish.side-file.rename",
    r"rename .* to layers": "publish.rename", r"txn commit": "txn.commit", r"delete: txn delete": "txn.delete",
    r"lock for": "lock", r"finish: lock": "lock", r"recovery: lock": "lock", r"rename .* to trash": "delete.rename",
    r"txn gone": "txn.delete.gone", r"checkpoint: syncfs": "checkpoint.sync", r"checkpoint: txn mark": "txn.checkpoint",
    r"checkpoint: unlink": "checkpoint.empty.unlink", r"checkpoint: txn empty": "txn.empty",
    r"archive: write": "archive.rename", r"archive: txn": "txn.archive", r"txn (sweep|discard)": "txn.drop",
    r"unlink": "unlink", r"recovery: unlink": "unlink", r"txn release": "txn.recover.release",
    r"discard: txn": "txn.drop", r"discard: unlink": "unlink",
}
ALIKE = {
    "recover.lock": "lock", "delete.lock": "lock", "recover.publish": "publish.rename", "txn.recover.drop-row": "txn.drop",
    "recover.sweep.unlink": "unlink", "recover.stray.unlink": "unlink", "txn.discard": "txn.drop", "discard.unlink": "unlink",
}


def passed(fn):
    """The fault points that *fn* passes, of those that the model has steps for."""
    seen = []
    previous = faults.install(lambda point, when: seen.append(ALIKE.get(point, point)) if when == "after" else None)
    try:
        fn()
    finally:
        faults.install(previous)
    return [point for point in seen if point in POINTS.values()]


def steps(*labels, then=()):
    """One process alone takes the steps of these labels; dies, then another takes what *then* says. Their points."""
    space = Space(SCOPES["two"])
    w, p, points = space.unpack(space.start())[0], 0, []
    for label in (*labels, "die", *then) if then else labels:
        if label == "die":
            p, points = 0, []
            continue
        found = [each for each in space.labelled(w, p, 0) if re.match(label, each[0])]
        assert found, f"{label!r} is none of {[each[0] for each in space.labelled(w, p, 0)]}"
        text, w, p, _, _ = found[0]
        points += [point for pattern, point in POINTS.items() if re.match(pattern, text)][:1]
    return points


OPEN = ("open", "recovery: nothing")
STAGE = ("stage: mkdir", "stage: lock", "stage: txn begin", "stage: fill", "stage: say in")
APPLY = ("syncfs, for", "apply: txn claim", "apply: txn promise")
PUBLISH = ("write the side", "rename .* to layers", "txn commit")
DELETE = ("delete: txn", "delete: T.* found", "lock for", "rename .* to trash", "txn gone")
CHECKPOINT = ("checkpoint: read", "checkpoint: sync", "checkpoint: txn mark", "checkpoint: unlink", "checkpoint: txn empty",
              "archive: write", "archive: txn")


def test_the_verbs_take_their_steps_in_the_order_of_the_code(root):
    def verbs():
        with store.stage(differ(keyed=True)) as staged:
            layer = store.apply_staged_layer(staged, big_data={"k": b"v"})
        store.delete_layer(layer.id)
        store.checkpoint(archive=True)

    with layerstore.open(root) as store:
        assert passed(verbs) == steps(*OPEN, *STAGE, *APPLY, *PUBLISH, *DELETE, *CHECKPOINT)


def test_discarding_takes_its_steps_in_the_order_of_the_code(root):
    with layerstore.open(root) as store:
        staged = store.stage(differ())
        assert passed(staged.discard) == steps(*OPEN, *STAGE, "discard T", "discard: txn", "discard: unlink")[-2:]


def test_sealing_and_discarding_take_their_steps_in_the_order_of_the_code(root):
    def both():
        staged.seal()
        staged.discard()

    with layerstore.open(root) as store:
        staged = store.stage(differ())
        expected = steps(*OPEN, *STAGE, "syncfs, for", "txn seal", "discard T", "discard: txn", "discard: unlink")[-4:]
        assert passed(both) == expected == ["stage.sync", "txn.seal", "txn.drop", "unlink"]


def test_what_was_left_filled_is_adopted_in_the_order_of_the_code(root):
    def again():
        with layerstore.open(root) as store, store.stage(differ(keyed=True)) as staged:
            assert staged.adopted
            store.apply_staged_layer(staged, big_data={"k": b"v"})

    layerstore.open(root).close()
    killed_at("stage.output", "after", lambda: layerstore.open(root).stage(differ(keyed=True)))
    assert passed(again) == steps(*OPEN, *STAGE, then=(*OPEN, "adopt T.*hash it", *APPLY, *PUBLISH))


RESOLVE = ("recovery: plan", "recovery: T")
KILLED = [   # where the product is killed; what the model has done by then; how it recovers
    ("stage.lock", STAGE[:1], ("open", "recovery: plan", "recovery: lock", "recovery: unlink", "recovery: nothing")),
    ("stage.output", STAGE[:4], ("open", *RESOLVE, "lock for", "txn sweep", "unlink", "recovery: nothing")),
    ("stage.sync", STAGE, ("open", "recovery: nothing")),
    ("txn.claim", (*STAGE, *APPLY[:1]), ("open", "recovery: nothing")),
    ("txn.promise", (*STAGE, *APPLY[:2]), ("open", *RESOLVE, "lock for", "txn release", "recovery: nothing")),
    ("publish.side-file.rename", (*STAGE, *APPLY),
     ("open", "recovery: plan", "recovery: promised", "finish: lock", "write the side", "rename .* to layers", "txn commit",
      "recovery: nothing")),
    ("txn.commit", (*STAGE, *APPLY, *PUBLISH[:2]),
     ("open", "recovery: plan", "recovery: promised", "finish: lock", "T. is in place", "txn commit", "recovery: nothing")),
    ("delete.lock", (*STAGE, *APPLY, *PUBLISH, *DELETE[:1]),
     ("open", *RESOLVE, "lock for", "rename .* to trash", "txn gone", "recovery: nothing")),
    ("txn.delete.gone", (*STAGE, *APPLY, *PUBLISH, *DELETE[:4]),
     ("open", *RESOLVE, "lock for", "txn gone", "recovery: nothing")),
]


@pytest.mark.parametrize(("point", "done", "recovery"), KILLED, ids=lambda each: each if isinstance(each, str) else "")
def test_recovery_takes_its_steps_in_the_order_of_the_code(root, point, done, recovery):
    def verbs():
        with layerstore.open(root) as store:
            with store.stage(differ(keyed=True)) as staged:
                layer = store.apply_staged_layer(staged, big_data={"k": b"v"})
            store.delete_layer(layer.id)

    layerstore.open(root).close()
    killed_at(point, "before", verbs)
    assert passed(lambda: layerstore.open(root).close()) == steps(*OPEN, *done, then=recovery)


def test_a_lost_rename_is_redone_in_the_order_of_the_code(root):
    with layerstore.open(root) as store:
        layer = add(store)
    os.rename(root / "layers" / layer.id, root / "staging" / layer.txid)
    (root / "staging" / layer.txid / "layer").unlink()
    assert passed(lambda: layerstore.open(root).close()) == ["lock", "publish.side-file.rename", "publish.rename"]
    space = Space(SCOPES["one"])
    w = space.world(World((Tree(State.COMMITTED, "A", at=STAGING, may=2, good=1, good_durable=1),), (0,)))
    p, points = 0, []
    while not space.usable[p]:
        (label, w, p, _, _), = space.labelled(w, p, 0)
        points += [point for pattern, point in POINTS.items() if re.match(pattern, label)][:1]
    assert points == ["lock", "publish.side-file.rename", "publish.rename"]
