"""What a writable sandbox costs: many of them mounted from one image, written to, committed, unmounted.

Beside it what the same costs without an overlay: a copy of the image's tree. All mounts are made in a child with a mount
namespace of its own, and are gone with it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import layerstore
from bench import machine
from bench.tables import table
from layerstore.system import kernel

FILES, SIZE = 5_000, 2_000
_OPENINGS = 10
_NEWNS, _PRIVATE = 0x20000, 0x4000 | 0x40000   # CLONE_NEWNS; MS_REC | MS_PRIVATE


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sandboxes", type=int, default=1_000, help="mounted at once (default: %(default)s)")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    machine.need_root()
    count = 40 if options.quick else options.sandboxes
    Path(options.cache).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.cache) as scratch:
        command = [sys.executable, "-m", "bench.forks", scratch, str(count)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {**json.loads(done.stdout), "count": count, "files": FILES}


def page(result: dict[str, Any], pictures: Path | None) -> str:
    rows = [(name, f"{each['wall']:.2f} ms", f"{each['cpu']:.2f} ms") for name, each in result["figures"].items()]
    taken = ", ".join(f"{what} {size:,} bytes" for what, size in result["bytes"].items())
    text = f"{result['count']:,} writable mounts of one image of {result['files']:,} files, all at once; medians for one of them.\n\n"
    return "## Sandboxes\n\n" + text + table(("what", "wall", "CPU"), rows) + f"\nOn disk: {taken}.\n"


# -- in the child ------------------------------------------------------------------------------------------------------


def forks(scratch: Path, count: int) -> dict[str, Any]:
    """Figures by what was done; the first and the last tenth of the mounts apart, to show whether many make it dearer."""
    kernel.unshare(_NEWNS)
    kernel.mount("none", "/", None, _PRIVATE, None)
    tree = scratch / "tree"
    for number in range(FILES):
        where = tree / f"{number // 100:03}"
        where.mkdir(parents=True, exist_ok=True)
        (where / f"{number:05}").write_bytes(os.urandom(SIZE))
    targets = [scratch / f"target{number:05}" for number in range(count)]
    for target in targets:
        target.mkdir()
    found: dict[str, list[tuple[float, float]]] = {}
    taken: dict[str, int] = {}
    with layerstore.open(scratch / "store") as store:
        with store.stage(layerstore.DirectoryDiffer(tree)) as staged:
            layer = store.apply_staged_layer(staged, names=["image"])

        def each(what: str, act: Callable[[Path], object], places: list[Path]) -> None:
            for place in places:
                found.setdefault(what, []).append(_timed(lambda place=place: act(place)))

        tenth = max(count // 10, 1)
        places = targets[:_OPENINGS]
        each("open with none mounted, a process each", lambda _: _opened(store.root), places)
        each("mount, the first tenth", lambda target: store.mount(layer.id, target, writable=True), targets[:tenth])
        each("mount, those between", lambda target: store.mount(layer.id, target, writable=True), targets[tenth:-tenth])
        each("mount, the last tenth", lambda target: store.mount(layer.id, target, writable=True), targets[-tenth:])
        each("open with all mounted, a process each", lambda _: _opened(store.root), places)
        each("write one file of 4 kB", lambda target: (target / "new").write_bytes(bytes(4096)), targets)
        taken["a sandbox with that file"] = _allocated(scratch / "store" / "uppers") // count
        each("commit to an image", store.commit, targets[:tenth])
        each("unmount and discard", store.unmount, targets)
        copies = [scratch / f"copy{number}" for number in range(3)]
        each("a copy instead: extract", lambda copy: store.extract("image", copy), copies)
        each("a copy instead: cp -a", lambda copy: subprocess.run(["cp", "-a", tree, copy / "again"], check=True), copies)
        taken["a copy"] = _allocated(copies[0] / "again")
        for copy in copies:
            shutil.rmtree(copy)
    figures = {what: dict(zip(("wall", "cpu"), map(statistics.median, zip(*runs, strict=True)), strict=True))
               for what, runs in found.items()}
    return {"figures": figures, "bytes": taken}


def _opened(root: str | os.PathLike[str]) -> None:
    """By somebody who has it open for the first time: what is mounted is looked at then."""
    code = "import sys, layerstore; layerstore.open(sys.argv[1]).close()"
    subprocess.run([sys.executable, "-c", code, root], check=True)


def _timed(act: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), _cpu()
    act()
    return (time.perf_counter() - wall) * 1e3, (_cpu() - cpu) * 1e3


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _allocated(path: Path) -> int:
    """Of each file once: a tree's hard links are one."""
    blocks = {(found.st_dev, found.st_ino): found.st_blocks for place, names, files in os.walk(path)
              for found in (os.lstat(os.path.join(place, each)) for each in (".", *names, *files))}
    return 512 * sum(blocks.values())


if __name__ == "__main__":
    print(json.dumps(forks(Path(sys.argv[1]), int(sys.argv[2]))))
