"""When each layer was last found sound, and at which depth: ``layers/<id>/checked``, and the order that follows from it.

It is advice: it may be lost, old or wrong, is never synced, and decides only what is looked at first. It goes where its
tree goes, so that nobody has to sweep it, and a check that is killed has lost no layer that it finished.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress

from layerstore.dedup import suspects
from layerstore.model import Layer
from layerstore.system import fs
from layerstore.verbs.check.findings import Depth

__all__ = ["NAME", "in_order", "note", "read"]

NAME = "checked"
_MOST_BYTES = 4_096


def read(tree_fd: int) -> dict[Depth, int]:
    """When the tree was last found sound, in ns since 1970, by depth."""
    try:
        said = json.loads(fs.read_file(tree_fd, NAME, maximum=_MOST_BYTES) or b"{}")
        found = {Depth(depth): int(when) for depth, when in said.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    return found


def note(tree_fd: int, depth: Depth, now_ns: int) -> None:
    """Say that it is sound now; never an error. Who finds all digests right has found all metadata right.

    Durability: none; what is lost is looked at again.
    """
    with suppress(OSError):
        found = read(tree_fd) | {each: now_ns for each in Depth if Depth.STRUCTURE.rank < each.rank <= depth.rank}
        fs.replace_file(tree_fd, NAME, json.dumps(found, sort_keys=True).encode(), point="check.note")


def in_order(
    dir_fd: int, layers: Iterable[Layer], depth: Depth, at_risk: Collection[str],
) -> tuple[list[Layer], Mapping[str, int]]:
    """*layers* as they are to be looked at, and when each was last (0: never): the likeliest damage first.

    That is: with files that others found rotten; *at risk*, in flight when the store was last closed or the power went;
    then the one that was not looked at for longest. *dir_fd* is ``layers/``.
    """
    last: dict[str, int] = {}
    rank: dict[str, tuple[bool, bool, int, str]] = {}
    found = list(layers)
    for layer in found:
        noted, when = fs.has_entry(dir_fd, layer.id, suspects.NAME), 0
        if depth is not Depth.STRUCTURE:
            with suppress(OSError), fs.open_dir(layer.id, dir_fd) as fd:
                when = read(fd).get(depth, 0)
        last[layer.id] = when
        rank[layer.id] = (not noted, layer.id not in at_risk, when, layer.id)
    found.sort(key=lambda layer: rank[layer.id])
    return found, last
