"""A tree under ``staging/`` that this process holds the lock of: making it durable, sealing it, and giving it up.

How one is come by is ``begin``'s, and what fills it ``stage``'s. Here is what every verb with trees in hand does:

* ``make_durable``  one syncfs for all of them, by the descriptor that was opened first; an error is never tried again
* ``seal_rows``     in a transaction: ``staged``. Only what is durable; mostly in the claim's own transaction
* ``leave``         let go of a filled tree, for the next stage of the same content (ADR 0014)
* ``discard``       give it up: row first, then the tree
* ``give_up``       the same for trees that are not filled, but keep what was fetched, if it is worth it (ADR 0017)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from layerstore.errors import (
    BusyError,
    HostError,
    LayerstoreError,
    NoSpaceError,
    OutcomeUnknownError,
    PoisonedError,
)
from layerstore.formats import records
from layerstore.lifecycle.machine import fire, state_of
from layerstore.lifecycle.states import Kind, State, Trigger
from layerstore.model import DiffOutput
from layerstore.opening import reserve
from layerstore.opening.handle import Handle
from layerstore.system import flock, fs
from layerstore.system.removing import remove_tree
from layerstore.trees import spool
from layerstore.trees.spooled import is_bad_content


@dataclass(slots=True)
class Staging:
    """A tree that this handle holds the lock of. ``output`` is set once it is filled; ``durable`` once it is synced."""

    txid: str
    content_key: str | None
    lock: flock.TreeLock = field(repr=False)   # kept here and nowhere else: whoever forgets the tree lets go of it
    output: DiffOutput | None = None
    durable: bool = False
    adopted: bool = False


_GIVE_UP = {State.STAGING: Trigger.SWEEP, State.STAGED: Trigger.DISCARD}


def make_durable(handle: Handle, stagings: Iterable[Staging]) -> None:
    """Make filled trees durable by one syncfs; by none if all are.

    If it fails, the handle is poisoned and the trees are given up: nobody may take them for finished. If it was
    interrupted, nobody knows what it said: they are let go of, and whoever takes one over reads the disk.
    Durability: when it returns, the trees are on disk. No row says so yet.
    """
    wanted = [each for each in stagings if not each.durable]
    if not wanted:
        return
    try:
        # any one descriptor tells of errors since it was opened: the oldest tells of all
        handle.sync(handle.oldest([each.txid for each in wanted]), point="stage.sync")
    except Exception:
        with suppress(LayerstoreError):
            discard(handle, *wanted)
        raise
    except BaseException:
        for each in wanted:
            leave(handle, each)
        raise
    for each in wanted:
        each.durable = True


def seal_rows(txn: Any, stagings: Iterable[Staging]) -> None:
    """Record trees that are durable as ``staged``, in the transaction *txn*. Those that are so already stay so."""
    for each in stagings:
        assert each.durable
        assert each.output is not None
        if state_of(txn, Kind.LAYER, each.txid) is State.STAGING:
            fire(txn, Kind.LAYER, each.txid, Trigger.SEAL, txid=each.txid, payload={"output": output_to_row(each.output)})


def seal(handle: Handle, stagings: Sequence[Staging]) -> None:
    """Make filled trees durable and record it, by one syncfs and one transaction.

    Durability: when it returns, every tree and its row are on disk. If it fails, the trees are given up.
    """
    make_durable(handle, stagings)
    try:
        handle.update("seal", lambda txn: seal_rows(txn, stagings))
    except Exception:
        with suppress(LayerstoreError):
            discard(handle, *stagings)
        raise


def leave(handle: Handle, staging: Staging) -> None:
    """Let go of a filled tree but keep it; after a sync that failed, so that nobody takes it over.

    One without a content key is discarded: nobody can ask for it.
    """
    if staging.content_key is None:
        discard(handle, staging)
    elif handle.poison is not None:
        _disown(handle, staging)
    handle.let_go(staging.txid)


def discard(handle: Handle, *stagings: Staging, pause: Callable[[int], None] | None = None) -> None:
    """Give trees up, in one transaction: rows first, then the trees. What was promised meanwhile is only let go of.

    Where the row cannot be dropped now, as on a poisoned handle, the next open sweeps the tree. *pause* as for
    ``removing.remove_tree``.
    """
    held = [each for each in stagings if handle.holds(each.txid)]
    if not held:
        return
    reserve.open_up(handle.root_fd)
    try:
        forgotten = handle.update("discard", lambda txn: {each.txid for each in held if forget(txn, each.txid)})
        for each in held:
            if each.txid in forgotten:
                drop_tree(handle, each.txid, pause)
        reserve.renew(handle.root_fd)
    except BaseException as error:
        for each in held:
            _disown(handle, each)
        if not isinstance(error, PoisonedError | OutcomeUnknownError):
            raise
    finally:
        for each in held:
            handle.let_go(each.txid)


def give_up(handle: Handle, *stagings: Staging, error: BaseException | None = None) -> None:
    """Give trees up that are not filled: let go of those with a spool that is worth keeping, discard the others.

    For content that is bad, and on a full disk, says *error*, nothing is kept.
    Durability: as ``discard``; of what is kept none.
    """
    useless = error is not None and (is_bad_content(error) or _is_full(error))
    kept = {each.txid for each in stagings if not useless and handle.holds(each.txid) and has_spool(each)}
    try:
        discard(handle, *(each for each in stagings if each.txid not in kept))
    finally:
        for txid in kept:
            handle.let_go(txid)


def _is_full(error: BaseException) -> bool:
    return isinstance(fs.host_error(error, "") if isinstance(error, OSError) else error, NoSpaceError)


def has_spool(staging: Staging) -> bool:
    """Whether the tree has a spool of its content that is worth going on with."""
    return spool.kept_ns(staging.lock.fd, staging.content_key) is not None


def forget(txn: Any, txid: str) -> bool:
    """Drop the row of a tree that is given up, in the transaction *txn*. False: it is somebody's by now."""
    row = txn.get("layers", txid)
    trigger = _GIVE_UP.get(row["state"]) if row is not None else None
    if trigger is not None:
        fire(txn, Kind.LAYER, txid, trigger, txid=txid)
    return row is None or trigger is not None


