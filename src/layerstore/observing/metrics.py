"""Metrics by prometheus_client (the extra ``metrics``), which this module, ``watched`` and ``textfile`` alone import.

An observer that counts, and a text page for a program that serves one. What stores' gauges show is ``watched``'s, what
node_exporter reads ``textfile``'s. Names begin with ``layerstore_``; docs/observing.md lists them.
"""

from __future__ import annotations

import os
import time
from threading import Lock
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from layerstore.observing.textfile import CHECK_COMPLETE, CHECK_ENDED, CHECK_LAYERS, FINDINGS, Textfile
from layerstore.observing.watched import Gauged, Labelled, Together, Watched, label

__all__ = ["Metrics"]

BARRIER_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
VERB_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 1_800)


class Metrics:
    """An observer that counts. ``registry`` holds the metrics; give one of your own to have them beside others.

    One object may be the observer of several stores of a process, and all of them are counted together. Give *store*, the
    store's directory, to have that as a label of all: then the metrics of several stores of a machine can be told apart.
    ValueError if the registry has metrics with the same label, or none, already.
    """

    def __init__(self, registry: CollectorRegistry | None = None, *, store: str | None = None) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        self._own = CollectorRegistry()
        ours = Labelled(self._own, {} if store is None else {"store": label(store)})
        self._together = Together.of(self.registry)
        self._together.count(store, ours)
        self._textfile = Textfile(self.registry, ours)
        self._poisoned_roots: set[str] = set()
        self._make_counters()
        self._make_gauges()

    def _make_counters(self) -> None:
        registry = self._own
        self.barriers = Histogram(
            "layerstore_barrier_seconds", "Syncs and durable commits, by the fault point that they pass.", ["name"],
            buckets=BARRIER_SECONDS, registry=registry,
        )
        self.verbs = Histogram(
            "layerstore_verb_seconds", "Calls of the store, by verb and the error's class (empty: none).",
            ["verb", "error"], buckets=VERB_SECONDS, registry=registry,
        )
        self.transitions = Counter(
            "layerstore_transitions", "Durable changes of state.", ["kind", "trigger", "state"], registry=registry,
        )
        self.layers = Counter(
            "layerstore_layers", "Layers that were staged, adopted, applied, found, deleted.", ["what"], registry=registry,
        )
        self.bytes = Counter(
            "layerstore_layer_bytes", "Bytes of those layers' uncompressed tars.", ["what"], registry=registry,
        )
        self.blob_bytes = Counter(
            "layerstore_blob_bytes", "Bytes of the blobs that layers were staged from.", registry=registry,
        )
        self.recovery = Counter("layerstore_recovery_actions", "What recovery did.", ["action"], registry=registry)

    def _make_gauges(self) -> None:
        """Without a registry: each gets into it when it is first set, so that none says 0 of what is not known."""
        self.head = Gauge("layerstore_journal_head", "The journal's last record that was seen.", registry=None)
        self.low_water = Gauge(
            "layerstore_journal_low_water", "The record up to which recovery need not look back.", registry=None,
        )
        self.recovered = Gauge(
            "layerstore_recovery_seconds", "How long the last opening's recovery took.", registry=None,
        )
        self.poisoned = Gauge(
            "layerstore_poisoned", "1 after a sync or commit failed: open the store again.", registry=None,
        )
        self.findings = Gauge(
            FINDINGS, "Findings of the last check at this depth, by code; 0 for those of earlier ones that are gone.",
            ["depth", "code"], registry=None,
        )
        self.check_layers = Gauge(
            CHECK_LAYERS, "The last check's layers: looked_at, recent, left, left_unsound.",
            ["depth", "what"], registry=None,
        )
        self.check_ended = Gauge(
            CHECK_ENDED, "When the last check at this depth ended.", ["depth"], registry=None,
        )
        self.check_complete = Gauge(
            CHECK_COMPLETE,
            "Every layer was looked at, at this depth, since then; 0: some never.", ["depth"], registry=None,
        )
        self._shown: set[Gauge] = set()
        self._lock = Lock()

    def _show(self, gauge: Gauge, value: float, *labels: str) -> None:
        (gauge.labels(*labels) if labels else gauge).set(value)
        with self._lock:
            if gauge not in self._shown:
                self._own.register(gauge)
                self._shown.add(gauge)

    def watch(self, store: Watched) -> None:
        """Show gauges of *store*, too, read whenever the metrics are: its disk, damage, what is in flight, its journal.

        They have the label ``store``, its root, and take the place of those of another handle of it. After it is closed, or
        if it cannot be read, ``layerstore_up`` is 0 and the others are not there. *store* is a ``layerstore.Store``, or
        what has its ``root`` and ``gauges``.
        """
        self._together.read(store.root, Gauged(store))

    def event(self, what: str, **fields: Any) -> None:
        if self._textfile.forked:
            self._textfile.leave_to_the_parent()
        tell = getattr(self, f"_{what.replace('-', '_')}", None)
        if tell is not None:
            tell(fields)

    def _barrier(self, fields: dict[str, Any]) -> None:
        self.barriers.labels(fields["name"]).observe(fields["seconds"])

    def _verb_ended(self, fields: dict[str, Any]) -> None:
        self.verbs.labels(fields["verb"], fields["error"] or "").observe(fields["seconds"])

    def _transition(self, fields: dict[str, Any]) -> None:
        self.transitions.labels(fields["kind"], fields["trigger"], fields["state"]).inc()
        self._show(self.head, fields["seq"])

    def _recovery(self, fields: dict[str, Any]) -> None:
        self.recovery.labels(fields["action"]).inc()

    def _opened(self, fields: dict[str, Any]) -> None:
        self._show(self.recovered, fields["seconds"])
        if not fields["readonly"]:   # that alone ends it, of this store
            self._poisoned_roots.discard(fields["root"])
            self._show(self.poisoned, 1 if self._poisoned_roots else 0)
        self._show(self.head, fields["head"])
        self._show(self.low_water, fields["low_water"])

    def _checkpoint(self, fields: dict[str, Any]) -> None:
        self._show(self.low_water, fields["low_water"])

    def _check_ended(self, fields: dict[str, Any]) -> None:
        depth, codes = fields["depth"], fields["findings"]
        told = [each.labels for family in self.findings.collect() for each in family.samples]
        before = {each["code"]: 0 for each in told if each["depth"] == depth}
        for code, number in {**before, **codes}.items():
            self._show(self.findings, number, depth, code)
        for what in ("looked_at", "recent", "left", "left_unsound"):
            self._show(self.check_layers, fields[what], depth, what)
        self._show(self.check_ended, time.time(), depth)
        self._show(self.check_complete, (fields["complete_since_ns"] or 0) / 1e9, depth)

    def _poisoned(self, fields: dict[str, Any]) -> None:
        self._poisoned_roots.add(fields["root"])
        self._show(self.poisoned, 1)

    def _staged(self, fields: dict[str, Any]) -> None:
        self._count("staged", 1, fields["bytes"])
        self.blob_bytes.inc(fields["blob_bytes"] or 0)

    def _adopted(self, fields: dict[str, Any]) -> None:
        self._count("adopted", 1, fields["bytes"])

    def _applied(self, fields: dict[str, Any]) -> None:
        self._count("applied" if fields["created"] else "found", 1, fields["bytes"])

    def _deleted(self, fields: dict[str, Any]) -> None:
        self._count("deleted", len(fields["layers"]), fields["bytes"])

    def _count(self, what: str, layers: int, size: int) -> None:
        self.layers.labels(what).inc(layers)
        self.bytes.labels(what).inc(size)

    def text(self) -> str:
        """All of it in Prometheus' text format, for a program's own ``/metrics``."""
        return generate_latest(self.registry).decode()

    def write_textfile(self, path: str | os.PathLike[str]) -> None:
        """Put it into *path* for node_exporter's textfile collector: aside, then renamed, so that nobody reads half of it.

        Several processes may write one file, one after the other or at once: what each has counted since it last wrote is
        added to the counts that are there, and of gauges those that it has replace what is there; of two checks at one
        depth the later one's stay. Raises OSError; TimeoutError, which is one, if others do not end within 10 seconds.
        Durability: none; a file that is lost begins anew.
        """
        self._textfile.write(os.fspath(path))
