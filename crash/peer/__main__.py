"""``python -m crash.peer OUTDIR [--every N] [--work DIR]``: writes OUTDIR/peer.json and OUTDIR/peer.md.

The same layer, imported on the same parent, on the same file system, by two command lines; each killed whole before
every change that it makes to the disk. Needs root, and Debian's package containers-storage.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict

from crash.peer.compare import compare, made
from crash.peer.table import page
from crash.state import filesystem


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m crash.peer", description=(__doc__ or "").split("\n")[2])
    parser.add_argument("out")
    parser.add_argument("--every", type=int, default=1, help="before each n-th change only")
    parser.add_argument("--work", help="where the stores lie (default: the directory for temporary files)")
    options = parser.parse_args(argv)
    os.makedirs(options.out, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        fs = filesystem(work)
        subjects = []
        for subject in made(work):
            points = [asdict(point) for point in compare(subject, work, every=options.every)]
            subjects.append({
                "name": subject.name, "version": subject.version(), "verb": subject.verb,
                "repair": subject.repair_verb, "points": points,
            })
    found = {"fs": fs, "every": options.every, "subjects": subjects}
    with open(os.path.join(options.out, "peer.json"), "w", encoding="utf-8") as file:
        json.dump(found, file, indent=1)
    with open(os.path.join(options.out, "peer.md"), "w", encoding="utf-8") as file:
        file.write(page(found))
    print(page(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
