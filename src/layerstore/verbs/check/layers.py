"""Layers one after the other, as closely as was asked: the manifest walked here, content hashed by ``hashing``.

Takes no lock that anybody waits for: a tree that is deleted meanwhile goes on being read where it went, or is gone; then
its row says so, and nothing was found. What a repair changes meanwhile is looked at once more.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
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
from layerstore.trees.checked import Part
from layerstore.trees.compare import OURS, Problem
from layerstore.trees.verify import Walk, tree_problems
from layerstore.verbs.check import history, structure
from layerstore.verbs.check.course import Course
from layerstore.verbs.check.findings import Depth, Finding
from layerstore.verbs.check.hashing import Batch, Blob, Hashing

__all__ = ["Look", "Memory", "begin", "blank", "end", "in_turn", "row_of"]

MAX_FILES_NAMED = 1_000
_AHEAD = 64                              # layers that are begun and not ended: what is known of them is kept meanwhile
BIG_DATA = "big-data"
_LOOKS = 3                               # at a layer that is changed under us


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered of a layer: whether it is to be (``note``), and where a look at it is to be gone on with."""

    note: bool = False
    part: Part | None = None


@dataclass(slots=True)
class Found:
    """What was found of one layer so far; at most *most* paths are named."""

    layer_id: str
    most: int
    findings: list[Finding] = field(default_factory=list)
    unread: int = 0

    def take(self, problems: Iterable[Problem]) -> None:
        for problem in problems:
            if problem.unreadable:       # what this process may not look at is only counted
                self.unread += 1
            elif len(self.findings) < self.most:
                path = os.fsdecode(problem.path)
                self.findings.append(Finding(problem.code, self.layer_id, f"{path}: {problem.what}", path))
            elif self.findings[-1].code != "more":
                self.findings.append(Finding("more", self.layer_id, "… and more"))


