"""Watching a store at work: one protocol, no dependencies. Recipes for metrics and tracing are in the docs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Observer(Protocol):
    """Told of what the store does. Called from whatever thread does it; must be quick, and must not raise.

    ``event("transition", kind=…, key=…, trigger=…, state=…)`` after a transaction committed;
    ``event("barrier", name=…, seconds=…)`` for each sync and each durable commit;
    ``event("recovery", action=…, …)`` for each thing that recovery did.
    """

    def event(self, what: str, **fields: Any) -> None: ...


class Silent:
    """The observer that is there when nobody watches."""

    def event(self, what: str, **fields: Any) -> None:
        pass


@contextmanager
def barrier(observer: Observer, name: str) -> Iterator[None]:
    """Time one barrier and tell *observer*."""
    begun = time.perf_counter()
    yield
    observer.event("barrier", name=name, seconds=time.perf_counter() - begun)