def _disown(handle: Handle, staging: Staging) -> None:
    """What says that the tree is finished is taken away, so that it is swept rather than taken over."""
    if handle.holds(staging.txid):
        with suppress(OSError):
            fs.unlink(handle.lock_fd(staging.txid), records.OUTPUT_FILE, point="discard.output.unlink")


def drop_tree(handle: Handle, txid: str, pause: Callable[[int], None] | None = None) -> None:
    """Unlink a tree that has no row, and let go of it. What cannot be unlinked now is swept by the next open."""
    try:
        with suppress(OSError, HostError, BusyError):
            remove_tree(handle.dirs["staging"], txid, point="discard.unlink", pause=pause)
    finally:
        handle.let_go(txid)


def write_output(handle: Handle, staging: Staging, tree_fd: int, output: DiffOutput) -> None:
    """Say in the tree itself that it is filled, and with what. Nothing is synced; what has no key is asked for by nobody.

    Durability: none. After a kill the next stage of the content goes by it; after a loss of power it may be there or
    not, torn or whole, and so may the tree: hence whoever goes by it looks at everything (``left``).
    """
    if staging.content_key is not None:
        data = records.output_file(staging.txid, output_to_row(output), handle.clock())
        fs.write_new(tree_fd, records.OUTPUT_FILE, data, point="stage.output")
    staging.output = output


def output_to_row(output: DiffOutput) -> dict[str, Any]:
    row = asdict(output)
    row["uids"], row["gids"], row["big_data"] = list(output.uids), list(output.gids), dict(output.big_data)
    return row


def output_from_row(row: dict[str, Any]) -> DiffOutput:
    return DiffOutput(**{**row, "uids": tuple(row["uids"]), "gids": tuple(row["gids"])})
