"""Moving trees, and writing their side files: each step of bringing one to rest that changes the disk, as one function.

What is to be done, and under which lock, is known to who calls. Every rename is NOREPLACE; nothing that anyone was
promised is unlinked.
"""

from __future__ import annotations

from contextlib import suppress

from layerstore.formats import records
from layerstore.opening.handle import Handle
from layerstore.recovery.looking import Row, name_of
from layerstore.recovery.planner import Place, TreeFacts
from layerstore.system import fs


def to_trash(handle: Handle, txid: str, row: Row, facts: TreeFacts) -> None:
    """From wherever it was found to the trash, under its txid."""
    for place in (Place.LAYERS, Place.STAGING):
        if place in facts.places:
            fs.move(handle.dirs[place.value], name_of(place, txid, row.get("layer_id")), handle.dirs["trash"], txid,
                    point="delete.rename")


def set_aside(handle: Handle, directory: str, name: str) -> str:
    """Move something that should not be there to ``quarantine/``, as evidence; return its new path."""
    return aside(handle, handle.dirs[directory], name, f"{directory}-{name}", point="recover.set-aside")


def aside(handle: Handle, fd: int, name: str, stem: str, *, point: str) -> str:
    """From the directory *fd* to ``quarantine/``, as *stem* and the first number that is free; its new path."""
    number = 0
    while True:
        target = f"{stem}-{number}"
        try:
            fs.move(fd, name, handle.dirs["quarantine"], target, point=point)
        except FileExistsError:
            number += 1
        else:
            return f"quarantine/{target}"


def write_side_file(handle: Handle, directory: str, name: str, content: bytes) -> None:
    """Write a tree's side file unless it is right already: a right one is never touched."""
    with fs.open_dir(name, handle.dirs[directory]) as fd:
        if fs.read_file(fd, records.LAYER_FILE) != content:
            replace_side_file(handle, fd, records.LAYER_FILE, content, point="publish.side-file")


def replace_side_file(handle: Handle, fd: int, name: str, content: bytes, *, point: str) -> None:
    """Write a side file; if a directory is in its place, where nobody puts one, aside with that."""
    try:
        fs.replace_file(fd, name, content, point=point)
    except IsADirectoryError:
        txid = fs.read_txid(fd) or "images"
        with suppress(FileExistsError):
            fs.move(fd, name, handle.dirs["quarantine"], f"{txid}-{name}-{handle.clock()}", point="recover.set-aside")
        fs.replace_file(fd, name, content, point=point)


def publish_tree(handle: Handle, txid: str, row: Row, *, point: str) -> None:
    """Side file, then from ``staging/`` to its place in ``layers/``, which is free."""
    write_side_file(handle, "staging", txid, records.layer_file(txid, row))
    fs.move(handle.dirs["staging"], txid, handle.dirs["layers"], row["layer_id"], point=point)
