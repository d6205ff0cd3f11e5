"""``python -m layerstore.testing.corruption ROOT``: a campaign over a store, and what came of it, in a table."""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from layerstore.testing.corruption import Campaign


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Damage a copy of a store; see whether check and repair keep their word.")
    parser.add_argument("root", help="a sound store that nobody uses meanwhile; it is only read")
    parser.add_argument("--seeds", type=int, default=2000, help="how many damages")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--source", action="append", default=[], help="of an image of the store, as for 'layerstore pull'")
    parser.add_argument("--workers", type=int, default=1, help="processes, each with a copy of the store beside it")
    given = parser.parse_args(arguments)
    campaign = Campaign(given.root, sources=given.source, workers=given.workers)
    bad, table = 0, Counter[tuple[str, str, str, str]]()
    for result in campaign.run(range(given.first, given.first + given.seeds)):
        table[result.purpose, result.depth, result.outcome, result.why or result.source] += 1
        if result.violations:
            bad += 1
            print(result, flush=True)  # noqa: T201
    for (purpose, depth, outcome, why), number in sorted(table.items()):
        print(f"{purpose:10} {depth or '-':10} {outcome:12} {number:5} {why}")  # noqa: T201
    print(f"{sum(table.values())} damages, {bad} with violations")  # noqa: T201
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
