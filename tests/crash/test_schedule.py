"""Real processes on one store in every order within a preemption bound, one of them killed at each step, and at random.

A schedule is its list of choices: run again it takes the same steps. Negative controls: a check outside of the
transaction that acts on it, and a sweep of what is alive, are found.
"""

import os
import tempfile
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest

from crash import schedule
from crash.schedule import search
from crash.schedule.controller import Controller, Run, Step
from crash.schedule.scenarios import Scenario, build
from crash.schedule.search import Plan
from layerstore.lifecycle import catalog
from layerstore.recovery import looking, recover
from layerstore.system import flock, fs
from layerstore.verbs import apply, claiming, delete
from layerstore.verbs.check import layers as check_layers
from layerstore.verbs.check import structure
from layerstore.lifecycle.machine import fire
from layerstore.lifecycle.states import Kind, Trigger

FLOORS = {   # at one preemption, a kill at each step of a schedule that begins with each process, and a few random ones
    "pulls": 280, "same-layer": 130, "same-id": 100, "delete-parent": 100, "delete-pull": 200, "checkpoint": 150, "gc-stage": 100,
    "open-owner": 120, "open-delete": 100, "three": 150,
    "adopt-gc": 55, "two-recover": 9,   # the last: random ones only
    "repair-delete": 9, "repair-open": 9, "repair-twice": 9, "repair-gc": 9, "rebuild-open": 9, "rebuild-twice": 9,
    "take-delete": 95, "resume-gc": 95, "resume-twice": 95,   # without preemptions but the random ones'
}
SAMPLES = {"partial-delete": 4, "check-pull": 2, "check-delete": 2, "check-gc": 2, "check-repair": 2}   # random ones, of scenarios whose bounded ones are for `make crash`
BOUND = {"take-delete": 0, "resume-gc": 0, "resume-twice": 0}


@pytest.fixture
def work():
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as directory:
        yield Path(directory)


def options(work, name, **changed):
    return SimpleNamespace(**{
        "work": str(work), "workload": [name], "bound": 1, "random": 6, "workers": 2, "seed": 1, "show": None,
        "kill": None, "states": None, "seconds": None,
    } | changed)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FLOORS)
def test_every_schedule_of_a_bound_and_a_kill_at_each_step(work, name, record_property):
    killed = total = 0
    for state in schedule.states(options(work, name, bound=BOUND.get(name, 1))):
        assert not state.violations, (state.violations, state.reproduce)
        total += 1
        killed += state.fault != "none"
    record_property("states", total)
    assert total >= FLOORS[name]
    assert killed >= total // 4, "every second random one, and all of the middle part"


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_of_the_schedules_of_a_scenario_with_many_steps(work, name, record_property, monkeypatch):
    sampled = {name: replace(build(str(work / "images"))[name], sampled=True)}
    monkeypatch.setattr(schedule, "build", lambda _directory: sampled)
    found = list(schedule.states(options(work, name, random=SAMPLES[name])))
    assert [(state.violations, state.reproduce) for state in found if state.violations] == []
    record_property("states", len(found))
    assert len(found) >= SAMPLES[name]
    assert any(state.fault != "none" for state in found), "every second one is killed"


@pytest.fixture
def site(work):
    def make(name):
        return schedule.Site(build(str(work / "images"))[name], str(work / name))

    return make


def test_a_schedule_takes_the_same_steps_again(site):
    here = site("delete-pull")
    first = here.execute(Plan(seed="any"))
    assert sum(step.preempts for step in first.steps) > 3
    again = here.execute(Plan(tuple(first.choices)))
    assert [(s.chosen, s.label) for s in again.steps] == [(s.chosen, s.label) for s in first.steps]
    assert again.results == first.results


def test_the_printed_command_shows_the_same_state(work):
    shown = next(s for s in schedule.states(options(work, "same-layer", bound=0, workers=1)) if s.fault != "none")
    words = shown.reproduce.split()
    other = work / "other"
    other.mkdir()
    (again,) = schedule.states(options(
        other, "same-layer", show=words[words.index("--show") + 1], kill=int(words[words.index("--kill") + 1]),
    ))
    assert (again.fault, again.outcome, again.details) == (shown.fault, shown.outcome, shown.details)


