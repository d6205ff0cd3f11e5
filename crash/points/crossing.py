"""What crosses stores: one beneath, made once and only read, and what is done in the one above that stands on it.

A workload of ``points`` alone. The store beneath is outside of what is killed and copied, so all states share it; the
oracle looks at what is the upper store's own, and that the layers of its images are to be had.
"""

from __future__ import annotations

import os

import layerstore
from crash import workloads as w
from crash.content import Picture
from crash.workloads import Images, Workload, facts_of, pull_again, put
from layerstore import PullOptions
from layerstore.store import Store
from layerstore.testing import Ledger
from layerstore.testing.ledger import layer

NAME = "beneath"


def build(images: Images, directory: str) -> dict[str, Workload]:
    """The workload; the store beneath is made in *directory*."""
    below, pulled = os.path.join(directory, "below"), images.second

    def prepare(root: str, ledger: Ledger) -> None:
        if not os.path.exists(below):
            _make(below, images.first)
        w._fresh(root, ledger)

    def run(root: str, ledger: Ledger) -> None:
        with layerstore.open(root, beneath=[below]) as store:
            put(store, ledger, w.TOP, w.TOP_ID, parent=images.first.layer_ids()[-1], names=("top",))
            _pull(store, ledger, pulled, images.first)

    def again(store: Store) -> None:
        pull_again(pulled, "crossing")(store)
        if store.beneath:   # else it was killed before they were recorded
            with w.stage(store, w.TOP) as staged:
                made = store.apply_staged_layer(staged, parent=images.first.layer_ids()[-1], replace_names=True)
            assert made.parent_beneath is not None, "the layer does not say what it stands on"

    return {NAME: Workload(NAME, prepare, run, again)}


def _make(below: str, what: Picture) -> None:
    with layerstore.open(below) as store:
        store.pull(what.reference, names=["beneath"], options=PullOptions(workers=1))


def _pull(store: Store, ledger: Ledger, what: Picture, below: Picture) -> None:
    """The layers that are beneath are no part of what is to come about."""
    shared = [layer(i, each.diff_id) for i, each in zip(below.layer_ids(), below.layers, strict=True)]
    with ledger.asking(*(fact for fact in facts_of(what, "crossing") if fact not in shared)):
        store.pull(what.reference, names=["crossing"], options=PullOptions(workers=1))
