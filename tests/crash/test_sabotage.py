"""Every planted mistake is noticed, by the way that noticed it before; and the machinery that says so is not deaf.

``crash/sabotage/patches.toml`` has the mistakes, ``found.json`` what noticed each; ``python -m crash.sabotage`` hunts
them all anew.
"""

import errno
import json
import os
import sys
from types import ModuleType

import pytest

from crash.__main__ import RIGS as ALL_RIGS
from crash.sabotage import __main__ as command
from crash.sabotage import child
from crash.sabotage import hunt as hunting
from crash.sabotage.hunt import attempt, hunt, remembered
from crash.sabotage.table import CONTROL, ROOT, PatchError, Sabotage, load, patch, plant
from crash.sabotage.ways import RIGS, Way, all_ways

COMMENT = Sabotage("a comment", "src/layerstore/verbs/checkpoint.py", "EVERY = 2_048\n", "EVERY = 2_048   # records\n")
QUICK = Way("named test", ("pytest", "tests/test_recovery.py", "-k", "lost_rename or planner or cell"))


def test_there_are_many_mistakes_and_each_still_applies():
    mistakes = load()
    assert len(mistakes) >= 30
    for each in mistakes:
        with open(os.path.join(ROOT, each.file), encoding="utf-8") as file:
            assert patch(file.read(), each)


def test_each_mistake_is_remembered_or_has_a_reason_why_nothing_can_notice_it():
    found = remembered()
    for each in load():
        assert (each.name in found) != bool(each.equivalent), each.name


def test_what_is_remembered_judged():
    """A state or a test: not a rig that came to none."""
    for name, each in remembered().items():
        assert each["after_states"] > 0, name


@pytest.mark.root
@pytest.mark.timeout(3600)
def test_every_planted_mistake_is_noticed(record_property):
    """None is hunted: that takes minutes, and what is no longer noticed in the same way is to be looked at."""
    rows = command.run(load(), (), jobs=2, memory=remembered(), learn=False)
    record_property("states", sum(row.after_states for row in rows))
    record_property("caught", sum(row.caught_by not in ("", "equivalent") for row in rows))
    known = {each.name: each for each in load()}
    wrong = {row.name: command.wrong(row, known[row.name]) for row in rows if command.wrong(row, known[row.name])}
    assert not wrong


@pytest.mark.root
@pytest.mark.timeout(1800)
def test_nothing_is_noticed_without_a_mistake():
    """A few states of each rig, and every remembered test, against the product as it is; a whole hunt has all ways."""
    found = remembered().values()
    ways = [Way(each.name, (*each.arguments, "--states", "15")) for each in RIGS]   # the last --states counts
    tests = sorted({each["again"][1] for each in found if each["again"][0] == "pytest"})
    assert tests
    row, _ = hunt(CONTROL, [*ways, Way("named test", ("pytest", *tests))])
    assert command.wrong(row, CONTROL) == ""


# -- the machinery ----------------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_a_patch_that_changes_nothing_survives():
    row, found = hunt(COMMENT, [QUICK])
    assert (row.caught_by, found) == ("", None)
    assert command.wrong(row, COMMENT) == "it survives"


@pytest.mark.timeout(600)
def test_the_same_tests_notice_a_mistake_and_what_noticed_it_is_remembered():
    trust = next(each for each in load() if each.name == "trust-committed-in-recovery")
    row, found = hunt(trust, [QUICK])
    assert row.caught_by == "named test"
    assert row.after_states > 0
    assert found["again"][:1] == ["pytest"]
    assert "test_recovery.py::" in found["again"][1]


@pytest.mark.timeout(600)
def test_a_way_that_no_longer_notices_gives_way_to_the_hunt():
    trust = next(each for each in load() if each.name == "trust-committed-in-recovery")
    stale = {"by": "named test", "again": ["pytest", "tests/test_whiteouts.py"]}
    row, _ = hunt(trust, [QUICK], first=stale)
    assert row.caught_by == "named test"
    assert "no longer caught as remembered" in row.note


@pytest.mark.timeout(600)
def test_where_nothing_else_is_tried_a_way_that_no_longer_notices_is_tried_twice_and_said_to_survive():
    trust = next(each for each in load() if each.name == "trust-committed-in-recovery")
    stale = {"by": "named test", "again": ["pytest", "tests/test_whiteouts.py"]}
    (row,) = command.run([trust], (), jobs=1, memory={trust.name: stale}, learn=False)
    assert command.wrong(row, trust) == (
        "it survives; no longer caught as remembered; no longer caught as remembered; "
        "to hunt it anew: python -m crash.sabotage --learn --only trust-committed-in-recovery"
    )


@pytest.mark.timeout(600)
def test_a_way_that_is_remembered_and_hangs_is_given_up(monkeypatch, tmp_path):
    monkeypatch.setattr(hunting, "REMEMBERED_SECONDS", 3.0)
    (tmp_path / "test_hangs.py").write_text("import time\ndef test_that_hangs():\n    time.sleep(300)\n")
    row, _ = hunt(COMMENT, (), first={"by": "named test", "again": ["pytest", str(tmp_path / "test_hangs.py")]})
    assert row.note.startswith("named test did not end in 3 s; named test did not end in 3 s; to hunt it anew")


