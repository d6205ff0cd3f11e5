"""The rules that the protocol keeps, each as a switch that breaks it. All off is the product."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rules:
    """Each switch is a mistake that reads well (docs/model.md has the lesson that each stands for)."""

    seal_without_sync: bool = False       # staged is recorded without the syncfs
    adopt_unseen: bool = False            # who adopts a tree that no record vouches for does not look at it
    sweep_the_filled: bool = False        # recovery sweeps what is filled and not staged yet
    sweep_the_resumable: bool = False     # recovery sweeps what is not filled, but has a spool to go on with
    adopt_half_made: bool = False         # who goes on with a tree uses it as it is
    resume_the_living: bool = False       # who goes on with a tree does not take its lock
    leave_the_spool: bool = False         # who adopts a filled tree does not unlink its spool
    finish_without_lock: bool = False     # whoever finishes a promised tree does not take its lock
    delete_a_path: bool = False           # what lies at layers/<id> is moved to trash without a look at what it is
    batch_layer_by_layer: bool = False    # a batch's layers become visible one after the other
    redo_only_renames: bool = False       # a lost side file is not written again
    skip_held_redo: bool = False          # recovery does not wait for a tree that somebody else holds
    unlink_before_row: bool = False       # discarding unlinks first and drops the row after
    claim_while_deleting: bool = False    # an ID is claimable while its last tree is still being deleted
    head_after_sync: bool = False         # a checkpoint reads the log's head after its syncfs
    trust_committed: bool = False         # recovery does not look at committed layers above the mark
    mark_passes_open: bool = False        # the mark is not held back by open transactions
    empty_uncovered: bool = False         # the trash is emptied before a checkpoint covers it
    archive_past_mark: bool = False       # the log is archived up to its head
    archive_unsynced: bool = False        # the log is cut before the segment is durable
    commit_before_rename: bool = False    # the layer becomes visible before it is in place
    sweep_the_living: bool = False        # recovery does not ask for locks before it decides
    no_look_after_lock: bool = False      # what was decided before the lock was had is done under it
    act_unlocked: bool = False            # a tree that has moved before it could be locked is acted upon all the same
    lock_in_any_order: bool = False       # a batch's trees are not locked in one order by everybody
    trash_last: bool = False              # redone per transaction, not per path: gone trees leave their places last


PRODUCT = Rules()
