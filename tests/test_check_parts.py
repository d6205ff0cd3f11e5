"""A layer that is larger than the budget: looked at in parts, each check going on where the one before ended."""

import json
import os
import sys

import pytest

import layerstore
from storekit import add, killed_at, put_layer, tar
from test_check import flip, tree

FILES = {f"f{n}": bytes([n]) * 1000 for n in range(6)}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """A batch of each file, and a path is as good as a batch."""
    monkeypatch.setattr(sys.modules["layerstore.verbs.check.hashing"], "_FULL", 1)
    monkeypatch.setattr(sys.modules["layerstore.verbs.check.course"], "_PATHS", 1)


@pytest.fixture
def hashed(monkeypatch):
    """The names of files as they are hashed."""
    module, seen = sys.modules["layerstore.verbs.check.hashing"], []
    real = module.content_problem

    def content_problem(fds, entry, *rest):
        seen.append(entry.path.decode())
        return real(fds, entry, *rest)

    monkeypatch.setattr(module, "content_problem", content_problem)
    return seen


@pytest.fixture
def compared(monkeypatch):
    """The paths whose metadata is compared."""
    module, seen = sys.modules["layerstore.trees.verify"], []
    real = module.compare

    def compare(fds, entry, **rest):
        seen.append(entry.path.decode())
        return real(fds, entry, **rest)

    monkeypatch.setattr(module, "compare", compare)
    return seen


def in_parts(store, **options):
    """Checks with no time until one has looked at all: their reports."""
    reports = []
    while not reports or reports[-1].left:
        reports.append(store.check(**{"depth": "content", "budget": 0.0, "workers": 1, **options}))
        assert len(reports) < 50, "they do not get on"
    return reports


def test_each_check_goes_on_where_the_one_before_ended_and_hashes_nothing_twice(store, hashed, compared):
    add(store, FILES)
    reports = in_parts(store)
    assert len(reports) > 3 and all(report.sound for report in reports)
    assert sorted(hashed) == sorted(FILES)
    assert len(compared) <= len(FILES) + 1 + len(reports)   # the path at which one ended is begun with again, no more
    assert [(r.looked_at, r.left) for r in reports] == [(0, 1)] * (len(reports) - 1) + [(1, 0)]


def test_metadata_is_looked_at_in_parts_too(store, compared):
    add(store, FILES)
    reports = in_parts(store, depth="metadata")
    assert len(reports) > 3 and sorted(set(compared)) == sorted(["", *FILES])


def test_big_data_is_hashed_in_parts_too(store, hashed):
    add(store, FILES, big_data={f"key{n}": b"value" for n in range(4)})
    in_parts(store)
    assert sorted(hashed) == sorted([*FILES, *(f"key{n}" for n in range(4))])


def test_threads_leave_what_is_not_begun_in_time_to_the_next_check(store, hashed, monkeypatch):
    monkeypatch.setattr(sys.modules["layerstore.verbs.check.hashing"], "_THREADS_FROM", 1)
    add(store, {f"f{n}": bytes([n]) * 1000 for n in range(40)})
    reports = in_parts(store, workers=2)
    assert len(reports) > 1 and set(hashed) == {f"f{n}" for n in range(40)}


def test_a_layer_with_damage_in_an_earlier_part_is_not_taken_for_sound(store):
    layer = add(store, FILES)
    flip(tree(store, layer, "diff", "f0"))
    begun = store._handle.clock()
    reports = in_parts(store)
    assert [len(report.findings) for report in reports] == [1] + [0] * (len(reports) - 1)
    assert store.check(depth="content", since_ns=begun).recent == 0


def test_a_check_whose_time_is_over_before_it_gets_to_known_damage_within_a_layer_says_so(store):
    layer = add(store, FILES)
    flip(tree(store, layer, "diff", "f5"))
    assert not store.check(depth="content", note=True).sound
    reports = in_parts(store)
    assert [bool(report.findings) or report.left_unsound == 1 for report in reports] == [True] * len(reports)
    assert (reports[0].findings, reports[0].left_unsound) == ((), 1)


def test_a_check_that_goes_on_behind_damage_that_an_earlier_one_found_says_so_to_its_end(store):
    layer = add(store, FILES)
    flip(tree(store, layer, "diff", "f0"))
    first, *rest = in_parts(store)
    assert ([f.path for f in first.findings], first.left_unsound) == (["f0"], 0)
    assert [(report.findings, report.left_unsound) for report in rest] == [((), 1)] * len(rest)
    assert rest[-1].looked_at == 1
    report = store.check(depth="content", budget=1000.0)
    assert (len(report.findings), report.left_unsound) == (1, 0), "it is begun anew"


