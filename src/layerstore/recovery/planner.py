"""The planner: journal + probe → what to do. Pure and total; it neither reads nor touches a disk.

Everything that a decision may depend on is in its two arguments: ``Subjects`` (rows of the catalog, and which
terminal rows are above the low-water mark and so must be redone) and ``Probe`` (which tree is where, which locks
could be had, which files are right, boot ID). The same two give the same plan, byte for byte. ``executor`` gathers
them and carries the plan out, deciding again under each tree's lock by the same ``decide``.

``CELLS`` has an entry for every state × set of places that can be reached (docs/crash-model.md derives them); every
other combination is impossible without damage, and gets the default: quarantine what has an ID, set aside what has
none, report. Nothing here ever deletes a tree that anyone was promised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum
from typing import Any

from layerstore.lifecycle.states import State
from layerstore.values import dataclass

Row = Mapping[str, Any]


class Place(StrEnum):
    """Where a tree with the row's txid written inside was found."""

    STAGING = "staging"
    LAYERS = "layers"
    TRASH = "trash"


class Do(StrEnum):
    LEAVE = "leave"                    # at rest
    WAIT = "wait"                      # a live holder is finishing it
    DEFER = "defer"                    # deleting, but readers hold the tree: finished later, by whoever can
    SWEEP = "sweep"                    # being staged, owner dead: drop the row, then the tree
    DROP_ROW = "drop-row"              # being staged or staged, and no tree: nothing was promised
    RELEASE = "release"                # claimed, not promised: back to staged
    FINISH = "finish"                  # promised: forward, with its whole batch
    REPUBLISH = "republish"            # committed, but the rename was lost: move it in again
    REWRITE_SIDE = "rewrite-side-file" # committed and in place, but the side file was lost or torn
    FINISH_DELETE = "finish-delete"    # move it to trash, record it gone
    RECORD_GONE = "record-gone"        # it is in trash, or nowhere: record it gone
    TO_TRASH = "to-trash"              # gone, but the rename to trash was lost
    END_REPAIR = "end-repair"          # marked as being repaired: what was exchanged stays, the rest is set aside
    QUARANTINE = "quarantine"          # promised or committed, and not to be found, or found twice
    SET_ASIDE = "set-aside"            # an impossible tree that nobody was promised: kept as evidence, row dropped
    REMOVE_STRAY = "remove-stray"      # a tree or file that no row knows
    FINISH_IMAGE = "finish-image"
    REWRITE_IMAGE = "rewrite-image-file"
    DETACH = "detach"                  # recorded as mounted, and is not


@dataclass(frozen=True, slots=True)
class TreeFacts:
    """What the probe found of one tree.

    ``occupant`` is another tree's txid at this one's place in ``layers/``. ``filled``: it is in ``staging/``, and its
    file ``output`` is whole, which says that it was finished; whether the tree is whole, its adopter finds out.
    ``resumable``: it is there, not filled, and has a spool of its content that is worth going on with (ADR 0017).
    """

    places: frozenset[Place]
    locked: bool = False
    side_file_right: bool = True
    occupant: str | None = None
    filled: bool = False
    resumable: bool = False


@dataclass(frozen=True, slots=True)
class Subjects:
    """What the journal says: rows in flight, rows to redo (terminal, above the mark), images and mounts alike."""

    layers: Mapping[str, Row]
    redo: frozenset[str]
    images: Mapping[str, Row] = field(default_factory=dict)
    redo_images: frozenset[str] = frozenset()
    mounts: Mapping[str, Row] = field(default_factory=dict)
    low_water: int = 0
    head: int = 0


@dataclass(frozen=True, slots=True)
class Probe:
    """What the disk says. ``strays`` maps ``<directory>/<name>`` to whether its lock is held.

    ``misplaced`` are paths of trees whose row is at rest and says that they are elsewhere. ``mounted`` is None where
    it cannot be seen from here: a mount of another mount namespace of this boot.
    """

    trees: Mapping[str, TreeFacts]
    image_file_right: Mapping[str, bool] = field(default_factory=dict)
    strays: Mapping[str, bool] = field(default_factory=dict)
    misplaced: tuple[str, ...] = ()
    mounted: Mapping[str, bool | None] = field(default_factory=dict)
    boot_id: str = ""


