"""Watching a store at work: the protocol, the table of events, and how they are told. No dependencies, no I/O.

Here is what is told and how; ``handle`` and the verbs say when. What is made of it (metrics, spans, logs) belongs to
``observing``. The interface is documented in docs/observing.md.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, Protocol

log = logging.getLogger("layerstore")

EVENTS: dict[str, tuple[str, ...]] = {
    "verb-begun": ("verb", "number"),
    "verb-ended": ("verb", "number", "seconds", "error"),
    "opened": ("root", "readonly", "actions", "deferred", "head", "low_water", "seconds"),
    "transaction": ("label", "records", "seconds"),
    "transition": ("kind", "key", "trigger", "source", "state", "seq", "group", "txid", "layer_id", "time_ns"),
    "barrier": ("name", "seconds"),
    "recovery": ("action", "key", "layer_id", "why", "seconds"),
    "staged": ("txid", "diff_id", "bytes", "blob_bytes", "compression", "entries", "unset", "seconds"),
    "adopted": ("txid", "diff_id", "bytes"),
    "applied": ("layer_id", "txid", "parent", "diff_id", "bytes", "entries", "created", "image", "seconds"),
    "deleted": ("layers", "deferred", "image", "bytes", "seconds"),
    "checkpoint": ("low_water", "emptied", "archived", "seconds"),
    "checkpoint-failed": ("error",),
    "checked": ("layer_id", "depth", "findings", "number", "of", "bytes", "seconds"),
    "check-ended": (
        "depth", "findings", "layers", "looked_at", "recent", "left", "left_unsound", "unread", "complete_since_ns",
        "seconds",
    ),
    "repaired": ("layer_id", "steps", "seconds"),
    "quarantined": ("layer_id", "why", "files", "seconds"),
    "noted": ("diff_id", "note"),
    "poisoned": ("root", "why"),
}
"""Every event, and the fields that it has at least. Events and fields may be added; none is taken away or changes."""

_JOURNAL_SYNCS = frozenset({"archive.write", "archive.sync", "archive.drop.sync"})


class Observer(Protocol):
    """Told of what the store does, from whatever thread does it, after it is durable where it says so.

    ``event(what, **fields)``: *what* is a key of ``EVENTS``, which has the fields. It should be quick: the store waits for
    it. An ``Exception`` that it raises is logged and goes no further. It must not call the store.
    """

    def event(self, what: str, **fields: Any) -> None: ...


class Silent:
    """The observer that is there when nobody watches."""

    def event(self, what: str, **fields: Any) -> None:
        pass


class Guarded:
    """An observer whose exceptions do not reach the store: the first is logged with its traceback, the others are counted.

    What is no ``Exception`` (an interrupt that arrives while it runs) goes on, as it would from any other line.
    """

    def __init__(self, inner: Observer) -> None:
        self._inner, self.failures = inner, 0

    def event(self, what: str, **fields: Any) -> None:
        try:
            self._inner.event(what, **fields)
        except Exception:   # whatever it is: a store does not fail because somebody looks on
            self.failures += 1
            if self.failures == 1:
                log.warning("an observer failed at %r; it is told of further events all the same", what, exc_info=True)


def watching(observer: Observer | None) -> Observer:
    """*observer* as the store uses it; for None the silent one."""
    if observer is None:
        return Silent()
    return observer if isinstance(observer, Guarded | Silent) else Guarded(observer)


@contextmanager
def barrier(observer: Observer, name: str) -> Iterator[None]:
    """Time one barrier and tell *observer*, if it succeeded."""
    begun = time.perf_counter()
    yield
    observer.event("barrier", name=name, seconds=time.perf_counter() - begun)


_numbers = count(1)


@contextmanager
def verb(observer: Observer, name: str) -> Iterator[None]:
    """Tell *observer* when a verb begins and ends; ``number`` is the same in both, and no other verb's in this process."""
    number, begun, error = next(_numbers), time.perf_counter(), None
    observer.event("verb-begun", verb=name, number=number)
    try:
        yield
    except BaseException as raised:
        error = type(raised).__name__
        raise
    finally:
        observer.event("verb-ended", verb=name, number=number, seconds=time.perf_counter() - begun, error=error)


class Timed:
    """A hook for the journal that tells of its barriers: durable commits, and the syncs of its archive."""

    def __init__(self, observer: Observer, hook: Callable[[str, str], None]) -> None:
        self._observer, self._hook, self._own = observer, hook, threading.local()

    def __call__(self, point: str, when: str) -> None:
        if when == "before":
            self._hook(point, when)
            self._own.begun = time.perf_counter()
            return
        seconds = time.perf_counter() - self._own.begun
        self._hook(point, when)
        if point.startswith("txn.") or point in _JOURNAL_SYNCS:
            self._observer.event("barrier", name=point, seconds=seconds)


def transitions(txn: Any, after: int) -> list[dict[str, Any]]:
    """The fields of a ``transition`` for each record that the write transaction *txn* has appended after *after*."""
    found = []
    for record in txn.records(after=after):
        kind, _, key = record.entity.partition(":")
        row = txn.get("layers", key) if kind == "layer" else None
        found.append({
            "kind": kind, "key": key, "trigger": record.trigger, "source": record.from_state, "state": record.to_state,
            "seq": record.seq, "group": record.group, "txid": record.txid, "layer_id": (row or {}).get("layer_id"),
            "time_ns": record.time_ns,
        })
    return found
