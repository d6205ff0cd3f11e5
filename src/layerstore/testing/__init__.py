"""Crash-test layerstore, or a tool built on it: fault points by name, kills at each of them, and the oracle.

::

    from layerstore.testing import CrashExplorer, image

    def prepare(root, ledger):                # runs in a forked child, undisturbed
        with layerstore.open(root):
            pass

    def run(root, ledger):                    # runs in a forked child, and is killed there
        with layerstore.open(root) as store, ledger.asking(image(IMAGE_ID)):
            store.pull("oci:image:latest")

    for outcome in CrashExplorer(directory, prepare, run).explore():   # one SIGKILL per fault point passed
        assert not outcome.violations, outcome

Shipped, because a tool that stands on a crash-safe store wants to crash-test itself: ``docs/testing.md``. Nothing in
layerstore imports this package. It uses ``os.fork``: call it from a single-threaded process. For pytest:
``layerstore.testing.plugin``.
"""

from __future__ import annotations

from layerstore.testing.arming import Armed, armed, delaying, environment, killing, raising
from layerstore.testing.children import ChildDiedError, in_workers, run_child, start_child, telling
from layerstore.testing.copies import copy_store
from layerstore.testing.explore import CrashExplorer, Outcome, reopen, still_clock
from layerstore.testing.ledger import Expectation, Ledger, expectation, image, layer, name, read_ledger
from layerstore.testing.oracle import Verdict, dump, examine, violations
from layerstore.testing.passing import FaultNotReachedError, Passing, kill_at, passings
from layerstore.testing.trees import Entry, Tree, differences, read_tree, tree_of_tar

__all__ = [
    "Armed", "ChildDiedError", "CrashExplorer", "Entry", "Expectation", "FaultNotReachedError", "Ledger", "Outcome",
    "Passing", "Tree", "Verdict", "armed", "copy_store", "delaying", "differences", "dump", "environment", "examine",
    "expectation", "image", "in_workers", "kill_at", "killing", "layer", "name", "passings", "raising", "read_ledger",
    "read_tree", "reopen", "run_child", "start_child", "still_clock", "telling", "tree_of_tar", "violations",
]