@dataclass(frozen=True, slots=True)
class Action:
    """One thing to do. ``key`` is a txid, image ID, mount ID or ``<directory>/<name>``."""

    do: Do
    key: str
    why: str
    layer_id: str | None = None


_NOWHERE: frozenset[Place] = frozenset()
_STAGING, _LAYERS, _TRASH = frozenset({Place.STAGING}), frozenset({Place.LAYERS}), frozenset({Place.TRASH})

CELLS: dict[tuple[State, frozenset[Place]], tuple[Do, str]] = {
    (State.STAGING, _NOWHERE): (Do.DROP_ROW, "being staged; its tree never became durable"),
    (State.STAGING, _STAGING): (Do.SWEEP, "being staged, and its owner is dead"),
    (State.STAGED, _STAGING): (Do.LEAVE, "staged: kept for the next pull"),
    (State.STAGED, _NOWHERE): (Do.DROP_ROW, "staged, but its tree is missing; nothing was promised"),
    (State.CREATING, _STAGING): (Do.RELEASE, "claimed but not promised, and its owner is dead"),
    (State.CREATING, _NOWHERE): (Do.RELEASE, "claimed but not promised, and its tree is missing"),
    (State.INCOMPLETE, _STAGING): (Do.FINISH, "promised; not yet in place"),
    (State.INCOMPLETE, _LAYERS): (Do.FINISH, "promised and in place; not yet committed"),
    (State.COMMITTED, _LAYERS): (Do.LEAVE, "committed and in place"),
    (State.COMMITTED, _STAGING): (Do.REPUBLISH, "committed, but its rename was lost"),
    (State.DELETING, _LAYERS): (Do.FINISH_DELETE, "its deletion was promised"),
    (State.DELETING, _STAGING): (Do.FINISH_DELETE, "its deletion was promised; its rename into place was lost"),
    (State.DELETING, _TRASH): (Do.RECORD_GONE, "its deletion was promised and done"),
    (State.DELETING, _NOWHERE): (Do.RECORD_GONE, "its deletion was promised; its tree is missing"),
    (State.GONE, _TRASH): (Do.LEAVE, "gone; its tree waits in trash for a checkpoint"),
    (State.GONE, _NOWHERE): (Do.LEAVE, "gone, and its tree is unlinked"),
    (State.GONE, _LAYERS): (Do.TO_TRASH, "gone, but its rename to trash was lost"),
    (State.GONE, _STAGING): (Do.TO_TRASH, "gone, but both its renames were lost"),
    **{(State.QUARANTINED, places): (Do.LEAVE, "quarantined") for places in (_NOWHERE, _STAGING, _LAYERS, _TRASH)},
}

_FILLED = "being staged, its owner dead, but filled: kept for the next stage of its content"
_RESUMABLE = "being staged, its owner dead, and what it fetched is kept for the next stage of its content"
_MENDING = "being repaired by a live process"
_HELD = {State.STAGING: Do.LEAVE, State.STAGED: Do.LEAVE, State.CREATING: Do.LEAVE, State.DELETING: Do.DEFER}
_WITHOUT_LOCK = frozenset({Do.LEAVE, Do.DROP_ROW, Do.RECORD_GONE})


