"""Getting trees to fill: fresh ones, or what others are making or have left, waited for and adopted.

Of several processes that want the same content one makes it; the others wait for its tree's lock and join. If who made it
dies, one of them takes the tree over: adopts what is finished; or empties what is not, and goes on with its spool.

**Nobody waits in a circle.** Whoever wants several trees begins them in the order of their content keys. All that are
free, up to the first that somebody else has, are begun in one transaction; then that one is waited for; then on from
there. So whoever waits for a key holds smaller ones only, as if each had been begun by itself; and whoever holds the
greatest of all keys that are waited for waits for none. A thread that holds trees and is not in that order makes a tree
of its own, which nobody else joins, rather than wait (ADR 0005, 0014).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from layerstore.errors import BusyError, LayerstoreError, PrivilegeError
from layerstore.formats.manifest import NAME as MANIFEST
from layerstore.formats.packed import open_regular
from layerstore.lifecycle.machine import fire
from layerstore.lifecycle.states import Kind, State, Trigger
from layerstore.opening import reserve
from layerstore.opening.handle import Handle, new_txid
from layerstore.recovery import executor, looking
from layerstore.system import flock, fs
from layerstore.trees import spool
from layerstore.trees.dress import improvable
from layerstore.trees.left import is_whole
from layerstore.trees.verify import tree_problems
from layerstore.verbs.staging import Staging, discard, drop_tree, output_from_row

_JOIN_SLICE_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Want:
    """A tree that is wanted. *needless* says of the catalog that it is not any more, as it may after a wait."""

    content_key: str | None
    needless: Callable[[Any], bool] = lambda _view: False


def begin(
    handle: Handle, wants: Sequence[Want], *, wait: float | None = None, ordered: bool = False,
    waiting: Callable[[int], None] = lambda _kept: None,
) -> list[Staging | None]:
    """Trees for the first of *wants*: as many as can be had now, and at least one.

    Fresh ones, empty, their rows in one transaction; or the one that somebody left finished, adopted, or unfinished with
    a spool, emptied but for that; or None for one that is needless. Waits while another process or thread makes the first
    one's content, telling *waiting* now and then how many bytes of it that one has kept: BusyError after *wait* seconds.
    A thread that holds other trees already waits only if *ordered*, that is, if it begins in the order of
    content keys. Durability: the rows are on disk when this returns; trees without a row are swept by the next open.
    """
    reserve.ensure(handle.root_fd)   # first: what frees space must not be kept from it by what is put in
    deadline = None if wait is None else time.monotonic() + wait
    while True:
        if deadline is not None and time.monotonic() > deadline:
            raise BusyError(f"the content {wants[0].content_key} is still being staged by another process or thread")
        with handle.read() as view:
            if wants[0].needless(view):
                return [None]
            keys = _free(handle, view, wants, ordered=ordered)
            owner = _owner(view, wants[0].content_key)
        if keys:
            begun = _fresh(handle, keys)
            if begun:
                return [*begun]
        elif owner is not None:
            adopted = _join(handle, owner, waiting)
            if adopted is not None:
                return [adopted]


def _owner(view: Any, content_key: str | None) -> str | None:
    """The tree that is, or was, being made of that content."""
    row = view.get("content", content_key) if content_key is not None else None
    return None if row is None else str(row["txid"])


def _free(handle: Handle, view: Any, wants: Sequence[Want], *, ordered: bool) -> list[str | None]:
    """The content keys to begin now: of the first *wants* that need not wait. None for a tree of its own."""
    keys: list[str | None] = []
    for want in wants:
        key = want.content_key
        if keys and want.needless(view):
            break
        owner = _owner(view, key)
        if owner is None:
            keys.append(None if key in keys else key)   # the same content twice: waiting for ourselves would never end
        elif handle.held_by_this_thread(owner) or (
            not ordered and (keys or handle.held_by_this_thread()) and flock.is_locked(handle.dirs["staging"], owner)
        ):
            keys.append(None)   # waiting for ourselves, or in a circle, would never end
        else:
            break
    return keys


def _fresh(handle: Handle, keys: Sequence[str | None]) -> list[Staging]:
    """Empty trees for *keys*; only for those before the first that somebody else was quicker with."""
    made: list[Staging] = []
    try:
        for key in keys:
            _make_tree(handle, key, made)
        registered = handle.update("begin", lambda txn: _register(handle, txn, made))
        for each in made[registered:]:
            drop_tree(handle, each.txid)
    except BaseException as error:
        told = fs.host_error(error, "making a staging directory", at=handle.root_fd) if isinstance(error, OSError) else None
        with suppress(LayerstoreError):
            discard(handle, *made)   # the rows may be there, or not
        if told is not None:
            raise told from error
        raise
    return made[:registered]


def _make_tree(handle: Handle, content_key: str | None, made: list[Staging]) -> None:
    staging_fd = handle.dirs["staging"]
    while True:
        txid = new_txid()
        fs.make_dir(staging_fd, txid, point="stage.mkdir")
        lock = flock.lock_tree(staging_fd, txid, point="stage.lock")
        if lock is not None:  # None: a recovery saw a tree without a row and was quicker
            break
    handle.hold(txid, lock)
    made.append(Staging(txid, content_key, lock))
    fs.write_new(lock.fd, fs.TXID_FILE, txid.encode(), point="stage.txid")
    fs.make_dir(lock.fd, "diff", point="stage.diff", mode=0o755)


def _register(handle: Handle, txn: Any, made: Sequence[Staging]) -> int:
    """The rows, in order, up to a key that has one by now; how many."""
    for number, each in enumerate(made):
        if each.content_key is not None and txn.get("content", each.content_key) is not None:
            return number
        fire(txn, Kind.LAYER, each.txid, Trigger.BEGIN, txid=each.txid, payload={
            "content_key": each.content_key, "overlay_form": handle.overlay_form, "pid": os.getpid(),
        })
    return len(made)


# -- what others make, or have left --------------------------------------------------------------------------------


def _join(handle: Handle, txid: str, waiting: Callable[[int], None]) -> Staging | None:
    """Wait a while for the tree's holder; then take over what it left finished or fetched, or clear away what it left.

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
        lock = flock.lock_tree(handle.dirs[place], name, wait=_JOIN_SLICE_SECONDS, point="stage.join")
        if lock is None:
            executor.resolve(handle, txid, wait=_JOIN_SLICE_SECONDS)   # a row without a tree, or between two steps
            return None
    except BusyError:
        waiting(spool.length(handle.dirs["staging"], txid))
        return None   # slice by slice: a reader may hold what was committed meanwhile
    with handle.read() as view:
        row = view.get("layers", txid)
    state = State.ABSENT if row is None else State(row["state"])
    if row is None or (fs.read_txid(lock.fd) != txid and state is not State.STAGING):
        lock.close()
        return None
    left = looking.left_output(lock.fd, txid) if state is State.STAGING else None
    if state is State.STAGED or left is not None:
        handle.hold(txid, lock)
        output = output_from_row(row["output"] if left is None else left["output"])
        spooled = left is not None and looking.left_spool(lock.fd, txid, row) is not None
        found = Staging(txid, row["content_key"], lock, output, durable=left is None, adopted=True)
        return _adopt(handle, found, spooled=spooled)
    if state is State.STAGING and looking.left_spool(lock.fd, txid, row) is not None:
        handle.hold(txid, lock)
        return _resume(handle, Staging(txid, row["content_key"], lock))
    lock.close()
    if state in (State.STAGING, State.CREATING, State.INCOMPLETE):
        executor.resolve(handle, txid)  # its owner is dead
    return None


