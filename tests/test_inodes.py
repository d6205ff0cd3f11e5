"""A file system that has no inodes left: who needs some is told so before anything is fetched, where that can be known."""

import errno
import io
import os
import pathlib
import random

import pytest

import chunkedmaker
import layerstore
from disks import on_disk

from layerstore.errors import NoInodesError, NoSpaceError
from layerstore.system import fs, room
from storekit import add, differ, image, tree_names

FILES = [chunkedmaker.member(f"f{n}", b"%d" % n * 200) for n in range(40)]

def left(directory, number):
    """Leave so many inodes there."""
    os.mkdir(f"{directory}/others")
    for n in range(room.free_inodes(os.open(directory, os.O_RDONLY)) - number):
        os.close(os.open(f"{directory}/others/{n}", os.O_CREAT | os.O_WRONLY))

def staged(store, made, told):
    blob = layerstore.LocalBlob(lambda: io.BytesIO(made.blob), len(made.blob), "a blob")
    with store.stage(layerstore.ChunkedDiffer(blob, expect=made.descriptor, diff_id=made.diff_id), progress=told.append):
        pass

def raised(call):
    try:
        call()
    except layerstore.LayerstoreError as error:
        return type(error).__name__, getattr(error, "needed", None), getattr(error, "free", None)
    return None

def without_inodes(directory):
    made = chunkedmaker.make(chunkedmaker.FORMS[0], FILES + [chunkedmaker.member("big", random.Random(1).randbytes(200_000))])
    pulled = image(pathlib.Path(directory))
    told = []
    with layerstore.open(f"{directory}/store") as store:
        layer = add(store, {"a": b"1"})
        left(directory, 30)
        found = {
            "chunked": raised(lambda: staged(store, made, told)), "fetched of it": sum(told) < 20_000,
            "tar": raised(lambda: add(store, {f"g{n}": b"" for n in range(40)})),
            "left of them": tree_names(store.root, "staging"),
        }
        for n in range(20):
            os.close(os.open(f"{directory}/others/more{n}", os.O_CREAT | os.O_WRONLY))
        found["pull"] = raised(lambda: store.pull(pulled.reference))
        for n in range(room.free_inodes(os.open(directory, os.O_RDONLY))):
            os.close(os.open(f"{directory}/others/last{n}", os.O_CREAT | os.O_WRONLY))
        found["stage"] = raised(lambda: store.stage(differ({"a": b"2"})))
        store.delete_layer(layer.id)
        store.checkpoint()
        found["layers"] = store.layers()
        found["inodes"] = store.gauges().free_inodes > 5
    return found

@pytest.mark.root
def test_who_needs_inodes_where_few_are_left_is_told_so_and_deletions_work():
    assert on_disk("ext4", without_inodes) == {
        "chunked": ("NoInodesError", 41, 27), "fetched of it": True, "tar": ("NoInodesError", None, 0), "left of them": [],
        "pull": ("NoInodesError", 18, 10), "stage": ("NoInodesError", None, 0), "layers": [], "inodes": True,
    }

def without_bytes(directory):
    """What is told there who needs more files than the last bytes allow, and whether that is more than is free."""
    piece = 64 << 20
    with open(f"{directory}/ballast", "wb") as file:
        while piece >= 4096:
            try:
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, piece)
            except OSError:
                piece //= 2
        with pytest.raises(NoSpaceError) as caught:
            room.check_inodes(file.fileno(), 100 + room.free_inodes(file.fileno()), "it needs more")
    return caught.type.__name__, caught.value.needed > caught.value.free, 0 < caught.value.free < 1 << 20

@pytest.mark.root
def test_who_needs_files_where_inodes_are_made_of_bytes_and_none_of_those_are_left_is_told_of_bytes():
    assert on_disk("xfs", without_bytes) == ("NoSpaceError", True, True)

@pytest.mark.parametrize(("blocks", "inodes", "told"), [
    (0, 0, ("NoSpaceError", None, 0)), (200, 0, ("NoSpaceError", None, 819_200)), (0, 7, ("NoSpaceError", None, 0)),
    (300, 0, ("NoInodesError", None, 0)), (300, 7, ("NoSpaceError", None, 1_228_800)),
])
def test_a_full_file_system_is_one_without_inodes_only_where_it_has_bytes(monkeypatch, blocks, inodes, told):
    left = os.statvfs_result((4096, 4096, 60_000, blocks, blocks, 1000, inodes, inodes, 0, 255))
    monkeypatch.setattr(os, "fstatvfs", lambda fd: left)
    error = fs.host_error(OSError(errno.ENOSPC, "full"), "unpacking a layer", at=0)
    assert (type(error).__name__, error.needed, error.free) == told

def test_where_inodes_are_made_as_they_are_needed_none_are_counted(monkeypatch, store, tmp_path):
    status = os.statvfs(tmp_path)
    btrfs = os.statvfs_result([*status[:5], 0, 0, 0, *status[8:]])
    monkeypatch.setattr(os, "fstatvfs", lambda fd: btrfs)
    assert room.free_inodes(0) is None
    assert store.pull(image(tmp_path).reference).created
    assert store.gauges().free_inodes is None

def test_an_error_of_inodes_is_one_of_space():
    assert issubclass(NoInodesError, NoSpaceError)
    assert "files" in NoInodesError("x").hint
