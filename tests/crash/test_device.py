"""A device that starts failing under real ext4, xfs and btrfs: typed errors, poison, and nothing lost once it is healed."""

import tempfile
from collections import Counter
from types import SimpleNamespace

import pytest

from crash import device
from crash.device import doing
from crash.disk.crew import CrewError
from layerstore.opening.handle import Handle

pytestmark = [pytest.mark.root, pytest.mark.timeout(1800)]

FILE_SYSTEMS = {"ext4", "xfs", "btrfs"}
POINTS = 4   # of each kind of fault, on each of 3 workloads × 3 file systems: 144 runs
FLOOR = 130


@pytest.fixture(scope="module")
def scratch():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield directory


def states(scratch, **asked):
    defaults = {"states": None, "seconds": None, "seed": 1, "workload": None, "out": None, "work": scratch}
    return device.states(SimpleNamespace(**defaults | asked))


@pytest.fixture(scope="module")
def failed(scratch):
    return list(states(scratch, points=POINTS))


def test_a_failing_device_is_answered_with_typed_errors_and_costs_nothing_that_was_told(failed, record_property):
    record_property("states", len(failed))
    bad = [(s.fs, s.workload, s.fault, s.violations, s.reproduce) for s in failed if s.violations]
    assert not bad, f"{len(bad)} of {len(failed)}: {bad[:3]}"
    assert len(failed) >= FLOOR
    assert Counter(s.fs for s in failed).keys() == FILE_SYSTEMS


def test_each_fault_was_really_answered_with_eio(failed):
    assert all(s.details["failed"] >= 1 for s in failed)
    assert {"write", "flush"} == {s.fault.split()[0] for s in failed}
    assert any("all after it" in s.fault for s in failed)


def test_a_sync_that_failed_poisons_the_handle_and_nothing_is_synced_through_it_again(failed):
    """``press-on`` goes on with the same handle: what it saw that should not have been is a violation above."""
    pressed = [s for s in failed if s.workload == doing.PRESS_ON]
    assert {s.fs for s in pressed if s.details["poisoned"] and "PoisonedError" in s.details["errors"]} == FILE_SYSTEMS


def test_a_handle_that_forgets_its_poison_is_caught(scratch, monkeypatch, record_property):
    monkeypatch.setattr(Handle, "set_poison", lambda _self, _why: None)
    found = list(states(scratch, points=1, workload=["pull"], fs=["ext4"]))
    found += states(scratch, points=2, workload=[doing.PRESS_ON], fs=["ext4", "xfs"])
    assert any(s.violations for s in found)
    record_property("caught", 1)


def test_a_fault_that_is_never_asked_for_is_an_error(scratch):
    with pytest.raises(CrewError, match="it was never asked for"):
        list(states(scratch, fs=["ext4"], workload=["pull"], fail="write", nth=100_000))
