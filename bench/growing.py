"""What a store costs as it grows and while it is in use: commits, readers, recovery, a neighbour on the disk, start-up.

Only the frame: the work is the package ``bench.store``, which is also a program of its own (``python -m bench.store``).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import machine
from bench.store import page as store_page


def arguments(parser: argparse.ArgumentParser) -> None:
    del parser   # it has none here


def measure(options: argparse.Namespace) -> dict[str, Any]:
    Path(options.cache).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        figures = Path(scratch, "figures.json")   # not there yet: what is there is added to
        command = [sys.executable, "-m", "bench.store", "--json", str(figures), "--dir", options.cache,
                   *(["--small"] if options.quick else [])]
        here = str(Path(__file__).parent.parent)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))}
        if subprocess.run(command, env=environment, check=False).returncode != 0:
            raise machine.CannotError("python -m bench.store failed")
        return {"figures": json.loads(figures.read_text())}


def page(result: dict[str, Any], pictures: Path | None) -> str:
    """Its page as a section of this one: without its head, and every heading a step lower."""
    _head, _, rest = store_page.page(result["figures"]).partition("\n## ")
    return "## A store as it grows, and while it is in use\n" + f"\n## {rest}".replace("\n## ", "\n### ")
