"""Staging: content becomes a complete, verified, durable tree under ``staging/<txid>/``.

The write order (docs/crash-model.md), and what a crash after each step leaves:

1. ``mkdir staging/<txid>``, lock that directory, write the txid inside  – a tree without a row: swept
2. txn ``begin``: the row, and {content key → txid}                       – being staged: swept by whoever gets its lock
3. the differ fills ``diff/`` and writes ``manifest``                     – the same
4. one syncfs, through the descriptor opened in 1, for all that is ready  – the same
5. txn ``seal``: ``staged``                                                – kept; the next stage of this content adopts it

No store lock is held but the rows' transactions. Of several processes that want the same content one makes it;
the others wait for its tree's lock and join.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from layerstore import executor, fs
from layerstore.descriptors import Descriptor
from layerstore.dress import improvable
from layerstore.errors import (
    BusyError,
    DigestMismatchError,
    HostError,
    LayerstoreError,
    OutcomeUnknownError,
    PoisonedError,
    StagedHandleError,
)
from layerstore.handle import Handle, new_txid
from layerstore.lifecycle import fire
from layerstore.manifest import NAME as MANIFEST
from layerstore.model import Differ, DiffOutput, DiffTarget, Limits, StageOptions
from layerstore.packed import open_regular
from layerstore.states import Kind, State, Trigger
from layerstore.verify import tree_problems


@dataclass(slots=True)
class Staging:
    """A tree that this handle holds the lock of. ``output`` is set once it is filled; ``sealed`` once it is staged."""

    txid: str
    content_key: str | None
    lock: fs.TreeLock = field(repr=False)   # kept here and nowhere else: whoever forgets the tree lets go of it
    output: DiffOutput | None = None
    sealed: bool = False
    adopted: bool = False


_GIVE_UP = {State.STAGING: Trigger.SWEEP, State.STAGED: Trigger.DISCARD}
_JOIN_SLICE_SECONDS = 0.2


class _LostRaceError(Exception):
    """Another process registered a tree for the same content first."""


class StagedLayer:
    """A staged layer: opaque, good for one apply. Leaving its ``with`` unapplied discards it."""

    def __init__(self, handle: Handle, staging: Staging) -> None:
        assert staging.output is not None
        self._handle, self._staging, self._state = handle, staging, "staged"
        self.output: DiffOutput = staging.output

    @property
    def adopted(self) -> bool:
        """Whether the tree was found finished, left by an earlier attempt, rather than made."""
        return self._staging.adopted

    def take(self, handle: Handle) -> Staging:
        """For the apply verb: use the handle up. StagedHandleError if it was already, or belongs to another store."""
        if handle is not self._handle:
            raise StagedHandleError("this staged layer belongs to another store handle")
        if self._state != "staged":
            raise StagedHandleError(f"this staged layer was already {self._state}")
        self._state = "applied"
        return self._staging

    def give_back(self) -> None:
        """For the apply verb: nothing happened, the handle is good again."""
        self._state = "staged"

    def discard(self) -> None:
        """Give it up: the tree is removed. Does nothing once applied.

        Durability: the row is dropped first, durably; a crash after that leaves a tree that the next open sweeps.
        """
        if self._state == "staged":
            self._state = "discarded"
            try:
                discard(self._handle, self._staging)
            finally:
                self._handle.let_go(self._staging.txid)   # whatever came between

    def release(self) -> None:
        """Let go of it but keep the tree: the next stage of the same content adopts it; gc removes it by age."""
        if self._state == "staged":
            self._state = "released"
            self._handle.let_go(self._staging.txid)

    def __enter__(self) -> StagedLayer:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.discard()


def stage(
    handle: Handle, differ: Differ, options: StageOptions, progress: Callable[[int], None] = lambda _n: None,
) -> StagedLayer:
    """Stage one differ's content; the verb behind ``Store.stage``."""
    handle.check_writable()
    staging = begin(handle, differ.content_key, wait=options.wait)
    assert staging is not None
    promised = getattr(differ, "diff_id", None)   # a tree that was adopted is held to it like one that is made
    if staging.output is not None and promised is not None and staging.output.diff_id != promised:
        handle.let_go(staging.txid)
        raise DigestMismatchError(
            f"the content {differ.content_key} is not what was promised", expected=promised,
            actual=staging.output.diff_id,
        )
    if staging.output is None:
        fill(handle, staging, differ, limits=options.limits, progress=progress)
        seal(handle, [staging])
    return StagedLayer(handle, staging)


