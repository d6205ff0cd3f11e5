"""What a repair is asked, and what it says: options, the report. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from layerstore.errors import InvalidArgumentError
from layerstore.verbs.check.findings import Depth, depth_of
from layerstore.verbs.pull_layers import PullOptions
from layerstore.verbs.repair.plan import Do, Step

__all__ = ["RepairOptions", "RepairReport", "options"]


@dataclass(frozen=True, slots=True)
class RepairOptions:
    """How to repair. ``layers``: only these IDs (empty: all). ``source``: a reference, as for a pull, that has good copies.

    ``depth``: how closely damage is looked for. ``wait``: seconds for readers that hold a layer; then it is left.
    ``set_aside``: of what nobody owns, what has the side file of a layer, too. ``workers``, ``rate``: as for a check
    (``CheckOptions``); the rate is for looking, and not for what is restored.
    """

    depth: Depth = Depth.CONTENT
    layers: tuple[str, ...] = ()
    source: str | None = None
    pull: PullOptions = field(default_factory=PullOptions)
    wait: float = 10.0
    dry_run: bool = False
    set_aside: bool = False
    workers: int | None = None
    rate: float | None = None


def options(
    depth: str, *, layers: Sequence[str], source: str | None, pull: PullOptions, wait: float, dry_run: bool,
    set_aside: bool, workers: int | None, rate: float | None,
) -> RepairOptions:
    """The options, looked at. InvalidArgumentError."""
    if not wait >= 0:
        raise InvalidArgumentError("to wait is for 0 or more seconds")
    look = depth_of(depth, workers, rate)
    return RepairOptions(look, tuple(layers), source, pull, wait, dry_run, set_aside, workers, rate)


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What was done (``dry_run``: would be). IDs of layers and images, but for ``steps``.

    ``mended``: whole again. ``quarantined``: kept, not served, with what is left of the damage. ``busy``: readers held
    them; nothing was changed. ``failed``: ID → why (the disk is full, the source cannot be reached …); what it was it is,
    nothing is lost, try again. In place of an ID: ``layers``, ``images``, ``mounts``, a path: that could not be looked at,
    or not be set aside. ``remount``: where something of a layer whose tree was changed is mounted, by this store or
    by whomever (``/proc/<pid>/root/…``: in another mount namespace, as far as it may be looked at): unmount, and mount
    again. ``views``: the leases of views that show such a layer. ``evidence``: where what was replaced is kept.
    ``fetched``: bytes that came from a registry. ``refused``: ID → why what the source gives for it is not its content.
    """

    steps: tuple[Step, ...]
    mended: tuple[str, ...] = ()
    quarantined: tuple[str, ...] = ()
    busy: tuple[str, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)
    remount: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    dry_run: bool = False
    fetched: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    views: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether nothing is left that is damaged."""
        return not (self.quarantined or self.busy or self.failed or any(step.do is Do.LEAVE for step in self.steps))
