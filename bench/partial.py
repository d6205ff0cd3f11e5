"""The second image of a family, as zstd:chunked from a real registry: only what is missing, and all of it; and by skopeo.

Whole processes, in turn within each round, each into a new store on the private file system; for the partial pull the
store has the family's first image already. The registry is on loopback, where bytes cost nothing; ``network`` has the same
where they cost time.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import clock, machine, peers, ratios
from bench.compiled import compiled
from bench.disk import Disk, private
from bench.family import Family, served
from bench.layers import Layer, cached
from bench.tables import promised, seconds, spread, table

BYTES, WALL = 1.05, 0.4      # what is promised
_PULL = """
import dataclasses, json, os, socket, sys, layerstore
wire = []                                # bytes over sockets: of requests, headers and what is said of parts, too
def counting(what, call):
    def counted(self, *given):
        found = call(self, *given)
        wire.append(what(found, *given))
        return found
    return counted
socket.socket.recv_into = counting(lambda found, *_: found, socket.socket.recv_into)
socket.socket.sendall = counting(lambda _, data, *__: len(data), socket.socket.sendall)
root, reference, partial, out = sys.argv[1:]
options = layerstore.PullOptions(partial=partial == "yes", registry=layerstore.RegistryOptions(plain_http=True))
tally = layerstore.Tally()
with layerstore.open(root) as store:
    store.pull(reference, names=["family"], options=dataclasses.replace(options, replace_names=True), progress=tally)
with open(out, "w") as file:
    json.dump({"fetched": tally.total().fetched, "wire": sum(wire), "notes": [n for each in tally.layers().values() for n in each.notes]}, file)
"""


Pair = tuple[list[Layer], list[Layer]]


@dataclass(frozen=True)
class _Way:
    label: str
    row: str                                 # whose environment it takes
    form: str
    command: Callable[[peers.Place, str], str]   # of a place and a reference
    first: str = ""                          # whether the first image is there, and how it was pulled: in parts, yes or no


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--family-rounds", type=int, help="paired rounds (default: 5)")
    parser.add_argument("--maker", default="skopeo", metavar="SKOPEO", help="makes the images (default: %(default)s); one of "
                        "1.18 or later writes today's form, Debian 12's that of 2022")
    parser.add_argument("--tries", type=int, default=3, help="runs of one that strangers' load disturbs (default: %(default)s)")
    parser.add_argument("--disk-gib", type=float, default=16, help="size of the private file system (default: %(default)s)")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    rounds = options.family_rounds or (2 if options.quick else 5)
    pair = images(options)
    result: dict[str, Any] = {"rounds": rounds, "runs": [], "images": told_of(pair)}
    with served(options.cache, *pair, options.maker) as family, private(options.cache, gib=options.disk_gib) as disk:
        result["family"] = facts(family)
        for number in range(rounds):
            for name in [name for name, way in WAYS.items() if way.form in family.forms]:
                result["runs"].append({"way": name, "round": number, **run_of(options, disk, family, name, pair, result)})
            options.keep(result)
    return result


def images(options: argparse.Namespace) -> Pair:
    """The layers of the family's first and second image. CannotError without root, which the rest needs."""
    machine.need_root()
    first, second = [("sample",), ("sample-newer",)] if options.quick else [("base", "small"), ("base", "newer")]
    return cached(options.cache, first), cached(options.cache, second)


def told_of(pair: Pair) -> list[list[dict[str, Any]]]:
    """What a result says of them."""
    return [[{"name": each.name, "made_of": each.made_of, "files": each.files, "tar_size": each.tar_size} for each in layers]
            for layers in pair]


def facts(family: Family) -> dict[str, Any]:
    """What a result says of the family in the registry."""
    return {"made_by": family.made_by, "forms": {form: asdict(f) for form, f in family.forms.items()}}


def run_of(
    options: argparse.Namespace, disk: Disk, family: Family, name: str, pair: Pair, result: dict[str, Any],
) -> dict[str, Any]:
    """One run of a way, as quiet as *options* may try for; what it fetched goes into *result*."""
    every = {each.name: each for layers in pair for each in layers}.values()
    size = int(sum(each.tar_size + 4096 * each.files for each in every) * 2)
    inodes = int(sum(each.files + each.directories for each in every) * 1.2)

    def attempt() -> clock.Run:
        disk.room_for(size, inodes)          # of each try
        return _once(options, disk, family, name, result)

    run = clock.quiet(attempt, options.tries)
    print(f"   family {name:10s} {clock.line(run)}", flush=True)
    return {key: round(value, 4) for key, value in asdict(run).items()}


def _pull(place: peers.Place, reference: str, partial: str) -> str:
    return shlex.join([sys.executable, "-P", "-c", _PULL, f"{place.path}/store", reference, partial, f"{place.run}/told"])


def _skopeo(place: peers.Place, reference: str) -> str:
    store = f"[overlay@{place.path}/graph+{place.run}/run]"
    return shlex.join(["skopeo", "--insecure-policy", "--tmpdir", place.path, "copy", "-q", "--src-tls-verify=false",
                       reference, f"containers-storage:{store}localhost/family:t"])


