"""What taking a file's content from another layer costs, by its size: cloned, or read and written; and copied in the kernel.

On file systems of our own. Processor time of this process, sync included, and bytes that reached the device. Whatever
the way, all content is hashed while it is taken; that is a part of each figure.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from crash.disk.kernel_calls import Loop, mount, own_mounts, unmount
from crash.taking import TakingDiffer

import layerstore
from bench import machine
from layerstore import TarDiffer
from layerstore.dedup import LayerFinder, places
from layerstore.testing.children import telling

_MKFS = {"ext4": ("mkfs.ext4", "-q", "-F"), "xfs": ("mkfs.xfs", "-q", "-f"), "btrfs": ("mkfs.btrfs", "-q", "-f")}
SHARING = ("xfs", "btrfs")
_ALL, _NEVER = 0, 1 << 62
_SECTOR, _WRITTEN = 512, 6   # of /sys/block/*/stat: its unit, and the field of sectors written
_PIECE = 1 << 20


def by_size(scratch: str, kind: str, sizes: list[int], total: int, rounds: int) -> list[dict[str, Any]]:
    """A layer of *total* bytes in files of each size, taken from one that is here: with clones, and without; in turn."""
    found = []
    for size in sizes:
        files = min(4_096, max(1, total // size))
        for number in range(rounds):
            for way, limit in (("cloned", _ALL), ("written", _NEVER)):
                cost = _in_child(scratch, kind, lambda d, s=size, f=files, n=limit: _take(*d, s, f, n))
                found.append({"kind": kind, "size": size, "files": files, "round": number, "way": way, **cost})
        print(f"   dedup {kind} {size} {found[-2]['cpu_s']:.3f} s cloned, {found[-1]['cpu_s']:.3f} s written", flush=True)
    return found


def copying(scratch: str, kind: str, sizes: list[int], total: int, rounds: int) -> list[dict[str, Any]]:
    """Files hashed and written, and hashed and copied by copy_file_range(2): nothing of the product, only the two ways."""
    found = []
    for size in sizes:
        files = min(4_096, max(1, total // size))
        for number in range(rounds):
            for way, copy in (("write", _written), ("copy_file_range", _copied)):
                cost = _in_child(scratch, kind, lambda d, s=size, f=files, c=copy: _copy(*d, s, f, c))
                found.append({"kind": kind, "size": size, "files": files, "round": number, "way": way, **cost})
    return found


def _take(directory: str, device: str, size: int, files: int, limit: int) -> dict[str, float]:
    tar = _tar(size, files)
    with layerstore.open(f"{directory}/store") as store, mock.patch.object(places, "CLONED_FROM", limit):
        with store.stage(TarDiffer(_tar(size, files, "elsewhere"))) as staged:
            store.apply_staged_layer(staged)
        differ = TakingDiffer(tar, LayerFinder(store._handle), ahead=False)
        written, before = _written_to(device), os.times()
        with store.stage(differ) as staged:
            store.apply_staged_layer(staged)
        after = os.times()
        if differ.fetched or bool(differ.cloned) != (limit == _ALL):
            raise AssertionError(f"{differ.cloned} cloned, {differ.taken} read, {differ.fetched} fetched")
        return {**_cost(before, after, _written_to(device) - written), "cloned": differ.cloned}


def _copy(directory: str, device: str, size: int, files: int, copy: Callable[[int, int, int], None]) -> dict[str, float]:
    rng = random.Random(size)
    for name in ("from", "to"):
        os.mkdir(f"{directory}/{name}")
    for number in range(files):
        with open(f"{directory}/from/{number}", "wb") as file:
            file.write(rng.randbytes(size))
    subprocess.run(["sync", "-f", directory], check=True)
    written, before = _written_to(device), os.times()
    for number in range(files):
        with open(f"{directory}/from/{number}", "rb", 0) as source, open(f"{directory}/to/{number}", "w+b", 0) as target:
            copy(source.fileno(), target.fileno(), size)
    after = os.times()
    subprocess.run(["sync", "-f", directory], check=True)
    return _cost(before, after, _written_to(device) - written)


def _written(source: int, target: int, size: int) -> None:
    digest = hashlib.sha256()
    for at in range(0, size, _PIECE):
        data = os.pread(source, _PIECE, at)
        digest.update(data)
        os.write(target, data)


def _copied(source: int, target: int, size: int) -> None:
    digest = hashlib.sha256()
    while size:
        size -= os.copy_file_range(source, target, size)
    at = 0
    while data := os.pread(target, _PIECE, at):   # what is hashed is what one has got
        digest.update(data)
        at += len(data)


def _cost(before: os.times_result, after: os.times_result, written: int) -> dict[str, float]:
    return {"cpu_s": round(after.user + after.system - before.user - before.system, 4), "written": written}


def _tar(size: int, files: int, below: str = "here") -> bytes:
    rng, out = random.Random(size), io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for number in range(files):
            info = tarfile.TarInfo(f"{below}/{number:06d}")
            info.size = size
            archive.addfile(info, io.BytesIO(rng.randbytes(size)))
    return out.getvalue()


def _written_to(device: str) -> int:
    with open(f"/sys/block/{os.path.basename(device)}/stat", encoding="ascii") as file:
        return int(file.read().split()[_WRITTEN]) * _SECTOR


def _in_child(scratch: str, kind: str, what: Callable[[tuple[str, str]], dict[str, float]]) -> dict[str, float]:
    machine.need(_MKFS[kind][0])

    def child() -> dict[str, float]:
        own_mounts()
        with _mounted(scratch, kind) as where:
            return what(where)

    return telling(child)


@contextmanager
def _mounted(scratch: str, kind: str) -> Iterator[tuple[str, str]]:
    with tempfile.TemporaryDirectory(dir=scratch) as work:
        path, target = os.path.join(work, "disk"), os.path.join(work, "mounted")
        os.mkdir(target)
        with open(path, "wb") as file:
            file.truncate(1 << 30)
        with Loop(path) as loop:
            subprocess.run([machine.which(_MKFS[kind][0]) or "", *_MKFS[kind][1:], loop.device], check=True, capture_output=True)
            mount(loop.device, target, kind)
            try:
                yield target, loop.device
            finally:
                unmount(target)
