"""Workloads that only a power cut makes interesting: a store being made, and one whose writes are hurried along.

``hurried`` is ``everything`` beside a process that forces files to the disk early, as memory pressure or somebody
else's fsync would: what a sync has not yet asked for may be there all the same.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import layerstore
from crash.workloads import BASE, BASE_ID, Workload, put
from layerstore.testing import Ledger, start_child

SEVERAL = ("pair", "hurried")   # workloads of more than one process
BY_NAME = (   # only when asked for by name: ``posix`` cuts them closer, and a recording costs seconds here
    "rebuild", "rebuild-from", "view-first", "view-killed", "view-removed", "push", "push-killed", "push-archives",
    "snapshot", "quota",
)
_SYNC_FILE_RANGE_WRITE = 2


def build(made: dict[str, Workload]) -> dict[str, Workload]:
    """The workloads *made*, and ours."""
    everything = made["everything"]

    def hurried(root: str, ledger: Ledger) -> None:
        with _hurrying(root):
            everything.run(root, ledger)

    return made | {
        "create": Workload("create", lambda _root, _ledger: None, _create, made["pull"].again),
        "hurried": Workload("hurried", everything.prepare, hurried, everything.again),
    }


def _create(root: str, ledger: Ledger) -> None:
    with layerstore.open(root) as store:
        put(store, ledger, BASE, BASE_ID, names=("base",))


@contextmanager
def _hurrying(root: str) -> Iterator[None]:
    pid = start_child(lambda: _hurry(root))
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _hurry(root: str) -> None:
    chance, libc = random.Random(root), ctypes.CDLL(None)
    while True:
        paths = [
            os.path.join(directory, name)
            for part in ("staging", "layers", "trash")
            for directory, directories, files in os.walk(os.path.join(root, part)) for name in directories + files
        ]
        for path in chance.sample(paths, min(4, len(paths))):
            with suppress(OSError):
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                if chance.random() < 0.2:
                    os.fsync(fd)
                else:
                    libc.sync_file_range(fd, ctypes.c_long(0), ctypes.c_long(0), _SYNC_FILE_RANGE_WRITE)
                os.close(fd)
