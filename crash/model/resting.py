"""Bringing one tree to rest: the steps of recovery (``executor``, ``acting``, ``batches``), which it and the verbs share.

What is decided is asked of the product's planner (``planner.decide``); here is only when it is asked, which locks
are held then, and which effects follow. A step is what nobody can look into: one effect, one lock taken, one
transaction, with the reads before it that nobody else can make stale.

A decision and the effect that follows from it are one step only when the lock of that very tree is held: who has it
is alone in moving, writing and unlinking the tree, so nothing can come between that would change the decision.
"""

from __future__ import annotations

from functools import cache

from crash.model.process import Frame, Move, Proc, Todo, Turn, back
from crash.model.rules import Rules
from crash.model.world import (
    LAYERS,
    PLACES,
    STAGING,
    TRASH,
    Violation,
    World,
    fire,
    move,
    occupant,
    remove,
    write_side,
)
from layerstore.lifecycle.states import State, Trigger
from layerstore.recovery import planner
from layerstore.recovery.planner import Do, TreeFacts

PLACE_NAME = {STAGING: "staging", LAYERS: "layers", TRASH: "trash"}
_TO_TRASH = (Do.FINISH_DELETE, Do.TO_TRASH)


@cache
def _decide(
    state: State, places: frozenset[planner.Place], locked: bool, right: bool, filled: bool = False,
    resumable: bool = False,
) -> Do:
    facts = TreeFacts(places, locked=locked, side_file_right=right, filled=filled, resumable=resumable)
    return planner.decide({"state": state.value}, facts)[0]


def decide(w: World, t: int, held: int, rules: Rules) -> Do:
    """``find_tree`` and ``decide``. *held* are the locks of everybody who could hold this tree's; 0 under its lock."""
    tree = w.trees[t]
    places = PLACES[tree.at]
    asked = tree.at == STAGING or (tree.at == LAYERS and tree.row in (State.INCOMPLETE, State.DELETING))
    right = not (tree.at == LAYERS and tree.row in (State.INCOMPLETE, State.COMMITTED) and not tree.side)
    being_staged = tree.row is State.STAGING and tree.at == STAGING
    filled = being_staged and bool(tree.out) and not rules.sweep_the_filled
    resumable = being_staged and not tree.out and bool(tree.kept) and not rules.sweep_the_resumable
    locked = asked and not rules.sweep_the_living and bool(held >> t & 1)
    do = _decide(tree.row, places, locked, right, filled, resumable)
    return Do.LEAVE if do is Do.REWRITE_SIDE and rules.redo_only_renames else do


# -- one tree to rest ------------------------------------------------------------------------------------------------


def resolve(x: Turn, who: str = "resolve") -> list[Move]:
    """``executor.resolve``: decide; lock it wherever it was found; decide again; act."""
    rules, w, p, theirs = x.rules, x.w, x.p, x.theirs
    t, tree = p.t, w.trees[p.t]
    if tree.row is State.ABSENT:
        return [(f"{who}: T{t} has no row any more", w, back(p), "")]
    do = decide(w, t, theirs, rules)
    if do in (Do.LEAVE, Do.DEFER):
        return [(f"{who}: T{t}: {do.value}", w, back(p), "")]
    if tree.row is State.INCOMPLETE:
        return finish(x, who)
    found = PLACE_NAME.get(tree.at, "nowhere")
    stale = rules.no_look_after_lock or (rules.delete_a_path and do in _TO_TRASH)
    note = (found, do.value, tree.row.value) if stale else (found,)
    label = f"{who}: T{t} is {tree.row.value}, found {found}: {do.value}"
    return [(label, w, p._replace(pc="resolve.lock", note=note), "")]


