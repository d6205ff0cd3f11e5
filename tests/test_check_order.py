"""``check`` by and by: what is looked at first, what a budget leaves for the next time, what is remembered between."""

import itertools
import os
import sys
import time

import pytest

import layerstore
from layerstore.cli import main
from layerstore.dedup import suspects
from storekit import add, killed_at
from test_check import PATHS, flip, tree


@pytest.fixture
def store(tmp_path):
    with layerstore.open(str(tmp_path / "store")) as opened:
        yield opened


def watched(store, *, depth="content"):
    """The IDs of layers as they are looked at, from now on."""
    seen = []

    class Watch:
        def event(self, what, **fields):
            if what == "checked" and fields["depth"] == depth:
                seen.append(fields["layer_id"])

    store._handle.observer = Watch()
    return seen


def one_at_a_time(store, times, depth="content"):
    """The layers that so many checks without any time look at."""
    seen = watched(store, depth=depth)
    for _ in range(times):
        store.check(depth=depth, budget=0.0)
    return seen


def four(store):
    return [add(store, {"f": bytes([n]) * 50}).id for n in range(4)]


def covered(store):
    layers = four(store)
    store.checkpoint()
    return layers


def break_content(path):
    flip(path + "/diff/f")


def break_txid(path):
    os.unlink(path + "/txid")


def break_manifest(path):
    flip(path + "/manifest", at=30)


def lose_diff(path):
    os.rename(path + "/diff", path + "/../../elsewhere")


@pytest.mark.parametrize("damage", [break_content, break_txid, break_manifest, lose_diff])
def test_damage_that_waits_for_its_repair_keeps_no_other_layer_from_being_looked_at(store, damage):
    layers = covered(store)
    damage(os.path.join(store.root, "layers", min(layers)))
    assert set(one_at_a_time(store, 6)) == set(layers)


def test_what_may_not_be_read_keeps_no_other_layer_from_being_looked_at(store, monkeypatch):
    hashing = sys.modules["layerstore.verbs.check.hashing"]
    layers = covered(store)
    monkeypatch.setattr(hashing, "content_problem", lambda fds, entry, *_: hashing.Problem(entry.path, "unread", True))
    assert set(one_at_a_time(store, 4)) == set(layers)


def test_what_no_checkpoint_covers_is_looked_at_first_only_until_it_was(store):
    layers = covered(store)
    new = [add(store, {"new": bytes([n])}).id for n in range(2)]
    seen = one_at_a_time(store, 6)
    assert (set(seen[:2]), set(seen[2:])) == (set(new), set(layers))


def test_what_was_found_rotten_is_looked_at_first_only_until_it_was(store):
    layers = covered(store)
    one_at_a_time(store, 4)
    rotten = max(layers)
    fd = os.open(os.path.join(store.root, "layers", rotten), os.O_RDONLY)
    suspects.note(fd, b"f")
    now = store._handle.clock()          # a file's time is that of the last tick
    os.utime(suspects.NAME, ns=(now, now), dir_fd=fd)
    os.close(fd)
    seen = one_at_a_time(store, 5)
    assert seen[0] == rotten and set(seen[1:4]) == set(layers) - {rotten} and seen[4] == rotten


def test_a_look_at_metadata_puts_off_none_at_content(store):
    covered(store)
    (first,) = one_at_a_time(store, 1, depth="metadata")
    assert one_at_a_time(store, 1) == [first]


def test_damage_is_not_left_out_because_the_layer_was_sound_before_it(store):
    layer = add(store, PATHS)
    begun = store._handle.clock()
    assert store.check(depth="content", note=True).sound
    flip(tree(store, layer, "diff", "d", "file"))
    assert not store.check(depth="content", note=True).sound
    report = store.check(depth="content", since_ns=begun)
    assert (report.recent, [f.code for f in report.findings]) == (0, ["path-content"])


def first_looked_at(root, **options):
    """The layer that a check with no time looks at, after all was covered by a checkpoint."""
    with layerstore.open(root, **options) as store:
        store.checkpoint()
    with layerstore.open(root, **options) as store:
        (seen,) = one_at_a_time(store, 1)
    return seen


