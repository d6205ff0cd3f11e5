"""What runs in processes of its own: filling, committing, reading, opening, and being killed half-way.

``python -m bench.store.worker VERB ROOT …``. Only the product's public interface is used, except where a comment says
why. Verbs print one line for each thing measured; those that go on wait for a line on standard input each time.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from typing import Any

import layerstore
from layerstore import LayerSpec, StageOptions, TarDiffer

MARK = "layerstore-bench-mark"
BATCH = 200
LONGEST = 15.0     # seconds that the slowest load may take
INTERVAL = 0.010   # seconds between the neighbour's calls


def layer(name: str) -> bytes:
    """The tar of a layer of one small file; every *name* makes another layer."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        data = name.encode().ljust(64)
        info = tarfile.TarInfo("file")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def mark(what: str) -> None:
    """A line in a trace: a look-up that finds nothing."""
    os.access(f"/{MARK}/{what}", os.F_OK)


def fill(root: str, first: str, last: str) -> None:
    with layerstore.open(root) as store:
        numbers = range(int(first), int(last))
        for start in range(0, len(numbers), BATCH):
            staged = [store.stage(TarDiffer(layer(f"layer {n}"))) for n in numbers[start:start + BATCH]]
            store.apply_batch([LayerSpec(each) for each in staged])


def checkpoint(root: str) -> None:
    with layerstore.open(root) as store:
        store.checkpoint(archive=True)


def _commit(store: Any, data: bytes) -> None:
    with store.stage(TarDiffer(data)) as staged:
        store.apply_staged_layer(staged)


def commit(root: str, salt: str) -> None:
    """For every line on standard input one stage and apply; its seconds."""
    with layerstore.open(root) as store:
        for number, _ in enumerate(sys.stdin):
            data = layer(f"{salt} {number}")
            begun = time.perf_counter()
            _commit(store, data)
            print(time.perf_counter() - begun, flush=True)


def commits(root: str, salt: str, count: str) -> None:
    """*count* of them between two marks, for a trace; the first one, which is not among them, warms up."""
    tars = [layer(f"{salt} {n}") for n in range(int(count) + 1)]
    with layerstore.open(root) as store:
        _commit(store, tars.pop())
        mark("begin")
        for data in tars:
            _commit(store, data)
        mark("end")


def write(root: str, salt: str) -> None:
    """Stage and apply without a pause until standard input ends; says when it has begun, and how many it made."""
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    number = 0
    with layerstore.open(root) as store:
        while not over.is_set():
            _commit(store, layer(f"{salt} {number}"))
            number += 1
            if number == 1:
                print("begun", flush=True)
    print(number, flush=True)


def spin(*_: str) -> None:
    """Use a core until standard input ends: what a writer does to a reader without any lock."""
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    print("begun", flush=True)
    while not over.is_set():
        sum(range(1000))
    print(0, flush=True)


def _reads(store: Any) -> dict[str, Callable[[str], Any]]:
    def opened(layer_id: str) -> None:
        with store.layer_paths(layer_id) as paths, open(os.path.join(paths[-1], "file"), "rb") as file:
            file.read()

    def exported(layer_id: str) -> None:
        with store.diff(layer_id) as chunks:
            for _ in chunks:
                pass

    return {
        "look-up": store.layer, "list": lambda _: store.layers(), "list images": lambda _: store.images(),
        "open a file": opened, "export": exported,
    }


def read(root: str, count: str) -> None:
    """*count* rounds of every way of reading between two marks; the seconds of each, as JSON."""
    with layerstore.open(root, readonly=True) as store:
        ids = [each.id for each in store.layers()]
        ways = _reads(store)
        taken: dict[str, list[float]] = {name: [] for name in ways}
        mark("begin")
        for number in range(int(count)):
            for name, way in ways.items():
                begun = time.perf_counter()
                way(ids[number * 7919 % len(ids)])
                taken[name].append(time.perf_counter() - begun)
        mark("end")
    print(json.dumps(taken))


def reopen(root: str) -> None:
    """The seconds of a writable open, recovery included, and how many things recovery did."""
    begun = time.perf_counter()
    store = layerstore.open(root)
    seconds = time.perf_counter() - begun
    print(json.dumps([seconds, len(store.recovery.actions)]))
    store.close()


class _Stuck:
    """A differ that unpacks, and then does not come back."""

    def __init__(self, data: bytes, arrived: threading.Semaphore) -> None:
        self._differ, self._arrived = TarDiffer(data), arrived
        self.content_key = None

    def apply_diff(self, target: Any) -> Any:
        self._differ.apply_diff(target)
        self._arrived.release()
        threading.Event().wait()


def killed_stages(root: str, salt: str, count: str) -> None:
    """Killed while *count* trees are being staged, each full, none synced."""
    store, arrived = layerstore.open(root), threading.Semaphore(0)
    for number in range(int(count)):
        differ = _Stuck(layer(f"{salt} {number}"), arrived)
        threading.Thread(target=store.stage, args=(differ,), daemon=True).start()
    for _ in range(int(count)):
        arrived.acquire()
    os.kill(os.getpid(), signal.SIGKILL)


def killed_applies(root: str, salt: str, count: str) -> None:
    """Killed when *count* layers are promised and none is in its place (by LAYERSTORE_FAULT at the first rename)."""
    with layerstore.open(root) as store:
        staged = [store.stage(TarDiffer(layer(f"{salt} {n}")), options=StageOptions()) for n in range(int(count))]
        store.apply_batch([LayerSpec(each) for each in staged])
    raise SystemExit("was to be killed at its first rename, and was not")


def stage_file(root: str, path: str) -> None:
    """Stage and apply the layer in a file, between two marks; when that began and ended, in monotonic seconds."""
    with layerstore.open(root) as store:
        mark("begin")
        begun = time.monotonic()
        with store.stage(TarDiffer(path)) as staged:
            store.apply_staged_layer(staged)
        ended = time.monotonic()
        mark("end")
    print(json.dumps([begun, ended]))


def fsync_each(directory: str, path: str) -> None:
    """What a tool does that makes every file durable by itself: unpack a tar, and fsync each file.

    Where flushes are slow it stops after a while: what it does to others it has done by then. The share of the tar's
    members that it came to, from 0 to 1.
    """
    begun = time.monotonic()
    with tarfile.open(path) as archive:
        members = archive.getmembers()
        for number, member in enumerate(members):
            if time.monotonic() - begun > LONGEST:
                print(number / len(members))
                return
            target = os.path.join(directory, member.name)
            if member.isdir():
                os.makedirs(target, exist_ok=True)
                continue
            source = archive.extractfile(member)
            assert source is not None
            with open(target, "wb") as file:
                file.write(source.read())
                file.flush()
                os.fsync(file.fileno())
    print(1.0)


def neighbour(path: str) -> None:
    """Every ten milliseconds append 4 KiB and fdatasync, until standard input ends: when each began, and its seconds."""
    over, taken = threading.Event(), []
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    print("begun", flush=True)
    while not over.is_set():
        begun = time.monotonic()
        os.write(fd, b"\0" * 4096)
        os.fdatasync(fd)
        taken.append([begun, time.monotonic() - begun])
        time.sleep(max(0.0, begun + INTERVAL - time.monotonic()))
    print(json.dumps(taken))


VERBS: dict[str, Callable[..., None]] = {
    each.__name__.replace("_", "-"): each
    for each in (fill, checkpoint, commit, commits, write, spin, read, reopen, killed_stages, killed_applies, stage_file,
                 fsync_each, neighbour)
}

if __name__ == "__main__":
    VERBS[sys.argv[1]](*sys.argv[2:])
