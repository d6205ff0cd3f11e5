"""SIGKILL at every fault point of every workload, at every fault point of the recovery that follows, and further down.

Every kill is proved to have landed. A recovery that was killed comes to the same catalog as one that was not. Negative
controls show that the rig catches what it is there for.
"""

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

import layerstore
from crash import points
from crash.content import TREES
from crash.workloads import Images
from layerstore.dedup import places
from layerstore.recovery import acting, batches, mending, mounting, moving, recover
from layerstore.recovery.planner import Do
from layerstore.testing import CrashExplorer, FaultNotReachedError, Passing, kill_at, passings, reopen
from layerstore.verbs import begin

ROOT = Path(__file__).parents[2]
FLOORS = {   # workload: (states at the first level, states in all), with some margin: they are counts, not times
    "pull": (100, 1600), "apply": (115, 1000), "batch": (70, 700), "delete": (44, 350), "image-delete": (125, 1200),
    "checkpoint": (120, 800), "gc": (85, 700), "adopt": (44, 320), "take": (48, 100), "resume": (55, 350), "create": (70, 1000),
    "recovery": (48, 1000), "repair": (76, 110), "repair-whole": (50, 55), "beneath": (70, 90),
}
SLICES = {   # a share of the first level, no second one, and a floor: the whole is for `make crash`
    "partial": (0.25, 15), "repair-source": (0.06, 4), "repair-parts": (0.04, 5), "repair-rest": (0.4, 3), "check": (0.3, 3),
    "gc-segments": (0.3, 4), "everything": (0.25, 100),
}


