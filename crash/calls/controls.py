"""Planted mistakes that ``calls`` must catch: each is one that a tired engineer could make. Named by ``--sabotage``.

Each function patches the product in the process that calls it; the tests run the rig with one at a time.
"""

from __future__ import annotations

import os
from contextlib import suppress
from importlib import import_module
from typing import Any

from layerstore.recovery import moving, rebuilding
from layerstore.store import Store
from layerstore.system import faults, fs
from layerstore.system.removing import remove_tree


def ignores_short_writes() -> None:
    """One write(2) is taken to write everything."""
    fs.write_all = os.write  # type: ignore[assignment]


def names_later() -> None:
    """A layer gets its names after it was applied, in a transaction of their own."""
    original = Store.apply_staged_layer

    def apply(self: Store, staged: Any, *, names: Any = (), **options: Any) -> Any:
        layer = original(self, staged, **options)
        for each in names:
            self.set_name(each, layer.id)
        return layer

    Store.apply_staged_layer = apply  # type: ignore[method-assign]


def deletes_in_place() -> None:
    """A deleted layer's tree is unlinked where it is, instead of being renamed to the trash first."""
    def unlink(handle: Any, _txid: str, row: Any, _facts: Any) -> None:
        remove_tree(handle.dirs["layers"], row["layer_id"], point="delete.rename")

    moving.to_trash = unlink  # type: ignore[assignment]


def mends_in_place() -> None:
    """A replacement is renamed over what is damaged, instead of being exchanged with it: that is lost."""
    def over(src_fd: int, src: str, dst_fd: int, dst: str, *, point: str) -> None:
        with faults.point(point):
            os.rename(src, dst, src_dir_fd=src_fd, dst_dir_fd=dst_fd)

    fs.exchange = over


def keeps_nothing_of_an_image() -> None:
    """A damaged side file of an image is replaced, and what it was is not kept."""
    rest = import_module("layerstore.verbs.repair.rest")   # its package has a function of that name
    assert hasattr(rest, "_keep")
    vars(rest)["_keep"] = lambda _handle, _image: []


def moves_the_old_database_away_first() -> None:
    """A rebuild moves the old database aside, and gives it the name under which it is kept when the new one is there."""
    original = fs.put_in_place

    def put(src_fd: int, src: str, dst_fd: int, dst: str, *, point: str) -> None:
        if point != "rebuild.rename":
            return original(src_fd, src, dst_fd, dst, point=point)
        with suppress(FileNotFoundError):   # where one that was killed had moved it
            os.rename(dst, f"{dst}.old", src_dir_fd=dst_fd, dst_dir_fd=dst_fd)
        original(src_fd, src, dst_fd, dst, point=point)
        os.rename(f"{dst}.old", f"../quarantine/{rebuilding._KEPT}-0", src_dir_fd=dst_fd, dst_dir_fd=dst_fd)
        return None

    fs.put_in_place = put
    rebuilding._Rebuild._keep_old = lambda _self: None  # type: ignore[method-assign]
