"""A store of real images that rots: seeded damage to content, manifests, side files, segments and ``data.mdb``.

The store has two images of Debian packages, made here, unless it is given (``--store``); one image's source is at hand, the
other's is not. ``layerstore.testing.corruption`` does the damage and judges: whatever was changed is found at the right
depth, or has no effect; nothing else is called damaged; what another layer or the source has is repaired to the byte; the
rest is quarantined, and not served. Not here: damage while the store is open, and crashes.

* ``debian``   the images, and a store of them
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

from crash.corruption.debian import made_store
from crash.state import State, filesystem
from layerstore.testing.corruption import Campaign, Result

_USUAL = 2000
_APART = 1_000_000                       # so many seeds of damages for each of the rig's


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", help="damage copies of this store, which nobody uses meanwhile; it is only read")
    parser.add_argument("--source", action="append", default=[], help="of an image of --store, as for 'layerstore pull'")
    parser.add_argument("--images", help="keep the images that are made in this directory, and use them again")
    parser.add_argument("--only", type=int, help="the one damage of this seed")
    parser.add_argument("--workers", type=int, default=2)


def states(options: argparse.Namespace) -> Iterator[State]:
    """A state per damage; 2 000 but for ``--states``."""
    root, sources = options.store, options.source
    if root is None:
        root, sources = made_store(options.work, options.images or os.path.join(options.work, "images"))
    seeds = range((options.seed - 1) * _APART, (options.seed - 1) * _APART + (options.states or _USUAL))
    if options.only is not None:
        seeds = range(options.only, options.only + 1)
    again = _again(options)
    where = filesystem(os.path.dirname(os.path.abspath(root)))
    campaign = Campaign(root, sources=sources, workers=min(options.workers, len(seeds)))
    for result in campaign.run(seeds):
        yield _told(result, where, again)


def _again(options: argparse.Namespace) -> str:
    given = "".join(f" --source {each}" for each in options.source)
    if options.store is not None:
        return f"python -m crash run corruption --store {options.store}{given} --only"
    return f"python -m crash run corruption --images {options.images or 'DIR'} --only"


def _told(result: Result, where: str, again: str) -> State:
    outcome = "violation" if result.violations else "kept" if result.outcome == "no effect" else "error"
    return State(
        "corruption", result.purpose, f"{result.kind}: {result.path}", outcome, violations=result.violations,
        redo=result.outcome in ("mended", "rebuilt"), fs=where, seed=result.seed, reproduce=f"{again} {result.seed}",
        details={
            "kind": result.kind, "depth": result.depth, "outcome": result.outcome, "why": result.why,
            "source": result.source, "was_quarantined": result.was_quarantined,
        },
    )
