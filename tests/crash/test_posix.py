"""Power loss at file level: what strict POSIX leaves of every workload is recovered to what was promised.

The model itself is checked first, on programs whose every outcome can be written down by hand.
"""

import argparse
import subprocess
import tempfile

import pytest

from crash import beside, posix
from crash.persistence.choose import Chooser
from crash.persistence.history import read_calls_as
from crash.persistence.image import Image, Node
from crash.posix.mistakes import MISTAKES, NotLandedError, check
from crash.shim import Call
from crash.state import collect
from crash.workloads import Images

pytestmark = pytest.mark.timeout(3000)
DIR = {0: Node("dir", 0o700, 0, 0)}


@pytest.fixture
def work():
    with tempfile.TemporaryDirectory() as directory:
        yield directory


def options(**given):
    names = ("states", "seconds", "workload", "out", "state", "then", "recording", "mistake", "work")
    return argparse.Namespace(**{**dict.fromkeys(names), "seed": 1, "workers": 2, **given})


# -- the model, by hand -------------------------------------------------------------------------------------------


def calls(*script):
    """A recording beneath /w, in words: ("create", "a"), ("write", "a", 0, b"..."), ("fsync", "a"), ("rename", "a", "b")."""
    made, inodes = [], {"": 1}
    for op, name, *rest in script:
        if op in ("create", "mkdir"):
            inodes[name] = len(inodes) + 1
        offset = rest[0] if op in ("write", "truncate") else 0o644
        other = f"/w/{rest[0]}" if op in ("rename", "link") else "O_DSYNC" if rest == ["O_DSYNC"] else ""
        data = rest[1] if op == "write" else b""
        made.append(Call(op, f"/w/{name}".rstrip("/"), other, inodes[name], offset, data, 0, 1))
        if op == "rename":
            inodes[rest[0]] = inodes.pop(name)
    return made


def outcomes(*script):
    """Every tree that may be there after a power loss at the end of *script*, as {path: content} (None: a directory)."""
    history = read_calls_as(calls(*script), "/w", DIR)
    durable = history.durable()
    end = len(history.calls)
    sure = {n for n, at in enumerate(durable) if at < end}
    open_ = [n for n in range(len(durable)) if n not in sure]
    found = []
    for bits in range(1 << len(open_)):
        tree = contents(Image(history, end, sure | {n for i, n in enumerate(open_) if bits >> i & 1}))
        if tree not in found:
            found.append(tree)
    return found


def contents(image, number=0, prefix=""):
    tree = {}
    for name, child in image._node(number).entries.items():
        node = image._node(child)
        tree[prefix + name] = None if node.kind == "dir" else image._content(node)
        tree |= contents(image, child, f"{prefix}{name}/") if node.kind == "dir" else {}
    return tree


def test_a_file_that_was_synced_may_lack_its_name():
    assert outcomes(("create", "a"), ("write", "a", 0, b"xy"), ("fsync", "a")) == [{}, {"a": b"xy"}]


def test_a_name_that_was_synced_may_lack_the_content():
    found = outcomes(("create", "a"), ("write", "a", 0, b"xy"), ("fsync", ""))
    assert sorted(t["a"] for t in found) == [b"", b"\0\0", b"xy"]


def test_syncfs_makes_everything_durable():
    assert outcomes(("create", "a"), ("write", "a", 0, b"xy"), ("syncfs", "")) == [{"a": b"xy"}]


def test_a_write_through_a_synchronous_descriptor_makes_only_itself_durable():
    found = outcomes(("create", "a"), ("fsync", ""), ("write", "a", 0, b"x"), ("write", "a", 1, b"y"),
                     ("fdatasync", "a", "O_DSYNC"))
    assert sorted(t["a"] for t in found) == [b"\0y", b"xy"]


def test_the_blocks_of_one_write_persist_one_by_one():
    found = outcomes(("create", "a"), ("fsync", ""), ("write", "a", 0, b"1" * 4096 + b"2" * 4096))
    assert {(t["a"][:1], t["a"][4096:4097]) for t in found} == {
        (b"", b""), (b"\0", b"\0"), (b"1", b""), (b"1", b"\0"), (b"\0", b"2"), (b"1", b"2")}


def test_a_rename_is_one_step_over_what_was_there():
    found = outcomes(("create", "a"), ("write", "a", 0, b"old"), ("create", "b"), ("write", "b", 0, b"new"),
                     ("syncfs", ""), ("rename", "b", "a"))
    assert found == [{"a": b"old", "b": b"new"}, {"a": b"new"}]


