"""Which committed layers to look for content in, the likeliest first. Questions to the catalog only.

Content comes again in the next build of the same image, and in what stands on the same base. Where neither has it, the
newest layers are as good a guess as any: of a bounded number, so that asking costs no more in the largest store.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from heapq import nlargest
from itertools import islice
from typing import Any

from layerstore.lifecycle.catalog import Reader
from layerstore.lifecycle.states import State

__all__ = ["candidates", "repository"]

_ROWS = 20_000                           # of layers that are looked at for the newest; docs/dedup.md has what that costs


def candidates(view: Reader, names: Iterable[str], parent: str | None, most: int) -> list[str]:
    """At most *most* IDs of committed layers for an image that is to be called *names*, or a layer to stand on *parent*."""
    found: dict[str, None] = {}
    for layer_id in _near(view, names, parent):
        if len(found) >= most:
            break
        found[layer_id] = None
    if len(found) < most:
        for layer_id in _newest(view, most):
            found.setdefault(layer_id)
    return list(found)[:most]


def repository(name: str) -> str:
    """The part of an image's name that its versions share: without tag and digest (as in the field)."""
    name = name.partition("@")[0]
    head, colon, tag = name.rpartition(":")
    return head if colon and "/" not in tag else name


def _near(view: Reader, names: Iterable[str], parent: str | None) -> Iterator[str]:
    for layers in _relatives(view, {repository(each) for each in names}):
        yield from layers
    if parent is not None:
        prefix = f"{parent}/child/"
        for key, _ in view.scan("users", prefix):
            yield from _here(view, key.removeprefix(prefix))
    while parent is not None:
        yield from _here(view, parent)
        row = _row(view, parent)
        parent = row["parent"] if row is not None else None


def _relatives(view: Reader, repositories: set[str]) -> list[Sequence[str]]:
    """The layers of images that have a name in one of the repositories; the newest image first."""
    images = {
        owner["id"] for each in sorted(repositories) if each
        for name, owner in view.scan("names", each) if owner["kind"] == "image" and repository(name) == each
    }
    rows = [view.get("images", image_id) for image_id in sorted(images)]
    there = [row for row in rows if row is not None and row["state"] == State.COMMITTED]
    there.sort(key=lambda row: -int(row["created_ns"]))
    return [list(row["layers"]) for row in there]


def _row(view: Reader, layer_id: str) -> dict[str, Any] | None:
    pointer = view.get("ids", layer_id)
    return view.get("layers", pointer["txid"]) if pointer is not None else None


def _here(view: Reader, layer_id: str) -> Iterator[str]:
    row = _row(view, layer_id)
    if row is not None and row["state"] == State.COMMITTED:
        yield layer_id


def _newest(view: Reader, most: int) -> list[str]:
    committed = (
        (int(row.get("created_ns", 0)), str(row["layer_id"])) for _, row in islice(view.scan("layers"), _ROWS)
        if row["state"] == State.COMMITTED
    )
    return [layer_id for _, layer_id in nlargest(most, committed)]
