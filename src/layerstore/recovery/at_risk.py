"""Noting which layers a crash may have hit, for the next check to look at them first, whatever is covered by then.

Those on which recovery acted; and those that no checkpoint covers and that were committed before this boot: if the machine
lost power then, they are what it may have taken. What is noted is advice (``trees.checked``), never synced, and nothing
of recovery rests on it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from layerstore.lifecycle.states import Kind, State
from layerstore.opening.handle import Handle
from layerstore.recovery.planner import Action
from layerstore.system import fs
from layerstore.trees import checked

__all__ = ["committed_above_the_mark", "note"]

_ADJUSTED_NS = 60 * 10**9                # a clock that is set moves the time of the boot: so much makes no other boot


def committed_above_the_mark(handle: Handle) -> Iterator[tuple[str, int]]:
    """The ID of each layer that no checkpoint covers, and when it was committed, or last mended, in ns since 1970."""
    with handle.read() as view:
        for record in view.records(after=view.low_water()):
            kind, _, txid = record.entity.partition(":")
            if kind == Kind.LAYER and record.to_state == State.COMMITTED:
                row = view.get("layers", txid)
                if row is not None and row["state"] == State.COMMITTED:
                    yield row["layer_id"], record.time_ns


def note(handle: Handle, done: list[Action]) -> None:
    """Note what recovery acted on, *done*, and what the boot found not covered.

    Durability: none; a crash before leaves these layers to be looked at in their turn.
    """
    now = handle.clock()
    hit = {action.layer_id: now for action in done if action.layer_id is not None}
    booted = now - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    for layer_id, committed in committed_above_the_mark(handle):
        if committed >= booted:          # of this boot, and so are those after it
            break
        hit.setdefault(layer_id, booted)
    new = {layer_id: when for layer_id, when in sorted(hit.items()) if not _is_known(handle, layer_id, when)}
    if new:
        checked.note_at_risk(handle.dirs["layers"], new)


def _is_known(handle: Handle, layer_id: str, when_ns: int) -> bool:
    """Whether that is noted, or cannot be: the layer is not there."""
    try:
        with fs.open_dir(layer_id, handle.dirs["layers"]) as fd:
            return checked.read(fd).at_risk >= when_ns - _ADJUSTED_NS
    except OSError:
        return True