def test_choices_are_read_as_they_are_written():
    assert search.written([0, 0, 0, 1, 0]) == "0x3,1x1,0x1"
    assert search.read("0x3,1x1,0x1") == (0, 0, 0, 1, 0)


def test_a_process_that_polls_a_lock_is_not_run_until_it_can_have_it(site):
    """The second wants the same content as the first, and joins: it goes on when the first lets go, not before."""
    here = site("same-layer")
    here.execute(Plan())

    class Eager(Plan):
        def chooser(self):
            return lambda step, enabled, current: 0 if 0 in enabled and step < 13 else max(enabled)

    run = here.execute(Eager())
    waits = [n for n, step in enumerate(run.steps) if step.label.startswith("wait")]
    assert 1 <= len(waits) <= 3, "it was tried again and again, or never waited"
    assert run.results == ["ok", "ok"]


# -- what does not happen is an error ----------------------------------------------------------------------------------


def test_a_choice_that_cannot_be_made_is_an_error(site):
    with pytest.raises(AssertionError, match="cannot go on"):
        site("same-layer").execute(Plan((0,) * 500))


def test_a_kill_at_a_step_that_is_not_reached_is_an_error(site):
    with pytest.raises(AssertionError, match="no step 9999"):
        site("same-layer").execute(Plan(kill=9999))


def test_a_process_that_dies_by_itself_is_an_error():
    with pytest.raises(AssertionError, match="died by itself"):
        Controller([lambda: lambda: os._exit(3)], Plan().chooser()).run()


def test_a_process_that_fails_otherwise_than_it_may_is_a_violation(work):
    broken = Scenario("broken", lambda root, ledger: None, [lambda store, ledger: 1 / 0])
    state = schedule.Site(broken, str(work / "broken")).state(Plan(), 1)
    assert any("ZeroDivisionError" in each for each in state.violations)


def test_a_deadlock_is_a_violation(work):
    def one_then_other(first, second):
        def part(store, ledger):
            with flock.locked_dir(store._handle.dirs[first]), flock.locked_dir(store._handle.dirs[second]):
                pass

        return part

    locks = Scenario("locks", lambda root, ledger: None,
                     [one_then_other("images", "uppers"), one_then_other("uppers", "images")])
    here = schedule.Site(locks, str(work / "locks"))
    found = [here.judged(plan, run, 1) for plan, run in search.bounded(here.execute, 1)]
    assert any("deadlock" in each for state in found for each in state.violations)


# -- negative controls -------------------------------------------------------------------------------------------------


def caught(work, name, **changed):
    return next((s for s in schedule.states(options(work, name, workers=1, **changed)) if s.violations), None)


def test_a_claim_tested_outside_of_its_transaction_is_found(work, monkeypatch):
    real, decided = claiming._is_duplicate, {}
    claim = claiming.claim

    def early(handle, batch):
        with handle.read() as view:
            for member in batch.members:
                decided[member.layer_id] = real(view, member)
        return claim(handle, batch)

    monkeypatch.setattr(apply, "claim", early)
    monkeypatch.setattr(claiming, "_is_duplicate", lambda txn, member: decided[member.layer_id])
    assert caught(work, "same-id") is not None


def test_users_looked_for_outside_of_the_deletion_s_transaction_are_found(work, monkeypatch):
    def early(handle, layer_id, *, wait):
        with handle.read() as view:
            if catalog.users(view, layer_id):
                raise delete.InUseError("used")
            txid = catalog.tree_of(view, layer_id)[0]
        handle.update("delete", lambda txn: fire(txn, Kind.LAYER, txid, Trigger.DELETE, txid=txid))
        return delete.finish_all(handle, [(txid, layer_id)], wait=wait)

    monkeypatch.setattr(delete, "delete_layer", early)
    found = caught(work, "delete-parent")
    assert found is not None and found.fault == "none"


