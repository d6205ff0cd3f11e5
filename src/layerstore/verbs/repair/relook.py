"""The look under a layer's lock, before a repair and after: at what was damaged, and at what was changed. Reads only.

The whole layer is looked at before, without the lock, for that may take minutes, and readers wait for it. What was found
good then is good still: nobody changes a committed tree but a repair, under the same lock, and what another one did in
between is seen by the row, or did no more than put right. Where the manifest was wrong nothing can be said of the tree
before it is restored; then the lock is let go of, and the layer looked at again (``is_whole``).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator

from layerstore.formats import tarsplit
from layerstore.opening.handle import Handle
from layerstore.system import fs
from layerstore.system.descriptors import DIRECTORY, Descriptor
from layerstore.trees.dirfds import DirFds
from layerstore.verbs.check import Depth, Finding, layers
from layerstore.verbs.check.hashing import Hashing

__all__ = ["ALL", "again", "is_whole"]

ALL = 1 << 30
"""So many paths are named: a repair is about all of them."""

_DIFF = b"diff/"
_UNSEEN = frozenset({"layer-missing", "manifest-wrong", "manifest-damaged", "part-missing", "part-unreadable"})
_NO_TREE = frozenset({("part-missing", "diff"), ("path-missing", ""), ("path-unreadable", "")})
_OUTSIDE = frozenset({"txid-damaged", "part-extra", "side-file-damaged", "side-file-wrong"})   # looked at in any case


def is_whole(look: layers.Look) -> bool:
    """Whether every path could be looked at, or there is no tree in which to look: then all are missing."""
    return not any(each.code in _UNSEEN and each.path not in (tarsplit.NAME, "diff") for each in look.findings)


def again(handle: Handle, whole: layers.Look, changed: Collection[bytes], hashing: Hashing) -> layers.Look:
    """What is left of the findings of *whole*, and what is wrong with the paths *changed* since (in the layer's directory).

    Of a layer without a tree everything was missing, and is looked at: there is nothing to hash but what was restored.
    """
    layer, row, depth = whole.layer, whole.row, whole.depth
    if depth is Depth.STRUCTURE or any((each.code, each.path) in _NO_TREE for each in whole.findings):
        look = layers.begin(handle, layer, row, depth, hashing, ALL)
        look.wait()
        return look
    parts = any(not each.code.startswith("path-") and each.code not in _OUTSIDE for each in whole.findings)
    look = layers.begin(handle, layer, row, depth, hashing, ALL, only=_paths(whole, changed), parts=parts)
    look.wait()
    extra = [each for each in whole.findings if each.code == "path-extra"]
    look.findings.extend(_still_there(handle, layer.id, extra) if extra else ())
    look.found.unread = max(look.unread, whole.unread)
    return look


def _paths(whole: layers.Look, changed: Collection[bytes]) -> set[bytes]:
    """Relative to ``diff/``, with the directories that they are in: their times change with what is in them."""
    found = {os.fsencode(each.path) for each in whole.findings if each.code.startswith("path-")}
    found |= {each.removeprefix(_DIFF) for each in changed if each.startswith(_DIFF)}
    todo = list(found)
    while todo:
        parent = todo.pop().rpartition(b"/")[0]
        if parent not in found:
            found.add(parent)
            todo.append(parent)
    return found


def _still_there(handle: Handle, layer_id: str, extra: Collection[Finding]) -> Iterator[Finding]:
    try:
        with fs.open_dir(layer_id, handle.dirs["layers"]) as tree, Descriptor("diff", DIRECTORY, dir_fd=tree) as diff_fd:
            fds = DirFds(diff_fd)
            try:
                yield from (each for each in extra if _is_there(fds, os.fsencode(each.path)))
            finally:
                fds.close()
    except (FileNotFoundError, NotADirectoryError):
        return


def _is_there(fds: DirFds, path: bytes) -> bool:
    parent, _, base = path.rpartition(b"/")
    try:
        os.stat(base, dir_fd=fds.get(parent), follow_symlinks=False)
    except OSError:
        return False
    return True
