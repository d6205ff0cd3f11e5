"""An image of five layers: pulled at once, and the same layers staged and applied one by one; and by its peers.

Both of ours are the product's own verbs in a process of three lines, durable as they are. The peers get the same OCI layout.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import clock, machine, peers, ratios, recipes
from bench.compiled import compiled
from bench.disk import Disk, private
from bench.layers import Layer, cached, image
from bench.tables import promised, seconds, spread, table

TARGET = 0.85
_PULL = """
import sys, layerstore
with layerstore.open(sys.argv[1]) as store:
    store.pull(sys.argv[2])
"""
_ONE_BY_ONE = """
import sys, layerstore
with layerstore.open(sys.argv[1]) as store:
    parent = None
    for path in sys.argv[2:]:
        with store.stage(layerstore.TarDiffer(path)) as staged:
            parent = store.apply_staged_layer(staged, parent=parent).id
"""


@dataclass(frozen=True)
class _Way:
    label: str
    contender: str                           # whose store and environment it takes
    command: Callable[[peers.Place], str]
    core: bool = False


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image-layers", nargs="+", choices=tuple(recipes.RECIPES), default=list(recipes.REAL),
                        metavar="LAYER", help="the image's, from below (default: all real ones)")
    parser.add_argument("--image-rounds", type=int, help="paired rounds (default: 5)")
    parser.add_argument("--tries", type=int, default=3, help="runs of one that strangers' load disturbs (default: %(default)s)")
    parser.add_argument("--disk-gib", type=float, default=16, help="size of the private file system (default: %(default)s)")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    rounds = options.image_rounds or (2 if options.quick else 5)
    machine.need_root()
    layers = cached(options.cache, options.image_layers)
    layout = image(options.cache, layers, "gzip")
    ways = _ways(layers, layout)
    rows = {each.name: each for each in peers.contenders().values()}
    missing = {name: rows[way.contender].missing() for name, way in ways.items()}
    result: dict[str, Any] = {
        "layers": [each.name for each in layers], "rounds": rounds, "runs": [],
        "ways": {name: {"label": way.label, "missing": missing[name]} for name, way in ways.items()},
    }
    size = int(sum(each.tar_size + 4096 * each.files for each in layers) * 1.3)
    inodes = int(sum(each.files + each.directories for each in layers) * 1.1)
    with private(options.cache, gib=options.disk_gib) as disk:
        for number in range(rounds):
            also = number == 0 and not options.quick
            active = [name for name, way in ways.items() if missing[name] is None and (way.core or also)]
            for name in active:
                row = rows[ways[name].contender]

                def attempt(way: _Way = ways[name], row: peers.Contender = row) -> clock.Run:
                    disk.room_for(size, inodes)   # of each try: for a round at once a small disk would not do
                    return _once(options, disk, layers, way, row)

                run = clock.quiet(attempt, options.tries)
                result["runs"].append({"way": name, "round": number, **{k: round(v, 4) for k, v in asdict(run).items()}})
                print(f"   image {number} {name:12s} {clock.line(run)}", flush=True)
    return result


def _ways(layers: list[Layer], layout: str) -> dict[str, _Way]:
    blobs = [each.blobs["gzip"].path for each in layers]

    def ours(code: str, *arguments: str) -> Callable[[peers.Place], str]:
        return lambda place: shlex.join([sys.executable, "-P", "-c", code, f"{place.path}/store", *arguments])

    return {
        "pull": _Way("layerstore, pulled at once", "ours", ours(_PULL, f"oci:{layout}:t"), core=True),
        "one by one": _Way("layerstore, one by one", "ours", ours(_ONE_BY_ONE, *blobs), core=True),
        "skopeo": _Way("skopeo copy oci: containers-storage:", "skopeo", lambda place: peers.skopeo_copy(place, layout)),
        "umoci": _Way("umoci raw unpack (into one directory)", "umoci", lambda place: peers.umoci_unpack(place, layout)),
    }


def _once(options: argparse.Namespace, disk: Disk, layers: list[Layer], way: _Way, row: peers.Contender) -> clock.Run:
    path = disk.new()
    place = peers.Place(path, os.path.join(disk.run, os.path.basename(path)), options.cache)
    row.prepare(place)
    for layer in layers:
        clock.warm(layer.blobs["gzip"].path)
    disk.settle()
    try:
        return clock.once(compiled(options.cache, "stopwatch"), way.command(place), peers.environment(place, row))
    finally:
        disk.settle()


def targets(result: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    walls = _walls(result)
    ratio = ratios.paired(walls.get("pull", {}), walls.get("one by one", {}))
    if ratio is None:
        return []
    return [("an image pulled at once / its layers one by one", f"≤ {TARGET}", spread(ratio.median, ratio.low, ratio.high),
             ratio.median <= TARGET)]


def page(result: dict[str, Any], pictures: Path | None) -> str:
    walls, rows = _walls(result), []
    for name, way in result["ways"].items():
        most = max((run["rss"] for run in result["runs"] if run["way"] == name), default=0.0)
        wall = f"**missing** ({way['missing']})" if way["missing"] else seconds(ratios.median(walls.get(name, {})))
        rows.append((way["label"], wall, str(len(walls.get(name, {}))), f"{most:.0f}" if most else "–"))
    made_of = ", ".join(f"`{each}`" for each in result["layers"])
    marked = sum(run["marked"] for run in result["runs"])
    return (f"## An image of {len(result['layers'])} layers\n\n{made_of}, gzip, warm. {marked} of {len(result['runs'])} runs were "
            "disturbed by foreign load.\n\n" + table(("", "wall s", "rounds", "peak memory, MiB"), rows) + "\n"
            + promised(targets(result)))


def _walls(result: dict[str, Any]) -> dict[str, dict[int, float]]:
    walls: dict[str, dict[int, float]] = {}
    for run in result["runs"]:
        walls.setdefault(run["way"], {})[run["round"]] = run["wall"]
    return walls
