"""What a store's gauges show: its disk, its trees by state, its quota, its journal. Read at each scrape: no tree is walked.

``space`` measures what lies in staging and trash, and so costs what is there; here such things are counted by their names.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from layerstore.errors import DamagedError
from layerstore.lifecycle.states import TRANSITIONS, Kind, State
from layerstore.opening import reserve
from layerstore.opening.handle import Handle
from layerstore.system import fs
from layerstore.system.room import free_bytes, free_inodes
from layerstore.verbs import quota

__all__ = ["Gauges", "gauges"]

_STATES = sorted({each.dest.value for each in TRANSITIONS if each.kind is Kind.LAYER} - {State.ABSENT})


@dataclass(frozen=True, slots=True)
class Gauges:
    """One moment of a store.

    ``trees``: how many trees are in each state (docs/states.md). ``free_inodes`` is None where the file system tells no
    number (btrfs), and follows ``free`` where it makes them as they are needed (XFS, ZFS, f2fs, bcachefs); ``quota`` is
    None where there is none or its file cannot be understood. ``counted`` is what counts towards the quota. ``reserve`` is
    what is held for deletions on a full disk, of ``reserve_wanted``. ``trash`` and ``quarantine`` are numbers of entries.
    ``journal`` is the size of ``data.mdb``; ``head`` its last record, ``low_water`` the one up to which a checkpoint
    covers. ``segments``: of archived log. Sizes are in bytes.
    """

    total: int
    free: int
    free_inodes: int | None
    trees: Mapping[str, int]
    counted: int
    quota: int | None
    reserve: int
    reserve_wanted: int
    trash: int
    quarantine: int
    journal: int
    head: int
    low_water: int
    segments: int
    segment_bytes: int


def gauges(handle: Handle) -> Gauges:
    """Read them. No lock is taken or waited for. The cost: the rows of the catalog, and names in a few directories."""
    handle.check_usable()
    trees = Counter(dict.fromkeys(_STATES, 0))
    counted = 0
    with handle.read() as view:
        head, low_water = view.head()[0], view.low_water()
        for txid, row in view.scan("layers"):
            trees[row["state"]] += 1
            counted += quota.size_of(handle, txid, row, {})
    limit = None
    with suppress(DamagedError):   # a check tells of it
        limit = quota.limit_of(handle)
    status = os.fstatvfs(handle.root_fd)
    archived = _segments(handle)
    return Gauges(
        total=status.f_blocks * status.f_frsize, free=free_bytes(handle.root_fd),
        free_inodes=free_inodes(handle.root_fd), trees=dict(trees), counted=counted, quota=limit,
        reserve=reserve.held(handle.root_fd), reserve_wanted=reserve.size_for(handle.root_fd),
        trash=len(fs.names_in(handle.dirs["trash"])), quarantine=len(fs.names_in(handle.dirs["quarantine"])),
        journal=os.stat("journal/data.mdb", dir_fd=handle.root_fd).st_size, head=head, low_water=low_water,
        segments=len(archived), segment_bytes=sum(archived),
    )


def _segments(handle: Handle) -> list[int]:
    """The sizes of archived segments; of one that is dropped meanwhile nothing."""
    sizes = []
    with fs.open_dir("journal/segments", handle.root_fd) as directory:
        for name in fs.names_in(directory):
            with suppress(FileNotFoundError):
                sizes.append(os.stat(name, dir_fd=directory, follow_symlinks=False).st_size)
    return sizes
