"""Debian's ``containers-storage`` as the peer: its commands, and stores of it with many layers.

A store is filled by one real import, whose record in ``layers.json`` is then repeated under other IDs; the
directories of those layers are not made. That favours the peer: it reads and rewrites its records, and never meets
the directories.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass


def available() -> bool:
    """Whether it is there and may be used: it wants root."""
    return shutil.which("containers-storage") is not None and os.geteuid() == 0


FIRST = "first"   # the name of the layer that is real


@dataclass(frozen=True)
class Peer:
    """One store of the peer's at *root*."""

    root: str

    def command(self, verb: str, *arguments: str) -> list[str]:
        graph, run = os.path.join(self.root, "graph"), os.path.join(self.root, "run")
        return ["containers-storage", "--graph", graph, "--run", run, verb, *arguments]

    def run(self, verb: str, *arguments: str) -> float:
        """Seconds of the whole process."""
        begun = time.perf_counter()
        subprocess.run(self.command(verb, *arguments), check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - begun

    @property
    def records(self) -> str:
        return os.path.join(self.root, "graph", "overlay-layers", "layers.json")


def fill(root: str, count: int, tar: str) -> Peer:
    """A store with *count* layers, of which the one in *tar* is real."""
    os.makedirs(root)
    peer = Peer(root)
    peer.run("import-layer", "--name", FIRST, "--file", tar)
    with open(peer.records, encoding="utf-8") as file:
        records = json.load(file)
    for number in range(1, count):
        made = copy.deepcopy(records[0])
        made.pop("names", None)
        made["id"] = hashlib.sha256(f"id {number}".encode()).hexdigest()
        for key in ("compressed-diff-digest", "diff-digest"):
            made[key] = "sha256:" + hashlib.sha256(f"{key} {number}".encode()).hexdigest()
        records.append(made)
    with open(peer.records, "w", encoding="utf-8") as file:
        json.dump(records, file, separators=(",", ":"))
    return peer
