"""``python -m fuzz TARGET [--seconds S] [--runs N] [--corpus DIR]``: one target, coverage-guided, by atheris.

``python -m fuzz all`` runs each in turn. The corpus grows in DIR (``fuzz-out/`` by default); an input that breaks the
invariant is left there as ``crash-…``: copy it to ``fuzz/findings/<target>/`` with the mend. Exit status as the
engine's, or 1.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import subprocess
import sys

from fuzz.targets import TARGETS

_HERE = os.path.dirname(__file__)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("target", choices=[*TARGETS, "all"])
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument("--runs", type=int, default=-1, help="stop after so many inputs")
    parser.add_argument("--corpus", default="fuzz-out", help="a directory that the corpora grow in")
    options = parser.parse_args()
    if options.target != "all":
        return fuzz(options.target, options)
    failed = [each for each in TARGETS if subprocess.call(   # a process each: the engine never returns
        [sys.executable, "-m", "fuzz", each, *sys.argv[2:]],
    )]
    print(f"{len(TARGETS)} targets, {len(failed)} with findings {failed or ''}")
    return 1 if failed else 0


def fuzz(name: str, options: argparse.Namespace) -> int:
    import atheris  # noqa: PLC0415 - the extra "fuzz"

    with atheris.instrument_imports(include=["layerstore", "layerjournal"]):   # nothing of these is imported before
        target = importlib.import_module(f"fuzz.targets.{name}")
        seeds = importlib.import_module("fuzz.nasties").seeds
    corpus = os.path.join(options.corpus, name)
    os.makedirs(corpus, exist_ok=True)
    for seed in seeds(name):
        with open(os.path.join(corpus, hashlib.sha256(seed).hexdigest()[:16]), "wb") as file:
            file.write(seed)
    arguments = [
        sys.argv[0], f"-max_total_time={options.seconds}", f"-runs={options.runs}", f"-artifact_prefix={corpus}/",
        "-max_len=16384", "-rss_limit_mb=2048", "-timeout=30", "-print_final_stats=1", corpus,
    ]
    dictionary = os.path.join(_HERE, "dictionaries", f"{name}.dict")
    if os.path.exists(dictionary):
        arguments.insert(1, f"-dict={dictionary}")
    atheris.Setup(arguments, target.check)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
