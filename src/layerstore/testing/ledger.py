"""What a program was told by the store, written down outside of it: the other half of every crash test.

A program under test says before each verb what the verb is to bring about, and afterwards that it was told so. What
was told must hold after any crash; what was asked for may have happened or not, whole; nothing else may have changed.
Lines go to a sink that survives what the store goes through: a file elsewhere, a pipe, a device's own log.

    with ledger.asking(layer(LAYER, DIFF_ID), name("app", "layer", LAYER)):
        store.apply_staged_layer(staged, names=["app"])

A *subject* is ``layer:<id>``, ``image:<id>`` or ``name:<name>``; its *value* is a layer's diffID, an image's
manifest digest or ``present``, ``layer:<id>``/``image:<id>`` for a name, and None for absent. ``damage:<layer>/<path>`` is
``bad`` where somebody damaged a store on purpose, and None where it is mended; a layer may be ``quarantined`` then. Of a
whole layer that was taken away it is ``damage:<layer>``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

from layerstore.errors import LayerstoreError, OutcomeUnknownError, PendingError, PoisonedError

Value = str | None
Facts = Mapping[str, Value]
Sink = Callable[[bytes], object]


class Ledger:
    """Writes what is asked for and what was told. One process's; several may share a sink that keeps lines whole."""

    def __init__(self, sink: Sink) -> None:
        self._sink, self._numbers, self._tag = sink, count(1), f"{os.getpid()}"

    @classmethod
    def to_file(cls, path: str) -> Ledger:
        """A ledger that appends to the file at *path*: it survives the writer's death, not the machine's."""
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return cls(lambda line: os.write(fd, line))

    def shared(self) -> Ledger:
        """A ledger for another process, with the same sink (which must keep lines whole)."""
        return Ledger(self._sink)

    @contextmanager
    def asking(self, *facts: Facts) -> Iterator[None]:
        """Around one verb that is to bring *facts* about.

        An error is taken by its word: ``PendingError`` has made them durable; ``OutcomeUnknownError``,
        ``PoisonedError`` and anything that is not the store's leave them open; any other ``LayerstoreError``
        says that nothing happened.
        """
        wanted = {subject: value for each in facts for subject, value in each.items()}
        number = f"{self._tag}.{next(self._numbers)}"
        self._write({"op": number, "ask": wanted})
        try:
            yield
        except (OutcomeUnknownError, PoisonedError):
            raise
        except PendingError:
            self._write({"op": number, "told": True})
            raise
        except LayerstoreError:
            self._write({"op": number, "told": False})
            raise
        self._write({"op": number, "told": True})

    def _write(self, line: Mapping[str, object]) -> None:
        self._sink(json.dumps(line, sort_keys=True).encode() + b"\n")


@dataclass
class Expectation:
    """What may be true of each subject: one value where the ledger was told, several where it was left open."""

    allowed: dict[str, set[Value]] = field(default_factory=dict)
    open: dict[str, Facts] = field(default_factory=dict)     # asked for and not answered, by operation
    answered: int = 0

    def value(self, subject: str) -> set[Value]:
        """The values that *subject* may have; a subject that nobody asked for must be absent."""
        return self.allowed.get(subject, {None})


def expectation(lines: Iterable[bytes]) -> Expectation:
    """Say what may be true, from a ledger's lines.

    Of two that ask at the same time, either may have been the last one, whoever was told first: then both values may
    be so.

    Args:
        lines: the lines, in order. A last line that was cut off is an answer that was never heard.

    Returns:
        What may be true of each subject.

    Raises:
        KeyError: an answer to what was never asked.

    Durability: reads only.

    """
    result = Expectation()
    before: dict[str, dict[str, set[Value]]] = {}
    rivals: dict[str, dict[str, set[Value]]] = {}   # what others asked for while an operation was open
    for raw in lines:
        try:
            line = json.loads(raw)
        except ValueError:
            continue
        number = line["op"]
        if "ask" in line:
            _ask(result, before, rivals, number, line["ask"])
            continue
        result.answered += 1
        for subject, value in result.open.pop(number).items():
            others = rivals[number].get(subject, set())
            result.allowed[subject] = others | ({value} if line["told"] else before[number][subject])
    return result


def _ask(
    result: Expectation, before: dict[str, dict[str, set[Value]]], rivals: dict[str, dict[str, set[Value]]],
    number: str, asked: Facts,
) -> None:
    before[number] = {subject: set(result.value(subject)) for subject in asked}
    rivals[number] = {}
    for other, facts in result.open.items():
        for subject in asked.keys() & facts.keys():
            rivals[number].setdefault(subject, set()).add(facts[subject])
            rivals[other].setdefault(subject, set()).add(asked[subject])
    result.open[number] = asked
    for subject, value in asked.items():
        result.allowed[subject] = result.value(subject) | {value}


def read_ledger(path: str) -> Expectation:
    """Say what may be true, from the file that ``Ledger.to_file`` wrote.

    Args:
        path: the file; where there is none, nothing is expected to be there.

    Returns:
        As ``expectation``.

    Raises:
        OSError: it cannot be read.

    Durability: reads only.

    """
    try:
        with open(path, "rb") as file:
            return expectation(file)
    except FileNotFoundError:
        return Expectation()


def layer(layer_id: str, diff_id: str | None) -> dict[str, Value]:
    """The fact that a layer is there with this diffID; None: that it is not there."""
    return {f"layer:{layer_id}": diff_id}


def image(image_id: str, value: str | None = "present") -> dict[str, Value]:
    """The fact that an image is there (None: is not)."""
    return {f"image:{image_id}": value}


def name(text: str, kind: str, owner: str | None) -> dict[str, Value]:
    """The fact that a name belongs to a ``layer`` or ``image`` (None: to nothing)."""
    return {f"name:{text}": None if owner is None else f"{kind}:{owner}"}


__all__ = ["Expectation", "Facts", "Ledger", "Value", "expectation", "image", "layer", "name", "read_ledger"]
