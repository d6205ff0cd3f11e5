"""A store's quota: at most so many bytes of layers. Counted anew each time, from the rows: no counter that could drift.

What counts is the length of a layer's uncompressed tar, as ``layers`` shows it: of every tree that has a row and is filled,
staged ones and those being deleted too; not what is gone and waits in trash. The limit lies in a file beside
``store.json``, because the journal's tables are what recovery needs, and this it does not. ADR 0020.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from layerstore.errors import DamagedError, InvalidArgumentError, QuotaError
from layerstore.lifecycle.states import State
from layerstore.opening.handle import Handle
from layerstore.recovery import looking
from layerstore.system import flock, fs

__all__ = ["NAME", "check", "limit_of", "remaining", "set_limit", "size_of", "used"]

NAME = "quota.json"
_MAXIMUM = 1 << 62


def limit_of(handle: Handle) -> int | None:
    """The limit in bytes, or None. DamagedError if the file cannot be understood, or is none."""
    data = fs.read_file(handle.root_fd, NAME, maximum=4_096)
    if data is None:
        if fs.exists(handle.root_fd, NAME):
            raise DamagedError(f"{handle.root}/{NAME} is no file, or too long", hint="set the quota again")
        return None
    try:
        limit = json.loads(data)["bytes"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{handle.root}/{NAME} cannot be understood: {error!r}", hint="set the quota again") from error
    if type(limit) is not int or not 0 <= limit <= _MAXIMUM:
        raise DamagedError(f"{handle.root}/{NAME} has no usable limit: {limit!r}", hint="set the quota again")
    return limit


def set_limit(handle: Handle, limit: int | None) -> None:
    """Set it, or (None) take it away. It may be less than what is there: then nothing more gets in.

    Durability: on disk when this returns; a crash before leaves the old limit or the new one.
    """
    handle.check_writable()
    if limit is not None and (type(limit) is not int or not 0 <= limit <= _MAXIMUM):
        raise InvalidArgumentError(f"a quota is a number of bytes, and not {limit!r}")
    with flock.locked_dir(handle.dirs["layers"]):   # one at a time
        _make_way(handle)
        if limit is None:
            fs.unlink(handle.root_fd, NAME, point="quota.unlink")
        else:
            data = json.dumps({"bytes": limit}).encode() + b"\n"
            fs.replace_file(handle.root_fd, NAME, data, point="quota", sync=True)
        fs.sync_dir(handle.root_fd, point="quota.sync")


def _make_way(handle: Handle) -> None:
    """What is no file in its place, where nobody puts one, is kept in ``quarantine/``."""
    number = 0
    while fs.exists(handle.root_fd, NAME) and not stat.S_ISREG(os.lstat(NAME, dir_fd=handle.root_fd).st_mode):
        with suppress(FileExistsError):
            fs.move(handle.root_fd, NAME, handle.dirs["quarantine"], f"{NAME}-{number}", point="quota.set-aside")
            fs.sync_dir(handle.dirs["quarantine"], point="quota.set-aside.sync")
        number += 1


def used(handle: Handle, view: Any, *, mine: Mapping[str, int] | None = None) -> int:
    """What counts, as *view* has it, in bytes. *mine*: sizes of trees of ours that say nothing of themselves on disk."""
    return sum(size_of(handle, txid, row, mine or {}) for txid, row in view.scan("layers"))


def size_of(handle: Handle, txid: str, row: Mapping[str, Any], mine: Mapping[str, int]) -> int:
    """What one tree counts, as its row says, or what lies on disk; *mine* as for ``used``."""
    if "output" in row:
        return int(row["output"]["diff_size"])
    if txid in mine:
        return mine[txid]
    left = looking.left_at(handle, txid) if row["state"] == State.STAGING else None
    return 0 if left is None else int(left["output"]["diff_size"])


def remaining(handle: Handle) -> int | None:
    """How many bytes may still be staged; None without a quota; QuotaError if none."""
    limit = limit_of(handle)
    if limit is None:
        return None
    with handle.read() as view:
        there = used(handle, view)
    if there >= limit:
        raise QuotaError("the quota is used up", quota=limit, used=there, needed=None)
    return limit - there


def check(handle: Handle, view: Any, limit: int, adding: Mapping[str, int]) -> None:
    """QuotaError if the store has more than *limit* bytes with the trees *adding* (txid → size) in it."""
    there = used(handle, view, mine=adding)
    if there > limit:
        size = sum(adding.values())
        raise QuotaError(f"{size} bytes of layers are to be added", quota=limit, used=there - size, needed=size)


def held_to(handle: Handle, layers: Mapping[str, int]) -> None:
    """Before a pull: QuotaError if layers (diffID → at least so many bytes) cannot fit into what is left."""
    limit = limit_of(handle)
    if limit is None or not layers:
        return
    with handle.read() as view:
        there = used(handle, view)
    needed = sum(layers.values())
    if there + needed > limit:
        raise QuotaError(
            f"the {len(layers)} layers that are missing need {needed} bytes", quota=limit, used=there, needed=needed,
        )
