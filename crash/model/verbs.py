"""The verbs: the steps of ``layerstore``'s stage, apply and delete, one effect or transaction each.

A process that is idle begins any verb that its world and its budget allow; trees in its ``locks`` are then the staged
handles that it holds. How a promised tree is finished, and how a deletion is carried out, is in ``resting``, because
the product shares that code too; the checkpoint is in ``checkpointing``.
"""

from __future__ import annotations

from crash.model import checkpointing, recovering, resting
from crash.model.process import IDLE, Frame, Move, Proc, Turn
from crash.model.resting import PLACE_NAME, resolve
from crash.model.scopes import Scope
from crash.model.world import (
    LAYERS,
    PROMISED,
    STAGING,
    UNUSED,
    World,
    empty,
    fill,
    fire,
    keep,
    make,
    remove,
    syncfs,
    tree_of,
    unlink_spool,
    write_output,
)
from layerstore.lifecycle.states import State, Trigger

_UNFINISHED = frozenset({State.STAGING, State.CREATING, State.INCOMPLETE})


def moves(x: Turn) -> list[Move]:
    """Everything that a process can do next. Empty: it waits for a lock."""
    return STEPS[x.p.pc](x)


# -- idle: what next -------------------------------------------------------------------------------------------------


def idle(x: Turn) -> list[Move]:
    scope, w, p, theirs = x.scope, x.w, x.p, x.theirs
    held = [t for t in range(len(w.trees)) if p.locks >> t & 1]
    found: list[Move] = []
    if len(held) < scope.held:
        found += _stage(w, p) + _adopt(x) + _go_on(x)
    found += _seal(x, held)
    for t in held:
        for layer_id in scope.parents:
            found += _claim(x, ((t, layer_id),))
    if len(held) == 2:
        for first, second in (held, held[::-1]):
            for low, high in ((first, second), (second, first)):
                ids = list(scope.parents)[:2]
                pair = tuple((t, ids[0] if t == first else ids[1]) for t in (low, high))
                found += _claim(x, pair)
    if held:
        found.append(("let go of what is staged", w, IDLE, ""))
        found += [(f"discard T{t}", w, p._replace(pc="discard", t=t), "") for t in held[:1]]
        return found
    found += _delete(x) + checkpointing.begin(x)
    if scope.readers:
        found += _read(w, theirs)
    if scope.join:
        for t, tree in enumerate(w.trees):
            if tree.row in _UNFINISHED and not theirs >> t & 1:
                found += resolve(x._replace(p=Proc("resolve", t, back=(Frame("idle"),))), "join")
    return found


# -- stage -----------------------------------------------------------------------------------------------------------


def _stage(w: World, p: Proc) -> list[Move]:
    for t, tree in enumerate(w.trees):
        if tree == UNUSED:
            return [(f"stage: mkdir staging/T{t}", make(w, t), p._replace(pc="stage.lock", t=t), "")]
    return []


def _adopt(x: Turn) -> list[Move]:
    """The lock first; then the row is read, and the content hashed. What is staged, ``oracle`` holds to be whole.

    What is only filled nobody vouches for: a loss of power may have torn it.
    """
    rules, w, p = x.rules, x.w, x.p
    found: list[Move] = []
    for t, tree in enumerate(w.trees):
        filled = tree.row is State.STAGING and (tree.out or (tree.kept and rules.adopt_half_made))
        if (tree.row is State.STAGED or filled) and tree.at == STAGING and not (x.theirs | p.locks) >> t & 1:
            locked = p._replace(locks=p.locks | 1 << t)
            if filled and not tree.good and not (rules.adopt_unseen or rules.adopt_half_made):
                found.append((f"adopt T{t}: lock it, look at all of it: torn", w, locked._replace(pc="discard", t=t), ""))
            elif tree.kept and not rules.leave_the_spool:
                label = f"adopt T{t}: lock it, read its row, hash it; its spool is still there"
                found.append((label, w, locked._replace(pc="stage.unspool", t=t), ""))
            else:
                found.append((f"adopt T{t}: lock it, read its row, hash it", w, locked, ""))
    return found


def _go_on(x: Turn) -> list[Move]:
    """Take a tree over that is not filled, but has a spool: under its lock; all else in it goes."""
    rules, w, p = x.rules, x.w, x.p
    return [
        (f"go on with T{t}: lock it, read its row", w, p._replace(pc="resume.empty", t=t, locks=p.locks | 1 << t), "")
        for t, tree in enumerate(w.trees)
        if tree.row is State.STAGING and tree.at == STAGING and tree.kept and not tree.out and not p.locks >> t & 1
        and not (x.theirs >> t & 1 and not rules.resume_the_living) and not rules.adopt_half_made
    ]


def resume_empty(x: Turn) -> list[Move]:
    """Removed piece by piece in the product: a crash in it leaves what one before or after it does, not to be built on."""
    w, p = x.w, x.p
    return [(f"go on with T{p.t}: empty it, but for its spool", empty(w, p.t), p._replace(pc="stage.fill"), "")]


