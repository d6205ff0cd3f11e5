"""``python -m crash.model --scope NAME [--workers N] [--json FILE] [--break RULE] [--seconds S]``

Explores a scope, or each of a group, to the end. Exit status 1 if anything was violated, 2 if time ran out first.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from crash.model.explore import Explorer, Result
from crash.model.rules import PRODUCT, Rules
from crash.model.scopes import GROUPS, SCOPES, find


def explore(name: str, broken: tuple[str, ...], seconds: float | None) -> Result:
    """One scope. The way there is only kept, in a second run, if something was found: it costs memory."""
    rules = dataclasses.replace(PRODUCT, **dict.fromkeys(broken, True))
    result = Explorer(SCOPES[name], rules, keep=False).run(seconds=seconds, tell=_tell)
    return Explorer(SCOPES[name], rules).run() if result.violation else result


def _tell(result: Result) -> None:
    if sys.stderr.isatty() or os.environ.get("LAYERSTORE_MODEL_TELL"):
        print(f"{result.scope}: depth {result.depth}, {result.states:,} states, {result.seconds:.0f} s", file=sys.stderr)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m crash.model", description=__doc__.split("\n")[0])
    parser.add_argument("--scope", required=True, choices=[*SCOPES, *GROUPS])
    parser.add_argument("--workers", type=int, default=1, help="explore so many of a group's scopes at once")
    parser.add_argument("--json", help="write what was found there, too")
    parser.add_argument("--break", dest="broken", action="append", default=[],
                        choices=[rule.name for rule in dataclasses.fields(Rules)], help="break this rule")
    parser.add_argument("--seconds", type=float, help="give up on a scope after so long")
    options = parser.parse_args(argv)
    work = partial(explore, broken=tuple(options.broken), seconds=options.seconds)
    names = [scope.name for scope in find(options.scope)]
    if options.workers > 1 and len(names) > 1:
        with ProcessPoolExecutor(options.workers) as pool:
            results = list(pool.map(work, names))
    else:
        results = [work(name) for name in names]
    for result in results:
        print(_line(result))
        print("\n".join(result.trace), end="\n" if result.trace else "")
    if options.json:
        found = [{"about": SCOPES[r.scope].about, "broken": options.broken, **r.as_json()} for r in results]
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"scope": options.scope, "scopes": found}, file, indent=1)
    if any(result.violation for result in results):
        return 1
    return 0 if all(result.closed for result in results) else 2


def _line(result: Result) -> str:
    end = "closed, nothing violated" if result.closed else "not closed"
    end = f"VIOLATED: {result.violation}" if result.violation else end
    return (f"{result.scope}: {result.states:,} states, {result.transitions:,} transitions, depth {result.depth}, "
            f"{result.settled:,} worlds recovered alone, {result.seconds:.0f} s: {end}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
