"""KeyboardInterrupt and MemoryError at every line of the mutating verbs: what comes out, what stays, who may go on.

The ordinary run takes every twenty-fifth of the points of each verb, the two exceptions in turn, and all points of what once
leaked; ``python -m crash run lines --passings 0 --both`` takes everything.
"""

import argparse

import pytest

from crash.lines import Bench, Case, judge, plan, state_of, states
from crash.lines.points import NotReachedError, Point
from crash.state import collect
from layerjournal import engine, gate, verifying
from layerstore.system import flock
from layerstore.verbs import delete

EVERY, SEED = 25, 1
FLOOR = 560


def options(work, **changed):
    given = {"work": str(work), "every": EVERY, "seed": SEED, "passings": 1, "both": False, "workers": 2, "only": None,
             "workload": None}
    return argparse.Namespace(**{**given, **changed})


@pytest.fixture
def work(tmp_path_factory):
    """In memory where there is such a place: nothing here is about the disk."""
    import os
    import tempfile

    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=base) as directory:
        yield directory


@pytest.fixture
def bench(work):
    return Bench(work)


def aimed(bench, verb, wanted, *, errors=("KeyboardInterrupt", "MemoryError")):
    """The states of all points of *verb* in functions that *wanted* names."""
    points = [p for p in sorted(bench.points(verb)) if any(p.function.startswith(each) for each in wanted)]
    assert points, f"{verb} does not come to {wanted}"
    return [state_of(bench, Case(verb, p, 1, e), "aimed", SEED) for p in points for e in errors]


@pytest.mark.timeout(2400)
def test_every_twenty_fifth_line_of_every_mutating_verb_interrupted(work, record_property):
    tally = collect(states(options(work)))
    record_property("states", tally.states)
    assert [(s.workload, s.fault, s.violations, s.reproduce) for s in tally.bad] == []
    assert tally.states >= FLOOR
    assert set(tally.by_workload) == set(Bench(work).verbs), "a verb was left out"


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("verb", "functions"), [
    ("pull-parallel", ("Pool.", "_Thread.", "Job.", "pooled", "Worker.", "running", "_stage_in_parallel", "_collect")),
    ("delete", ("Gate.", "lock_tree", "TreeLock.", "_same")),
    ("delete", ("Engine.writing", "Engine._write_once", "Engine._begin_writing", "Engine._end", "Engine.reading")),
    ("apply", ("Worker.", "Channel.", "_Hashes.", "Hasher.", "_Ahead.", "running")),
    ("stage-many", ("Creator.", "InFlight.", "Files.")),
    ("apply", ("StagedLayer.", "_fresh", "Handle.hold", "Handle.let_go", "Handle.in_use")),
    ("stage", ("has_trusted_xattrs",)),
    ("close", ("Handle.", "Journal.", "Engine.", "Descriptor.")),
    ("repair", ("ReaderLock.close", "Source.close", "Batch.run", "_taken")),
    ("rebuild", ("Verifier._step",)),
    ("open", ("Handle.__init__", "Handle._open", "Engine.__init__", "Engine._begin", "enter", "Journal.__init__")),
])
def test_what_an_interrupt_once_leaked_from_is_interrupted_at_each_of_its_lines(bench, verb, functions, record_property):
    found = aimed(bench, verb, functions)
    record_property("states", len(found))
    assert [(s.fault, s.violations, s.reproduce) for s in found if s.violations] == []


def test_both_exceptions_take_turns_and_every_point_is_in_some_plan(bench):
    points = bench.points("names")
    cases = [case for seed in range(EVERY * 40) for case in plan("names", points, options("", seed=seed))]
    assert {case.point for case in cases} == set(points)
    assert {case.error for case in cases} == {"KeyboardInterrupt", "MemoryError"}
    everything = plan("names", points, options("", every=1, passings=0, both=True))
    assert len(everything) == 2 * sum(points.values())


def test_a_state_is_shown_again_by_its_command(bench, work):
    (case, *_) = plan("names", bench.points("names"), options(work))
    state = state_of(bench, case, "once", SEED)
    again = list(states(options(work, workload=["names"], only=case.key())))
    assert [each.fault for each in again] == [state.fault]
    assert case.key() in state.reproduce


