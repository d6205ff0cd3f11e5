"""Pulling from a store of podman's: the same layers, and whatever is incomplete or torn refused by name.

Most tests read a view of ours, which is such a store; the last one a store that podman itself made.
"""

import gzip
import json
import os
import shutil
import subprocess

import pytest

import imagemaker as im
import layerstore
from layerstore import errors
from layerstore.sources.containers_storage import PodmanStore
from storekit import image


@pytest.fixture
def podmans(tmp_path):
    """A store in podman's format, writable by the test: an image of three layers, copied out of a view."""
    with layerstore.open(tmp_path / "first") as store:
        pulled = store.pull(image(tmp_path).reference, names=["one:1"])
        store.view(tmp_path / "view")
    subprocess.run(["cp", "-aL", tmp_path / "view", tmp_path / "podmans"], check=True)   # links resolved
    for name in ("current", "generations", "images"):
        shutil.rmtree(tmp_path / "podmans" / name)
    return tmp_path / "podmans", pulled


def pull(tmp_path, root, name="one:1"):
    with layerstore.open(tmp_path / "store") as store:
        return store.pull(f"containers-storage:[overlay@{root}]{name}")


def edit(root, document, change):
    path = root / document
    records = json.loads(path.read_text())
    change({each["id"]: each for each in records})
    path.write_text(json.dumps(records))


def refused(tmp_path, root, *texts, error=errors.SourceError):
    with pytest.raises(error) as caught:
        pull(tmp_path, root)
    for text in texts:
        assert text in str(caught.value)
    with layerstore.open(tmp_path / "store") as store:
        assert store.images() == [] and store.layers() == []


@pytest.mark.parametrize("name", ["one:1", "localhost/one:1", "ID"])
def test_an_image_comes_with_its_ids_and_its_manifest(podmans, tmp_path, name):
    root, first = podmans
    again = pull(tmp_path, root, first.id if name == "ID" else name)
    assert (again.id, again.layers, again.manifest_digest) == (first.id, first.layers, first.manifest_digest)
    assert again.names == ("localhost/one:1",)
    with layerstore.open(tmp_path / "store") as store:
        assert store.check(content=True).sound


def test_whatever_a_tar_can_hold_is_made_again(tmp_path):
    spec = {
        "d": im.Dir(mode=0o711), "d/long" + "x" * 120: b"1" * 5000, "d/hard": im.Hardlink("d/long" + "x" * 120), "link": im.Symlink("d"),
        "link/through": b"a path through a link", "twice": b"first", "empty": b"", "fifo": im.Fifo(),
        "gone": im.Whiteout(), "d/ü": im.File(data=b"x", mtime=1.5, xattrs={"user.a": b"b"}),
    }
    made = im.Image([im.Layer(spec)]).write_oci(tmp_path / "image", tag="latest")
    with layerstore.open(tmp_path / "first") as store:
        pulled = store.pull(made.reference, names=["x:1"])
        store.view(tmp_path / "view")
    assert pull(tmp_path, tmp_path / "view", "x:1").id == pulled.id


def test_an_incomplete_layer_is_refused_by_name(podmans, tmp_path):
    root, first = podmans
    edit(root, "overlay-layers/layers.json", lambda layers: layers[first.layers[1]].update(flags={"incomplete": True}))
    refused(tmp_path, root, first.layers[1], "incomplete")


def test_a_layer_that_is_lost_is_refused_by_name(podmans, tmp_path):
    root, first = podmans
    path = root / "overlay-layers/layers.json"
    path.write_text(json.dumps([each for each in json.loads(path.read_text()) if each["id"] != first.layers[0]]))
    refused(tmp_path, root, first.layers[0], "is not in")


@pytest.mark.parametrize("missing", ["overlay/{}/diff", "overlay-layers/{}.tar-split.gz"])
def test_a_layer_without_its_files_is_refused_by_name(podmans, tmp_path, missing):
    root, first = podmans
    path = root / missing.format(first.layers[2])
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    refused(tmp_path, root, first.layers[2], "torn", "is missing")


@pytest.mark.parametrize(("data", "says"), [(b"", "should have 1 bytes, and has 0"), (b"!", "has not the content that it had")])
def test_a_file_that_power_took_is_named_with_its_layer(podmans, tmp_path, data, says):
    root, first = podmans
    path = root / "overlay" / first.layers[1] / "diff" / "layer1"
    path.chmod(0o600)
    path.write_bytes(data)
    refused(tmp_path, root, first.layers[1], "'layer1'", says)


