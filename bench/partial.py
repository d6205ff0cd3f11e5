"""The second image of a family, as zstd:chunked from a real registry: only what is missing, and all of it; and by skopeo.

Whole processes, in turn within each round, each into a new store on the private file system; for the partial pull the
store has the family's first image already. The registry is on loopback, where bytes cost nothing; ``--rate`` makes it a network
of so many megabits a second.
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
from bench.local_registry import narrow
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


@dataclass(frozen=True)
class _Way:
    label: str
    row: str                                 # whose environment it takes
    form: str
    command: Callable[[peers.Place, str], str]   # of a place and a reference
    first: str = ""                          # whether the first image is there, and how it was pulled: in parts, yes or no


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--family-rounds", type=int, help="paired rounds (default: 5)")
    parser.add_argument("--rate", type=int, metavar="MBIT", help="megabits a second of the loopback (default: what it can)")
    parser.add_argument("--maker", default="skopeo", metavar="SKOPEO", help="makes the images (default: %(default)s); one of "
                        "1.18 or later writes today's form, Debian 12's that of 2022")
    parser.add_argument("--tries", type=int, default=3, help="runs of one that strangers' load disturbs (default: %(default)s)")
    parser.add_argument("--disk-gib", type=float, default=16, help="size of the private file system (default: %(default)s)")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    rounds = options.family_rounds or (2 if options.quick else 5)
    machine.need_root()
    names = [("sample",), ("sample-newer",)] if options.quick else [("base", "small"), ("base", "newer")]
    first, second = (cached(options.cache, each) for each in names)
    every = {each.name: each for each in (*first, *second)}.values()
    size = int(sum(each.tar_size + 4096 * each.files for each in every) * 2)
    inodes = int(sum(each.files + each.directories for each in every) * 1.2)
    result: dict[str, Any] = {"rounds": rounds, "runs": [], "images": [_told(first), _told(second)]}
    if options.rate:
        with served(options.cache, first, second, options.maker):
            pass                             # made, if it was not there, without the narrow network
        narrow(options.rate)
        result["rate"] = options.rate
    with served(options.cache, first, second, options.maker) as family, private(options.cache, gib=options.disk_gib) as disk:
        result["family"] = {"made_by": family.made_by, "forms": {form: asdict(f) for form, f in family.forms.items()}}
        ways = {name: way for name, way in WAYS.items() if way.form in family.forms}
        for number in range(rounds):
            for name in ways:
                disk.room_for(size, inodes)
                run = clock.quiet(lambda n=name: _once(options, disk, family, n, result), options.tries)
                result["runs"].append({"way": name, "round": number, **{k: round(v, 4) for k, v in asdict(run).items()}})
                print(f"   family {number} {name:10s} {clock.line(run)}", flush=True)
            options.keep(result)
    return result


def _told(layers: list[Layer]) -> list[dict[str, Any]]:
    return [{"name": each.name, "made_of": each.made_of, "files": each.files, "tar_size": each.tar_size} for each in layers]


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
    walls = _by_round(result, "wall")
    for other, what in (("full", "our full pull"), ("skopeo", "skopeo's full pull")):
        wall = ratios.paired(walls.get("parts", {}), walls.get(other, {}))
        if wall is not None and not result["quick"]:
            found.append((f"a family's second image in parts / {what}", f"≤ {WALL}", spread(wall.median, wall.low, wall.high),
                          wall.median <= WALL))
    return found


def page(result: dict[str, Any], pictures: Path | None) -> str:
    del pictures
    family, fetched, rows = result["family"], result.get("fetched", {}), []
    walls, cpu = _by_round(result, "wall"), _by_round(result, "cpu")
    for name, way in WAYS.items():
        if name not in walls:
            continue
        got = [f"{counts[name]:,}" if name in counts else "–" for counts in (fetched, result.get("wire", {}))]
        rows.append((way.label, seconds(ratios.median(walls.get(name, {}))), seconds(ratios.median(cpu.get(name, {}))),
                     str(len(walls.get(name, {}))), *got))
    network = f"a network of {result['rate']} Mbit/s" if result.get("rate") else "loopback"
    images = "; the second: ".join(", ".join(f"`{each['name']}`" for each in image) for image in result["images"])
    marked = sum(run["marked"] for run in result["runs"])
    return ("## The second image of a family\n\n"
            f"zstd:chunked by {family['made_by']}, over {network}. The first: {images}. {marked} of {len(result['runs'])} runs were disturbed by "
            "foreign load.\n\n"
            + table(("layers of the second that the first has not", "bytes", "the least", "chunks", "tables", "headers"),
                    [(f"form of {form}", *(f"{n:,}" for n in (of["size"], of["least"], *of["least_of"].values())))
                     for form, of in family["forms"].items()]) + "\n"
            + table(("", "wall s", "processor s", "rounds", "bytes fetched", "over the wire"), rows) + "\n" + promised(targets(result)))


def _by_round(result: dict[str, Any], what: str) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for run in result["runs"]:
        found.setdefault(run["way"], {})[run["round"]] = run[what]
    return found
