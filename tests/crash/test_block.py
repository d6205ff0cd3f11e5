"""Power loss at block level: any part of the unflushed writes lost, on real ext4, xfs and btrfs; and that the rig sees it."""

import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest

from crash import block
from crash.block import plants
from crash.block.recording import About, RecordingError, record
from crash.disk.filesystems import FILESYSTEMS, WrongFilesystemError, assert_device
from crash.disk.kernel_calls import own_mounts
from crash.disk.rig import standing
from layerstore.testing import telling

pytestmark = [pytest.mark.root, pytest.mark.timeout(1800)]

EACH = 76            # states of each recording: 10 workloads on 4 file systems, and one recovery of each
FLOOR = 3000
CAUGHT_WITHIN = 60   # states in which each planted mistake must be seen


@pytest.fixture(scope="module")
def scratch():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield directory


def states(scratch, **asked):
    defaults = {"states": None, "seconds": None, "seed": 1, "workload": None, "out": None, "nested": 0, "work": scratch}
    return block.states(SimpleNamespace(**defaults | asked))


# -- what holds -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def explored(scratch):
    """Every workload recorded once on every file system; crash states of each recording, and of one recovery of each."""
    return list(states(scratch, each=EACH, nested=1))


def test_a_power_cut_that_loses_any_part_of_the_unflushed_writes_breaks_no_promise(explored, record_property):
    record_property("states", len(explored))
    bad = [(s.fs, s.workload, s.fault, s.violations, s.reproduce) for s in explored if s.violations]
    assert not bad, f"{len(bad)} of {len(explored)}: {bad[:3]}"
    assert len(explored) >= FLOOR


def test_every_workload_was_cut_on_every_file_system(explored):
    counts = Counter((s.fs, s.workload) for s in explored)
    names = {s.workload for s in explored}
    assert {"pull", "batch", "delete", "checkpoint", "gc", "pair", "everything"} <= names
    assert min(counts[fs, name] for fs in FILESYSTEMS for name in names) >= EACH // 2, counts


def test_prefixes_subsets_tears_and_acknowledgements_were_all_cut(explored):
    kinds = Counter(s.details["kind"] for s in explored)
    assert {"flushed", "prefix", "acknowledged", "subset", "drop one", "keep one", "torn"} <= kinds.keys()


def test_recovery_had_work_to_do_in_many_of_the_states(explored):
    assert sum(s.redo for s in explored) >= 0.3 * len(explored)


def test_a_power_cut_during_recovery_comes_to_the_catalog_of_an_undisturbed_recovery(explored, record_property):
    nested = [s for s in explored if s.details.get("recording", "").startswith("recovery")]
    record_property("states_in_recovery", len(nested))
    assert len(nested) >= 200
    assert {s.fs for s in nested} == FILESYSTEMS.keys()
    assert not [s for s in nested if s.violations]


def test_the_file_systems_own_checker_was_asked_and_found_them_clean(explored):
    said = Counter((s.fs, s.details["fsck"] == "clean") for s in explored if "fsck" in s.details)
    for fs in ("ext4", "xfs", "btrfs"):
        assert said[fs, True] >= 20
        assert not said[fs, False]


# -- the disk and the file systems are what they are said to be -----------------------------------------------------


def apart(fn):
    """Run *fn* in a child with mounts of its own."""
    def child():
        own_mounts()
        return fn()

    return telling(child)


def test_a_device_without_the_features_asked_for_is_refused(scratch):
    def check():
        with standing(FILESYSTEMS["ext4"], scratch) as stand:
            with pytest.raises(WrongFilesystemError):
                assert_device(FILESYSTEMS["ext4-fc"], stand.loop.device)
        wanting = replace(FILESYSTEMS["ext4-fc"], mkfs=FILESYSTEMS["ext4"].mkfs)
        with pytest.raises(WrongFilesystemError):
            with standing(wanting, scratch):
                pass
        unordered = replace(FILESYSTEMS["ext4"], options="data=writeback")
        with pytest.raises(WrongFilesystemError):
            with standing(unordered, scratch):
                pass
        return True

    assert apart(check)


def test_a_run_that_flushed_nothing_is_an_error(scratch):
    def check():
        with pytest.raises(RecordingError, match="nothing was made durable"):
            record(About("ext4", "nothing", 1), scratch, lambda _root, tape: tape.begin())
        with pytest.raises(RecordingError, match="ended with"):
            record(About("ext4", "failing", 1), scratch, lambda _root, _tape: 1 / 0)
        return True

    assert apart(check)


# -- what the rig sees ------------------------------------------------------------------------------------------------


def caught_after(scratch, fs, workload, **planted):
    """How many states it took to see what was planted; None: it was not seen."""
    limit = CAUGHT_WITHIN
    for number, state in enumerate(states(scratch, fs=[fs], workload=[workload], each=limit, fsck=1000, **planted), 1):
        if state.violations:
            return number
    return None


REAL = ("ext4", "ext4-fc", "xfs", "btrfs")


@pytest.mark.parametrize("fs", REAL)
@pytest.mark.parametrize(("mistake", "workload"), [
    ("staging without its sync", "pull"),
    ("a checkpoint without its sync", "checkpoint"),
])
def test_a_product_that_leaves_out_a_sync_is_caught(scratch, fs, mistake, workload):
    assert caught_after(scratch, fs, workload, plant=plants.RECORDED[mistake])


@pytest.mark.parametrize("fs", REAL)
def test_a_recovery_that_believes_a_committed_row_is_caught(scratch, fs):
    assert caught_after(scratch, fs, "batch", plant_oracle=plants.JUDGED["recovery does not redo what is committed"])


@pytest.mark.parametrize("fs", REAL)
def test_a_disk_that_only_says_that_it_flushed_is_caught(scratch, fs):
    assert caught_after(scratch, fs, "pull", lie=True)


def test_a_violation_is_shown_again_by_the_command_it_comes_with(scratch):
    mistake = plants.RECORDED["staging without its sync"]
    found = next(s for s in states(scratch, fs=["ext4"], workload=["pull"], each=CAUGHT_WITHIN, plant=mistake) if s.violations)
    python, *words = shlex.split(found.reproduce)
    assert python == "python"
    again = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert again.returncode == 1, again.stdout + again.stderr
    assert "1 violations" in again.stdout
    assert found.violations[0] in again.stdout
