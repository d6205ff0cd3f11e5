"""The states: the one file that owns what a layer, an image, a name, a lease and a mount may go through.

Everything that decides which change is legal is in ``TRANSITIONS`` below; nothing here does I/O, knows a path,
or imports anything of layerstore. The table drives

* the product: ``lifecycle`` builds its machines from it, and no state changes except through one;
* the catalog's projection, which refuses a journal record that the table does not allow;
* recovery, whose planner has a cell for every state named here;
* the diagram in ``docs/states.md`` (made by ``python -m layerstore.lifecycle.states``; a test fails when it is stale).

Theory of operation. A layer's *tree* is made under ``staging/<txid>/`` and keeps its txid for life. ``staging``
says that somebody who holds the tree's lock is filling it, or that it is filled and not yet durable: then its file
``output`` says so, and after its owner's death it is kept, unvouched for. So is one that is not filled but has a spool of
what was fetched for it: whoever wants its content empties it and goes on with that. ``staged``: complete and durable;
mostly passed through in the claim's transaction, right after the one sync of a whole batch.
``creating``: an ID and names are claimed for it, the parent pinned. ``incomplete`` is the commit point: from here
every crash rolls *forward*, by whoever opens the store next. ``committed`` is the only state that readers see.
``quarantined`` keeps a damaged layer's ID and tree, unserved. A repair marks the row of either, and leaves its state, so
that a layer is served, or not, as before until it is over (docs/adr/0021). ``deleting`` is hidden and is finished by
anyone who gets the tree's lock; ``gone`` is acknowledged: the tree waits in ``trash/`` until a checkpoint covers it.
One way leads past all of this: a layer whose records are lost with the database is ``adopt``-ed by a rebuild, from its
side file.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    """What a journal record is about; its entity is ``<kind>:<key>``."""

    LAYER = "layer"   # key: the tree's txid
    IMAGE = "image"   # key: the image ID
    NAME = "name"     # key: the name
    LEASE = "lease"   # key: the lease's name
    MOUNT = "mount"   # key: the mount's ID


class State(StrEnum):
    ABSENT = "absent"
    STAGING = "staging"
    STAGED = "staged"
    CREATING = "creating"
    INCOMPLETE = "incomplete"
    COMMITTED = "committed"
    QUARANTINED = "quarantined"
    DELETING = "deleting"
    GONE = "gone"
    HELD = "held"          # names, leases
    MOUNTING = "mounting"
    MOUNTED = "mounted"


class Trigger(StrEnum):
    BEGIN = "begin"
    SEAL = "seal"
    SWEEP = "sweep"
    DISCARD = "discard"
    CLAIM = "claim"
    RELEASE = "release"
    PROMISE = "promise"
    COMMIT = "commit"
    QUARANTINE = "quarantine"
    REPAIR = "repair"
    MEND = "mend"
    DELETE = "delete"
    REMOVE = "remove"
    EMPTY = "empty"
    ABANDON = "abandon"
    TAKE = "take"
    MOVE = "move"
    DROP = "drop"
    ATTACH = "attach"
    DETACH = "detach"
    ADOPT = "adopt"


class Transition(NamedTuple):
    kind: Kind
    trigger: Trigger
    source: State
    dest: State
    meaning: str


S, T = State, Trigger

TRANSITIONS: tuple[Transition, ...] = (
    Transition(Kind.LAYER, T.BEGIN, S.ABSENT, S.STAGING, "a tree is being filled, or is filled, or has a spool"),
    Transition(Kind.LAYER, T.SEAL, S.STAGING, S.STAGED, "the tree is complete, verified and durable; often with its claim"),
    Transition(Kind.LAYER, T.SWEEP, S.STAGING, S.ABSENT, "its owner failed or died, without a spool: row, then tree"),
    Transition(Kind.LAYER, T.DISCARD, S.STAGED, S.ABSENT, "given up by its owner or gc; by recovery only without a tree"),
    Transition(Kind.LAYER, T.CLAIM, S.STAGED, S.CREATING, "ID and names claimed, parent pinned, all or none"),
    Transition(Kind.LAYER, T.RELEASE, S.CREATING, S.STAGED, "rolled back: the claim is free again"),
    Transition(Kind.LAYER, T.PROMISE, S.CREATING, S.INCOMPLETE, "the commit point: from here forward only"),
    Transition(Kind.LAYER, T.COMMIT, S.INCOMPLETE, S.COMMITTED, "visible, with every index row"),
    Transition(Kind.LAYER, T.QUARANTINE, S.INCOMPLETE, S.QUARANTINED, "promised, but its tree is not to be found"),
    Transition(Kind.LAYER, T.QUARANTINE, S.COMMITTED, S.QUARANTINED, "damage was found; kept, not served"),
    Transition(Kind.LAYER, T.QUARANTINE, S.QUARANTINED, S.QUARANTINED, "what is left of the damage after a repair"),
    Transition(Kind.LAYER, T.REPAIR, S.COMMITTED, S.COMMITTED, "the intent: paths are about to be exchanged for good ones"),
    Transition(Kind.LAYER, T.REPAIR, S.QUARANTINED, S.QUARANTINED, "the same, of one that is not served"),
    Transition(Kind.LAYER, T.MEND, S.COMMITTED, S.COMMITTED, "the repair is over: what it exchanged is durable"),
    Transition(Kind.LAYER, T.MEND, S.QUARANTINED, S.COMMITTED, "whole again: every path was compared; served again"),
    Transition(Kind.LAYER, T.DELETE, S.COMMITTED, S.DELETING, "hidden; nothing uses it"),
    Transition(Kind.LAYER, T.DELETE, S.QUARANTINED, S.DELETING, "a damaged layer may be given up"),
    Transition(Kind.LAYER, T.REMOVE, S.DELETING, S.GONE, "its tree is in trash; the ID is free"),
    Transition(Kind.LAYER, T.EMPTY, S.GONE, S.ABSENT, "a checkpoint covers it; the tree is unlinked"),
    Transition(Kind.LAYER, T.ADOPT, S.ABSENT, S.COMMITTED, "a rebuild found it whole on disk, and no record of it"),
    Transition(Kind.IMAGE, T.PROMISE, S.ABSENT, S.INCOMPLETE, "promised together with its layers"),
    Transition(Kind.IMAGE, T.COMMIT, S.INCOMPLETE, S.COMMITTED, "visible in the moment its layers are"),
    Transition(Kind.IMAGE, T.ABANDON, S.INCOMPLETE, S.ABSENT, "one of its layers was quarantined"),
    Transition(Kind.IMAGE, T.DELETE, S.COMMITTED, S.GONE, "hidden, and no longer holds its layers"),
    Transition(Kind.IMAGE, T.PROMISE, S.GONE, S.INCOMPLETE, "pulled again before its side file was unlinked"),
    Transition(Kind.IMAGE, T.EMPTY, S.GONE, S.ABSENT, "a checkpoint covers it; the side file is unlinked"),
    Transition(Kind.IMAGE, T.ADOPT, S.ABSENT, S.COMMITTED, "a rebuild found it and its layers whole, and no record"),
    Transition(Kind.NAME, T.TAKE, S.ABSENT, S.HELD, "a name for an image or layer that is there"),
    Transition(Kind.NAME, T.MOVE, S.HELD, S.HELD, "moved on request, never silently"),
    Transition(Kind.NAME, T.DROP, S.HELD, S.ABSENT, "untagged"),
    Transition(Kind.LEASE, T.TAKE, S.ABSENT, S.HELD, "keeps layers from deletion until dropped"),
    Transition(Kind.LEASE, T.DROP, S.HELD, S.ABSENT, "the layers may go"),
    Transition(Kind.MOUNT, T.TAKE, S.ABSENT, S.MOUNTING, "the layers are pinned before the mount call"),
    Transition(Kind.MOUNT, T.ATTACH, S.MOUNTING, S.MOUNTED, "the kernel has it"),
    Transition(Kind.MOUNT, T.DETACH, S.MOUNTED, S.MOUNTING, "unmounted; its upper directory is still there"),
    Transition(Kind.MOUNT, T.DROP, S.MOUNTING, S.ABSENT, "nothing of it is left"),
)

del S, T

HOLDS_MARK = frozenset({State.CREATING, State.INCOMPLETE, State.DELETING})
"""Open transactions below whose first record a checkpoint's low-water mark stays (docs/adr/0004)."""

