"""Measure 4: what a stranger's fdatasync takes on the same disk while a layer of many small files is unpacked.

The neighbour appends 4 KiB and calls fdatasync every ten milliseconds, like the log of a small database. Beside it
runs one of the loads at a time, in turn, each into directories of its own; what a load left unwritten is synced
before the next one begins, and is not part of any figure. Only what the neighbour began during the load counts; calls
that did not begin in time because one before took longer than ten milliseconds count with what they would have waited.
"""

from __future__ import annotations

import io
import json
import os
import random
import shlex
import subprocess
import tarfile
import time
from collections.abc import Callable
from typing import Any

from bench.store import peer, stores, worker
from bench.store.figures import as_if_on_time, summary

_IDLE_SECONDS = 2.0
Span = tuple[float, float]


def small_files(path: str, count: int) -> None:
    """A tar of *count* files of about 1 KiB (log-normal), twelve to a directory. The same at every run."""
    chance = random.Random(4)
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            directory = f"d{number // 240:03d}/e{number // 12:04d}"
            if number % 12 == 0:
                for name in ([directory.partition("/")[0]] if number % 240 == 0 else []) + [directory]:
                    made = tarfile.TarInfo(name)
                    made.type, made.mode = tarfile.DIRTYPE, 0o755
                    archive.addfile(made)
            info = tarfile.TarInfo(f"{directory}/f{number:05d}")
            data = chance.randbytes(min(65_536, int(chance.lognormvariate(6.9, 1.2))))
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def measure(where: str, *, files: int, rounds: int) -> dict[str, Any]:
    """The figures on the file system that the directory *where* is on: load → the neighbour's, and the load's seconds."""
    tar = os.path.join(where, "small-files.tar")
    small_files(tar, files)
    names = [name for name in LOADS if "containers-storage" not in name or peer.available()]
    latencies: dict[str, list[float]] = {name: [] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for at, name in enumerate(names):
            subprocess.run(["sync", "-f", where], check=True)
            (begun, ended), samples = _beside(where, lambda: LOADS[name](f"{where}/load-{number}-{at}", tar))
            latencies[name] += [took for started, took in samples if begun <= started < ended]
            seconds[name].append(ended - begun)
    return {name: {"neighbour": summary(as_if_on_time(latencies[name], worker.INTERVAL)), "load": summary(seconds[name])} for name in names}


def _beside(where: str, load: Callable[[], Span]) -> tuple[Span, list[Span]]:
    with subprocess.Popen(
        stores.worker("neighbour", os.path.join(where, "neighbour")), env=stores.environment(),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        span = load()
        out, _ = process.communicate()
        return span, json.loads(out)


def _timed(command: list[str]) -> Span:
    begun = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=stores.environment())
    return begun, time.monotonic()


def _nothing(_target: str, _tar: str) -> Span:
    begun = time.monotonic()
    time.sleep(_IDLE_SECONDS)
    return begun, time.monotonic()


def _ours(target: str, tar: str) -> Span:
    begun, ended = json.loads(stores.run("stage-file", target, tar))
    return begun, ended


def _fsync_each(target: str, tar: str) -> Span:
    return _timed(stores.worker("fsync-each", target, tar))


def _theirs(target: str, tar: str) -> Span:
    os.mkdir(target)
    return _timed(peer.Peer(target).command("import-layer", "--file", tar))


def _tar(target: str, tar: str) -> Span:
    os.mkdir(target)
    return _timed(["sh", "-c", "tar -xf {1} -C {0} && sync -f {0}".format(*map(shlex.quote, (target, tar)))])


LOADS: dict[str, Callable[[str, str], Span]] = {
    "nothing": _nothing,
    "layerstore: one syncfs": _ours,
    "fsync for each file": _fsync_each,
    "containers-storage import-layer: no sync": _theirs,
    "GNU tar, then sync -f": _tar,
}
