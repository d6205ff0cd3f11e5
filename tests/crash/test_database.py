"""Damage to ``data.mdb`` and to segments, a few hundred of them: noticed or without effect, nobody dies, all is rebuilt."""

import argparse
import os
from dataclasses import replace
from itertools import islice

import pytest

import layerjournal
from crash import database
from crash.database import judging
from layerstore.testing.corruption.bytewise import KINDS, PAGE, damage
from crash.state import collect
from layerjournal import pages
from layerstore.recovery import readopt, rebuilding
from layerstore.system import fs

pytestmark = pytest.mark.timeout(1800)


def options(**given):
    return argparse.Namespace(**{"states": 200, "seed": 1, "target": None, "only": None, "workers": 2, "work": None, **given})


def test_each_of_a_sample_of_damages_is_noticed_or_without_effect_and_what_is_rebuilt_is_whole(record_property):
    tally = collect(database.states(options()))
    record_property("states", tally.states)
    assert not tally.bad, [(each.fault, each.violations[:2], each.reproduce) for each in tally.bad[:5]]
    assert tally.states == 200
    assert tally.outcomes["error"] > 80 and tally.redo > 60


MISTAKES = {   # what is changed, to what, and what the rig says
    "nobody looks before the engine reads": ((pages, "check", lambda path, tries=8: None), "died"),
    "the log's tail is left out": (
        (rebuilding, "salvage_journal", lambda *given, real=rebuilding.salvage_journal: without_tail(real(*given))), "is another"),
    "the old database is not kept": ((fs, "keep_as", lambda *given, point: None), "is not kept"),
    "nothing is adopted": ((readopt._Completion, "_adopt_layers", lambda self, wanted: None), "must be"),
}


def without_tail(left):
    return left.__class__(**{**{name: getattr(left, name) for name in left.__slots__}, "tail": ()})


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_caught(name, monkeypatch):
    (target, attribute, new), says = MISTAKES[name]
    monkeypatch.setattr(target, attribute, new)
    if attribute == "check":
        for module in (layerjournal.engine, layerjournal.engine.datafile):
            monkeypatch.setattr(module, "structural_problems", lambda path: [])
    found = database.states(options(target="database", states=400))
    violations = (text for state in found for text in state.violations)
    assert any(says in text for text in violations)
    found.close()


def test_a_segment_that_nobody_verifies_is_caught(monkeypatch):
    monkeypatch.setattr(judging.Store, "check", lambda self, real=judging.Store.check: empty(real(self)))
    found = database.states(options(target="segment", states=20))
    assert any(state.violations for state in islice(found, 20))
    found.close()


def empty(report):
    return replace(report, findings=())


@pytest.mark.parametrize("size", [1, 700, PAGE, 20 * PAGE + 1])
def test_a_number_is_always_the_same_damage_and_always_one(size):
    data = bytes(range(1, 256)) * (size // 255 + 1)
    data = data[:size]
    made = [damage(data, 3, number) for number in range(200)]
    assert made == [damage(data, 3, number) for number in range(200)]
    assert all(each.data != data for each in made)
    assert all(each.data is None or len(each.data) <= size for each in made)
    assert len({each.what.split()[0] for each in made}) >= (3 if size == 1 else 5) and len(KINDS) == 9


def test_the_file_itself_is_changed_and_not_replaced(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 9000)
    inode = os.stat(path).st_ino
    for number in range(40):
        made = damage(b"x" * 9000, 1, number)
        made.apply(str(path))
        if made.data is None:
            assert not path.exists()
            return
        assert (path.read_bytes(), os.stat(path).st_ino) == (made.data, inode)
