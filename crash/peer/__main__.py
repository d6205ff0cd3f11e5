"""``python -m crash.peer DIR [--every N] [--work DIR]``: writes DIR/peer.json; ``--page FILE``: the page of what is there.

The same layer, imported on the same parent, on the same file system, by two command lines; each killed whole before
every change that it makes to the disk. Needs root, and Debian's package containers-storage; the page needs neither.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from typing import Any

from crash.peer.compare import compare, made
from crash.peer.table import page
from crash.state import commit, filesystem


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m crash.peer", description=(__doc__ or "").split("\n")[2])
    parser.add_argument("out", help="the directory of peer.json")
    parser.add_argument("--every", type=int, default=1, help="before each n-th change only")
    parser.add_argument("--work", help="where the stores lie (default: the directory for temporary files)")
    parser.add_argument("--page", help="kill nothing: make the page of the peer.json that is there, to this file")
    options = parser.parse_args(argv)
    path = os.path.join(options.out, "peer.json")
    if not options.page:
        os.makedirs(options.out, exist_ok=True)
        save(run(options), path)
        return 0
    with open(path, encoding="utf-8") as file:
        text = page(json.load(file))
    with open(options.page, "w", encoding="utf-8") as file:
        file.write(text)
    return 0


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the comparison."""
    subjects = []
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        fs = filesystem(work)
        for subject in made(work):
            points = [asdict(point) for point in compare(subject, work, every=options.every)]
            subjects.append({
                "name": subject.name, "version": subject.version(), "verb": subject.verb,
                "repair": subject.repair_verb, "points": points,
            })
    return {"commit": commit(), "fs": fs, "every": options.every, "subjects": subjects}


def save(found: dict[str, Any], path: str) -> None:
    """As JSON, a line for each kill point."""
    subjects = [
        f"  {json.dumps({**each, 'points': []}, ensure_ascii=False)[:-2]}"
        + ",".join(f"\n   {json.dumps(point, ensure_ascii=False)}" for point in each["points"]) + "]}"
        for each in found["subjects"]
    ]
    head = json.dumps({**found, "subjects": []})[:-2]
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"{head}\n" + ",\n".join(subjects) + "\n]}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
