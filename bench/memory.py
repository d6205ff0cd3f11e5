"""Peak memory while one layer is staged and applied, against the number of its files and the size of its one file.

The layers are made by another process as they are read (``stream``), through a pipe; only the resident set of ours is told.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import layerstore
from bench import clock, peers
from bench.compiled import compiled
from bench.disk import Disk, private
from bench.tables import promised, seconds, table

TARGET_MIB = 150.0
_FLAT = 1.25   # flat: so much is what an allocator may make of it
_APPLY = """
import sys, layerstore
with layerstore.open(sys.argv[1]) as store, store.stage(layerstore.TarDiffer(sys.stdin.buffer)) as staged:
    store.apply_staged_layer(staged)
"""
_FILES = (1_000, 10_000, 100_000, 1_000_000)
_SIZES = (8 << 20, 256 << 20, 1 << 30, 8 << 30)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--disk-gib", type=float, default=16, help="size of the private file system (default: %(default)s)")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    kinds = {"files": [(count, 20) for count in (_FILES[:-1] if options.quick else _FILES)],
             "one file": [(1, size) for size in (_SIZES[:-1] if options.quick else _SIZES)]}
    result: dict[str, Any] = {"runs": []}
    with private(options.cache, gib=options.disk_gib) as disk:
        for kind, layers in kinds.items():
            for count, size in layers:
                run = _once(options.cache, disk, count, size)
                result["runs"].append({"kind": kind, "files": count, "size": size, "rss": round(run.rss, 1),
                                       "wall": round(run.wall, 3)})
                print(f"   {count:9,d} files of {size:13,d} bytes {run.rss:8.1f} MiB {run.wall:8.2f} s", flush=True)
    return result


def _once(cache: str, disk: Disk, count: int, size: int) -> clock.Run:
    disk.room_for(int(count * (size + 4096) * 1.05) + (200 << 20), int(count * 1.01) + 1000)
    path = disk.new()
    place = peers.Place(path, os.path.join(disk.run, os.path.basename(path)), cache)
    layerstore.open(f"{path}/store").close()
    here = str(Path(__file__).parent.parent)
    made = shlex.join(["env", f"PYTHONPATH={here}", sys.executable, "-P", "-m", "bench.stream", str(count), str(size)])
    read = shlex.join([compiled(cache, "stopwatch"), sys.executable, "-P", "-c", _APPLY, f"{path}/store"])
    try:   # the outer clock sees both processes; the inner one is ours, and its line is the last that is said
        return clock.inner(f"{made} | {read}", peers.environment(place, peers.contenders()["ours"]))
    finally:
        disk.settle()


def targets(result: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    most = max(run["rss"] for run in result["runs"])
    told = [("peak memory of any layer", f"≤ {TARGET_MIB:.0f} MiB", f"{most:.0f} MiB", most <= TARGET_MIB)]
    for kind in dict.fromkeys(run["kind"] for run in result["runs"]):
        runs = [run for run in result["runs"] if run["kind"] == kind][1:]   # the smallest does not fill what is bounded
        grows, least = runs[-1]["rss"] / runs[0]["rss"], runs[0]["files" if kind == "files" else "size"]
        more = runs[-1]["files" if kind == "files" else "size"] // least
        what = f"with {more:,} times the files" if kind == "files" else f"with a file {more:,} times as large"
        told.append((f"peak memory, {what}", f"≤ {_FLAT} times", f"{grows:.2f} times", grows <= _FLAT))
    return told


def page(result: dict[str, Any], pictures: Path | None) -> str:
    rows = [(f"{run['files']:,} file{'s' if run['files'] > 1 else ''} of {_bytes(run['size'])}", f"{run['rss']:.0f}",
             seconds(run["wall"])) for run in result["runs"]]
    return ("## Peak memory\n\n" + table(("one plain layer, through a pipe", "peak resident set, MiB", "wall s"), rows)
            + "\n" + promised(targets(result)))


def _bytes(size: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} bytes"
