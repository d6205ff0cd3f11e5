"""Gauges of a store, read when they are collected; and metrics with one label more. What is read is ``verbs.gauges``'s."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from layerstore.errors import LayerstoreError

__all__ = ["UP", "Gauged", "Labelled", "Watched", "is_read"]

UP = "layerstore_up"
_TREES = "layerstore_trees"
_READ = {
    "layerstore_disk_size_bytes": ("total", "Size of the store's file system."),
    "layerstore_disk_free_bytes": ("free", "What an ordinary process may still write there."),
    "layerstore_disk_free_inodes": ("free_inodes", "Files that may still be made there, where that is told."),
    "layerstore_quota_bytes": ("quota", "The store's quota; not there if it has none."),
    "layerstore_quota_used_bytes": ("counted", "What counts towards it."),
    "layerstore_reserve_bytes": ("reserve", "What is held for deletions on a full disk."),
    "layerstore_reserve_wanted_bytes": ("reserve_wanted", "What is to be held for that."),
    "layerstore_trash_entries": ("trash", "Deleted trees that wait for a checkpoint, or to be unlinked."),
    "layerstore_quarantine_entries": ("quarantine", "What was set aside, and is somebody's to look at."),
    "layerstore_journal_bytes": ("journal", "Size of the journal's database."),
    "layerstore_segments": ("segments", "Archived segments of the log."),
    "layerstore_segment_bytes": ("segment_bytes", "Their size."),
}
_UNCOVERED = "layerstore_journal_uncovered_records"


def is_read(family: str) -> bool:
    """Whether gauges of that name are read from a store: then what was read before is nothing any more."""
    return family in _READ or family in (_TREES, _UNCOVERED)


class Watched(Protocol):
    """A store."""

    @property
    def root(self) -> str: ...

    def gauges(self) -> Any: ...


class Gauged(Collector):
    """The gauges of one store."""

    def __init__(self, store: Watched) -> None:
        self._store, self._root = store, store.root

    def describe(self) -> Iterable[Metric]:
        """Nothing: several stores are watched under the same names, and differ by their label."""
        return []

    def collect(self) -> Iterator[Metric]:
        try:
            found = self._store.gauges()
        except LayerstoreError:   # closed, say, or damaged: other metrics are told all the same
            yield self._gauge(UP, "1 if the store could be read.", 0)
            return
        yield self._gauge(UP, "1 if the store could be read.", 1)
        trees = GaugeMetricFamily(_TREES, "Trees of layers, by state.", labels=["store", "state"])
        for state, number in found.trees.items():
            trees.add_metric([self._root, state], number)
        yield trees
        for name, (field, what) in _READ.items():
            value = getattr(found, field)
            if value is not None:
                yield self._gauge(name, what, value)
        yield self._gauge(_UNCOVERED, "Records that no checkpoint covers.", found.head - found.low_water)

    def _gauge(self, name: str, what: str, value: float) -> Metric:
        gauge = GaugeMetricFamily(name, what, labels=["store"])
        gauge.add_metric([self._root], value)
        return gauge


class Labelled(Collector):
    """All that a registry has, with *labels* besides."""

    def __init__(self, inner: CollectorRegistry, labels: Mapping[str, str]) -> None:
        self._inner, self._labels = inner, labels

    def describe(self) -> Iterable[Metric]:
        return list(self._inner.collect())

    def collect(self) -> Iterator[Metric]:
        for family in self._inner.collect():
            if self._labels:
                family.samples = [each._replace(labels={**self._labels, **each.labels}) for each in family.samples]
            yield family