def resolve_lock(x: Turn) -> list[Move]:
    """Lock what is at the path now: another tree, perhaps, or nothing. Waits for a holder; a deletion may give up."""
    w, p, theirs = x.w, x.p, x.theirs
    t, place = p.t, p.note[0]
    target = -1
    if place == "layers":
        target = occupant(w, w.trees[t].id)
    elif place == PLACE_NAME.get(w.trees[t].at):
        target = t
    if target >= 0 and theirs >> target & 1:
        return [(f"delete: T{target} is held by others: deferred", w, back(p), "")] if "may-give-up" in p.note else []
    locks = p.locks | (1 << target if target >= 0 else 0)
    what = f"T{target} at its path" if target >= 0 else "nothing: no tree is at its path"
    return [(f"lock for T{t}: {what}", w, p._replace(pc="resolve.again", locks=locks, note=p.note[1:]), "")]


def resolve_again(x: Turn) -> list[Move]:
    """Row and places anew. Under the tree's own lock the first effect is part of this step.

    Without it (it has moved, or is nowhere) somebody may come between any two looks, so each is a step.
    """
    rules, w, p = x.rules, x.w, x.p
    t, tree = p.t, w.trees[p.t]
    if rules.delete_a_path and p.note:
        return _delete_a_path(w, p)
    if tree.row is State.ABSENT or ("may-give-up" in p.note and tree.row is not State.DELETING):
        return [(f"T{t}: further along already", w, back(p), "")]
    if rules.no_look_after_lock and len(p.note) == 2:
        return act(x._replace(p=p._replace(pc="resolve.act")))
    if p.locks >> t & 1:
        do = decide(w, t, 0, rules)
        return act(x._replace(p=p._replace(pc="resolve.act", note=(do.value, tree.row.value))))
    seen = PLACE_NAME[tree.at] if tree.at in (STAGING, TRASH) else ""
    note = (tree.row.value, tree.id, seen, *p.note)
    label = f"T{t}, not locked: read its row, look into staging/ and trash/"
    return [(label, w, p._replace(pc="resolve.look", note=note), "")]


def resolve_look(x: Turn) -> list[Move]:
    """The last look, into layers/ if the row that was read has an ID; then the decision upon what was seen."""
    rules, w, p = x.rules, x.w, x.p
    t, tree = p.t, w.trees[p.t]
    row, layer_id, seen, *rest = p.note
    places = {planner.Place(seen)} if seen else set()
    if layer_id and tree.at == LAYERS:
        places.add(planner.Place.LAYERS)
    if places and not rules.act_unlocked:
        return _look_again(w, p._replace(note=tuple(rest)))
    right = planner.Place.LAYERS not in places or bool(tree.side)
    do = _decide(State(row), frozenset(places), False, right, row == State.STAGING and bool(tree.out))
    found = " and ".join(sorted(places)) or "nowhere"
    return [(f"T{t}, {row}, was seen {found}: {do.value}", w, p._replace(pc="resolve.act", note=(do.value, row)), "")]


def _look_again(w: World, p: Proc) -> list[Move]:
    """Somebody moved it between the look and the lock: what was locked, if anything, is not this tree."""
    found = PLACE_NAME.get(w.trees[p.t].at, "nowhere")
    again = p._replace(pc="resolve.lock", locks=p.back[-1].locks, note=(found, *p.note))
    return [(f"T{p.t} has moved ({found}): let go, lock it there", w, again, "")]


def _delete_a_path(w: World, p: Proc) -> list[Move]:
    """The mistake: what lies at the path is taken for the tree that was to be deleted."""
    tree, after = w.trees[p.t], p._replace(pc="delete.gone", note=("", State.DELETING.value))
    there = p.t if tree.at in (STAGING, LAYERS) else -1
    for u, other in enumerate(w.trees):
        if tree.at != TRASH and other.at == LAYERS and p.locks >> u & 1:
            there = u
    if there < 0:
        return [(f"T{p.t}: nothing is at its path", w, after, "")]
    return [(f"rename what is at the path of T{p.t} to trash/", move(w, there, TRASH), after, "")]


def _record(w: World, p: Proc, trigger: Trigger) -> World:
    """``acting._fire``: one transition, if the row is still in the state that it was decided upon."""
    return fire(w, p.t, trigger) if w.trees[p.t].row.value == p.note[1] else w


