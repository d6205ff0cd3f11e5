"""One layer into a store or a directory: this store and its peers on the same blobs, in turn, on a private file system.

Each round runs every contender once, beginning with another one each time. Those that a target is about (``core`` in
``peers``) run in every round on every compression; the others on gzip only, in fewer rounds, and once where files are
very many. Input is in the page cache (*warm*); for some, on some layers, it is not (*cold*). After the first gzip round
the tree that this store made is compared with GNU tar's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from bench import bound, clock, machine, recipes, trees
from bench.compiled import compiled
from bench.disk import Disk, private
from bench.flushes import flushes
from bench.layers import COMPRESSIONS, Blob, Layer, cached, told
from bench.peers import Contender, Place, contenders, environment
from bench.unpack_page import page as page
from bench.unpack_page import targets as targets

_COLD = ("ours", "storage", "tar")
_COLD_LAYERS = ("small", "large")
_MANY, _FEW = 100_000, {False: 1, True: 0}   # of the others' rounds, where each takes most of a minute
_TEMPORARY = 1.3   # some keep a copy of the blob beside the tree


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layers", nargs="+", choices=tuple(recipes.RECIPES), metavar="LAYER",
                        help=f"of {' '.join(recipes.RECIPES)} (default: {' '.join(recipes.REAL)})")
    parser.add_argument("--compressions", nargs="+", choices=COMPRESSIONS, metavar="COMPRESSION")
    parser.add_argument("--contenders", nargs="+", choices=tuple(contenders()), metavar="CONTENDER")
    parser.add_argument("--rounds", type=int, help="paired rounds of those that targets are about (default: 5)")
    parser.add_argument("--field-rounds", type=int, help="rounds of the others (default: 3)")
    parser.add_argument("--tries", type=int, default=3, help="runs of one that strangers' load disturbs (default: %(default)s)")
    parser.add_argument("--disk-gib", type=float, default=16, help="size of the private file system (default: %(default)s)")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    quick = options.quick
    rounds = options.rounds or (3 if quick else 5)
    field_rounds = min(rounds, options.field_rounds or (1 if quick else 3))
    compressions = options.compressions or (("gzip",) if quick else COMPRESSIONS)
    machine.need_root()
    layers = cached(options.cache, options.layers or recipes.REAL)
    chosen = {name: each for name, each in contenders().items() if name in (options.contenders or contenders())}
    here = [each for each in chosen.values() if each.missing() is None]
    result: dict[str, Any] = {
        "cpus": os.cpu_count(), "rounds": rounds, "field_rounds": field_rounds,
        "layers": {each.name: told(each) for each in layers},
        "contenders": {each.name: {"label": each.label, "version": each.version(), "missing": each.missing(),
                                   "synced": each.synced} for each in chosen.values()},
        "runs": [], "failed": {}, "bounds": {}, "equal": {}, "flushes": {},
    }
    with private(options.cache, gib=options.disk_gib) as disk:
        bench = _Bench(options.cache, disk, options.tries, result)
        bench.count_flushes(here)
        for layer in layers:
            result["bounds"][layer.name] = bound.parts(disk, options.cache, layer)
            for compression in compressions:
                able = [each for each in here if compression in each.compressions and
                        (each.core or compression == "gzip" or options.contenders)]
                others = min(field_rounds, _FEW[quick]) if layer.files >= _MANY else field_rounds
                for number in range(rounds):
                    active = [each for each in able if each.core or number < others]
                    bench.round(layer, layer.blobs[compression], active, number, "warm")
            if layer.name in _COLD_LAYERS and "gzip" in compressions:
                able = [each for each in here if each.name in _COLD]
                for number in range(field_rounds):
                    bench.round(layer, layer.blobs["gzip"], able, number, "cold")
            options.keep(result)
    return result


class _Bench:
    """The rounds, and where their figures go."""

    def __init__(self, cache: str, disk: Disk, tries: int, result: dict[str, Any]) -> None:
        self._cache, self._disk, self._tries, self._result = cache, disk, tries, result
        self._stopwatch = compiled(cache, "stopwatch")

    def round(self, layer: Layer, blob: Blob, active: Sequence[Contender], number: int, source: str) -> None:
        need = int((layer.tar_size + 4096 * layer.files) * _TEMPORARY), int(_TEMPORARY * (layer.files + layer.directories))
        if self._disk.holds(need[0] * len(active), need[1] * len(active)):   # a round sees a file system of one age
            self._disk.room_for(need[0] * len(active), need[1] * len(active))
        made: dict[str, str] = {}
        for each in _rotated(active, number):
            self._disk.room_for(*need)
            try:
                run, place = self._run(each, blob, source)
                made[each.name] = each.tree(place)
            except (clock.FailedError, subprocess.CalledProcessError) as error:
                self._result["failed"].setdefault(each.name, str(error))
                print(f"   {each.name} FAILED on {layer.name} {blob.compression}: {error}", flush=True)
                continue
            self._result["runs"].append({
                "input": source, "layer": layer.name, "compression": blob.compression, "contender": each.name,
                "round": number, **{key: round(value, 4) for key, value in asdict(run).items()},
            })
            print(f"   {layer.name:6s} {blob.compression:5s} {source} {number} {each.name:20s} {clock.line(run)}", flush=True)
        both = [made.get(name, "") for name in ("ours", "tar")]
        if layer.name not in self._result["equal"] and all(map(os.path.isdir, both)):
            self._result["equal"][layer.name] = trees.differences(*both)[:20]

    def _run(self, each: Contender, blob: Blob, source: str) -> tuple[clock.Run, Place]:
        last: list[Place] = []

        def once() -> clock.Run:
            place = self._place(each)
            (clock.warm if source == "warm" else clock.cold)(blob.path)
            try:
                return clock.once(self._stopwatch, each.command(place, blob), environment(place, each))
            finally:
                self._disk.settle()
                last[:] = [place]

        return clock.quiet(once, self._tries), last[0]

    def _place(self, each: Contender) -> Place:
        path = self._disk.new()
        place = Place(path, os.path.join(self._disk.run, os.path.basename(path)), self._cache)
        each.prepare(place)
        self._disk.settle()
        return place

    def count_flushes(self, here: Sequence[Contender]) -> None:
        """On a small layer, not timed: who flushes how often, and that our flushes are void where they are said to be."""
        (sample,) = cached(self._cache, ["sample"])
        for each in here:
            try:
                place = self._place(each)
                self._result["flushes"][each.name] = flushes(each.command(place, sample.blobs["gzip"]),
                                                             environment(place, each))
            except (OSError, subprocess.CalledProcessError) as error:
                self._result["flushes"][each.name] = None
                print(f"   {each.name}: flushes not counted: {error}", flush=True)


def _rotated(active: Sequence[Contender], number: int) -> Iterator[Contender]:
    """All of them, beginning with another one each time: nobody always comes after the same one's leavings."""
    for place in range(len(active)):
        yield active[(place + number) % len(active)]
