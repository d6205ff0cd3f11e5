"""Gauges of a store, read when they are collected; metrics with one label more; several of both in one registry.

What is read is ``verbs.gauges``'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from threading import Lock
from typing import Any, ClassVar, Protocol
from weakref import WeakKeyDictionary, ref

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from layerstore.errors import LayerstoreError

__all__ = ["UP", "Gauged", "Labelled", "Together", "Watched", "is_read", "label", "together"]

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


def label(root: str) -> str:
    """A store's directory as a label: what is no UTF-8 in it cannot be told but by its bytes."""
    return root.encode("utf-8", "backslashreplace").decode()


def together(families: Iterable[Metric]) -> list[Metric]:
    """Those of one name as one: a text that has a family twice is refused by who reads it."""
    found: dict[str, Metric] = {}
    for each in families:
        family = found.setdefault(each.name, Metric(each.name, each.documentation, each.type))
        family.samples += each.samples
    return list(found.values())


class Watched(Protocol):
    """A store."""

    @property
    def root(self) -> str: ...

    def gauges(self) -> Any: ...


class Gauged(Collector):
    """The gauges of one store."""

    def __init__(self, store: Watched) -> None:
        self._store, self._root = store, label(store.root)

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

    def collect(self) -> Iterator[Metric]:
        for family in self._inner.collect():
            if self._labels:
                family.samples = [each._replace(labels={**self._labels, **each.labels}) for each in family.samples]
            yield family


class Together(Collector):
    """All of ours in one registry: what several stores tell under one name is one family there."""

    # its registry keeps it; it keeps stores, whose observers keep the registry
    _of: ClassVar[WeakKeyDictionary[CollectorRegistry, ref[Together]]] = WeakKeyDictionary()
    _lock = Lock()

    def __init__(self) -> None:
        self._counted: dict[str | None, Labelled] = {}
        self._read: dict[str, Gauged] = {}

    @classmethod
    def of(cls, registry: CollectorRegistry) -> Together:
        with cls._lock:
            found = cls._of[registry]() if registry in cls._of else None
            if found is None:
                found = cls()
                registry.register(found)
                cls._of[registry] = ref(found)
            return found

    def count(self, store: str | None, counted: Labelled) -> None:
        """ValueError if there is one with that label already."""
        if self._counted.setdefault(store, counted) is not counted:
            raise ValueError(f"the registry has metrics with the label store={store!r}: these could not be told from them")

    def read(self, root: str, gauges: Gauged) -> None:
        """In the place of those of that store that was open before, if any."""
        self._read[root] = gauges

    def describe(self) -> Iterable[Metric]:
        """Nothing, without which a registry of prometheus_client's own would collect them to learn their names."""
        return []

    def collect(self) -> Iterator[Metric]:
        inner = [*self._counted.values(), *self._read.values()]
        return iter(together(family for each in inner for family in each.collect()))
