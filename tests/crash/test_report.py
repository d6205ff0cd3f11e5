"""The report says what is in the rigs' lines, no more and no less; a violation comes with the command that shows it."""

import html
import json
import re
import shlex
import sys

import pytest

from crash.__main__ import RIGS, main
from crash.report.gather import NothingToReportError, gather
from crash.report.places import place
from crash.state import State, collect

TIMELINE = [
    {"kind": "effect", "text": "rename staging/x to layers/y"}, {"kind": "fault", "text": "SIGKILL"},
    {"kind": "journal", "text": "7 layer:x promise"}, {"kind": "lost", "text": "the rename"},
    {"kind": "recovery", "text": "finish x"}, "a text alone",
]


def made(fault="publish.rename:after:2", outcome="committed", **given):
    return State("outside", "pull", fault, outcome, **{"redo": True, "fs": "ext4", "reproduce": "python -m crash list", **given})


@pytest.fixture
def results(tmp_path):
    """Results of two rigs, each figure in them different."""
    collect([
        made(), made(), made(), made(redo=False, outcome="rolled-back", fs="xfs", details={"timeline": TIMELINE}),
        made("txn.promise:before:1", "kept"),
    ], path=str(tmp_path / "outside.jsonl"))
    collect([State("points", "delete", "kill delete.rename:after:1", "error", fs="tmpfs", seed=4)] * 3 + [
        State("points", "delete", "kill delete.rename:after:2", "committed", fs="tmpfs"),
    ], path=str(tmp_path / "points.jsonl"))
    (tmp_path / "outside.run.json").write_text(json.dumps({"commit": "v1-2-gabc", "seconds": 77, "options": {}}))
    return tmp_path


def report(directory, *options):
    return main(["report", "--out", str(directory), *map(str, options)])


def text_of(page):
    """The words of a page, tags and all space between them gone."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page.read_text())).split())


def test_its_figures_are_those_of_the_lines(results):
    assert report(results) == 0
    found = json.loads((results / "report.json").read_text())
    assert found["totals"] == {"states": 9, "redo": 4, "violations": 0, "sabotages": 0, "sabotages_caught": 0}
    rigs = {rig["name"]: rig for rig in found["rigs"]}
    assert rigs["outside"]["outcomes"] == {"committed": 3, "rolled-back": 1, "kept": 1}
    assert rigs["outside"]["by_fs"] == {"ext4": 4, "xfs": 1}
    assert rigs["outside"]["places"] == {
        "publish.rename": {"committed": 3, "rolled-back": 1}, "txn.promise": {"kept": 1},
    }
    assert rigs["points"]["places"] == {"delete.rename": {"error": 3, "committed": 1}}
    assert rigs["outside"]["run"]["seconds"] == 77


def test_the_page_shows_the_same_figures(results):
    report(results)
    page = text_of(results / "report.html")
    assert "9 crash states" in page
    assert "44 % of the states gave recovery work to do" in page
    assert "5 3 1 1 0 0 80 % 77 v1-2-gabc" in page
    assert "delete.rename 1 0 0 3 0" in page


def test_the_figures_for_the_docs_are_the_same(results, tmp_path):
    report(results, "--figures", tmp_path / "evidence.md")
    text = (tmp_path / "evidence.md").read_text()
    assert "**9 crash states, 0 violations.** Recovery had work to do in 44 % of them." in text
    assert "| 5 | 3 | 1 | 1 | 0 | 0 | 80 % | 77 | v1-2-gabc |" in text
    assert "Violations" not in text


def test_the_page_of_a_summary_is_that_of_the_lines(results, tmp_path):
    collect([made(outcome="violation", seed=31, violations=["gone | lost"])], path=str(results / "outside.jsonl"))
    (results / "barriers.json").write_text(json.dumps([{"leave_out": ["a.sync"], "caught_by": "b | c", "states": 3, "reason": None}]))
    (results / "model-two.json").write_text(json.dumps({"states": 7, "closed": True}))
    report(results, "--figures", tmp_path / "lines.md", "--summary", tmp_path / "kept.json")
    assert main(["figures", str(tmp_path / "kept.json"), str(tmp_path / "kept.md")]) == 0
    page = (tmp_path / "lines.md").read_text()
    assert (tmp_path / "kept.md").read_text() == page
    assert "| a.sync | b \\| c | 3 |  |" in page
    assert "gone | lost" in page
    assert "reproduce" in (tmp_path / "kept.json").read_text()


def test_every_rig_has_a_place_run_or_not(results):
    report(results)
    found = gather(str(results), RIGS)
    assert {rig.name for rig in found.rigs} >= set(RIGS)
    page = text_of(results / "report.html")
    for rig in found.rigs:
        assert rig.about, f"{rig.name} says nothing about itself"
        assert rig.about in page
        assert rig.states or f"{rig.about} not run" in page


def test_lines_of_a_rig_that_is_none_any_more_are_counted_all_the_same(results):
    collect([State("old", "pull", "x", "committed")], path=str(results / "old.jsonl"))
    assert gather(str(results), RIGS).states == 10


def test_a_violation_shows_with_its_seed_and_command_and_fails_the_report(results, capsys):
    bad = made(outcome="violation", seed=31, violations=["layer <a1> is gone"], reproduce="python -m crash run outside --at x:1")
    collect([bad], path=str(results / "outside.jsonl"))
    assert report(results, "--figures", results / "evidence.md") == 1
    for text in (capsys.readouterr().out, text_of(results / "report.html"), (results / "evidence.md").read_text()):
        assert "layer <a1> is gone" in text
        assert "python -m crash run outside --at x:1" in text
        assert re.search(r"[Ss]eed 31", text)


def test_an_empty_directory_is_an_error(tmp_path):
    with pytest.raises(NothingToReportError, match="no states"):
        report(tmp_path)
    (tmp_path / "outside.jsonl").touch()
    with pytest.raises(NothingToReportError, match="no states"):
        report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_line_that_is_no_state_is_an_error(results):
    with open(results / "outside.jsonl", "a") as file:
        file.write('{"rig": "outside"}\n')
    with pytest.raises(TypeError):
        report(results)


def test_the_page_needs_nothing_but_itself(results):
    report(results)
    page = (results / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#)|@import|url\(|fetch\(|https?:""", page)
    assert "light-dark(" in page