def _adopt(handle: Handle, staging: Staging, *, spooled: bool) -> Staging | None:
    """Re-hash a finished tree under its lock, and take it over, if it is what its row, or file, says.

    Else it is discarded; or made again from the spool that lies in it, if it is *spooled*: a loss of power that took
    the tree's content may have left that.
    """
    try:
        if not _is_right(handle, staging) or _improvable(handle, staging):
            if not spooled:
                discard(handle, staging)
                return None
        else:
            spooled = False
            fs.unlink(staging.lock.fd, spool.NAME, point="stage.spool.unlink")   # a loss of power can bring it back
    except BaseException:
        handle.let_go(staging.txid)
        raise
    if spooled:
        return _resume(handle, Staging(staging.txid, staging.content_key, staging.lock))
    assert staging.output is not None
    handle.observer.event(
        "adopted", txid=staging.txid, diff_id=staging.output.diff_id, bytes=staging.output.diff_size,
    )
    return staging


def _resume(handle: Handle, staging: Staging) -> Staging | None:
    """Empty an unfinished tree under its lock, but for its spool, and take it over. A crash in it leaves it as it was."""
    try:
        spool.start_over(staging.lock.fd, keep=(fs.TXID_FILE, spool.NAME))
    except PrivilegeError:
        discard(handle, staging)   # made by somebody who could do more: the next open of one who can removes it
        return None
    except BaseException:
        handle.let_go(staging.txid)
        raise
    return staging


def _is_right(handle: Handle, staging: Staging) -> bool:
    output = staging.output
    assert output is not None
    if not staging.durable:
        return is_whole(staging.lock.fd, output, overlay_form=handle.overlay_form, ids=handle.ids)
    return all(problem.unreadable for problem in tree_problems(
        staging.lock.fd, output.manifest_digest, content=True, overlay_form=handle.overlay_form,
        tar_split=output.tar_split_digest, ids=handle.ids,
    ))


def _improvable(handle: Handle, staging: Staging) -> bool:
    """Whether it was made by somebody who could set less than this process can: then it is made anew."""
    assert staging.output is not None
    if not staging.output.unset:
        return False
    with open_regular(MANIFEST, staging.lock.fd) as fd:
        return improvable(fd, handle.ids)
