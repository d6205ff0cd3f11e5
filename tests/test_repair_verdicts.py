"""What a repair may conclude: mended only what was compared, quarantined only what is known to be bad."""

import os

import pytest

import layerstore
from layerstore.trees import compare
from layerstore.verbs.repair.supply import Supply
from storekit import add, image
from test_check import flip
from test_repair import tree


@pytest.fixture
def store(tmp_path):
    with layerstore.open(tmp_path / "store") as opened:
        yield opened


def quarantined(store):
    """A layer of which one file is bad for good, and which is quarantined for it."""
    layer = add(store, {"file": b"only here" * 20})
    flip(tree(store, layer, "diff", "file"))
    assert store.repair().quarantined == (layer.id,)
    return layer


def state_of(store, layer):
    return {each.id: each.state for each in store.layers()}[layer.id]


def unreadable(monkeypatch, name):
    """This process may not read files of that *name* any more."""
    real = compare.open_regular

    def opened(path, dir_fd):
        if path == name:
            raise PermissionError(13, "Permission denied")
        return real(path, dir_fd)

    monkeypatch.setattr(compare, "open_regular", opened)


@pytest.mark.parametrize("depth", ["structure", "metadata"])
def test_a_quarantined_layer_is_not_mended_by_who_does_not_look_at_its_content(store, depth):
    layer = quarantined(store)
    report = store.repair(depth=depth)
    assert (report.mended, report.quarantined, report.clean) == ((), (layer.id,), False)
    assert state_of(store, layer) == "quarantined"


def test_a_quarantined_layer_is_not_mended_by_who_may_not_read_it(store, monkeypatch):
    layer = quarantined(store)
    unreadable(monkeypatch, b"file")
    report = store.repair()
    assert (report.mended, list(report.failed), report.clean) == ((), [layer.id], False)
    assert "may not be read" in report.failed[layer.id]
    assert state_of(store, layer) == "quarantined"


def test_what_may_not_be_read_is_not_said_to_be_whole_because_something_else_was_mended(store, monkeypatch):
    layer = add(store, {"file": b"only here" * 20, "other": b"x"})
    with open(tree(store, layer, "layer"), "wb"):
        pass
    unreadable(monkeypatch, b"file")
    report = store.repair()
    assert (report.mended, list(report.failed)) == ((), [layer.id])
    assert state_of(store, layer) == "committed"
    monkeypatch.undo()
    assert store.check(content=True).sound


@pytest.mark.parametrize("part", ["manifest", "tar-split"])
def test_a_part_from_the_source_is_compared_before_it_takes_its_place(store, tmp_path, monkeypatch, part):
    """At the depth of structure nobody looks at it afterwards."""
    made = image(tmp_path)
    layer = store.layer(store.pull(made.reference).layers[1])
    os.unlink(tree(store, layer, part))
    monkeypatch.setattr(Supply, "part", lambda *_args: lambda: iter([b"another one"]))
    report = store.repair(depth="structure", source=made.reference)
    assert (report.mended, report.quarantined) == ((), (layer.id,))
    assert not os.path.exists(tree(store, layer, part))
