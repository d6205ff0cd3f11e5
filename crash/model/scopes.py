"""How large a world is explored, by name. Each scope is closed: every state that it can reach is visited.

The group ``named`` is what the project states; docs/model.md has the sizes.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Scope:
    """``trees``: transactions that may begin; the others are how often something may happen in one run.

    ``parents``: the IDs that may be claimed, each with what it stands on. ``base``: an ID that is committed, durable
    and below the mark when the run begins. ``held``: staged handles of one process at a time; with 2 it may also
    apply both as one batch. ``join``: processes also bring to rest what dead ones left, as a stage that waits does.
    ``readers``: they also read layers, under the tree's lock. ``spools``: what is staged is fetched, and kept meanwhile.
    """

    name: str
    about: str
    trees: int
    parents: dict[str, str | None] = field(default_factory=lambda: {"A": None})
    base: str | None = None
    deletes: int = 0
    checkpoints: int = 0
    crashes: int = 1
    processes: int = 2
    held: int = 1
    join: bool = False
    archive: bool = False
    readers: bool = False
    spools: bool = False

    def __hash__(self) -> int:
        return hash(self.name)

    def parent(self, layer_id: str) -> str | None:
        return self.parents.get(layer_id)


ON_BASE: dict[str, str | None] = {"A": "P", "B": "P"}
CHAIN: dict[str, str | None] = {"A": None, "B": "A"}

SCOPES = {scope.name: scope for scope in (
    Scope("one", "1 transaction, its deletion, readers, a checkpoint, 1 crash",
          1, deletes=1, checkpoints=1, join=True, readers=True),
    Scope("two", "2 transactions on one ID, which is deleted and created again, a checkpoint, archive, 1 crash",
          2, deletes=1, checkpoints=1, archive=True),
    Scope("pair", "2 transactions, as one batch or apart, one the other's parent, 1 crash",
          2, CHAIN, held=2),
    Scope("small", "2 transactions over 2 IDs with a shared parent, a delete, a checkpoint, archive, 2 crashes",
          2, ON_BASE, "P", deletes=1, checkpoints=1, crashes=2, join=True, archive=True),
    Scope("shared", "3 transactions over 2 IDs with a shared parent, a delete, a checkpoint, archive, 2 crashes",
          3, ON_BASE, "P", deletes=1, checkpoints=1, crashes=2, join=True, archive=True),
    Scope("chain", "3 transactions over 2 IDs, one the other's parent, batches, a delete, a checkpoint, 2 crashes",
          3, CHAIN, deletes=1, checkpoints=1, crashes=2, held=2, join=True),
    Scope("often", "2 transactions on one ID, 2 deletes, readers, 2 checkpoints, archive, 3 crashes",
          2, deletes=2, checkpoints=2, crashes=3, join=True, archive=True, readers=True),
    Scope("fetch", "1 transaction, which is fetched and gone on with, its deletion, a checkpoint, 3 crashes",
          1, deletes=1, checkpoints=1, crashes=3, join=True, spools=True),
    Scope("wide", "as shared, with 2 deletes and 2 checkpoints: for a long run",
          3, ON_BASE, "P", deletes=2, checkpoints=2, crashes=2, join=True, archive=True),
)}

GROUPS: dict[str, tuple[str, ...]] = {"named": ("shared", "chain", "often")}


def find(name: str) -> list[Scope]:
    """The scopes of that name: one, or those of a group. KeyError."""
    return [SCOPES[each] for each in GROUPS.get(name, (name,))]
