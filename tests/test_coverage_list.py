"""What is left out of ``make coverage`` stands in docs/coverage.md, with its reason; nothing else is left out."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
MARK = re.compile(r"^(?P<line>.*\S)\s+# not covered: (?P<reason>.+)$")


def measured():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["coverage"]["report"]
    return sorted(path for pattern in settings["include"] for path in ROOT.glob(pattern) if path.suffix == ".py")


def marked():
    for path in measured():
        for line in path.read_text().splitlines():
            if match := MARK.match(line):
                yield path.stem, match["line"].strip(), match["reason"]


def listed():
    for line in (ROOT / "docs" / "coverage.md").read_text().splitlines():
        if line.startswith("| ") and not line.startswith("| module"):
            module, code, reason = (cell.strip() for cell in line.strip("|").split(" | "))
            yield module.strip("`"), code.strip("`"), reason


def test_what_is_marked_as_not_covered_is_what_the_page_lists():
    assert sorted(marked()) == sorted(listed())


def test_the_modules_that_are_measured_are_there():
    names = {path.stem for path in measured()}
    assert {"machine", "states", "planner", "recover", "executor", "journal", "datafile", "meaning", "archive", "segment"} <= names


def test_no_other_way_of_leaving_lines_out_is_used():
    for path in measured():
        assert "pragma: no" not in path.read_text(), path
