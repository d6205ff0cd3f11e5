"""What the processes do, and what may come of it. Each is two or three programs on one prepared store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import layerstore
from crash import keeping, lost, parts, repairing
from crash import workloads as w
from crash.remote import read_first, remotely
from crash.schedule.controller import Program
from crash.taking import TakingDiffer
from crash.workloads import Images, drop, pull, put, stage
from crash.wreck import wreck
from layerstore import TarDiffer
from layerstore.dedup import LayerFinder
from layerstore.errors import SourceError
from layerstore.store import Store
from layerstore.testing import Ledger, image, layer, name, still_clock
from layerstore.testing.ledger import Facts

Part = Callable[[Store, Ledger], object]


@dataclass(frozen=True)
class Scenario:
    """``parts``: what each process does with its store open; ``opens``: those that open it within the schedule.

    ``errors``: which typed errors a part may end with, because another was quicker.
    """

    name: str
    prepare: Callable[[str, Ledger], None]
    parts: Sequence[Part]
    again: Callable[[Store], object] = w._reopen
    errors: frozenset[str] = frozenset()
    opens: frozenset[int] = field(default_factory=frozenset)
    sampled: bool = False   # too many steps to run them all within a bound: random schedules only
    closed: frozenset[int] = field(default_factory=frozenset)   # parts that rebuild the store, which nobody can open
    mend: Callable[[str], object] = lambda _root: None           # by an operator, before it is judged
    waits: bool = True   # if not, nobody may wait for another's lock: that is a violation

    def programs(self, root: str, ledger: Ledger) -> list[Program]:
        def program(n: int) -> Callable[..., Callable[[], object]]:
            return _rebuilding if n in self.closed else _opening if n in self.opens else _opened

        return [partial(program(n), root, ledger, part) for n, part in enumerate(self.parts)]


def _opened(root: str, ledger: Ledger, part: Part) -> Callable[[], object]:
    """The store is open before the schedule begins."""
    store = layerstore.open(root, clock=still_clock)

    def todo() -> None:
        with store:
            part(store, ledger.shared())

    return todo


def _opening(root: str, ledger: Ledger, part: Part) -> Callable[[], object]:
    """Opening (and so recovering) is part of the schedule."""
    def todo() -> None:
        with layerstore.open(root, clock=still_clock) as store:
            part(store, ledger.shared())

    return todo


def _rebuilding(root: str, _ledger: Ledger, _part: Part) -> Callable[[], object]:
    return lambda: layerstore.rebuild(root, clock=still_clock)


def _repair(store: Store, ledger: Ledger) -> None:
    with ledger.asking(repairing.mended(repairing.ILL)):
        report = store.repair(layers=[repairing.ILL])
        assert report.clean, report


def _drop_ill(store: Store, ledger: Ledger) -> None:
    """With the layer goes what is wrong with it."""
    with ledger.asking(layer(repairing.ILL, None), repairing.mended(repairing.ILL)):
        store.delete_layer(repairing.ILL)


def _check(allowed: Facts, **options: object) -> Part:
    """A check finds nothing but *allowed*, whatever the others are about."""
    def part(store: Store, _ledger: Ledger) -> None:
        found = keeping.look(store, **options)
        assert found.keys() <= allowed.keys(), f"a check found what is not so: {sorted(found)}"

    return part


def _collect_unnamed(store: Store, ledger: Ledger) -> None:
    with ledger.asking(layer(w.FIRST_ID, None)):
        store.collect_garbage(retention=0, grace=0, segments=1)


def _with_unnamed(root: str, ledger: Ledger) -> None:
    _prepared(root, ledger)
    with layerstore.open(root, clock=still_clock) as store:
        put(store, ledger, w.ONE, w.FIRST_ID)


def _prepared(root: str, ledger: Ledger) -> None:
    with layerstore.open(root, clock=still_clock) as store:
        put(store, ledger, w.BASE, w.BASE_ID, names=("base",))
        put(store, ledger, w.DOOMED, w.DOOMED_ID, names=("doomed",))


def _nothing(_store: Store, _ledger: Ledger) -> None:
    """To have opened it is all."""


def _collect(store: Store, _ledger: Ledger) -> None:
    """Of age zero. There is nothing that may go: what is staged is somebody's, and every layer has a name."""
    store.collect_garbage(retention=0, grace=0)


