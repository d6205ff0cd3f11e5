"""Checkpoints: after one, recovery need not look further back; what it covers may be emptied and archived.

In order: read the log's head S · syncfs · txn ``checkpoint`` with low-water = min(S, first record of any open
transaction − 1) · empty the trash of covered deletions · archive the log below the mark, when it is long.
The head is read *before* the syncfs: a commit that lands between the two is not covered by it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from layerstore.errors import LayerstoreError, PrivilegeError
from layerstore.lifecycle.machine import fire, state_of
from layerstore.lifecycle.states import HOLDS_MARK, Kind, State, Trigger
from layerstore.opening import reserve
from layerstore.opening.handle import Handle
from layerstore.opening.journaling import journal_errors
from layerstore.system import flock, fs
from layerstore.system.rate import EnoughError, Portion
from layerstore.system.removing import remove_tree

EVERY = 2_048
"""Records after which a verb that has finished makes a checkpoint by itself: lazy, so that redo stays a path walked."""

IN_PASSING = 2_000
"""Files of the trash that a verb removes at most when it has finished, for somebody waits for it. The rest goes with the
next verbs, with an explicit checkpoint, or with gc, at the rate that it is given."""

_SAMPLE = 16                             # names in trash/ that are looked up to know whether anything of it may go

ARCHIVE_AT = 16_384
"""Records below the mark at which a checkpoint also archives them."""


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """What a checkpoint covers (``low_water``, a record's sequence number), and what it let go of."""

    low_water: int
    emptied: int
    archived: str | None = None


def checkpoint(
    handle: Handle, *, archive: bool | None = None, pause: Callable[[int], None] | None = None,
) -> CheckpointReport:
    """Make one. *archive* True or False; None: when the log below the mark has become long. *pause*: as ``empty_gone``.

    Durability: when it returns, every committed effect so far is on disk whatever happens next. The same is true when it
    raises PrivilegeError: of a tree in the trash that this process may not remove, and that stays there.
    """
    handle.check_writable()
    begun = time.perf_counter()

    def sync() -> None:
        # a descriptor of the handle's own, opened before its first write
        handle.sync(handle.sync_fd, point="checkpoint.sync")

    with journal_errors(handle.set_poison):
        made = handle.journal.checkpoint(sync, _held_back)
    handle.checkpointed_at = made.seq   # an open transaction may hold the mark: then do not try again at once
    emptied, left = empty_gone(handle, made.low_water, pause)
    reserve.renew(handle.root_fd)
    segment = None
    if archive or (archive is None and _long(handle, made.low_water)):
        with journal_errors(handle.set_poison):
            segment = handle.journal.archive()
    report = CheckpointReport(made.low_water, emptied, segment.name if segment is not None else None)
    handle.observer.event("checkpoint", **asdict(report), seconds=time.perf_counter() - begun)
    if left is not None:   # all else is done
        raise left
    return report


def checkpoint_if_due(handle: Handle) -> None:
    """At the end of a verb: a checkpoint, or, while none is due, a portion of the trash that earlier ones left.

    Never a reason for the verb to fail: what is durable is durable without it.
    """
    with handle.read() as view:
        head, low_water = view.head()[0], view.low_water()
        due = head - max(low_water, handle.checkpointed_at) > EVERY
        left = not due and _may_be_emptied(handle, view, low_water)
    if not (due or left) or handle.poison is not None:
        return
    try:
        portion = Portion(IN_PASSING).take
        if due:
            checkpoint(handle, pause=portion)
        else:
            empty_gone(handle, low_water, portion)
    except (LayerstoreError, OSError) as error:
        handle.observer.event("checkpoint-failed", error=str(error))


def relieve(handle: Handle) -> None:
    """The disk is full: make a checkpoint, if there is trash that it would empty. Fails silently: it is only help."""
    with suppress(LayerstoreError, OSError):
        with handle.read() as view:
            trash = bool(_open_gone(view, "layer"))
        if trash:
            reserve.open_up(handle.root_fd)
            checkpoint(handle, archive=False)


def _long(handle: Handle, low_water: int) -> bool:
    with handle.read() as view:
        first = next(iter(view.records()), None)
    return first is not None and low_water - first.seq > ARCHIVE_AT


def _may_be_emptied(handle: Handle, view: Any, low_water: int) -> bool:
    """Whether a tree in the trash is covered by a checkpoint. By a few of them: the cost does not grow with the trash."""
    with os.scandir(handle.dirs["trash"]) as trees:
        names = [each.name for each in islice(trees, _SAMPLE)]
    rows = [view.get("open", f"layer:{name}") for name in names]
    return any(row is not None and row["state"] == State.GONE and row["first"] <= low_water for row in rows)


def _held_back(view: Any) -> int | None:
    """The first record of any open transaction (docs/adr/0004: staged trees do not hold the mark)."""
    firsts = [entry["first"] for _, entry in view.scan("open") if entry["state"] in HOLDS_MARK]
    return min(firsts, default=None)


def empty_gone(
    handle: Handle, low_water: int, pause: Callable[[int], None] | None = None,
) -> tuple[int, PrivilegeError | None]:
    """Unlink what a checkpoint covers: trees of acknowledged deletions, and image files. How many there were.

    *pause* is called before each file of a tree: it may wait, and nobody waits for it; or say that it is enough, then what
    is left of that tree, and the others, stay, with their rows, as after a crash.

    A tree that this process may not remove stays, with its row, for whoever may; the first such error is returned.
    """
    with handle.read() as view:
        trees = [key for key, e in _open_gone(view, "layer") if e["first"] <= low_water]
        images = [key for key, e in _open_gone(view, "image") if e["first"] <= low_water]
    left = None
    emptied = []
    for txid in trees:
        try:
            remove_tree(handle.dirs["trash"], txid, point="checkpoint.empty.unlink", pause=pause)
        except PrivilegeError as error:
            left = left or error
        except EnoughError:
            break
        else:
            emptied.append(txid)
    for image_id in images:
        with flock.locked_dir(handle.dirs["images"]):
            with handle.read() as view:
                gone = state_of(view, Kind.IMAGE, image_id) is State.GONE
            if gone:
                fs.unlink(handle.dirs["images"], image_id, point="checkpoint.empty.unlink")
    if emptied or images:
        handle.update("empty", lambda txn: _empty(txn, emptied, images))
    return len(emptied) + len(images), left


def _open_gone(view: Any, kind: str) -> list[tuple[str, Any]]:
    return [
        (key.removeprefix(f"{kind}:"), entry) for key, entry in view.scan("open", f"{kind}:")
        if entry["state"] == State.GONE
    ]


def _empty(txn: Any, trees: list[str], images: list[str]) -> None:
    for kind, keys in ((Kind.LAYER, trees), (Kind.IMAGE, images)):
        for key in keys:
            if state_of(txn, kind, key) is State.GONE:
                fire(txn, kind, key, Trigger.EMPTY, txid=key[:32])

