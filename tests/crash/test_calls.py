"""Every durable call is killed, torn and cut short: nothing that was told is lost, nothing is half done."""

import argparse
from itertools import islice

import pytest

from crash import calls
from crash.shim import Calls, Fault, Shim, stream
from crash.shim.scene import NotLandedError, Scene, must_land
from crash.state import State, collect
from crash.workloads import Images, build

pytestmark = pytest.mark.timeout(1800)
SLICED = {"partial": 24, "gc-segments": 12}   # every so manyeth call: the whole, and those, is for `make crash`
NOT_HERE = ("repair-source", "repair-parts", "repair-rest", "check")
OTHERS = [name for name in calls.ONE_PROCESS if name not in ("pull", *SLICED, *NOT_HERE)]


def options(**given):
    defaults = {"workload": None, "faults": "kill,tear,short", "every": 1, "recovery_every": 0, "only": None,
                "workers": 2, "seed": 1, "states": None, "seconds": None, "sabotage": None, "work": None}
    return argparse.Namespace(**{**defaults, **given})


def explored(record_property, **given):
    tally = collect(calls.states(options(**given)))
    record_property("states", tally.states)
    assert not tally.bad, [(s.fault, s.violations[:2], s.reproduce) for s in tally.bad[:5]]
    return tally


def test_every_durable_call_of_a_pull_is_killed_and_every_write_torn_and_cut_short(record_property):
    tally = explored(record_property, workload=["pull"])
    assert tally.states > 200
    assert tally.outcomes["committed"] > 20, "kills after the commit point roll forward"
    assert tally.outcomes["rolled-back"] > 100, "kills before it roll back"
    assert tally.redo > tally.states * 0.3


def test_the_recovery_of_a_killed_pull_is_killed_at_each_of_its_calls_and_converges(record_property):
    tally = explored(record_property, workload=["pull"], faults="kill", every=10, recovery_every=1)
    assert tally.states > 100


def test_a_slice_of_the_calls_of_every_other_workload(record_property):
    tally = explored(record_property, workload=OTHERS, every=12, recovery_every=25)
    assert tally.states > 200
    assert set(tally.by_workload) == set(OTHERS)


@pytest.mark.parametrize("name", SLICED)
def test_a_slice_of_the_calls_of_one_that_has_many(record_property, name):
    assert explored(record_property, workload=[name], every=SLICED[name]).states >= 4


@pytest.mark.parametrize(("mistake", "workload", "faults"), [
    ("ignores_short_writes", "pull", "short"), ("names_later", "apply", "kill"), ("deletes_in_place", "delete", "kill"),
    ("mends_in_place", "repair", "kill"), ("keeps_nothing_of_an_image", "repair-whole", "kill"),
    ("moves_the_old_database_away_first", "rebuild-log", "kill"),
])
def test_a_planted_mistake_is_caught(mistake, workload, faults):
    found = calls.states(options(workload=[workload], faults=faults, sabotage=f"crash.calls.controls:{mistake}"))
    assert any(state.violations for state in islice(found, 250)), f"nobody noticed a product that {mistake}"
    found.close()


def preloaded(given):
    """In a process with the shim: faults that do not land, and whether that is noticed."""
    scene = Scene(build(Images(f"{given.work}/images"))["delete"], f"{given.work}/scene", Shim())
    calls_ = scene.rehearse(Calls.DURABLE)
    scene.fresh()
    end = scene.run(Calls.DURABLE, Fault.KILL, len(calls_) + 1)
    assert end.status == 0, "nothing was to be met"
    for wanted in (calls_[-1], calls_[-1]._replace(nth=len(calls_) + 1)):
        try:
            must_land(end, wanted, Fault.KILL)
        except NotLandedError as error:
            yield State("calls", "delete", "none", "kept", violations=[str(error)])


def test_a_fault_that_does_not_land_is_an_error(tmp_path):
    found = list(stream("tests.crash.test_calls", argparse.Namespace(work=str(tmp_path))))
    assert len(found) == 2
    assert all("KILL was to meet" in state.violations[0] for state in found)
