"""Metrics by prometheus_client (the extra ``metrics``): the one module that imports it.

An observer that counts, a text page for a program that serves one, and a textfile for node_exporter. Names begin with
``layerstore_``; docs/observing.md lists them.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Metrics"]

BARRIER_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
VERB_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 1_800)


class Metrics:
    """An observer that counts. ``registry`` holds the metrics; give one of your own to have them beside others.

    One object may watch several stores of a process, and all of them are counted together.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry = CollectorRegistry() if registry is None else registry
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
        self.head = Gauge("layerstore_journal_head", "The journal's last record that was seen.", registry=registry)
        self.low_water = Gauge(
            "layerstore_journal_low_water", "The record up to which recovery need not look back.", registry=registry,
        )
        self.recovered = Gauge(
            "layerstore_recovery_seconds", "How long the last opening's recovery took.", registry=registry,
        )
        self.poisoned = Gauge(
            "layerstore_poisoned", "1 after a sync or commit failed: open the store again.", registry=registry,
        )

    def event(self, what: str, **fields: Any) -> None:
        tell = getattr(self, f"_{what.replace('-', '_')}", None)
        if tell is not None:
            tell(fields)

    def _barrier(self, fields: dict[str, Any]) -> None:
        self.barriers.labels(fields["name"]).observe(fields["seconds"])

    def _verb_ended(self, fields: dict[str, Any]) -> None:
        self.verbs.labels(fields["verb"], fields["error"] or "").observe(fields["seconds"])

    def _transition(self, fields: dict[str, Any]) -> None:
        self.transitions.labels(fields["kind"], fields["trigger"], fields["state"]).inc()
        self.head.set(fields["seq"])

    def _recovery(self, fields: dict[str, Any]) -> None:
        self.recovery.labels(fields["action"]).inc()

    def _opened(self, fields: dict[str, Any]) -> None:
        self.recovered.set(fields["seconds"])
        self.head.set(fields["head"])
        self.low_water.set(fields["low_water"])

    def _checkpoint(self, fields: dict[str, Any]) -> None:
        self.low_water.set(fields["low_water"])

    def _poisoned(self, _fields: dict[str, Any]) -> None:
        self.poisoned.set(1)

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
        """Write it to *path* for node_exporter's textfile collector: aside, then renamed, so that nobody reads half of it.

        Raises OSError. Durability: none; it is written again.
        """
        target = os.fspath(path)
        aside = f"{target}.{os.getpid()}.part"   # no ``.prom`` at its end: the collector takes it for none of its files
        try:
            with open(aside, "x", encoding="utf-8") as file:
                file.write(self.text())
            os.rename(aside, target)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(aside)
            raise