def test_a_rename_between_directories_needs_both_synced():
    before = (("mkdir", "d"), ("mkdir", "e"), ("create", "d/a"), ("syncfs", ""), ("rename", "d/a", "e/a"))
    assert len(outcomes(*before, ("fsync", "e"))) == 2
    assert outcomes(*before, ("fsync", "e"), ("fsync", "d")) == [{"d": None, "e": None, "e/a": b""}]


def test_a_directory_that_was_moved_is_in_one_place():
    found = outcomes(("mkdir", "d"), ("syncfs", ""), ("rename", "d", "e"), ("rename", "e", "f"))
    assert sorted(map(list, found)) == [["d"], ["e"], ["f"]]


def test_a_file_deleted_and_made_again_is_the_old_one_or_the_new_one_or_none():
    found = outcomes(("create", "a"), ("write", "a", 0, b"old"), ("syncfs", ""), ("unlink", "a"), ("create", "a"),
                     ("write", "a", 0, b"new"), ("fsync", "a"))
    assert sorted(t.get("a", b"-") for t in found) == [b"-", b"new", b"old"]


def test_a_torn_write_is_there_by_half():
    history = read_calls_as(calls(("create", "a"), ("write", "a", 0, b"z" * 4096)), "/w", DIR)
    chooser = Chooser(history, history.durable())
    torn = next(c for c in chooser.drawn(1) if c.form == "torn" and c.cut == 2)
    assert contents(Image(history, 2, *chooser.persisted(torn))) == {"a": b"z" * 2048 + bytes(2048)}


def test_what_follows_a_failed_effect_is_not_inside_its_fault_point():
    mark = [Call("mark", text, "", 0, 0, b"", 0, 1) for text in (
        "point a before", "point b before", "point b after", "point a after", "point c before", "point d before",
        "point d after")]
    made = calls(("create", "x"), ("write", "x", 0, b"1"), ("fsync", "x"))
    script = [mark[0], mark[1], made[0], mark[2], made[1], mark[3], mark[4], mark[5], mark[6], made[2]]
    history = read_calls_as(script, "/w", DIR)
    assert [each.point for each in history.effects] == ["b", "a", "a"]
    assert [each.point for each in history.syncs] == [""]


def exchanged(*synced):
    calls_ = calls(("create", "a"), ("write", "a", 0, b"1"), ("mkdir", "d"), ("create", "d/b"), ("write", "d/b", 0, b"2"), ("syncfs", ""),
                   *(("fsync", each) for each in synced))
    swap = Call("rename", "/w/a", "/w/d/b", calls_[0].inode, 2, b"", 0, 1)   # 2: RENAME_EXCHANGE
    at = 6
    history = read_calls_as([*calls_[:at], swap, *calls_[at:]], "/w", DIR)
    lost = [n for n, durable in enumerate(history.durable()) if durable > len(history.calls)]
    sure = set(range(len(history.effects))) - set(lost)
    return [contents(Image(history, len(history.calls), persisted)) for persisted in (sure, sure | set(lost))]


def test_two_names_that_were_exchanged_are_so_both_or_neither():
    assert exchanged() == [{"a": b"1", "d": None, "d/b": b"2"}, {"a": b"2", "d": None, "d/b": b"1"}]
    assert exchanged("d")[0]["a"] == b"1", "both directories are to be synced"
    assert exchanged("d", "")[0] == {"a": b"2", "d": None, "d/b": b"1"}


def test_a_file_without_a_name_is_nothing_that_a_power_loss_could_leave():
    nameless = Call("write", "/w/#17 (deleted)", "", 99, 0, b"x", 1, 1)
    history = read_calls_as([nameless, *calls(("create", "a"))], "/w", DIR)
    assert [each.kind for each in history.effects] == ["create"]


# -- the store ----------------------------------------------------------------------------------------------------


USUAL = {"create", "pull", "apply", "batch", "delete", "image-delete", "checkpoint", "gc", "adopt", "take", "resume", "everything",
         "pair"}


def test_no_crash_state_of_any_workload_breaks_a_promise(record_property):
    tally = collect(posix.states(options(states=2000, workload=sorted(USUAL))))
    record_property("states", tally.states)
    assert [(s.workload, s.fault, s.violations, s.reproduce) for s in tally.bad] == []
    assert tally.states == 2000
    assert set(tally.by_workload) == USUAL
    assert tally.redo >= 0.3 * tally.states, "recovery had too little to do"


