"""Whiteouts where no device 0:0 can be made: an overlay, as a container's root is, or whatever forbids it."""

import os
import subprocess

import pytest

import imagemaker
import layerstore
import tarmaker
from layerstore.trees import whiteouts
from storekit import add, differ, tree_names

BASE = {"d": imagemaker.Dir(), "d/a": b"1", "d/b": b"2", "o": imagemaker.Dir(), "o/x": b"3", "top": b"4"}
OVER = {
    "d": imagemaker.Dir(), "d/a": imagemaker.Whiteout(), "o": imagemaker.Opaque(), "o/x": imagemaker.Whiteout(),
    "o/y": b"5", "top": imagemaker.Whiteout(), "empty": b"",
}


@pytest.fixture
def no_devices(monkeypatch):
    """As on an overlay: a device 0:0 may not be made."""
    def refuse(*args, **options):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(whiteouts.os, "mknod", refuse)


def merged(store, tmp_path, parent, spec=OVER):
    top = add(store, spec, parent=parent.id)
    assert store.check(content=True).sound
    store.extract(top.id, tmp_path / "out")
    return top, sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*"))


def test_they_hide_what_is_below_all_the_same(store, tmp_path, no_devices):
    base = add(store, BASE)
    assert merged(store, tmp_path, base)[1] == ["d", "d/b", "empty", "o", "o/y"]


def test_a_later_entry_replaces_one(store, tmp_path, no_devices):
    """A file, a directory and a link after their own whiteouts, in a directory that becomes opaque."""
    data = (tarmaker.directory(b"d") + tarmaker.file(b"d/.wh.f") + tarmaker.file(b"d/.wh.g") + tarmaker.file(b"d/.wh.h")
            + tarmaker.file(b"d/f", b"now a file") + tarmaker.directory(b"d/g") + tarmaker.file(b"d/.wh..wh..opq") + b"\0" * 1024)
    with store.stage(layerstore.TarDiffer(data)) as staged:
        layer = store.apply_staged_layer(staged)
    assert store.check(content=True).sound
    with store.layer_paths(layer.id) as (diff,):
        assert sorted(os.listdir(os.path.join(diff, "d"))) == ["f", "g"]
        assert open(os.path.join(diff, "d", "f"), "rb").read() == b"now a file"


def test_packing_gives_them_back(store, tmp_path, no_devices):
    layer = add(store, OVER)
    with store.layer_paths(layer.id) as (diff,), store.stage(layerstore.DirectoryDiffer(diff)) as staged:
        again = store.apply_staged_layer(staged, id="a" * 64)
        with store.layer_paths(again.id) as (copy,):
            assert sorted(os.listdir(copy)) == sorted(os.listdir(diff))
    assert store.check(content=True).sound


@pytest.mark.root
def test_the_kernel_takes_them_for_whiteouts(store, tmp_path, no_devices):
    base = add(store, BASE)
    top, names = merged(store, tmp_path, base)
    (tmp_path / "mnt").mkdir()
    store.mount(top.id, tmp_path / "mnt")
    try:
        shown = sorted(str(p.relative_to(tmp_path / "mnt")) for p in (tmp_path / "mnt").rglob("*") if os.path.lexists(p))
        assert shown == names
    finally:
        store.unmount(tmp_path / "mnt")


@pytest.mark.root
def test_a_store_on_an_overlay_works_and_is_labelled(tmp_path):
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    subprocess.run(["mount", "-t", "overlay", "none", "-o", options, tmp_path / "merged"], check=True)
    try:
        with layerstore.open(tmp_path / "merged" / "s") as store:
            assert (store.filesystem, store.durability) == ("overlay", "unproven")
            base = add(store, BASE)
            assert merged(store, tmp_path, base)[1] == ["d", "d/b", "empty", "o", "o/y"]
            with store.stage(differ({"z": b""})):
                pass
        assert tree_names(tmp_path / "merged" / "s", "staging") == []
    finally:
        subprocess.run(["umount", tmp_path / "merged"], check=True)
