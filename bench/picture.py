"""The pictures: bars with their range, a panel for each layer. Only here matplotlib is imported (the extra ``bench``)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_OURS, _OURS_SYNCED, _OTHERS, _OTHERS_SYNCED = "#7fb3d5", "#1f618d", "#c8c8c8", "#8a8a8a"


@dataclass(frozen=True)
class Bar:
    """One contender: all its seconds."""

    label: str
    values: Sequence[float]
    synced: bool
    ours: bool


@dataclass(frozen=True)
class Panel:
    title: str
    bars: Sequence[Bar]
    bound: float | None


def draw(panels: Sequence[Panel], title: str, path: Path) -> None:
    """Write the picture, as SVG, without a display. ImportError without matplotlib."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "layerstore"   # the same figures, the same bytes
    mpl.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot as plt

    height = 0.9 + max(len(panel.bars) for panel in panels) * 0.26
    figure, axes = plt.subplots(len(panels), 1, figsize=(9, height * len(panels)), squeeze=False)
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        _panel(axis, panel)
    figure.suptitle(f"{title}\nblue: layerstore; dark: durable, or followed by sync; dashed: the physical bound", fontsize=10)
    figure.tight_layout(rect=(0, 0, 1, 0.97))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _panel(axis: object, panel: Panel) -> None:
    middles = [statistics.median(bar.values) for bar in panel.bars]
    below = [middle - min(bar.values) for middle, bar in zip(middles, panel.bars, strict=True)]
    above = [max(bar.values) - middle for middle, bar in zip(middles, panel.bars, strict=True)]
    places = range(len(panel.bars))
    axis.barh(places, middles, xerr=[below, above], color=[_colour(bar) for bar in panel.bars],
              error_kw={"elinewidth": 0.8, "capsize": 2})
    axis.set_yticks(places, [bar.label for bar in panel.bars], fontsize=7)
    axis.invert_yaxis()
    axis.tick_params(axis="x", labelsize=7)
    axis.set_title(panel.title, fontsize=9, loc="left")
    for place, (middle, more) in enumerate(zip(middles, above, strict=True)):
        axis.annotate(f"{middle:.2f}", (middle + more, place), xytext=(4, 0), textcoords="offset points", va="center",
                      fontsize=7)
    axis.margins(x=0.08)
    if panel.bound is not None:
        axis.axvline(panel.bound, linestyle="--", linewidth=0.8, color="#b03a2e")


def _colour(bar: Bar) -> str:
    if bar.ours:
        return _OURS_SYNCED if bar.synced else _OURS
    return _OTHERS_SYNCED if bar.synced else _OTHERS