def test_no_power_loss_in_a_partial_pull_costs_a_layer_that_was_taken_from_or_what_was_fetched(record_property):
    tally = collect(posix.states(options(states=25, workload=["partial"])))
    record_property("states", tally.states)
    assert [(s.fault, s.violations, s.reproduce) for s in tally.bad] == []
    assert tally.states == 25


def test_no_power_loss_that_takes_the_database_brings_back_a_layer_whose_deletion_was_told(record_property):
    tally = collect(posix.states(options(states=25, workload=["delete-lost"])))
    record_property("states", tally.states)
    assert [(s.fault, s.violations, s.reproduce) for s in tally.bad] == []
    assert tally.states == 25


def test_no_power_loss_in_a_check_a_gc_of_segments_or_any_kind_of_repair_breaks_a_promise(record_property):
    names = {"check", "gc-segments", "repair-source", "repair-parts", "repair-rest"}
    tally = collect(posix.states(options(states=40, workload=sorted(names))))
    record_property("states", tally.states)
    assert [(s.workload, s.fault, s.violations, s.reproduce) for s in tally.bad] == []
    assert tally.states == 40
    assert set(tally.by_workload) == names


def test_no_power_loss_in_a_rebuild_costs_a_layer_or_the_old_database(record_property):
    tally = collect(posix.states(options(states=120, workload=["rebuild", "rebuild-log"])))
    record_property("states", tally.states)
    assert [(s.workload, s.fault, s.violations, s.reproduce) for s in tally.bad] == []
    assert tally.states == 120


def test_no_power_loss_in_a_repair_leaves_a_path_worse_than_it_was(record_property):
    tally = collect(posix.states(options(states=50, workload=["repair"])))
    record_property("states", tally.states)
    assert [(s.fault, s.violations, s.reproduce) for s in tally.bad] == []
    assert tally.states == 50
    assert tally.redo >= 15, "recovery had too little to end"


def test_no_power_loss_puts_a_torn_tree_or_side_file_into_its_place(record_property):
    tally = collect(posix.states(options(states=40, workload=["repair-whole"])))
    record_property("states", tally.states)
    assert [(s.fault, s.violations, s.reproduce) for s in tally.bad] == []
    assert tally.states == 40


def test_no_power_loss_shows_a_broken_view_a_broken_push_or_a_torn_snapshot(work, record_property):
    names = sorted(beside.build(Images(str(work)), str(work)))
    tally = collect(posix.states(options(states=126, workload=names)))
    record_property("states", tally.states)
    assert [(s.workload, s.fault, s.violations, s.reproduce) for s in tally.bad] == []
    assert tally.states == 126
    assert set(tally.by_workload) == set(names)


def test_a_power_loss_in_recovery_is_among_the_states():
    found = list(posix.states(options(states=60, workload=["delete"])))
    assert [s for s in found if ", then " in s.fault], "no recovery was explored"


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_a_planted_mistake_is_caught_in_a_few_hundred_states(mistake):
    found = next((n for n, s in enumerate(posix.states(options(states=400, mistake=mistake))) if s.violations), None)
    assert found is not None, f"{mistake} was not caught"


def test_a_mistake_that_does_not_land_is_an_error():
    history = read_calls_as(calls(("create", "a"), ("fsync", "")), "/w", DIR)
    with pytest.raises(NotLandedError):
        check("no-directory-sync", history)


def test_the_command_of_a_state_shows_it_again(tmp_path):
    bad = next(s for s in posix.states(options(states=400, mistake="no-staging-sync", out=str(tmp_path))) if s.violations)
    ended = subprocess.run([*bad.reproduce.split(), "--out", str(tmp_path / "again")], capture_output=True, text=True)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert bad.violations[0][:60] in ended.stdout


def test_the_same_seed_explores_the_same_states():
    first, second = ([s.line() for s in posix.states(options(states=25, workload=["batch"]))] for _ in range(2))
    assert first == second


def test_removing_what_somebody_else_has_removed_touches_nothing_above_it(tmp_path):
    from crash.persistence.explore import remove

    (tmp_path / "above").mkdir(mode=0o755)
    (tmp_path / "above" / "tree" / "closed").mkdir(parents=True)
    (tmp_path / "above" / "tree" / "closed").chmod(0)
    for _ in range(2):
        remove(str(tmp_path / "above" / "tree"))
        assert (tmp_path / "above").stat().st_mode & 0o777 == 0o755
        assert list((tmp_path / "above").iterdir()) == []
