"""A process as if no store had been opened in it: an opening imports the verbs, and an interrupt may come in then, too."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

_ASK = """
import sys, crash.lines
before = set(sys.modules)
from layerstore import store
for each in store._VERBS:
    each.load()
print(*set(sys.modules) - before)
"""


@cache
def late() -> tuple[str, ...]:
    """The product's modules that an opening imports."""
    asked = subprocess.run(
        [sys.executable, "-c", _ASK], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    return tuple(name for name in sorted(asked.stdout.split()) if name.startswith("layerstore."))


def forget() -> None:
    """Let the opening import them again. What is imported already keeps what it has: none of it imports any of them."""
    for name in late():
        if sys.modules.pop(name, None) is not None:
            package, _, module = name.rpartition(".")
            if package in sys.modules:   # else it was one of them
                vars(sys.modules[package]).pop(module, None)


__all__ = ["forget", "late"]
