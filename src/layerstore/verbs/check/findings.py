"""What a check is asked, and what it says: depths, findings, the report. No I/O. docs/check.md explains each code."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from layerstore.errors import InvalidArgumentError

__all__ = ["CheckOptions", "CheckReport", "Depth", "Finding", "depth_of", "options"]


class Depth(StrEnum):
    """How closely is looked, each including the ones before it."""

    STRUCTURE = "structure"   # the journal; of each layer its parts and side files; of each image its side file
    METADATA = "metadata"     # type, mode, owner, size, times, attributes and links of every path
    CONTENT = "content"       # every digest

    @property
    def rank(self) -> int:
        return list(Depth).index(self)


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """How to check.

    ``since_ns``: leave out layers that were found sound at this depth, or a greater one, at or after that time (ns since
    1970). ``budget``: seconds after which nothing further is begun (a part of a layer is looked at in any case); what was
    looked at least recently comes first, so that the next check goes on. ``workers``: threads that hash (None: one a CPU,
    at most 8). ``rate``: bytes read in a second to be hashed, at most. ``note``: keep with each layer when it was looked
    at, and when found sound (None: if ``since_ns`` or ``budget`` is given); never in a store that is open read-only.
    """

    depth: Depth = Depth.STRUCTURE
    since_ns: int | None = None
    budget: float | None = None
    workers: int | None = None
    rate: float | None = None
    note: bool | None = None


def options(
    depth: str, *, since_ns: int | None, budget: float | None, workers: int | None, rate: float | None, note: bool | None,
) -> CheckOptions:
    """The options, looked at. InvalidArgumentError."""
    if budget is not None and not budget >= 0:
        raise InvalidArgumentError("a budget is 0 or more seconds")
    return CheckOptions(depth_of(depth, workers, rate), since_ns, budget, workers, rate, note)


def depth_of(depth: str, workers: int | None, rate: float | None) -> Depth:
    """How closely to look, where with these *workers* and at this *rate* that can be. InvalidArgumentError."""
    if depth not in list(Depth):
        raise InvalidArgumentError(f"there is no depth {depth!r}", hint=f"one of {', '.join(Depth)}")
    if (workers is not None and workers < 1) or (rate is not None and not rate > 0):
        raise InvalidArgumentError("workers are 1 or more, a rate is more than 0 bytes")
    return Depth(depth)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. ``code`` is stable; ``subject`` a layer or image ID, or a path in the store.

    ``path``: of a layer, what in it is meant: of a code ``path-…`` relative to ``diff/``, else to the layer's directory.
    ``store``: the uuid of the store beneath in which it was found; None for the store itself.
    """

    code: str
    subject: str
    message: str
    path: str = ""
    store: str | None = None


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was found.

    ``unread``: paths that this process may not look at, so that it cannot tell; no damage. Of the ``layers`` there are,
    ``looked_at`` were checked at this depth, ``recent`` left out by ``since_ns``, ``left`` not reached within the budget,
    or not to their end (those of stores beneath, too). Structure is looked at of all. ``bytes``: content, with big data,
    that was hashed. ``left_unsound``: so many in which something was found when they were last looked at, to which this
    check did not get: it did not begin them, not end them, or went on behind that. ``complete_since_ns``: every layer was
    looked at, at this depth, since then (ns since 1970; None: some never, or that is not noted). All else is of the store
    itself, not of those beneath.
    """

    findings: tuple[Finding, ...]
    layers: int
    images: int
    depth: Depth
    unread: int = 0
    looked_at: int = 0
    recent: int = 0
    left: int = 0
    left_unsound: int = 0
    complete_since_ns: int | None = None
    bytes: int = 0
    seconds: float = field(default=0.0, compare=False)

    @property
    def sound(self) -> bool:
        return not self.findings

    @property
    def content(self) -> bool:
        """Whether every digest was compared: of each layer that was looked at."""
        return self.depth is Depth.CONTENT
