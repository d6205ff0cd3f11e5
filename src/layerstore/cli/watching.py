"""What ``--metrics-textfile`` and ``--log-json`` make: an observer for the command, and what is written at its end.

Also the gauges of a store that nobody in this process has open.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

import click

from layerstore.cli import output
from layerstore.observe import Observer
from layerstore.observing import Both, JsonLines, Logs

if TYPE_CHECKING:
    from layerstore.observing.metrics import Metrics
    from layerstore.verbs.gauges import Gauges


def watcher_for(
    context: click.Context, textfile: str | None, log_file: str | None, root: str | None, allow: tuple[str, ...],
) -> Observer:
    """An observer for both; the metrics are written when the command ends, whatever its end."""
    observers: list[Observer] = []
    if log_file is not None:
        observers.append(Logs(_logger(context, log_file)))
    if textfile is not None:
        observers.append(_metrics(context, textfile, root, allow))
    return Both(*observers)


def _logger(context: click.Context, path: str) -> logging.Logger:
    """Everything, transitions and barriers included: whoever asks for a log of one command wants to see it."""
    handler = logging.StreamHandler(sys.stderr) if path == "-" else logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(JsonLines())
    logger = logging.Logger("layerstore.events", logging.DEBUG)  # noqa: LOG001 - this command's alone
    logger.addHandler(handler)
    context.call_on_close(handler.close)
    return logger


def _metrics(context: click.Context, path: str, root: str | None, allow: tuple[str, ...]) -> Observer:
    store = None if root is None else OpenedAgain(root, allow)
    metrics = metrics_of(store, "--metrics-textfile")
    context.call_on_close(lambda: _write(metrics, path))
    return metrics


def _write(metrics: Metrics, path: str) -> None:
    """That it cannot be written is told, and no more: whether there is damage or a layer was pulled is another matter."""
    try:
        metrics.write_textfile(path)
    except OSError as error:
        click.echo(f"layerstore: metrics were not written: {output.printable(str(error))}", err=True)


def metrics_of(store: OpenedAgain | None, what: str) -> Metrics:
    """Metrics, with the gauges of *store*. ClickException if *what* needs a library that is not there."""
    try:
        from layerstore.observing.metrics import Metrics  # noqa: PLC0415
    except ImportError as error:
        raise click.ClickException(f"{what} needs {error.name}: pip install 'layerstore[metrics]'") from error
    metrics = Metrics(store=None if store is None else store.root)
    if store is not None:
        metrics.watch(store)
    return metrics


class OpenedAgain:
    """A store as its gauges see it, read-only, when they are read: after the command, whatever became of that."""

    def __init__(self, root: str, allow: tuple[str, ...]) -> None:
        self.root, self._allow = os.path.abspath(root), allow

    def gauges(self) -> Gauges:
        from layerstore.store import open as open_store  # noqa: PLC0415

        with open_store(self.root, readonly=True, create=False, allow_filesystem=self._allow) as store:
            return store.gauges()