def test_a_layer_that_recovery_finished_is_looked_at_first_though_a_checkpoint_covers_it_since(tmp_path):
    root, last = str(tmp_path / "store"), "f" * 64
    with layerstore.open(root) as store:
        four(store)

    def apply():
        with layerstore.open(root) as store:
            add(store, {"new": b"1"}, id=last)

    killed_at("publish.rename", "after", apply)
    assert first_looked_at(root) == last
    assert first_looked_at(root) != last


def test_what_was_not_covered_when_the_machine_went_down_is_looked_at_first_though_it_was_looked_at_before(tmp_path):
    root, last, now = str(tmp_path / "store"), "f" * 64, time.time_ns()
    before = now - 400 * 86_400 * 10**9   # longer than the machine that runs this is up
    clock = itertools.count(before)
    with layerstore.open(root, clock=lambda: next(clock)) as store:
        covered(store)
        store.check(depth="content", note=True)
        add(store, {"new": b"1"}, id=last)
        assert store.check(depth="content", since_ns=1).looked_at == 1
    assert first_looked_at(root) == last
    assert first_looked_at(root) != last


def test_what_is_not_covered_is_noted_by_no_open_of_the_same_boot(tmp_path):
    root = str(tmp_path / "store")
    with layerstore.open(root) as store:
        layer = add(store)
    with layerstore.open(root) as store:
        assert not os.path.exists(tree(store, layer, "checked"))


# -- what is said of it --------------------------------------------------------------------------------------------------


def test_a_check_that_does_not_get_to_damage_that_an_earlier_one_found_says_so(store):
    layers = sorted(covered(store))
    flip(os.path.join(store.root, "layers", layers[0], "diff", "f"))
    assert [store.check(depth="content", budget=0.0).left_unsound for _ in layers] == [0, 1, 1, 1]
    flip(os.path.join(store.root, "layers", layers[0], "diff", "f"))
    assert store.check(depth="content").left_unsound == 0
    assert not store.check(depth="content", budget=0.0).left_unsound, "it is looked at again"


def test_what_a_repair_put_right_is_not_told_of_as_damaged_before(store):
    store.check(depth="content", budget=9.0)
    mended = add(store, {"f": b"the same" * 50}, id="1" * 64)
    add(store, {"f": b"the same" * 50}, id="2" * 64)
    flip(os.path.join(store.root, "layers", mended.id, "diff", "f"))
    assert not store.check(depth="content", budget=9.0).sound
    before = time.time_ns()
    assert store.repair().mended == (mended.id,)
    assert store.check(depth="content", since_ns=before).recent == 1, "a repair looked at all of it"


def test_since_when_every_layer_was_looked_at_is_told_however_many_checks_it_took(store):
    layers, times = covered(store), [time.time_ns()]
    for number in range(len(layers)):
        report = store.check(depth="content", budget=0.0)
        assert (report.complete_since_ns is not None) == (number == len(layers) - 1)
        times.append(time.time_ns())
    assert times[0] <= report.complete_since_ns <= times[1], "the one that was looked at first"
    assert times[1] <= store.check(depth="content", budget=0.0).complete_since_ns <= times[2]
    assert store.check(depth="content").complete_since_ns >= times[-1]


def test_options_that_say_nothing_or_two_things_are_not_taken_in_silence(store, capsys):
    four(store)
    root = store.root
    store.close()
    said = lambda *words: (main(["--root", root, "check", *words]), capsys.readouterr())
    status, shown = said("--since", "1h")
    assert status == 0
    assert "structure is always looked at whole" in shown.err
    assert said("--content", "--depth", "metadata")[0] == 2
    status, shown = said("--content", "--since", "tomorrow")
    assert (status, "2026-11-30" in shown.err) == (2, True)
    flip(os.path.join(root, "layers", min(os.listdir(f"{root}/layers")), "diff", "f"))
    assert [said("--content", "--budget", "0")[0] for _ in range(4)].count(3) == 1
    assert "1 of them were not sound when last looked at" in said("--content", "--budget", "0")[1].out + said("--content", "--budget", "0")[1].out