def test_a_tar_split_that_is_cut_off_is_refused_by_name(podmans, tmp_path):
    root, first = podmans
    path = root / "overlay-layers" / f"{first.layers[1]}.tar-split.gz"
    path.write_bytes(path.read_bytes()[:-20])
    refused(tmp_path, root, first.layers[1], "torn")


def test_a_tar_split_that_lacks_a_line_does_not_make_the_tar(podmans, tmp_path):
    root, first = podmans
    path = root / "overlay-layers" / f"{first.layers[1]}.tar-split.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).split(b"\n", 1)[1]))
    refused(tmp_path, root, error=errors.InputError)


def test_a_tar_split_cannot_lead_out_of_the_tree(podmans, tmp_path):
    root, first = podmans
    (tmp_path / "secret").write_text("!")
    tree, path = root / "overlay" / first.layers[1] / "diff", root / "overlay-layers" / f"{first.layers[1]}.tar-split.gz"
    for name in ("../" * 20 + f"{tmp_path}/secret", f"{tmp_path}/secret", "way/secret"):
        (tree / "way").symlink_to(tmp_path) if not (tree / "way").is_symlink() else None
        path.write_bytes(gzip.compress(json.dumps({"type": 1, "name": name, "size": 1, "payload": None, "position": 0}).encode()))
        refused(tmp_path, root, first.layers[1], "No such file")


def test_a_manifest_that_is_not_its_digests_is_refused(podmans, tmp_path):
    root, first = podmans
    for path in (root / "overlay-images" / first.id).iterdir():
        if b"schemaVersion" in path.read_bytes():
            path.write_bytes(path.read_bytes() + b" ")
    refused(tmp_path, root, "manifest", error=errors.DigestMismatchError)


def test_an_image_whose_layers_are_anothers_is_refused(podmans, tmp_path):
    root, first = podmans
    edit(root, "overlay-images/images.json", lambda images: images[first.id].update(layer=first.layers[0]))
    refused(tmp_path, root, "not those of its config")


def test_a_name_that_is_not_there_is_answered_with_those_that_are(podmans, tmp_path):
    with pytest.raises(errors.SourceError, match="no image 'two'") as caught:
        pull(tmp_path, podmans[0], "two")
    assert "localhost/one:1" in caught.value.hint


@pytest.mark.parametrize(("text", "root", "name"), [
    ("[overlay@/a/b]x:1", "/a/b", "x:1"), ("[/a/b]x", "/a/b", "x"),
    ("[overlay@/a/b+/run/b:overlay.mount_program=/x]example.test:5000/x@1", "/a/b", "example.test:5000/x@1"),
])
def test_references_are_the_fields(text, root, name):
    assert PodmanStore.parse(f"containers-storage:{text}") == PodmanStore((root,), name)


@pytest.mark.parametrize("text", ["", "[overlay@/a]", "[vfs@/a]x", "[overlay@rel]x"])
def test_a_reference_that_names_nothing_is_refused(text):
    with pytest.raises(errors.InvalidArgumentError):
        PodmanStore.parse(f"containers-storage:{text}")


@pytest.mark.root
def test_an_image_that_podman_loaded_is_pulled_with_every_digest_that_it_had(tmp_path):
    from podmanrun import Podman

    made = image(tmp_path, compression=("gzip",))
    with layerstore.open(tmp_path / "empty") as store:
        store.view(tmp_path / "view")
    with Podman(tmp_path / "podman", tmp_path / "view") as podman:
        podman.script(f"podman pull -q {made.reference}\npodman tag {made.config_digest[7:]} example.test/one:1\n"
                      f"chmod -R a+rX {podman.home}")
        with layerstore.open(tmp_path / "store") as store:
            pulled = store.pull(f"containers-storage:[overlay@{podman.home}/graph]example.test/one:1")
            assert pulled.manifest_digest == made.manifest_digest and pulled.config_digest == made.config_digest
            assert tuple(store.layer(each).diff_id for each in pulled.layers) == made.diff_ids
            assert {each["id"] for each in json.loads((podman.home / "graph/overlay-layers/layers.json").read_text())} == set(
                pulled.layers)
    assert os.path.isdir(tmp_path / "store")
