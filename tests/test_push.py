"""Images out again: what is kept, that the same image gives the same bytes, and that other tools take the result."""

import hashlib
import json
import os
import shutil
import subprocess
import tarfile

import imagemaker
import pytest
import tarmaker

import layerstore
import treediff
from layerstore import errors
from layerstore.cli.commands import run
from layerstore.testing import kill_at, passings
from storekit import failing_at, image, killed_at, observed

OCI, OCI_ARCHIVE, DOCKER_ARCHIVE = "oci:{}/out:tag", "oci-archive:{}/out.tar:tag", "docker-archive:{}/out.tar:example.test/out:tag"
TARGETS = [OCI, OCI_ARCHIVE, DOCKER_ARCHIVE]


@pytest.fixture
def pulled(store, tmp_path):
    made = image(tmp_path)
    store.pull(made.reference, names=["one:1"])
    return made


def elsewhere(tmp_path, reference, name="elsewhere"):
    with layerstore.open(tmp_path / name) as other:
        again = other.pull(reference)
        assert other.check(content=True).sound
        return again, [other.layer(each).diff_id for each in again.layers]


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_pulled_from_a_push_has_the_ids_that_it_had(store, pulled, tmp_path, target):
    target = target.format(tmp_path)
    store.push("one:1", target)
    again, diff_ids = elsewhere(tmp_path, target)
    (here,) = store.images()
    assert (again.id, again.config_digest, again.layers) == (here.id, here.config_digest, here.layers)
    assert tuple(diff_ids) == pulled.diff_ids


@pytest.mark.parametrize("target", TARGETS)
def test_the_same_image_is_pushed_as_the_same_bytes(store, pulled, tmp_path, target):
    def content(name):
        home = tmp_path / name
        home.mkdir()
        store.push("one:1", target.format(home))
        return {os.path.relpath(os.path.join(parent, each), home): (tmp_path / parent / each).read_bytes()
                for parent, _, names in os.walk(home) for each in names}

    assert content("a") == content("b") != {}


def test_plain_layers_go_out_with_the_manifest_that_came_byte_for_byte(store, tmp_path):
    made = image(tmp_path, compression=("none",))
    store.pull(made.reference, names=["plain"])
    report = store.push("plain", f"oci:{tmp_path}/out:x")
    assert report.kept and report.manifest_digest == made.manifest_digest
    assert (tmp_path / "out/blobs/sha256" / made.manifest_digest[7:]).read_bytes() == made.manifest


def test_what_we_compressed_comes_out_as_it_went_in(store, pulled, tmp_path):
    first = store.push("one:1", f"oci:{tmp_path}/first:x")
    assert first.kept is False
    with layerstore.open(tmp_path / "other") as other:
        other.pull(f"oci:{tmp_path}/first:x", names=["one:1"])
        second = other.push("one:1", f"oci:{tmp_path}/second:x")
    assert (second.kept, second.manifest_digest, second.blobs) == (True, first.manifest_digest, first.blobs)


