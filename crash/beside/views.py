"""Workloads that make views, refresh them and take them away; read as containers/storage would read them."""

from __future__ import annotations

import os
from functools import partial

import layerstore
from crash import workloads as w
from crash.beside import viewreading
from crash.beside.common import beside, compared, killed, pulled, told
from crash.content import Picture
from crash.workloads import Workload, pull
from layerstore.store import Store
from layerstore.testing import Ledger
from layerstore.testing.ledger import Value

__all__ = ["broken", "build"]

VIEW = "view"


def build(one: Picture, two: Picture, third: Picture) -> list[Workload]:
    """Both of the first images are there, and mostly shown; the third comes."""
    before, first = partial(_shown, one, two), partial(pulled, one, two)
    return [
        Workload("view", before, partial(_refresh, third), _view_again, look=_look),
        Workload("view-first", first, _view_first, _view_again, look=_look),
        Workload("view-killed", before, partial(_view_killed, third), _view_again, look=_look),
        Workload("view-removed", before, _remove, _view_again, look=_look),
    ]


def _names(*names: str) -> str:
    return " ".join(sorted(f"localhost/{each}:latest" for each in names))


def _view(store: Store, ledger: Ledger, *names: str) -> None:
    with ledger.asking(told(VIEW, _names(*names))):
        store.view(beside(store.root, VIEW))


def _shown(one: Picture, two: Picture, root: str, ledger: Ledger) -> None:
    """Both are shown; then one goes, whose layers the view keeps."""
    pulled(one, two, root, ledger)
    with layerstore.open(root) as store:
        _view(store, ledger, "one", "two")
        with ledger.asking(w.image(two.id, None), w.name("two", "image", None)):
            store.delete_image(two.id)
    w.settle(root)


def _view_first(root: str, ledger: Ledger) -> None:
    with layerstore.open(root) as store:
        _view(store, ledger, "one", "two")


def _refresh(third: Picture, root: str, ledger: Ledger) -> None:
    """One image goes from the view, another comes; then what it held is deleted."""
    with layerstore.open(root) as store:
        pull(store, ledger, third, "third")
        _view(store, ledger, "one", "third")
        _collect(store, ledger)


def _collect(store: Store, ledger: Ledger) -> None:
    """What the view shows is held, and what it does not show any more is not."""
    kept = {each for image in store.images() for each in image.layers}
    with ledger.asking(*(w.layer(each.id, None) for each in store.layers() if each.id not in kept)):
        store.collect_garbage(grace=0)


def _view_killed(third: Picture, root: str, ledger: Ledger) -> None:
    """The first refresh is killed when the view has changed, and that is not yet on disk."""
    def first() -> None:
        with layerstore.open(root) as store:
            _view(store, ledger.shared(), "one", "third")

    with layerstore.open(root) as store:
        pull(store, ledger, third, "third")
    killed("view.switch.sync:before:kill", first)
    with layerstore.open(root) as store:
        _view(store, ledger, "one", "third")
        _collect(store, ledger)


def _remove(root: str, ledger: Ledger) -> None:
    with layerstore.open(root) as store, ledger.asking(told(VIEW, None)):
        store.remove_view(beside(root, VIEW))


def _view_again(store: Store) -> None:
    at = beside(store.root, VIEW)
    for _ in range(2):
        store.view(at)
        shown = {name for names in viewreading.read_view(at).values() for name in names}
        assert shown == {f"localhost/{name}:latest" for image in store.images() for name in image.names}, shown
    store.remove_view(at)
    assert not os.path.lexists(at), "something of the view is left"


def _look(root: str, lines: list[bytes]) -> list[str]:
    """It shows what it was told to show, whole. It was copied from elsewhere, with its store."""
    viewreading.moved(beside(root, VIEW), root)
    return compared(VIEW, lambda: _facts(root), lines)


def _facts(root: str) -> dict[str, Value]:
    at = beside(root, VIEW)
    shown = [name for names in viewreading.read_view(at).values() for name in names] if os.path.isdir(at) else []
    return told(VIEW, " ".join(sorted(shown)) or None)


def broken(root: str, _lines: list[bytes]) -> list[str]:
    """Whatever it shows, if anything, is whole."""
    return compared(VIEW, lambda: dict.fromkeys(_facts(root)), [])
