"""A reader that was killed in the middle of reading, while others keep the journal open: its file must not grow for it.

LMDB keeps every page that the oldest reader may still want. One that was killed wants them for ever, until somebody
looks whether it lives; and nobody who comes later clears the table while the journal stays open. Measured in pages of
the file, against the same writes without such a reader.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import tempfile
from collections.abc import Iterator

import layerstore
from crash import content
from crash.state import State
from crash.workloads import BASE, BASE_ID, put
from layerjournal import Journal
from layerjournal.metapage import expected_size
from layerstore.lifecycle.projection import CatalogProjector
from layerstore.testing.children import run_child, telling
from layerstore.testing.ledger import Ledger
from layerstore.testing.oracle import examine

WRITES = 300
ALLOWED = 400
"""Pages: the writes between two looks for dead readers (32 of them, of about 6 pages each), with margin."""


def states(options: argparse.Namespace) -> Iterator[State]:
    for dead in (1, 5):
        with tempfile.TemporaryDirectory(dir="/dev/shm") as work:
            yield telling(lambda work=work, dead=dead: one(work, dead, options))  # type: ignore[misc]


def one(work: str, dead: int, options: argparse.Namespace) -> State:
    """*dead* readers killed while this process has the store open; then many writes."""
    planted = getattr(options, "sabotage", None)
    if planted:
        module, function = planted.split(":")
        getattr(importlib.import_module(module), function)()
    without, pages = grown(f"{work}/without", 0), grown(f"{work}/with", dead)
    wrong = [] if pages <= without + ALLOWED else [
        f"{dead} readers were killed, and {WRITES} writes later the journal has {pages} pages; without, {without}",
    ]
    wrong += examine(f"{work}/with", trees=content.TREES).violations
    return State(
        rig="failing", workload="readers", fault=f"{dead} readers killed", outcome="violation" if wrong else "kept",
        violations=wrong, fs="tmpfs", details={"pages": pages, "without": without, "writes": WRITES},
        reproduce="python -m crash run failing --scenario readers" + (f" --sabotage {planted}" if planted else ""),
    )


def grown(root: str, dead: int) -> int:
    """The size of the journal in pages after *dead* readers were killed and ``WRITES`` transactions made."""
    with layerstore.open(root) as store:
        put(store, Ledger(lambda _line: None), BASE, BASE_ID)
        for _ in range(dead):
            status = run_child(lambda: _read_and_die(root))
            if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
                raise AssertionError(f"the reader was not killed: {status:#x}")
        for number in range(WRITES // 2):
            store.set_name(f"name-{number % 2}", BASE_ID)
            store.drop_name(f"name-{number % 2}")
    return expected_size(os.path.join(root, "journal", "data.mdb"))[1] // 4096


def _read_and_die(root: str) -> None:
    journal = Journal.open(os.path.join(root, "journal"), CatalogProjector(), readonly=True)
    with journal.read() as view:
        view.head()
        os.kill(os.getpid(), signal.SIGKILL)
