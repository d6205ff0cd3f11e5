"""Acting on one tree, under its lock, as the planner decides: an action for each ``Do`` that is about a tree.

Every action is idempotent, works on the row as it was read under the lock, and takes "further along already" for success.
A promised tree goes forward with its whole batch: that is ``batches``'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from layerstore.formats import records
from layerstore.lifecycle.machine import fire, state_of
from layerstore.lifecycle.states import Kind, State, Trigger
from layerstore.opening.handle import Handle
from layerstore.recovery import mending, moving
from layerstore.recovery.looking import Row, find_tree, name_of, row_of
from layerstore.recovery.planner import Do, TreeFacts, decide
from layerstore.system import flock
from layerstore.system.removing import remove_tree

__all__ = ["act", "bring_to_rest", "clear_place", "lock_where_it_is"]


def bring_to_rest(handle: Handle, txid: str, row: Row, *, wait: float | None = None) -> tuple[Do, str] | None:
    """Decide on a tree that was not promised, lock it, decide again, act. What was done; None if nothing was."""
    do, why = decide(row, find_tree(handle, txid, row))
    if do in (Do.LEAVE, Do.DEFER):
        return None if do is Do.LEAVE else (do, why)
    with ExitStack() as stack:
        found = lock_where_it_is(handle, stack, txid, wait=wait, point="recover.lock")
        return None if found is None else act(handle, txid, *found)


def act(handle: Handle, txid: str, row: Row, facts: TreeFacts) -> tuple[Do, str]:
    """Do what is decided on *row* and *facts*, which were read under the tree's lock."""
    do, why = decide(row, facts)
    ACTIONS[do](handle, txid, row, facts, why)
    return do, why


def clear_place(handle: Handle, layer_id: str, facts: TreeFacts) -> None:
    """Make ``layers/<id>`` free of a tree that is not the one its row names."""
    if facts.occupant is None:
        return
    row = row_of(handle, facts.occupant) if facts.occupant else None
    if row is not None and row["state"] == State.GONE:
        bring_to_rest(handle, facts.occupant, row)
    else:
        moving.set_aside(handle, "layers", layer_id)


def lock_where_it_is(
    handle: Handle, stack: ExitStack, txid: str, *, wait: float | None, point: str,
) -> tuple[Row, TreeFacts] | None:
    """Lock the tree in every place that it is found in, then read row and places anew. None: it has no row any more.

    Between the look and the lock somebody else may have moved it: then what was locked, if anything, is not this
    tree, and it is looked for again. So what is returned cannot be moved by anybody else while *stack* is open.
    BusyError after *wait* seconds at one lock.
    """
    while True:
        row = row_of(handle, txid)
        if row is None:
            return None
        locked = set()
        for place in sorted(find_tree(handle, txid, row, locked=False).places):
            name = name_of(place, txid, row.get("layer_id"))
            lock = flock.lock_tree(handle.dirs[place.value], name, wait=wait, point=point)
            if lock is not None:
                stack.enter_context(lock)
                locked.add(place)
        row = row_of(handle, txid)
        if row is None:
            return None
        facts = find_tree(handle, txid, row, locked=False)
        if facts.places <= locked:
            return row, facts
        stack.close()


# -- the actions ---------------------------------------------------------------------------------------------------


def _leave(_handle: Handle, _txid: str, _row_: Row, _facts: TreeFacts, _why: str) -> None:
    """Somebody was quicker."""


def _drop_row(handle: Handle, txid: str, row: Row, _facts: TreeFacts, _why: str) -> None:
    trigger = Trigger.SWEEP if row["state"] == State.STAGING else Trigger.DISCARD
    _fire(handle, "recover.drop-row", txid, row, trigger)


def _sweep(handle: Handle, txid: str, row: Row, facts: TreeFacts, why: str) -> None:
    _drop_row(handle, txid, row, facts, why)
    remove_tree(handle.dirs["staging"], txid, point="recover.sweep.unlink")


def _release(handle: Handle, txid: str, row: Row, _facts: TreeFacts, _why: str) -> None:
    _fire(handle, "recover.release", txid, row, Trigger.RELEASE)


def _republish(handle: Handle, txid: str, row: Row, facts: TreeFacts, _why: str) -> None:
    clear_place(handle, row["layer_id"], facts)
    moving.publish_tree(handle, txid, row, point="recover.publish")


def _rewrite_side(handle: Handle, txid: str, row: Row, _facts: TreeFacts, _why: str) -> None:
    moving.write_side_file(handle, "layers", row["layer_id"], records.layer_file(txid, row))


def _finish_delete(handle: Handle, txid: str, row: Row, facts: TreeFacts, _why: str) -> None:
    moving.to_trash(handle, txid, row, facts)
    _fire(handle, "delete.gone", txid, row, Trigger.REMOVE)


def _to_trash(handle: Handle, txid: str, row: Row, facts: TreeFacts, _why: str) -> None:
    moving.to_trash(handle, txid, row, facts)


def _record_gone(handle: Handle, txid: str, row: Row, _facts: TreeFacts, _why: str) -> None:
    _fire(handle, "delete.gone", txid, row, Trigger.REMOVE)


def _end_repair(handle: Handle, txid: str, row: Row, _facts: TreeFacts, _why: str) -> None:
    mending.settle(handle, txid, row)


def _quarantine(handle: Handle, txid: str, row: Row, _facts: TreeFacts, why: str) -> None:
    _fire(handle, "recover.quarantine", txid, row, Trigger.QUARANTINE, {"why": why, "files": []})


def _set_aside_tree(handle: Handle, txid: str, row: Row, facts: TreeFacts, why: str) -> None:
    for place in sorted(facts.places):
        moving.set_aside(handle, place.value, name_of(place, txid, row.get("layer_id")))
    state = State(row["state"])
    if state is State.CREATING:
        _fire(handle, "recover.release", txid, row, Trigger.RELEASE)
        row = {**row, "state": State.STAGED.value}
    if state in (State.STAGING, State.STAGED, State.CREATING):
        _drop_row(handle, txid, row, facts, why)
    elif state is State.DELETING:
        _fire(handle, "delete.gone", txid, row, Trigger.REMOVE)


ACTIONS: dict[Do, Callable[[Handle, str, Row, TreeFacts, str], None]] = {
    Do.LEAVE: _leave, Do.WAIT: _leave, Do.DEFER: _leave, Do.FINISH: _leave, Do.SWEEP: _sweep, Do.DROP_ROW: _drop_row,
    Do.RELEASE: _release, Do.REPUBLISH: _republish, Do.REWRITE_SIDE: _rewrite_side, Do.FINISH_DELETE: _finish_delete,
    Do.RECORD_GONE: _record_gone, Do.TO_TRASH: _to_trash, Do.QUARANTINE: _quarantine, Do.SET_ASIDE: _set_aside_tree,
    Do.END_REPAIR: _end_repair,
}


def _fire(
    handle: Handle, label: str, txid: str, row: Row, trigger: Trigger, payload: Mapping[str, Any] | None = None,
) -> None:
    """One transition, if the row is still in the state that it was decided upon."""

    def change(txn: Any) -> None:
        if state_of(txn, Kind.LAYER, txid) == row["state"]:
            fire(txn, Kind.LAYER, txid, trigger, txid=txid, payload=payload)

    handle.update(label, change)
