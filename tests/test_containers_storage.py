"""Pulling from a store of podman's: the same layers, and whatever is incomplete or torn refused by name.

Most tests read a view of ours, which is such a store; the last ones a store that podman itself made.
"""

import gzip
import json
import os
import shutil
import subprocess

import pytest

import imagemaker as im
import layerstore
import namespaces
from layerstore import errors
from layerstore.formats.containers_storage.names import big_data_file
from layerstore.sources.containers_storage import PodmanStore
from podmanrun import Podman
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


# -- stores that podman itself made ------------------------------------------------------------------------------


@pytest.fixture
def podman(tmp_path):
    """podman with an empty store, beside an additional one that is a view of the layers of ``image``, but for the last."""
    made = image(tmp_path, layers=2, name="below", compression=("gzip",))
    with layerstore.open(tmp_path / "below-store") as store:
        store.pull(made.reference, names=["below:1"])
        store.view(tmp_path / "view")
    with Podman(tmp_path / "podman", tmp_path / "view") as podman:
        yield podman


@pytest.mark.root
def test_an_image_that_podman_loaded_is_pulled_with_every_digest_that_it_had(podman, tmp_path):
    made = image(tmp_path, salt="of its own", compression=("gzip",))
    podman.script(f"podman pull -q {made.reference}\npodman tag {made.config_digest[7:]} example.test/one:1\n"
                  f"chmod -R a+rX {podman.home}")
    pulled = pull(tmp_path, f"{podman.home}/graph", "example.test/one:1")
    check_whole(tmp_path, pulled, made)
    assert in_graph(podman) == set(pulled.layers)


@pytest.mark.root
def test_layers_that_podman_has_in_an_additional_store_are_found_there(podman, tmp_path, monkeypatch):
    """podman pulled what was new only; and an image that is in the additional store alone is found, too."""
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", f"{podman.home}/storage.conf")
    with layerstore.open(tmp_path / "store") as store:
        below = store.pull("containers-storage:below:1")   # before podman made anything in its own
        made = grown(tmp_path)
        podman.script(f"podman pull -q {made.reference}\npodman tag {made.config_digest[7:]} one:1")
        pulled = store.pull("containers-storage:one:1")
    assert pulled.layers[:2] == below.layers and in_graph(podman) == {pulled.layers[2]}
    check_whole(tmp_path, pulled, made)
    with pytest.raises(errors.SourceError, match=f"layer {pulled.layers[1]}.* is not in {podman.home}/graph$") as caught:
        pull(tmp_path, f"{podman.home}/graph")
    assert "additional store" in caught.value.hint


def grown(tmp_path):
    """What ``image`` makes of two layers, and one more."""
    specs = [{f"layer{n}": f"{n}".encode(), "shared/file": f"from {n}".encode()} for n in range(2)]
    specs[1]["layer0"] = im.Whiteout()
    made = im.Image([im.Layer(spec, compression="gzip") for spec in [*specs, {"more": b"!"}]])
    return made.write_oci(tmp_path / "grown", tag="latest")


def check_whole(tmp_path, pulled, made):
    assert (pulled.manifest_digest, pulled.config_digest) == (made.manifest_digest, made.config_digest)
    with layerstore.open(tmp_path / "store") as store:
        assert tuple(store.layer(each).diff_id for each in pulled.layers) == made.diff_ids


def in_graph(podman):
    return {each["id"] for each in json.loads((podman.home / "graph/overlay-layers/layers.json").read_text())}


def killed_pull(podman, made, path):
    """A pull of podman's that dies when it is about to give *path* its name, in the graph."""
    podman.script(f"! strace -f -qq -o /dev/null -P {podman.home}/graph/{path} -e trace=renameat -e inject=renameat:signal=KILL "
                  f"podman pull -q {made.reference}")


@pytest.mark.root
def test_what_a_killed_pull_of_podmans_has_left_incomplete_is_no_image_and_comes_when_it_is_pulled_again(podman, tmp_path):
    made = image(tmp_path, salt="killed", compression=("gzip",))
    with layerstore.open(tmp_path / "other") as store:
        layers = store.pull(made.reference).layers
    killed_pull(podman, made, f"overlay-layers/{layers[1]}.tar-split.gz")
    records = json.loads((podman.home / "graph/overlay-layers/layers.json").read_text())
    assert [(each["id"], each.get("flags")) for each in records] == [(layers[0], None), (layers[1], {"incomplete": True})]
    graph, image_id = podman.home / "graph", made.config_digest[7:]
    with pytest.raises(errors.SourceError):
        pull(tmp_path, graph, image_id)
    podman.script(f"podman pull -q {made.reference}")
    check_whole(tmp_path, pull(tmp_path, graph, image_id), made)


@pytest.mark.root
def test_an_image_of_which_a_killed_pull_of_podmans_wrote_the_record_only_is_refused(podman, tmp_path):
    made = image(tmp_path, salt="killed", compression=("gzip",))
    image_id = made.config_digest[7:]
    killed_pull(podman, made, f"overlay-images/{image_id}/{big_data_file(made.config_digest)}")
    assert (podman.home / "graph/overlay-images/images.json").exists()
    with pytest.raises(errors.SourceError, match=f"the image {image_id} .* its pull was interrupted"):
        pull(tmp_path, f"{podman.home}/graph", image_id)
    with layerstore.open(tmp_path / "store") as store:
        assert store.images() == [] and store.layers() == []


@pytest.mark.root
def test_an_image_of_a_rootless_podmans_is_pulled_in_its_namespace_and_elsewhere_refused_by_what_cannot_be_read(home):
    specs = [{"d": im.Dir(), "d/secret": im.File(data=b"!", mode=0o600, uid=33, gid=34), "gone": b"1"}, {"gone": im.Whiteout()}]
    (home / "view").mkdir()
    os.chown(home / "view", namespaces.USER, namespaces.GROUP)
    with Podman(home / "podman", home / "view", rootless=True) as podman:
        layers = [im.Layer(spec, compression="gzip") for spec in specs]
        made = im.Image(layers).write_oci(podman.home / "image", tag="latest")
        podman.script(f"podman pull -q oci:image:latest\npodman tag {made.config_digest[7:]} one:1")
        reference = f"containers-storage:[overlay@{podman.home}/graph]one:1"

        def inside():
            os.environ.update(_CONTAINERS_ROOTLESS_UID=str(namespaces.USER), CONTAINERS_STORAGE_CONF=f"{podman.home}/storage.conf")
            with layerstore.open(home / "store") as store:
                named, default = store.pull(reference), store.pull("containers-storage:one:1")
                assert named.id == default.id and named.manifest_digest == made.manifest_digest
                assert tuple(store.layer(each).diff_id for each in named.layers) == made.diff_ids
                assert store.check(content=True).sound

        def outside():
            with layerstore.open(home / "other") as store:
                with pytest.raises(errors.SourceError, match="secret") as caught:
                    store.pull(reference)
                assert "podman unshare" in caught.value.hint and store.layers() == []

        namespaces.in_namespace(inside, namespaces.FULL)
        namespaces.as_user(outside)
