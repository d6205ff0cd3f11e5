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
from collections import Counter
from collections.abc import Callable
from typing import Any

from crash.strace import SYNCS

from bench.store import peer, stores, tracing, worker
from bench.store.figures import as_if_on_time, summary

_IDLE_SECONDS = 2.0
COUNTED_ON = 20   # flushes are counted on a layer of so many times fewer files
Span = tuple[float, float, float]   # begun and ended, in monotonic seconds; the share of its work that was done


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


def commands(target: str, tar: str) -> dict[str, list[str]]:
    """The loads: each unpacks *tar* into the empty directory *target*. That of no load is empty."""
    unpack = "tar -xf {1} -C {0} && sync -f {0}".format(*map(shlex.quote, (target, tar)))
    loads = {
        "nothing": [],
        "layerstore: one syncfs": stores.worker("stage-file", target, tar),
        "fsync for each file": stores.worker("fsync-each", target, tar),
        "GNU tar, then sync -f": ["sh", "-c", unpack],
    }
    if peer.available():
        loads["containers-storage import-layer: no sync"] = peer.Peer(target).command("import-layer", "--file", tar)
    return loads


def measure(where: str, *, files: int, rounds: int) -> dict[str, Any]:
    """The figures on the file system that the directory *where* is on: load → its flushes and seconds, the neighbour's."""
    tar, few = os.path.join(where, "small-files.tar"), os.path.join(where, "few-files.tar")
    small_files(tar, files)
    small_files(few, files // COUNTED_ON)
    names = list(commands("", tar))
    latencies: dict[str, list[float]] = {name: [] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            command = commands(_fresh(where, number, name), tar)[name]
            subprocess.run(["sync", "-f", where], check=True)
            (begun, ended, share), samples = _beside(where, lambda command=command: _span(command))
            latencies[name] += [took for started, took in samples if begun <= started < ended]
            seconds[name].append((ended - begun) / share)
    return {name: {
        "flushes": flushes(commands(_fresh(where, rounds, name), few)[name]),
        "neighbour": summary(as_if_on_time(latencies[name], worker.INTERVAL)), "load": summary(seconds[name]),
    } for name in names}


def _fresh(where: str, number: int, name: str) -> str:
    target = os.path.join(where, f"load-{number}-{name.split(':', maxsplit=1)[0].replace(' ', '-')}")
    os.mkdir(target)
    return target


def flushes(command: list[str]) -> dict[str, int]:
    """How often a load flushes, by call: in a run of its own, under strace."""
    if not command:
        return {}
    calls, _ = tracing.run(command, SYNCS, env=stores.environment(), fast=True)
    return dict(sorted(Counter(call.name for call in tracing.between_marks(calls) if call.name in SYNCS).items()))


def _beside(where: str, load: Callable[[], Span]) -> tuple[Span, list[tuple[float, float]]]:
    with subprocess.Popen(
        stores.worker("neighbour", os.path.join(where, "neighbour")), env=stores.environment(),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        span = load()
        out, _ = process.communicate()
        return span, json.loads(out)


def _span(command: list[str]) -> Span:
    """From when to when it ran; or what it says itself, that its start-up does not count."""
    begun = time.monotonic()
    if not command:
        time.sleep(_IDLE_SECONDS)
        return begun, time.monotonic(), 1.0
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=stores.environment()).stdout
    ended = time.monotonic()
    if out.startswith("["):
        begun, ended = json.loads(out)
    return begun, ended, float(out) if command[3:4] == ["fsync-each"] else 1.0
