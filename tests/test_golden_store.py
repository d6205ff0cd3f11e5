"""What the first release left on disk is opened, recovered and gone on with by this one.

``tests/golden/v1/`` is frozen; ``tests/golden/make_store.py`` says how it was made.
"""

import json
import os
import sys
from pathlib import Path

import pytest

import layerstore
from layerstore.testing import violations

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))

import make_store  # noqa: E402
from make_store import NAMES, show, unpack  # noqa: E402
from storekit import finished  # noqa: E402


def expected(name):
    return json.loads((GOLDEN / "v1" / f"{name}.json").read_text())


@pytest.fixture(params=NAMES)
def golden(request, tmp_path):
    return request.param, unpack(request.param, tmp_path)


def test_a_golden_store_is_read_as_it_was_left_and_the_plan_is_the_same(golden):
    name, root = golden
    assert show(root) == expected(name)


def test_a_golden_store_is_of_the_format_that_it_is_frozen_for(golden):
    _, root = golden
    assert json.loads((root / "store.json").read_text())["format"] == [1, 0]


def test_opening_the_clean_one_does_nothing(tmp_path):
    with layerstore.open(unpack("clean", tmp_path), create=False) as store:
        assert store.recovery.clean
        assert store.check(content=True).sound


def test_opening_the_other_one_does_what_was_planned_and_then_it_is_whole(tmp_path):
    root = unpack("redo", tmp_path)
    with layerstore.open(root, create=False) as store:
        planned = expected("redo")["plan"]["actions"]
        done = [{"do": a.do.value, "key": a.key, "layer_id": a.layer_id, "why": a.why} for a in store.recovery.actions]
        assert done == planned
        assert len({each["do"] for each in planned}) >= 9
        layers = {layer.id for layer in store.layers()}
        assert {"1" * 64, "4" * 64, "d" * 64} < layers
        assert not {"2" * 64, "3" * 64, "5" * 64, "6" * 64, "7" * 64} & layers
    assert violations(str(root)) == []


def test_of_what_was_left_filled_the_torn_is_swept_and_the_whole_kept(tmp_path):
    with layerstore.open(unpack("filled", tmp_path), create=False) as store:
        assert [a.do.value for a in store.recovery.actions] == ["release", "sweep"]
        assert sorted(row["state"] for row in finished(store).values()) == ["staged", "staged", "staging"]
        with make_store.staged(store, "filled") as left:
            assert left.adopted == (os.geteuid() != 0)


def test_a_golden_store_can_be_gone_on_with(golden):
    _, root = golden
    with layerstore.open(root, create=False) as store:
        added = make_store.put(store, "today", "9" * 64, parent="b" * 64)
        store.delete_layer(added.id)
        with make_store.staged(store, "left") as left:     # root could set more than they who made it, and makes it anew
            assert left.adopted == (os.geteuid() != 0)
        store.checkpoint(archive=True)
        store.delete_image(store.images()[0].id)
    assert violations(str(root)) == []