def act(x: Turn) -> list[Move]:
    w, p = x.w, x.p
    t, tree, do = p.t, w.trees[p.t], Do(p.note[0])
    if do in (Do.LEAVE, Do.WAIT, Do.FINISH):
        return [(f"T{t}: {do.value}", w, back(p), "")]
    if do in (Do.DROP_ROW, Do.SWEEP):
        trigger = Trigger.SWEEP if p.note[1] == State.STAGING.value else Trigger.DISCARD
        if do is Do.SWEEP and tree.row is State.STAGING and tree.out and tree.good and p.locks >> t & 1:
            raise Violation(f"T{t} is filled, and is swept")
        if do is Do.SWEEP and tree.row is State.STAGING and tree.kept and not tree.out and p.locks >> t & 1:
            raise Violation(f"T{t} is to be gone on with, and is swept")
        after = p._replace(pc="sweep.unlink", note=()) if do is Do.SWEEP else back(p)
        return [(f"txn {trigger.value} T{t}", _record(w, p, trigger), after, "")]
    if do is Do.RELEASE:
        return [(f"txn release T{t}: back to staged", _record(w, p, Trigger.RELEASE), back(p), "")]
    if do is Do.RECORD_GONE:
        return [(f"txn gone T{t}", _record(w, p, Trigger.REMOVE), back(p), "")]
    if do is Do.REWRITE_SIDE:
        return [(f"write the side file of T{t}", write_side(w, t), back(p), "")]
    if do in _TO_TRASH:
        after = p._replace(pc="delete.gone") if do is Do.FINISH_DELETE else back(p)
        if w.trees[t].at not in (STAGING, LAYERS):
            raise Violation(f"T{t} is to be moved to trash, but is not where it was found")
        return [(f"rename T{t} to trash/", move(w, t, TRASH), after, "")]
    if do is Do.REPUBLISH:
        return _into_place(x._replace(p=p._replace(pc="republish")), t, done=back(p))
    if tree.row.value != p.note[1]:
        return [(f"T{t}: {do.value} is not for a row that has changed", w, back(p), "")]
    where = PLACE_NAME.get(tree.at, "nowhere")
    raise Violation(f"recovery meets what cannot be: T{t}, {tree.row.value}, {where}: {do.value}")


def republish(x: Turn) -> list[Move]:
    return _into_place(x, x.p.t, done=back(x.p))


def sweep_unlink(x: Turn) -> list[Move]:
    w, p = x.w, x.p
    return [(f"unlink T{p.t}", remove(w, p.t), back(p), "")]


def delete_gone(x: Turn) -> list[Move]:
    w, p = x.w, x.p
    return [(f"txn gone T{p.t}", _record(w, p, Trigger.REMOVE), back(p), "")]


# -- a batch, forward ------------------------------------------------------------------------------------------------


def members(w: World, t: int) -> Todo:
    """``batch_members``: the promised, uncommitted trees of T's batch, in the order of their txids."""
    tree = w.trees[t]
    if tree.row is not State.INCOMPLETE:
        return ()
    if not tree.batch:
        return ((0, t),)
    return tuple(sorted(
        (u.batch, n) for n, u in enumerate(w.trees) if u.row is State.INCOMPLETE and u.batch // 10 == tree.batch // 10
    ))


def finish(x: Turn, who: str = "finish") -> list[Move]:
    """``finish_batch`` by somebody who is not the owner: every member's lock first."""
    rules, w, p = x.rules, x.w, x.p
    todo = members(w, p.t)
    names = " and ".join(f"T{n}" for _, n in todo)
    pc = "finish.place" if rules.finish_without_lock else "finish.lock"
    orders = [todo]
    if rules.lock_in_any_order:
        orders.append(tuple(sorted((-rank, t) for rank, t in todo)))
    return [(f"{who}: promised, to be finished: {names}", w, p._replace(pc=pc, todo=each), "") for each in orders]


def finish_lock(x: Turn) -> list[Move]:
    """A member that is promised no longer needs no lock. A held lock means that its holder finishes."""
    w, p, theirs = x.w, x.p, x.theirs
    (_, u), rest = p.todo[0], p.todo[1:]
    after = p._replace(todo=rest) if rest else p._replace(pc="finish.look", todo=())
    if w.trees[u].row is not State.INCOMPLETE or w.trees[u].at not in (STAGING, LAYERS):
        return [(f"finish: T{u} is promised no longer", w, after, "")]
    if theirs >> u & 1:
        return []
    return [(f"finish: lock T{u}", w, after._replace(locks=p.locks | 1 << u), "")]