def _seal(x: Turn, held: list[int]) -> list[Move]:
    """The syncfs that an apply begins with, and the seal by itself.

    In the product a handle knows whether it has made the sync. Here the world says whether anything of a tree is still to
    be synced, whoever did it: each may sync or not, so the runs of the product are among these.
    """
    rules, w, p = x.rules, x.w, x.p
    unsealed = [t for t in held if w.trees[t].row is State.STAGING]
    found: list[Move] = []
    if unsealed and not rules.seal_without_sync and syncfs(w) != w:
        found.append((f"syncfs, for {' and '.join(f'T{t}' for t in unsealed)}", syncfs(w), p, ""))
    found += [
        (f"txn seal T{t}", fire(w, t, Trigger.SEAL), p, "")
        for t in unsealed if _synced(w, t) or rules.seal_without_sync
    ]
    return found


def _synced(w: World, t: int) -> bool:
    """Whether a sync would make no difference to its content. Not whether that is whole."""
    tree = w.trees[t]
    return (tree.good, tree.kept) == (tree.good_durable, tree.kept_durable)


def stage_lock(x: Turn) -> list[Move]:
    w, p, theirs = x.w, x.p, x.theirs
    if w.trees[p.t].at != STAGING:
        return [(f"stage: T{p.t} was swept before it was locked: try another", w, Proc("idle", locks=p.locks), "")]
    if theirs >> p.t & 1:
        return []
    return [(f"stage: lock T{p.t}", w, p._replace(pc="stage.begin", locks=p.locks | 1 << p.t), "")]


def stage_begin(x: Turn) -> list[Move]:
    w, p = x.w, x.p
    return [(f"stage: txn begin T{p.t}", fire(w, p.t, Trigger.BEGIN), p._replace(pc="stage.fill"), "")]


def stage_fill(x: Turn) -> list[Move]:
    scope, w, p = x.scope, x.w, x.p
    found = [
        (f"stage: fill T{p.t}", fill(w, p.t), p._replace(pc="stage.output"), ""),
        (f"stage: filling T{p.t} fails", w, p._replace(pc="discard"), ""),
    ]
    if w.trees[p.t].kept:
        kept = Proc("idle", locks=p.locks & ~(1 << p.t))
        found.append((f"stage: filling T{p.t} fails: let go of it, with its spool", w, kept, ""))
    elif scope.spools:
        found.append((f"stage: keep what is fetched for T{p.t}", keep(w, p.t), p, ""))
    return found


def stage_output(x: Turn) -> list[Move]:
    w, p = x.w, x.p
    after = p._replace(pc="stage.unspool") if w.trees[p.t].kept else Proc("idle", locks=p.locks)
    return [(f"stage: say in T{p.t} that it is filled", write_output(w, p.t), after, "")]


def stage_unspool(x: Turn) -> list[Move]:
    w, p = x.w, x.p
    return [(f"stage: unlink the spool of T{p.t}", unlink_spool(w, p.t), Proc("idle", locks=p.locks), "")]


def discard(x: Turn) -> list[Move]:
    """Row first, then the tree."""
    rules, w, p = x.rules, x.w, x.p
    trigger = {State.STAGING: Trigger.SWEEP, State.STAGED: Trigger.DISCARD}.get(w.trees[p.t].row)
    kept = Proc("idle", locks=p.locks & ~(1 << p.t))
    if trigger is None:
        return [(f"discard: T{p.t} was promised: only let go", w, kept, "")]
    if rules.unlink_before_row and p.note != ("unlinked",):
        tree = w.trees[p.t]._replace(good=0)
        emptied = w._replace(trees=(*w.trees[:p.t], tree, *w.trees[p.t + 1:]))
        return [(f"discard: unlink what is in T{p.t}", emptied, p._replace(note=("unlinked",)), "")]
    return [(f"discard: txn {trigger.value} T{p.t}", fire(w, p.t, trigger), p._replace(pc="discard.unlink", note=()), "")]


def discard_unlink(x: Turn) -> list[Move]:
    w, p = x.w, x.p
    return [(f"discard: unlink T{p.t}", remove(w, p.t), Proc("idle", locks=p.locks & ~(1 << p.t)), "")]


# -- apply -----------------------------------------------------------------------------------------------------------


