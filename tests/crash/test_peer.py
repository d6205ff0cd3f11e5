"""The same kills from outside, of this store and of containers/storage: a slice, and that the comparison can see."""

import os
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import asdict

import pytest

from crash.outside import Rig
from crash.peer.compare import Point, compare, judge, made, paths
from crash.peer.subjects import ContainersStorage, Layerstore
from crash.peer.supervise import run
from crash.peer.table import page

pytestmark = [pytest.mark.root, pytest.mark.timeout(1800)]


@pytest.fixture
def work():
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as path:
        yield path


@pytest.fixture(params=[ContainersStorage, Layerstore], ids=["theirs", "ours"])
def subject(request, work):
    return next(each for each in made(work) if isinstance(each, request.param))


def imported(subject, work, *, damage):
    """Judge a store in which the layer was imported, and then *damage* done to it."""
    start, root = os.path.join(work, "start"), os.path.join(work, "store")
    os.mkdir(start)
    subject.prepare(start)
    shutil.copytree(start, root, symlinks=True)
    subject.call(subject.load(root))
    damage(root)
    point = Point(subject.name, 1, "")
    judge(subject, root, paths(start), point)
    return point


def test_this_store_killed_before_a_sample_of_its_changes_leaves_nothing_and_loses_nothing(work, record_property):
    ours = made(work)[1]
    points = list(compare(ours, work, every=13))
    record_property("states", len(points))
    assert len(points) >= 4
    assert {point.outcome for point in points} <= {"committed", "rolled back"}
    for point in points:
        assert not point.left, point
        assert not point.lost, point
        assert point.again, point


def test_the_other_store_is_killed_by_the_same_harness(work, record_property):
    theirs = made(work)[0]
    points = list(compare(theirs, work, every=16))
    record_property("states", len(points))
    assert len(points) >= 6
    assert {point.outcome for point in points} <= {"committed", "rolled back", "torn", "unusable"}
    assert all(point.change for point in points)


def test_a_sound_import_is_judged_sound(subject, work):
    point = imported(subject, work, damage=lambda _root: None)
    assert (point.outcome, point.left, point.lost, point.detail, point.again) == ("committed", [], [], [], True)


def test_a_listed_layer_that_is_not_whole_is_judged_torn(subject, work):
    def damage(root):
        os.truncate(os.path.join(subject.tree(root, subject.layer_id), "shared", "file"), 0)

    point = imported(subject, work, damage=damage)
    assert point.outcome == "torn"
    assert "shared/file" in point.detail[0]


def test_what_nothing_lists_is_judged_left_behind(subject, work):
    directory = {"containers-storage": "graph/overlay", "layerstore": "layers"}[subject.name]
    point = imported(subject, work, damage=lambda root: os.mkdir(os.path.join(root, directory, "stranger")))
    assert (point.outcome, point.left) == ("committed", [f"{directory}/stranger"])


def test_a_kill_that_is_never_reached_is_an_error(work):
    with pytest.raises(AssertionError, match="not killed before change 3"):
        run(["mkdir", os.path.join(work, "one"), os.path.join(work, "two")], work, kill_before=3)


def test_a_program_is_killed_with_its_children_before_the_change(work):
    one, two, three = (os.path.join(work, name) for name in ("one", "two", "three"))
    ended = run(["sh", "-c", f"mkdir {one}; (mkdir {two}); mkdir {three}"], work, kill_before=2)
    assert ended.changes == [f"mkdir {one}", f"mkdir {two}"]
    assert (os.path.isdir(one), os.path.exists(two), os.path.exists(three)) == (True, False, False)


def test_the_supervisor_and_strace_see_the_same_changes(work):
    rig = Rig.made(os.path.join(work, "rig"), "apply")
    different = []
    for attempt in range(3):             # how many pages LMDB writes differs between two runs, seldom
        traced = Counter(point.name for point in rig.points())
        supervised = run(rig.run.command(sys.executable, rig.store(f"supervised{attempt}")), work, env=rig.environment())
        seen = Counter(change.split()[0] for change in supervised.changes)
        named = [change.split()[0] for change in supervised.changes if change.endswith("/journal/pidns")]
        # a store writes down in which pid namespace it is open; the supervised program has one of its own
        if seen == traced + Counter({"pwrite64": 1}) and named[1:] == ["pwrite64"] * 3:
            return
        different.append((traced, seen, named))
    pytest.fail(f"they never saw the same: {different}")


def test_the_page_counts_what_was_found():
    points = [
        asdict(Point("containers-storage", n, f"write {n}", outcome, left=left, again=True))
        for n, outcome, left in [(1, "rolled back", []), (2, "rolled back", ["graph/.tmp"]), (3, "committed", [])]
    ]
    text = page({"commit": "abc", "fs": "ext4", "every": 1, "subjects": [
        {"name": "containers-storage", "version": "containers-storage 1", "verb": "import-layer", "repair": "shutdown",
         "points": points},
    ]})
    for line in ("| kill points | 3 |", "| committed | 1 |", "| rolled back | 2 |",
                 "| files left behind after the next open | 1 |", "| torn | 0 |", "containers-storage 1"):
        assert line in text