def _stage_and_apply(store: Store, ledger: Ledger) -> None:
    put(store, ledger, w.ONE, w.FIRST_ID, names=("kept",))


def _from_elsewhere(store: Store, ledger: Ledger) -> None:
    """The same layer from another source: nothing to join, so that only the claim decides."""
    with store.stage(TarDiffer(w.ONE.tar)) as staged, ledger.asking(layer(w.FIRST_ID, w.ONE.diff_id)):
        store.apply_staged_layer(staged, id=w.FIRST_ID)


def _child(store: Store, ledger: Ledger) -> None:
    put(store, ledger, w.TOP, w.TOP_ID, parent=w.DOOMED_ID)


def _two(store: Store, ledger: Ledger) -> None:
    put(store, ledger, w.ONE, w.FIRST_ID)
    drop(store, ledger, w.FIRST_ID)


def _leave(store: Store, _ledger: Ledger) -> None:
    stage(store, w.LEFT).release()


def _left_staged(root: str, ledger: Ledger) -> None:
    _prepared(root, ledger)
    with layerstore.open(root, clock=still_clock) as store:
        stage(store, w.LEFT).release()


def _adopt(store: Store, ledger: Ledger) -> None:
    put(store, ledger, w.LEFT, w.FIRST_ID, names=("left",))


def _with_shared(root: str, ledger: Ledger) -> None:
    with layerstore.open(root, clock=still_clock) as store:
        put(store, ledger, w.BASE, w.BASE_ID, names=("base",))
        put(store, ledger, w.SHARED, w.DOOMED_ID, names=("doomed",))


def _drop_doomed(store: Store, ledger: Ledger) -> None:
    drop(store, ledger, w.DOOMED_ID, "doomed")


def _take(store: Store, ledger: Ledger) -> None:
    """A layer made of what another one has, if that is still there when it is looked for; its own tar is the same."""
    differ = TakingDiffer(w.SHARED.tar, LayerFinder(store._handle))
    facts = [layer(w.FIRST_ID, w.SHARED.diff_id), name("kept", "layer", w.FIRST_ID)]
    with store.stage(differ) as staged, ledger.asking(*facts):
        store.apply_staged_layer(staged, id=w.FIRST_ID, parent=w.BASE_ID, names=["kept"])


def _collect_ill(store: Store, ledger: Ledger) -> None:
    """No layer has a name, so all of them go."""
    every = [layer(each, None) for each in (repairing.ILL, repairing.SPARE, repairing.LOST)]
    with ledger.asking(*every, repairing.mended(repairing.ILL)):
        store.collect_garbage(retention=0, grace=0)