OPEN = HOLDS_MARK | {State.STAGING, State.STAGED, State.GONE}
"""Layer states that recovery looks at whatever their age."""

_DEST: dict[tuple[str, str, str], State] = {(t.kind, t.trigger, t.source): t.dest for t in TRANSITIONS}


def destination(kind: str, trigger: str, source: str) -> State | None:
    """Where *trigger* leads from *source* for a *kind*, or None if the table has no such row."""
    return _DEST.get((kind, trigger, source))


def diagram(kind: Kind = Kind.LAYER) -> str:
    """The table for *kind* as a mermaid state diagram: one arrow from a state to another, with all that lead there."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for row in TRANSITIONS:
        if row.kind is kind:
            ends = ["[*]" if state is State.ABSENT else state.value for state in (row.source, row.dest)]
            arrows.setdefault((ends[0], ends[1]), []).append(row.trigger.value)
    lines = [f"    {source} --> {dest}: {', '.join(triggers)}\n" for (source, dest), triggers in arrows.items()]
    return "".join(["stateDiagram-v2\n", *lines])


def page() -> str:
    """The whole of ``docs/states.md``."""
    made = "Made from the table in `src/layerstore/lifecycle/states.py` by `make docs`; do not edit."
    parts = [f"# States\n\n{made}\n"]
    for kind in Kind:
        parts.append(f"\n## {kind.value}\n\n```mermaid\n{diagram(kind)}```\n\n")
        parts.append("| from | trigger | to | meaning |\n|---|---|---|---|\n")
        parts.extend(
            f"| {row.source.value} | {row.trigger.value} | {row.dest.value} | {row.meaning} |\n"
            for row in TRANSITIONS if row.kind is kind
        )
    return "".join(parts)


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201 - this is its output
