"""Which crash states of a recording there are, and in which order they are looked at.

Between two flushes (an *epoch*) any subset of the writes may have reached the disk, each whole or in part. What is
overwritten within the epoch may show its older content: that is the subset without the newer write, so orders need no
states of their own. A state is a *cut*: its position says what had happened and been acknowledged, its keep what of
the open epoch reached the disk.

First one state for each group of (step of the write order, kind of state), then all others, both drawn in an order
that the seed fixes; then random ones without end.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from crash.block import images
from crash.block.images import Image
from crash.block.recording import BEGIN, END, LEDGER, STEP, Event, Recording

_EXHAUSTIVE = 5     # epochs of at most so many writes are explored whole
_SUBSETS, _TORN = 6, 3


class Cut(NamedTuple):
    """One crash state. ``keep``: the events of the open epoch that reached the disk; ``tears``: of some, which units.

    ``position``: so many events had happened when the power went.
    """

    kind: str
    step: str
    epoch: int
    position: int
    keep: tuple[int, ...]
    tears: tuple[tuple[int, int], ...] = ()


@dataclass
class Epoch:
    """From one flush to the next. ``durable``: the image at its start; ``end``: the position at which it ends."""

    number: int
    durable: Image
    start: int
    end: int = 0
    flushed: bool = False
    writes: list[int] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)   # the ledger's


class Plan:
    """The crash states of one recording."""

    def __init__(self, recording: Recording, *, seed: int, unit: int = images.BLOCK) -> None:
        self.recording, self.unit, self._random = recording, unit, random.Random(seed)
        self.epochs: list[Epoch] = []
        self.steps: list[str] = []        # by position: the last fault point passed before it
        self._ledger: list[tuple[int, bytes]] = []
        self.base: Image = {}
        self._read(recording.events)

    def ledger(self, position: int) -> list[bytes]:
        """The ledger's lines that had been written by then."""
        return [line for at, line in self._ledger if at < position]

    def image(self, cut: Cut) -> Image:
        image = dict(self.epochs[cut.epoch].durable)
        tears = dict(cut.tears)
        for index in cut.keep:
            event = self.recording.events[index]
            if index in tears:
                images.apply_torn(image, event, tears[index], self.unit)
            else:
                images.apply(image, event)
        return image

    def cuts(self) -> Iterator[Cut]:
        """All of them, representatives first; then random ones without end."""
        structured = self.structured()
        self._random.shuffle(structured)
        seen, rest = set(), []
        for cut in structured:
            group = cut.step, cut.kind
            if group in seen:
                rest.append(cut)
            else:
                seen.add(group)
                yield cut
        yield from rest
        while True:
            yield self._anywhere()

    def structured(self) -> list[Cut]:
        """Those that are made by rule, epoch by epoch. Draws tears and subsets: another call gives others."""
        return [cut for epoch in self.epochs for cut in self._of(epoch)]

    # -- reading the recording ----------------------------------------------------------------------------------

    def _read(self, events: list[Event]) -> None:
        image: Image = {}
        step, begun, epoch = "", -1, Epoch(0, {}, 0)
        for index, event in enumerate(events):
            if event.kind == "M" and event.data[:1] == BEGIN:
                begun, self.base = index, dict(image)
            if event.kind == "M" and event.data[:1] == END:
                break
            self.steps.append(step)
            if event.kind == "M" and event.data[:1] == STEP:
                step = event.data[1:].decode()
            elif event.kind == "M" and event.data[:1] == LEDGER:
                self._ledger.append((index, event.data[1:]))
                epoch.marks.append(index)
            elif event.kind == "F":
                epoch.end, epoch.flushed = index, True
                if begun >= 0:
                    self._close(epoch, begun)
                epoch = Epoch(len(self.epochs), dict(image), index + 1)
            elif event.kind in "WD":
                images.apply(image, event)
                epoch.writes.append(index)
        if begun < 0:
            raise AssertionError("the recording never began")
        epoch.end = len(self.steps)
        self.steps.append(step)
        self._close(epoch, begun)

    def _close(self, epoch: Epoch, begun: int) -> None:
        epoch.start = max(epoch.start, begun)
        epoch.number = len(self.epochs)
        self.epochs.append(epoch)

    # -- the states of one epoch --------------------------------------------------------------------------------

    def _cut(
        self, kind: str, epoch: Epoch, position: int, keep: tuple[int, ...], tears: dict[int, int] | None = None,
    ) -> Cut:
        return Cut(kind, self.steps[position], epoch.number, position, keep, tuple((tears or {}).items()))

    def _of(self, epoch: Epoch) -> Iterator[Cut]:
        writes = tuple(epoch.writes)
        yield self._cut("flushed", epoch, epoch.start, tuple(w for w in writes if w < epoch.start))
        for n, index in enumerate(writes):
            if index >= epoch.start:
                yield self._cut("prefix", epoch, index + 1, writes[:n + 1])
        for index in epoch.marks:
            if index >= epoch.start:
                yield self._cut("acknowledged", epoch, index + 1, ())
                yield self._cut("acknowledged", epoch, index + 1, tuple(w for w in writes if w < index))
        yield from self._subsets(epoch, writes)
        if writes:
            for _ in range(_TORN):
                yield self._torn(epoch, epoch.end, writes)
            if self.unit < images.BLOCK:
                yield from self._halves(epoch, writes)

    def _subsets(self, epoch: Epoch, writes: tuple[int, ...]) -> Iterator[Cut]:
        if len(writes) <= _EXHAUSTIVE:
            for chosen in range(1 << len(writes)):
                yield self._cut("subset", epoch, epoch.end, tuple(w for n, w in enumerate(writes) if chosen >> n & 1))
            return
        for each in writes:
            yield self._cut("drop one", epoch, epoch.end, tuple(w for w in writes if w != each))
            yield self._cut("keep one", epoch, epoch.end, (each,))
        for _ in range(_SUBSETS):
            yield self._cut("subset", epoch, epoch.end, self._some(writes))

    def _some(self, writes: tuple[int, ...]) -> tuple[int, ...]:
        share = self._random.choice((0.1, 0.5, 0.9))
        return tuple(w for w in writes if self._random.random() < share)

    def _torn(self, epoch: Epoch, position: int, writes: tuple[int, ...]) -> Cut:
        """Each write lost, whole, or only the front, the back, or random units of it."""
        keep, tears = [], {}
        for index in writes:
            drawn = self._random.random()
            if drawn < 0.2:
                continue
            keep.append(index)
            count = images.units(self.recording.events[index], self.unit)
            if drawn < 0.7 and count > 1:
                tears[index] = self._tear(count)
        return self._cut("torn", epoch, position, tuple(keep), tears)

    def _tear(self, count: int) -> int:
        whole, at = (1 << count) - 1, self._random.randrange(count + 1)
        front = (1 << at) - 1
        return self._random.choice((front, whole & ~front, self._random.getrandbits(count)))

    def _halves(self, epoch: Epoch, writes: tuple[int, ...]) -> Iterator[Cut]:
        """A tear inside a write's first block: all before the write, and of it only the front, or only the back."""
        for n, index in enumerate(writes):
            event = self.recording.events[index]
            count = images.units(event, self.unit)
            if event.kind != "W" or index < epoch.start:
                continue
            for at in range(1, min(count, images.BLOCK // self.unit)):
                front = (1 << at) - 1
                for kept in (front, ((1 << count) - 1) & ~front):
                    yield self._cut("half", epoch, epoch.end, writes[:n + 1], {index: kept})

    def _anywhere(self) -> Cut:
        """A random moment, and a random part of what was in flight then."""
        position = self._random.randrange(self.epochs[0].start, self.epochs[-1].end + 1)
        epoch = next(e for e in reversed(self.epochs) if e.start <= position)
        writes = tuple(w for w in epoch.writes if w < position)
        if self._random.random() < 0.3:
            return self._torn(epoch, position, writes)
        return self._cut("subset", epoch, position, self._some(writes))
