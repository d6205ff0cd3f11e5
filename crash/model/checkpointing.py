"""The checkpoint, and what follows one: the steps of ``layerstore.verbs.checkpoint`` and the journal's archive.

The lock on the journal's directory of segments is not here: a second archive at the same time finds nothing to do.
"""

from __future__ import annotations

from crash.model.process import IDLE, Move, Proc, Turn
from crash.model.world import TRASH, fire, held_back, remove, syncfs
from layerstore.lifecycle.states import State, Trigger


def begin(x: Turn) -> list[Move]:
    rules, w, p = x.rules, x.w, x.p
    if rules.head_after_sync:
        return [("checkpoint: syncfs", syncfs(w), p._replace(pc="checkpoint.head"), "checkpoint")]
    head = len(w.log) if rules.mark_passes_open else held_back(w)
    label = f"checkpoint: read the log's head ({len(w.log)} above the mark, {head} to be covered)"
    return [(label, w, p._replace(pc="checkpoint.sync", pos=head), "checkpoint")]


def checkpoint_head(x: Turn) -> list[Move]:
    """The mistake: after the syncfs."""
    w, p = x.w, x.p
    return [("checkpoint: read the log's head", w, p._replace(pc="checkpoint.mark", pos=held_back(w)), "")]


def checkpoint_sync(x: Turn) -> list[Move]:
    w, p = x.w, x.p
    return [("checkpoint: syncfs", syncfs(w), p._replace(pc="checkpoint.mark"), "")]


def checkpoint_mark(x: Turn) -> list[Move]:
    scope, rules, w, p = x.scope, x.rules, x.w, x.p
    low = p.pos if rules.mark_passes_open else min(p.pos, held_back(w))
    after = w._replace(mark=low, below=1 if scope.archive and low else w.below)
    covered = [t for t, tree in enumerate(w.trees)
               if tree.row is State.GONE and (rules.empty_uncovered or t not in w.log[low:])]
    todo = tuple((0, t) for t in covered)
    pc = "checkpoint.empty" if todo else "archive.segment" if after.below == 1 else "idle"
    return [(f"checkpoint: txn mark, {low} further on", after, Proc(pc, todo=todo), "")]


def checkpoint_empty(x: Turn) -> list[Move]:
    """Trees of acknowledged deletions, without a lock: nobody looks for them any more."""
    w, p = x.w, x.p
    (_, t), rest = p.todo[0], p.todo[1:]
    after = remove(w, t) if w.trees[t].at == TRASH else w
    todo = tuple(sorted((*rest, (1, t))))
    pc = "checkpoint.empty" if todo[0][0] == 0 else "checkpoint.emptied"
    return [(f"checkpoint: unlink trash/T{t}", after, p._replace(pc=pc, todo=todo), "")]


def checkpoint_emptied(x: Turn) -> list[Move]:
    w, p = x.w, x.p
    for _, t in p.todo:
        if w.trees[t].row is State.GONE:
            w = fire(w, t, Trigger.EMPTY)
    pc = "archive.segment" if w.below == 1 else "idle"
    return [("checkpoint: txn empty " + " and ".join(f"T{t}" for _, t in p.todo), w, Proc(pc), "")]


def archive_segment(x: Turn) -> list[Move]:
    rules, w = x.rules, x.w
    durable = w._replace(segment=2 if rules.archive_unsynced else 1)
    return [("archive: write the segment, make it durable", durable, Proc("archive.txn"), ""),
            ("no archive this time", w, IDLE, "")]


def archive_txn(x: Turn) -> list[Move]:
    """The log below the mark goes. Decisions never read it; what must not go is what lies above."""
    rules, w = x.rules, x.w
    if w.segment == 0:
        return [("archive: somebody else did", w, IDLE, "")]
    mark = len(w.log) if rules.archive_past_mark else 0
    after = w._replace(mark=mark, below=2 if w.segment == 2 else 0, segment=0)
    return [("archive: txn, the log is cut", after, IDLE, "")]


STEPS = {
    "checkpoint.head": checkpoint_head, "checkpoint.sync": checkpoint_sync, "checkpoint.mark": checkpoint_mark,
    "checkpoint.empty": checkpoint_empty, "checkpoint.emptied": checkpoint_emptied,
    "archive.segment": archive_segment, "archive.txn": archive_txn,
}
