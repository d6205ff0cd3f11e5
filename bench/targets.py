"""What was promised, and whether the figures keep it. Pure: runs and bounds in, lines out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench import ratios
from bench.bound import bound
from bench.tables import spread

Runs = Mapping[tuple[str, str, str, str], Mapping[int, float]]   # (input, layer, compression, contender): {round: wall}


@dataclass(frozen=True)
class Target:
    """*one* takes at most *limit* times what *other* takes, on the *layers* (empty: on all)."""

    text: str
    one: str
    other: str
    limit: float
    layers: tuple[str, ...] = ()


TARGETS = (
    Target("both unsynced: layerstore / containers-storage", "ours-unsynced", "storage", 0.45),
    Target("layerstore durable / containers-storage unsynced", "ours", "storage", 0.55),
    Target("layerstore durable / layerstore unsynced, then sync", "ours", "ours-unsynced+sync", 1.1),
    Target("layerstore durable / GNU tar, then sync", "ours", "tar+sync", 1.0, ("small", "large")),
    Target("layerstore unsynced / the physical bound", "ours-unsynced", "bound", 2.0, ("small", "large")),
    Target("layerstore durable / the physical bound and one syncfs", "ours", "bound+syncfs", 2.0, ("small", "large")),
)


@dataclass(frozen=True)
class Finding:
    """One target on one layer in one compression."""

    target: Target
    layer: str
    compression: str
    ratio: ratios.Ratio

    @property
    def reached(self) -> bool:
        return self.ratio.median <= self.target.limit


def rows(found: Sequence[Finding], targets: Sequence[Target] = TARGETS) -> list[tuple[str, str, str, bool]]:
    """One row a target: what it is, its limit, the worst of its medians and where, and whether all of them reach it."""
    told = []
    for target in targets:
        cells = [each for each in found if each.target == target]
        if cells:
            worst = max(cells, key=lambda each: each.ratio.median)
            middle = spread(worst.ratio.median, worst.ratio.low, worst.ratio.high)
            reached = sum(each.reached for each in cells)
            told.append((target.text, f"≤ {target.limit}", (f"{middle} on `{worst.layer}`, {worst.compression}; {reached} of "
                         f"{len(cells)} reach it"), reached == len(cells)))
    return told


def by_round(runs: Iterable[Mapping[str, Any]], figure: str = "wall") -> dict[tuple[str, str, str, str], dict[int, float]]:
    """Runs as a result has them, sorted by what was run on what; marked ones too: they are counted elsewhere."""
    found: dict[tuple[str, str, str, str], dict[int, float]] = {}
    for run in runs:
        key = run["input"], run["layer"], run["compression"], run["contender"]
        found.setdefault(key, {})[run["round"]] = run[figure]
    return found


def findings(result: Mapping[str, Any], targets: Sequence[Target] = TARGETS) -> list[Finding]:
    """Every target on everything that it speaks of and that was measured, with a warm input."""
    runs = by_round(result["runs"])
    cells = list(dict.fromkeys((layer, compression) for _, layer, compression, _ in runs))
    found = []
    for target in targets:
        for layer, compression in cells:
            if target.layers and layer not in target.layers:
                continue
            ratio = _ratio(target, runs, layer, compression, result)
            if ratio is not None:
                found.append(Finding(target, layer, compression, ratio))
    return found


def _ratio(target: Target, runs: Runs, layer: str, compression: str, result: Mapping[str, Any]) -> ratios.Ratio | None:
    one = runs.get(("warm", layer, compression, target.one), {})
    if not target.other.startswith("bound"):
        return ratios.paired(one, runs.get(("warm", layer, compression, target.other), {}))
    parts = result["bounds"].get(layer, {}).get(compression)
    if parts is None or not one:
        return None
    more = parts["syncfs"] if target.other == "bound+syncfs" else 0.0
    return ratios.over(one, bound(parts, result["cpus"]) + more)
