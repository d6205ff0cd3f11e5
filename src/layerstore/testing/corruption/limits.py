"""Damage to ``quota.json``, and what must be true then: it is found, nothing is mended, and to set it again is enough.

Not here: another limit that is as good as the one that was, for the file has no digest: a flipped digit is a quota.
"""

from __future__ import annotations

import json
import random

import layerstore
from layerstore.testing.corruption.damages import KINDS
from layerstore.testing.corruption.judging import Result

__all__ = ["NAME", "hit", "judge_quota"]

NAME = "quota.json"
_KINDS = ("extend", "kind", "truncate", "zero")


def hit(root: str, draw: random.Random) -> str:
    """Damage it; the kind of damage."""
    kind = draw.choice(_KINDS)
    KINDS[kind](f"{root}/{NAME}", draw)
    return kind


def judge_quota(result: Result, whole: str, root: str) -> Result:
    """Fill in what becomes of the damage to the store at *root*, a copy of that at *whole*."""
    limit = _limit(whole)
    with layerstore.open(root) as store:
        codes = {each.code for each in store.check().findings}
        if _limit(root) == limit:        # a line that ends otherwise
            result.outcome, result.why = "no effect", "it says the same"
            expected = set()
        else:
            result.depth, result.outcome, expected = "structure", "left", {"quota-file-damaged"}
            if store.repair().clean:
                result.violations.append("a repair calls it clean, and nothing has the limit")
        if codes != expected:
            result.violations.append(f"not found at any depth, or something else: {sorted(codes)}")
        store.set_quota(limit)
        if findings := store.check().findings:
            result.violations.append(f"set again, and still damaged: {findings[0]}")
        if store.quota() != limit:
            result.violations.append("set again, and another")
    return result


def _limit(root: str) -> int | None:
    try:
        with open(f"{root}/{NAME}", "rb") as file:
            return int(json.load(file)["bytes"])
    except (OSError, ValueError):
        return None
