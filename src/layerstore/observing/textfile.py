"""A file for node_exporter's textfile collector that several processes write: what each has counted is added up in it.

A command is a process of a second, and one of them after the other, or beside it, has something to tell of the same store.
node_exporter refuses files of several writers that have the same metric with the same labels, so they share one file. Each
writer, one at a time, reads what is there, adds what it has counted since it last wrote, and replaces it. What of two
writers' is true in the end is here; ``watched`` has what the metrics are.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from layerstore.observing.watched import UP, is_read, together
from layerstore.system import flock

__all__ = ["CHECK_COMPLETE", "CHECK_ENDED", "CHECK_LAYERS", "FINDINGS", "Textfile"]

WAIT_SECONDS = 10.0   # for other writers, of which each takes milliseconds
FINDINGS = "layerstore_check_findings"
CHECK_LAYERS = "layerstore_check_layers"
CHECK_ENDED = "layerstore_check_end_timestamp_seconds"
CHECK_COMPLETE = "layerstore_check_complete_since_timestamp_seconds"
_OF_A_CHECK = (FINDINGS, CHECK_LAYERS, CHECK_ENDED, CHECK_COMPLETE)
_ADD_UP = ("counter", "histogram")
_Key = tuple[str, tuple[tuple[str, str], ...]]
_Values = dict[_Key, Sample]
_Families = dict[str, Metric]
_Check = tuple[str | None, str | None]   # store and depth

_all: weakref.WeakSet[Textfile] = weakref.WeakSet()


class Textfile:
    """What *registry* has, in whatever file; it is known what of that was written already.

    *own* is what of it a forked child leaves to its parent.
    """

    def __init__(self, registry: CollectorRegistry, own: Collector) -> None:
        self._registry, self._own = registry, own
        self._written: dict[str, dict[_Key, float]] = {}   # by file: counts that are in it
        self._parents: dict[_Key, float] = {}              # counts that a process this one was forked of writes
        self._lock = Lock()
        self.forked = False
        _all.add(self)

    def write(self, path: str) -> None:
        """Raises OSError; TimeoutError, which is one, if other writers do not come to an end. Durability: none."""
        path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))   # one file, one name
        if self.forked:
            self.leave_to_the_parent()
        with self._lock:
            families = _families(_text(self._registry))
            with _one_at_a_time(path):
                merged = _merged(_there(path), families, self._written.get(path, self._parents))
                self._replace(path, _text(_Given(merged)), _counts(families))

    def leave_to_the_parent(self) -> None:
        """In a forked child, before it counts anything: what was counted until now is the parent's to write."""
        with self._lock:
            if self.forked:
                self._parents = _counts(_families(_text(self._own)))
                for counts in self._written.values():
                    counts.update(self._parents)
                self.forked = False

    def after_fork(self) -> None:
        """A thread of the parent may have had the lock. No more here: one may have had prometheus_client's, too."""
        self._lock, self.forked = Lock(), True

    def _replace(self, path: str, text: str, counts: dict[_Key, float]) -> None:
        aside = f"{path}.part"   # no ``.prom`` at its end: the collector takes it for none of its files
        before = self._written.get(path)
        with suppress(FileNotFoundError):
            os.unlink(aside)   # of one who was killed
        try:
            with open(aside, "x", encoding="utf-8", newline="") as file:
                file.write(text)
            self._written[path] = counts   # first: an interrupt may come when it was renamed, too
            os.rename(aside, path)
        except BaseException:
            if os.path.lexists(aside):     # it was not
                if before is None:
                    self._written.pop(path, None)
                else:
                    self._written[path] = before
                os.unlink(aside)
            raise


def _after_fork_in_child() -> None:
    for each in list(_all):
        each.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)


@contextmanager
def _one_at_a_time(path: str) -> Iterator[None]:
    """By a file that nobody else may open: a directory could be locked, for ever, by whoever may read it."""
    name = f"{path}.lock"
    with flock.lock_file(name, wait=WAIT_SECONDS):
        try:
            yield
        finally:
            with suppress(FileNotFoundError):
                os.unlink(name)


def _text(collector: Collector | CollectorRegistry) -> str:
    registry = collector
    if not isinstance(collector, CollectorRegistry):
        registry = CollectorRegistry()
        registry.register(collector)
    return generate_latest(registry).decode()


def _families(text: str) -> _Families:
    """By name, as the text format has them: what a program's own kinds of metrics become there is found again.

    Without when each was made: no matter to anybody who reads a file, and not to be added up.
    """
    families = [each for each in text_string_to_metric_families(text) if not each.name.endswith("_created")]
    return {each.name: each for each in together(families)}


def _there(path: str) -> _Families:
    """What is in the file; nothing, if it cannot be understood: a loss of power may have left anything in it."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return _families(file.read())
    except (FileNotFoundError, ValueError, LookupError):
        return {}


def _values(family: Metric | None) -> _Values:
    return {} if family is None else {(each.name, tuple(sorted(each.labels.items()))): each for each in family.samples}


def _counts(families: _Families) -> dict[_Key, float]:
    counted = [_values(family) for family in families.values() if family.type in _ADD_UP]
    return {key: each.value for values in counted for key, each in values.items()}


def _merged(old: _Families, new: _Families, written: dict[_Key, float]) -> list[Metric]:
    read = {each.labels.get("store") for each in new[UP].samples} if UP in new else set()
    ours, theirs = _ended(new), _ended(old)
    result = []
    for name in {**new, **old}:
        before, now = _values(old.get(name)), _values(new.get(name))
        known = new.get(name) or old[name]
        if known.type in _ADD_UP:
            merged = {**before, **_added(before, now, written)}
        elif is_read(name):
            merged = {key: each for key, each in before.items() if each.labels.get("store") not in read} | now
        elif name in _OF_A_CHECK:
            merged = _of_the_later(before, now, ours, theirs, gone=name == FINDINGS)
        else:
            merged = {**before, **now}
        family = Metric(name, known.documentation, known.type)
        family.samples = list(merged.values())
        result.append(family)
    return result


def _added(before: _Values, now: _Values, written: dict[_Key, float]) -> _Values:
    return {
        key: each._replace(value=(before[key].value if key in before else 0) + each.value - written.get(key, 0))
        for key, each in now.items()
    }


def _check(sample: Sample) -> _Check:
    return sample.labels.get("store"), sample.labels.get("depth")


def _ended(families: _Families) -> dict[_Check, float]:
    """When each store's last check at each depth ended. One of a time that is still to come is none: a clock was wrong."""
    found = families[CHECK_ENDED].samples if CHECK_ENDED in families else []
    return {_check(each): each.value for each in found if each.value <= time.time()}


def _of_the_later(
    before: _Values, now: _Values, ours: dict[_Check, float], theirs: dict[_Check, float], *, gone: bool,
) -> _Values:
    """Of each store and depth what the later check's are. With *gone*, 0 for what is told of no more."""
    is_ours = {each for each in ours if ours[each] >= theirs.get(each, 0)}
    kept = {key: each for key, each in before.items() if gone or _check(each) not in is_ours}
    kept = {key: each._replace(value=0) if _check(each) in is_ours else each for key, each in kept.items()}
    return {**kept, **{key: each for key, each in now.items() if _check(each) in is_ours}}


class _Given(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)