def test_what_a_store_says_is_text_on_the_page_and_not_markup(results):
    collect([made("<script>alert(1)</script>")], path=str(results / "outside.jsonl"))
    report(results)
    assert "<script>alert" not in (results / "report.html").read_text()


def test_the_tables_of_the_other_tools_have_their_sections(results):
    (results / "sabotage.json").write_text(json.dumps({"rows": [
        {"name": "no-sync", "file": "stage.py", "was": "sync()", "now": "pass", "caught_by": "block", "after_states": 41},
        {"name": "same", "file": "a.py", "was": "a", "now": "b", "caught_by": "equivalent", "after_states": 0},
        {"name": "unseen", "file": "a.py", "was": "a", "now": "b", "caught_by": "", "after_states": 900},
    ]}))
    (results / "barriers.json").write_text(json.dumps({"rows": [
        {"leave_out": ["stage.sync", "create.sync"], "caught_by": "", "states": 3000, "reason": "POSIX asks for it"},
    ]}))
    (results / "model-two.json").write_text(json.dumps({"scope": "two", "scopes": [
        {"scope": "two", "states": 1234567, "closed": True, "violation": None, "broken": []},
        {"scope": "two", "states": 99, "violation": "layer A is gone", "broken": ["trash_last"], "trace": ["p1 seal", "cut"]},
    ]}))
    (results / "peer.json").write_text(json.dumps({"fs": "ext4", "every": 1, "subjects": [
        {"name": "theirs", "version": "theirs 1", "verb": "import", "repair": "x", "points": [
            {"outcome": "torn", "left": ["a"], "left_repaired": []}, {"outcome": "committed", "left": [], "left_repaired": []},
        ]},
    ]}))
    report(results, "--figures", results / "evidence.md")
    page, figures = text_of(results / "report.html"), (results / "evidence.md").read_text()
    assert "1 of 3 planted mistakes caught" in page
    assert "unseen a.py the line - a + b nothing 900" in page
    assert "stage.sync + create.sync nothing 3000 POSIX asks for it" in page
    assert "p1 seal cut" in page
    assert "theirs 1, import 2 1 0 1 0 1 0" in page
    assert "1 of 3 caught, 1 shown to make no difference." in figures
    assert "| two | trash_last | 99 | no | layer A is gone |" in figures


def test_one_crash_has_its_timeline_on_the_page(results):
    report(results)
    page = (results / "report.html").read_text()
    for kind, text in [("journal", "7 layer:x promise"), ("lost", "the rename"), ("effect", "a text alone")]:
        assert f'<li data-kind="{kind}"><code>{text}</code></li>' in page


def test_a_crash_without_a_timeline_of_its_own_is_told_from_its_line(results):
    collect([State("points", "pull", "kill txn.commit:after:1", "committed", redo=True, details={"recovery": ["finish x"]})],
            path=str(results / "points.jsonl"))
    report(results)
    page = (results / "report.html").read_text()
    assert '<li data-kind="fault"><code>kill txn.commit:after:1</code></li><li data-kind="recovery"><code>finish x</code></li>' in page


