"""Stores beneath where nothing can be written: squashfs, erofs, a read-only bind mount, and as on a network's file system."""

import os
import subprocess

import pytest

import layerstore
from crash.disk.kernel_calls import own_mounts
from layerstore import errors
from layerstore.opening import beneath
from layerstore.system import filesystem
from layerstore.testing import telling
from storekit import add, image

MAKE = {
    "squashfs": ["mksquashfs", "{0}", "{1}", "-quiet", "-no-progress", "-comp", "gzip"],
    "erofs": ["mkfs.erofs", "--quiet", "{1}", "{0}"],
}


def preseed(home):
    """A store as it is made for delivery, and the image in it."""
    with layerstore.open(home / "made") as store:
        pulled = store.pull(image(home, name="base").reference, names=["app:1"])
        store.checkpoint()
    return pulled


def at_rest(kind, home):
    """Mount what was made at ``home/beneath``, read-only."""
    target = home / "beneath"
    target.mkdir()
    if kind == "bind":
        subprocess.run(["mount", "--bind", home / "made", target], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", target], check=True)
        return target
    subprocess.run([part.format(home / "made", home / "file") for part in MAKE[kind]], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["mount", "-t", kind, "-o", "loop,ro", home / "file", target], check=True)
    return target


def used(kind, home):
    """What the upper store makes of it: run in a mount namespace of its own, with which the mounts go."""
    own_mounts()
    pulled, mounted = preseed(home), home / "mounted"
    mounted.mkdir()
    below = at_rest(kind, home)
    try:
        with layerstore.open(home / "above", beneath=[below]) as store:
            child = add(store, {"child": b"c"}, parent=pulled.layers[-1], names=["child:1"])
            mine = store.pull(image(home, name="more", layers=4).reference, names=["more:1"])
            store.extract("child:1", home / "out")
            with store.diff(pulled.layers[-1]) as chunks:
                size = sum(map(len, chunks))
            store.mount("child:1", mounted, writable=True)
            (mounted / "written").write_bytes(b"above")
            seen = sorted(os.listdir(mounted))
            store.commit(mounted, names=["committed:1"])
            store.unmount(mounted)
            found = store.check(content=True, beneath=True).findings
            with pytest.raises(errors.BeneathError):
                store.delete_image(pulled.id)
        with layerstore.open(home / "above", readonly=True) as store:   # recorded
            chain = [each.store is None for each in store.chain(child.id)]
        return seen, sorted(os.listdir(home / "out")), chain, len(mine.beneath), size > 0, found
    finally:
        subprocess.run(["umount", "--lazy", below], check=True)          # the loop device goes with it


@pytest.mark.root
@pytest.mark.parametrize("kind", ["squashfs", "erofs", "bind"])
def test_a_store_beneath_that_cannot_be_written_is_stood_on_mounted_and_checked(tmp_path, kind):
    seen, extracted, chain, shared, tar, found = telling(lambda: used(kind, tmp_path))
    assert seen == ["child", "layer1", "layer2", "shared", "written"]
    assert extracted == ["child", "layer1", "layer2", "shared"]
    assert chain == [False, False, False, True]
    assert shared >= 1 and tar and found == ()


@pytest.mark.root
def test_a_preseed_that_is_unmounted_is_missing_by_name(tmp_path):
    def work():
        own_mounts()
        pulled = preseed(tmp_path)
        below = at_rest("squashfs", tmp_path)
        with layerstore.open(tmp_path / "above", beneath=[below]) as store:
            child, uuid = add(store, {"child": b"c"}, parent=pulled.layers[-1]), store.beneath[0].uuid
        subprocess.run(["umount", below], check=True)   # nobody holds it any more
        with layerstore.open(tmp_path / "above") as store:
            with pytest.raises(errors.BeneathMissingError) as caught:
                store.chain(child.id)
            return caught.value.store == uuid, caught.value.layer_id == pulled.layers[-1], store.beneath[0].missing

    named, layer, why = telling(work)
    assert named and layer and "store.json" in why


def test_on_a_networks_file_system_no_lock_is_taken_and_nothing_written(tmp_path, monkeypatch):
    pulled = preseed(tmp_path)
    for name in ("lock.mdb", "pidns"):
        os.unlink(tmp_path / "made" / "journal" / name)
    real = filesystem.identify
    there = os.stat(tmp_path / "made").st_ino
    monkeypatch.setattr(filesystem, "identify", lambda fd: "nfs" if os.fstat(fd).st_ino == there else real(fd))
    with layerstore.open(tmp_path / "above", beneath=[tmp_path / "made"]) as store:
        child = add(store, {"child": b"c"}, parent=pulled.layers[-1])
        store.extract(child.id, tmp_path / "out")
        assert not store._handle.beneath[0].locks
        assert beneath.home(store._handle, pulled.layers[0]) is store._handle.beneath[0]
    assert not {"lock.mdb", "pidns"} & set(os.listdir(tmp_path / "made" / "journal"))
