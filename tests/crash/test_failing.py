"""Every call may fail: the error is typed and its word holds, nothing leaks or hangs, and nothing syncs after EIO."""

import argparse
from itertools import islice

import pytest

from crash import failing
from crash.failing import full
from crash.shim.scene import NotLandedError
from crash.state import collect

pytestmark = pytest.mark.timeout(1800)
MISTAKES = "crash.failing.controls"


def options(**given):
    defaults = {"workload": None, "scenario": "calls", "each": "one", "every": 1, "only": None, "workers": 2, "seed": 1, "states": None, "seconds": None,
                "sabotage": None, "work": None, "fs": None, "ops": None}
    return argparse.Namespace(**{**defaults, **given})


def explored(record_property, **given):
    tally = collect(failing.states(options(**given)))
    record_property("states", tally.states)
    assert not tally.bad, [(s.fault, s.violations[:2], s.reproduce) for s in tally.bad[:5]]
    return tally


def test_every_call_of_a_pull_fails_by_an_errno_that_is_drawn(record_property):
    tally = explored(record_property, workload=["pull"])
    assert tally.states > 200
    assert tally.outcomes["error"] > 200, "a failing call is an error, as a rule"


def test_every_call_of_big_data_and_deleting_fails_by_another(record_property):
    tally = explored(record_property, workload=["apply", "delete"], seed=2)
    assert tally.states > 400


def test_a_slice_of_the_calls_of_the_other_workloads_fails(record_property):
    others = ["batch", "image-delete", "checkpoint", "gc", "adopt", "resume", "take", "everything"]
    tally = explored(record_property, workload=others, every=7)
    assert tally.states > 300
    assert set(tally.by_workload) == set(others)


def test_a_slice_of_the_calls_of_a_partial_pull_fails(record_property):
    tally = explored(record_property, workload=["partial"], every=14)
    assert tally.states > 20
    assert tally.outcomes["error"] > 10


def test_a_slice_of_the_calls_of_checks_repairs_and_gc_fails(record_property):
    names = ["check", "repair-rest", "gc-segments"]   # repairs of layers are long: the whole is for `make crash`
    tally = explored(record_property, workload=names, every=60)
    assert tally.states > 12
    assert set(tally.by_workload) == set(names)


def test_a_slice_of_the_calls_of_a_rebuild_fails_and_the_next_one_is_as_good(record_property):
    tally = explored(record_property, workload=["rebuild", "rebuild-log"], every=6)
    assert tally.states > 70
    assert tally.outcomes["error"] > 40


def test_a_map_that_is_full_grows_and_one_that_another_process_grew_is_adopted(record_property):
    tally = explored(record_property, scenario="growing")
    assert tally.states == 18


def test_a_reader_that_was_killed_does_not_make_the_journal_grow(record_property):
    assert explored(record_property, scenario="readers").states == 2


@pytest.mark.root
@pytest.mark.parametrize("fs", ["ext4", "xfs"])
def test_a_disk_that_is_really_full_at_any_level_kills_nobody_and_loses_nothing(record_property, fs):
    tally = explored(record_property, scenario="full", workload=["create", "pull", "delete"], fs=[fs])
    assert tally.states == 3 * full.LEVELS
    assert tally.outcomes["error"] > full.LEVELS // 2
    assert tally.outcomes["kept"] > full.LEVELS // 2


@pytest.mark.parametrize(("mistake", "given", "says"), [
    ("retries_after_eio", {"workload": ["batch"], "each": "all", "ops": "syncfs"}, "a sync failed, and no handle was poisoned"),
    ("forgets_the_poison", {"workload": ["batch"], "each": "all", "ops": "syncfs"}, "a sync failed, and no handle was poisoned"),
    ("lets_errors_out", {"workload": ["batch"], "ops": "mkdir"}, "no error of the store's"),
    ("never_looks_for_dead_readers", {"scenario": "readers"}, "the journal has"),
])
def test_a_planted_mistake_is_caught(mistake, given, says):
    found = failing.states(options(sabotage=f"{MISTAKES}:{mistake}", **given))
    violations = [text for state in islice(found, 60) for text in state.violations]
    found.close()
    assert any(says in text for text in violations), violations


@pytest.mark.root
def test_a_sparse_lock_file_on_a_full_disk_is_caught_as_a_death():
    given = options(scenario="full", workload=["delete"], fs=["ext4"], sabotage=f"{MISTAKES}:lets_the_lock_file_be_sparse")
    assert any("SIGBUS" in text for state in failing.states(given) for text in state.violations)


@pytest.mark.root
def test_a_disk_that_never_was_full_is_an_error(monkeypatch):
    monkeypatch.setattr(full, "SLACK", {"ext4": 20 << 20})
    monkeypatch.setattr(full, "LEVELS", 2)
    monkeypatch.setattr(full.Disk, "fill", lambda self, left: open(self.ballast, "w").close())
    with pytest.raises((NotLandedError, AssertionError)):
        list(failing.states(options(scenario="full", workload=["delete"], fs=["ext4"])))