@pytest.mark.parametrize("arguments", [("rig", "no-such-rig"), ("pytest", "tests/test_recovery.py", "-k", "no such test"),
                                       ("pytest", "tests/no_such_file.py")])
def test_a_way_that_does_not_exist_is_an_error_and_notices_nothing(arguments):
    with pytest.raises(AssertionError, match="there is no such rig or test"):
        hunt(COMMENT, [Way("x", arguments)])


def test_a_rig_that_fails_by_itself_has_not_noticed(monkeypatch):
    """A full disk or a missing tool is no word on the product."""
    def states(_options):
        raise OSError(errno.ENOSPC, "No space left on device")
        yield

    broken = ModuleType("broken_rig")
    broken.states = states
    monkeypatch.setitem(sys.modules, "broken_rig", broken)
    monkeypatch.setitem(ALL_RIGS, "broken", "broken_rig")
    seen = child.run_rig(["broken"])
    assert (seen["states"], seen["caught"]) == (0, None)
    assert "No space left" in seen["failed"]


def test_a_way_whose_process_dies_has_not_noticed(tmp_path):
    (tmp_path / "test_dies.py").write_text("import os\nos._exit(3)\n")
    row, found = hunt(COMMENT, [Way("dies", ("pytest", str(tmp_path / "test_dies.py")))])
    assert (row.caught_by, row.failed, found) == ("", ["dies"], None)
    assert "dies failed by itself: it ended with 3" in row.note


def test_a_hunt_goes_on_after_a_way_that_failed_by_itself(monkeypatch):
    def one_of_each(way, *_):
        failed = way.name == "full"
        return {"states": 7 * (not failed), "caught": None if failed else {"what": "lost", "again": ["rig"]},
                "failed": "no space" if failed else None}

    monkeypatch.setattr(hunting, "attempt", one_of_each)
    row, found = hunt(COMMENT, [Way("full", ("rig", "x")), Way("sees", ("rig", "y"))])
    assert (row.caught_by, row.after_states, row.failed) == ("sees", 7, ["full"])
    assert row.note == "full failed by itself: no space; lost"
    assert found["by"] == "sees"


def test_nothing_is_said_to_be_without_a_mistake_by_a_way_that_failed(monkeypatch):
    monkeypatch.setattr(hunting, "attempt", lambda *_: {"states": 0, "caught": None, "failed": "no space"})
    row, _ = hunt(CONTROL, [QUICK])
    assert command.wrong(row, CONTROL) == "not shown: named test failed by itself: no space"
    same = Sabotage(COMMENT.name, COMMENT.file, COMMENT.was, COMMENT.now, "a comment")
    (row,) = command.run([same], [QUICK], jobs=1, memory={}, learn=False)
    assert command.wrong(row, same) == "not shown: a comment; named test failed by itself: no space"


def test_a_rig_that_would_run_against_the_product_itself_is_refused(tmp_path):
    plant(CONTROL, str(tmp_path / "copy"))
    with pytest.raises(AssertionError, match="against the product itself"):
        attempt(QUICK, str(tmp_path / "copy"), [os.path.join(ROOT, "src"), os.path.join(ROOT, "journal")], str(tmp_path))


@pytest.mark.parametrize(("was", "now"), [("not there", "x"), ("e", "x"), ("", "x"), ("EVERY = 2_048", "EVERY = 2_048")])
def test_a_patch_that_does_not_apply_exactly_once_is_an_error(was, now):
    with open(os.path.join(ROOT, COMMENT.file), encoding="utf-8") as file, pytest.raises(PatchError):
        patch(file.read(), Sabotage("stale", COMMENT.file, was, now))


def test_a_patch_that_is_no_python_is_an_error():
    with open(os.path.join(ROOT, COMMENT.file), encoding="utf-8") as file, pytest.raises(SyntaxError):
        patch(file.read(), Sabotage("typo", COMMENT.file, "EVERY = 2_048\n", "EVERY = = 1\n"))


@pytest.mark.timeout(600)
def test_the_command_says_what_came_of_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "all_ways", lambda: (QUICK,))
    report = tmp_path / "rows.json"
    assert command.main(["--only", "trust-committed-in-recovery", "--jobs", "1", "--json", str(report)]) == 0
    monkeypatch.setattr(command, "load", lambda: [COMMENT])
    assert command.main(["--jobs", "1"]) == 1
    assert "a comment: it survives" in capsys.readouterr().out
    said = json.loads(report.read_text())
    (row,) = said["rows"]
    assert said["commit"]
    assert list(row) == ["name", "file", "was", "now", "caught_by", "after_states", "seconds", "note", "failed"]
    assert row["caught_by"] == "named test"
