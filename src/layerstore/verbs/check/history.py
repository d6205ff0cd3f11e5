"""The order in which layers are looked at, from what is noted of earlier looks (``trees.checked``); what a repair notes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

from layerstore.dedup import suspects
from layerstore.model import Layer
from layerstore.opening.handle import Handle
from layerstore.recovery.at_risk import committed_above_the_mark
from layerstore.system import fs
from layerstore.trees import checked
from layerstore.trees.checked import Checked
from layerstore.verbs.check.findings import Depth

__all__ = ["at_risk", "counted", "in_order", "note_mended"]


def counted(depth: Depth) -> list[str]:
    """The depths that a look at *depth* is one of, too: who has looked at all digests has looked at all metadata."""
    return [each.value for each in Depth if Depth.STRUCTURE.rank < each.rank <= depth.rank]


def at_risk(handle: Handle) -> Mapping[str, int]:
    """The layers that a loss of power may have hit, and when that was, or could first have been (ns since 1970).

    What no checkpoint covers, since it was committed; and on what the recovery of this opening acted, or would have: in a
    store that is written to, that is noted with the layers, too, for the next ones (``recovery.at_risk``).
    """
    since = dict(handle.recovered)
    for layer_id, committed in committed_above_the_mark(handle):
        since[layer_id] = max(since.get(layer_id, 0), committed)
    return since


def note_mended(dir_fd: int, layer: Layer, depth: Depth, when_ns: int) -> None:
    """A repair, begun then, has put right all that was wrong with it: what checks noted of that is no longer so."""
    with suppress(OSError), fs.open_dir(layer.id, dir_fd) as fd:
        if any(checked.read(fd).was_unsound(each) for each in counted(depth)):
            checked.note_looked(fd, counted(depth), when_ns, sound=True)


def in_order(
    dir_fd: int, layers: Iterable[Layer], depth: Depth, risks: Mapping[str, int],
) -> tuple[list[Layer], Mapping[str, Checked]]:
    """*layers* as they are to be looked at, the likeliest damage first; and what is noted of each (not at ``structure``).

    That is: with files that others found rotten; those in *risks* (``at_risk``), and those of which that is noted; both
    only if they were not looked at since. Then the one that was not looked at for longest, whatever was found:
    damage that waits for its repair must not keep others from being looked at. What is given with each is when it was
    last put at risk by any of that, not only what is noted (``Checked.at_risk``). *dir_fd* is ``layers/``.
    """
    found, past = list(layers), dict[str, Checked]()
    rank: dict[str, tuple[bool, bool, int, str]] = {}
    for layer in found:
        here = Checked()
        if depth is not Depth.STRUCTURE:
            with suppress(OSError), fs.open_dir(layer.id, dir_fd) as fd:
                here = checked.read(fd)
        noted, risk, looked = _noted(dir_fd, layer.id), max(here.at_risk, risks.get(layer.id, 0)), here.looked.get(depth, 0)
        rank[layer.id] = (noted <= looked, risk <= looked, looked, layer.id)
        past[layer.id] = replace(here, at_risk=max(noted, risk))
    found.sort(key=lambda layer: rank[layer.id])
    return found, past


def _noted(dir_fd: int, layer_id: str) -> int:
    """When a file of the layer was last found rotten by who took from it, in ns; 0: never, or that cannot be told."""
    try:
        return os.stat(f"{layer_id}/{suspects.NAME}", dir_fd=dir_fd, follow_symlinks=False).st_mtime_ns
    except OSError:
        return 0
