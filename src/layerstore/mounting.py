"""What recovery and the mount verb share: is it mounted, and how a mount's row is let go of."""

from __future__ import annotations

import os

from layerstore import fs, overlay
from layerstore.handle import Handle
from layerstore.lifecycle import fire, state_of
from layerstore.states import Kind, State, Trigger


def is_mounted(target: str) -> bool:
    return overlay.is_overlay_mounted(target)


def namespace() -> int:
    """This process's mount namespace: what is mounted in another one cannot be seen from here."""
    return os.stat("/proc/self/ns/mnt").st_ino


def forget(handle: Handle, mount_id: str, *, keep_upper: bool = True) -> bool:
    """Record that a mount is no more. A read-only one, or with ``keep_upper=False`` any, is dropped altogether.

    A writable one's upper directory holds somebody's data: recovery keeps it and its row (and so pins the layers)
    until it is unmounted by name. False if there was nothing to do.
    """
    with handle.read() as view:
        row = view.get("mounts", mount_id)
    if row is None or is_mounted(row["target"]):
        return False
    # a row that never was attached has an upper directory that nobody wrote to
    used = row["state"] == State.MOUNTED or row.get("kept", False)
    drop = not (row["writable"] and keep_upper and used)
    if drop:
        fs.remove_tree(handle.dirs["uppers"], mount_id, point="unmount.upper.unlink")

    def change(txn: object) -> None:
        state = state_of(txn, Kind.MOUNT, mount_id)
        if state is State.MOUNTED:
            fire(txn, Kind.MOUNT, mount_id, Trigger.DETACH, txid=mount_id, payload={"kept": not drop})  # type: ignore[arg-type]
        if drop and state is not State.ABSENT:
            fire(txn, Kind.MOUNT, mount_id, Trigger.DROP, txid=mount_id)  # type: ignore[arg-type]

    handle.update("unmount", change)
    return True
