"""A file for node_exporter's textfile collector that several processes write: what each has counted is added up in it.

A command is a process of a second, and one of them after the other, or beside it, has something to tell of the same store.
node_exporter refuses files of several writers that have the same metric with the same labels, so they share one file. Each
writer, one at a time, reads what is there, adds what it has counted since it last wrote, and replaces it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from layerstore.observing.watched import UP, is_read
from layerstore.system import flock, fs

__all__ = ["FINDINGS", "Textfile"]

FINDINGS = "layerstore_check_findings"
_ADD_UP = ("counter", "histogram")
_Key = tuple[str, tuple[tuple[str, str], ...]]
_Values = dict[_Key, Sample]


class Textfile:
    """What *registry* has, in whatever file; it is known what of that was written already."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._written: dict[str, dict[_Key, float]] = {}   # by file: counts that are in it

    def write(self, path: str) -> None:
        """Raises OSError. Durability: none."""
        path = os.path.abspath(path)
        families = list(self._registry.collect())
        counts = {key: each.value for family in families if family.type in _ADD_UP for key, each in _values(family).items()}
        with fs.open_dir(os.path.dirname(path)) as directory, flock.locked_dir(directory):   # one writer at a time
            merged = _merged(_there(path), families, self._written.get(path, {}))
            registry = CollectorRegistry()
            registry.register(_Given(merged))
            _replace(path, generate_latest(registry))
        self._written[path] = counts


def _values(family: Metric) -> _Values:
    """Its samples, without when each was made: no matter to anybody who reads a file, and not to be added up."""
    return {(each.name, tuple(sorted(each.labels.items()))): each for each in family.samples
            if not each.name.endswith("_created")}


def _there(path: str) -> list[Metric]:
    """What is in the file; nothing, if it cannot be understood: a loss of power may have left anything in it."""
    try:
        with open(path, encoding="utf-8") as file:
            return list(text_string_to_metric_families(file.read()))
    except (FileNotFoundError, ValueError, LookupError):
        return []


def _merged(there: Iterable[Metric], ours: Iterable[Metric], written: dict[_Key, float]) -> list[Metric]:
    old = {family.name: family for family in there if not family.name.endswith("_created")}
    new: dict[str, Metric] = {}
    for each in ours:   # several stores have gauges of one name
        family = new.setdefault(each.name, Metric(each.name, each.documentation, each.type))
        family.samples += _values(each).values()
    read = {each.labels.get("store") for each in new[UP].samples} if UP in new else set()
    result = []
    for name in {**new, **old}:
        before = _values(old[name]) if name in old else {}
        now = _values(new[name]) if name in new else {}
        kind = (new.get(name) or old[name]).type
        if kind in _ADD_UP:
            merged = {**before, **_added(before, now, written)}
        elif is_read(name):
            merged = {key: each for key, each in before.items() if each.labels.get("store") not in read} | now
        elif name == FINDINGS:
            merged = {**_found_anew(before, new), **now}
        else:
            merged = {**before, **now}
        family = Metric(name, (new.get(name) or old[name]).documentation, kind)
        family.samples = list(merged.values())
        result.append(family)
    return result


def _added(before: _Values, now: _Values, written: dict[_Key, float]) -> _Values:
    return {
        key: each._replace(value=(before[key].value if key in before else 0) + each.value - written.get(key, 0))
        for key, each in now.items()
    }


def _found_anew(before: _Values, new: dict[str, Metric]) -> _Values:
    """What earlier checks found; 0 at each depth at which this process has checked the same store."""
    ended = new.get("layerstore_check_end_timestamp_seconds")
    checked = {(each.labels.get("store"), each.labels["depth"]) for each in ended.samples} if ended is not None else set()
    return {
        key: each._replace(value=0) if (each.labels.get("store"), each.labels.get("depth")) in checked else each
        for key, each in before.items()
    }


class _Given(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


def _replace(path: str, text: bytes) -> None:
    aside = f"{path}.{os.getpid()}.part"   # no ``.prom`` at its end: the collector takes it for none of its files
    try:
        with open(aside, "xb") as file:
            file.write(text)
        os.rename(aside, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(aside)
        raise