@dataclass(slots=True)
class Look:
    """One look at one layer, under way."""

    layer: Layer
    row: Mapping[str, Any]
    depth: Depth
    found: Found
    memory: Memory
    begun_ns: int
    course: Course | None = None         # None: of its structure only, or there is nothing to be looked at more closely
    was_unsound: bool = False            # when it, or a part of it, was last looked at so closely
    looks: int = 1
    begun: float = field(default_factory=time.perf_counter)

    @property
    def findings(self) -> list[Finding]:
        return self.found.findings

    @property
    def unread(self) -> int:
        return self.found.unread

    @property
    def is_sound(self) -> bool:
        before = self.memory.part is None or self.memory.part.sound
        return before and not self.findings and not self.unread

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to be waited for."""
        return self.course is None or self.course.is_done

    @property
    def is_whole(self) -> bool:
        """Whether it was looked at to its end: no budget ended it."""
        return self.course is None or self.course.ended_at is None

    @property
    def leaves_unsound(self) -> bool:
        """Whether it did not get to all in which something was found earlier, so that what it found does not tell of it."""
        if not self.is_whole:
            return self.was_unsound
        return self.memory.part is not None and not self.memory.part.sound

    def wait(self) -> None:
        """For what was handed out."""
        if self.course is not None:
            self.course.wait()

    def up_to(self, place: int) -> Part:
        """What is to be remembered of it, when all before *place* is looked at."""
        return Part(self.depth.value, place, self.begun_ns, self.is_sound)


def blank(layer: Layer, depth: Depth) -> Look:
    """Of what could not be looked at, or is no layer any more."""
    return Look(layer, {}, depth, Found(layer.id, 1), Memory(), 0)


def row_of(handle: Handle, layer: Layer) -> Mapping[str, Any] | None:
    """The row of the tree, as long as the layer is committed and not being repaired."""
    with handle.read() as view:
        found = catalog.tree_of(view, layer.id)
    if found is None or found[0] != layer.txid or found[1]["state"] != State.COMMITTED or "repair" in found[1]:
        return None
    return found[1]


def begin(
    handle: Handle, layer: Layer, row: Mapping[str, Any], depth: Depth, hashing: Hashing, most: int = MAX_FILES_NAMED,
    memory: Memory = Memory(), *, only: Collection[bytes] | None = None, parts: bool = True,
) -> Look:
    """Look at everything but content, and hand that out. At most *most* paths are named.

    For a second look: *only* at these paths of the tree (then nothing is too many); without *parts* not at the content of
    what is beside it, but for the manifest.
    """
    begun = memory.part.begun if memory.part is not None else handle.clock()
    look = Look(layer, row, depth, Found(layer.id, most), memory, begun)
    try:
        tree = structure.tree(handle, layer)
        if isinstance(tree, Finding):
            look.findings.append(tree)
            return look
        with tree as fd:
            names = frozenset(os.listdir(fd))
            look.findings.extend(structure.layer(handle, fd, names, layer, row))
            if not any(each.code in structure.MISSING and each.path != tarsplit.NAME for each in look.findings):
                _tree(handle, fd, names, look, hashing, only, parts=parts)
    except LayerstoreError as error:
        look.findings.append(Finding("manifest-damaged", layer.id, str(error), "manifest"))
    except OSError as error:
        if error.errno in OURS:
            raise
        look.findings.append(Finding("part-unreadable", layer.id, f"it cannot be read: {error.strerror or error}"))
    return look


def _tree(
    handle: Handle, fd: int, names: Collection[str], look: Look, hashing: Hashing, only: Collection[bytes] | None, *,
    parts: bool,
) -> None:
    layer, form, ids, read = look.layer, handle.overlay_form, handle.ids, hashing.pace.take
    if look.depth is Depth.STRUCTURE:
        if suspects.NAME in names:
            look.found.take(suspects.problems(fd, layer.manifest_digest, overlay_form=form, ids=ids, read=read))
        return
    start = 0 if look.memory.part is None else look.memory.part.place
    look.course = course = Course(hashing, start, look.found.take)
    before = len(layer.big_data) if look.depth is Depth.CONTENT else 0   # places of what is in no manifest
    if before and parts and not _big_data(fd, look, course, hashing):
        return
    without = not parts or start > before or any(each.path == tarsplit.NAME for each in look.findings)
    split = None if without else layer.tar_split_digest
    diff = Descriptor("diff", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
    told = _advance(look, hashing)
    later = course.later(lambda place: Batch(diff, place, told))

    def go_on(number: int) -> bool:
        place = before + number
        goes_on = course.go_on(place)
        if look.memory.note and (done := course.to_note(place)) is not None:
            checked.note_part(fd, look.up_to(done))
        return goes_on

    look.found.take(tree_problems(
        fd, layer.manifest_digest, content=look.depth is Depth.CONTENT, overlay_form=form, ids=ids,
        later=lambda entry, number: later(entry, before + number), tar_split=split, read=read, only=only,
        walk=Walk(start - before, look.is_sound, go_on),
    ))
    course.hand_out()


def _advance(look: Look, hashing: Hashing) -> Callable[[int], None] | None:
    return None if hashing.progress is None else partial(hashing.progress.advance, look.layer.id)


def _big_data(fd: int, look: Look, course: Course, hashing: Hashing) -> bool:
    """Hashed like any content: it may be a whole blob. Whether the look goes on. What is missing ``structure`` told."""
    missing = {each.path for each in look.findings}
    wanted = [
        (place, key) for place, key in enumerate(sorted(look.layer.big_data))
        if place >= course.start and f"{BIG_DATA}/{key}" not in missing
    ]
    if not wanted:
        return True
    directory = Descriptor(BIG_DATA, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
    told = _advance(look, hashing)
    later = course.later(lambda place: Batch(directory, place, told, _of_big_data))
    for place, key in wanted:
        if not course.go_on(place):
            return False
        size = os.stat(key, dir_fd=directory.fd, follow_symlinks=False).st_size
        later(Blob(os.fsencode(key), size, bytes.fromhex(look.layer.big_data[key].removeprefix("sha256:"))), place)
    course.hand_out()
    return True


def _of_big_data(problem: Problem) -> Problem:
    return problem._replace(path=os.fsencode(BIG_DATA) + b"/" + problem.path, code="big-data-damaged")


def in_turn(begun: Iterable[Look]) -> Iterator[Look]:
    """The same looks, in their order; some are begun ahead of the one that is given: their content is hashed meanwhile."""
    pending: deque[Look] = deque()
    for look in begun:
        pending.append(look)
        while pending and (len(pending) > _AHEAD or pending[0].is_done):
            yield pending.popleft()
    while pending:
        yield pending.popleft()


def end(handle: Handle, look: Look, hashing: Hashing) -> Look | None:
    """What was found, when all is hashed. None: the layer is not there any more, or is being repaired."""
    look.wait()
    row = row_of(handle, look.layer) if look.findings else look.row   # where nothing was found nothing is to be doubted
    if row is None:
        return None
    if row != look.row and look.looks < _LOOKS:   # it was repaired meanwhile
        again = begin(handle, look.layer, row, look.depth, hashing, look.found.most, Memory(look.memory.note))
        again.looks, again.was_unsound = look.looks + 1, look.was_unsound
        return end(handle, again, hashing)
    if look.memory.note and look.depth is not Depth.STRUCTURE:
        _note(handle, look)
    return look


def _note(handle: Handle, look: Look) -> None:
    """That it was looked at, in the tree that was: its place may have another by now."""
    damaged = any(each.code == "txid-damaged" for each in look.findings)
    with suppress(OSError), fs.open_dir(look.layer.id, handle.dirs["layers"]) as fd:   # deleted just now
        if not damaged and fs.read_txid(fd) != look.layer.txid:
            return
        if look.course is not None and look.course.ended_at is not None:
            if look.course.ended_at > look.course.start:
                checked.note_part(fd, look.up_to(look.course.ended_at))
        else:
            checked.note_looked(fd, history.counted(look.depth), look.begun_ns, sound=look.is_sound)
