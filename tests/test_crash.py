"""SIGKILL at every fault point of pull → apply → delete → checkpoint, and at every one of the recovery that follows.

``LAYERSTORE_CRASH_EVERY=1`` kills recovery after *every* first kill; the ordinary run nests after every n-th. Each
kill is proved to have landed; negative controls show that the oracle catches what it is for.
"""

import os
import shutil

import pytest

import layerstore
from layerstore import LayerSpec, PullOptions, executor, recover
from layerstore.testing import FaultNotReachedError, Passing, explore, kill_at, passings, violations
from storekit import add, differ, image

EVERY = int(os.environ.get("LAYERSTORE_CRASH_EVERY", "1"))


def reopen(root):
    with layerstore.open(root):
        pass


def run(tmp_path, prepare, scenario, *, nested=False, every=1, judge=violations):
    outcomes = list(explore(prepare, scenario, str(tmp_path), recovery=reopen if nested else None, every=every, judge=judge))
    bad = [(tuple(map(str, o.killed_at)), o.violations) for o in outcomes if o.violations]
    assert not bad, f"{len(bad)} of {len(outcomes)}: {bad[:3]}"
    return len(outcomes)


def pulling(made):
    """A pull into an empty store, and the oracle that knows what it must come to."""
    def scenario(root):
        with layerstore.open(root) as store:
            store.pull(made.reference, options=PullOptions(workers=1))

    def judge(root):
        found = violations(root)
        with layerstore.open(root) as store:
            here = store.images()
            if here and [x.diff_id for x in store.chain(here[0].layers[-1])] != list(made.diff_ids):
                found.append("the image is not whole")
            pulled = store.pull(made.reference)      # the same pull again succeeds
            if not store.check(content=True).sound or pulled.id != made.config_digest[7:]:
                found.append("the pull after the crash went wrong")
        return found

    return scenario, judge


def test_a_pull_killed_at_every_fault_point_leaves_the_image_whole_or_absent(tmp_path, record_property):
    scenario, judge = pulling(image(tmp_path))
    count = run(tmp_path, reopen, scenario, judge=judge)
    record_property("states", count)
    assert count > 60


@pytest.mark.timeout(1800)
def test_the_recovery_of_a_pull_killed_at_each_of_its_own_fault_points_converges(tmp_path, record_property):
    scenario, judge = pulling(image(tmp_path))
    count = run(tmp_path, reopen, scenario, nested=True, every=EVERY, judge=judge)
    record_property("states", count)
    assert count > 300 // EVERY


def everything(made):
    """Single and batch apply with big data, a duplicate, delete and create again, image delete, checkpoint, archive."""
    def prepare(root):
        with layerstore.open(root) as store:
            add(store, id="b" * 64, names=["base"])
            add(store, {"doomed": b"x"}, id="d" * 64, names=["doomed"])
            store.pull(made.reference)

    def scenario(root):
        with layerstore.open(root) as store:
            with store.stage(differ({"top": b"1"}, keyed=True)) as staged:
                store.apply_staged_layer(staged, parent="b" * 64, big_data={"k": b"v"}, names=["top"])
            store.delete_layer("d" * 64)
            add(store, {"again": b"y"}, id="d" * 64)
            add(store, {"again": b"y"}, id="d" * 64)
            with store.stage(differ({"m": b""})) as one, store.stage(differ({"n": b""})) as two:
                store.apply_batch([LayerSpec(one, id="1" * 64), LayerSpec(two, parent="1" * 64, id="2" * 64)])
            store.set_name("alias", "2" * 64)
            store.delete_image(store.images()[0].id)
            store.checkpoint(archive=True)
            store.stage(differ({"left": b""})).release()
            store.collect_garbage(retention=0, grace=0)

    return prepare, scenario


def test_every_verb_killed_at_every_fault_point(tmp_path, record_property):
    count = run(tmp_path, *everything(image(tmp_path, layers=2)))
    record_property("states", count)
    assert count > 200


@pytest.mark.timeout(1800)
def test_recovery_killed_at_each_of_its_own_fault_points_converges(tmp_path, record_property):
    count = run(tmp_path, *everything(image(tmp_path, layers=2)), nested=True, every=EVERY)
    record_property("states", count)
    assert count > 1000 // EVERY


