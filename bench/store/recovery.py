"""Measure 3: the next writable open after kills, against what was in flight and how many layers there are.

In flight are either trees being staged (each full, none synced or sealed: recovery removes them) or one batch that
was promised and of which no tree had been moved yet (recovery moves and commits them all). The process that did it
dies of SIGKILL. The time is that of ``layerstore.open`` in a fresh process, imports not included.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import Any

from bench.store import stores
from bench.store.figures import summary

KINDS = ("stages", "applies")
_GROWS_AT = 1000   # layers from which on what the applies add is little; a smaller store is copied for each wreck


def measure(roots: dict[int, str], *, counts: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """The figures: kind → layers in the store → number in flight. Large stores grow by what is applied."""
    taken: dict[str, dict[int, dict[int, list[float]]]] = {
        kind: {size: {count: [] for count in counts} for size in roots} for kind in KINDS}
    for number in range(rounds):
        for kind in KINDS:
            for count in counts:
                for size, root in roots.items():
                    there = root if size >= _GROWS_AT else stores.copy(root, f"{root}-{kind}-{count}-{number}")
                    taken[kind][size][count].append(_recover(there, kind, count, f"{number}"))
    return {kind: {str(size): {str(count): summary(samples) for count, samples in of_size.items()}
                   for size, of_size in of_kind.items()} for kind, of_kind in taken.items()}


def _recover(root: str, kind: str, count: int, salt: str) -> float:
    if count:
        wreck(root, kind, count, salt)
    seconds, actions = json.loads(stores.run("reopen", root))
    if (count and not actions) or (kind == "stages" and actions < count):   # a batch is finished by one action
        raise RuntimeError(f"recovery did {actions} things where {count} {kind} had been killed")
    return float(seconds)


def wreck(root: str, kind: str, count: int, salt: str) -> None:
    """Leave *count* of them in flight. RuntimeError if the process did not die of SIGKILL."""
    environment = stores.environment()
    if kind == "applies":
        environment["LAYERSTORE_FAULT"] = "publish.rename:before:kill"
    command = stores.worker(f"killed-{kind}", root, f"{kind} {count} {salt} {os.path.basename(root)}", count)
    ended = subprocess.run(command, env=environment, check=False).returncode
    if ended != -signal.SIGKILL:
        raise RuntimeError(f"{command[3:5]} was to die of SIGKILL, and ended with {ended}")
