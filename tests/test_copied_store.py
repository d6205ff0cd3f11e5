"""A store that was copied, or whose machine was cloned, has the uuid, the rows and the boot ID of the one it came from.

What tells them apart is the directory that mounts stand on: a copy lets go of mounts that are the other one's.
"""

import os
import shutil
import subprocess

import pytest
from test_overlay import NEWNS, in_namespace

import layerstore
from crash.beside import viewreading
from layerstore import errors
from layerstore.recovery import mounting
from layerstore.system import kernel
from layerstore.trees.mounted import is_overlay_mounted
from layerstore.testing import violations
from namespaces import MS_BIND
from storekit import add, differ, image

pytestmark = pytest.mark.root


def copied(tmp_path, *, writable):
    """A store with a mount, and a copy of it; the mount's target."""
    target = tmp_path / "target"
    target.mkdir()
    with layerstore.open(tmp_path / "first") as store:
        layer = add(store)
        store.mount(layer.id, target, writable=writable)
        if writable:
            (target / "mine").write_text("written")
    subprocess.run(["cp", "-a", tmp_path / "first", tmp_path / "second"], check=True)
    return target


@in_namespace
def test_a_copy_does_not_take_the_mount_of_the_first_for_its_own(tmp_path):
    copied(tmp_path, writable=False)
    with layerstore.open(tmp_path / "second") as store:
        assert [action.do.value for action in store.recovery.actions] == ["detach"]
        assert store.mounts() == []
    with layerstore.open(tmp_path / "first") as store:
        assert store.recovery.clean
        assert [each.mounted for each in store.mounts()] == [True]


@in_namespace
def test_a_copy_keeps_what_was_written_and_does_not_unmount_what_is_the_firsts(tmp_path):
    target = copied(tmp_path, writable=True)
    with layerstore.open(tmp_path / "second") as store:
        (kept,) = store.mounts()
        assert not kept.mounted
        assert (tmp_path / "second" / "uppers" / kept.id / "upper" / "mine").read_text() == "written"
        with pytest.raises(errors.BusyError):
            store.mount(kept.layers[0], target, writable=True)
        store.unmount(target)
        assert store.mounts() == []
    assert is_overlay_mounted(str(target))
    assert (target / "mine").read_text() == "written"


@in_namespace
def test_a_copy_lets_go_also_of_a_mount_that_could_not_be_seen_from_here(tmp_path):
    copied(tmp_path, writable=False)
    kernel.unshare(NEWNS)
    with layerstore.open(tmp_path / "second") as store:
        assert store.mounts() == []


@in_namespace
def test_a_store_that_was_renamed_still_knows_its_mount(tmp_path):
    target = copied(tmp_path, writable=True)
    shutil.rmtree(tmp_path / "second")
    os.rename(tmp_path / "first", tmp_path / "renamed")
    with layerstore.open(tmp_path / "renamed") as store:
        assert store.recovery.clean
        store.unmount(target)
    assert not is_overlay_mounted(str(target))


@in_namespace
def test_a_row_of_before_that_says_nothing_of_its_directory_is_believed(tmp_path):
    copied(tmp_path, writable=False)
    with layerstore.open(tmp_path / "first") as store:
        (known,) = store.mounts()
        with store._handle.read() as view:
            row = view.get("mounts", known.id)
        row.pop("uppers")
        assert mounting.mounted_here(store._handle, row)
        elsewhere = os.stat(tmp_path)
        assert not mounting.mounted_here(store._handle, {**row, "uppers": [elsewhere.st_dev, elsewhere.st_ino]})


@in_namespace
def test_after_a_reboot_device_numbers_may_be_others(tmp_path):
    copied(tmp_path, writable=False)
    with layerstore.open(tmp_path / "first") as store:
        (known,) = store.mounts()
        with store._handle.read() as view:
            row = view.get("mounts", known.id)
        device, inode = row["uppers"]
        assert not mounting.mounted_here(store._handle, {**row, "uppers": [device + 1, inode]})
        assert mounting.mounted_here(store._handle, {**row, "uppers": [device + 1, inode], "boot_id": "another"})


