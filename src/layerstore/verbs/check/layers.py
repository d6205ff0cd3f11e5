"""Layers one after the other, as closely as was asked: the manifest walked here, content hashed by ``hashing``.

Takes no lock that anybody waits for: a tree that is deleted meanwhile goes on being read where it went, or is gone; then
its row says so, and nothing was found. What a repair changes meanwhile is looked at once more.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from layerstore.dedup import suspects
from layerstore.errors import LayerstoreError
from layerstore.formats import tarsplit
from layerstore.lifecycle import catalog
from layerstore.lifecycle.states import State
from layerstore.model import Layer
from layerstore.opening.handle import Handle
from layerstore.system import fs
from layerstore.system.descriptors import Descriptor
from layerstore.trees import checked
from layerstore.trees.compare import OURS, Hashed, Problem
from layerstore.trees.verify import tree_problems
from layerstore.verbs.check import history, structure
from layerstore.verbs.check.findings import Depth, Finding
from layerstore.verbs.check.hashing import Batch, Blob, Hashing

__all__ = ["Look", "begin", "end", "row_of", "take_hashed"]

MAX_FILES_NAMED = 1_000
BIG_DATA = "big-data"
_LOOKS = 3                               # at a layer that is changed under us


@dataclass(slots=True)
class Look:
    """One look at one layer, under way."""

    layer: Layer
    row: Mapping[str, Any]
    depth: Depth
    findings: list[Finding] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    unread: int = 0
    looks: int = 1
    most: int = MAX_FILES_NAMED
    begun: float = field(default_factory=time.perf_counter)
    begun_ns: int = 0
    walked: bool = False                 # there was something to look at


def row_of(handle: Handle, layer: Layer) -> Mapping[str, Any] | None:
    """The row of the tree, as long as the layer is committed and not being repaired."""
    with handle.read() as view:
        found = catalog.tree_of(view, layer.id)
    if found is None or found[0] != layer.txid or found[1]["state"] != State.COMMITTED or "repair" in found[1]:
        return None
    return found[1]


def begin(
    handle: Handle, layer: Layer, row: Mapping[str, Any], depth: Depth, hashing: Hashing, most: int = MAX_FILES_NAMED,
) -> Look:
    """Look at everything but content, and hand that out. At most *most* paths are named."""
    look = Look(layer, row, depth, most=most, begun_ns=handle.clock())
    try:
        tree = structure.tree(handle, layer)
        if isinstance(tree, Finding):
            look.findings.append(tree)
            return look
        with tree as fd:
            names = frozenset(os.listdir(fd))
            look.findings += structure.layer(handle, fd, names, layer, row)
            if not any(each.code in structure.MISSING and each.path != tarsplit.NAME for each in look.findings):
                look.walked = True
                _tree(handle, fd, names, look, hashing)
    except LayerstoreError as error:
        look.findings.append(Finding("manifest-damaged", layer.id, str(error), "manifest"))
    except OSError as error:
        if error.errno in OURS:
            raise
        look.findings.append(Finding("part-unreadable", layer.id, f"it cannot be read: {error.strerror or error}"))
    return look


def _tree(handle: Handle, fd: int, names: Collection[str], look: Look, hashing: Hashing) -> None:
    layer, form, ids, read = look.layer, handle.overlay_form, handle.ids, hashing.pace.take
    if look.depth is Depth.STRUCTURE:
        if suspects.NAME in names:
            _take(look, suspects.problems(fd, layer.manifest_digest, overlay_form=form, ids=ids, read=read))
        return
    if look.depth is Depth.CONTENT:
        _big_data(fd, look, hashing)
    missing = any(each.path == tarsplit.NAME for each in look.findings)
    diff = Descriptor("diff", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
    _take(look, tree_problems(
        fd, layer.manifest_digest, content=look.depth is Depth.CONTENT, overlay_form=form, ids=ids,
        later=_later(look, hashing, lambda: Batch(diff)), tar_split=None if missing else layer.tar_split_digest, read=read,
    ))
    _hand_out_last(look, hashing)


def _later(look: Look, hashing: Hashing, make: Callable[[], Batch]) -> Callable[[Hashed], None]:
    """What puts files into batches that it *make*s, and hands out what is full."""
    def later(entry: Hashed) -> None:
        if not look.batches or look.batches[-1].given:
            look.batches.append(make())
        if look.batches[-1].add(entry):
            hashing.hand_out(look.batches[-1])

    return later


def _hand_out_last(look: Look, hashing: Hashing) -> None:
    if look.batches and not look.batches[-1].given:
        hashing.hand_out(look.batches[-1])


def _big_data(fd: int, look: Look, hashing: Hashing) -> None:
    """Hashed like any content: it may be a whole blob. What is missing was told by ``structure``."""
    told = {each.path for each in look.findings}
    wanted = [key for key in sorted(look.layer.big_data) if f"{BIG_DATA}/{key}" not in told]
    if not wanted:
        return
    directory = Descriptor(BIG_DATA, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
    later = _later(look, hashing, lambda: Batch(directory, _of_big_data))
    for key in wanted:
        size = os.stat(key, dir_fd=directory.fd, follow_symlinks=False).st_size
        later(Blob(os.fsencode(key), size, bytes.fromhex(look.layer.big_data[key].removeprefix("sha256:"))))
    _hand_out_last(look, hashing)


def _of_big_data(problem: Problem) -> Problem:
    return problem._replace(path=os.fsencode(BIG_DATA) + b"/" + problem.path, code="big-data-damaged")


def _take(look: Look, problems: Iterator[Problem]) -> None:
    for problem in problems:
        if problem.unreadable:           # what this process may not look at is only counted
            look.unread += 1
        elif len(look.findings) < look.most:
            look.findings.append(Finding(
                problem.code, look.layer.id, f"{os.fsdecode(problem.path)}: {problem.what}", os.fsdecode(problem.path),
            ))
        elif look.findings[-1].code != "more":
            look.findings.append(Finding("more", look.layer.id, "… and more"))


def take_hashed(look: Look, hashing: Hashing) -> None:
    """Wait for what was handed out."""
    for batch in look.batches:
        if not batch.given:              # the walk broke off before it was full
            continue
        _take(look, iter(hashing.problems(batch)))
    look.batches = []


def end(handle: Handle, look: Look, hashing: Hashing, *, note: bool) -> Look | None:
    """What was found, when all is hashed. None: the layer is not there any more, or is being repaired."""
    take_hashed(look, hashing)
    row = row_of(handle, look.layer) if look.findings else look.row   # where nothing was found nothing is to be doubted
    if row is None:
        return None
    if row != look.row and look.looks < _LOOKS:   # it was repaired meanwhile
        again = begin(handle, look.layer, row, look.depth, hashing)
        again.looks = look.looks + 1
        return end(handle, again, hashing, note=note)
    if note and look.depth is not Depth.STRUCTURE:
        _note(handle, look)
    return look


def _note(handle: Handle, look: Look) -> None:
    """That it was looked at, in the tree that was: its place may have another by now."""
    damaged = any(each.code == "txid-damaged" for each in look.findings)
    with suppress(OSError), fs.open_dir(look.layer.id, handle.dirs["layers"]) as fd:   # deleted just now
        if damaged or fs.read_txid(fd) == look.layer.txid:
            checked.note_looked(fd, history.counted(look.depth), look.begun_ns, sound=not look.findings and not look.unread)
