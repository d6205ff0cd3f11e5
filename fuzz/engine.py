"""``python -m fuzz.engine TARGET DIR [option of libFuzzer …]``: one process of the coverage-guided engine.

Started by ``supervise``. The seeds are put into the corpus ``DIR/<target>/`` first; findings go to
``DIR/findings/<target>/``. Never returns: the engine ends the process.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys

from fuzz import cheap
from fuzz.targets import TARGETS

_HERE = os.path.dirname(__file__)


def main(name: str, out: str, *more: str) -> None:
    import atheris  # noqa: PLC0415 - the extra "fuzz"

    how = TARGETS[name]
    with atheris.instrument_imports(include=list(how.followed)):   # nothing of these is imported before
        target = importlib.import_module(f"fuzz.targets.{name}")
        cheap.apply()
        seeds = importlib.import_module("fuzz.nasties").seeds
    corpus, found = os.path.join(out, name), os.path.join(out, "findings", name)
    os.makedirs(corpus, exist_ok=True)
    os.makedirs(found, exist_ok=True)
    for seed in seeds(name):
        with open(os.path.join(corpus, hashlib.sha256(seed).hexdigest()[:16]), "wb") as file:
            file.write(seed)
    dictionary = os.path.join(_HERE, "dictionaries", f"{name}.dict")
    atheris.Setup([
        sys.argv[0], f"-max_len={how.longest}", *([f"-dict={dictionary}"] if os.path.exists(dictionary) else []),
        f"-artifact_prefix={found}/", "-rss_limit_mb=2048", "-timeout=120", "-print_final_stats=1", "-reload=30",
        *more, corpus,
    ], target.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
