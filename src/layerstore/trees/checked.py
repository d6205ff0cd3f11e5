"""When a layer was looked at, and how far, when found sound, since when it is at risk: ``layers/<id>/checked``.

It is advice: it may be lost, old or wrong, is never synced, and decides only what is looked at first, and what need not be
looked at again by who asks for that. It goes where its tree goes, so that nobody has to sweep it. When to note what is
``check``'s and ``recovery``'s; nothing here knows why.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from layerstore.system import fs

__all__ = ["NAME", "Checked", "Part", "note_at_risk", "note_looked", "note_part", "read"]

NAME = "checked"
_MOST_BYTES = 1 << 16
_LOOKED, _AT_RISK, _PART = "looked", "at-risk", "part"   # beside them, by depth, when it was found sound


@dataclass(frozen=True, slots=True)
class Part:
    """A look at *depth*, begun at *begun* (ns since 1970), that is done up to *place*; *sound*: nothing was found."""

    depth: str
    place: int
    begun: int
    sound: bool


@dataclass(frozen=True, slots=True)
class Checked:
    """Times in ns since 1970, by depth (0, or none: never). ``looked``: whatever was found. ``sound``: nothing was.

    ``part``: a look that is to be gone on with.
    """

    sound: Mapping[str, int] = field(default_factory=dict)
    looked: Mapping[str, int] = field(default_factory=dict)
    at_risk: int = 0
    part: Part | None = None

    def was_unsound(self, depth: str) -> bool:
        """Whether something was found, or could not be read, when it, or a part of it, was last looked at so closely."""
        in_part = self.part is not None and self.part.depth == depth and not self.part.sound
        return in_part or self.looked.get(depth, 0) > self.sound.get(depth, 0)


def read(tree_fd: int) -> Checked:
    """What is noted in the layer's directory *tree_fd*; nothing, if that cannot be read or understood."""
    try:
        first, *rest = (fs.read_file(tree_fd, NAME, maximum=_MOST_BYTES) or b"").split(b"\n") or [b""]
        said = json.loads(first or b"{}")
        sound, looked = _times(said), _times(said.get(_LOOKED, {}))
        at_risk = max(int(each.get(_AT_RISK, 0)) for each in (said, *map(json.loads, filter(None, rest))))
        return Checked(sound, sound | looked, at_risk, _part(said.get(_PART)))
    except (OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError):
        return Checked()


def note_looked(tree_fd: int, depths: Iterable[str], when_ns: int, *, sound: bool) -> None:
    """Say that a look that began then has ended, at these *depths*, and whether all was right; never an error.

    Durability: none; what is lost is looked at again.
    """
    now, times = read(tree_fd), dict.fromkeys(depths, when_ns)
    # what is damaged was sound once: that is no reason any more to leave it out
    found_sound = {**now.sound, **times} if sound else {}
    _write(tree_fd, replace(now, looked={**now.looked, **times}, sound=found_sound, part=None))


def note_part(tree_fd: int, part: Part) -> None:
    """Say how far a look has come that is not over; never an error.

    Where something was found in one so far, that stays until one is over: it may be further on than this one came.
    Durability: none; what is lost is looked at again.
    """
    now = read(tree_fd)
    if now.part is not None and now.part.depth == part.depth and not now.part.sound:
        part = replace(part, sound=False)   # whether this look went on with that or began anew
    _write(tree_fd, replace(now, part=part, sound=now.sound if part.sound else {}))


def note_at_risk(dir_fd: int, layers: Mapping[str, int]) -> None:
    """Say of *layers*, by their names in *dir_fd*, when something happened that calls for a look; never an error.

    Added as a line of its own, until the next look puts all into one. Durability: none; what is lost is looked at in
    its turn.
    """
    lines = {name: b"\n" + json.dumps({_AT_RISK: when}).encode() + b"\n" for name, when in layers.items()}
    with suppress(OSError):
        fs.append_each(dir_fd, lines, NAME, point="recover.note")


def _times(said: Mapping[str, Any]) -> dict[str, int]:
    return {depth: int(when) for depth, when in said.items() if depth not in (_LOOKED, _AT_RISK, _PART)}


def _part(said: Mapping[str, Any] | None) -> Part | None:
    if said is None:
        return None
    return Part(str(said["depth"]), int(said["place"]), int(said["begun"]), bool(said["sound"]))


def _write(tree_fd: int, what: Checked) -> None:
    said: dict[str, Any] = {**what.sound, _LOOKED: dict(what.looked)}
    said |= {_AT_RISK: what.at_risk} if what.at_risk else {}
    said |= {_PART: asdict(what.part)} if what.part is not None else {}
    with suppress(OSError):
        fs.replace_file(tree_fd, NAME, json.dumps(said, sort_keys=True).encode(), point="check.note")
