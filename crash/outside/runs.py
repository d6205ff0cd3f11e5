"""The command lines that are killed from outside, each with the store it starts from and what it is to bring about.

A command's answer on its standard output is its promise, as a return is a verb's: what it printed before it was
killed must hold. ``checkpoint`` has no command of its own, so its run is a program of one line.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import layerstore
from crash.content import Content
from crash.workloads import (
    BASE,
    BASE_ID,
    DOOMED,
    DOOMED_ID,
    FIRST_ID,
    LEFT,
    ONE,
    TOP,
    Images,
    drop,
    facts_of,
    pull,
    pull_again,
    put,
    stage,
)
from layerstore.store import Store
from layerstore.testing import Ledger, Passing, kill_at
from layerstore.testing.ledger import Facts, image, layer, name

CHECKPOINT = """
import sys, layerstore
with layerstore.open(sys.argv[1]) as store:
    store.checkpoint(archive=True)
print("done")
"""


@dataclass(frozen=True)
class Run:
    """A command line (``{root}`` in it is the store), the store before it, the facts it is to bring about.

    ``again`` is what a user does after the crash, on the recovered store.
    """

    name: str
    arguments: Sequence[str]
    prepare: Callable[[str, Ledger], object]
    facts: Sequence[Facts]
    again: Callable[[Store], object]

    def command(self, python: str, root: str) -> list[str]:
        return [python, *(each.replace("{root}", root) for each in self.arguments)]


def build(directory: str) -> dict[str, Run]:
    """All runs, by name, with their images and tars written into *directory*."""
    images = Images(os.path.join(directory, "images"))
    first = images.first
    tar, top_id = os.path.join(directory, "top.tar"), _chain_id(BASE_ID, TOP)
    with open(tar, "wb") as file:
        file.write(TOP.tar)
    pulling = _cli("pull", "--workers", "1", "--quiet", "--name", "app", first.reference)

    def with_image(root: str, ledger: Ledger) -> None:
        with layerstore.open(root) as store:
            put(store, ledger, BASE, BASE_ID, names=("base",))
            pull(store, ledger, first, "app")

    def half_pulled(root: str, ledger: Ledger) -> None:
        based(root, ledger)

        def pull_it() -> None:
            with layerstore.open(root) as store:
                pull(store, ledger, first, "app")

        kill_at(Passing("publish.rename", "after", 2), pull_it)

    gone = [image(first.id, None), name("app", "image", None), *(layer(i, None) for i in first.layer_ids())]
    made = [
        Run("pull", pulling, based, facts_of(first, "app"), pull_again(first, "app")),
        Run("first-pull", pulling, nothing, facts_of(first, "app"), pull_again(first, "app")),
        Run("apply", _cli("apply", "--parent", "base", "--name", "top", tar), based,
            [layer(top_id, TOP.diff_id), name("top", "layer", top_id)], _apply_again(TOP, top_id, BASE_ID)),
        Run("rm", _cli("rm", "app"), with_image, gone, pull_again(first, "app")),
        Run("gc", _cli("gc", "--retention", "0", "--grace", "0"), littered, [layer(FIRST_ID, None)],
            _apply_again(ONE, FIRST_ID, BASE_ID)),
        Run("checkpoint", ("-c", CHECKPOINT, "{root}"), littered, [], _apply_again(ONE, FIRST_ID, BASE_ID)),
        Run("recover", _cli("recover"), half_pulled, [], pull_again(first, "app")),
    ]
    return {each.name: each for each in made}


def _cli(*arguments: str) -> tuple[str, ...]:
    return ("-m", "layerstore", "--root", "{root}", *arguments)


def nothing(_root: str, _ledger: Ledger) -> None:
    """No store yet: the run makes it."""


def based(root: str, ledger: Ledger) -> None:
    """One layer, with a name."""
    with layerstore.open(root) as store:
        put(store, ledger, BASE, BASE_ID, names=("base",))


def littered(root: str, ledger: Ledger) -> None:
    """A layer in the trash, one that nothing uses, one left staged: something for every part of a collection."""
    based(root, ledger)
    with layerstore.open(root) as store:
        put(store, ledger, DOOMED, DOOMED_ID)
        drop(store, ledger, DOOMED_ID)
        put(store, ledger, ONE, FIRST_ID, parent=BASE_ID)
        stage(store, LEFT).release()


def _chain_id(parent: str, what: Content) -> str:
    return hashlib.sha256(f"{parent}+{what.diff_id.removeprefix('sha256:')}".encode()).hexdigest()


def _apply_again(what: Content, layer_id: str, parent: str) -> Callable[[Store], object]:
    def again(store: Store) -> None:
        with stage(store, what) as staged:
            assert store.apply_staged_layer(staged, id=layer_id, parent=parent).diff_id == what.diff_id

    return again