@pytest.mark.parametrize("verb", ["view", "remove_view"])
def test_a_copy_does_not_touch_the_view_of_the_first(tmp_path, verb):
    view = tmp_path / "view"
    with layerstore.open(tmp_path / "first") as first:
        pulled = first.pull(image(tmp_path).reference, names=["one:1"])
        first.view(view)
    subprocess.run(["cp", "-a", tmp_path / "first", tmp_path / "second"], check=True)
    before = viewreading.files(view)
    with layerstore.open(tmp_path / "second") as second:
        (lease,) = second.leases()
        with pytest.raises(errors.InvalidArgumentError, match=f"{tmp_path}/first, which this store is a copy of") as caught:
            getattr(second, verb)(view)
        assert lease.name in caught.value.hint
        second.drop_lease(lease.name)
        second.delete_image(pulled.id)
        assert second.layers() == []
    assert viewreading.files(view) == before and viewreading.read_view(view) == {pulled.id: ("localhost/one:1",)}
    with layerstore.open(tmp_path / "first") as first:
        first.remove_view(view)


@pytest.mark.parametrize("first_is", ["gone", "another store", "no store"])
def test_a_copy_takes_away_the_view_of_a_store_that_is_no_more(tmp_path, first_is):
    with layerstore.open(tmp_path / "first") as first:
        first.view(tmp_path / "view")
    subprocess.run(["cp", "-a", tmp_path / "first", tmp_path / "second"], check=True)
    shutil.rmtree(tmp_path / "first")
    if first_is == "another store":
        layerstore.open(tmp_path / "first").close()
    elif first_is == "no store":
        (tmp_path / "first").write_text("a file")
    with layerstore.open(tmp_path / "second") as second:
        second.remove_view(tmp_path / "view")
    assert not (tmp_path / "view").exists()


@in_namespace
def test_a_store_that_is_reached_by_another_path_too_is_no_copy(tmp_path):
    with layerstore.open(tmp_path / "first") as first:
        first.view(tmp_path / "view")
    (tmp_path / "again").mkdir()
    kernel.mount(str(tmp_path / "first"), str(tmp_path / "again"), None, MS_BIND, None)
    with layerstore.open(tmp_path / "again") as again:
        again.remove_view(tmp_path / "view")
    assert not (tmp_path / "view").exists()


def test_a_copy_made_while_the_first_is_open_and_the_first_are_two_stores(tmp_path):
    """As two clones of a machine have it, and here even in one process: what lives is told by locks of files, which differ."""
    with layerstore.open(tmp_path / "first") as first:
        layer = add(first, names=["both"])
        first.take_lease("job", [layer.id])
        alive = first.stage(differ({"staged": b"here"}, keyed=True))
        subprocess.run(["cp", "-a", tmp_path / "first", tmp_path / "second"], check=True)
        with layerstore.open(tmp_path / "second") as second:
            second.drop_lease("job")
            second.delete_layer(layer.id)
            with second.stage(differ({"staged": b"here"}, keyed=True)) as mine:   # nobody is waited for
                theirs = second.apply_staged_layer(mine)
            second.checkpoint(archive=True)
            assert [each.id for each in second.layers()] == [theirs.id]
            assert second.check(content=True).sound
        assert first.apply_staged_layer(alive).id == theirs.id
        assert {each.id for each in first.layers()} == {layer.id, theirs.id}
        assert [each.name for each in first.leases()] == ["job"]
        assert first.check(content=True).sound
    assert violations(str(tmp_path / "first")) == violations(str(tmp_path / "second")) == []


def test_a_database_that_is_the_others_brings_nothing_of_the_other_into_being(tmp_path):
    """A snapshot of one clone, given to the other's rebuild: it has the right uuid, and tells of trees that are not here."""
    with layerstore.open(tmp_path / "first") as first:
        both = add(first, names=["both"])
    subprocess.run(["cp", "-a", tmp_path / "first", tmp_path / "second"], check=True)
    with layerstore.open(tmp_path / "first") as first:
        add(first, {"first": b"1"}, names=["of-the-first"])
        first.snapshot(tmp_path / "snapshot")
    with layerstore.open(tmp_path / "second") as second:
        mine = add(second, {"second": b"2"}, names=["of-the-second"])
    (tmp_path / "second" / "journal" / "data.mdb").unlink()
    layerstore.rebuild(tmp_path / "second", source=tmp_path / "snapshot")
    with layerstore.open(tmp_path / "second") as second:
        assert {each.id for each in second.layers()} == {both.id, mine.id}
        assert second.check(content=True).sound
    assert violations(str(tmp_path / "second")) == []
