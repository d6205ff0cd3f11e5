"""The mutating verbs, one at a time, on one open handle: what is interrupted, and what is done again afterwards.

Each asks its ledger for what it is to bring about. ``again`` is the same as a user would do it after the interrupt,
on the same handle, in another process, and by the oracle; it brings about no more than was asked for. ``open`` and
``create`` have no handle yet; ``close`` ends it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import layerstore
from crash import lost, repairing
from crash import workloads as w
from crash.beside import pushes, views
from crash.beside.common import told
from crash.content import Content, content, digest, many
from crash.lines.crashed import crashed
from layerstore import LayerSpec, PullOptions, StageOptions, TarDiffer
from layerstore.errors import InvalidArgumentError
from layerstore.model import Descriptor
from layerstore.store import Store
from layerstore.testing.ledger import Facts, Ledger, image, layer, name

PROBE = content("probe")
PROBE_ID = "e" * 64
MANY = many("many")


@dataclass(frozen=True)
class Verb:
    """``prepare`` makes the store; ``again`` brings ``facts`` about, and must succeed however often it is done.

    ``run`` is what is interrupted, if that is not just ``again``. ``handle``: whether there is an open store to
    begin with; else what is interrupted is ``closed``, which opens it, or brings it to where it can be opened (``mend``:
    so does an operator afterwards), and ``again`` is done on what that gave. ``look`` is as a workload's.
    """

    name: str
    prepare: Callable[[str, Ledger], None]
    again: Callable[[Store], object]
    facts: tuple[Facts, ...] = ()
    run: Callable[[Store, Ledger], object] | None = None
    handle: bool = True
    closed: Callable[[str], Store | None] = layerstore.open
    mend: Callable[[str], object] = lambda _root: None
    look: Callable[[str, list[bytes]], list[str]] = lambda _root, _ledger: []

    def first(self, store: Store, ledger: Ledger) -> None:
        if self.run is not None:
            self.run(store, ledger)
        else:
            self.once_more(store, ledger)

    def once_more(self, store: Store, ledger: Ledger) -> None:
        with ledger.asking(*self.facts):
            self.again(store)


def stage(store: Store, what: Content) -> layerstore.StagedLayer:
    """Stage compressed content, waiting for nobody for long."""
    blob = what.blob
    expect = Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", digest(blob), len(blob))
    return store.stage(TarDiffer(blob, expect=expect, diff_id=what.diff_id), options=StageOptions(wait=5))


def ensure(store: Store, what: Content, layer_id: str, **options: object) -> None:
    """Stage and apply; success too if it is there already."""
    with stage(store, what) as staged:
        store.apply_staged_layer(staged, id=layer_id, **options)  # type: ignore[arg-type]


def probe(store: Store, ledger: Ledger) -> None:
    """A further verb on a handle that was interrupted. Named, so that ``gc`` leaves it."""
    with ledger.asking(layer(PROBE_ID, PROBE.diff_id), name("probe", "layer", PROBE_ID)):
        ensure(store, PROBE, PROBE_ID, names=["probe"])


def _nothing(_store: Store) -> None:
    """Opening is all that there is to do again."""


def _empty(root: str, _ledger: Ledger) -> None:
    """There is no store yet."""


def _apply_big(store: Store) -> None:
    ensure(store, w.TOP, w.TOP_ID, parent=w.BASE_ID, names=["top"], big_data={"key": b"value" * 50})


def _apply(store: Store) -> None:
    ensure(store, w.ONE, w.FIRST_ID)


def _duplicate(store: Store) -> None:
    ensure(store, w.BASE, w.BASE_ID, names=["base"])


def _batch(store: Store) -> None:
    with stage(store, w.ONE) as one, stage(store, w.TWO) as two:
        store.apply_batch([
            LayerSpec(one, id=w.FIRST_ID, parent=w.BASE_ID),
            LayerSpec(two, id=w.SECOND_ID, parent=w.FIRST_ID, names=("pair",)),
        ])


def _delete(store: Store) -> None:
    if any(each.id == w.DOOMED_ID for each in store.layers()):
        report = store.delete_layer(w.DOOMED_ID)
        assert not report.deferred, "the deletion was deferred: somebody still holds the tree"


def _checkpoint(store: Store) -> None:
    store.checkpoint(archive=True)


def _deleted(root: str, ledger: Ledger) -> None:
    w._with_doomed(root, ledger)
    with layerstore.open(root) as store:
        w.drop(store, ledger, w.DOOMED_ID, "doomed")


def _left(root: str, ledger: Ledger) -> None:
    """A staged tree that is adopted or collected, and a layer that nothing names."""
    w._fresh(root, ledger)
    with layerstore.open(root) as store:
        stage(store, w.LEFT).release()
        w.put(store, ledger, w.ONE, w.FIRST_ID)


def _collect(store: Store) -> None:
    report = store.collect_garbage(retention=0, grace=0)
    assert not report.deferred, "a deletion was deferred: somebody still holds the tree"


def _adopt(store: Store) -> None:
    ensure(store, w.LEFT, w.SECOND_ID, parent=w.BASE_ID)


def _discard(store: Store) -> None:
    stage(store, w.TWO).discard()


def _many(store: Store) -> None:
    stage(store, MANY).discard()


def _name(store: Store) -> None:
    store.set_name("other", w.BASE_ID, replace=True)
    if "kept" not in {each.name for each in store.leases()}:
        store.take_lease("kept", [w.BASE_ID])
    store.drop_lease("kept")
    if "base" in store.layer(w.BASE_ID).names:
        store.drop_name("base")


def _repair(store: Store) -> None:
    report = store.repair(layers=[repairing.ILL])
    assert not report.steps or report.mended == (repairing.ILL,), report


def _snapshot(store: Store) -> None:
    path = os.path.join(os.path.dirname(store.root), "snapshot")
    with suppress(FileNotFoundError):
        os.unlink(path)
    store.snapshot(path)


def _view(store: Store) -> None:
    at = os.path.join(os.path.dirname(store.root), "view")
    store.view(at)
    store.remove_view(at)


def _push(store: Store) -> None:
    store.push("app", f"oci:{os.path.join(os.path.dirname(store.root), pushes.OUT)}:a", compression="none")


def _rebuild(root: str) -> None:
    with suppress(InvalidArgumentError):   # it is sound: an earlier one was interrupted when all was done
        layerstore.rebuild(root)


def build(images: w.Images) -> dict[str, Verb]:
    """All verbs, by name."""
    first = images.first

    def pull(store: Store) -> None:
        store.pull(first.reference, names=["app"], options=PullOptions(workers=1))

    def parallel(store: Store) -> None:
        store.pull(first.reference, names=["app"], options=PullOptions(workers=2))

    def with_image(root: str, ledger: Ledger) -> None:
        w._fresh(root, ledger)
        with layerstore.open(root) as store:
            w.pull(store, ledger, first, "app")

    def delete_image(store: Store) -> None:
        if any(each.id == first.id for each in store.images()):
            report = store.delete_image(first.id)
            assert not report.deferred, "a deletion was deferred: somebody still holds the tree"

    pulled = w.facts_of(first, "app")
    gone = [image(first.id, None), name("app", "image", None), *(layer(i, None) for i in first.layer_ids())]
    made = [
        Verb("stage", w._fresh, _discard),
        Verb("stage-many", w._fresh, _many),
        Verb("apply", w._fresh, _apply, (layer(w.FIRST_ID, w.ONE.diff_id),)),
        Verb("apply-big", w._fresh, _apply_big, (layer(w.TOP_ID, w.TOP.diff_id), name("top", "layer", w.TOP_ID))),
        Verb("duplicate", w._fresh, _duplicate),
        Verb("batch", w._fresh, _batch, (
            layer(w.FIRST_ID, w.ONE.diff_id), layer(w.SECOND_ID, w.TWO.diff_id), name("pair", "layer", w.SECOND_ID))),
        Verb("adopt", _left, _adopt, (layer(w.SECOND_ID, w.LEFT.diff_id),)),
        Verb("pull", w._fresh, pull, tuple(pulled)),
        Verb("pull-parallel", w._fresh, parallel, tuple(pulled)),
        Verb("delete", w._with_doomed, _delete, (layer(w.DOOMED_ID, None), name("doomed", "layer", None))),
        Verb("image-delete", with_image, delete_image, tuple(gone)),
        Verb("checkpoint", _deleted, _checkpoint),
        Verb("gc", _left, _collect, (layer(w.FIRST_ID, None),)),
        Verb("names", w._fresh, _name, (name("other", "layer", w.BASE_ID), name("base", "layer", None)), _each_name),
        Verb("repair", partial(repairing.prepare, lost=False), _repair, (repairing.mended(repairing.ILL),),
             look=repairing.look),
        Verb("snapshot", w._fresh, _snapshot),
        Verb("view", with_image, _view, look=views.broken),
        Verb("push", with_image, _push, (told(f"{pushes.OUT}:a", first.id),), look=pushes.look_at_layout),
        Verb("rebuild", partial(lost.damaged, images), _nothing, handle=False, closed=_rebuild, mend=lost.mend),
        Verb("create", _empty, _nothing, handle=False),
        Verb("open", lambda root, ledger: crashed(root, ledger, images), _nothing, handle=False),
        Verb("close", w._fresh, _nothing, run=lambda store, _ledger: store.close()),
    ]
    return {each.name: each for each in made}


def _each_name(store: Store, ledger: Ledger) -> None:
    with ledger.asking(name("other", "layer", w.BASE_ID)):
        store.set_name("other", w.BASE_ID)
    store.take_lease("kept", [w.BASE_ID])
    store.drop_lease("kept")
    with ledger.asking(name("base", "layer", None)):
        store.drop_name("base")