def test_a_sweep_of_a_live_staging_directory_is_found(work, monkeypatch):
    """A recovery that takes every staging tree without a lock for a dead one's."""
    lock_tree = flock.lock_tree

    def none(dir_fd, name, *, shared=False, wait=None, point="tree.lock"):
        if point == "recover.lock":
            return None
        return lock_tree(dir_fd, name, shared=shared, wait=wait, point=point)

    monkeypatch.setattr(looking, "_is_held", lambda *_: False)
    monkeypatch.setattr(recover.flock, "is_locked", lambda *_args, **_options: False)
    monkeypatch.setattr(flock, "lock_tree", none)
    found = caught(work, "open-owner")
    assert found is not None and found.fault == "none"


def test_a_collection_of_what_is_staged_and_alive_is_found(work, monkeypatch):
    lock_tree = flock.lock_tree

    def shared(dir_fd, name, *, shared=False, wait=None, point="tree.lock"):
        """The owner's lock and gc's do not exclude each other."""
        return lock_tree(dir_fd, name, shared=shared or point in ("gc.lock", "stage.lock"), wait=wait, point=point)

    monkeypatch.setattr(flock, "lock_tree", shared)
    found = caught(work, "gc-stage")
    assert found is not None


def shared_for(monkeypatch, *points):
    """Locks that two may have at once."""
    lock_tree = flock.lock_tree

    def lock(dir_fd, name, *, shared=False, wait=None, point="tree.lock"):
        return lock_tree(dir_fd, name, shared=shared or point in points, wait=wait, point=point)

    monkeypatch.setattr(flock, "lock_tree", lock)


def first_found(site, name, most):
    here = site(name)
    found = (here.judged(plan, run, 1) for plan, run in search.bounded(here.execute, 1))
    return next((state for state in islice(found, most) if state.violations), None)


def test_two_repairs_of_a_layer_that_do_not_exclude_each_other_are_found(site, monkeypatch):
    shared_for(monkeypatch, "repair.lock")
    assert first_found(site, "repair-twice", 60) is not None


def first_switched(site, name):
    """The first process runs some steps, then the other as far as it can, then the first: the first violation of such."""
    class Switched(Plan):
        def chooser(self):
            return lambda step, enabled, current: min(enabled) if step < at else max(enabled)

    here = site(name)
    for at in range(2, 60, 4):
        state = here.judged(Plan(), here.execute(Switched()), 1)
        if state.violations:
            return state
    return None


def test_a_check_that_does_not_look_again_is_found(site, monkeypatch):
    """What it saw of a layer that was deleted meanwhile is no finding."""
    def at_once(_handle, look, _hashing):
        look.wait()
        return look

    monkeypatch.setattr(check_layers, "end", at_once)
    found = first_switched(site, "check-delete")
    assert found is not None
    assert any("a check found what is not so" in each for each in found.violations)


def test_a_check_that_others_wait_for_is_found(site, monkeypatch):
    journal = structure.journal

    def locked(handle, *, content):
        with flock.locked_dir(handle.dirs["images"]):
            yield from journal(handle, content=content)
            fs.exists(handle.dirs["images"], "a step")

    monkeypatch.setattr(structure, "journal", locked)
    found = first_switched(site, "check-pull")
    assert found is not None
    assert "one waited for another" in found.violations


def test_a_schedule_that_cannot_be_run_again_is_tried_again_and_then_an_error():
    calls = []

    def execute(plan, fails=2):
        calls.append(plan)
        if plan.choices and len(calls) <= 1 + fails:
            plan.chooser()(0, (1 - plan.choices[0],), None)
        return Run([Step((0, 1), 0, "step", None)] if not plan.choices else [])

    (_, _), (plan, _) = search.bounded(execute, 1)
    assert plan.choices == (1,) and len(calls) == 1 + 3
    calls.clear()
    with pytest.raises(search.OtherScheduleError, match="step 0: 1 cannot go on"):
        list(search.bounded(lambda plan: execute(plan, fails=3), 1))
    assert len(calls) == 1 + search.TRIES


def test_two_rebuilds_that_do_not_exclude_each_other_are_found(site, monkeypatch):
    lock_root = flock.lock_root
    monkeypatch.setattr(flock, "lock_root", lambda fd, *, exclusive, wait=60.0: lock_root(fd, exclusive=False, wait=wait))
    assert first_found(site, "rebuild-twice", 60) is not None