def finish_look(x: Turn) -> list[Move]:
    """The members again, under their locks; with none left the transaction finds nothing to do."""
    w, p = x.w, x.p
    todo = members(w, p.t)
    if not todo:
        return [(f"finish: T{p.t} was finished by somebody else", w, back(p), "")]
    return finish_place(x._replace(p=p._replace(pc="finish.place", todo=todo)))


def finish_place(x: Turn) -> list[Move]:
    """Side file, then rename, for one member after the other."""
    rules, p = x.rules, x.p
    (_, u), rest = p.todo[0], p.todo[1:]
    done = p._replace(pc="finish.place", todo=rest) if rest else p._replace(pc="finish.commit", todo=())
    if rules.batch_layer_by_layer:
        done = p._replace(pc="finish.one", todo=p.todo)
    return _into_place(x._replace(p=p._replace(pc="finish.place")), u, done=done)


def _into_place(x: Turn, u: int, *, done: Proc) -> list[Move]:
    """``_into_place`` and ``_republish``: one effect a step; *p* comes back here, *done* goes on."""
    rules, w, p = x.rules, x.w, x.p
    tree = w.trees[u]
    if p.note == ("side",):   # only a finisher without the lock can be parted from its look at the side file
        return [(f"write the side file of T{u}", write_side(w, u), p._replace(note=()), "")]
    if tree.at not in (STAGING, LAYERS):
        return [(f"T{u} is not to be found", w, done, "")]   # for the commit to say so, if it is still promised
    if tree.at == STAGING and occupant(w, tree.id) >= 0:
        other = occupant(w, tree.id)
        if w.trees[other].row is not State.GONE or rules.trash_last:
            raise Violation(f"T{u} cannot move in: T{other}, {w.trees[other].row.value}, is at layers/{tree.id}")
        frame = Frame(p.pc, p.t, p.locks, p.todo)
        return resolve(x._replace(p=Proc("resolve", other, p.locks, p.pos, back=(*p.back, frame))))
    if not tree.side:
        if rules.finish_without_lock:
            return [(f"T{u} has no side file", w, p._replace(note=("side",)), "")]
        return [(f"write the side file of T{u}", write_side(w, u), p if tree.at == STAGING else done, "")]
    if tree.at == STAGING:
        return [(f"rename T{u} to layers/{tree.id}", move(w, u, LAYERS), done, "")]
    return [(f"T{u} is in place", w, done, "")]


def finish_commit(x: Turn) -> list[Move]:
    """One transaction for the whole batch; the locks go with it, for nobody asks a committed tree's but a deletion."""
    w, p = x.w, x.p
    todo = members(w, p.t)
    for _, u in todo:
        if w.trees[u].at != LAYERS:
            raise Violation(f"T{u} was promised, is not in place, and is quarantined")
        w = fire(w, u, Trigger.COMMIT)
    return [("txn commit " + " and ".join(f"T{u}" for _, u in todo), w, back(p), "")]


def finish_one(x: Turn) -> list[Move]:
    """The mistake: a transaction for each layer."""
    w, p = x.w, x.p
    (_, u), rest = p.todo[0], p.todo[1:]
    if w.trees[u].row is State.INCOMPLETE:
        w = fire(w, u, Trigger.COMMIT)
    after = p._replace(pc="finish.place", todo=rest) if rest else back(p)
    return [(f"txn commit T{u}", w, after, "")]


STEPS = {
    "resolve.lock": resolve_lock, "resolve.again": resolve_again, "resolve.look": resolve_look, "resolve.act": act,
    "republish": republish, "sweep.unlink": sweep_unlink, "delete.gone": delete_gone, "finish.lock": finish_lock,
    "finish.look": finish_look, "finish.place": finish_place, "finish.commit": finish_commit, "finish.one": finish_one,
}
