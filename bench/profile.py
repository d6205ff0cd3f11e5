"""Where the time of one ``apply`` goes: by phase and by thread as the process itself sees it, by shared object as perf does.

Each run is a process of its own on the private file system, flushes made void: what is asked is what the program does, not
what a disk takes to write. The one that perf samples is another run, for sampling costs something; where perf is missing
or refused, that is said. Knows nothing of peers.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import clock, machine, peers, recipes
from bench.compiled import compiled
from bench.disk import Disk, private
from bench.layers import COMPRESSIONS, Blob, Layer, cached
from bench.tables import seconds, table

_INSIDE = str(Path(__file__).with_name("inside.py"))
_OURS = "ours-unsynced"
_PHASES = ("start", "pipeline", "end")
_THREADS = {   # of ``trees.unpack`` and ``differs``: by the names that they have
    "read and decompress": "layerstore-read", "hash blob and tar": "layerstore-hash", "hash large files": "layerstore-digest",
    "feed processes": "layerstore-create",
}
_MAIN = {"main: start": "start", "main: parse, make what is large": "pipeline", "main: end": "end"}
_CHILDREN, _EXIT = "processes that make small files", "exit"
_ROWS = (*_MAIN, *_THREADS, _CHILDREN, _EXIT)
_HERTZ = 4000
_OBJECTS = (   # the first that is found in an object's name
    (r"^\[(kernel|guest\.kernel)", "kernel"), (r"^(lib)?python", "Python"), (r"^isal|^igzip", "ISA-L"), (r"^libz\.|^zlib", "zlib"),
    (r"^libcrypto|^_hashlib", "libcrypto"), (r"^libc[.-]|^ld-|^\[vdso", "libc"), (r"^backend_c|^libzstd", "zstd"),
    (r"^_cmsgpack", "msgpack"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layers", nargs="+", choices=tuple(recipes.RECIPES), metavar="LAYER",
                        help=f"of {' '.join(recipes.RECIPES)} (default: {' '.join(recipes.REAL)})")
    parser.add_argument("--compressions", nargs="+", choices=COMPRESSIONS, metavar="COMPRESSION")
    parser.add_argument("--rounds", type=int, help="runs of each, of which medians are told (default: 5)")
    parser.add_argument("--tries", type=int, default=3, help="runs of one that strangers' load disturbs (default: %(default)s)")
    parser.add_argument("--disk-gib", type=float, default=16, help="size of the private file system (default: %(default)s)")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    machine.need_root()
    layers = cached(options.cache, options.layers or recipes.REAL)
    compressions = options.compressions or (("gzip",) if options.quick else COMPRESSIONS)
    rounds = options.rounds or (1 if options.quick else 5)
    result: dict[str, Any] = {"rounds": rounds, "hertz": _HERTZ, "runs": [], "objects": [], "no_perf": None}
    with private(options.cache, gib=options.disk_gib) as disk:
        profiler = _Profiler(options.cache, disk, options.tries)
        for layer in layers:
            for compression in compressions:
                where = {"layer": layer.name, "compression": compression}
                for number in range(rounds):
                    run = profiler.watched(layer, layer.blobs[compression])
                    result["runs"].append({**where, "round": number, **run})
                    print(f"   {layer.name:6s} {compression:5s} {number} {_line(run)}", flush=True)
                if result["no_perf"] is None:
                    try:
                        result["objects"].append({**where, "shares": profiler.sampled(layer, layer.blobs[compression])})
                    except machine.CannotError as error:
                        result["no_perf"] = str(error)
                        print(f"   no shares by shared object: {error}", flush=True)
            options.keep(result)
    return result


class _Profiler:
    def __init__(self, cache: str, disk: Disk, tries: int) -> None:
        self._cache, self._disk, self._tries = cache, disk, tries
        self._stopwatch = compiled(cache, "stopwatch")
        self._ours = peers.contenders()[_OURS]

    def _place(self, layer: Layer, blob: Blob) -> peers.Place:
        self._disk.room_for(layer.tar_size + 4096 * layer.files + (64 << 20), layer.files + layer.directories + 100)
        path = self._disk.new()
        place = peers.Place(path, os.path.join(self._disk.run, os.path.basename(path)), self._cache)
        self._ours.prepare(place)
        self._disk.settle()
        clock.warm(blob.path)
        return place

    def watched(self, layer: Layer, blob: Blob) -> dict[str, Any]:
        """The quietest of some runs: wall time, phases, and processor time by ``_ROWS``."""
        found: dict[float, dict[str, Any]] = {}

        def once() -> clock.Run:
            place = self._place(layer, blob)
            report = os.path.join(place.run, "report")
            command = shlex.join([sys.executable, "-P", _INSIDE, report, "--root", f"{place.path}/store", "apply", blob.path])
            try:
                run = clock.once(self._stopwatch, command, peers.environment(place, self._ours))
            finally:
                self._disk.settle()
            with open(report, encoding="ascii") as file:
                found[run.wall] = told(json.load(file), run)
            return run

        run = clock.quiet(once, self._tries)
        return {**found[run.wall], "marked": run.marked}

    def sampled(self, layer: Layer, blob: Blob) -> dict[str, float]:
        """Shares of all samples by what was running. CannotError where perf cannot do that."""
        machine.need("perf")
        place = self._place(layer, blob)
        data = os.path.join(place.run, "perf.data")
        record = ["perf", "record", "-q", "-e", "cpu-clock", "-F", f"{_HERTZ}", "-o", data, "--", "/bin/sh", "-c",
                  self._ours.command(place, blob)]
        environment = peers.environment(place, self._ours)
        done = subprocess.run(record, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise machine.CannotError(f"perf record: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
        report = ["perf", "report", "-q", "--stdio", "-i", data, "--sort", "dso", "-F", "overhead,dso", "-t", ";", "-g", "none"]
        shares = subprocess.run(report, capture_output=True, text=True, check=False)
        found = shares_of(shares.stdout)
        if shares.returncode or not found:
            raise machine.CannotError(f"perf report: {(shares.stderr.strip() or 'no samples').splitlines()[-1]}")
        return found


def told(report: Mapping[str, Any], run: clock.Run) -> dict[str, Any]:
    """Wall time, its phases, and processor time by ``_ROWS``, of one *run*."""
    phases = {"start": report["begun"] - report["watched_from"], "pipeline": report["ended"] - report["begun"]}
    phases["end"] = run.wall - sum(phases.values())
    cpu = {row: report[name] for row, name in _MAIN.items()}
    cpu.update((row, report["threads"].get(name, 0.0)) for row, name in _THREADS.items())
    cpu[_CHILDREN] = report["children"]
    cpu[_EXIT] = run.cpu - sum(cpu.values())
    return {"wall": round(run.wall, 4), "total": round(run.cpu, 4),
            "phases": {name: round(value, 4) for name, value in phases.items()},
            "cpu": {name: round(value, 4) for name, value in cpu.items()}}


def shares_of(report: str) -> dict[str, float]:
    """What perf said, by the names of ``_OBJECTS``, in parts of 1."""
    found: Counter[str] = Counter()
    for overhead, name in re.findall(r"^\s*([\d.]+)%\s*;\s*(\S.*?)\s*$", report, re.MULTILINE):
        found[next((said for sort, said in _OBJECTS if re.search(sort, name)), "other")] += float(overhead) / 100
    return {name: round(share, 4) for name, share in found.most_common()}


def _line(run: Mapping[str, Any]) -> str:
    phases = "  ".join(f"{name} {run['phases'][name]:.3f}" for name in _PHASES)
    return f"{run['wall']:8.3f} s  {phases}  {run['total']:7.3f} s cpu{'  (disturbed)' if run['marked'] else ''}"


# -- the page ----------------------------------------------------------------------------------------------------------


def page(result: dict[str, Any], pictures: Path | None) -> str:
    cells = list(dict.fromkeys((run["layer"], run["compression"]) for run in result["runs"]))
    groups = {cell: [run for run in result["runs"] if (run["layer"], run["compression"]) == cell] for cell in cells}
    disturbed = sum(run["marked"] for run in result["runs"])
    text = ["## Where the time of an apply goes\n",
            f"Medians of {result['rounds']} runs, flushes made void; {disturbed} of {len(result['runs'])} were disturbed by "
            "foreign load. *Start* is until the layer's differ is called, *end* from when it is done. Wall time, s:\n",
            _table([(name, lambda run, name=name: run["phases"][name]) for name in _PHASES]
                   + [("all", lambda run: run["wall"])], groups),
            "Processor time, s:\n",
            _table([(row, lambda run, row=row: run["cpu"][row]) for row in _ROWS] + [("all", lambda run: run["total"])], groups)]
    if result["objects"]:
        text += [f"Shares of processor time by shared object, as `perf` sampled another run, {result['hertz']} times a second:\n",
                 _shares(result["objects"])]
    if result["no_perf"] is not None:
        text.append(f"Shares by shared object could not be measured: {result['no_perf']}.\n")
    return "\n".join(text)


def _table(columns: Sequence[tuple[str, Any]], groups: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> str:
    return table(("", *(name for name, _ in columns)), [
        (f"`{layer}`, {compression}", *(seconds(statistics.median(map(value, runs))) for _, value in columns))
        for (layer, compression), runs in groups.items()
    ])


def _shares(objects: Sequence[Mapping[str, Any]]) -> str:
    names = [*dict.fromkeys(said for _, said in _OBJECTS), "other"]
    return table(("", *names), [
        (f"`{each['layer']}`, {each['compression']}", *(f"{each['shares'].get(name, 0.0):.0%}" for name in names))
        for each in objects
    ])
