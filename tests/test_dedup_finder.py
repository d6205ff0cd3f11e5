"""Content is found among the committed layers, and only there; what is taken is right, or it is not taken."""

import hashlib
import os
import random
import tracemalloc

import pytest
from storekit import add, differ

import layerstore
from layerstore.dedup import LayerFinder, suspects
from layerstore.dedup.candidates import candidates, repository
from layerstore.dedup.finder import Bounds
from layerstore.formats.digests import DigestsWriter
from layerstore.errors import DamagedError

BIG = bytes(range(256)) * 10_000          # more than is read at once
DATA = b"some content, more than tiny: " * 10


def sha(data):
    return hashlib.sha256(data).digest()


def took(store, *wanted, at=None, **more):
    """What is found of *wanted*, read."""
    with LayerFinder(store._handle, **more).find([sha(each) for each in wanted], at) as places:
        return {digest: b"".join(place.read()) for digest, place in places.items()}


def forge(root, layer, *rows):
    """Replace a layer's index by one that says that."""
    tree = root / "layers" / layer.id
    if (tree / "digests").exists():
        (tree / "digests").unlink()
    fd = os.open(tree, os.O_RDONLY)
    with DigestsWriter(fd) as writer:
        for path, offset, length, digest in rows:
            writer.add_chunk(path, offset, length, digest)
        writer.finish()
    os.close(fd)


