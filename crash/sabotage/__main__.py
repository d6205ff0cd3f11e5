"""``python -m crash.sabotage``: plant every mistake, one at a time, and see that something notices.

    python -m crash.sabotage [--only NAME] [--jobs N] [--remembered] [--learn] [--rigs A,B] [--json FILE]

Exit status 1 if a mistake survives, if one that is said to be equivalent is noticed, or if the product without any
mistake is said to have one. A way that fails by itself has noticed nothing; nor does it show that there is nothing to
notice. ``--remembered`` tries first what noticed it last time (``found.json``); ``--learn`` writes
that file anew for the mistakes that were hunted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from crash.sabotage.hunt import EQUIVALENT, FOUND, SURVIVES, Row, as_json, hunt, remembered
from crash.sabotage.table import CONTROL, Sabotage, load
from crash.sabotage.ways import Way, all_ways


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m crash.sabotage", description=__doc__.split("\n")[0])
    parser.add_argument("--only", action="append", help="only these mistakes ('control': none, to hear false alarms)")
    parser.add_argument("--jobs", type=int, default=2, help="how many at once")
    parser.add_argument("--remembered", action="store_true", help="try first what noticed it last time")
    parser.add_argument("--learn", action="store_true", help="remember what notices them")
    parser.add_argument("--rigs", help="only these ways, by name ('named test' is one), comma-separated")
    parser.add_argument("--json", help="write the rows here")
    options = parser.parse_args(argv)
    known = {each.name: each for each in [*load(), CONTROL]}
    wanted = [known[name] for name in options.only] if options.only else load()
    ways = [w for w in all_ways() if options.rigs is None or w.name in options.rigs.split(",")]
    rows = run(wanted, ways, jobs=options.jobs, memory=remembered() if options.remembered else {}, learn=options.learn)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(as_json(rows), file, indent=1)
    bad = [row for row in rows if wrong(row, known[row.name])]
    print(f"{len(rows)} planted mistakes: {len(rows) - len(bad)} as they should, {len(bad)} not")
    for row in bad:
        print(f"  {row.name}: {wrong(row, known[row.name])}")
    return 1 if bad else 0


def run(
    wanted: Sequence[Sabotage], ways: Sequence[Way], *, jobs: int, memory: dict[str, dict[str, Any]], learn: bool,
) -> list[Row]:
    """Hunt them all; the rows in the order of *wanted*. With *memory* those that are equivalent are not hunted."""
    rows: dict[str, Row] = {}
    with ThreadPoolExecutor(jobs) as pool:
        hunts = {
            pool.submit(hunt, each, () if memory and each.equivalent else ways, first=memory.get(each.name)): each
            for each in wanted
        }
        for done in as_completed(hunts):
            each = hunts[done]
            row, found = done.result()
            if row.caught_by == SURVIVES and each.equivalent:
                row.caught_by, row.note = EQUIVALENT, "; ".join([each.equivalent, *filter(None, [row.note])])
            rows[each.name] = row
            print(f"{row.seconds:7.1f} s  {row.name}: {row.caught_by or 'SURVIVES'} after {row.after_states}; {row.note}",
                  flush=True)
            if learn and found is not None:
                _learn(each.name, found)
    return [rows[each.name] for each in wanted]


def wrong(row: Row, sabotage: Sabotage) -> str:
    """What is wrong with what came of it; empty if nothing is."""
    if sabotage is CONTROL and row.caught_by:
        return f"a false alarm: {row.note}"
    if row.failed and (sabotage is CONTROL or row.caught_by == EQUIVALENT):
        return f"not shown: {row.note}"
    if row.caught_by == SURVIVES and sabotage is not CONTROL:
        return f"it survives; {row.note}" if row.note else "it survives"
    if sabotage.equivalent and row.caught_by != EQUIVALENT:
        return f"it is not equivalent: {row.note}"
    return ""


def _learn(name: str, found: dict[str, Any]) -> None:
    everything = {**remembered(), name: found}
    with open(FOUND, "w", encoding="utf-8") as file:
        json.dump(dict(sorted(everything.items())), file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