def _claim(x: Turn, wanted: tuple[tuple[int, str], ...]) -> list[Move]:
    """The claim's transaction: all or none, sealed with it. What is in its way is waited for, or finished as by anybody."""
    scope, rules, w, p = x.scope, x.rules, x.w, x.p
    batch = 0
    if len(wanted) > 1:
        batch = 10 * (1 + max(tree.batch // 10 for tree in w.trees))
    coming = [layer_id for _, layer_id in wanted]
    for t, layer_id in wanted:
        other = tree_of(w, layer_id)
        if other >= 0:
            row = w.trees[other].row
            if row is State.COMMITTED:
                if batch:
                    return []   # the product keeps the other members; a batch of one is explored anyway
                return [(f"apply: layers/{layer_id} is there already: acknowledged, T{t} not needed", w,
                         p._replace(pc="discard", t=t), "")]
            if not (rules.claim_while_deleting and row is State.DELETING):
                called = Proc("resolve", other, p.locks, back=(Frame("idle", locks=p.locks),))
                return resolve(x._replace(p=called), f"apply: T{other} has layers/{layer_id}")
        parent = scope.parents[layer_id]
        if parent is not None and parent not in coming:
            below = tree_of(w, parent)
            if below < 0 or w.trees[below].row is not State.COMMITTED:
                return []
    if not all(_synced(w, t) for t, _ in wanted) and not rules.seal_without_sync:
        return []   # the sync first: ``_seal``
    for order, (t, layer_id) in enumerate(wanted):
        if w.trees[t].row is State.STAGING:
            w = fire(w, t, Trigger.SEAL)
        w = fire(w, t, Trigger.CLAIM, id=layer_id, batch=batch + order if batch else 0)
    what = " and ".join(f"layers/{layer_id} for T{t}" for t, layer_id in wanted)
    todo = tuple((w.trees[t].batch, t) for t, _ in wanted)
    return [(f"apply: txn claim {what}, sealed with it", w, p._replace(pc="promise", t=wanted[0][0], todo=todo), "")]


def promise(x: Turn) -> list[Move]:
    """The commit point. Also where big data fails to be written: back to staged.

    The product claims and promises in one transaction when there is no big data. That is here, too: it is the run
    in which nobody does anything between the two.
    """
    rules, w, p = x.rules, x.w, x.p
    names = " and ".join(f"T{t}" for _, t in p.todo)
    promised = released = w
    for _, t in p.todo:
        promised = fire(promised, t, Trigger.PROMISE)
        released = fire(released, t, Trigger.RELEASE)
    kept = p.locks & ~sum(1 << t for _, t in p.todo)
    after = Proc("finish.place", p.t, p.locks, todo=p.todo, back=(Frame("idle", locks=kept),))
    if rules.commit_before_rename:
        after = after._replace(pc="finish.early")
    return [
        (f"apply: txn promise {names}", promised, after, ""),
        (f"apply: fails before the promise: txn release {names}", released, Proc("idle", locks=p.locks), ""),
    ]


def finish_early(x: Turn) -> list[Move]:
    """The mistake: visible before it is in place."""
    w, p = x.w, x.p
    for _, t in p.todo:
        w = fire(w, t, Trigger.COMMIT)
    return [("apply: txn commit, before the rename", w, p._replace(pc="finish.place"), "")]


# -- read, delete ----------------------------------------------------------------------------------------------------------


def _read(w: World, theirs: int) -> list[Move]:
    """Readers share the lock; with two processes that is the same as having it, for nobody else takes it shared."""
    return [
        (f"read: lock T{t}, look at its row", w, Proc("read", t, 1 << t), "")
        for t, tree in enumerate(w.trees) if tree.row is State.COMMITTED and tree.at == LAYERS and not theirs >> t & 1
    ]


def read(x: Turn) -> list[Move]:
    return [(f"read: done with T{x.p.t}", x.w, IDLE, "")]


def _delete(x: Turn) -> list[Move]:
    scope, w = x.scope, x.w
    found = []
    for t, tree in enumerate(w.trees):
        if tree.row is State.COMMITTED and not _used(scope, w, tree.id):
            after = Proc("delete.find", t, back=(Frame("idle"),))
            found.append((f"delete: txn delete T{t} (layers/{tree.id})", fire(w, t, Trigger.DELETE), after, "delete"))
    return found


def _used(scope: Scope, w: World, layer_id: str) -> bool:
    return any(u.row in PROMISED and u.id and scope.parent(u.id) == layer_id for u in w.trees)


def delete_find(x: Turn) -> list[Move]:
    """``resolve_deleting``: where it is; then as in ``recovering``, but it need not wait for ever."""
    w, p = x.w, x.p
    tree = w.trees[p.t]
    if tree.row is not State.DELETING:
        return [(f"delete: T{p.t} was finished by somebody else", w, IDLE, "")]
    note = (PLACE_NAME.get(tree.at, "nowhere"), "may-give-up")
    return [(f"delete: T{p.t} found in {note[0]}", w, p._replace(pc="resolve.lock", note=note), "")]


STEPS = {
    **recovering.STEPS, **resting.STEPS, **checkpointing.STEPS, "idle": idle,
    "stage.lock": stage_lock, "stage.begin": stage_begin, "stage.fill": stage_fill, "stage.output": stage_output,
    "stage.unspool": stage_unspool, "resume.empty": resume_empty,
    "discard": discard, "discard.unlink": discard_unlink, "promise": promise, "finish.early": finish_early,
    "read": read, "delete.find": delete_find,
}
