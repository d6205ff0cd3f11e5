"""What ``--metrics-textfile`` and ``--log-json`` make: an observer for the command, and what is written at its end."""

from __future__ import annotations

import logging
import sys

import click

from layerstore.observe import Observer
from layerstore.observing import Both, JsonLines, Logs


def watcher_for(context: click.Context, textfile: str | None, log_file: str | None) -> Observer:
    """An observer for both; the metrics are written when the command ends, whatever its end."""
    observers: list[Observer] = []
    if log_file is not None:
        observers.append(Logs(_logger(context, log_file)))
    if textfile is not None:
        observers.append(_metrics(context, textfile))
    return Both(*observers)


def _logger(context: click.Context, path: str) -> logging.Logger:
    """Everything, transitions and barriers included: whoever asks for a log of one command wants to see it."""
    handler = logging.StreamHandler(sys.stderr) if path == "-" else logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(JsonLines())
    logger = logging.Logger("layerstore.events", logging.DEBUG)  # noqa: LOG001 - this command's alone
    logger.addHandler(handler)
    context.call_on_close(handler.close)
    return logger


def _metrics(context: click.Context, path: str) -> Observer:
    try:
        from layerstore.observing.metrics import Metrics  # noqa: PLC0415
    except ImportError as error:
        raise click.ClickException(f"--metrics-textfile needs {error.name}: pip install 'layerstore[metrics]'") from error
    metrics = Metrics()
    context.call_on_close(lambda: metrics.write_textfile(path))
    return metrics