def test_a_store_being_created_is_killed_at_every_fault_point(tmp_path):
    def scenario(root):
        with layerstore.open(os.path.join(root, "s")) as store:
            add(store)

    def judge(root):
        path = os.path.join(root, "s")
        if not os.path.exists(os.path.join(path, "store.json")):
            reopen(path)
        return violations(path)

    outcomes = list(explore(os.mkdir, scenario, str(tmp_path), judge=judge))
    assert len(outcomes) > 30
    assert not [o for o in outcomes if o.violations]


# -- negative controls: the rig catches what it is there for -----------------------------------------------------------


def test_a_kill_that_does_not_land_is_an_error(tmp_path):
    with pytest.raises(FaultNotReachedError):
        kill_at(Passing("no.such.point", "before", 1), lambda: reopen(str(tmp_path / "s")))
    with pytest.raises(AssertionError):
        passings(lambda: 1 / 0)


def sabotaged(tmp_path, monkeypatch_target, name, replacement):
    """Explore with one function of the product replaced; True if any state was found bad."""
    original = getattr(monkeypatch_target, name)
    setattr(monkeypatch_target, name, replacement(original))
    try:
        made = image(tmp_path, layers=2)
        prepare, scenario = everything(made)
        for outcome in explore(prepare, scenario, str(tmp_path)):
            if outcome.violations:
                return True
    except AssertionError:
        return True
    finally:
        setattr(monkeypatch_target, name, original)
    return False


SABOTAGES = {
    "recovery trusts an incomplete batch and commits without moving its trees":
        (executor, "_into_place", lambda original: lambda handle, txid, row: True),
    "recovery does not look for strays":
        (recover, "_strays", lambda original: lambda handle, subjects: {}),
    "a sweep drops the row and forgets the tree":
        (executor, "_sweep", lambda original: lambda h, t, r, f, w: executor._drop_row(h, t, r, f, w)),
    "the side file is not written":
        (executor, "_write_side_file", lambda original: lambda *a: None),
    "the image's file is not written":
        (executor, "write_image_file", lambda original: lambda *a: None),
}


@pytest.mark.parametrize("name", SABOTAGES)
def test_a_planted_mistake_is_caught(tmp_path, name):
    target, function, replacement = SABOTAGES[name]
    if name.startswith("a sweep"):   # found by its entry in the table of actions
        from layerstore.recovery import Do

        original = executor._ACTIONS[Do.SWEEP]
        executor._ACTIONS[Do.SWEEP] = replacement(original)
        try:
            outcomes = explore(*everything(image(tmp_path, layers=2)), str(tmp_path), judge=only_once)
            assert any(o.violations for o in outcomes)
        finally:
            executor._ACTIONS[Do.SWEEP] = original
        return
    assert sabotaged(tmp_path, target, function, replacement)


def only_once(root):
    """The oracle, with a round of recovery that may not lean on the next one's sweep of strays."""
    before = recover._strays
    recover._strays = lambda handle, subjects: {}
    try:
        return violations(root)
    finally:
        recover._strays = before


def test_the_oracle_sees_damage_of_every_kind(tmp_path):
    root = tmp_path / "s"
    made = image(tmp_path)
    with layerstore.open(root) as store:
        pulled = store.pull(made.reference)
        store.checkpoint()
    assert violations(str(root)) == []

    def broken(change):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        os.spawnvp(os.P_WAIT, "cp", ["cp", "-a", str(root), str(copy)])
        change(copy)
        return violations(str(copy))

    layer = pulled.layers[0]
    assert broken(lambda c: shutil.rmtree(c / "layers" / layer))
    assert broken(lambda c: (c / "layers" / layer / "diff" / "layer0").write_bytes(b""))
    assert broken(lambda c: (c / "layers" / layer / "layer").unlink())
    assert broken(lambda c: (c / "images" / pulled.id).write_bytes(b"torn"))
    assert broken(lambda c: (c / "layers" / ("f" * 64)).mkdir())
    data = bytearray((root / "journal" / "data.mdb").read_bytes())
    at = data.rfind(b"committed")
    data[at] ^= 1
    assert broken(lambda c: (c / "journal" / "data.mdb").write_bytes(bytes(data)))