def spoil(root, layer, path, data=b"rot"):
    """Write over a file's beginning, and leave its times as they are."""
    file = root / "layers" / layer.id / "diff" / path
    status = file.stat()
    with open(file, "r+b") as opened:
        opened.write(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def findings(store, **more):
    return [(each.code, each.message) for each in store.check(**more).findings]


@pytest.mark.parametrize("data", [DATA, BIG])
def test_a_files_content_is_found_in_another_layer(store, data):
    add(store, {"d/f": data, "g": b"other" * 50})
    assert took(store, data, b"not there" * 50) == {sha(data): data}


def test_a_chunk_is_found(store, root):
    layer = add(store, {"f": BIG})
    forge(root, layer, (b"f", 1000, 2000, sha(BIG[1000:3000])))
    assert took(store, BIG[1000:3000]) == {sha(BIG[1000:3000]): BIG[1000:3000]}


def test_a_staged_layer_is_not_looked_in(store):
    with store.stage(differ({"f": DATA})):
        assert took(store, DATA) == {}


def test_a_quarantined_layer_is_not_looked_in(store, root):
    layer = add(store, {"f": DATA})
    assert took(store, DATA)
    os.rename(root / "layers" / layer.id, root / "aside")
    store.close()
    with layerstore.open(root) as again:
        assert again.layers()[0].state == "quarantined"
        os.rename(root / "aside", root / "layers" / layer.id)
        assert took(again, DATA) == {}


def test_a_tree_of_before_goes_by_its_manifest(store, root):
    layer = add(store, {"f": DATA})
    (root / "layers" / layer.id / "digests").unlink()
    assert took(store, DATA) == {sha(DATA): DATA}
    assert took(store, DATA, bounds=Bounds(manifests=0)) == {}


def test_a_layer_is_held_only_while_the_search_is_used(store):
    layer = add(store, {"f": DATA})
    with LayerFinder(store._handle).find([sha(DATA)]) as places:
        assert store.delete_layer(layer.id, wait=0.0).deferred
        assert b"".join(places[sha(DATA)].read()) == DATA
    store.recover()
    assert not os.listdir(os.path.join(store.root, "layers"))


def test_a_layer_that_is_being_deleted_is_passed_over(store, root):
    layer, other = add(store, {"f": DATA}), add(store, {"g": DATA, "x": b"x"})
    from layerstore.system import flock

    with flock.lock_tree(store._handle.dirs["layers"], layer.id):
        with LayerFinder(store._handle).find([sha(DATA)]) as places:
            (place,) = places.values()
            assert place._found.path == b"g"
    assert other.id


def test_a_place_is_not_good_beyond_its_search(store):
    add(store, {"f": DATA})
    with LayerFinder(store._handle).find([sha(DATA)]) as places:
        place = places[sha(DATA)]
    with pytest.raises(DamagedError, match="no longer held"):
        next(place.read())


@pytest.mark.parametrize("data", [DATA, BIG])
def test_rot_is_not_spread_but_told_to_check(store, root, data):
    layer = add(store, {"d/f": data})
    spoil(root, layer, "d/f")
    assert findings(store) == []
    with LayerFinder(store._handle).find([sha(data)]) as places, pytest.raises(DamagedError):
        next(places[sha(data)].read())
    assert findings(store) == [("path-content", "d/f: its content changed")]
    assert findings(store, content=True) == [("path-content", "d/f: its content changed")]


def test_layers_with_suspects_are_checked_first(store, root):
    layers = sorted((add(store, {"f": DATA + bytes([n])}) for n in range(3)), key=lambda each: each.id)
    for layer in layers:
        spoil(root, layer, "f")
    with LayerFinder(store._handle).find([suffix := sha(DATA + bytes([n])) for n in range(3)]) as places:
        last = next(p for p in places.values() if p.layer_id == layers[-1].id)
        with pytest.raises(DamagedError):
            next(last.read())
    assert suffix
    assert next(iter(store.check(content=True).findings)).subject == layers[-1].id


@pytest.mark.parametrize("how", ["missing", "short", "link", "directory", "fifo"])
def test_a_file_that_is_not_as_it_was_is_told_to_check(store, root, how):
    layer = add(store, {"d/f": DATA})
    file = root / "layers" / layer.id / "diff" / "d" / "f"
    if how == "short":
        os.truncate(file, 10)
    else:
        file.unlink()
    if how == "link":
        outside = root.parent / "outside"
        outside.write_bytes(DATA)
        file.symlink_to(outside)
    elif how == "directory":
        file.mkdir()
    elif how == "fifo":
        os.mkfifo(file)
    with LayerFinder(store._handle).find([sha(DATA)]) as places, pytest.raises(DamagedError):
        next(places[sha(DATA)].read())
    code = {"missing": "path-missing", "short": "path-size"}.get(how, "path-type")
    assert [found for found, _ in findings(store)] == [code]


def test_a_hint_that_lies_costs_a_look_and_is_no_damage(store, root):
    layer = add(store, {"f": DATA, "g": b"x" * 500})
    forge(root, layer, (b"g", 0, 500, sha(DATA)))
    with LayerFinder(store._handle).find([sha(DATA)]) as places, pytest.raises(DamagedError):
        next(places[sha(DATA)].read())
    assert findings(store) == []
    assert not (root / "layers" / layer.id / "suspects").exists()


def test_an_index_that_leads_outside_leads_nowhere(store, root):
    layer = add(store, {"f": DATA})
    (root / "layers" / layer.id / "diff" / "out").symlink_to(root.parent)
    (root.parent / "secret").write_bytes(b"s" * 500)
    forge(root, layer, (b"out/secret", 0, 500, sha(b"s" * 500)))
    with LayerFinder(store._handle).find([sha(b"s" * 500)]) as places, pytest.raises(DamagedError):
        next(places[sha(b"s" * 500)].read())


def test_a_layer_that_lies_again_and_again_is_believed_no_more(store, root):
    layer = add(store, {"g": b"x" * 5000})
    wanted = [sha(b"%d" % n) for n in range(20)]
    forge(root, layer, *((b"g", 0, 100 + n, digest) for n, digest in enumerate(wanted)))
    seen = []
    with LayerFinder(store._handle).find(wanted) as places:
        for place in places.values():
            with pytest.raises(DamagedError) as caught:
                next(place.read())
            seen.append(str(caught.value))
    assert sum("too much of layer" in each for each in seen) == 12


def test_a_rotten_file_is_noted_once_and_the_notes_are_bounded(store, root):
    layer = add(store, {"f": DATA})
    fd = os.open(root / "layers" / layer.id, os.O_RDONLY)
    for _ in range(3):
        suspects.note(fd, b"f")
    assert suspects.suspects(fd) == {b"f"}
    for n in range(400):
        suspects.note(fd, b"%0200d" % n)
    assert (root / "layers" / layer.id / "suspects").stat().st_size <= 1 << 16
    os.close(fd)


def test_a_suspect_that_is_well_is_not_reported(store, root):
    layer = add(store, {"f": DATA})
    (root / "layers" / layer.id / "suspects").write_bytes(b"f\0../../x\0torn")
    assert findings(store) == []


def test_chunks_are_found_at_the_place_that_they_have_in_the_blob(store):
    old, new = b"1111" + BIG, b"2222" + BIG
    add(store, {"a.pyc": old})
    at = {sha(new[n : n + 65_536]): (b"a.pyc", n, 65_536) for n in range(0, 10 * 65_536, 65_536)}
    assert took(store, *(new[o : o + n] for _, o, n in at.values())) == {}
    found = took(store, *(new[o : o + n] for _, o, n in at.values()), at=at)
    assert found == {sha(new[o : o + n]): new[o : o + n] for _, o, n in list(at.values())[1:]}


def chunks_of(data, path, size=65_536):
    return {sha(data[n:n + size]): (path, n, size) for n in range(0, 10 * size, size)}


def test_the_layers_that_have_the_paths_are_probed_however_many_come_before(store):
    data = random.Random(1).randbytes(700_000)
    old, new = b"1111" + data, b"2222" + data
    add(store, {"a.pyc": old})
    for n in range(8):                   # newer ones, as the layers of an image's base come before what stands on them
        add(store, {"base": b"%d" % n + DATA})
    at = chunks_of(new, b"a.pyc")
    with LayerFinder(store._handle).find(at, at) as places:
        assert {digest: b"".join(place.read()) for digest, place in places.items()} == {
            digest: new[n:n + size] for digest, (_, n, size) in list(at.items())[1:]}


def test_what_is_probed_is_bounded_in_all_layers_together_whatever_is_found(store, monkeypatch):
    for n in range(3):
        add(store, {"f": b"%d" % n + BIG})
    reads = []
    real = os.pread

    def counted(fd, length, offset):
        found = real(fd, length, offset)
        if length == 1 << 20:
            reads.append(length)
        return found

    monkeypatch.setattr(os, "pread", counted)
    at = {sha(b"%d" % n): (b"f", 0, 2 << 20) for n in range(2)}
    with LayerFinder(store._handle, bounds=Bounds(probe_bytes=5 << 20)).find(at, at) as places:
        assert not places
    assert len(reads) == 4, "two chunks of 2 MiB, a MiB at a time: for a third there is no room"


def test_a_chunk_is_not_held_as_a_whole_to_look_for_it(store):
    add(store, {"f": bytes(40 << 20)})
    at = {sha(bytes(32 << 20)): (b"f", 1 << 20, 32 << 20)}
    tracemalloc.start()
    try:
        with LayerFinder(store._handle).find(at, at) as places:
            assert len(places) == 1
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_content_that_moved_is_not_looked_for_for_ever(store, monkeypatch):
    add(store, {"f": BIG})
    reads = []
    real = os.pread

    def counted(fd, length, offset):
        if length == 1000:
            reads.append(offset)
        return real(fd, length, offset)

    monkeypatch.setattr(os, "pread", counted)
    at = {sha(b"%d" % n): (b"f", n * 1000, 1000) for n in range(100)}
    with LayerFinder(store._handle).find(at, at) as places:
        assert not places
    assert len(reads) == 4


def test_only_so_many_layers_are_looked_in_and_held(store):
    for n in range(6):
        add(store, {"f": DATA + b"%d" % n})
    wanted = [DATA + b"%d" % n for n in range(6)]
    assert len(took(store, *wanted)) == 6
    assert len(took(store, *wanted, bounds=Bounds(layers=4))) == 4
    assert len(took(store, *wanted, bounds=Bounds(held=2))) == 2
    assert len(took(store, *wanted, bounds=Bounds(index_bytes=1))) == 1


def test_only_so_many_layers_are_asked_for_their_age(store, monkeypatch):
    layers = {add(store, {"a": DATA + bytes([n])}).id for n in range(6)}
    with store._handle.read() as view:
        assert set(candidates(view, (), None, 10)) == layers
        monkeypatch.setattr("layerstore.dedup.candidates._ROWS", 4)
        assert len(candidates(view, (), None, 10)) == 4


def test_no_descriptor_is_left(store):
    for n in range(6):
        add(store, {"f": DATA + b"%d" % n})
    before = sorted(os.listdir("/proc/self/fd"))
    took(store, *(DATA + b"%d" % n for n in range(6)))
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_layers_of_the_same_repository_and_parent_come_first(store, tmp_path):
    from storekit import image

    old = store.pull(image(tmp_path, name="old", salt="old").reference, names=["reg:5000/app:1"])
    base = add(store, {"base": DATA})
    child = add(store, {"child": DATA}, parent=base.id)
    others = [add(store, {"f": b"%d" % n}) for n in range(3)]
    with store._handle.read() as view:
        assert candidates(view, ["reg:5000/app:2"], None, 3) == list(old.layers)
        assert candidates(view, [], base.id, 2) == [child.id, base.id]
        assert candidates(view, [], None, 2) == [others[2].id, others[1].id]
        assert len(candidates(view, ["reg:5000/app:2"], base.id, 100)) == 8


@pytest.mark.parametrize(("name", "expected"), [
    ("app:1", "app"), ("reg:5000/app:1", "reg:5000/app"), ("reg:5000/app", "reg:5000/app"),
    ("app@sha256:00", "app"), ("a/b", "a/b"), (":1", ""),
])
def test_a_names_repository(name, expected):
    assert repository(name) == expected


def test_a_file_system_that_shares_no_blocks_is_asked_once(store, root, monkeypatch):
    from layerstore.system import fs

    if store.filesystem in ("xfs", "btrfs"):
        pytest.fail("these tests are run on a file system without shared blocks")
    asked = []
    real = fs.clone_nameless
    monkeypatch.setattr(fs, "clone_nameless", lambda *a, **k: (asked.append(a), real(*a, **k))[1])
    add(store, {"f": BIG, "g": BIG[1:]})
    with LayerFinder(store._handle).find([sha(BIG), sha(BIG[1:])]) as places:
        assert [place.clone() for place in places.values()] == [None, None]
    assert len(asked) == 1


