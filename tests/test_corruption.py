"""The corruption campaign: a hundred and fifty seeded damages to a small store of varied layers; and its negative controls."""

import argparse
import os
import random
import signal
import tempfile
from dataclasses import replace

import pytest

import imagemaker
import layerstore
from layerstore.trees import compare
from layerstore.verbs import repair
from layerstore.verbs.check import Depth, layers, structure
from crash import corruption as rig
from crash.corruption.__main__ import table
from crash.state import collect
from layerstore.store import Store
from layerstore.testing import copy_store
from layerstore.testing.copies import disk_print
from layerstore.testing.corruption import KINDS, Campaign
from layerstore.testing.corruption.damages import suits
from layerstore.testing.corruption.keeping import Kept
from layerstore.testing.corruption.places import Places
from layerstore.verbs.repair import Do
from layerstore.verbs.repair.places import Nearby
from layerstore.verbs.repair.supply import Source
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
        store.set_quota(1 << 30)
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


def seeds_of(campaign, purpose):
    """The first seeds that damage what is for that."""
    names = [os.path.relpath(os.path.join(at, name), campaign.root) for at, *found in os.walk(campaign.root)
             for name in (*found[0], *found[1])]
    places = Places.of(iter([*names, "journal/segments/0.seg"]))   # which the campaign makes before it begins
    return [seed for seed in range(1, 700) if places.purpose(random.Random(seed)) == purpose][:12]


def test_a_check_that_does_not_hash_is_caught(campaign, monkeypatch):
    monkeypatch.setattr(layers, "Batch", type("Batch", (layers.Batch,), {"run": lambda self, *_rest: self.done.put(None)}))
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
    monkeypatch.setattr(repair._Run, "_rounds", lambda _self, layer, *_rest: layers.blank(layer, Depth.CONTENT))
    assert finds(campaign, "otherwise", "false alarm")


def test_a_repair_that_restores_other_bytes_is_caught(campaign, monkeypatch):
    def wrong(self, *, real=Store.repair, **options):
        report = real(self, **options)
        for step in report.steps:
            path = os.path.join(self.root, "layers", step.subject, step.path)
            if step.do is Do.RESTORE and os.path.isfile(path):
                status = os.stat(path)
                with open(path, "r+b") as file:
                    file.write(b"?")
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        return report

    monkeypatch.setattr(Store, "repair", wrong)
    assert finds(campaign, "mended otherwise")


def test_a_repair_that_changes_a_layer_that_was_not_damaged_is_caught(campaign, monkeypatch):
    def careless(self, *, real=Store.repair, **options):
        report = real(self, **options)
        for layer in self.layers():
            os.chmod(os.path.join(self.root, "layers", layer.id, "diff"), 0o711)
        return report

    monkeypatch.setattr(Store, "repair", careless)
    assert finds(campaign, "never damaged, and changed")


def test_a_repair_that_does_not_look_into_other_layers_is_caught(campaign, monkeypatch):
    monkeypatch.setattr(Nearby, "locate", lambda *_args: None)
    assert finds(campaign, "all of it is in the store")


def test_a_repair_that_puts_no_tree_back_is_caught(campaign, monkeypatch):
    monkeypatch.setattr(Source, "give", lambda *_args: None)
    seeds = seeds_of(campaign, "whole tree")
    assert any("the source has it" in text for each in campaign.run(seeds) for text in each.violations)


def test_a_check_that_does_not_look_at_the_archive_is_caught(campaign, monkeypatch):
    def blind(self, *, real=Store.check, **options):
        report = real(self, **options)
        return replace(report, findings=tuple(each for each in report.findings if not each.code.startswith("journal-")))

    monkeypatch.setattr(Store, "check", blind)
    assert finds(campaign, "not what was sealed", "SegmentError")


def test_a_check_that_does_not_look_at_the_quota_is_caught(campaign, monkeypatch):
    monkeypatch.setattr(structure, "quota_file", lambda _handle: iter(()))
    assert any("calls it clean" in text for each in campaign.run(seeds_of(campaign, "quota")[:3]) for text in each.violations)


def test_a_process_that_dies_of_damage_is_a_violation_and_the_campaign_goes_on(campaign, monkeypatch):
    def dying(self, *, real=Store.check, **options):
        report = real(self, **options)
        if report.findings:
            os.kill(os.getpid(), signal.SIGKILL)
        return report

    monkeypatch.setattr(Store, "check", dying)
    results = list(campaign.run(range(1, 8)))
    assert len(results) == 7 and any("the process died" in text for each in results for text in each.violations)


def test_every_kind_of_damage_is_seen_and_undone_to_the_byte(campaign):
    whole = os.path.join(os.path.dirname(campaign.root), "whole")
    copy_store(campaign.root, whole)
    kept = Kept(whole, os.path.join(os.path.dirname(campaign.root), "damaged"))
    before = disk_print(kept.root)
    draw = random.Random(1)
    for kind, damage in KINDS.items():
        for _ in range(8):
            where = draw.choice([p for p in kept.facts if suits(kind, p, os.lstat(f"{whole}/{p}"))])
            done = damage(f"{kept.root}/{where}", draw)
            changed = kept.changed()
            assert changed or not done or where.endswith("/diff/layer0"), (kind, where)   # a whiteout's mode
            kept.restore()
            assert disk_print(kept.root) == before, (kind, where)
            assert not kept.changed()


def test_the_rig_gives_a_state_for_each_damage_that_says_what_became_of_it(campaign):
    options = argparse.Namespace(store=campaign.root, source=list(campaign._sources), images=None, only=None, workers=2, seed=1,
                                 states=12, work=None)
    tally = collect(rig.states(options))
    assert (tally.states, tally.bad) == (12, [])
    lines = list(table([*rig.states(argparse.Namespace(**{**vars(options), "states": 3}))]))
    assert sum(int(line.split("|")[2]) for line in lines[2:lines.index("")]) == 3
    (again,) = rig.states(argparse.Namespace(**{**vars(options), "only": 4}))
    assert again.seed == 4 and again.details["outcome"] and again.reproduce.endswith("--only 4")
