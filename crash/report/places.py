"""Words for states: the crash point one belongs to, the same for all states of that point; a timeline's entries."""

from __future__ import annotations

import re
from typing import Any

from crash.state import State

_POINT = re.compile(r"(?<![\w./-])[a-z][a-z-]*(?:\.[a-z-]+)+(?!\w)")
_INSIDE = re.compile(r"\bdiff/\S+")   # which file of a layer it was makes no other point
_NUMBERS = re.compile(r"(?<=\w)[:#]\d+\b|\b\d+(?:\.\d+)*\b")


def place(state: State) -> str:
    """The fault point that the state's fault names; failing that, the fault without numbers.

    A rig that knows better says so in ``details["place"]`` or ``details["step"]``.
    """
    text = str(state.details.get("place") or state.details.get("step") or state.fault)
    point = _POINT.search(text)
    if point:
        return point[0]
    text = _INSIDE.sub("diff/…", text)
    return " ".join(_NUMBERS.sub("", text.split(", recovery", maxsplit=1)[0]).split())[:80] or "the beginning"


def event(entry: Any) -> dict[str, str]:
    """One entry of ``details["timeline"]``: ``{"kind": ..., "text": ...}``, or only a text.

    Kinds: ``journal`` (a record), ``effect`` (what was done to the disk), ``fault``, ``lost``, ``recovery``, ``verdict``.
    """
    if isinstance(entry, dict):
        return {"kind": str(entry.get("kind", "effect")), "text": str(entry.get("text", ""))}
    return {"kind": "effect", "text": str(entry)}
