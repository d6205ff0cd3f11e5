"""Stores with many layers, made fast: filled where flushes cost nothing, and copied to where they are measured.

All layers are made by the product's own verbs. A store that is measured as "100 layers" is a copy of the growing one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable

_FAST = "/dev/shm"


def environment() -> dict[str, str]:
    """For worker processes: bytecode is kept, as it is for what is installed, and so this program is found."""
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, [here, kept.get("PYTHONPATH")]))}


def worker(*arguments: object) -> list[str]:
    """The command line of a worker."""
    return [sys.executable, "-m", "bench.store.worker", *map(str, arguments)]


def run(*arguments: object, check: bool = True) -> str:
    """Run a worker to its end; what it printed."""
    done = subprocess.run(worker(*arguments), env=environment(), stdout=subprocess.PIPE, text=True, check=check)
    return done.stdout


def grow(sizes: Iterable[int], target: str) -> dict[int, str]:
    """Stores of those *sizes* below *target*: size → root."""
    roots: dict[int, str] = {}
    fast = _FAST if os.access(_FAST, os.W_OK) else target
    with tempfile.TemporaryDirectory(prefix="layerstore-bench-", dir=fast) as scratch:
        growing, have = os.path.join(scratch, "store"), 0
        for size in sorted(sizes):
            _fill(growing, have, size)
            have = size
            roots[size] = copy(growing, os.path.join(target, f"store-{size}"))
    return roots


def copy(root: str, target: str) -> str:
    """A copy of a store that nobody has open."""
    subprocess.run(["cp", "-a", root, target], check=True)
    subprocess.run(["sync", "-f", target], check=True)   # and no other file system
    return target


def _fill(root: str, have: int, size: int) -> None:
    """Two processes: as long as one flushes or waits for the journal's lock, the other unpacks."""
    middle = (have + size) // 2
    run("fill", root, have, min(have + 1, size))   # makes the store, before two want to
    parts = [subprocess.Popen(worker("fill", root, first, last), env=environment())
             for first, last in ((have + 1, middle), (max(middle, have + 1), size)) if first < last]
    if any(part.wait() for part in parts):
        raise RuntimeError(f"filling {root} failed")
    run("checkpoint", root)
