"""What recovery has to do: only what was seen at the beginning of a check and at its end, the same, and held by nobody.

A live process has things in passing that look like those of a dead one: a staging directory before its lock is taken, a
mount's row before the kernel has the mount. So one look does not tell; what is left of a dead process stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from layerstore.opening.handle import Handle
from layerstore.recovery.planner import Action, Do, plan
from layerstore.recovery.recover import gather, probe
from layerstore.system import flock
from layerstore.verbs.check.findings import Finding

__all__ = ["Pending"]

_NOT_OURS = (Do.WAIT, Do.DEFER)          # live holders have them


class Pending:
    """The first look is taken when it is made, the second by ``findings``."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._before = _seen(handle)

    def findings(self) -> Iterator[Finding]:
        """What was there both times."""
        if not self._before:
            return
        for action, row in _seen(self._handle):
            if (action, row) in self._before:
                yield Finding("pending-recovery", action.key, f"{action.do.value}: {action.why}")


def _seen(handle: Handle) -> list[tuple[Action, Any]]:
    """What recovery would do now, each with its row (None: it has none)."""
    subjects = gather(handle)
    rows: dict[str, Any] = {**subjects.layers, **subjects.images, **subjects.mounts}
    actions = [each for each in plan(subjects, probe(handle, subjects)) if each.do not in _NOT_OURS]
    if any(_is_of_a_mount(each) for each in actions) and flock.is_locked(handle.root_fd, "uppers"):
        actions = [each for each in actions if not _is_of_a_mount(each)]
    with handle.read() as view:          # who had that lock until just now has changed the row
        return [
            (each, rows.get(each.key)) for each in actions
            if not _is_of_a_mount(each) or view.get("mounts", each.key.removeprefix("uppers/")) == rows.get(each.key)
        ]


def _is_of_a_mount(action: Action) -> bool:
    return action.do is Do.DETACH or action.key.startswith("uppers/")
