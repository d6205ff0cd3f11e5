"""Where a store is damaged: its files by what they are for, drawn so that the few beside the trees have their share.

Pure, but for one walk of a store. Not here: what is done to a place (``damages``, ``bytewise``).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["ADVICE", "JOURNAL", "Places", "owner_of", "purpose_of"]

ADVICE = frozenset({"suspects", "checked", "digests", "output"})
"""Files of a layer's directory on which nothing rests that is promised."""

JOURNAL = frozenset({"database", "segment", "lock file"})
"""Purposes of files of the journal: they are nobody's, and damaged byte by byte."""

_WEIGHTS = {   # of a hundred damages, about
    "content": 40, "database": 14, "side file": 10, "manifest": 7, "segment": 6, "tar-split": 5, "image": 4, "kept": 3,
    "big data": 3, "tree": 3, "whole tree": 3, "directory": 2, "advice": 2, "lock file": 1,
}
_PARTS = {
    "diff": "content", "manifest": "manifest", "tar-split": "tar-split", "kept": "kept", "big-data": "big data",
    "layer": "side file", "txid": "side file", **dict.fromkeys(ADVICE, "advice"),
}


def purpose_of(path: str) -> str:
    """What the file at *path* (relative to the store) is for; "" for what is not damaged."""
    parts = path.split("/")
    if parts[0] == "journal":
        if path == "journal/data.mdb":
            return "database"
        if path in ("journal/lock.mdb", "journal/pidns"):
            return "lock file"
        return "segment" if path.endswith(".seg") else ""
    if parts[0] not in ("layers", "images"):
        return ""
    if len(parts) == 1:
        return "directory"
    if parts[0] == "images":
        return "image"
    if len(parts) == 2:
        return "whole tree"
    return "tree" if path.endswith("/diff") and len(parts) == 3 else _PARTS.get(parts[2], "")


def owner_of(path: str) -> str:
    """The ID of the layer or image that *path* belongs to; "" if it is nobody's."""
    parts = path.split("/")
    return parts[1] if parts[0] in ("layers", "images") and len(parts) > 1 else ""


@dataclass
class Places:
    """The places of one store, by purpose and owner; the same store gives the same ones in the same order."""

    by_purpose: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    @classmethod
    def of(cls, paths: Iterator[str]) -> Places:
        made = cls()
        for path in sorted(paths):
            if purpose := purpose_of(path):
                made.by_purpose.setdefault(purpose, {}).setdefault(owner_of(path), []).append(path)
        return made

    def purpose(self, draw: random.Random) -> str:
        """One of those that there are, by weight."""
        there = sorted(self.by_purpose)
        return draw.choices(there, [_WEIGHTS[each] for each in there])[0]

    def some(self, purpose: str, draw: random.Random) -> list[str]:
        """The places of that *purpose* of one owner: of a large layer as often as of a small one."""
        owners = self.by_purpose[purpose]
        return owners[draw.choice(sorted(owners))]
