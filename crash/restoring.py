"""Repairs of what is no file's content, and from a source: ``repair-source``, ``repair-parts`` and ``repair-rest``.

What may live here: those workloads, each a store that was damaged on purpose below the low-water mark, where recovery does
not look, and one repair of all of it. As in ``repairing`` the ledger knows the damage: until the repair is told of, each of
it may be there or not.

* ``repair-source``  a file that no layer has, and a layer that was quarantined for one, come from the image's source
* ``repair-parts``   manifest, tar-split, kept file, side file, txid and a whole directory, each of a layer
* ``repair-rest``    a tree that nobody owns, and the file of an image
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import layerstore
from crash import workloads as w
from crash.content import Picture, content, picture, twice
from crash.repairing import NotAllError, data_of, flip, flipped, text_of
from crash.workloads import Workload, pull
from layerstore.store import Store
from layerstore.testing import Ledger, layer
from layerstore.testing.oracle import damages

__all__ = ["NAMES", "build"]

NAMES = ("repair-source", "repair-parts", "repair-rest")
STRAY = "f" * 64
_LOST, _QUARANTINED = content("s1"), content("s3")
_PARTS = tuple(content(f"p{n}") for n in (1, 2, 3))


@dataclass(frozen=True)
class _Case:
    """``wrong``: what a check says of it, by layer ID (None: of what is no layer's, or only says so of others)."""

    name: str
    what: Picture
    damage: Callable[[str, Ledger], None]
    source: str | None
    wrong: dict[str | None, list[str]]
    look: Callable[[str, list[bytes]], list[str]] = lambda _root, _lines: []

    @property
    def quarantined(self) -> list[str]:
        return [self.what.layer_ids()[-1]] if self.name == "repair-source" else []


def build(directory: str) -> dict[str, Workload]:
    """The workloads; the images that they are of are written to *directory*."""
    source = picture(os.path.join(directory, "source"), [_LOST, w.TWO, _QUARANTINED])
    parts = picture(os.path.join(directory, "parts-of-layers"), [*_PARTS, twice("kept")])
    lost, _, quarantined = source.layer_ids()
    manifest, tar_split, small, kept = parts.layer_ids()

    def of_source(root: str, ledger: Ledger) -> None:
        flip(_path(root, lost, "diff/only-s1/data"))
        flip(_path(root, quarantined, "diff/only-s3/data"))
        with layerstore.open(root) as store, ledger.asking(layer(quarantined, "quarantined")):
            assert store.repair(layers=[quarantined]).quarantined == (quarantined,)

    def of_parts(root: str, _ledger: Ledger) -> None:
        flip(_path(root, manifest, "manifest"))
        flip(_path(root, tar_split, "tar-split"))
        os.truncate(_path(root, small, "layer"), 20)
        os.unlink(_path(root, small, "txid"))
        shutil.rmtree(_path(root, small, "diff/only-p3"))
        flip(_path(root, kept, "kept/0"))

    def of_rest(root: str, _ledger: Ledger) -> None:
        os.makedirs(os.path.join(root, "layers", STRAY, "diff"))
        with open(os.path.join(root, "layers", STRAY, "diff", "file"), "wb") as file:
            file.write(b"somebody's")
        os.truncate(os.path.join(root, "images", source.id), 100)

    made = [
        _Case("repair-source", source, of_source, source.reference,
              {lost: ["only-s1/data"], quarantined: []},
              lambda root, _lines: _looked(root, source)),
        _Case("repair-parts", parts, of_parts, parts.reference, {
            manifest: ["manifest"], tar_split: ["tar-split"], kept: ["kept/0"],
            small: ["", "layer", "txid", "only-p3", *(f"only-p3/{each}" for each in ("data", "empty", "hard", "link"))],
        }),
        _Case("repair-rest", source, of_rest, None, {None: [f"damage:{source.id}/", f"damage:layers/{STRAY}/"]}),
    ]
    return {each.name: _workload(each) for each in made}


def _workload(case: _Case) -> Workload:
    facts = {i: [f"damage:{i}/{path}" if i else path for path in paths] for i, paths in case.wrong.items()}

    def prepare(root: str, ledger: Ledger) -> None:
        with layerstore.open(root) as store:
            pull(store, ledger, case.what, "app")
            store.checkpoint(archive=True)       # recovery does not look at what is damaged now
        case.damage(root, ledger)
        w.settle(root)                           # what the power is cut of is the repair
        with layerstore.open(root) as store:
            found = damages(store, content=True)
        image = f"damage:{case.what.id}/"        # is as good as its layers, any of which may be quarantined
        mine = [each for paths in facts.values() for each in paths]
        assert sorted(found) == sorted([*mine, *([image] if case.quarantined else [])]), found
        with ledger.asking(dict.fromkeys(mine, "bad")):
            pass
        open_ = [each.removesuffix("data") + "hard" for each in mine if each.endswith("/data")]   # as in ``repairing``
        open_ += [image] if case.source else []
        with suppress(NotAllError), ledger.asking(dict.fromkeys(open_, "bad")):
            raise NotAllError

    def run(root: str, ledger: Ledger) -> None:
        with layerstore.open(root) as store:
            for layer_id in [i for i in facts if i] or [None]:   # an error of one says nothing of another
                whole = [layer(i, each.diff_id) for i, each in zip(case.what.layer_ids(), case.what.layers, strict=True)
                         if i == layer_id and i in case.quarantined]
                with suppress(NotAllError), ledger.asking(dict.fromkeys(facts[layer_id]), *whole):
                    _repair(store, ledger, [layer_id] if layer_id else [], case.source)

    def again(store: Store) -> None:
        report = store.repair(source=case.source)
        assert report.clean, f"a repair left something: {report}"
        assert {each.state for each in store.layers()} == {"committed"}
        if case.name == "repair-rest":
            assert _is_kept(store.root), "the tree that nobody owned is not kept"

    return Workload(case.name, prepare, run, again, look=case.look)


def _repair(store: Store, ledger: Ledger, layers: list[str], source: str | None) -> None:
    report = store.repair(layers=layers, source=source)
    if report.clean:
        return
    for each in report.quarantined:              # a call failed: it says so, and is right to go on
        with ledger.asking(layer(each, "quarantined")):
            pass
    raise NotAllError


def _path(root: str, layer_id: str, path: str) -> str:
    return os.path.join(root, "layers", layer_id, path)


def _is_kept(root: str) -> bool:
    kept = os.path.join(root, "quarantine")
    return any(text_of(os.path.join(kept, each, "diff", "file")) == b"somebody's" for each in os.listdir(kept))


def _looked(root: str, what: Picture) -> list[str]:
    """What a source's content takes the place of is good, or just as bad as it was."""
    wrong = []
    damaged = zip(what.layer_ids()[::2], (_LOST, _QUARANTINED), ("only-s1/data", "only-s3/data"), strict=True)
    for layer_id, each, path in damaged:
        good = data_of(each.tar, path)
        if text_of(_path(root, layer_id, f"diff/{path}")) not in (good, flipped(good)):
            wrong.append(f"{path} is neither mended nor as it was")
    return wrong