def begin(
    handle: Handle, content_key: str | None, *, wait: float | None = None, ordered: bool = False,
    needless: Callable[[Any], bool] = lambda _view: False,
) -> Staging | None:
    """A tree for *content_key*: a finished one that was left behind, adopted; else a fresh, empty one.

    Waits while another process or thread makes the same content. BusyError after *wait* seconds. A thread that
    holds other trees already waits only if *ordered*, that is, if it begins in the order of content keys: else two
    of them could wait for each other, so it makes a tree of its own, which nobody else joins. None when *needless*
    says of the catalog that the tree is not wanted any more, as it may after a wait.
    """
    deadline = None if wait is None else time.monotonic() + wait
    while True:
        if deadline is not None and time.monotonic() > deadline:
            raise BusyError(f"the content {content_key} is still being staged by another process or thread")
        with handle.read() as view:
            if needless(view):
                return None
            owner = (view.get("content", content_key) or {}).get("txid") if content_key is not None else None
        if owner is None:
            with suppress(_LostRaceError):
                return _fresh(handle, content_key)
        elif handle.held_by_this_thread(owner) or (not ordered and handle.held_by_this_thread() and
                                                   fs.is_locked(handle.dirs["staging"], owner)):
            return _fresh(handle, None)   # waiting for ourselves, or in a circle, would never end
        else:
            adopted = _join(handle, owner)
            if adopted is not None:
                return adopted


def _fresh(handle: Handle, content_key: str | None) -> Staging:
    staging_fd = handle.dirs["staging"]
    try:
        while True:
            txid = new_txid()
            fs.make_dir(staging_fd, txid, point="stage.mkdir")
            lock = fs.lock_tree(staging_fd, txid, point="stage.lock")
            if lock is not None:  # None: a recovery saw a tree without a row and was quicker
                break
    except OSError as error:
        raise fs.host_error(error, "making a staging directory") from error
    handle.hold(txid, lock)
    staging = Staging(txid, content_key, lock)
    try:
        fs.write_new(lock.fd, fs.TXID_FILE, txid.encode(), point="stage.txid")
        fs.make_dir(lock.fd, "diff", point="stage.diff", mode=0o755)
        payload = {"content_key": content_key, "overlay_form": handle.overlay_form, "pid": os.getpid()}

        def register(txn: Any) -> None:
            if content_key is not None and txn.get("content", content_key) is not None:
                raise _LostRaceError
            fire(txn, Kind.LAYER, txid, Trigger.BEGIN, txid=txid, payload=payload)

        handle.update("begin", register)
    except BaseException as error:
        with suppress(LayerstoreError):
            discard(handle, staging)   # the row may be there, or not
        if isinstance(error, OSError):
            raise fs.host_error(error, "making a staging directory") from error
        raise
    return staging


def _join(handle: Handle, txid: str) -> Staging | None:
    """Wait a while for the tree's holder; then adopt what it left staged, or clear away what it left unfinished.

    None: look again (it is still held, or was committed, swept or discarded meanwhile).
    """
    with handle.read() as view:
        row = view.get("layers", txid)
    if row is None:
        return None
    place, name = ("staging", txid)
    if row["state"] == State.INCOMPLETE and not fs.exists(handle.dirs["staging"], txid):
        place, name = "layers", row["layer_id"]
    try:
        lock = fs.lock_tree(handle.dirs[place], name, wait=_JOIN_SLICE_SECONDS, point="stage.join")
        if lock is None:
            executor.resolve(handle, txid, wait=_JOIN_SLICE_SECONDS)   # a row without a tree, or between two steps
            return None
    except BusyError:
        return None   # slice by slice: a reader may hold what was committed meanwhile
    with handle.read() as view:
        row = view.get("layers", txid)
    if row is None or fs.read_txid(lock.fd) != txid:
        lock.close()
        return None
    state = State(row["state"])
    if state is State.STAGED:
        handle.hold(txid, lock)
        return _adopt(handle, txid, lock, row)
    lock.close()
    if state in (State.STAGING, State.CREATING, State.INCOMPLETE):
        executor.resolve(handle, txid)  # its owner is dead
    return None