def build(directory: str) -> dict[str, Scenario]:
    """All scenarios, by name; their images are written to *directory*."""
    images = Images(directory)
    first, second = images.first, images.second

    def with_image(root: str, ledger: Ledger) -> None:
        _prepared(root, ledger)
        with layerstore.open(root, clock=still_clock) as store:
            pull(store, ledger, first, "app")

    def delete_image(store: Store, ledger: Ledger) -> None:
        gone = [image(first.id, None), name("app", "image", None), *(layer(i, None) for i in first.layer_ids())]
        with ledger.asking(*gone):
            store.delete_image(first.id)

    def pull_first(store: Store, ledger: Ledger) -> None:
        pull(store, ledger, first, "app")

    def pull_second(store: Store, ledger: Ledger) -> None:
        pull(store, ledger, second, "other")

    def cut_off(root: str, ledger: Ledger) -> None:
        _prepared(root, ledger)
        with layerstore.open(root, clock=still_clock) as store, read_first(), suppress(SourceError):
            with remotely(ending_at=200_000):
                pull(store, ledger, images.large, "large")

    def go_on(store: Store, ledger: Ledger) -> None:
        with read_first(), remotely():
            pull(store, ledger, images.large, "large")

    family = parts.Family(directory)

    def in_parts(store: Store, ledger: Ledger) -> None:
        with read_first():
            parts.go_on(store, ledger, family)

    damaged = partial(repairing.prepare, lost=False)
    both = w.pull_again(first, "app"), w.pull_again(second, "other")
    made = [
        Scenario("pulls", _prepared, [pull_first, pull_second], again=lambda store: [each(store) for each in both]),
        Scenario("same-layer", _prepared, [_stage_and_apply, _stage_and_apply]),
        Scenario("same-id", _prepared, [_from_elsewhere, _stage_and_apply]),
        Scenario("delete-parent", _prepared, [_drop_doomed, _child],
                 errors=frozenset({"InUseError", "ParentUnavailableError"})),
        Scenario("delete-pull", with_image, [delete_image, pull_first], again=both[0],
                 errors=frozenset({"UnknownImageError"})),
        Scenario("checkpoint", _prepared, [lambda s, _: s.checkpoint(archive=True), _two]),
        Scenario("gc-stage", _prepared, [_collect, _stage_and_apply]),
        Scenario("open-owner", _prepared, [_nothing, _stage_and_apply], opens=frozenset({0})),
        Scenario("open-delete", _prepared, [_nothing, _drop_doomed], opens=frozenset({0})),
        Scenario("two-recover", wreck, [_nothing, _nothing], opens=frozenset({0, 1}), sampled=True),
        Scenario("adopt-gc", _left_staged, [_collect, _adopt]),
        Scenario("take-delete", _with_shared, [_drop_doomed, _take]),
        Scenario("resume-gc", cut_off, [_collect, go_on], again=w.fetch_again(images.large, "large")),
        Scenario("resume-twice", cut_off, [go_on, go_on], again=w.fetch_again(images.large, "large")),
        Scenario("partial-delete", partial(parts.prepare, family=family),
                 [lambda s, ledger: parts.drop_old(s, ledger, family), in_parts], again=parts.again(family)),
        Scenario("repair-delete", damaged, [_drop_ill, _repair], Store.repair, frozenset({"UnknownLayerError"}),
                 sampled=True),
        Scenario("repair-open", damaged, [_nothing, _repair], Store.repair, opens=frozenset({0}), sampled=True),
        Scenario("repair-twice", damaged, [_repair, _repair], Store.repair, sampled=True),
        Scenario("repair-gc", damaged, [_collect_ill, _repair], Store.repair, frozenset({"UnknownLayerError"}),
                 sampled=True),
        Scenario("rebuild-open", partial(lost.damaged, images), [_nothing, _nothing], opens=frozenset({0}),
                 closed=frozenset({1}), errors=frozenset({"JournalDamagedError", "AlreadyOpenError", "BusyError"}),
                 mend=lost.mend, sampled=True),
        Scenario("rebuild-twice", partial(lost.damaged, images), [_nothing, _nothing], closed=frozenset({0, 1}),
                 errors=frozenset({"InvalidArgumentError"}), mend=lost.mend, sampled=True),
        Scenario("check-pull", _prepared, [_check({}, content=True, note=True), pull_first], again=both[0], waits=False),
        Scenario("check-delete", with_image, [_check({}, content=True, note=True), delete_image], waits=False),
        Scenario("check-gc", _with_unnamed, [_check({}, content=True, note=True), _collect_unnamed], waits=False),
        Scenario("check-repair", partial(repairing.prepare, lost=False), [
            _check(dict.fromkeys(repairing.DAMAGE[repairing.ILL]), content=True), _repair], Store.repair, waits=False),
        Scenario("three", _prepared, [_collect, _leave, _stage_and_apply]),
    ]
    return {each.name: each for each in made}