def test_a_manifest_over_new_blobs_keeps_what_does_not_speak_of_the_old_ones():
    from layerstore.model import Descriptor
    from layerstore.targets.manifests import manifest_over

    docker = "application/vnd.docker.distribution.manifest.v2+json"
    old = {"mediaType": "x", "digest": "sha256:old", "size": 1,
           "annotations": {"io.github.containers.zstd-chunked.manifest-position": "1:2:3:1", "mine": "kept"}}
    text, kind = manifest_over(json.dumps({"schemaVersion": 2, "mediaType": docker, "annotations": {"a": "b"},
                                           "config": {"mediaType": "c", "digest": "sha256:c", "size": 2}, "layers": [old]}).encode(),
                               docker, [Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", "sha256:new", 3)])
    document = json.loads(text)
    assert kind == document["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert document["annotations"] == {"a": "b"} and document["config"]["digest"] == "sha256:c"
    assert document["layers"] == [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": "sha256:new", "size": 3,
                                   "annotations": {"mine": "kept"}}]


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd", "zstd:chunked"])
def test_layers_are_compressed_as_they_are_asked_for(store, pulled, tmp_path, compression):
    report = store.push("one:1", f"oci:{tmp_path}/out:x", compression=compression)
    heads = {(tmp_path / "out/blobs/sha256" / digest[7:]).read_bytes()[:2] for digest in report.blobs}
    assert heads == {"none": {b"la", b"sh"}, "gzip": {b"\x1f\x8b"}}.get(compression, {b"\x28\xb5"}) or (
        compression == "none" and report.blobs == pulled.diff_ids)


def manifest_at(layout):
    (listed,) = json.loads((layout / "index.json").read_text())["manifests"]
    return json.loads((layout / "blobs/sha256" / listed["digest"][7:]).read_text())


def test_annotations_of_a_blob_of_2022_do_not_go_out_with_another_blob(store, tmp_path):
    """They say where in the old blob things lie: who goes by them in the new one finds lies, and refuses it."""
    where = "io.containers.zstd-chunked.manifest-"
    notes = {where + "checksum": "sha256:" + "0" * 64, where + "position": "10:10:10:1", "mine": "kept"}
    made = imagemaker.Image([imagemaker.Layer({"a": b"1"}, compression="zstd", annotations=notes)])
    store.pull(made.write_oci(tmp_path / "old", tag="x").reference, names=["old"], options=layerstore.PullOptions(partial=False))
    for compression in ("gzip", "zstd"):
        store.push("old", f"oci:{tmp_path}/{compression}:x", compression=compression)
        (layer,) = manifest_at(tmp_path / compression)["layers"]
        assert layer["annotations"] == {"mine": "kept"}


def test_zstd_chunked_layers_are_told_of_in_the_manifest_and_pulled_in_parts(store, pulled, tmp_path):
    report = store.push("one:1", f"oci:{tmp_path}/out:x", compression="zstd:chunked")
    listed = manifest_at(tmp_path / "out")["layers"]
    assert (report.plain, report.kept) == ((), False)
    for layer in listed:
        assert layer["mediaType"] == "application/vnd.oci.image.layer.v1.tar+zstd"
        assert {key.rpartition(".")[2] for key in layer["annotations"]} == {
            "manifest-checksum", "manifest-position", "tarsplit-position"}
    again, diff_ids = elsewhere(tmp_path, f"oci:{tmp_path}/out:x")
    with layerstore.open(tmp_path / "elsewhere") as other:
        tocs = [other.layer(each).toc_digest for each in again.layers]
    assert tuple(diff_ids) == pulled.diff_ids
    assert [layer["annotations"]["io.github.containers.zstd-chunked.manifest-checksum"] for layer in listed] == tocs


def test_a_layer_that_came_as_zstd_chunked_goes_out_as_that_and_is_the_same_blob(store, pulled, tmp_path):
    first = store.push("one:1", f"oci:{tmp_path}/first:x", compression="zstd:chunked")
    with layerstore.open(tmp_path / "other") as other:
        other.pull(f"oci:{tmp_path}/first:x", names=["one:1"])
        second = other.push("one:1", f"oci:{tmp_path}/second:x")
        third = other.push("one:1", f"oci:{tmp_path}/third:x", compression="zstd")
    assert (second.kept, second.blobs, third.kept) == (True, first.blobs, False)
    assert not any("annotations" in layer for layer in manifest_at(tmp_path / "third")["layers"])


def test_a_layer_that_no_table_of_contents_can_describe_goes_out_plain_and_is_named(root, store, tmp_path, capsys):
    made = imagemaker.Image([imagemaker.Layer(tar=tarmaker.file(b"a", b"1") + tarmaker.file(b"a", b"2") + tarmaker.END, compression="none")])
    made = made.write_oci(tmp_path / "twice", tag="x")
    store.pull(made.reference, names=["twice"])
    store.close()
    assert run(["--root", str(root), "push", "twice", f"oci:{tmp_path}/out:x", "--compression", "zstd:chunked"]) == 0
    (layer,) = manifest_at(tmp_path / "out")["layers"]
    assert layer["digest"] in capsys.readouterr().err and "annotations" not in layer
    assert elsewhere(tmp_path, f"oci:{tmp_path}/out:x")[1] == list(made.diff_ids)


def test_a_layout_keeps_its_other_images_and_a_tag_moves(store, pulled, tmp_path):
    other = image(tmp_path, name="other", salt="o", layers=1, compression=("gzip",))
    store.pull(other.reference, names=["other:1"])
    one = store.push("one:1", f"oci:{tmp_path}/out:a")
    store.push("one:1", f"oci:{tmp_path}/out:b")
    moved = store.push("other:1", f"oci:{tmp_path}/out:a")
    listed = json.loads((tmp_path / "out/index.json").read_text())["manifests"]
    assert {each["annotations"]["org.opencontainers.image.ref.name"]: each["digest"] for each in listed} == {
        "a": moved.manifest_digest, "b": one.manifest_digest}


def test_a_plain_layer_that_is_there_is_not_written_again(store, pulled, tmp_path):
    store.push("one:1", f"oci:{tmp_path}/out:x", compression="none")
    before = {each.name: each.stat().st_ino for each in (tmp_path / "out/blobs/sha256").iterdir()}
    store.push("one:1", f"oci:{tmp_path}/out:x", compression="none")
    assert {each.name: each.stat().st_ino for each in (tmp_path / "out/blobs/sha256").iterdir()} == before


def test_a_directory_that_is_no_layout_is_refused(store, pulled, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(errors.InvalidArgumentError, match="not an OCI layout"):
        store.push("one:1", f"oci:{tmp_path}/out:x")
    assert os.listdir(tmp_path / "out") == ["precious"]


def test_a_layer_that_is_not_what_it_was_is_not_sent(store, pulled, tmp_path):
    (here,) = store.images()
    path = f"{store.root}/layers/{here.layers[1]}/diff/layer1"
    os.chmod(path, 0o644)
    with open(path, "r+b") as file:
        file.write(b"!")
    with pytest.raises(errors.LayerDamagedError):
        store.push("one:1", f"oci-archive:{tmp_path}/out.tar:x")
    assert not [name for name in os.listdir(tmp_path) if name.startswith("out")]


@pytest.mark.parametrize("point", ["push.archive.sync", "push.archive.rename"])
def test_a_file_is_replaced_when_the_new_one_is_whole(store, pulled, tmp_path, point):
    (tmp_path / "out.tar").write_text("old")
    with failing_at(point, "ENOSPC"), pytest.raises(errors.NoSpaceError):
        store.push("one:1", f"oci-archive:{tmp_path}/out.tar:x")
    assert (tmp_path / "out.tar").read_text() == "old" and [each for each in os.listdir(tmp_path) if each.startswith("out")] == ["out.tar"]


@pytest.mark.parametrize("point", ["push.blob.sync", "push.blob.rename", "push.document.rename", "push.index.rename"])
def test_a_push_killed_before_its_last_step_shows_the_layout_as_it_was(root, store, pulled, tmp_path, point):
    before = store.push("one:1", f"oci:{tmp_path}/out:x", compression="none")
    store.close()

    def again():
        with layerstore.open(root) as store:
            store.push("one:1", f"oci:{tmp_path}/out:x", compression="gzip")

    killed_at(point, "before", again)
    (listed,) = json.loads((tmp_path / "out/index.json").read_text())["manifests"]
    assert listed["digest"] == before.manifest_digest
    assert elsewhere(tmp_path, f"oci:{tmp_path}/out:x")[1] == list(pulled.diff_ids)
    again()
    (listed,) = json.loads((tmp_path / "out/index.json").read_text())["manifests"]
    assert listed["digest"] != before.manifest_digest


def test_a_first_push_killed_anywhere_is_done_again(root, store, pulled, tmp_path):
    """Not even a layout that is only begun keeps the next one away."""
    store.close()
    out = tmp_path / "there" / "out"

    def push():
        with layerstore.open(root) as store:
            return store.push("one:1", f"oci:{out}:x", compression="none")

    points = [each for each in passings(push) if each.point.startswith("push.") and each.when == "before"]
    assert {"push.layout.sync", "push.layout.rename", "push.blob.rename", "push.settle.sync"} <= {each.point for each in points}
    for passing in points:
        shutil.rmtree(out.parent)
        kill_at(passing, push)
        listed = json.loads((out / "index.json").read_text())["manifests"] if (out / "index.json").exists() else []
        assert all((out / "blobs/sha256" / each["digest"][7:]).exists() for each in listed), f"killed at {passing}"
        report = push()
        assert (out / "blobs/sha256" / report.manifest_digest[7:]).exists(), f"killed at {passing}"


def test_what_an_index_lists_and_its_directories_are_on_disk_before_it(store, pulled, tmp_path):
    with observed([]) as passed:
        store.push("one:1", f"oci:{tmp_path}/new/out:x")
    settled = [n for n, point in enumerate(passed) if point == "push.settle.sync"]
    assert len(settled) == 5, "blobs/sha256, blobs, out, new, and where new is"
    assert max(n for n, point in enumerate(passed) if point.startswith(("push.blob", "push.document"))) < settled[0]
    assert settled[-1] < passed.index("push.index.sync")


def test_the_command_prints_the_digest_that_is_there_now(root, store, pulled, tmp_path, capsys):
    store.close()
    assert run(["--root", str(root), "push", "one:1", f"oci:{tmp_path}/out:x"]) == 0
    (listed,) = json.loads((tmp_path / "out/index.json").read_text())["manifests"]
    assert capsys.readouterr().out == listed["digest"] + "\n"
    assert run(["--root", str(root), "push", "one:1", f"docker-archive:{tmp_path}/out.tar:a:1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] is None


# -- the tools of the field --------------------------------------------------------------------------------------


def call(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("compression", ["as-it-came", "gzip", "zstd", "zstd:chunked"])
@pytest.mark.parametrize("target", [   # skopeo 1.9 gives what it unpacks of an archive owners
    OCI, pytest.param(OCI_ARCHIVE, marks=pytest.mark.root), DOCKER_ARCHIVE,
])
def test_skopeo_inspects_and_copies_what_was_pushed(store, pulled, tmp_path, target, compression):
    target = target.format(tmp_path)
    store.push("one:1", target, compression=compression)   # of a Docker archive the layers are plain tars, whatever is said
    assert call("skopeo", "inspect", "--config", "--raw", target).encode() == pulled.config
    call("skopeo", "copy", "--insecure-policy", "-q", target, f"oci:{tmp_path}/copied:x")
    assert elsewhere(tmp_path, f"oci:{tmp_path}/copied:x")[1] == list(pulled.diff_ids)


@pytest.mark.root
@pytest.mark.parametrize("compression", ["none", "gzip"])   # umoci 0.4 knows no zstd
def test_umoci_unpacks_what_was_pushed_to_what_we_extract(store, pulled, tmp_path, compression):
    store.push("one:1", f"oci:{tmp_path}/out:x", compression=compression)
    call("umoci", "unpack", "--image", f"{tmp_path}/out:x", f"{tmp_path}/bundle")
    store.extract("one:1", tmp_path / "extracted")
    differences = treediff.differences(tmp_path / "bundle/rootfs", tmp_path / "extracted")
    # "shared" has no entry in the archive: its time is nobody's
    assert [each for each in differences if not str(each).startswith((".", "shared: mtime"))] == []


def test_a_docker_archive_has_the_tars_the_config_and_the_name(store, pulled, tmp_path):
    store.push("one:1", f"docker-archive:{tmp_path}/out.tar:example.test/out:tag")
    with tarfile.open(tmp_path / "out.tar") as archive:
        (listed,) = json.load(archive.extractfile("manifest.json"))
        assert listed["RepoTags"] == ["example.test/out:tag"]
        assert archive.extractfile(listed["Config"]).read() == pulled.config
        tars = [archive.extractfile(name).read() for name in listed["Layers"]]
    assert tuple("sha256:" + hashlib.sha256(tar).hexdigest() for tar in tars) == pulled.diff_ids


@pytest.mark.parametrize(("name", "written"), [
    ("foo", "foo:latest"), ("foo:1", "foo:1"), ("localhost/foo", "localhost/foo:latest"),
    ("example.test:5000/a/foo", "example.test:5000/a/foo:latest"),
])
def test_a_docker_archive_has_a_whole_name_and_is_found_by_what_it_was_told(store, pulled, tmp_path, name, written):
    target = f"docker-archive:{tmp_path}/out.tar:{name}"
    store.push("one:1", target)
    with tarfile.open(tmp_path / "out.tar") as archive:
        (listed,) = json.load(archive.extractfile("manifest.json"))
    assert listed["RepoTags"] == [written]
    assert elsewhere(tmp_path, target)[0].id == store.images()[0].id


@pytest.mark.parametrize("name", ["Foo:1", "foo:", "@0", "a:b:c", "foo@sha256:" + "0" * 64])
def test_a_name_for_which_others_would_refuse_the_archive_is_refused(store, pulled, tmp_path, name):
    with pytest.raises(errors.InvalidArgumentError):
        store.push("one:1", f"docker-archive:{tmp_path}/out.tar:{name}")
    assert not (tmp_path / "out.tar").exists()


# -- blobs that were kept ----------------------------------------------------------------------------------------


@pytest.fixture
def kept(store, tmp_path):
    made = image(tmp_path, name="kept", salt="k")
    store.pull(made.reference, names=["kept:1"], options=layerstore.PullOptions(keep_blobs=True))
    return made


def test_with_kept_blobs_pull_push_pull_keeps_every_digest(store, kept, tmp_path):
    report = store.push("kept:1", f"oci:{tmp_path}/out:x")
    assert report.kept and report.manifest_digest == kept.manifest_digest
    assert report.blobs == tuple(layer.digest for layer in kept.layers)
    again, diff_ids = elsewhere(tmp_path, f"oci:{tmp_path}/out:x")
    assert (again.manifest_digest, tuple(diff_ids)) == (kept.manifest_digest, kept.diff_ids)


def test_only_compressed_blobs_are_kept_and_a_check_looks_at_them(store, kept):
    layers = [store.layer(each) for each in store.images()[0].layers]
    assert [layer.big_data for layer in layers] == [{"layer-blob": layer.blob_digest} if layer.compression != "none" else {}
                                                   for layer in layers]
    assert store.check(content=True).sound
    with open(f"{store.root}/layers/{layers[0].id}/big-data/layer-blob", "r+b") as file:
        file.write(b"!")
    assert [each.code for each in store.check(content=True).findings] == ["big-data-damaged"]


def test_a_kept_blob_that_has_rotted_is_not_sent(store, kept, tmp_path):
    (here,) = store.images()
    with open(f"{store.root}/layers/{here.layers[0]}/big-data/layer-blob", "r+b") as file:
        file.write(b"!")
    with pytest.raises(errors.LayerDamagedError, match="big-data"):
        store.push("kept:1", f"oci:{tmp_path}/out:x")
    assert store.push("kept:1", f"oci:{tmp_path}/out:x", compression="none").manifest_digest


def test_a_pull_with_kept_blobs_that_is_killed_keeps_them_when_it_is_done_again(root, tmp_path):
    made = image(tmp_path, name="kept", salt="k")

    def scenario():
        with layerstore.open(root) as store:
            store.pull(made.reference, names=["kept:1"], options=layerstore.PullOptions(keep_blobs=True, workers=1))

    for point in ("unpack.blob", "stage.output", "publish.rename"):
        killed_at(point, "before", scenario, nth=2 if point == "stage.output" else 1)
    scenario()
    with layerstore.open(root) as store:
        assert store.push("kept:1", f"oci:{tmp_path}/out:x").kept
        assert store.check(content=True).sound
