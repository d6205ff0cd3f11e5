"""Bring the README's tables up to date: ``python tools/figures.py [--check] [PAGE]``. They are in pages made from results.

In the page, each is between two marks, and names where it is from: a heading's first table, or of a text file all of it::

    <!-- from docs/performance.md: Wall time, gzip, warm (s) -->
    <!-- from docs/evidence.md: Evidence | rig, what it does, states, violation -->   only these columns
    <!-- from docs/performance.md: Wall time, gzip, warm (s) || GNU tar | bsdtar; sync -->   only these rows
    <!-- from demo/output.txt -->
    <!-- end -->

Nothing is computed here: a figure is made where it is measured (``make bench``, ``make crash-report``, ``make demo``).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- from ([^\s:]+)(?:: (.*?))? -->\n)(?:.*?\n)??(<!-- end -->)", re.DOTALL)


class NotThereError(Exception):
    """A page has no such heading, or no such column."""


def up_to_date(text: str, root: Path = ROOT) -> str:
    """*text* with what is between the marks taken anew from the pages under *root*."""
    return BLOCK.sub(lambda block: f"{block[1]}{_content(root / block[2], block[3])}{block[4]}", text)


def _content(path: Path, wanted: str | None) -> str:
    if wanted is None:
        return f"```text\n{path.read_text().rstrip()}\n```\n"
    wanted, _, names = wanted.partition(" || ")
    heading, _, columns = wanted.partition(" | ")
    rows = _first_table(path, heading)
    if names:
        by_name = {row[0]: row for row in rows[2:]}
        try:
            rows = [*rows[:2], *(by_name[name] for name in names.split(" | "))]
        except KeyError as error:
            raise NotThereError(f"{path.name}, {heading}: no row {error}; there are: {'; '.join(by_name)}") from error
    if columns:
        try:
            chosen = [rows[0].index(name) for name in columns.split(", ")]
        except ValueError as error:
            raise NotThereError(f"{path.name}, {heading}: {error}; there are: {', '.join(rows[0])}") from error
        rows = [[row[n] for n in chosen] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _first_table(path: Path, heading: str) -> list[list[str]]:
    _, found, below = path.read_text().partition(f"# {heading}\n")
    table = re.search(r"^\|.*\n(?:\|.*\n)+", below.split("\n#", 1)[0], re.MULTILINE)
    if not found or table is None:
        raise NotThereError(f"{path} has no heading {heading!r} with a table below it")
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))] for line in table[0].splitlines()]


def main(argv: list[str]) -> int:
    check = "--check" in argv
    pages = [Path(name) for name in argv if name != "--check"] or [ROOT / "README.md"]
    stale = False
    for page in pages:
        before = page.read_text()
        after = up_to_date(before)
        stale |= before != after
        if not check:
            page.write_text(after)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
