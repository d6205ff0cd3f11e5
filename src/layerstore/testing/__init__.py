"""Crash-test layerstore, or a tool built on it: fault points by name, kills at each of them, and the oracle.

::

    from layerstore.testing import explore, violations

    def scenario(root):                       # runs in a forked child; open the store in it
        with layerstore.open(root) as store:
            store.pull("oci:image:latest")

    for outcome in explore(prepare, scenario, root):   # one SIGKILL per fault point passed
        assert not outcome.violations, outcome

Shipped, because a tool that stands on a crash-safe store wants to crash-test itself. Nothing in layerstore imports
this package. It uses ``os.fork``: call it from a single-threaded process.
"""

from __future__ import annotations

from layerstore.testing.children import ChildDiedError, run_child, start_child, telling
from layerstore.testing.explore import FaultNotReachedError, Outcome, Passing, explore, kill_at, passings
from layerstore.testing.ledger import Expectation, Ledger, expectation, read_ledger
from layerstore.testing.oracle import Verdict, dump, examine, violations
from layerstore.testing.trees import differences, read_tree, tree_of_tar

__all__ = [
    "ChildDiedError", "Expectation", "FaultNotReachedError", "Ledger", "Outcome", "Passing", "Verdict", "differences",
    "dump", "examine", "expectation", "explore", "kill_at", "passings", "read_ledger", "read_tree", "run_child",
    "start_child", "telling", "tree_of_tar", "violations",
]
