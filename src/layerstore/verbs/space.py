"""Space: what a store takes and what is left, and whether what a pull needs is there before it begins. Reads only."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from layerstore.errors import NoSpaceError
from layerstore.lifecycle import catalog
from layerstore.model import LayerSource
from layerstore.opening import reserve
from layerstore.opening.handle import Handle
from layerstore.system import fs
from layerstore.system.room import check_inodes, free_bytes
from layerstore.trees.measure import measure
from layerstore.verbs import quota

__all__ = ["Space", "estimate", "preflight", "space"]

_EXPANSION = {"gzip": 2.5, "zstd": 3.0}
"""Uncompressed : compressed: the lowest that was measured of six kinds of real layers (2.5 to 12.8, and 3.0 to 17.9)."""

_ENTRY_BYTES = 4_096   # of the journal and of side files, a layer
_INODES = 6            # a layer: its directory, ``diff``, ``txid``, manifest, tar-split and side file, whatever is in it


@dataclass(frozen=True, slots=True)
class Space:
    """What there is, in bytes. What is under a name of a directory is what is allocated there, counted now.

    ``layers`` is what is recorded of committed and quarantined layers, their uncompressed tars, and counts towards the
    ``quota``, as do staged trees (``counted`` has both). What is allocated to layers, and whose it is, tells ``usage``.
    """

    filesystem: str
    total: int
    free: int
    layers: int
    staging: int
    trash: int
    quarantine: int
    uppers: int
    images: int
    journal: int
    segments: int
    reserve: int
    counted: int
    quota: int | None


def space(handle: Handle) -> Space:
    """The report. No layer is walked: its cost is that of what is in flight, and of the catalog's rows."""
    handle.check_usable()
    with handle.read() as view:
        recorded = sum(layer.diff_size for layer in catalog.layers(view))
        counted = quota.used(handle, view)
    status = os.fstatvfs(handle.root_fd)
    here = {name: measure(handle.dirs[name]).allocated for name in ("staging", "trash", "quarantine", "uppers", "images")}
    with fs.open_dir("journal", handle.root_fd) as journal, fs.open_dir("segments", journal) as segments:
        whole, archived = measure(journal).allocated, measure(segments).allocated
    return Space(
        filesystem=handle.filesystem.name, total=status.f_blocks * status.f_frsize,
        free=free_bytes(handle.root_fd), layers=recorded, **here, journal=whole - archived, segments=archived,
        reserve=reserve.held(handle.root_fd), counted=counted, quota=quota.limit_of(handle),
    )


# -- before a pull ---------------------------------------------------------------------------------------------------


def estimate(view: Any, source: LayerSource) -> int:
    """How many bytes a layer's uncompressed tar has: known here, or said by an uncompressed blob; else a low guess.

    0 for content that is staged already, or being staged: it is on the disk, as much of it as is.
    """
    if view.get("content", source.descriptor.digest) is not None:
        return 0
    prefix = f"diff/{source.diff_id}/"
    for key, _ in view.scan("digests", prefix):
        found = catalog.tree_of(view, key.removeprefix(prefix))
        if found is not None:
            return int(found[1]["output"]["diff_size"])
    compression = next((name for name in _EXPANSION if name in source.descriptor.media_type), None)
    return int(source.descriptor.size * (_EXPANSION[compression] if compression is not None else 1))


def preflight(handle: Handle, missing: Sequence[LayerSource]) -> None:
    """Before a byte is fetched: NoSpaceError if *missing* layers do not fit on the disk; QuotaError if not the quota.

    NoInodesError if it has not as many inodes as any layer takes. What a layer with a TOC takes more is known, and asked
    for, when that is read.
    """
    with handle.read() as view:
        sizes = {source.diff_id: estimate(view, source) for source in missing}
    quota.held_to(handle, sizes)
    needed = sum(sizes.values()) + _ENTRY_BYTES * len(sizes)
    free = free_bytes(handle.root_fd)
    if sizes and needed > free:
        raise NoSpaceError(
            f"the {len(sizes)} layers that are missing need about {needed} bytes, and {free} are free", needed=needed,
            free=free, hint="free space ('layerstore gc', or delete images); or try it all the same: preflight=False, "
            "--no-preflight",
        )
    # how many files are in them is told by none but those with a TOC
    what = f"the {len(sizes)} layers that are missing need at least"
    check_inodes(handle.root_fd, _INODES * len(sizes), what)
