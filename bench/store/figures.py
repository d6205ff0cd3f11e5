"""Statistics over samples, and what is said of the machine. Pure but for ``machine``; what is measured is elsewhere."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Sequence
from typing import Any


def percentile(samples: Sequence[float], per_cent: float) -> float:
    """The nearest-rank percentile: the least sample that at least *per_cent* of all do not exceed."""
    if not samples:
        raise ValueError("a percentile of nothing")
    if not 0 < per_cent <= 100:
        raise ValueError(f"{per_cent} is no percentage")
    ordered = sorted(samples)
    return ordered[max(0, -(-len(ordered) * per_cent // 100).__int__() - 1)]


def summary(samples: Sequence[float]) -> dict[str, float]:
    """How many there are, their median, 99th percentile and greatest."""
    return {"n": len(samples), "p50": statistics.median(samples), "p99": percentile(samples, 99), "max": max(samples)}


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median of the ratios of samples that were taken in the same round: drift of the machine cancels out."""
    if len(numerators) != len(denominators):
        raise ValueError("samples of different rounds cannot be paired")
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def as_if_on_time(samples: Sequence[float], interval: float) -> list[float]:
    """*samples* of something that was to begin every *interval*, and those that did not begin because one took longer.

    Each that came too late waited for the rest of the one that held it up: without these, one long wait is one sample
    of many, and a percentile hides it.
    """
    found: list[float] = []
    for sample in samples:
        found.append(sample)
        late = sample - interval
        while late > 0:
            found.append(late)
            late -= interval
    return found


def machine() -> dict[str, Any]:
    """Processor, memory, kernel and versions: what the figures are figures of."""
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": models[0] if models else platform.machine(), "cores": os.cpu_count(), "memory_gib": round(pages / 2**30),
        "kernel": platform.release(), "python": platform.python_version(), "peer": peer_version(),
        "load": os.getloadavg()[0],
    }


def peer_version() -> str | None:
    """Debian's version of containers-storage; None if it is not there."""
    if shutil.which("containers-storage") is None:
        return None
    asked = subprocess.run(["dpkg-query", "-W", "-f=${Version}", "containers-storage"], capture_output=True, text=True, check=False)
    return asked.stdout or "unknown"
