"""The README's tables stand in pages that were made from results; none is typed by hand, none is stale."""

import importlib.util
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from bench.__main__ import MEASURES
from bench.page import write_page
from crash import __main__ as crash
from crash.peer import __main__ as peer

ROOT = Path(__file__).parent.parent
_spec = importlib.util.spec_from_file_location("figures", ROOT / "tools" / "figures.py")
figures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(figures)

NO_PICTURE = "No picture: matplotlib is not installed (`pip install 'layerstore[bench]'`)."
PAGE = "# Top\n\n| a | b |\n|---|--:|\n| 1 | x \\| y |\n\n## Empty\n\nno table\n\n## Last\n\n| c |\n|---|\n| 3 |\n"


def test_the_readme_has_its_tables_as_the_pages_have_them():
    text = (ROOT / "README.md").read_text()
    assert len(figures.BLOCK.findall(text)) >= 4
    assert figures.up_to_date(text) == text, "run: make figures"


def test_the_page_of_performance_is_what_the_committed_results_make(tmp_path):
    """But for the picture, which the same results draw alike only with the same matplotlib."""
    made = write_page(ROOT / "bench" / "results", tmp_path / "performance.md", MEASURES)
    page = (ROOT / "docs" / "performance.md").read_text()
    if (tmp_path / "performance" / "unpack.svg").exists():
        assert made == page, "run: make figures"
    else:
        assert set(made.splitlines()) - set(page.splitlines()) == {NO_PICTURE}
        assert all(line.startswith("![") for line in set(page.splitlines()) - set(made.splitlines()))


@pytest.mark.parametrize(("page", "command"), [
    ("evidence.md", ["figures", "crash/results/evidence.json"]), ("peer.md", ["crash/results", "--page"]),
])
def test_the_pages_of_the_crash_rigs_are_what_the_committed_results_make(page, command, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    main = crash.main if page == "evidence.md" else peer.main
    assert main([*command, str(tmp_path / page)]) == 0
    assert (tmp_path / page).read_text() == (ROOT / "docs" / page).read_text(), "run: make figures"


def test_the_results_of_the_crash_rigs_are_of_a_commit_each_and_of_every_change():
    found = json.loads((ROOT / "crash" / "results" / "peer.json").read_text())
    assert found["every"] == 1
    assert found["commit"]
    assert all(len(each["points"]) > 50 for each in found["subjects"])
    evidence = json.loads((ROOT / "crash" / "results" / "evidence.json").read_text())
    for rig in evidence["rigs"]:
        assert rig["states"] == sum(rig["outcomes"].values()) == sum(rig["by_fs"].values()) > 0, rig["name"]
        assert rig["seconds"] > 0, rig["name"]
        assert re.fullmatch(r"[0-9a-f]{7,}( [0-9a-f]{7,})*", rig["commit"]), rig["name"]   # not "-dirty"


def test_one_command_makes_every_page_that_the_readme_takes_from():
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}   # though make runs the tests
    recipe = subprocess.run(["make", "-n", "VENV=/nowhere", "figures"], cwd=ROOT, env=alone, capture_output=True, text=True, check=True).stdout
    pages = {path for _, path, _, _ in figures.BLOCK.findall((ROOT / "README.md").read_text())} - {"demo/output.txt"}
    assert len(pages) >= 3
    assert all(page in recipe for page in pages), recipe
    assert recipe.strip().endswith("tools/figures.py")


def test_no_quick_or_unfinished_result_is_committed():
    paths = list((ROOT / "bench" / "results").glob("*.json"))
    assert paths
    for path in paths:
        found = json.loads(path.read_text())
        assert not found["quick"], path.name
        assert not {"unfinished", "cannot"} & found.keys(), path.name


@pytest.mark.parametrize(("wanted", "lines"), [
    ("p.md: Top", ["| a | b |", "| --- | --: |", "| 1 | x \\| y |"]),
    ("p.md: Top | b", ["| b |", "| --: |", "| x \\| y |"]),
    ("p.md: Top || 1", ["| a | b |", "| --- | --: |", "| 1 | x \\| y |"]),
    ("p.md: Last", ["| c |", "| --- |", "| 3 |"]),
    ("out.txt", ["```text", "said", "```"]),
])
def test_what_is_between_the_marks_is_taken_from_the_page(tmp_path, wanted, lines):
    (tmp_path / "p.md").write_text(PAGE)
    (tmp_path / "out.txt").write_text("said\n\n")
    text = f"before\n<!-- from {wanted} -->\nold\n<!-- end -->\nafter\n"
    made = figures.up_to_date(text, tmp_path)
    assert made == f"before\n<!-- from {wanted} -->\n" + "\n".join(lines) + "\n<!-- end -->\nafter\n"
    assert figures.up_to_date(made, tmp_path) == made


def test_what_is_between_two_blocks_stays(tmp_path):
    (tmp_path / "out.txt").write_text("said")
    block = "<!-- from out.txt -->\n<!-- end -->\n"
    made = figures.up_to_date(f"{block}kept\n{block}", tmp_path)
    assert made.split("\n").count("kept") == 1
    assert made.count("said") == 2


@pytest.mark.parametrize("wanted", ["p.md: Nowhere", "p.md: Empty", "p.md: Top | z", "p.md: Top || 2"])
def test_a_table_that_is_not_there_is_an_error(tmp_path, wanted):
    (tmp_path / "p.md").write_text(PAGE)
    with pytest.raises(figures.NotThereError):
        figures.up_to_date(f"<!-- from {wanted} -->\n<!-- end -->\n", tmp_path)


def test_check_says_that_a_page_is_stale_and_leaves_it(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- from LICENSE -->\n<!-- end -->\n")
    before = page.read_text()
    assert figures.main(["--check", str(page)]) == 1
    assert page.read_text() == before
    assert figures.main([str(page)]) == 0
    assert figures.main(["--check", str(page)]) == 0
