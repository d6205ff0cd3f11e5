"""The physical bound of a layer on this machine: what nobody can do without, each done alone and as fast as is known here.

Decompressing in memory with the codec that the product has, sha256 of the blob and of the tar, and creating the files
in C (``c/create.c``) with nothing else about it. On *n* processors an unpacker cannot be faster than the sum of these
divided by *n*, nor than the longest of those that cannot be divided (decompressing, and each sha256). A durable one
cannot be faster than that and one syncfs.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.compiled import compiled
from bench.disk import Disk
from bench.layers import Layer
from layerstore.formats.compression import decompressed
from layerstore.model import Limits

_CHUNK = 1 << 20
_TIMES = 3


def bound(parts: dict[str, float], cpus: int) -> float:
    """Seconds, from the seconds of the parts: ``inflate``, ``sha_blob``, ``sha_tar``, ``create``."""
    alone = max(parts["inflate"], parts["sha_blob"], parts["sha_tar"])
    return max(alone, (parts["inflate"] + parts["sha_blob"] + parts["sha_tar"] + parts["create"]) / cpus)


def parts(disk: Disk, cache: str, layer: Layer) -> dict[str, dict[str, float]]:
    """By compression, the seconds of each part: the least of a few."""
    creating = _creating(disk, cache, layer)
    sha_tar = _hashing(layer.blobs["plain"].path)
    found = {}
    for compression, blob in layer.blobs.items():
        plain = compression == "plain"   # decompresses nothing, and its blob is its tar
        found[compression] = {
            "inflate": 0.0 if plain else _apart("inflate", blob.path),
            "sha_blob": 0.0 if plain else _apart("hash", blob.path),
            "sha_tar": sha_tar, **creating,
        }
    return found


def _apart(what: str, path: str) -> float:
    """In a process of its own: what this one holds in memory shall not matter."""
    command = [sys.executable, "-m", "bench.bound", what, path]
    here = str(Path(__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))}
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def _hashing(path: str) -> float:
    return _apart("hash", path)


def _creating(disk: Disk, cache: str, layer: Layer) -> dict[str, float]:
    listed = os.path.join(disk.run, "list")
    with open(listed, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.writelines(_entries(layer.blobs["plain"].path))
    times = []
    for _ in range(_TIMES):
        disk.room_for(layer.tar_size, layer.files + layer.directories)
        place = disk.new()
        disk.settle()
        told = subprocess.run([compiled(cache, "create"), listed], cwd=place, check=True, capture_output=True, text=True)
        times.append([float(each) for each in told.stdout.split()])
    return {"create": min(each[0] for each in times), "syncfs": min(each[1] for each in times)}


def _entries(path: str) -> Iterator[str]:
    """Lines for ``create``. A hard link counts as a symbolic one; what else there may be, for nothing."""
    with tarfile.open(path) as archive:
        for info in archive:
            if "\n" in info.name or "\t" in info.linkname:
                continue
            name = info.name.removeprefix("./")
            if info.isdir():
                yield f"d {name}\n"
            elif info.isreg():
                yield f"f {info.size} {name}\n"
            elif info.issym() or info.islnk():
                yield f"l {info.linkname}\t{name}\n"


def _least(what: str, path: str) -> float:
    data = Path(path).read_bytes()
    pieces = [data[start:start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    times = []
    for _ in range(_TIMES):
        begun = time.perf_counter()
        if what == "hash":
            digest = hashlib.sha256()
            for piece in pieces:
                digest.update(piece)
        else:
            for _chunk in decompressed(iter(pieces), limits=Limits()):
                pass
        times.append(time.perf_counter() - begun)
    return min(times)


if __name__ == "__main__":
    print(_least(*sys.argv[1:]))