# -- negative controls: planted mistakes that must be seen -------------------------------------------------------------

KEPT = []


def test_a_tree_lock_that_is_kept_after_an_error_is_seen(bench, monkeypatch):
    made = flock.TreeLock.__init__

    def keeping(self, *args):
        KEPT.append(self)
        made(self, *args)

    monkeypatch.setattr(flock.TreeLock, "__init__", keeping)
    found = aimed(bench, "delete", ("resolve_deleting", "lock_where_it_is"), errors=["MemoryError"])
    assert any("descriptors stay open" in line for s in found for line in s.violations)
    assert any("deferred" in line for s in found for line in s.violations), "nor did it get in another process's way"


def test_a_gate_that_counts_and_does_not_count_back_is_seen(bench, monkeypatch):
    from contextlib import contextmanager

    @contextmanager
    def leaking(self):
        ticket = self._inside.draw()
        self._inside.show(ticket)
        KEPT.append(ticket)
        yield
        self._inside.give_back(ticket)

    bench.points("names")   # prepared and counted before the mistake is planted
    monkeypatch.setattr(gate.Gate, "inside", leaking)
    found = aimed(bench, "names", ("ReadTxn.get",), errors=["MemoryError"])
    assert any("stays open" in line for s in found for line in s.violations)


def test_a_lock_that_a_repair_keeps_after_an_error_is_seen(bench, monkeypatch):
    made = flock.TreeLock.__init__

    def keeping(self, *args):
        KEPT.append(self)
        made(self, *args)

    bench.points("repair")   # prepared and counted before the mistake is planted
    monkeypatch.setattr(flock.TreeLock, "__init__", keeping)
    points = [p for p in sorted(bench.points("repair")) if p.function == "_Run._under_lock"]
    found = (state_of(bench, Case("repair", each, 1, "MemoryError"), "aimed", SEED) for each in points)
    assert any("descriptors stay open" in line for s in found for line in s.violations)   # until it is seen: others wait


def test_a_rebuild_that_takes_an_error_for_damage_is_seen(bench, monkeypatch):
    step = verifying.Verifier._step

    def swallowing(self, record):
        try:
            step(self, record)
        except MemoryError as error:
            self.find("projection", repr(error), record.seq)

    bench.points("rebuild")
    monkeypatch.setattr(verifying.Verifier, "_step", swallowing)
    found = aimed(bench, "rebuild", ("Restricted.__init__",), errors=["MemoryError"])
    assert any("swallowed" in line for s in found for line in s.violations)


def test_an_interrupt_that_is_swallowed_is_seen(bench, monkeypatch):
    due = delete.checkpoint_if_due

    def swallowing(handle):
        try:
            due(handle)
        except BaseException:
            pass

    monkeypatch.setattr(delete, "checkpoint_if_due", swallowing)
    found = aimed(bench, "delete", ("checkpoint_if_due",), errors=["KeyboardInterrupt"])
    assert all(any("swallowed" in line for line in s.violations) for s in found)


def test_a_write_transaction_that_is_not_ended_makes_others_hang_and_that_is_seen(bench, monkeypatch):
    point = next(p for p in sorted(bench.points("names")) if p.function.startswith("drop_name.<locals>"))
    monkeypatch.setattr(engine.Engine, "_end", lambda self, txn: KEPT.append(txn))
    monkeypatch.setattr(judge, "HANG_SECONDS", 8)
    assert state_of(bench, Case("names", point, 1, "MemoryError"), "planted", SEED).violations


def test_a_line_that_is_not_come_to_is_an_error(bench):
    point = sorted(bench.points("names"))[0]
    with pytest.raises(NotReachedError):
        bench.try_(Case("names", point, 10_000, "MemoryError"), "never")
    nowhere = Point("layerstore/store.py", "Store.nowhere", 1, 2, 3)
    with pytest.raises(NotReachedError):
        bench.try_(Case("names", nowhere, 1, "MemoryError"), "never")
