"""Measure 1: what one commit costs against the number of layers in the store, ours and the peer's.

Ours: stage and apply of a layer of one small file, in a process that has the store open. One worker waits per store,
and each round asks every one for a commit: what drifts, drifts for all. The peer has no process that stays: its
``import-layer`` and ``create-layer`` are timed as whole processes in the same rounds, and so is ``exists``, which
starts, reads the same records and ends; the difference is about what the commit itself costs.
Bytes and flushes are counted by strace in runs of their own.
"""

from __future__ import annotations

import os
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from crash.strace import SYNCS, WRITES

from bench.store import peer, stores, tracing, worker
from bench.store.figures import paired_ratio, summary

_COUNTED = {*SYNCS, *WRITES, "openat"}
_TRACED = 12      # commits: some of them split pages and some do not
_PEER_EVERY = 6   # rounds of ours to one of the peer's, which are slow


class Asked:
    """A worker that makes one commit whenever it is asked."""

    def __init__(self, root: str) -> None:
        self._process = subprocess.Popen(
            stores.worker("commit", root, f"asked {root}"), env=stores.environment(), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, bufsize=1)

    def commit(self) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        return float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


@contextmanager
def _asked(roots: dict[int, str]) -> Iterator[dict[int, Asked]]:
    workers = {size: Asked(root) for size, root in roots.items()}
    try:
        yield workers
    finally:
        for each in workers.values():
            each.close()


def measure(roots: dict[int, str], where: str, *, rounds: int, peer_sizes: Sequence[int]) -> dict[str, Any]:
    """The figures for the stores in *roots*; the peer's are made in *where*."""
    tar = os.path.join(where, "one-file.tar")
    with open(tar, "wb") as file:
        file.write(worker.layer("of the peer"))
    theirs = {n: peer.fill(os.path.join(where, f"peer-{n}"), n, tar) for n in peer_sizes} if peer.available() else {}
    counted = {size: count(root) for size, root in roots.items()}
    counted_theirs = {size: count_peer(each, tar) for size, each in theirs.items()}
    taken: dict[int, list[float]] = {size: [] for size in roots}
    verbs = {"import-layer": ("--file", tar), "create-layer": (), "exists": ("--layer", peer.FIRST)}
    peers: dict[int, dict[str, list[float]]] = {size: {verb: [] for verb in verbs} for size in theirs}
    with _asked(roots) as workers:
        for each in workers.values():
            each.commit()   # warms up
        for number in range(rounds):
            for size, each in workers.items():
                taken[size].append(each.commit())
            for size, other in theirs.items() if number % _PEER_EVERY == 0 else ():
                for verb, arguments in verbs.items():
                    peers[size][verb].append(other.run(verb, *arguments))
    least, greatest = min(roots), max(roots)
    return {
        "ours": {str(size): {"seconds": summary(taken[size]), **counted[size]} for size in roots},
        "ratio": paired_ratio(taken[greatest], taken[least]), "ratio_of": [least, greatest],
        "peer": {str(size): {**_peer_figures(peers[size]), **counted_theirs[size]} for size in theirs},
    }


def _peer_figures(taken: dict[str, list[float]]) -> dict[str, Any]:
    figures: dict[str, Any] = {verb: summary(samples) for verb, samples in taken.items()}
    for verb in ("import-layer", "create-layer"):
        figures[f"{verb} less exists"] = statistics.median(
            a - b for a, b in zip(taken[verb], taken["exists"], strict=True))
    return figures


def count(root: str) -> dict[str, Any]:
    """Bytes written and flushes of one commit in the store at *root*, on average over some."""
    calls, _ = tracing.run(stores.worker("commits", root, f"counted {root}", _TRACED), _COUNTED, env=stores.environment())
    return _each(tracing.work(calls, root), _TRACED)


def count_peer(other: peer.Peer, tar: str) -> dict[str, Any]:
    """The same of one import-layer of the peer's."""
    calls, _ = tracing.run(other.command("import-layer", "--file", tar), _COUNTED)
    return _each(tracing.work(calls, other.root), 1)


def _each(done: tracing.Work, count: int) -> dict[str, Any]:
    return {
        "journal_bytes": done.journal_bytes / count, "other_bytes": done.other_bytes / count,
        "flushes": {name: number / count for name, number in sorted(done.flushes.items())},
    }
