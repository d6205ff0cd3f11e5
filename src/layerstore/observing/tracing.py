"""Spans by OpenTelemetry's API (the extra ``tracing``): the one module that imports it.

A verb is a span, and what happens in it, its events. Where spans go is configured by the program, with OpenTelemetry's SDK;
without one nothing is recorded.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Span, StatusCode, Tracer

__all__ = ["Tracing"]


class Tracing:
    """An observer whose spans are the store's verbs. A child of the span that is current where the verb is called.

    What threads of a pull do becomes events of the pull's span: the verb that was begun last and goes on, if the thread
    itself is in none.
    """

    def __init__(self, tracer: Tracer | None = None) -> None:
        self._tracer = tracer or trace.get_tracer("layerstore")
        self._open: dict[int, tuple[int, Span]] = {}   # by the verb's number: its thread, its span

    def event(self, what: str, **fields: Any) -> None:
        if what == "verb-begun":
            span = self._tracer.start_span(f"layerstore.{fields['verb']}", context=self._context())
            self._open[fields["number"]] = (threading.get_ident(), span)
        elif what == "verb-ended":
            _, span = self._open.pop(fields["number"])
            if fields["error"]:
                span.set_attribute("error.type", fields["error"])
                span.set_status(StatusCode.ERROR, fields["error"])
            span.end()
        elif (around := self._around()) is not None:
            around.add_event(f"layerstore.{what}", _attributes(fields))

    def _context(self) -> Any:
        """The verb that this thread is in already, else whatever is current here."""
        mine = self._mine()
        return None if mine is None else trace.set_span_in_context(mine)

    def _mine(self) -> Span | None:
        me = threading.get_ident()
        return next((span for thread, span in reversed(list(self._open.values())) if thread == me), None)

    def _around(self) -> Span | None:
        return self._mine() or next((span for _, span in reversed(list(self._open.values()))), None)


def _attributes(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What OpenTelemetry takes: no None; lists of text."""
    return {
        key: list(map(str, value)) if isinstance(value, list | tuple) else value
        for key, value in fields.items() if value is not None
    }
