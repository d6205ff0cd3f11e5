"""What a check costs: its content beside sha256sum, its structure with many layers, and a pull beside it.

On a file system of our own, which is made again for every pull: one into which was pulled and deleted before grows slower,
by more than a check beside it costs. So a store with the same layers is pulled anew each time, and settled. Who comes first
changes from round to round. The store's files are in the page cache, for all. Ours is the library's call in a process of
its own; only the call is timed. sha256sum is run by xargs with as many processes as the check has threads, over the same
files.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import clock, machine, ratios
from bench.disk import Disk, private
from bench.layers import Layer, cached, image
from bench.store import stores
from bench.tables import promised, seconds, spread, table

if TYPE_CHECKING:
    from collections.abc import Iterator

LAYERS, PULLED = ("base", "small", "large"), "node"
_FORM = "zstd"
AT_LEAST, AT_MOST_S, BESIDE = 0.8, 10.0, 1.5
_CHECK = """
import json, sys, time, layerstore
root, depth, workers = sys.argv[1:]
with layerstore.open(root, readonly=True) as store:
    begun, cpu = time.perf_counter(), time.process_time()
    report = store.check(depth=depth, workers=int(workers))
    print(json.dumps({"s": time.perf_counter() - begun, "cpu": time.process_time() - cpu, "sound": report.sound}))
"""
_FOR_EVER = """
import sys, layerstore
with layerstore.open(sys.argv[1], readonly=True) as store:
    while True:
        store.check(depth="content")
        print("again", flush=True)
"""
_PULL = """
import sys, time, layerstore
root, reference = sys.argv[1:]
with layerstore.open(root) as store:
    begun = time.perf_counter()
    store.pull(reference)
    print(time.perf_counter() - begun)
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check-rounds", type=int, help="paired rounds (default: 5)")
    parser.add_argument("--check-layers", type=int, help="in the store whose structure is checked (default: 20000)")
    parser.add_argument("--disk-gib", type=float, default=16, help="size of the private file system (default: %(default)s)")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    rounds = options.check_rounds or (2 if options.quick else 5)
    count = options.check_layers or (300 if options.quick else 20_000)
    workers = os.cpu_count() or 1
    machine.need_root()
    layers = {each.name: each for each in cached(options.cache, [*(LAYERS[:1] if options.quick else LAYERS), PULLED])}
    pulled = [layers.pop(PULLED)]
    kept, more = (_Image(options.cache, each) for each in ([*layers.values()], pulled))
    result: dict[str, Any] = {"workers": workers, "runs": [], "layers": list(layers)}
    with private(options.cache, gib=options.disk_gib) as disk:
        for number in range(rounds):
            found: dict[str, float] = {}
            for way in ("alone", "beside") if number % 2 == 0 else ("beside", "alone"):
                root = _fresh(disk, kept, more)
                if not found:
                    found |= _content(root, workers, ours_first=number % 2 == 1)
                with _checked_meanwhile(root) if way == "beside" else nullcontext():
                    found[f"pull {way}"] = float(_python(_PULL, root, more.reference))
            result["runs"].append({name: round(value, 4) for name, value in found.items()})
            print(f"   check {number} " + "  ".join(f"{name} {value:.2f} s" for name, value in found.items()), flush=True)
            options.keep(result)
        disk.make()
        large = stores.grow([count], disk.new())[count]
        disk.settle()
        runs = [_check(large, "structure", workers) for _ in range(3)]
    result["structure"] = {
        "layers": count, "runs": [round(run["s"], 4) for run in runs], "cpu": [round(run["cpu"], 4) for run in runs],
    }
    return result


class _Image:
    def __init__(self, cache: str, layers: list[Layer]) -> None:
        self.reference = f"oci:{image(cache, layers, _FORM)}:t"
        self.blobs = [each.blobs[_FORM].path for each in layers]


def _fresh(disk: Disk, kept: _Image, more: _Image) -> str:
    """A store with the layers of *kept* on a file system without a past; what will be read of *more* is in the page cache."""
    disk.make()
    root = os.path.join(disk.new(), "store")
    _python("import sys, layerstore\nwith layerstore.open(sys.argv[1]) as s: s.pull(sys.argv[2])", root, kept.reference)
    for blob in more.blobs:
        clock.warm(blob)
    disk.settle()
    return root


def _content(root: str, workers: int, *, ours_first: bool) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in ("content", "sha256sum") if ours_first else ("sha256sum", "content"):
        found[name] = _check(root, "content", workers)["s"] if name == "content" else _sha256sum(root, workers)
    return found


def _python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments], env=stores.environment(), check=True, capture_output=True, text=True,
    )
    return done.stdout


def _check(root: str, depth: str, workers: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_python(_CHECK, root, depth, str(workers)))
    if not found["sound"]:
        raise machine.CannotError(f"the store that was made is not sound at depth {depth}")
    return found


def _sha256sum(root: str, workers: int) -> float:
    begun = time.perf_counter()
    layers = shlex.quote(os.path.join(root, "layers"))
    subprocess.run(
        ["sh", "-c", f"find {layers}/*/diff -type f -print0 | xargs -0 -n 64 -P {workers} sha256sum >/dev/null"], check=True,
    )
    return time.perf_counter() - begun


@contextmanager
def _checked_meanwhile(root: str) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-P", "-c", _FOR_EVER, root], env=stores.environment(), stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()        # it is in the midst of its second
        yield
        if process.poll() is not None:
            raise machine.CannotError(f"the check beside the pull ended with {process.returncode}")
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _ratio(result: dict[str, Any], one: str, other: str) -> ratios.Ratio | None:
    runs = dict(enumerate(result["runs"]))
    return ratios.paired({n: run[one] for n, run in runs.items()}, {n: run[other] for n, run in runs.items()})


def targets(result: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    found: list[tuple[str, str, str, bool]] = []
    speed, beside = _ratio(result, "sha256sum", "content"), _ratio(result, "pull beside", "pull alone")
    if speed is not None:
        found.append(("speed of a content check / of sha256sum", f"≥ {AT_LEAST}", spread(speed.median, speed.low, speed.high),
                      speed.median >= AT_LEAST))
    if beside is not None:
        found.append(("a pull beside a content check / alone", f"≤ {BESIDE}", spread(beside.median, beside.low, beside.high),
                      beside.median <= BESIDE))
    if "structure" in result:
        middle = statistics.median(result["structure"]["runs"])
        what = f"structure of {result['structure']['layers']:,} layers"
        found.append((what, f"≤ {AT_MOST_S:.0f} s", seconds(middle), middle <= AT_MOST_S))
    return found


def page(result: dict[str, Any], pictures: Path | None) -> str:
    del pictures
    names = ("sha256sum", "content", "pull alone", "pull beside")
    rows = [(name, seconds(ratios.median({n: run[name] for n, run in enumerate(result["runs"])}))) for name in names]
    if "structure" in result:
        structure = result["structure"]
        for key, what in (("runs", "structure of {:,} layers"), ("cpu", "structure of {:,} layers, processor")):
            if key in structure:
                rows.append((what.format(structure["layers"]), seconds(statistics.median(structure[key]))))
    return (
        f"## Checking\n\nA store with the layers {', '.join(result['layers'])}; {result['workers']} workers. {PULLED} is what is "
        "pulled, each time into a store on a file system that was made for it; ratios are of the same round.\n\n"
        + promised(targets(result)) + "\n" + table(("what", "median, s"), rows)
    )