def _adopt(handle: Handle, txid: str, lock: fs.TreeLock, row: dict[str, Any]) -> Staging | None:
    """Re-hash a finished tree under its lock, and take it over; discard it if it is not what its row says."""
    output = output_from_row(row["output"])
    staging = Staging(txid, row["content_key"], lock, output=output, sealed=True, adopted=True)
    try:
        problems = tree_problems(
            handle.lock_fd(txid), output.manifest_digest, content=True, overlay_form=handle.overlay_form,
            tar_split=output.tar_split_digest, ids=handle.ids,
        )
        if any(not problem.unreadable for problem in problems) or (output.unset and _improvable(handle, lock)):
            discard(handle, staging)
            return None
    except BaseException:
        handle.let_go(txid)
        raise
    return staging


def _improvable(handle: Handle, lock: fs.TreeLock) -> bool:
    """Whether it was made by somebody who could set less than this process can: then it is made anew."""
    with open_regular(MANIFEST, lock.fd) as fd:
        return improvable(fd, handle.ids)


def fill(
    handle: Handle, staging: Staging, differ: Differ, *, limits: Limits, progress: Callable[[int], None],
    cancelled: Any = None,
) -> None:
    """Let *differ* fill the tree. On any error the tree is swept, and nothing is left."""
    try:
        # its own descriptor: nobody can close it under the differ
        with Descriptor.duplicate(handle.lock_fd(staging.txid)) as lock_fd, fs.open_dir("diff", lock_fd) as diff_fd:
            target = DiffTarget(
                dir_fd=lock_fd, diff_fd=diff_fd, overlay_form=handle.overlay_form, limits=limits, progress=progress,
                ids=handle.ids, **({} if cancelled is None else {"cancelled": cancelled}),
            )
            staging.output = differ.apply_diff(target)
    except BaseException as error:
        with suppress(LayerstoreError):
            discard(handle, staging)
        if isinstance(error, OSError):
            raise fs.host_error(error, "unpacking a layer") from error
        raise


def seal(handle: Handle, stagings: Sequence[Staging]) -> None:
    """Make filled trees durable by one syncfs and record them ``staged`` in one transaction.

    Durability: when it returns, every tree and its row are on disk. If it fails, the trees are swept.
    """
    if not stagings:
        return
    try:
        # any one descriptor tells of errors since it was opened: the oldest tells of all
        handle.sync(handle.oldest([each.txid for each in stagings]), point="stage.sync")

        def record(txn: Any) -> None:
            for each in stagings:
                assert each.output is not None
                fire(txn, Kind.LAYER, each.txid, Trigger.SEAL, txid=each.txid,
                     payload={"output": output_to_row(each.output)})

        handle.update("seal", record)
    except BaseException:
        for each in stagings:
            with suppress(LayerstoreError):
                discard(handle, each)
        raise
    for each in stagings:
        each.sealed = True


def discard(handle: Handle, staging: Staging) -> None:
    """Row first, then the tree. What was promised meanwhile is only let go of: it goes forward.

    A poisoned handle only lets go, too: the next open sweeps.
    """
    if not handle.holds(staging.txid):
        return

    def forget(txn: Any) -> bool:
        row = txn.get("layers", staging.txid)
        trigger = _GIVE_UP.get(row["state"]) if row is not None else None
        if trigger is not None:
            fire(txn, Kind.LAYER, staging.txid, trigger, txid=staging.txid)
        return row is None or trigger is not None

    try:
        forgotten = handle.update("discard", forget)
    except (PoisonedError, OutcomeUnknownError):
        forgotten = False
    except BaseException:
        handle.let_go(staging.txid)
        raise
    if forgotten:
        _drop_tree(handle, staging.txid)
    else:
        handle.let_go(staging.txid)


def _drop_tree(handle: Handle, txid: str) -> None:
    """Unlink a tree that has no row. What cannot be unlinked now is swept by the next open."""
    try:
        with suppress(OSError, HostError, BusyError):
            fs.remove_tree(handle.dirs["staging"], txid, point="discard.unlink")
    finally:
        handle.let_go(txid)


def output_to_row(output: DiffOutput) -> dict[str, Any]:
    row = asdict(output)
    row["uids"], row["gids"], row["big_data"] = list(output.uids), list(output.gids), dict(output.big_data)
    return row


def output_from_row(row: dict[str, Any]) -> DiffOutput:
    return DiffOutput(**{**row, "uids": tuple(row["uids"]), "gids": tuple(row["gids"])})
