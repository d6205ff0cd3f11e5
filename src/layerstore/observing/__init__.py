"""Ready-made observers: logs by the standard library, metrics by prometheus_client, spans by OpenTelemetry.

``logs`` needs nothing; ``metrics`` the extra of that name, ``tracing`` the other. Each optional library is imported by
its own modules, when an observer is made of it. What is told, and when, is ``observe``'s (docs/observing.md).

    observer = Both(Logs(), Metrics())
    with layerstore.open(root, observer=observer) as store: ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from layerstore.observe import EVENTS, Observer, watching
from layerstore.observing.logs import JsonLines, Logs

if TYPE_CHECKING:
    from layerstore.observing.metrics import Metrics as Metrics
    from layerstore.observing.tracing import Tracing as Tracing

__all__ = ["EVENTS", "Both", "JsonLines", "Logs", "Metrics", "Observer", "Tracing"]

_LAZY = {"Metrics": "metrics", "Tracing": "tracing"}


class Both:
    """Several observers as one, told in order; what one raises is logged, and the others are told all the same."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = [watching(each) for each in observers]

    def event(self, what: str, **fields: Any) -> None:
        for each in self._observers:
            each.event(what, **fields)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'layerstore.observing' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415

    return getattr(import_module(f"layerstore.observing.{_LAZY[name]}"), name)
