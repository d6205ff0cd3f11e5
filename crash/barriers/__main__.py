"""``python -m crash.barriers``: the matrix as JSON, and as a page of the documents."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict

from crash.barriers import MatrixError, Row, rows


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m crash.barriers", description=__doc__)
    parser.add_argument("--pairs", action="store_true", help="pairs of barriers, too")
    parser.add_argument("--states", type=int, default=300, help="look at so many states of a row at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", action="append", help="only this barrier")
    parser.add_argument("--json", required=True, help="where to write the rows")
    parser.add_argument("--page", help="where to write the page")
    options = parser.parse_args(argv)
    try:
        found = rows(options)
    except MatrixError as error:
        print(error)
        return 1
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    matrix = {"commit": commit.stdout.strip(), "rows": [asdict(row) for row in found]}
    with open(options.json, "w", encoding="utf-8") as file:
        json.dump(matrix, file, indent=1)
    if options.page:
        with open(options.page, "w", encoding="utf-8") as file:
            file.write(page(found))
    shown = sum(row.caught_by is not None for row in found)
    print(f"{len(found)} rows: {shown} shown to be needed, {len(found) - shown} kept for a written reason")
    return 0


def page(found: list[Row]) -> str:
    """docs/barriers.md."""
    lines = [
        "# Which barrier is needed?", "",
        "Made by `python -m crash.barriers --pairs --json barriers.json --page docs/barriers.md`; not edited by hand.",
        "Each fsync, syncfs and durable commit of the product is left out by its fault point's name, in the strict-POSIX",
        "model of power loss (`crash/persistence`). *Shown*: a crash state that breaks a promise without it.", "",
        "## Alone", "", "| left out | shown by | after states | else: why it stays |", "|---|---|---|---|",
    ]
    lines += [_row(row) for row in found if len(row.leave_out) == 1]
    pairs = [row for row in found if len(row.leave_out) == 2]
    if pairs:
        implied = [row for row in pairs if (row.caught_by or "").startswith("as ")]
        both = [row for row in pairs if row.caught_by and row not in implied]
        rest = [row for row in pairs if not row.caught_by]
        lines += [
            "", "## In pairs", "",
            f"{len(pairs)} pairs. {len(implied)} hold a barrier that is shown alone: what one allows, both allow.",
            f"{len(both)} are shown only together; {len(rest)} are not shown, each kept for the reasons above",
            f"({sum(row.states for row in rest)} states looked at).", "",
        ]
        if both:
            lines += ["| left out | shown by | after states | |", "|---|---|---|---|", *map(_row, both)]
    return "\n".join(lines) + "\n"


def _row(row: Row) -> str:
    names = " + ".join(f"`{name}`" for name in row.leave_out)
    shown = (row.caught_by or "").replace("|", "\\|")
    return f"| {names} | {shown} | {row.states} | {row.reason or ''} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
