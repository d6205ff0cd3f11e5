"""What each format left on disk is opened, recovered and gone on with by this release.

``tests/golden/v1/`` (of format 1.0) and ``v1.1/`` are frozen; ``tests/golden/make_store.py`` says how they were made.
"""

import json
import os
import sys
from pathlib import Path

import pytest

import layerstore
from layerstore.lifecycle.states import TRANSITIONS
from layerstore.testing import violations

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))

import make_store  # noqa: E402
from make_store import LABEL, MOUNT, NAMES, show, unpack  # noqa: E402
from storekit import finished  # noqa: E402


VERSIONS = {"v1": [1, 0], "v1.1": [1, 1]}
OF = {**dict.fromkeys(NAMES, "v1"), "signed": "v1.1"}


def expected(name):
    return json.loads((GOLDEN / OF.get(name, "v1.1") / f"{name}.json").read_text())


def newer(root, kind):
    """What a later minor version may make of a store: a feature of a name that is unknown here, and files beside."""
    path = root / "store.json"
    config = json.loads(path.read_text())
    config["format"][1] += 7
    config["features"][kind].append("later")
    path.write_text(json.dumps({**config, "later": {"some": "thing"}}))
    for directory in (root, *(root / "layers").iterdir(), *(root / "staging").iterdir()):
        (directory / "later").write_text("?")
    return path.read_bytes()


def everything(root):
    """Every path with its content; not what LMDB keeps of its readers, nor who is in."""
    return {str(path): path.read_bytes() if path.is_file() and not path.is_symlink() else b"" for path in root.rglob("*")
            if path.name not in ("lock.mdb", "pidns")}


@pytest.fixture(params=OF)
def golden(request, tmp_path):
    return request.param, unpack(request.param, tmp_path, OF[request.param])


def test_a_golden_store_is_read_as_it_was_left_and_the_plan_is_the_same(golden):
    name, root = golden
    assert show(root) == expected(name)


def test_a_golden_store_is_of_the_format_that_it_is_frozen_for(golden):
    name, root = golden
    assert json.loads((root / "store.json").read_text())["format"] == VERSIONS[OF[name]]


def test_the_table_of_states_is_the_one_that_readers_of_format_1_have():
    """Or a store with the new transition would look torn to an older release, without being refused."""
    lines = (GOLDEN / "v1" / "transitions.txt").read_text().splitlines()
    frozen = [tuple(line.split()) for line in lines if not line.startswith("#")]
    assert sorted(frozen) == sorted((row.kind, row.source, row.trigger, row.dest) for row in TRANSITIONS)


def test_a_new_store_is_of_the_newest_format_that_is_frozen(store, root):
    config = json.loads((root / "store.json").read_text())
    assert config["format"] == max(VERSIONS.values())
    assert config["features"]["compatible"] == ["image-signatures", "mount-labels"]


def test_an_older_format_is_not_made_a_newer_one_by_being_opened(tmp_path):
    root = unpack("clean", tmp_path)
    before = (root / "store.json").read_bytes()
    with layerstore.open(root) as store:
        store.checkpoint()
    assert (root / "store.json").read_bytes() == before


def test_signatures_and_labels_of_format_1_1_are_read(tmp_path):
    with layerstore.open(unpack("signed", tmp_path, "v1.1"), create=False) as store:
        signed = store.image(store.resolve("signed")[1])
        assert [each.kind for each in signed.signatures] == ["attached", "referrer"]
        assert {each.subject for each in signed.signatures} == {signed.manifest_digest}
        assert store.image(store.resolve("app")[1]).signatures == ()
        (kept,) = store.mounts()
        assert (kept.id, kept.label, kept.mounted, kept.writable) == (MOUNT, LABEL, False, True)
        assert store.check(content=True).sound