WAYS = {
    "parts": _Way("layerstore, what is missing", "ours", "today", lambda p, r: _pull(p, r, "yes"), first="yes"),
    # who pulled the first as a whole knows its files, not their chunks, as of one that came as a plain tar
    "parts-plain": _Way("layerstore, what is missing, the first not in parts", "ours", "today", lambda p, r: _pull(p, r, "yes"), first="no"),
    "parts-2022": _Way("layerstore, what is missing of the form of 2022", "ours", "2022", lambda p, r: _pull(p, r, "yes"), first="yes"),
    "full": _Way("layerstore, all of it", "ours", "today", lambda p, r: _pull(p, r, "no")),
    "skopeo": _Way("skopeo copy docker: containers-storage:", "skopeo", "today", _skopeo),
}


def _once(options: argparse.Namespace, disk: Disk, family: Family, name: str, result: dict[str, Any]) -> clock.Run:
    way, path = WAYS[name], disk.new()
    place = peers.Place(path, os.path.join(disk.run, os.path.basename(path)), options.cache)
    row = peers.contenders()[way.row]
    row.prepare(place)
    nobody = Path(place.run, "auth.json")
    nobody.write_text("{}")              # who asks a registry reads it, and an empty file is an error to skopeo
    environment = {**peers.environment(place, row), "REGISTRY_AUTH_FILE": str(nobody)}
    if way.first:
        subprocess.run(["/bin/sh", "-c", _pull(place, family.reference(way.form, "first"), way.first)], env=environment, check=True)
    disk.settle()
    try:
        run = clock.once(compiled(options.cache, "stopwatch"), way.command(place, family.reference(way.form, "second")), environment)
    finally:
        disk.settle()
    if way.row == "ours":
        told = json.loads(Path(place.run, "told").read_text())
        result.setdefault("fetched", {})[name] = told["fetched"]
        result.setdefault("wire", {})[name] = told["wire"]
        result.setdefault("notes", {})[name] = told["notes"]
    return run


def targets(result: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """Of a quick run only the bytes: a second image of a few kilobytes is all start-up."""
    found = []
    for name in ("parts", "parts-plain", "parts-2022"):
        form = WAYS[name].form + (", the first as a whole" if WAYS[name].first == "no" else "")
        for what, said in (("fetched", "bytes of blobs fetched"), ("wire", "bytes over the wire")):
            if name in result.get(what, {}):
                ratio = result[what][name] / result["family"]["forms"][WAYS[name].form]["least"]
                found.append((f"{said} / the least, form of {form}", f"≤ {BYTES}", f"{ratio:.3f}", ratio <= BYTES))
    walls = by_round(result, "wall")
    return found if result["quick"] else [*found, *wall_targets(walls)]


def wall_targets(walls: dict[str, dict[int, float]], where: str = "") -> list[tuple[str, str, str, bool]]:
    """What is promised of the time of a pull in parts, from the times of each way by round; *where* it was measured."""
    found = []
    for other, what in (("full", "our full pull"), ("skopeo", "skopeo's full pull")):
        wall = ratios.paired(walls.get("parts", {}), walls.get(other, {}))
        if wall is not None:
            found.append((f"a family's second image in parts / {what}{where}", f"≤ {WALL}",
                          spread(wall.median, wall.low, wall.high), wall.median <= WALL))
    return found


def page(result: dict[str, Any], pictures: Path | None) -> str:
    del pictures
    family, fetched, rows = result["family"], result.get("fetched", {}), []
    walls, cpu = by_round(result, "wall"), by_round(result, "cpu")
    for name, way in WAYS.items():
        if name not in walls:
            continue
        got = [f"{counts[name]:,}" if name in counts else "–" for counts in (fetched, result.get("wire", {}))]
        rows.append((way.label, seconds(ratios.median(walls.get(name, {}))), seconds(ratios.median(cpu.get(name, {}))),
                     str(len(walls.get(name, {}))), *got))
    images = "; the second: ".join(", ".join(f"`{each['name']}`" for each in image) for image in result["images"])
    marked = sum(run["marked"] for run in result["runs"])
    return ("## The second image of a family\n\n"
            f"zstd:chunked by {family['made_by']}, over loopback. The first: {images}. {marked} of {len(result['runs'])} runs were disturbed by "
            "foreign load.\n\n"
            + table(("layers of the second that the first has not", "bytes", "the least", "chunks", "tables", "headers"),
                    [(f"form of {form}", *(f"{n:,}" for n in (of["size"], of["least"], *of["least_of"].values())))
                     for form, of in family["forms"].items()]) + "\n"
            + table(("", "wall s", "processor s", "rounds", "bytes fetched", "over the wire"), rows) + "\n" + promised(targets(result)))


def by_round(result: dict[str, Any], what: str) -> dict[str, dict[int, float]]:
    """Of each way: that figure of each round."""
    found: dict[str, dict[int, float]] = {}
    for run in result["runs"]:
        found.setdefault(run["way"], {})[run["round"]] = run[what]
    return found
