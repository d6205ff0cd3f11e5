"""How a pull, or a check, goes: the protocols by which it is told, and ``Tally``, which keeps it as figures.

No output and no clock: who shows it, and how often, is the command line's or the caller's.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any, Protocol

from layerstore.values import dataclass

__all__ = ["CheckProgress", "LayerTally", "Progress", "Quiet", "Tally"]

_DONE = frozenset({"present", "adopted", "staged"})


class Progress(Protocol):
    """Told how a pull goes; called from several threads. ``layer`` is the diffID, sizes are bytes.

    Of one layer ``advance``, ``resumed`` and ``spared`` tell of different bytes, which together are its blob, unless a
    part had to be fetched twice. Not all of a blob need be accounted for: headers that were made anew are nobody's. Bytes
    are those of blobs that came to use: what a transport says around them, or reads and drops, is in no figure. What
    turns out not to be so (content kept or found that is damaged) is taken back: *n* is negative.
    """

    def layer(self, layer: str, *, state: str, size: int) -> None:
        """*state*: ``present``, ``waiting``, ``staging``, ``adopted``, ``staged``. *size* is the blob's."""

    def advance(self, layer: str, n: int) -> None:
        """*n* more bytes of the layer's blob were read: fetched, if it is remote."""

    def resumed(self, layer: str, n: int) -> None:
        """*n* bytes of it need not be fetched: an earlier attempt had, and kept them."""

    def spared(self, layer: str, n: int) -> None:
        """*n* bytes of it need not be fetched: what is in them was found in layers that are here."""

    def awaited(self, layer: str, n: int) -> None:
        """While it is ``waiting``: the process that is waited for has fetched *n* more bytes of it."""

    def note(self, layer: str, what: str) -> None:
        """*what* is worth knowing, in one line: that all of a layer is fetched after all, and why."""


class CheckProgress(Protocol):
    """Told how a check goes; called from several threads. ``layer`` is the layer's ID. Every ``Progress`` is one.

    What it raises ends the check.
    """

    def layer(self, layer: str, *, state: str, size: int) -> None:
        """*state*: ``waiting``, of all at first; ``checking``, ``checked``; ``recent`` and ``left`` as in the report.

        *size*: of the layer's tar, which is a little more than its content; 0 if content is not looked at.
        """

    def advance(self, layer: str, n: int) -> None:
        """*n* more bytes of the layer's content were hashed."""


class Quiet:
    """The progress that tells nobody; good to derive others from."""

    def layer(self, layer: str, *, state: str, size: int) -> None:
        pass

    def advance(self, layer: str, n: int) -> None:
        pass

    def resumed(self, layer: str, n: int) -> None:
        pass

    def spared(self, layer: str, n: int) -> None:
        pass

    def awaited(self, layer: str, n: int) -> None:
        pass

    def note(self, layer: str, what: str) -> None:
        pass


@dataclass(frozen=True, slots=True)
class LayerTally:
    """One layer so far, in bytes. ``state`` as in ``Progress.layer``; ``size`` is the blob's.

    ``fetched``: read from the source. ``resumed``: kept by an earlier attempt. ``spared``: found in other layers.
    ``awaited``: fetched by another process that is waited for. ``saved``: what of the blob was not fetched by this pull.
    ``notes``: what ``Progress.note`` told.
    """

    state: str
    size: int
    fetched: int = 0
    resumed: int = 0
    spared: int = 0
    awaited: int = 0
    notes: tuple[str, ...] = ()

    @property
    def done(self) -> int:
        """How much of ``size`` is dealt with, for a bar: all of it once the layer is ready."""
        so_far = self.fetched + self.resumed + self.spared + self.awaited
        return self.size if self.state in _DONE else min(self.size, so_far)

    @property
    def saved(self) -> int:
        return max(0, self.done - self.fetched)

    def as_json(self) -> dict[str, Any]:
        return {
            "state": self.state, "size": self.size, "fetched": self.fetched, "resumed": self.resumed,
            "found_locally": self.spared, "awaited": self.awaited, "saved": self.saved,
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class _Total(LayerTally):
    """All layers together: what one of them fetched twice is no loss of another's."""

    layers: tuple[LayerTally, ...] = ()

    @property
    def done(self) -> int:
        return sum(each.done for each in self.layers)

    @property
    def saved(self) -> int:
        return sum(each.saved for each in self.layers)


class Tally:
    """A ``Progress`` that keeps count: ``Store.pull(…, progress=tally)``. Safe to read at any time, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._layers: dict[str, LayerTally] = {}

    def layers(self) -> dict[str, LayerTally]:
        """Each layer by its diffID, in the order in which they were first told of."""
        with self._lock:
            return dict(self._layers)

    def total(self) -> LayerTally:
        """All layers together; ``state`` is ``staged`` once each is ready, before that ``staging``."""
        found = tuple(self.layers().values())
        ready = all(each.state in _DONE for each in found)
        size, fetched, resumed, spared, awaited = (
            sum(getattr(each, what) for each in found) for what in ("size", "fetched", "resumed", "spared", "awaited")
        )
        return _Total("staged" if ready else "staging", size, fetched, resumed, spared, awaited, layers=found)

    def as_json(self) -> dict[str, Any]:
        """What is to be told as JSON, and by layer.

        ``size``, ``fetched``, ``resumed``, ``found_locally``, ``awaited``, ``saved``. ``saved`` is the sum over the
        layers; with no layer fetched it is the whole of the image.
        """
        layers = self.layers()
        total = self.total().as_json()
        del total["state"], total["notes"]
        return {**total, "layers": [{"diff_id": name, **each.as_json()} for name, each in layers.items()]}

    def layer(self, layer: str, *, state: str, size: int) -> None:
        """See ``Progress``. Who waited and now makes it has fetched nothing of it by waiting."""
        with self._lock:
            was = self._layers.get(layer, LayerTally(state, size))
            self._layers[layer] = replace(was, state=state, size=size, awaited=0 if state == "staging" else was.awaited)

    def advance(self, layer: str, n: int) -> None:
        """See ``Progress``."""
        self._add(layer, "fetched", n)

    def resumed(self, layer: str, n: int) -> None:
        """See ``Progress``."""
        self._add(layer, "resumed", n)

    def spared(self, layer: str, n: int) -> None:
        """See ``Progress``."""
        self._add(layer, "spared", n)

    def awaited(self, layer: str, n: int) -> None:
        """See ``Progress``."""
        self._add(layer, "awaited", n)

    def note(self, layer: str, what: str) -> None:
        """See ``Progress``."""
        with self._lock:
            was = self._layers.get(layer, LayerTally("staging", 0))
            self._layers[layer] = replace(was, notes=(*was.notes, what))

    def _add(self, layer: str, what: str, n: int) -> None:
        with self._lock:
            was = self._layers.get(layer, LayerTally("staging", 0))
            self._layers[layer] = replace(was, **{what: getattr(was, what) + n})
