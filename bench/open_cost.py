"""What importing, opening and committing cost, against the number of layers in the store.

Prints medians of whole processes for importing and opening (a clean store, after a checkpoint), and in-process
medians for one commit. ``python bench/open_cost.py [--layers 20000] [--dir DIR] [--json]``
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import layerstore
from layerstore import LayerSpec, TarDiffer


def layer(number: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo(f"file-{number}")
        info.size = 8
        archive.addfile(info, io.BytesIO(number.to_bytes(8, "big")))
    return out.getvalue()


def fill(root: Path, count: int) -> None:
    with layerstore.open(root) as store:
        for start in range(0, count, 200):
            staged = [store.stage(TarDiffer(layer(n))) for n in range(start, min(start + 200, count))]
            store.apply_batch([LayerSpec(each) for each in staged])
        store.checkpoint(archive=True)


def process(code: str, *arguments: str, runs: int) -> list[float]:
    """Seconds that *code* says it took, each in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}   # as an installed one is

    def once() -> float:
        command = [sys.executable, "-c", code, *arguments]
        return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)

    once()   # warms the caches
    return [once() for _ in range(runs)]


IMPORT = "import time; a = time.perf_counter(); import layerstore.store; print(time.perf_counter() - a)"
OPEN = """
import sys, time, layerstore.store as s
a = time.perf_counter(); store = s.open(sys.argv[1]); print(time.perf_counter() - a); store.close()
"""


def commit(root: Path, base: int, runs: int) -> tuple[float, int]:
    """Median seconds of stage + apply of one small layer, and bytes that one hands to write calls (journal and tree)."""
    times = []
    with layerstore.open(root) as store:
        def written() -> int:
            return int(next(x for x in open("/proc/self/io") if x.startswith("wchar")).split()[1])

        before = written()
        for number in range(runs):
            begun = time.perf_counter()
            with store.stage(TarDiffer(layer(base + number))) as staged:
                store.apply_staged_layer(staged)
            times.append(time.perf_counter() - begun)
        return statistics.median(times), (written() - before) // runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--dir", help="where to work; the file system matters")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: dict[str, float] = {"layers": options.layers}
    with tempfile.TemporaryDirectory(dir=options.dir) as scratch:
        small, large = Path(scratch, "small"), Path(scratch, "large")
        fill(small, 10)
        begun = time.perf_counter()
        fill(large, options.layers)
        found["fill_s"] = time.perf_counter() - begun
        layerstore.open(Path(scratch, "empty")).close()
        found["import_ms"] = 1e3 * statistics.median(process(IMPORT, runs=options.runs))
        # in turn, so that a drifting machine does not favour one
        opens: dict[str, list[float]] = {"empty": [], "large": []}
        for _ in range(options.runs):
            for name in opens:
                opens[name] += process(OPEN, os.path.join(scratch, name), runs=1)
        found["open_empty_ms"] = 1e3 * statistics.median(opens["empty"])
        found["open_large_ms"] = 1e3 * statistics.median(opens["large"])
        for name, root, base in (("10", small, 1 << 30), ("large", large, 1 << 40)):
            seconds, size = commit(root, base, 40)
            found[f"commit_{name}_ms"], found[f"commit_{name}_bytes"] = 1e3 * seconds, size
    if options.json:
        print(json.dumps(found))
        return
    print(f"import layerstore            {found['import_ms']:8.1f} ms")
    print(f"open an empty store          {found['open_empty_ms']:8.1f} ms")
    print(f"open {options.layers:6d} layers, clean   {found['open_large_ms']:8.1f} ms")
    print(f"stage + apply among 10       {found['commit_10_ms']:8.2f} ms   {found['commit_10_bytes']:.0f} bytes written")
    print(f"stage + apply among {options.layers:6d}   {found['commit_large_ms']:8.2f} ms   "
          f"{found['commit_large_bytes']:.0f} bytes written")


if __name__ == "__main__":
    main()
