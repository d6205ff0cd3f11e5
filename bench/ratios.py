"""Medians of paired ratios. Pure: numbers in, numbers out.

What is compared was run in turn within each round, so a machine that drifts from round to round moves both sides of a
ratio; the ratio of one round is what can be believed, and the median over the rounds is what is told.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """The median, least and greatest of so many paired ratios."""

    median: float
    low: float
    high: float
    rounds: int


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> Ratio | None:
    """*one* over *other* by their rounds; rounds that only one of them has count for nothing. None if none is left."""
    found = [one[number] / other[number] for number in sorted(one.keys() & other.keys())]
    if not found:
        return None
    return Ratio(statistics.median(found), min(found), max(found), len(found))


def over(values: Mapping[int, float], divisor: float) -> Ratio:
    """*values* over one number that was measured apart (a bound): nothing is paired."""
    found = [value / divisor for value in values.values()]
    return Ratio(statistics.median(found), min(found), max(found), len(found))


def median(values: Mapping[int, float]) -> float | None:
    return statistics.median(values.values()) if values else None
