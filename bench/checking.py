"""What a check costs: its content beside sha256sum, its structure with many layers, and a pull beside it.

The store holds real layers and its files are in the page cache, for both. Ours is the library's call in a process of its own;
only the call is timed. sha256sum is run by xargs with as many processes as the check has threads, over the same files.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import machine, ratios
from bench.layers import cached, image
from bench.store import stores
from bench.tables import promised, seconds, spread, table

if TYPE_CHECKING:
    from collections.abc import Iterator

LAYERS, PULLED = ("base", "small", "large"), "node"
AT_LEAST, AT_MOST_S, BESIDE = 0.8, 10.0, 1.5
_CHECK = """
import json, sys, time, layerstore
root, depth, workers = sys.argv[1:]
with layerstore.open(root, readonly=True) as store:
    begun = time.perf_counter()
    report = store.check(depth=depth, workers=int(workers))
    print(json.dumps({"s": time.perf_counter() - begun, "sound": report.sound, "layers": report.layers}))
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
    image = store.pull(reference)
    print(time.perf_counter() - begun)
    store.delete_image(image.id)
    store.checkpoint()
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check-rounds", type=int, help="paired rounds (default: 5)")
    parser.add_argument("--check-layers", type=int, help="in the store whose structure is checked (default: 20000)")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    rounds = options.check_rounds or (2 if options.quick else 5)
    count = options.check_layers or (300 if options.quick else 20_000)
    workers = os.cpu_count() or 1
    wanted = LAYERS[:1] if options.quick else LAYERS
    layers = cached(options.cache, [*wanted, PULLED])
    result: dict[str, Any] = {"workers": workers, "runs": [], "layers": [each.name for each in layers if each.name != PULLED]}
    with tempfile.TemporaryDirectory(dir=options.cache) as scratch:
        root = os.path.join(scratch, "store")
        reference = f"oci:{image(options.cache, [each for each in layers if each.name != PULLED], 'zstd')}:t"
        _python(f"import layerstore\nwith layerstore.open({root!r}) as s: s.pull({reference!r})")
        pulled = f"oci:{image(options.cache, [each for each in layers if each.name == PULLED], 'zstd')}:t"
        for number in range(rounds):
            found = {"sha256sum": _sha256sum(root, workers), "content": _check(root, "content", workers)["s"]}
            found["pull alone"] = _pull(root, pulled)
            with _checked_meanwhile(root):
                found["pull beside"] = _pull(root, pulled)
            result["runs"].append({name: round(value, 4) for name, value in found.items()})
            print(f"   check {number} " + "  ".join(f"{name} {value:.2f} s" for name, value in found.items()), flush=True)
            options.keep(result)
        large = stores.grow([count], scratch)[count]
        result["structure"] = {"layers": count, "runs": [round(_check(large, "structure", workers)["s"], 4) for _ in range(3)]}
    return result


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


def _pull(root: str, reference: str) -> float:
    return float(_python(_PULL, root, reference))


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
        middle = sorted(result["structure"]["runs"])[1]
        what = f"structure of {result['structure']['layers']:,} layers"
        found.append((what, f"≤ {AT_MOST_S:.0f} s", seconds(middle), middle <= AT_MOST_S))
    return found


def page(result: dict[str, Any], pictures: Path | None) -> str:
    del pictures
    names = ("sha256sum", "content", "pull alone", "pull beside")
    rows = [(name, seconds(ratios.median({n: run[name] for n, run in enumerate(result["runs"])}))) for name in names]
    return (
        f"## Checking\n\nA store with the layers {', '.join(result['layers'])}; {result['workers']} workers.\n\n"
        + promised(targets(result)) + "\n" + table(("what", "median"), rows)
    )
