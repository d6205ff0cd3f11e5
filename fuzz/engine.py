"""``python -m fuzz.engine TARGET DIR [option of libFuzzer …]``: one process of the coverage-guided engine.

Started by ``supervise``. The seeds are put into the corpus ``DIR/<target>/`` first; findings go to
``DIR/findings/<target>/``. Never returns: the engine ends the process.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from fuzz import cheap
from fuzz.targets import TARGETS

_PACKAGES = ["layerstore", "layerjournal"]
_HERE = os.path.dirname(__file__)


def main(name: str, out: str, *more: str) -> None:
    import atheris  # noqa: PLC0415 - the extra "fuzz"

    how = TARGETS[name]
    with atheris.instrument_imports(include=_PACKAGES, exclude=list(others(how.followed))):   # none is imported by now
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


def others(followed: tuple[str, ...]) -> Iterator[str]:
    """The modules that are in none of *followed*: the engine can leave out modules, but takes whole packages."""
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)   # imports nothing
        for directory in (spec and spec.submodule_search_locations) or ():
            for path in sorted(Path(directory).rglob("*.py")):
                name = ".".join((package, *path.relative_to(directory).with_suffix("").parts)).removesuffix(".__init__")
                if not any(name == each or name.startswith(f"{each}.") for each in followed):
                    yield name


if __name__ == "__main__":
    main(*sys.argv[1:])