@pytest.fixture
def work():
    """On a RAM disk: a kill does not lose what was written, and nothing is to wait for a disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as directory:
        yield Path(directory)


def explored(work, name, levels):
    workload = points.workloads(str(work / "images"))[name]
    home = work / name
    home.mkdir()
    return points.explorer_of(workload, str(home)).explore(points.shares(name, levels), workers=2)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FLOORS)
def test_every_fault_point_times_every_fault_point_of_the_recovery(work, name, record_property):
    first = total = 0
    for outcome in explored(work, name, (1.0, 1.0, 0.01)):
        assert not outcome.violations, outcome
        total += 1
        first += len(outcome.killed_at) == 1
    record_property("states", total)
    assert (first, total) >= FLOORS[name], (first, total)
    assert total >= FLOORS[name][1], (first, total)


@pytest.mark.parametrize("name", SLICES)
def test_a_slice_of_what_has_the_steps_of_others_and_some_of_its_own(work, name, record_property):
    share, floor = SLICES[name]
    found = list(explored(work, name, (share,)))
    assert not [str(outcome) for outcome in found if outcome.violations]
    record_property("states", len(found))
    assert len(found) >= floor


def test_a_partial_pull_passes_the_points_of_sharing_and_of_going_on(work):
    workload = points.workloads(str(work / "images"))["partial"]
    passed = {each.point for each in points.explorer_of(workload, str(work)).points()}
    assert passed >= {"stage.spool.create", "stage.spool.keep", "stage.over.unlink", "reader.lock", "delete.lock", "delete.rename"}


@pytest.mark.root
@pytest.mark.timeout(1800)
def test_mounting_and_unmounting_killed_at_every_fault_point_lose_nothing_that_was_written(work, record_property):
    found = list(mounted(work))
    assert not [state for state in found if state.violations]
    record_property("states", len(found))
    assert len(found) >= 180


@pytest.mark.root
def test_a_recovery_that_throws_a_writable_mount_away_is_caught(work, monkeypatch):
    monkeypatch.setattr(mounting, "forget", partial(mounting.forget, keep_upper=False))
    assert any("no row any more" in line for state in mounted(work, "1") for line in state.violations)


def mounted(work, levels="1,1"):
    return points.states(SimpleNamespace(work=str(work), workload=["mount"], levels=levels, seed=1, show=None))


def test_recovery_has_work_to_do_in_a_good_part_of_the_states(work):
    outcomes = list(explored(work, "delete", (1.0,)))
    assert sum(bool(o.verdict.redo) for o in outcomes) >= 0.3 * len(outcomes)


def test_the_wreck_is_in_every_state_at_once(work):
    workload = points.workloads(str(work / "images"))["recovery"]
    explorer = points.explorer_of(workload, str(work))
    explorer.points()
    with layerstore.open(work / "start" / "store", readonly=True) as store, store._handle.read() as view:
        states = {row["state"] for _, row in view.scan("layers")}
        assert states >= {"staging", "staged", "creating", "incomplete", "committed", "deleting", "gone"}
        assert len(store.recovery.actions) >= 4


def test_one_state_can_be_shown_again(work):
    options = SimpleNamespace(
        work=str(work), workload=["delete"], levels="1", workers=1, seed=1, states=None, seconds=None, out=None,
        show="txn.delete:after:1/delete.rename:after:1",
    )
    (state,) = points.states(options)
    assert state.fault == "kill txn.delete:after:1/delete.rename:after:1"
    assert state.redo and not state.violations


def test_the_command_line_shows_a_state_again():
    done = subprocess.run(
        [sys.executable, "-m", "crash", "run", "points", "--workload", "adopt", "--show", "txn.claim:after:1"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "1 states" in done.stdout and "1 committed" in done.stdout


# -- negative controls: the rig catches what it is there for -----------------------------------------------------------


def test_a_kill_that_does_not_land_is_an_error(work):
    with pytest.raises(FaultNotReachedError):
        kill_at(Passing("no.such.point", "before", 1), lambda: reopen(str(work / "s")))
    with pytest.raises(AssertionError, match="without any fault"):
        passings(lambda: 1 / 0)
    explorer = points.explorer_of(points.workloads(str(work / "images"))["adopt"], str(work))
    with pytest.raises(FaultNotReachedError):
        explorer.show([Passing("txn.claim", "after", 99)])


def first_bad(work, name, levels=(1.0,)):
    return next((outcome for outcome in explored(work, name, levels) if outcome.violations), None)


SABOTAGES = {
    "recovery trusts an incomplete batch and commits without moving its trees":
        ("batch", batches, "_into_place", lambda original: lambda handle, txid, row: True),
    "recovery does not look for strays":
        ("pull", recover, "_strays", lambda original: lambda handle, subjects: ({}, ())),
    "the side file is not written":
        ("batch", moving, "write_side_file", lambda original: lambda *a: None),
    "the image's file is not written":
        ("pull", batches, "write_image_file", lambda original: lambda *a: None),
    "a deletion is acknowledged before the tree is moved away":
        ("delete", moving, "to_trash", lambda original: lambda *a: None),
    "a layer that content is taken from is not held":
        ("partial", places, "ReaderLock", lambda original: lambda *a, **k: SimpleNamespace(close=lambda: None)),
    "a tree is gone on with as it was left":
        ("partial", begin.spool, "start_over", lambda original: lambda *a, **k: None),
}


@pytest.mark.parametrize("name", SABOTAGES)
def test_a_planted_mistake_is_caught(work, name, monkeypatch):
    workload, target, function, replacement = SABOTAGES[name]
    monkeypatch.setattr(target, function, replacement(getattr(target, function)))
    try:
        assert first_bad(work, workload) is not None
    except AssertionError as error:   # the program itself fails, before any kill
        assert "without any fault" in str(error)


def test_a_repair_that_is_ended_without_the_txid_that_it_was_to_give_is_caught(work, monkeypatch):
    monkeypatch.setattr(mending, "_give_txid", lambda *_: None)
    workload = points.workloads(str(work / "images"))["repair-parts"]
    bad = points.explorer_of(workload, str(work)).show([Passing("repair.mkdir", "after", 4)])
    assert any("layer-quarantined" in each for each in bad.violations)


def test_a_sweep_that_forgets_the_tree_is_caught(work, monkeypatch):
    """By the oracle's own look at the directories: the next recovery, which would sweep the stray, does not look."""
    monkeypatch.setitem(acting.ACTIONS, Do.SWEEP, acting._drop_row)
    monkeypatch.setattr(recover, "_strays", lambda handle, subjects: ({}, ()))
    bad = first_bad(work, "adopt")
    assert bad is not None and any("no row knows it" in each for each in bad.violations)


def test_a_recovery_that_comes_to_another_catalog_when_it_was_killed_is_caught(work):
    """This one leaves a mark of every attempt."""
    def scarred(root):
        with layerstore.open(root) as store:
            store.take_lease(f"recovered-{len(store.leases())}", [])

    def run(root, ledger):
        with layerstore.open(root) as store:
            store.checkpoint()

    explorer = CrashExplorer(work, lambda root, ledger: reopen(root), run, recover=scarred)
    bad = [outcome for outcome in explorer.explore((1.0, 1.0)) if outcome.violations]
    assert bad
    assert all("another catalog" in " ".join(each.violations) for each in bad)
    assert all(os.path.isdir(each.directory) for each in bad), "what was found is left to be looked at"


def test_the_same_seed_draws_the_same_states(work):
    drawn = [
        sorted(str(o.killed_at) for o in points.explorer_of(
            points.workloads(str(work / "images"))["adopt"], str(home),
        ).explore((0.2, 0.1), seed=seed, workers=workers))
        for home, seed, workers in ((work, 7, 1), (work, 7, 2), (work, 8, 1))
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_trees_and_images_of_the_workloads_are_known_to_the_oracle(work):
    images = Images(str(work))
    assert all(each.diff_id in TREES for picture in (images.first, images.second) for each in picture.layers)