@pytest.fixture
def mapped(tmp_path):
    """The golden store with a map of ids; what its layers have is whose it was, where this user may say so."""
    root = unpack("mapped", tmp_path, "v1.1")
    for path in (root / "layers").rglob("*") if os.geteuid() == 0 else ():
        os.chown(path, make_store.NOBODY, make_store.NOBODY, follow_symlinks=False)
    return root


def test_a_golden_store_with_a_map_of_ids_is_read_as_it_was_left(mapped):
    assert show(mapped) == expected("mapped")


@pytest.mark.root
def test_the_map_of_ids_of_a_golden_store_is_kept_to(mapped):
    with layerstore.open(mapped, create=False) as store:
        assert store.recovery.clean
        made = make_store.put(store, "today", "9" * 64)
        with store.layer_paths(made.id) as (diff,):
            owners = {os.lstat(path).st_uid for path in Path(diff).rglob("*")}
        assert owners == {make_store.NOBODY}        # whom the map has for the archive's root
        assert store.check(content=True).sound


@pytest.fixture
def on_another(tmp_path):
    """The golden store that stands on another, and that one."""
    (tmp_path / "lower").mkdir()
    return unpack("beneath", tmp_path, "v1.1"), unpack("clean", tmp_path / "lower")


def test_a_golden_store_is_read_over_the_one_beneath_it_as_it_was_left(on_another):
    root, lower = on_another
    assert show(root, beneath=[lower]) == expected("beneath")


def test_a_golden_store_is_gone_on_with_over_the_one_beneath_it(on_another):
    root, lower = on_another
    before = everything(lower)
    with layerstore.open(root, create=False, beneath=[lower]) as store:
        assert store.recovery.clean
        assert store.check(content=True, beneath=True).sound
        added = make_store.put(store, "today", "9" * 64, parent="8" * 64)
        assert [each.id for each in store.chain(added.id)] == ["b" * 64, "c" * 64, "8" * 64, "9" * 64]
        store.delete_layer(added.id)
        store.checkpoint(archive=True)
        assert [each.name for each in store.leases()] == ["golden"]
    assert everything(lower) == before


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


def test_a_store_of_a_newer_minor_is_used_and_what_is_unknown_in_it_stays(golden):
    """An operating system with two halves goes back to the older one: the store must still be its store."""
    name, root = golden
    written = newer(root, "compatible")
    assert show(root) == expected(name)
    with layerstore.open(root, create=False) as store:
        added = make_store.put(store, "today", "9" * 64, parent="b" * 64)
        store.checkpoint(archive=True)
        assert store.check(content=True).sound
        assert (root / "layers" / ("b" * 64) / "later").exists()
        store.delete_layer(added.id)
        store.delete_layer("d" * 64)      # with the file that nobody here knows
        store.checkpoint()
    assert (root / "store.json").read_bytes() == written
    assert (root / "later").exists()
    assert violations(str(root)) == []


def test_a_store_with_a_feature_that_only_readers_may_not_know_is_read_and_not_touched(golden):
    name, root = golden
    newer(root, "read_only_compatible")
    show(root)                            # makes lock.mdb, as every reader may
    before = everything(root)
    assert show(root) == expected(name)
    with pytest.raises(layerstore.errors.UnsupportedFormatError, match="later") as caught:
        layerstore.open(root)
    assert "read-only" in caught.value.hint
    assert everything(root) == before


def test_a_store_with_a_feature_that_one_must_know_is_refused_and_not_touched(golden):
    _, root = golden
    newer(root, "incompatible")
    before = everything(root)
    for readonly in (True, False):
        with pytest.raises(layerstore.errors.UnsupportedFormatError, match="later"):
            layerstore.open(root, readonly=readonly)
    assert everything(root) == before


def test_a_feature_that_only_readers_may_not_know_keeps_the_journal_from_being_written_too(tmp_path):
    root = unpack("redo", tmp_path)
    newer(root, "read_only_compatible")
    with layerstore.open(root, readonly=True) as store:
        assert not store.recovery.clean
        with pytest.raises(layerstore.errors.ReadOnlyError):
            store.recover()