def test_one_crash_is_shown_by_its_number(results, capsys):
    assert main(["show", str(results), "outside", "4"]) == 0
    shown = capsys.readouterr().out
    assert "outside 4: pull on xfs" in shown
    assert "recovery | finish x" in shown
    assert "again      python -m crash list" in shown
    assert main(["show", str(results), "outside", "99"]) == 2
    assert main(["show", str(results), "nobody", "1"]) == 2


def test_one_crash_is_made_again_by_its_command(results):
    script = "import sys; sys.exit(7)"
    collect([made(reproduce=shlex.join(["python", "-c", script]))], path=str(results / "outside.jsonl"))
    assert main(["show", str(results), "outside", "6", "--again"]) == 7


@pytest.mark.parametrize(("fault", "details", "point"), [
    ("kill publish.rename:after:2", {}, "publish.rename"),
    ("kill txn.promise:before:1/recover.release:after:1", {}, "txn.promise"),
    ("kill write staging/<txid>/diff/shared/file", {}, "kill write staging/<txid>/diff/…"),
    ("kill write journal/data.mdb, recovery mkdir staging", {}, "kill write journal/data.mdb"),
    ("power loss: prefix after txn.commit", {"step": "txn.commit"}, "txn.commit"),
    ("fdatasync:6", {"place": "fdatasync journal/data.mdb"}, "fdatasync journal/data.mdb"),
    ("renameat2:2", {}, "renameat2"),
    ("KeyboardInterrupt at layerjournal/codec.py:63@_canonical+6, passing 1", {}, "KeyboardInterrupt at layerjournal/codec.py"),
])
def test_states_of_one_crash_point_are_counted_together(fault, details, point):
    assert place(made(fault, details=details)) == point


def test_all_rigs_are_run_in_turn_with_the_budget_split(tmp_path, monkeypatch):
    from crash import __main__ as program

    calls = []

    class Done:
        returncode = 0

    def instead(command, **_kwargs):
        calls.append(command)
        return Done()

    monkeypatch.setattr(program.subprocess, "run", instead)
    assert main(["all", "--seconds", str(10 * len(RIGS)), "--states", "7", "--seed", "5", "--out", str(tmp_path)]) == 0
    assert [command[4] for command in calls] == list(RIGS)
    for command in calls:
        assert command[:4] == [sys.executable, "-m", "crash", "run"]
        assert "--seconds 10.0" in " ".join(command)
        assert "--seed 5" in " ".join(command)
    Done.returncode = 1
    assert main(["all"]) == 1


def test_the_seconds_of_several_runs_into_one_file_are_added_up(tmp_path):
    from types import SimpleNamespace

    from crash.__main__ import _note

    for seconds in (3.2, 4.1):
        _note(SimpleNamespace(out=str(tmp_path), rig="outside", seed=1), seconds)
    note = json.loads((tmp_path / "outside.run.json").read_text())
    assert note["seconds"] == 7
    assert len(note["runs"]) == 2


def test_a_power_cut_is_told_from_its_recording():
    from crash.block.planning import Cut, Plan
    from crash.block.recording import BEGIN, STEP, About, Event, Recording
    from crash.block.story import story

    def write(at):
        return Event("W", at, 4096, b"x" * 4096)

    def passed(step):
        return Event("M", 0, 0, STEP + step)

    events = [Event("M", 0, 0, BEGIN), passed(b"stage.lock:before"), passed(b"stage.lock:after"), write(0), Event("F", 0, 0, b""),
              passed(b"txn.claim:before"), write(4096), write(8192)]
    plan = Plan(Recording(About("ext4", "pull", 1), events, b""), seed=1)
    told = story(plan, Cut("subset", "txn.claim:before", 1, len(events), keep=(6,)), ["sweep x"], "rolled-back")
    assert [(each["kind"], each["text"]) for each in told] == [
        ("effect", "stage.lock"), ("effect", "writes: 1, 4 KiB, and a flush"), ("journal", "txn.claim:before"),
        ("effect", "writes: 2, 8 KiB, not flushed"), ("fault", "the power went: subset, txn.claim:before"),
        ("lost", "1 of 2 unflushed writes"), ("lost", "4096 bytes at 0x2000"), ("recovery", "sweep x"),
        ("verdict", "rolled-back"),
    ]


def test_what_noticed_a_mistake_is_told_without_the_directories_of_the_machine():
    from crash.report.gather import _mistake

    row = {"name": "a", "note": "tests/test_a.py::test_b: /home/me/src/tests/test_a.py:29: no /tmp/x1/store; layers/x"}
    assert _mistake(row)["note"] == "tests/test_a.py::test_b: test_a.py:29: no store; layers/x"
