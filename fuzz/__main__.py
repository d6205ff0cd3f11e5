"""``python -m fuzz TARGET|all [--seconds S] [--runs N] [--until N] [--workers N] [--out DIR]``: guided by coverage.

The engine is atheris.

``all`` runs one target after another. Each target's corpus grows in ``DIR/<target>/`` (``fuzz-out/`` by default) and is
taken up again by the next run; an input that breaks an invariant is left in ``DIR/findings/<target>/``: copy it to
``fuzz/findings/<target>/`` with the mend. How often each target was run is added to ``fuzz/figures.json``;
``python -m fuzz table`` writes the table of ``fuzz/README.md`` from it. With ``--until`` those targets that have had fewer
executions, by these figures, have turns of ``--seconds`` until none has. Exit status 1 if anything was found.

Only the command line belongs here: ``supervise`` runs the engine, ``engine`` is what it runs, ``campaign`` says when.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec

from fuzz import figures, supervise
from fuzz.campaign import Campaign
from fuzz.targets import TARGETS


def main() -> int:
    options = _options()
    if options.target == "table":
        figures.write_table(options.out)
        return 0
    if find_spec("atheris") is None:     # else each of its processes says so, which looks like a finding
        sys.exit("the engine is not installed: pip install -e '.[fuzz]', or make fuzz")
    chosen = list(TARGETS) if options.target == "all" else [options.target]
    failed = _until(chosen, options) if options.until else _each(chosen, options)
    print(f"{len(chosen)} targets, {len(failed)} with findings {' '.join(failed)}")
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("target", choices=[*TARGETS, "all", "table"])
    parser.add_argument("--seconds", type=int, default=60, help="for each target, or turn of one (default: 60)")
    parser.add_argument("--runs", type=int, default=-1, help="stop after so many inputs, in each worker")
    parser.add_argument("--until", type=int, default=0, help="in turns, until each target has had so many executions")
    parser.add_argument("--workers", type=int, default=1, help="processes at once, which share the corpus (default: 1)")
    parser.add_argument("--out", default="fuzz-out", help="a directory that the corpora grow in")
    parser.add_argument("--no-figures", action="store_true", help="do not add to fuzz/figures.json")
    return parser.parse_args()


def _each(chosen: list[str], options: argparse.Namespace) -> list[str]:
    failed = []
    for name in chosen:
        ran = _run(name, options.runs, options)
        failed += [name] if ran.failed else []
        if ran.stopped:
            break
    return failed


def _until(chosen: list[str], options: argparse.Namespace) -> list[str]:
    campaign, failed = Campaign(chosen, figures.read(), options.until), []
    while (turn := campaign.next()) is not None:
        name, lacking = turn
        ran = _run(name, -(-lacking // options.workers), options)
        campaign.ran(name, ran.executions, ran.seconds, failed=ran.failed)
        failed += [name] if ran.failed else []
        if ran.stopped:
            break
    return failed


def _run(name: str, runs: int, options: argparse.Namespace) -> supervise.Ran:
    ran = supervise.run(name, seconds=options.seconds, runs=runs, workers=options.workers, out=options.out)
    found = ", a finding" if ran.failed else ""
    print(f"{name}: {ran.executions:,} executions in {ran.seconds:.0f} s{found}", flush=True)
    if not options.no_figures:
        figures.add(name, ran.executions, ran.seconds)
    return ran


if __name__ == "__main__":
    sys.exit(main())
