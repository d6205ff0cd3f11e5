"""Structured logs by the standard library: events become log records whose fields are in ``record.layerstore``.

Only what turns events into records, and records into lines of JSON. Which handlers there are is the program's choice.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

# what an operator wants to see, and what only somebody who looks for something does
_LEVELS = {
    "checkpoint-failed": logging.WARNING, "poisoned": logging.ERROR, "recovery": logging.WARNING,
    "quarantined": logging.WARNING,
    "transition": logging.DEBUG, "transaction": logging.DEBUG, "barrier": logging.DEBUG, "verb-begun": logging.DEBUG,
}


class Logs:
    """An observer that logs each event: one line of text, and all fields as ``record.layerstore``, a dict for JSON.

    Args:
        logger: where to; by default the logger ``layerstore.events``.
        levels: levels for events, in the place of the usual ones: recovery and failures are warnings or errors, single
            transitions, transactions and barriers are DEBUG, and all else is INFO.

    """

    def __init__(self, logger: logging.Logger | None = None, *, levels: Mapping[str, int] | None = None) -> None:
        self._logger = logger or logging.getLogger("layerstore.events")
        self._levels = {**_LEVELS, **(levels or {})}

    def event(self, what: str, **fields: Any) -> None:
        level = self._levels.get(what, logging.INFO)
        if what == "verb-ended" and fields.get("error"):
            level = logging.WARNING
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s %s", what, _text(fields), extra={"layerstore": {"event": what, **fields}})


def _text(fields: Mapping[str, Any]) -> str:
    return " ".join(
        f"{key}={value:.6f}" if isinstance(value, float) else f"{key}={value}"
        for key, value in fields.items() if value is not None
    )


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON: time, level, logger, and an event's fields, or the message."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}Z", "level": record.levelname,
            "logger": record.name, "thread": record.threadName,
        }
        fields = getattr(record, "layerstore", None)
        line.update(fields if isinstance(fields, dict) else {"message": record.getMessage()})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)

    @staticmethod
    def converter(seconds: float | None) -> Any:
        """Times are UTC."""
        import time  # noqa: PLC0415

        return time.gmtime(seconds)
