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

from layerstore.cli.output import short, size
from layerstore.progress import LayerTally, Tally


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Draw a table; the columns with the numbers *right* are flush right."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(Text, row))   # Text: brackets in a name are no markup
    Console(highlight=False).print(made)


class PullProgress:
    """Progress of a pull on standard error: a bar per layer on a terminal, a line per change otherwise.

    ``tally`` has the same as figures; the last line, unless *quiet*, says them in total.
    """

    def __init__(self, *, quiet: bool) -> None:
        self.tally = Tally()
        self._quiet, self._lock = quiet, threading.Lock()
        self._tasks: dict[str, TaskID] = {}
        self._bars: Progress | None = None
        if sys.stderr.isatty() and not quiet:
            self._bars = Progress(
                TextColumn("{task.fields[layer]}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
                TextColumn("{task.fields[state]}"), console=Console(stderr=True),
            )

    def layer(self, layer: str, *, state: str, size: int) -> None:
        self.tally.layer(layer, state=state, size=size)
        with self._lock:
            now = self.tally.layers()[layer]
            if self._bars is None:
                if not self._quiet and state != "waiting":
                    sys.stderr.write(f"{short(layer)} {state}{transfer(now)}\n")
                return
            if layer not in self._tasks:
                self._tasks[layer] = self._bars.add_task("", total=size, layer=short(layer), state=state)
            self._bars.update(self._tasks[layer], state=state + transfer(now), completed=now.done)

    def advance(self, layer: str, n: int) -> None:
        self.tally.advance(layer, n)
        self._draw(layer)

    def resumed(self, layer: str, n: int) -> None:
        self.tally.resumed(layer, n)
        self._draw(layer)

    def spared(self, layer: str, n: int) -> None:
        self.tally.spared(layer, n)
        self._draw(layer)

    def awaited(self, layer: str, n: int) -> None:
        self.tally.awaited(layer, n)
        self._draw(layer)

    def note(self, layer: str, what: str) -> None:
        self.tally.note(layer, what)
        if not self._quiet:
            Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(f"{short(layer)} note: {what}")

    def _draw(self, layer: str) -> None:
        with self._lock:
            if self._bars is not None and layer in self._tasks:
                self._bars.update(self._tasks[layer], completed=self.tally.layers()[layer].done)

    def __enter__(self) -> PullProgress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exc: object) -> None:
        if self._bars is not None:
            self._bars.stop()
        if kind is None and not self._quiet:
            sys.stderr.write(total_line(self.tally) + "\n")


class CheckBar:
    """How a check goes, in one line on standard error that is gone when it ends: layers, and bytes if there are any.

    A store has too many layers for a bar each. Only for a terminal.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sizes: dict[str, int] = {}         # of those that are not done, and …
        self._hashed: dict[str, int] = {}        # … what of them is
        self._layers = self._size = self._done = 0   # all layers, their bytes, and those of layers that are done
        self._bar = Progress(
            TextColumn("{task.fields[layers]}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
            console=Console(stderr=True), transient=True,
        )
        self._task = self._bar.add_task("", total=None, layers="journal")

    def layer(self, layer: str, *, state: str, size: int) -> None:
        """See ``CheckProgress``."""
        with self._lock:
            if state == "waiting":
                self._layers, self._size, self._sizes[layer] = self._layers + 1, self._size + size, size
            elif state != "checking" and layer in self._sizes:
                self._hashed.pop(layer, None)
                self._done += self._sizes.pop(layer)
            self._draw()

    def advance(self, layer: str, n: int) -> None:
        """See ``CheckProgress``."""
        with self._lock:
            if layer in self._sizes:             # the tar is larger than its content, but big data is not of it
                self._hashed[layer] = min(self._hashed.get(layer, 0) + n, self._sizes[layer])
            self._draw()

    def _draw(self) -> None:
        done = self._layers - len(self._sizes)
        self._bar.update(
            self._task, layers=f"{done} of {self._layers} layers", total=self._size or None,
            completed=self._done + sum(self._hashed.values()),
        )

    def __enter__(self) -> CheckBar:
        self._bar.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._bar.stop()


def transfer(layer: LayerTally) -> str:
    """What of a layer need not be fetched, for the line that says how it is; nothing if nothing."""
    parts = [f"{size(n)} {what}" for n, what in ((layer.resumed, "resumed"), (layer.spared, "found locally")) if n]
    return f" ({', '.join(parts)})" if parts else ""


def total_line(tally: Tally) -> str:
    """What a pull came to, in one line."""
    told = tally.as_json()
    parts = [f"fetched {size(told['fetched'])} of {size(told['size'])}"]
    parts += [f"resumed {size(told['resumed'])}"] if told["resumed"] else []
    return ", ".join([*parts, f"found locally {size(told['found_locally'])}", f"saved {size(told['saved'])}"])
