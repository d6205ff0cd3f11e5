"""Workloads that begin with nothing, or with a wreck: a store being created, and a recovery that has much to do."""

from __future__ import annotations

import layerstore
from crash import workloads as w
from crash.workloads import Workload, put
from crash.wreck import wreck
from layerstore.testing import Ledger


def build() -> dict[str, Workload]:
    made = [
        Workload("create", _nothing, _create, w._ensure((w.BASE, w.BASE_ID, None))),
        Workload("recovery", wreck, _open, w._ensure((w.BASE, w.BASE_ID, None), (w.TOP, w.TOP_ID, w.BASE_ID))),
    ]
    return {each.name: each for each in made}


def _nothing(_root: str, _ledger: Ledger) -> None:
    """There is not even a directory."""


def _create(root: str, ledger: Ledger) -> None:
    with layerstore.open(root) as store:
        put(store, ledger, w.BASE, w.BASE_ID)


def _open(root: str, _ledger: Ledger) -> None:
    with layerstore.open(root):
        pass
