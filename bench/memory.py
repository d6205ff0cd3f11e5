"""Peak memory of each verb over one layer, against the number of its entries, of every kind, and the size of its one file.

The layers are made by another process as they are read (``stream``), through a pipe; only the resident set of ours is told.
Each verb is a process of its own: it stages and applies the layer, reads the tar that is made again of it, checks every
path, deletes it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import layerstore
from bench import clock, machine, peers
from bench.compiled import compiled
from bench.disk import Disk, private
from bench.tables import promised, seconds, table

TARGET_MIB = 150.0
_FLAT = 1.25   # flat: so much is what an allocator may make of it
_OPEN = "import sys, layerstore\nwith layerstore.open(sys.argv[1]) as store:\n    "
_VERBS = {
    "apply": _OPEN + "with store.stage(layerstore.TarDiffer(sys.stdin.buffer)) as staged: store.apply_staged_layer(staged)",
    "export": _OPEN + "with store.diff(store.layers()[0].id) as chunks: assert sum(map(len, chunks))",
    "check": _OPEN + "assert not store.check(depth='metadata').findings",
    "delete": _OPEN + "store.delete_layer(store.layers()[0].id); store.checkpoint()",
}
_FILES = (1_000, 10_000, 100_000, 1_000_000)
_SIZES = (8 << 20, 256 << 20, 1 << 30, 8 << 30)
_KINDS = (
    "one directory", "directories", "directories in one", "implied directories", "deep", "hard links", "symbolic links", "attributes",
    "replaced",
)
_MANY = (100_000, 1_000_000)
_WINDOW = "zstd with a window of 128 MiB"   # what zstd(1) takes, and so we; who writes one asks every reader for it
_ALL = ("files", "one file", *_KINDS, _WINDOW)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kinds", type=_chosen, default=_ALL, metavar="KIND,…", help=f"of layers: {', '.join(_ALL)} (default: all)")
    parser.add_argument("--disk-gib", type=float, default=16, help="size of the private file system (default: %(default)s)")


def _chosen(text: str) -> tuple[str, ...]:
    kinds = tuple(text.split(","))
    for kind in kinds:
        if kind not in _ALL:
            raise argparse.ArgumentTypeError(f"there is no kind {kind!r}: {', '.join(_ALL)}")
    return kinds


def measure(options: argparse.Namespace) -> dict[str, Any]:
    less = slice(-1 if options.quick else None)
    layers = [("files", count, 20) for count in _FILES[less]] + [("one file", 1, size) for size in _SIZES[less]]
    layers += [(kind, count, 20) for kind in _KINDS for count in _MANY[less]]
    layers.append((_WINDOW, 1, 300 << 20))
    layers = [layer for layer in layers if layer[0] in options.kinds]
    result: dict[str, Any] = {"runs": []}
    machine.need("zstd")
    with private(options.cache, gib=options.disk_gib) as disk:
        for kind, count, size in layers:
            disk.make()   # the last run deleted
            for verb, run in _each_verb(options.cache, disk, kind, count, size):
                result["runs"].append({"kind": kind, "verb": verb, "files": count, "size": size, "rss": round(run.rss, 1),
                                       "wall": round(run.wall, 3)})
                print(f"   {verb:6} {kind:20} {count:9,d} of {size:13,d} bytes {run.rss:8.1f} MiB {run.wall:8.2f} s", flush=True)
    return result


def _each_verb(cache: str, disk: Disk, kind: str, count: int, size: int) -> Iterator[tuple[str, clock.Run]]:
    disk.room_for(int(count * (size + 4096) * 1.05) + (200 << 20), int(count * 1.01) + 1000)
    path = disk.new()
    place = peers.Place(path, os.path.join(disk.run, os.path.basename(path)), cache)
    layerstore.open(f"{path}/store").close()
    here = str(Path(__file__).parent.parent)
    shape = "files" if kind in ("one file", _WINDOW) else kind
    made = shlex.join(["env", f"PYTHONPATH={here}", sys.executable, "-P", "-m", "bench.stream", shape, str(count), str(size)])
    if kind == _WINDOW:
        made += " | zstd -q -1 --long=27"
    for verb, program in _VERBS.items():
        ours = shlex.join([compiled(cache, "stopwatch"), sys.executable, "-P", "-c", program, f"{path}/store"])
        # the outer clock sees both processes; the inner one is ours, and its line is the last that is said
        yield verb, clock.inner(f"{made} | {ours}" if verb == "apply" else ours,
                                peers.environment(place, peers.contenders()["ours"]))
        disk.settle()


def targets(result: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    told = []
    for verb in dict.fromkeys(run["verb"] for run in result["runs"]):
        most = max((run for run in result["runs"] if run["verb"] == verb), key=lambda run: run["rss"])
        told.append((f"peak memory of any layer, {verb} ({most['kind']})", f"≤ {TARGET_MIB:.0f} MiB", f"{most['rss']:.0f} MiB",
                     most["rss"] <= TARGET_MIB))
    for kind, by in (("files", "files"), ("one file", "size")):
        runs = [run for run in result["runs"] if run["kind"] == kind and run["verb"] == "apply"][1:]
        if len(runs) < 2:
            continue
        grows, more = runs[-1]["rss"] / runs[0]["rss"], runs[-1][by] // runs[0][by]   # the smallest does not fill what is bounded
        what = f"with {more:,} times the files" if kind == "files" else f"with a file {more:,} times as large"
        told.append((f"peak memory, {what}", f"≤ {_FLAT} times", f"{grows:.2f} times", grows <= _FLAT))
    return told


def page(result: dict[str, Any], pictures: Path | None) -> str:
    layers = dict.fromkeys((run["kind"], run["files"], run["size"]) for run in result["runs"])
    verbs = list(dict.fromkeys(run["verb"] for run in result["runs"]))
    found = {(run["kind"], run["files"], run["size"], run["verb"]): run for run in result["runs"]}
    rows = [(_shown(*layer), *(f"{found[*layer, verb]['rss']:.0f}" if (*layer, verb) in found else "" for verb in verbs),
             seconds(found[*layer, verbs[0]]["wall"])) for layer in layers]
    return ("## Peak memory\n\nThe resident set, MiB, of a process that does one thing with one plain layer. An entry of "
            "*directories*, *directories in one*, *deep* and *implied directories* is a directory. A zstd frame says what window its decoder has to hold; "
            "up to 128 MiB are taken, as by zstd(1).\n\n"
            + table(("one plain layer, through a pipe", *verbs, f"{verbs[0]}: wall s"), rows) + "\n" + promised(targets(result)))


def _shown(kind: str, count: int, size: int) -> str:
    if kind in ("one file", _WINDOW):
        return f"1 file of {_bytes(size)}" + (f", {kind}" if kind == _WINDOW else "")
    return f"{count:,} files of {_bytes(size)}" if kind == "files" else f"{count:,}: {kind}"


def _bytes(size: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} bytes"
