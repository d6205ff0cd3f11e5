"""What one search among committed layers costs: as layers grow in number, as one grows, and without an index.

Processor time of this process. The content that is looked for is nowhere: that is the dearest search, because nothing
ends it but its bounds.
"""

from __future__ import annotations

import hashlib
import io
import os
import statistics
import tarfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import layerstore
from layerstore import LayerSpec, Store, TarDiffer
from layerstore.dedup import finder
from layerstore.dedup.candidates import candidates
from layerstore.formats.digests import Reader, prefixes
from layerstore.formats.manifest import read_manifest
from layerstore.formats.packed import open_regular
from layerstore.system import fs

_FILES, _SIZE = 8, 100       # of a layer: files, bytes of each
_WANTED = 2_000              # digests looked for
_BATCH = 200


def as_layers_grow(root: str, counts: Iterable[int], runs: int) -> list[dict[str, Any]]:
    """One search in a store of so many small layers: all of it, and its part that asks the catalog for candidates."""
    found = []
    wanted = [_digest(-1 - n) for n in range(_WANTED)]
    most = finder.Bounds().layers
    with layerstore.open(root) as store:
        here = 0
        for count in sorted(counts):
            _fill(store, here, count)
            here = count

            def search(store: Store = store) -> None:
                with finder.LayerFinder(store._handle).find(wanted) as places:
                    assert not places

            def ask(store: Store = store) -> None:
                with store._handle.read() as view:
                    candidates(view, (), None, most)

            found.append({"layers": count, "looked in": min(count, most), "search_s": _processor(search, runs),
                          "candidates_s": _processor(ask, runs)})
            print(f"   dedup search {found[-1]}", flush=True)
    return found


def as_a_layer_grows(root: str, files: int, runs: int) -> dict[str, Any]:
    """Looking through the index of one layer of so many files, and through its manifest, which says the same of files."""
    wanted = prefixes([_digest(-1 - n) for n in range(files)])
    with layerstore.open(root) as store:
        with store.stage(TarDiffer(_tar(range(files)))) as staged:
            layer = store.apply_staged_layer(staged)
        with fs.open_dir(layer.id, store._handle.dirs["layers"]) as tree_fd:
            def index() -> None:
                with Reader(tree_fd) as reader:
                    assert not list(reader.find(wanted))

            def manifest() -> None:
                with open_regular("manifest", tree_fd) as fd:
                    assert not [entry for entry in read_manifest(fd) if entry.sha256 in wanted]

            sizes = {name: os.stat(name, dir_fd=tree_fd).st_size for name in ("digests", "manifest")}
            found = {"files": files, "index_bytes": sizes["digests"], "manifest_bytes": sizes["manifest"],
                     "index_s": _processor(index, runs), "manifest_s": _processor(manifest, runs)}
    print(f"   dedup index {found}", flush=True)
    return found


def _processor(call: Callable[[], None], runs: int) -> float:
    """Median seconds of processor time, after one run that warms the caches."""
    call()
    times = []
    for _ in range(runs):
        begun = time.process_time()
        call()
        times.append(time.process_time() - begun)
    return statistics.median(times)


def _fill(store: Store, first: int, last: int) -> None:
    for start in range(first, last, _BATCH):
        staged = [store.stage(TarDiffer(_tar(range(_FILES * n, _FILES * (n + 1))))) for n in range(start, min(start + _BATCH, last))]
        store.apply_batch([LayerSpec(each) for each in staged])
    store.checkpoint(archive=True)


def _tar(numbers: Iterable[int]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for number in numbers:
            info = tarfile.TarInfo(f"some/directory/file-{number:07d}.txt")
            info.size = _SIZE
            archive.addfile(info, io.BytesIO(_content(number)))
    return out.getvalue()


def _content(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest() + b"." * (_SIZE - 32)


def _digest(number: int) -> bytes:
    return hashlib.sha256(_content(number)).digest()
