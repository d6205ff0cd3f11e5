"""Staging: content becomes a complete, verified tree under ``staging/<txid>/``.

The write order (docs/crash-model.md), and what a crash after each step leaves:

1. ``mkdir staging/<txid>``, lock that directory, write the txid inside  – a tree without a row: swept
2. txn ``begin``: the rows, and {content key → txid}                      – being staged: swept by whoever gets its lock
3. the differ fills ``diff/`` and writes ``manifest``                     – the same; but with the spool of a remote blob
   it is kept, and the next stage of this content empties it and goes on with the spool (``begin``, ADR 0017)
4. ``output``, the side file that says so; nothing is synced; then      – a kill: kept; the next stage of this content
   the spool is unlinked                                                   adopts it, and unlinks the spool. A loss of
   power: torn or not, whoever wants to adopt it finds out, and removes what is torn

What makes it durable, one syncfs for all trees of a batch, is the apply's first step (``staging.make_durable``), and what
records that it is, ``seal``, shares the claim's transaction. ``StagedLayer.seal`` does both at once.

1 and 2 are in ``begin``. No store lock is held but the rows' transactions.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from layerstore.errors import DigestMismatchError, LayerstoreError, LimitExceededError, QuotaError, StagedHandleError
from layerstore.formats.digests import DigestsWriter
from layerstore.model import Differ, DiffOutput, DiffTarget, Limits, StageOptions
from layerstore.opening import reserve
from layerstore.opening.handle import Handle
from layerstore.system import fs
from layerstore.system.descriptors import Descriptor
from layerstore.trees import spool
from layerstore.verbs import quota, staging
from layerstore.verbs.begin import Want, begin
from layerstore.verbs.staging import Staging, discard, give_up, write_output


class StagedLayer:
    """A staged layer: opaque, good for one apply. Leaving its ``with`` unapplied discards it."""

    def __init__(self, handle: Handle, tree: Staging) -> None:
        assert tree.output is not None
        self._handle, self._staging, self._state = handle, tree, "staged"
        self.output: DiffOutput = tree.output

    @property
    def txid(self) -> str:
        """The tree's own name inside the store."""
        return self._staging.txid

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

    def seal(self) -> None:
        """Make it durable now, rather than with the apply: for what is to be applied much later. Once is enough.

        Raises StagedHandleError if it was used up; OutcomeUnknownError if the disk failed: it is given up then.
        Durability: when it returns, tree and row are on disk, and a loss of power leaves it to be adopted by the next
        stage of the same content. It costs one syncfs and one durable transaction.
        """
        with self._handle.in_use():
            self._handle.check_writable()
            tree = self.take(self._handle)
            staging.seal(self._handle, [tree])
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
        """Let go of it but keep the tree: the next stage of the same content adopts it; gc removes it by age.

        What has no content key, which nobody can ask for, is discarded. Durability: none is added. A kill leaves the
        tree; a loss of power may tear or take it, unless it was sealed, and then the content is staged again.
        """
        if self._state == "staged":
            self._state = "released"
            try:
                staging.leave(self._handle, self._staging)
            finally:
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
    (tree,) = begin(handle, [Want(differ.content_key)], wait=options.wait)
    assert tree is not None
    promised = getattr(differ, "diff_id", None)   # a tree that was adopted is held to it like one that is made
    if tree.output is not None and promised is not None and tree.output.diff_id != promised:
        handle.let_go(tree.txid)
        raise DigestMismatchError(
            f"the content {differ.content_key} is not what was promised", expected=promised, actual=tree.output.diff_id,
        )
    if tree.output is None:
        fill(handle, tree, differ, limits=options.limits, progress=progress)
    return StagedLayer(handle, tree)


def fill(
    handle: Handle, tree: Staging, differ: Differ, *, limits: Limits, progress: Callable[[int], None],
    **more: Any,
) -> None:
    """Let *differ* fill the tree; *more* is what else its ``DiffTarget`` is to have.

    On any error it is given up: what was fetched is kept, if it is worth it and not bad, and nothing else is left.
    """
    begun, room = time.perf_counter(), None
    try:
        room = quota.remaining(handle)
        if room is not None:
            limits = replace(limits, max_bytes=min(limits.max_bytes, room))
        # its own descriptor: nobody can close it under the differ
        with Descriptor.duplicate(handle.lock_fd(tree.txid)) as lock_fd:
            with fs.open_dir("diff", lock_fd) as diff_fd, DigestsWriter(lock_fd) as digests:
                target = DiffTarget(
                    dir_fd=lock_fd, diff_fd=diff_fd, overlay_form=handle.overlay_form, limits=limits, progress=progress,
                    ids=handle.ids, digests=digests, keep_free=reserve.margin(handle.root_fd), **more,
                )
                output = differ.apply_diff(target)
                digests.finish()
            write_output(handle, tree, lock_fd, output)
            if fs.exists(lock_fd, spool.NAME):   # this differ's, or of an attempt before, if this one had no use for it
                fs.unlink(lock_fd, spool.NAME, point="stage.spool.unlink")
    except BaseException as error:
        told: LayerstoreError | None = _over_quota(handle, error, limits, room)
        if isinstance(error, OSError):   # before anything is given back: why is asked of the disk as it is
            told = fs.host_error(error, "unpacking a layer", at=handle.root_fd)
        with suppress(LayerstoreError):
            give_up(handle, tree, error=told or error)
        if told is not None:
            raise told from error
        raise
    handle.observer.event(
        "staged", txid=tree.txid, diff_id=output.diff_id, bytes=output.diff_size, blob_bytes=output.blob_size,
        compression=output.compression, entries=output.entries, unset=output.unset, seconds=time.perf_counter() - begun,
    )


def _over_quota(handle: Handle, error: BaseException, limits: Limits, room: int | None) -> QuotaError | None:
    """What a limit says that was passed, if it was the quota's *room* that set it."""
    if room is None or not isinstance(error, LimitExceededError):
        return None
    if error.limit != "max_bytes" or limits.max_bytes != room:
        return None
    limit = quota.limit_of(handle) or room
    return QuotaError(f"the layer has more than {room} bytes", quota=limit, used=limit - room)
