"""The corruption campaign: a few hundred seeded damages over a small store of varied layers; and its negative controls."""

import os
import tempfile

import pytest

import imagemaker
import layerstore
from layerstore.trees import compare
from layerstore.verbs import repair
from layerstore.verbs.check import layers
from layerstore.testing.corruption import KINDS, Campaign
from storekit import add, image
from test_repair import SPEC

SEEDS = 150


@pytest.fixture
def campaign(tmp_path):
    """On a RAM disk: nothing is to wait for a disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as directory:
        yield campaign_in(directory, image(tmp_path))


def campaign_in(directory, made):
    root = os.path.join(directory, "store")
    with layerstore.open(root) as store:
        store.pull(made.reference)
        add(store, SPEC, big_data={"key": b"value"})
        add(store, {**{path: node for path, node in SPEC.items() if path != "hard"}, "d/more": b"1"})
        add(store, imagemaker.many_files(40, size=60))
    return Campaign(root, sources=[made.reference])


@pytest.mark.timeout(900)
def test_every_damage_is_found_and_mended_or_quarantined_and_nothing_else_is_called_damaged(campaign, record_property):
    bad = [result for result in campaign.run(range(1, SEEDS + 1)) if result.violations]
    assert not bad, [str(each) for each in bad[:5]]
    record_property("states", sum(campaign.tally.values()))
    assert {kind for _, kind, _, _ in campaign.tally} >= set(KINDS)
    outcomes = {outcome for _, _, _, outcome in campaign.tally}
    assert outcomes == {"mended", "quarantined", "no effect", "rebuilt", "left"}
    assert {depth for _, _, depth, _ in campaign.tally} >= {"open", "structure", "metadata", "content"}


def finds(campaign, *words, seeds=150):
    """Whether the campaign notices: looked at until it does."""
    return any(word in text for result in campaign.run(range(1, seeds)) for text in result.violations for word in words)


def test_a_check_that_does_not_hash_is_caught(campaign, monkeypatch):
    monkeypatch.setattr(layers, "Batch", type("Batch", (layers.Batch,), {"run": lambda self, _pace: self.done.put(None)}))
    assert finds(campaign, "not found at any depth")


def test_a_check_that_does_not_look_at_modes_is_caught(campaign, monkeypatch):
    monkeypatch.setattr(compare, "_metadata_wrong", lambda *_args: iter(()))
    assert finds(campaign, "not found at any depth")


def test_a_check_that_cries_wolf_is_caught(campaign, monkeypatch):
    real = layers.begin

    def crying(handle, layer, *rest):
        look = real(handle, layer, *rest)
        look.findings.append(layers.Finding("path-content", layer.id, "wolf", "x"))
        return look

    runs = campaign.run(range(1, 3))
    monkeypatch.setattr(layers, "begin", crying)
    with pytest.raises(AssertionError, match="not sound"):
        next(runs)


def test_a_repair_that_gives_no_attributes_is_caught(campaign, monkeypatch):
    from layerstore.recovery import mending

    monkeypatch.setattr(mending, "wear_all", lambda *_args: None)
    assert finds(campaign, "the source has it", "otherwise")


def test_a_repair_that_says_it_mended_and_did_not_is_caught(campaign, monkeypatch):
    monkeypatch.setattr(repair._Run, "_rounds", lambda *_args: [])
    assert finds(campaign, "otherwise", "false alarm")
