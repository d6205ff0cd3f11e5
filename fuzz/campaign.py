"""Which target is run next, until each has had so many executions. Plans only: ``supervise`` runs, ``figures`` keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


class Campaign:
    """Those of *names* that lack executions, by *figures*, up to *until* each; the one that is done soonest comes first.

    A target that has a finding, or that does not get on, comes no more.
    """

    def __init__(self, names: Iterable[str], figures: Mapping[str, Any], until: int) -> None:
        self._lacking = {name: until - figures.get(name, {}).get("executions", 0) for name in names}
        self._rates = {name: float(row["rate"]) for name, row in figures.items() if row.get("rate")}
        self._over: set[str] = set()

    def next(self) -> tuple[str, int] | None:
        """The target, and how many executions it lacks; None when there is none."""
        left = {name: count for name, count in self._lacking.items() if count > 0 and name not in self._over}
        if not left:
            return None
        name = min(left, key=lambda name: left[name] / self._rates[name] if name in self._rates else 0.0)
        return name, left[name]

    def ran(self, name: str, executions: int, seconds: float, *, failed: bool) -> None:
        """What a turn of *name* came to."""
        self._lacking[name] -= executions
        self._rates[name] = max(executions, 1) / max(seconds, 1.0)
        if failed or not executions:
            self._over.add(name)