def test_damage_in_a_part_that_is_not_gone_on_with_is_not_forgotten(store):
    from layerstore.trees import checked

    layer = add(store, FILES)
    with open(tree(store, layer, "checked"), "w") as file:
        json.dump({"part": {"depth": "content", "place": 3, "begun": 1, "sound": False}}, file)
    checked.note_at_risk(store._handle.dirs["layers"], {layer.id: store._handle.clock()})
    for _ in range(2):
        report = store.check(depth="content", budget=0.0)
        assert (report.left, report.left_unsound) == (1, 1)


def test_a_layer_that_was_sound_in_every_part_is_since_the_first_was_begun(store):
    add(store, FILES)
    before = store._handle.clock()
    store.check(depth="content", budget=0.0)
    after = store._handle.clock()
    in_parts(store)
    assert store.check(depth="metadata", since_ns=before).recent == 1
    assert store.check(depth="content", since_ns=after).recent == 0


@pytest.mark.parametrize("directory", ["a", "z"])
def test_what_is_too_many_is_found_by_the_last_part_wherever_it_is(store, directory):
    layer = add(store, {"a/f": b"1", **FILES, "z/f": b"2"})
    path = tree(store, layer, "diff", directory)
    status = os.stat(path)
    with open(os.path.join(path, "stray"), "w"):
        pass
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert [f.path for report in in_parts(store) for f in report.findings] == [f"{directory}/stray"]


def test_what_was_swapped_for_a_stray_in_an_earlier_part_hides_it_not(store):
    layer = add(store, {"a/f": b"1", **FILES})
    path = tree(store, layer, "diff", "a")
    status = os.stat(path)
    os.rename(os.path.join(path, "f"), os.path.join(path, "stray"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    found = [(f.code, f.path) for report in in_parts(store) for f in report.findings]
    assert sorted(found) == [("path-extra", "a/stray"), ("path-missing", "a/f")]


def test_a_check_that_is_killed_has_lost_no_more_than_it_did_since_it_last_noted(root, hashed, monkeypatch):
    monkeypatch.setattr(sys.modules["layerstore.verbs.check.course"], "_NOTE_EVERY", 1)
    with layerstore.open(root) as store:
        add(store, FILES)
        store.checkpoint()

    def check():
        with layerstore.open(root) as store:
            store.check(depth="content", budget=1000.0, workers=1)

    killed_at("check.note.rename", "after", check, nth=4)
    with layerstore.open(root) as store:
        assert store.check(depth="content", budget=1000.0, workers=1).looked_at == 1
    assert 0 < len(hashed) < len(FILES)


def test_a_check_without_a_budget_looks_at_all(store, hashed):
    add(store, FILES)
    store.check(depth="content", budget=0.0)
    hashed.clear()
    assert store.check(depth="content").looked_at == 1 and sorted(hashed) == sorted(FILES)


@pytest.mark.parametrize("part", [
    {"depth": "metadata", "place": 4, "begun": 1 << 62, "sound": True}, {"place": 4}, [4], 4, {"depth": "content", "place": None},
], ids=str)
def test_what_is_noted_of_a_part_and_is_none_of_this_depth_is_not_gone_on_with(store, hashed, part):
    layer = add(store, FILES)
    store.checkpoint()
    with open(tree(store, layer, "checked"), "w") as file:
        json.dump({"part": part}, file)
    assert store.check(depth="content", budget=1000.0).looked_at == 1
    assert sorted(hashed) == sorted(FILES)


def test_what_may_have_been_hit_since_a_part_was_looked_at_is_begun_anew(store, hashed):
    from layerstore.trees import checked

    layer = add(store, FILES)
    store.check(depth="content", budget=0.0)
    checked.note_at_risk(store._handle.dirs["layers"], {layer.id: store._handle.clock()})
    hashed.clear()
    assert store.check(depth="content", budget=1000.0).looked_at == 1
    assert sorted(hashed) == sorted(FILES)


def test_a_store_and_those_beneath_it_have_one_budget_together(tmp_path, hashed, monkeypatch):
    monkeypatch.setattr(sys.modules["layerstore.verbs.check.hashing"], "_FULL", 1 << 20)
    monkeypatch.setattr(sys.modules["layerstore.verbs.check.course"], "_PATHS", 100)
    below = str(tmp_path / "below")
    put_layer(below, tar({"below": b"1"}))
    with layerstore.open(str(tmp_path / "store"), beneath=[below]) as store:
        add(store, {"own": b"2"})
        report = store.check(depth="content", budget=0.0, beneath=True)
        assert (hashed, report.looked_at, report.left) == (["own"], 1, 1)
        hashed.clear()
        report = store.check(depth="content", budget=1000.0, beneath=True)
        assert (hashed, report.looked_at, report.left) == (["own", "below"], 1, 0)