def decide(row: Row, facts: TreeFacts) -> tuple[Do, str]:
    """What to do about one tree, and why. Total: every state × places × whatever else the facts are has an answer."""
    state = State(row["state"])
    do, why = CELLS.get((state, facts.places), (None, ""))
    if do is None:
        found = " and ".join(sorted(facts.places)) or "nowhere"
        default = Do.QUARANTINE if state in (State.INCOMPLETE, State.COMMITTED) else Do.SET_ASIDE
        if state is State.QUARANTINED:
            default = Do.LEAVE
        return default, f"{state.value}, but its tree was found in {found}"
    if do is Do.LEAVE and state is State.COMMITTED and not facts.side_file_right:
        do, why = Do.REWRITE_SIDE, "committed and in place, but its side file was lost or torn"
    if do is Do.LEAVE and "repair" in row and facts.places in (_LAYERS, _NOWHERE):
        # whoever holds it ends its repair itself: there is nothing to redo that would have to be waited for
        do, why = (Do.LEAVE, _MENDING) if facts.locked else (Do.END_REPAIR, "its repair was interrupted")
        return do, why
    if do is Do.SWEEP and facts.filled:
        do, why = Do.LEAVE, _FILLED
    if do is Do.SWEEP and facts.resumable:
        do, why = Do.LEAVE, _RESUMABLE
    if facts.locked and do not in _WITHOUT_LOCK:
        return _HELD.get(state, Do.WAIT), f"{why}; but it is held by a live process"
    return do, why


# gone trees leave their places first: a path may hold the tree that was deleted before its ID was created again
_ORDER = (
    Do.TO_TRASH, Do.RECORD_GONE, Do.FINISH_DELETE, Do.SET_ASIDE, Do.REPUBLISH, Do.REWRITE_SIDE, Do.END_REPAIR,
    Do.WAIT, Do.FINISH, Do.FINISH_IMAGE, Do.REWRITE_IMAGE, Do.QUARANTINE, Do.RELEASE, Do.DROP_ROW, Do.SWEEP, Do.DETACH,
    Do.REMOVE_STRAY, Do.DEFER, Do.LEAVE,
)


def plan(subjects: Subjects, probe: Probe) -> tuple[Action, ...]:
    """Every action that recovery takes, in order; ``LEAVE`` is not listed. Empty means: at rest."""
    actions = [
        Action(do, txid, why, row.get("layer_id"))
        for txid, row in sorted(subjects.layers.items())
        for do, why in [decide(row, probe.trees[txid])]
    ]
    for image_id, row in sorted(subjects.images.items()):
        if row["state"] == State.INCOMPLETE and not _batch_in_flight(subjects, row):
            actions.append(Action(Do.FINISH_IMAGE, image_id, "promised; its layers are committed"))
        elif image_id in subjects.redo_images and row["state"] == State.COMMITTED and not probe.image_file_right[image_id]:
            actions.append(Action(Do.REWRITE_IMAGE, image_id, "committed, but its side file was lost or torn"))
    for mount_id, row in sorted(subjects.mounts.items()):
        at_rest = row["state"] == State.MOUNTING and row.get("kept", False)
        if probe.mounted[mount_id] is False and not at_rest:
            actions.append(Action(Do.DETACH, mount_id, f"recorded as mounted at {row['target']}, and is not"))
    for path, locked in sorted(probe.strays.items()):
        if not locked:
            actions.append(Action(Do.REMOVE_STRAY, path, "no row knows it"))
    actions += [Action(Do.SET_ASIDE, path, "its row says that it is elsewhere") for path in sorted(probe.misplaced)]
    rank = {do: n for n, do in enumerate(_ORDER)}
    return tuple(a for a in sorted(actions, key=lambda a: (rank[a.do], a.key)) if a.do is not Do.LEAVE)


def _batch_in_flight(subjects: Subjects, image: Row) -> bool:
    return any(
        row.get("batch") == image["txid"] and row["state"] == State.INCOMPLETE for row in subjects.layers.values()
    )


def possibilities(row: Row) -> list[tuple[str, Do, str]]:
    """For a copied journal without its disk: what recovery would do for each place the tree may be found in."""
    state = State(row["state"])
    found = [
        ("+".join(sorted(places)) or "nowhere", do, why)
        for (cell_state, places), (do, why) in CELLS.items() if cell_state is state
    ]
    if state is not State.STAGING:
        return found
    return [*found, ("staging, filled", Do.LEAVE, _FILLED), ("staging, with a spool", Do.LEAVE, _RESUMABLE)]
