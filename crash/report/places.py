"""Words for states: the crash point one belongs to, the same for all states of that point; a timeline's entries."""

from __future__ import annotations

import re
from typing import Any

from crash.state import State

_POINT = re.compile(r"(?<![\w./-])[a-z][a-z-]*(?:\.[a-z-]+)+(?!\w)")
_INSIDE = re.compile(r"\bdiff/\S+")   # which file of a layer it was makes no other point
_LINE = re.compile(r"(\.py):.*")        # an exception is told apart by module, not by line
_NUMBERS = re.compile(r"(?<=\w)[:#]\d+\b|\b\d+(?:\.\d+)*\b")


def place(state: State) -> str:
    """The fault point that the state's fault names; failing that, the fault without numbers.

    A rig that knows better says so in ``details["place"]`` or ``details["step"]``.
    """
    text = str(state.details.get("place") or state.details.get("step") or state.fault)
    point = _POINT.search(text)
    if point:
        return point[0]
    text = _LINE.sub(r"\1", text)
    text = _INSIDE.sub("diff/…", text)
    return " ".join(_NUMBERS.sub("", text.split(", recovery", maxsplit=1)[0]).split())[:80] or "the beginning"


def story(state: State) -> list[dict[str, str]]:
    """The state as a timeline: its own, ``details["timeline"]``, or else one of what its line says.

    An entry is ``{"kind": ..., "text": ...}``, or only a text. Kinds: ``journal`` (a record), ``effect`` (what was done to
    the disk), ``fault``, ``lost``, ``recovery``, ``verdict``.
    """
    details = state.details
    own = details.get("timeline")
    if own:
        return [_event(entry) for entry in own]
    told: list[tuple[str, Any]] = [("effect", f"passed: {details['step']}")] if details.get("step") else []
    told += [("fault", state.fault)]
    told += [("lost", f"of what was not flushed: {details['kind']}")] if details.get("kind") else []
    told += [("effect", f"the program was told: {details['error']}")] if details.get("error") else []
    decided = details.get("recovery") or details.get("redo") or ["had work to do" if state.redo else "nothing to do"]
    told += [("recovery", each) for each in (decided if isinstance(decided, list) else [decided])]
    told += [("verdict", state.outcome)]
    return [{"kind": kind, "text": str(text)} for kind, text in told]


def _event(entry: Any) -> dict[str, str]:
    if isinstance(entry, dict):
        return {"kind": str(entry.get("kind", "effect")), "text": str(entry.get("text", ""))}
    return {"kind": "effect", "text": str(entry)}
