"""What only people on a terminal see: tables and progress bars. The one module of the command line that imports rich.

Imported where something is drawn, not before: importing rich takes a third of the time that the command line has to
start in.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from layerstore.cli.output import short


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Draw a table; the columns with the numbers *right* are flush right."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(Text, row))   # Text: brackets in a name are no markup
    Console(highlight=False).print(made)


class PullProgress:
    """Progress of a pull on standard error: a bar per layer on a terminal, a line per change otherwise."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet, self._lock = quiet, threading.Lock()
        self._tasks: dict[str, TaskID] = {}
        self._bars: Progress | None = None
        if sys.stderr.isatty() and not quiet:
            self._bars = Progress(
                TextColumn("{task.fields[layer]}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
                TextColumn("{task.fields[state]}"), console=Console(stderr=True),
            )

    def layer(self, layer: str, *, state: str, size: int) -> None:
        with self._lock:
            if self._bars is None:
                if not self._quiet and state != "waiting":
                    sys.stderr.write(f"{short(layer)} {state}\n")
                return
            if layer not in self._tasks:
                self._tasks[layer] = self._bars.add_task("", total=size, layer=short(layer), state=state)
            done = size if state in ("present", "adopted", "staged") else None
            self._bars.update(self._tasks[layer], state=state, completed=done)

    def advance(self, layer: str, n: int) -> None:
        with self._lock:
            if self._bars is not None and layer in self._tasks:
                self._bars.advance(self._tasks[layer], n)

    def __enter__(self) -> PullProgress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._bars is not None:
            self._bars.stop()
