"""The workload ``quota``: a limit is set, changed and taken away; what the file says is what was told."""

from __future__ import annotations

import json
import os

import layerstore
from crash import workloads as w
from crash.beside.common import compared, told
from crash.workloads import Workload
from layerstore.store import Store
from layerstore.testing import Ledger
from layerstore.testing.ledger import Value

__all__ = ["build"]

QUOTA = "quota"
LIMITS = (1 << 30, 1 << 20, None, 1 << 29)


def build() -> list[Workload]:
    return [Workload("quota", w._fresh, _run, _again, look=_look)]


def _run(root: str, ledger: Ledger) -> None:
    with layerstore.open(root) as store:
        for limit in LIMITS:
            with ledger.asking(told(QUOTA, None if limit is None else str(limit))):
                store.set_quota(limit)


def _again(store: Store) -> None:
    store.set_quota(LIMITS[0])
    assert store.quota() == LIMITS[0]


def _look(root: str, lines: list[bytes]) -> list[str]:
    def facts() -> dict[str, Value]:
        path = os.path.join(root, "quota.json")
        if not os.path.exists(path):
            return told(QUOTA, None)
        with open(path, "rb") as file:
            return told(QUOTA, str(json.load(file)["bytes"]))

    return compared(QUOTA, facts, lines)
