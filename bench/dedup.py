"""What de-duplication costs: a search among many layers, and taking a file by a clone, by writing, or by copy_file_range.

Processor time and bytes, so it can be run beside other work. docs/dedup.md says what was decided by it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from bench import dedup_search, dedup_taking, machine
from bench.tables import table

_COUNTS, _QUICK_COUNTS = (10, 1_000, 20_000), (10, 300)
_SIZES, _QUICK_SIZES = [1 << n for n in (12, 14, 16, 18, 20, 22)], [1 << 14, 1 << 18]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dedup-runs", type=int, help="of each search and each way of taking (default: 5)")
    parser.add_argument("--dedup-megabytes", type=int, default=64, help="taken at once (default: %(default)s)")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    machine.need_root()
    runs = options.dedup_runs or (2 if options.quick else 5)
    sizes, total = _QUICK_SIZES if options.quick else _SIZES, options.dedup_megabytes << 20
    result: dict[str, Any] = {}
    Path(options.cache).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.cache) as scratch:
        result["index"] = dedup_search.as_a_layer_grows(f"{scratch}/one", 500 if options.quick else 20_000, runs)
        result["taking"] = [
            row for kind in dedup_taking.SHARING for row in dedup_taking.by_size(scratch, kind, sizes, total, runs)
        ]
        result["copying"] = [
            row for kind in ("ext4", *dedup_taking.SHARING) for row in dedup_taking.copying(scratch, kind, sizes, total, runs)
        ]
        options.keep(result)
        counts = _QUICK_COUNTS if options.quick else _COUNTS
        result["search"] = dedup_search.as_layers_grow(f"{scratch}/many", counts, runs)
    return result


def page(result: dict[str, Any], pictures: Path | None) -> str:
    """Tables of the search, of the index, and of both ways of each size."""
    del pictures
    text = "## De-duplication\n\n"
    if "search" in result:
        rows = [(f"{each['layers']:,} layers", f"{each['looked in']:,}", f"{1e3 * each['search_s']:.1f}",
                 f"{1e3 * each['candidates_s']:.1f}") for each in result["search"]]
        text += table(("a search that finds nothing, in", "looked in", "processor ms", "of that for the order"), rows) + "\n"
    index = result["index"]
    ratio = index["manifest_s"] / index["index_s"]
    both = [("its index", f"{index['index_bytes']:,}", f"{1e3 * index['index_s']:.2f}"),
            ("its manifest", f"{index['manifest_bytes']:,}", f"{1e3 * index['manifest_s']:.2f}")]
    text += table((f"one layer of {index['files']:,} files, looked for {index['files']:,} digests in", "bytes", "processor ms"), both)
    text += f"\nThe manifest takes {ratio:.0f} times as long.\n\n"
    text += _ways(result["taking"], "cloned", "written", "a layer taken from another one")
    return text + "\n" + _ways(result["copying"], "copy_file_range", "write", "files hashed and copied, without the product")


def _ways(found: list[dict[str, Any]], one: str, other: str, what: str) -> str:
    rows = []
    for kind, size in dict.fromkeys((each["kind"], each["size"]) for each in found):
        here = [each for each in found if (each["kind"], each["size"]) == (kind, size)]
        cells = []
        for way in (one, other):
            of_way = [each for each in here if each["way"] == way]
            cells += [f"{1e6 * statistics.median(each['cpu_s'] for each in of_way) / here[0]['files']:.0f}",
                      f"{statistics.median(each['written'] for each in of_way) / here[0]['files'] / 1024:.1f}"]
        rows.append((f"{kind}, {size >> 10} KiB", *cells))
    return table((f"{what}: each file", f"{one}, processor µs", "KiB written", f"{other}, processor µs", "KiB written"), rows)
