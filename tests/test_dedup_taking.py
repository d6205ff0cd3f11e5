"""A layer that takes its content from others, from end to end: on file systems that share blocks, and on one that does not."""

import os
import subprocess

import pytest
from disks import on_disk
from storekit import observed
from treediff import snapshot

import layerstore
from crash.content import content
from crash.taking import TakingDiffer
from layerstore.dedup import LayerFinder

SHARED = content("taken1", size=300_000)
CLONES = {"ext4": 0, "xfs": 1, "btrfs": 1}


def taking(store, what=SHARED, **more):
    return TakingDiffer(what.tar, LayerFinder(store._handle), **more)


def apply(store, differ, layer_id):
    with store.stage(differ) as staged:
        return store.apply_staged_layer(staged, id=layer_id)


def first(store):
    from layerstore import TarDiffer

    return apply(store, TarDiffer(SHARED.tar), "1" * 64)


def spoil(root, layer):
    path = os.path.join(root, "layers", layer.id, "diff", "only-taken1", "data")
    status = os.stat(path)
    with open(path, "r+b") as opened:
        opened.write(b"rot")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_layer_is_made_of_what_is_here(store, root):
    first(store)
    differ = taking(store)
    layer = apply(store, differ, "2" * 64)
    assert (differ.taken, differ.cloned, differ.fetched) == (2, 0, 0)
    assert snapshot(root / "layers" / layer.id / "diff") == snapshot(root / "layers" / ("1" * 64) / "diff")
    assert store.check(content=True).sound


def test_what_is_rotten_is_fetched(store, root):
    spoil(root, first(store))
    differ = taking(store)
    layer = apply(store, differ, "2" * 64)
    assert (differ.taken, differ.cloned, differ.fetched) == (1, 0, 1)   # the other file is as it was
    assert [each.subject for each in store.check().findings] == ["1" * 64]
    assert [each.subject for each in store.check(content=True).findings] == ["1" * 64]
    assert layer.id == "2" * 64


def test_the_source_may_be_deleted_meanwhile(store, root):
    first(store)
    reports = []
    differ = taking(store, meanwhile=lambda: reports.append(store.delete_layer("1" * 64, wait=0.0)))
    apply(store, differ, "2" * 64)
    store.recover()
    assert reports[0].deferred
    assert os.listdir(root / "layers") == ["2" * 64]
    assert store.check(content=True).sound


def _on(directory):
    """A layer from another one: how, what was passed, whether all is well, and the bytes that the disk then had used."""
    os.mkdir(os.path.join(directory, "store"))
    root = os.path.join(directory, "store")
    with layerstore.open(root) as store:
        first(store)
        differ = taking(store)
        with observed([]) as passed:
            apply(store, differ, "2" * 64)
        same = snapshot(os.path.join(root, "layers", "1" * 64, "diff")) == snapshot(os.path.join(root, "layers", "2" * 64, "diff"))
        sound = store.check(content=True).sound
        with store.diff("2" * 64) as chunks:
            same_tar = b"".join(chunks) == SHARED.tar
        spoil(root, store.layer("1" * 64))     # blocks are shared until one is written: the other keeps its content
        after = [each.subject for each in store.check(content=True).findings]
        again = taking(store)
        apply(store, again, "3" * 64)
        return {
            "taken": differ.taken, "cloned": differ.cloned, "links": passed.count("unpack.donor.link"),
            "clones": passed.count("dedup.clone"), "same": same, "sound": sound, "same_tar": same_tar, "after": after,
            "third": store.check(content=True).findings[0].subject, "layers": len(store.layers()),
        }


@pytest.mark.root
@pytest.mark.parametrize("name", ["ext4", "xfs", "btrfs"])
def test_blocks_are_shared_where_the_file_system_does_that(name):
    clones = CLONES[name]
    assert on_disk(name, _on) == {
        "taken": 2 - clones, "cloned": clones, "links": clones, "clones": clones, "same": True, "sound": True,
        "same_tar": True, "after": ["1" * 64], "third": "1" * 64, "layers": 3,
    }


def _rotten_clone(directory):
    root = os.path.join(directory, "store")
    with layerstore.open(root) as store:
        spoil(root, first(store))
        differ = taking(store)
        apply(store, differ, "2" * 64)
        return differ.cloned, differ.fetched, [each.subject for each in store.check().findings]


@pytest.mark.root
def test_a_rotten_source_is_not_cloned():
    assert on_disk("btrfs", _rotten_clone) == (0, 1, ["1" * 64])


def _shared_bytes(directory):
    root = os.path.join(directory, "store")
    with layerstore.open(root) as store:
        first(store)
        apply(store, taking(store), "2" * 64)
    path = os.path.join(root, "layers", "2" * 64, "diff", "only-taken1", "data")
    shown = subprocess.run(["filefrag", "-v", path], capture_output=True, text=True, check=True).stdout
    return "shared" in shown


@pytest.mark.root
@pytest.mark.parametrize("name", ["xfs", "btrfs"])
def test_the_kernel_says_that_the_blocks_are_shared(name):
    assert on_disk(name, _shared_bytes)
