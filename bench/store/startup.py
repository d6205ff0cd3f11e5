"""Measure 5: the command line's start-up: whole processes, with bytecode cached, as it is where it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from bench.store import stores
from bench.store.figures import summary


def measure(roots: dict[int, str], *, rounds: int) -> dict[str, Any]:
    """Seconds of ``--version``, and of listing the layers of each store; of a bare interpreter, to compare."""
    program = [os.path.join(os.path.dirname(sys.executable), "layerstore")]
    commands = {"python -c pass": [sys.executable, "-c", "pass"], "layerstore --version": [*program, "--version"]}
    for size, root in roots.items():
        commands[f"layerstore layers, of {size}"] = [*program, "--root", root, "layers"]
        commands[f"layerstore images, beside {size} layers"] = [*program, "--root", root, "images"]
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for command in commands.values():
        _run(command)   # warms up
    for _ in range(rounds):
        for name, command in commands.items():
            taken[name].append(_run(command))
    return {name: summary(samples) for name, samples in taken.items()}


def _run(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, env=stores.environment(), stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun
