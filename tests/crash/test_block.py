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
from crash.block import more, plain, plants
from crash.block.jobs import Job, Series, Settings, recorded
from crash.block.recording import About, RecordingError, record
from crash.disk.filesystems import FILESYSTEMS, WrongFilesystemError, assert_device
from crash.disk.kernel_calls import own_mounts
from crash.disk.rig import standing
from layerstore.testing import telling

pytestmark = [pytest.mark.root, pytest.mark.timeout(3600)]

EACH = 34            # states of each recording: 17 workloads on 4 file systems (less 2 on one); half as many of one recovery of each
FLOOR = 3000
SLICED = ("partial",)   # a few states on two file systems; the whole is for `make crash`
NOT_HERE = ("check", "gc-segments", "repair-source", "repair-parts", "repair-rest", "repair-whole")   # ``posix`` cuts a slice of these
CAUGHT_WITHIN = 60   # states of a recording in which each planted mistake must be seen …
RECORDINGS = 12      # … of one of so many: the kernel writes back when it likes, and in some makes up for a mistake


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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(more, "BY_NAME", (*more.BY_NAME, *SLICED, *NOT_HERE))
        return list(states(scratch, each=EACH, nested=1))


@pytest.mark.parametrize("name", SLICED)
def test_a_power_cut_of_what_posix_cuts_too_breaks_no_promise_where_blocks_are_shared(scratch, record_property, name):
    found = list(states(scratch, workload=[name], fs=["xfs", "btrfs"], each=8))
    record_property("states", len(found))
    assert not [(s.fs, s.fault, s.violations, s.reproduce) for s in found if s.violations]
    assert len(found) >= 16


def test_a_power_cut_that_loses_any_part_of_the_unflushed_writes_breaks_no_promise(explored, record_property):
    record_property("states", len(explored))
    bad = [(s.fs, s.workload, s.fault, s.violations, s.reproduce) for s in explored if s.violations]
    assert not bad, f"{len(bad)} of {len(explored)}: {bad[:3]}"
    assert len(explored) >= FLOOR


def test_every_workload_was_cut_on_every_file_system(explored):
    counts = Counter((s.fs, s.workload) for s in explored)
    names = {s.workload for s in explored}
    assert {"pull", "batch", "delete", "checkpoint", "gc", "pair", "everything", "create", "hurried"} <= names
    assert {"repair", "rebuild-log", "view"} <= names
    left_out = {(fs, name) for fs in FILESYSTEMS if FILESYSTEMS[fs].one_writer for name in more.SEVERAL}
    assert left_out == {("ext4-fc", "pair"), ("ext4-fc", "hurried")}
    wanted = {(fs, name) for fs in FILESYSTEMS for name in names} - left_out
    assert min(counts[each] for each in wanted) >= EACH // 2, counts


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


# -- told apart: what the same rig shows of the file systems alone ------------------------------------------------------


def test_a_superblock_torn_inside_a_block_keeps_ext4_from_mounting_without_layerstore_too(scratch):
    """Torn at 512 bytes, ext4 itself sometimes does not mount: the control has nothing of layerstore in it."""
    def check():
        settings = Settings(work=scratch, workloads={plain.NAME: plain.WORKLOAD}, seed=1, unit=512)
        series = Series(recorded(Job("ext4", plain.NAME), settings, scratch), settings, scratch)
        events = series.recording.events
        cuts = [c for c in series.plan.structured() if c.kind == "half" and events[c.tears[0][0]].offset == 0]
        return [series.state(cut, 1, series.judge(cut, 1)) for cut in cuts]

    found = apart(check)
    assert any("unmountable" in s.details for s in found)
    assert {s.outcome for s in found if "unmountable" in s.details} == {"error"}
    assert not [s.violations for s in found if s.violations]


def test_writes_torn_inside_a_block_break_no_promise_where_the_file_system_still_mounts(scratch, record_property):
    found = list(states(scratch, tear=512, fs=["ext4", "xfs"], workload=["checkpoint", "pull"], each=25))
    record_property("states", len(found))
    assert len(found) >= 95
    assert not [(s.fs, s.fault, s.violations) for s in found if s.violations]


def test_what_e2fsck_says_after_fast_commits_it_says_without_layerstore_too(scratch, explored):
    """The kernel's replay of fast commits miscounts links; where no run of ours shows it, there is nothing to compare."""
    if any(s.details.get("fsck", "clean") != "clean" for s in explored if s.fs == "ext4-fc"):
        control = states(scratch, fs=["ext4-fc"], workload=[plain.NAME], each=200, fsck=1)
        assert any(s.details["fsck"] != "clean" for s in control)


# -- what the rig sees ------------------------------------------------------------------------------------------------


def assert_caught(record_property, scratch, fs, workload, **planted):
    for seed in range(1, RECORDINGS + 1):
        found = states(scratch, fs=[fs], workload=[workload], each=CAUGHT_WITHIN, fsck=1000, seed=seed, **planted)
        if any(state.violations for state in found):
            record_property("caught", 1)
            return
    pytest.fail(f"not seen in {CAUGHT_WITHIN} states of {RECORDINGS} recordings")


REAL = ("ext4", "ext4-fc", "xfs", "btrfs")


@pytest.mark.parametrize("fs", REAL)
@pytest.mark.parametrize(("mistake", "workload"), [
    ("staging without its sync", "pull"),
    ("a checkpoint without its sync", "checkpoint"),
])
def test_a_product_that_leaves_out_a_sync_is_caught(record_property, scratch, fs, mistake, workload):
    assert_caught(record_property, scratch, fs, workload, plant=plants.RECORDED[mistake])


@pytest.mark.parametrize(("fs", "mistake", "workload"), [
    ("ext4", "a repair that exchanges before it syncs", "repair-source"),
    ("ext4", "what is put back is told before it syncs", "repair-whole"),
    ("ext4", "a view that is switched before it syncs", "view"),
    ("xfs", "a database that gets its name before it syncs", "rebuild-log"),   # ext4 writes what is renamed over a file
])
def test_what_mends_or_shows_before_it_syncs_is_caught(record_property, scratch, fs, mistake, workload):
    assert_caught(record_property, scratch, fs, workload, plant=plants.RECORDED[mistake])


@pytest.mark.parametrize("fs", REAL)
def test_a_recovery_that_believes_a_committed_row_is_caught(record_property, scratch, fs):
    assert_caught(record_property, scratch, fs, "batch", plant_oracle=plants.JUDGED["recovery does not redo what is committed"])


@pytest.mark.parametrize("fs", REAL)
def test_a_disk_that_only_says_that_it_flushed_is_caught(record_property, scratch, fs):
    assert_caught(record_property, scratch, fs, "pull", lie=True)


def test_a_violation_is_shown_again_by_the_command_it_comes_with(scratch):
    mistake = plants.RECORDED["staging without its sync"]
    found = next(s for seed in range(1, RECORDINGS + 1) for s in states(
        scratch, fs=["ext4"], workload=["pull"], each=CAUGHT_WITHIN, plant=mistake, seed=seed) if s.violations)
    python, *words = shlex.split(found.reproduce)
    assert python == "python"
    again = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert again.returncode == 1, again.stdout + again.stderr
    assert "1 violations" in again.stdout
    assert found.violations[0] in again.stdout
