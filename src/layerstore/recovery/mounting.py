"""What recovery and the mount verb share: is it mounted, and by this store; and how a mount's row is let go of."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from layerstore.lifecycle.machine import fire, state_of
from layerstore.lifecycle.states import Kind, State, Trigger
from layerstore.opening.handle import Handle
from layerstore.system.removing import remove_tree
from layerstore.trees.mounted import overlay_targets


def boot_id() -> str:
    """Which boot of which machine this is: what was mounted in another one is not mounted any more."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def namespace() -> int:
    """This process's mount namespace: what is mounted in another one cannot be seen from here."""
    return os.stat("/proc/self/ns/mnt").st_ino


def uppers_of(handle: Handle) -> list[int]:
    """Device and inode of ``uppers/``: recorded with a mount, and what a copy of the store has another of."""
    status = os.fstat(handle.dirs["uppers"])
    return [status.st_dev, status.st_ino]


@dataclass(frozen=True, slots=True)
class Seen:
    """What the rows of mounts are held against, looked at once for all of them: the table of mounts has the machine's."""

    boot_id: str
    namespace: int
    uppers: list[int]
    overlays: frozenset[str]


def look(handle: Handle) -> Seen:
    return Seen(boot_id(), namespace(), uppers_of(handle), overlay_targets())


def is_anothers(seen: Seen, row: Mapping[str, Any]) -> bool:
    """Whether the row's mount, if there is one, is of a store that this one is a copy of (ADR 0024)."""
    if "uppers" not in row:   # a row of before
        return False
    device, inode = seen.uppers
    # device numbers are a boot's; inodes stay
    return bool(inode != row["uppers"][1] or (row["boot_id"] == seen.boot_id and device != row["uppers"][0]))


def is_there(seen: Seen, row: Mapping[str, Any]) -> bool | None:
    """Whether what the row speaks of is mounted, by this store; None if it may be, and could not be seen from here."""
    if is_anothers(seen, row):
        return False
    target = row["target"]
    if target in seen.overlays or os.path.realpath(target) in seen.overlays:   # a directory above it may have been moved
        return True
    return None if row["boot_id"] == seen.boot_id and row.get("namespace") != seen.namespace else False


def mounted_here(handle: Handle, row: Mapping[str, Any]) -> bool:
    """Whether what the row speaks of is mounted, by this store, in this mount namespace."""
    return is_there(look(handle), row) is True


def forget(handle: Handle, mount_id: str, *, keep_upper: bool = True) -> bool:
    """Record that a mount is no more. A read-only one, or with ``keep_upper=False`` any, is dropped altogether.

    A writable one's upper directory holds somebody's data: recovery keeps it and its row (and so pins the layers)
    until it is unmounted by name. False if there was nothing to do.
    """
    with handle.read() as view:
        row = view.get("mounts", mount_id)
    if row is None or mounted_here(handle, row):
        return False
    # a row that never was attached has an upper directory that nobody wrote to
    used = row["state"] == State.MOUNTED or row.get("kept", False)
    drop = not (row["writable"] and keep_upper and used)
    if drop:
        remove_tree(handle.dirs["uppers"], mount_id, point="unmount.upper.unlink")

    def change(txn: object) -> None:
        state = state_of(txn, Kind.MOUNT, mount_id)
        if state is State.MOUNTED:
            fire(txn, Kind.MOUNT, mount_id, Trigger.DETACH, txid=mount_id, payload={"kept": not drop})  # type: ignore[arg-type]
        if drop and state is not State.ABSENT:
            fire(txn, Kind.MOUNT, mount_id, Trigger.DROP, txid=mount_id)  # type: ignore[arg-type]

    handle.update("unmount", change)
    return True
