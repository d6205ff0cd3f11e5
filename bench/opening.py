"""What importing, opening and committing cost, against the number of layers in the store.

Only the frame: the work is ``bench/open_cost.py``, which is also a program of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import open_cost
from bench.tables import table


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store-layers", type=int, default=20_000, help="in the large store (default: %(default)s)")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    count = 1_000 if options.quick else options.store_layers
    Path(options.cache).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.cache) as scratch:
        command = [sys.executable, "-P", open_cost.__file__, "--json", "--layers", str(count), "--dir", scratch]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {"figures": json.loads(done.stdout)}


def page(result: dict[str, Any], pictures: Path | None) -> str:
    figures = result["figures"]
    count = f"{figures['layers']:,}"
    rows = [
        ("import", f"{figures['import_ms']:.1f} ms", ""),
        ("open an empty store", f"{figures['open_empty_ms']:.1f} ms", ""),
        (f"open a store of {count} layers", f"{figures['open_large_ms']:.1f} ms", ""),
        ("stage and apply among 10 layers", f"{figures['commit_10_ms']:.2f} ms", f"{figures['commit_10_bytes']:,.0f}"),
        (f"stage and apply among {count}", f"{figures['commit_large_ms']:.2f} ms", f"{figures['commit_large_bytes']:,.0f}"),
    ]
    return "## Opening a store\n\n" + table(("what", "median", "bytes written"), rows)
