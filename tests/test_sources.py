"""Image sources: which image a reference means, what is refused, and that its layers can be read."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import shutil
import subprocess
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import imagemaker
from imagemaker import CONFIG, INDEX, MANIFEST, Filler, Image, Layer, blob_path, encode, write_oci_multi
from layerstore.errors import (
    ClosedError,
    DigestMismatchError,
    InvalidArgumentError,
    LayerstoreError,
    LimitExceededError,
    NoMatchingPlatformError,
    SizeMismatchError,
    SourceError,
    UnsupportedMediaTypeError,
)
from layerstore.model import Limits
from layerstore.sources import open_source
from layerstore.sources.platforms import Platform, best, parse_platform

SKOPEO = shutil.which("skopeo")
needs_skopeo = pytest.mark.skipif(SKOPEO is None, reason="skopeo is not installed")

BASE = Layer({"etc/os-release": b"ID=test\n"})
IMAGE = Image([BASE, Layer({"a": b"A" * 5000}, compression="zstd"), Layer({"b": b"B"}, compression="none")])
KINDS = ["oci", "oci-archive", "docker-archive"]


def resolve(reference, **options):
    with open_source(reference, **options) as source:
        return source.resolve()


def write(kind, image, top, tag=None):
    if kind == "oci":
        return image.write_oci(top / "image", tag)
    if kind == "oci-archive":
        return image.write_oci_archive(top / "image.tar", tag)
    return image.write_docker_archive(top / "image.tar", tag)


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def rewrite(path, change):
    """Change a JSON file of a layout, in place, digests or not."""
    document = json.loads(path.read_bytes())
    change(document)
    path.write_bytes(encode(document))


def repack(archive, change):
    """Rewrite an archive: *change* gets the members as a list of (TarInfo, bytes) and may do as it likes."""
    with tarfile.open(archive) as old:
        members = [(info, old.extractfile(info).read() if info.isreg() else b"") for info in old]
    change(members)
    with tarfile.open(archive, "w") as new:
        for info, data in members:
            if info.isreg():
                info.size = len(data)
            new.addfile(info, io.BytesIO(data))


def by_name(argument, cases):
    return pytest.mark.parametrize(argument, list(cases.values()), ids=list(cases))


def member(name, data=b"", **more):
    info = tarfile.TarInfo(name)
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


# -- references ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text", ["", "debian", "docker-archive", "oci", "oci:", "oci::tag", "oci:dir:", "OCI:dir",
                                  "oci:dir:a b", "oci:dir:\n", "oci:di\0r", "dir:x", "oci:x:" + "t" * 256])
def test_a_text_that_is_no_reference_is_the_callers_error_and_the_hint_lists_the_forms(text):
    with pytest.raises(InvalidArgumentError) as caught:
        open_source(text)
    assert "docker-archive:FILE" in caught.value.hint


@pytest.mark.parametrize("platform", ["", "linux", "linux/", "linux/amd64/v1/x", "linux/amd 64", "../x"])
def test_a_text_that_is_no_platform_is_the_callers_error(platform, tmp_path):
    with pytest.raises(InvalidArgumentError):
        open_source(IMAGE.write_oci(tmp_path / "image").reference, platform=platform)


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_where_nothing_is_is_named(kind, tmp_path):
    with pytest.raises(SourceError, match="absent"):
        open_source(f"{kind}:{tmp_path}/absent")


@pytest.mark.parametrize("kind, other", [("oci", "archive:"), ("oci-archive", "oci:"), ("docker-archive", "oci:")])
def test_a_directory_for_a_file_or_the_reverse_is_refused_with_the_right_form_as_hint(kind, other, tmp_path):
    made = write("oci-archive" if kind == "oci" else "oci", IMAGE, tmp_path)
    with pytest.raises(SourceError) as caught:
        open_source(f"{kind}:{made.path}")
    assert other in caught.value.hint


# -- what is found, whatever the form ---------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", KINDS)
def test_config_and_layers_are_those_that_were_written(kind, tmp_path):
    made = write(kind, IMAGE, tmp_path)
    image = resolve(made.reference)
    assert image.config == made.config
    assert image.config_digest == made.config_digest == f"sha256:{image.id}"
    assert [layer.diff_id for layer in image.layers] == list(made.diff_ids)
    assert [(layer.descriptor.digest, layer.descriptor.size) for layer in image.layers] == [
        (blob.digest, blob.size) for blob in made.layers
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_the_manifest_is_given_as_bytes_with_their_digest(kind, tmp_path):
    image = resolve(write(kind, IMAGE, tmp_path).reference)
    assert sha256(image.manifest) == image.manifest_digest
    document = json.loads(image.manifest)
    assert document["mediaType"] == image.manifest_media_type
    assert [layer["digest"] for layer in document["layers"]] == [layer.descriptor.digest for layer in image.layers]


@pytest.mark.parametrize("kind", KINDS)
def test_each_open_of_a_layer_is_a_stream_of_its_own(kind, tmp_path):
    made = write(kind, IMAGE, tmp_path)
    with open_source(made.reference) as source:
        layer = source.resolve().layers[1]
        with layer.open() as one, layer.open() as two:
            head = one.read(10)
            assert two.read() == head + one.read()
            assert one.read(1) == two.read(1) == b""


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_read_in_parallel_without_disturbing_each_other(kind, tmp_path):
    layers = [Layer({"big": Filler(3 << 20, seed=n)}, compression="none") for n in range(4)]
    made = write(kind, Image(layers), tmp_path)
    with open_source(made.reference) as source, ThreadPoolExecutor(4) as pool:
        image = source.resolve()
        start = threading.Barrier(4)

        def digest(layer):
            found = hashlib.sha256()
            with layer.open() as stream:
                start.wait()
                while data := stream.read(40_000):
                    found.update(data)
            return f"sha256:{found.hexdigest()}"

        assert list(pool.map(digest, image.layers)) == [blob.digest for blob in made.layers]


@pytest.mark.parametrize("kind", KINDS)
def test_a_read_gives_all_that_was_asked_for_although_the_system_gives_less(kind, tmp_path, monkeypatch):
    made = write(kind, IMAGE, tmp_path)
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [views[0][:7]], at))
    with open_source(made.reference) as source, source.resolve().layers[0].open() as stream:
        assert len(stream.read(100)) == 100


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_outlives_its_source_but_no_other_can_be_opened(kind, tmp_path):
    made = write(kind, IMAGE, tmp_path)
    with open_source(made.reference) as source:
        layer = source.resolve().layers[0]
        stream = layer.open()
    assert sha256(stream.read()) == made.layers[0].digest
    with pytest.raises(ClosedError):
        layer.open()
    with pytest.raises(ClosedError):
        source.resolve()
    source.close()
    stream.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_shrinks_while_a_layer_is_read_is_an_error_and_not_a_shorter_layer(kind, tmp_path):
    made = write(kind, Image([Layer({"big": Filler(1 << 20)}, compression="none")]), tmp_path)
    with open_source(made.reference) as source:
        with source.resolve().layers[0].open() as stream:
            stream.read(1000)
            os.truncate(made.layer_path(0) if kind == "oci" else made.path, 500_000)
            with pytest.raises(SourceError, match="shrank"):
                stream.read()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_layer_twice_is_legal(kind, tmp_path):
    image = resolve(write(kind, Image([BASE, BASE, BASE]), tmp_path).reference)
    assert len({layer.descriptor.digest for layer in image.layers}) == 1
    assert len(image.layers) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_without_layers_is_legal(kind, tmp_path):
    assert list(resolve(write(kind, Image([]), tmp_path).reference).layers) == []


@pytest.mark.parametrize("kind", KINDS)
def test_no_descriptor_is_left_open(kind, tmp_path):
    made = write(kind, IMAGE, tmp_path)
    before = os.listdir("/proc/self/fd")
    with open_source(made.reference) as source:
        for layer in source.resolve().layers:
            layer.open().close()
    with pytest.raises(SourceError):
        resolve(f"{made.reference}:absent")
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_config_with_fewer_diff_ids_than_layers_is_refused(kind, tmp_path):
    image = Image([BASE, BASE], edit_config=lambda config: config["rootfs"]["diff_ids"].pop())
    with pytest.raises(SourceError, match="2 layers, but its config has 1"):
        resolve(write(kind, image, tmp_path).reference)


@pytest.mark.parametrize("kind", KINDS)
def test_one_layer_under_two_diff_ids_is_refused(kind, tmp_path):
    image = Image([BASE, BASE], edit_config=lambda c: c["rootfs"]["diff_ids"].__setitem__(1, sha256(b"other")))
    with pytest.raises(SourceError, match=sha256(b"other")):
        resolve(write(kind, image, tmp_path).reference)


@pytest.mark.parametrize("kind", KINDS)
def test_a_platform_that_was_asked_for_must_be_the_configs(kind, tmp_path):
    made = write(kind, IMAGE, tmp_path)
    assert resolve(made.reference, platform="linux/amd64").id == made.config_digest[7:]
    with pytest.raises(NoMatchingPlatformError, match="linux/amd64.*linux/s390x"):
        resolve(made.reference, platform="linux/s390x")


# -- names --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("path, tag, name", [
    ("image", "latest", "image:latest"), ("image", None, "image"), ("sub/../image/.", "1", "image:1"),
    ("image", "docker.io/library/debian:12", "docker.io/library/debian:12"), (".hidden", "x", None),
    ("a" * 64, None, None), ("a" * 64, "x", "a" * 64 + ":x"),
])
def test_a_layout_is_named_by_its_directory_and_tag_if_that_is_usable(path, tag, name, tmp_path):
    (tmp_path / "sub").mkdir()
    IMAGE.write_oci((tmp_path / path).resolve(), tag)
    assert resolve(f"oci:{tmp_path}/{path}").name == name


def test_an_oci_archive_is_named_by_its_file_without_the_extension(tmp_path):
    assert resolve(IMAGE.write_oci_archive(tmp_path / "busy.tar", "1.0").reference).name == "busy:1.0"


def test_a_docker_archive_is_named_by_its_repo_tag(tmp_path):
    assert resolve(IMAGE.write_docker_archive(tmp_path / "d.tar", "debian:12").reference).name == "debian:12"


def test_a_docker_archive_without_repo_tags_suggests_no_name(tmp_path):
    assert resolve(IMAGE.write_docker_archive(tmp_path / "d.tar").reference).name is None


# -- choosing by tag ----------------------------------------------------------------------------------------------

def test_the_tag_chooses_among_the_images_of_a_layout(tmp_path):
    one = Image([BASE]).write_oci(tmp_path / "image", "one")
    two = IMAGE.write_oci(tmp_path / "image", "two")
    assert resolve(one.reference).config_digest == one.config_digest
    assert resolve(two.reference).config_digest == two.config_digest


def test_without_a_tag_several_images_are_an_error_that_lists_the_tags(tmp_path):
    Image([BASE]).write_oci(tmp_path / "image", "one")
    IMAGE.write_oci(tmp_path / "image", "two")
    with pytest.raises(SourceError, match="one, two"):
        resolve(f"oci:{tmp_path}/image")


def test_an_unknown_tag_is_an_error_whose_hint_lists_the_tags(tmp_path):
    IMAGE.write_oci(tmp_path / "image", "one")
    with pytest.raises(SourceError, match="'three'") as caught:
        resolve(f"oci:{tmp_path}/image:three")
    assert "one" in caught.value.hint


def test_two_untagged_images_without_platforms_are_ambiguous(tmp_path):
    Image([BASE]).write_oci(tmp_path / "image")
    IMAGE.write_oci(tmp_path / "image")
    with pytest.raises(SourceError, match="neither a tag nor a platform"):
        resolve(f"oci:{tmp_path}/image")


def test_a_tag_that_stands_for_several_platforms_is_decided_by_platform(tmp_path):
    arm = Image([BASE], config={"architecture": "arm64"}).write_oci(tmp_path / "image", "t", platform="linux/arm64")
    amd = IMAGE.write_oci(tmp_path / "image", "t", platform="linux/amd64")
    assert resolve(arm.reference, platform="linux/arm64").config_digest == arm.config_digest
    assert resolve(arm.reference, platform="linux/amd64").config_digest == amd.config_digest


def test_a_message_about_many_tags_stays_short(tmp_path):
    made = IMAGE.write_oci(tmp_path / "image", "t")
    def many(index):
        entry = index["manifests"][0]
        index["manifests"] = [{**entry, "annotations": {imagemaker.REF_NAME: "t" * 300 + str(n)}} for n in range(999)]
    rewrite(made.path / "index.json", many)
    with pytest.raises(SourceError) as caught:
        resolve(f"oci:{made.path}")
    assert len(str(caught.value)) < 4000 and "979 more" in str(caught.value)


# -- choosing by platform -----------------------------------------------------------------------------------------

PLATFORMS = {name: Image([BASE], config={"architecture": name.split("/")[1], "author": name})
             for name in ("linux/arm64", "linux/arm/v6", "linux/amd64/v3", "linux/amd64", "linux/arm/v7")}


@pytest.mark.parametrize("asked, given", [
    ("linux/arm64", "linux/arm64"), ("linux/arm64/v8", "linux/arm64"), ("linux/aarch64", "linux/arm64"),
    ("linux/amd64", "linux/amd64"), ("linux/x86_64", "linux/amd64"), ("linux/amd64/v3", "linux/amd64/v3"),
    ("linux/amd64/v2", "linux/amd64"), ("linux/arm", "linux/arm/v7"), ("linux/arm/v6", "linux/arm/v6"),
    ("linux/arm/v8", "linux/arm/v7"),
])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_nested_index_is_followed_to_what_suits_the_platform_best(asked, given, depth, tmp_path):
    made = write_oci_multi(tmp_path / "image", PLATFORMS, "t", depth=depth)
    assert resolve(f"oci:{tmp_path}/image:t", platform=asked).config_digest == made[given].config_digest


def test_without_a_platform_the_machines_own_is_taken(tmp_path, monkeypatch):
    made = write_oci_multi(tmp_path / "image", PLATFORMS)
    for machine, name in [("x86_64", "linux/amd64"), ("aarch64", "linux/arm64"), ("armv7l", "linux/arm/v7")]:
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        assert resolve(f"oci:{tmp_path}/image").config_digest == made[name].config_digest


def test_a_platform_that_is_not_there_is_an_error_that_lists_those_that_are(tmp_path):
    write_oci_multi(tmp_path / "image", PLATFORMS)
    with pytest.raises(NoMatchingPlatformError, match="linux/s390x.*linux/arm64, linux/arm/v6"):
        resolve(f"oci:{tmp_path}/image", platform="linux/s390x")


def test_attestations_beside_the_images_are_not_offered(tmp_path):
    images = {"linux/arm64": PLATFORMS["linux/arm64"], "unknown/unknown": Image([])}
    write_oci_multi(tmp_path / "image", images)
    with pytest.raises(NoMatchingPlatformError, match="but for linux/arm64$"):
        resolve(f"oci:{tmp_path}/image", platform="linux/amd64")


def test_dockers_manifest_lists_are_followed_too(tmp_path):
    image = Image([BASE, Layer({"x": b"x"}, compression="none")], docker=True)
    made = write_oci_multi(tmp_path / "image", {"linux/amd64": image}, docker=True)
    found = resolve(f"oci:{tmp_path}/image", platform="linux/amd64")
    assert found.config_digest == made["linux/amd64"].config_digest
    assert found.manifest_media_type == imagemaker.DOCKER_MANIFEST


def test_indexes_nested_without_end_are_refused(tmp_path):
    write_oci_multi(tmp_path / "image", {"linux/amd64": IMAGE}, depth=5)
    with pytest.raises(SourceError, match="nests more than"):
        resolve(f"oci:{tmp_path}/image", platform="linux/amd64")


def test_a_more_capable_machine_takes_lesser_variants_but_never_greater_ones():
    offered = [Platform("linux", "amd64", "v4"), None, Platform("linux", "amd64", "v2"), Platform("linux", "amd64")]
    assert best(parse_platform("linux/amd64/v3"), offered) == 2
    assert best(parse_platform("linux/amd64/v1"), offered) == 3
    assert best(parse_platform("linux/amd64/v1"), offered[:3]) is None


# -- a layout that is not whole or not right ----------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["oci-layout", "index.json"])
@pytest.mark.parametrize("kind", ["oci", "oci-archive"])
def test_without_its_two_files_it_is_no_layout(kind, name, tmp_path):
    made = write(kind, IMAGE, tmp_path)
    if kind == "oci":
        (made.path / name).unlink()
    else:
        repack(made.path, lambda members: members.remove(next(m for m in members if m[0].name == name)))
    with pytest.raises(SourceError, match=f"no file '{name}'"):
        resolve(made.reference)


@pytest.mark.parametrize("text", ['{"imageLayoutVersion":"2.0.0"}', '{"imageLayoutVersion":1.0}', "{}", "[]", "", "x"])
def test_a_layout_of_another_version_is_refused(text, tmp_path):
    made = IMAGE.write_oci(tmp_path / "image")
    (made.path / "oci-layout").write_text(text)
    with pytest.raises(SourceError, match="oci-layout"):
        resolve(made.reference)


@pytest.mark.parametrize("which", ["config_path", "manifest_path", "layer"])
def test_a_missing_blob_is_named_by_its_digest(which, tmp_path):
    made = IMAGE.write_oci(tmp_path / "image")
    path = made.layer_path(1) if which == "layer" else getattr(made, which)
    path.unlink()
    with pytest.raises(SourceError, match=f"sha256:{path.name}"):
        resolve(made.reference)


@pytest.mark.parametrize("which", ["config_path", "manifest_path"])
def test_a_document_with_one_bit_changed_fails_its_digest(which, tmp_path):
    made = IMAGE.write_oci(tmp_path / "image")
    path = getattr(made, which)
    data = bytearray(path.read_bytes())
    data[data.index(b"a")] ^= 1
    path.write_bytes(data)
    with pytest.raises(DigestMismatchError) as caught:
        resolve(made.reference)
    assert (caught.value.expected, caught.value.actual) == (f"sha256:{path.name}", sha256(data))


@pytest.mark.parametrize("which", ["config_path", "manifest_path", "layer"])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_blob_of_another_size_is_refused_before_it_is_read(which, change, tmp_path):
    made = IMAGE.write_oci(tmp_path / "image")
    path = made.layer_path(0) if which == "layer" else getattr(made, which)
    size = path.stat().st_size
    os.truncate(path, size + change)
    with pytest.raises(SizeMismatchError) as caught:
        resolve(made.reference)
    assert (caught.value.expected, caught.value.actual) == (size, size + change)


def test_layers_are_not_read_when_an_image_is_resolved(tmp_path):
    made = IMAGE.write_oci(tmp_path / "image")
    path = made.layer_path(0)
    path.write_bytes(bytes(path.stat().st_size))   # would fail its digest
    assert len(resolve(made.reference).layers) == 3


@pytest.mark.parametrize("kind", ["index", "manifest", "config", "layout"])
def test_documents_longer_than_the_limit_are_refused_unread(kind, tmp_path):
    made = IMAGE.write_oci(tmp_path / "image")
    small = {"index": "index.json", "layout": "oci-layout"}.get(kind)
    if small:
        with open(made.path / small, "ab") as file:
            file.write(b" " * 9000)
    else:
        image = Image([BASE], edit_config=lambda c: kind == "config" and c.update(author="x" * 9000),
                      edit_manifest=lambda m: kind == "manifest" and m.update(annotations={"x": "x" * 9000}))
        made = image.write_oci(tmp_path / "other")
    with pytest.raises(LimitExceededError) as caught:
        resolve(made.reference, limits=Limits(max_manifest_json=8000))
    assert caught.value.limit == "max_manifest_json"


@pytest.mark.parametrize("text, what", [
    (b'{"schemaVersion":2,"manifests":[],"manifests":[]}', "'manifests' twice"), (b"\xff\xfe", "UTF-8"),
    (b'{"schemaVersion":2,"manifests":[NaN]}', "NaN"), (b"[" * 100_000, "index.json"), (b'["\\ud800"]', "UTF-8"),
    (b"\xef\xbb\xbf{}", "index.json"), (b'{"schemaVersion":2}', "no 'manifests'"), (b"[]", "not a JSON object"),
    (b'{"schemaVersion":2,"manifests":{}}', "not an array"), (b'{"schemaVersion":2,"manifests":[]}', "no image"),
    (b'{"schemaVersion":2,"manifests":null}', "no image"), (b'{"schemaVersion":true,"manifests":[]}', "schemaVersion"),
    (b'{"schemaVersion":3,"manifests":[]}', "schemaVersion"), (b'{"schemaVersion":2,"manifests":[1]}', "entry 0"),
    (b'{"schemaVersion":2,"manifests":[],"config":{}}', "'config'"),
    (b'{"schemaVersion":2,"manifests":[],"mediaType":"application/x"}', "application/x"),
    (b'{"schemaVersion":2,"manifests":[]} x', "index.json"), (b"9" * 10_000, "index.json"),
])
def test_an_index_that_is_not_strictly_one_is_refused(text, what, tmp_path):
    made = IMAGE.write_oci(tmp_path / "image")
    (made.path / "index.json").write_bytes(text)
    with pytest.raises(SourceError, match=what):
        resolve(made.reference)


@pytest.mark.parametrize("key, value", [
    ("digest", "sha256:../../../../etc/passwd"), ("digest", "sha256:" + "A" * 64), ("digest", "sha256:" + "a" * 63),
    ("digest", "sha256:" + "a" * 64 + "\n"), ("digest", "../x"), ("digest", None), ("digest", 7), ("size", -1),
    ("size", 1.0), ("size", True), ("size", "5"), ("size", None), ("size", 1 << 63), ("mediaType", None),
    ("mediaType", ""), ("annotations", {"a": 1}), ("annotations", []), ("platform", []), ("platform", {"os": "linux"}),
])
def test_a_descriptor_that_is_not_right_is_refused(key, value, tmp_path):
    made = IMAGE.write_oci(tmp_path / "image")
    rewrite(made.path / "index.json", lambda index: index["manifests"][0].update({key: value}))
    with pytest.raises(SourceError, match="entry 0"):
        resolve(made.reference)


def test_a_digest_by_another_algorithm_is_a_type_that_is_not_supported(tmp_path):
    made = Image([BASE], edit_manifest=lambda m: m["layers"][0].update(digest="sha512:" + "a" * 128))
    with pytest.raises(UnsupportedMediaTypeError, match="sha512"):
        resolve(made.write_oci(tmp_path / "image").reference)


@pytest.mark.parametrize("edit, what", [
    (lambda m: m.update(schemaVersion=1), "schema 1"), (lambda m: m.update(fsLayers=[]), "of Docker's schema 1"),
    (lambda m: m["config"].update(mediaType="application/vnd.oci.empty.v1+json"), "empty.v1"),
    (lambda m: m["config"].update(mediaType="application/vnd.cncf.helm.config.v1+json"), "helm"),
    (lambda m: m["layers"][0].update(mediaType="application/vnd.oci.image.layer.v1.tar+xz"), "layer 0.*xz"),
    (lambda m: m["layers"][0].update(mediaType="text/plain"), "text/plain"),
])
def test_manifests_of_something_else_than_an_image_we_can_read_are_refused_by_type(edit, what, tmp_path):
    with pytest.raises(UnsupportedMediaTypeError, match=what):
        resolve(Image([BASE], edit_manifest=edit).write_oci(tmp_path / "image").reference)


@by_name("edit", {
    "also an index": lambda m: m.update(manifests=[]), "other type": lambda m: m.update(mediaType=INDEX),
    "no config": lambda m: m.pop("config"), "no layers": lambda m: m.pop("layers"),
    "layers no array": lambda m: m.update(layers={}), "config no object": lambda m: m.update(config=[]),
    "no version": lambda m: m.update(schemaVersion=None),
})
def test_a_malformed_manifest_is_refused(edit, tmp_path):
    with pytest.raises(SourceError, match="manifest sha256:"):
        resolve(Image([BASE], edit_manifest=edit).write_oci(tmp_path / "image").reference)


@pytest.mark.parametrize("media_type", ["application/vnd.docker.distribution.manifest.v1+prettyjws", "text/plain", CONFIG])
def test_an_index_entry_of_another_type_is_refused_by_type(media_type, tmp_path):
    made = IMAGE.write_oci(tmp_path / "image")
    rewrite(made.path / "index.json", lambda index: index["manifests"][0].update(mediaType=media_type))
    with pytest.raises(UnsupportedMediaTypeError, match=media_type.replace("+", r"\+")):
        resolve(made.reference)


@by_name("edit", {
    "no rootfs": lambda c: c.pop("rootfs"), "rootfs of another type": lambda c: c["rootfs"].update(type="squashfs"),
    "no diff_ids": lambda c: c["rootfs"].pop("diff_ids"), "os no text": lambda c: c.update(os=7),
    "diff_id no digest": lambda c: c["rootfs"].update(diff_ids=["sha256:x"]),
    "diff_id no text": lambda c: c["rootfs"].update(diff_ids=[None]),
})
@pytest.mark.parametrize("kind", KINDS)
def test_a_malformed_config_is_refused(kind, edit, tmp_path):
    with pytest.raises(SourceError, match="config"):
        resolve(write(kind, Image([BASE], edit_config=edit), tmp_path).reference)


@pytest.mark.parametrize("media_type", [
    f"application/vnd.oci.image.layer.{kind}v1.tar{suffix}"
    for kind in ("", "nondistributable.") for suffix in ("", "+gzip", "+zstd")
] + ["application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.diff.tar.gzip",
     "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"])
def test_every_layer_type_of_the_field_is_taken(media_type, tmp_path):
    made = Image([Layer({"x": b"x"}, media_type=media_type)]).write_oci(tmp_path / "image")
    assert resolve(made.reference).layers[0].descriptor.media_type == media_type


def test_annotations_of_a_layer_are_kept(tmp_path):
    made = Image([Layer({"x": b"x"}, annotations={"io.example": "ü"})]).write_oci(tmp_path / "image")
    assert resolve(made.reference).layers[0].descriptor.annotations == {"io.example": "ü"}


@pytest.mark.parametrize("which", ["blob", "blobs/sha256", "blobs", "index.json"])
def test_symbolic_links_inside_a_layout_are_not_followed(which, tmp_path):
    made = IMAGE.write_oci(tmp_path / "image")
    path = made.layer_path(0) if which == "blob" else made.path / which
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match="symbolic link") as caught:
        resolve(made.reference)
    assert "cp -rL" in caught.value.hint


def test_the_layout_itself_may_be_reached_through_a_link(tmp_path):
    made = IMAGE.write_oci(tmp_path / "image")
    (tmp_path / "link").symlink_to("image")
    assert resolve(f"oci:{tmp_path}/link").config_digest == made.config_digest


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_blob_that_is_no_file_is_refused_without_waiting_for_it(make, tmp_path):
    made = IMAGE.write_oci(tmp_path / "image")
    made.layer_path(0).unlink()
    make(made.layer_path(0))
    with pytest.raises(SourceError, match="not a regular file"):
        resolve(made.reference)


# -- archives ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
@pytest.mark.parametrize("compress, tool", [
    (gzip.compress, "gunzip"), (zstandard.compress, "unzstd"), (lzma.compress, "unxz"), (bz2.compress, "bunzip2"),
])
def test_a_compressed_archive_is_refused_with_how_to_undo_it(kind, compress, tool, tmp_path):
    made = write(kind, IMAGE, tmp_path)
    made.path.write_bytes(compress(made.path.read_bytes()))
    with pytest.raises(SourceError, match="compressed") as caught:
        open_source(made.reference)
    assert f"{tool} {made.path}" in caught.value.hint


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
@pytest.mark.parametrize("data", [b"", b"hello", b"\0" * 511, bytes(range(256)) * 20], ids=["empty", "short", "zeros", "junk"])
def test_a_file_that_is_no_tar_is_refused(kind, data, tmp_path):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(SourceError):
        resolve(f"{kind}:{tmp_path}/x")


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_an_archive_cut_anywhere_is_refused(kind, tmp_path):
    made = write(kind, Image([BASE]), tmp_path)
    with tarfile.open(made.path) as archive:
        last = archive.getmembers()[-1]
    end = last.offset_data + -(-last.size // 512) * 512
    whole = made.path.read_bytes()
    for size in range(1, end + 1, 512 - 7):
        made.path.write_bytes(whole[:size])
        with pytest.raises(SourceError):
            resolve(made.reference)


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_a_fifo_is_refused_without_waiting_for_it(kind, tmp_path):
    os.mkfifo(tmp_path / "x")
    with pytest.raises(SourceError, match="not a regular file"):
        open_source(f"{kind}:{tmp_path}/x")


def test_names_that_begin_with_a_dot_and_slash_are_found(tmp_path):
    made = IMAGE.write_oci(tmp_path / "image", "t")
    imagemaker.pack_layout(made.path, tmp_path / "dotted.tar", prefix="./")
    assert resolve(f"oci-archive:{tmp_path}/dotted.tar:t").config_digest == made.config_digest


def test_a_member_that_comes_twice_is_refused(tmp_path):
    made = IMAGE.write_oci_archive(tmp_path / "a.tar")
    repack(made.path, lambda members: members.append(next(m for m in members if m[0].name == "index.json")))
    with pytest.raises(SourceError, match="'index.json' 2 times"):
        resolve(made.reference)


def test_a_limit_on_a_layers_bytes_is_not_one_on_the_archive_of_all_layers(tmp_path):
    made = IMAGE.write_oci_archive(tmp_path / "a.tar")
    assert len(resolve(made.reference, limits=Limits(max_bytes=1000, max_entries=2)).layers) == 3


def test_indexing_an_archive_does_not_read_the_layers(tmp_path, monkeypatch):
    made = write("docker-archive", Image([Layer({"big": Filler(8 << 20)})]), tmp_path)
    read, pread, preadv = [], os.pread, os.preadv
    monkeypatch.setattr(os, "pread", lambda fd, n, at: read.append(len(found := pread(fd, n, at))) or found)
    monkeypatch.setattr(os, "preadv", lambda fd, v, at: read.append(found := preadv(fd, v, at)) or found)
    assert len(resolve(made.reference).layers) == 1
    assert 0 < sum(read) < 1 << 20


def test_archives_are_read_in_parallel_even_where_proc_is_not_mounted(tmp_path, monkeypatch):
    real = os.open
    def without_proc(path, *arguments, **more):
        if str(path).startswith("/proc/"):
            raise FileNotFoundError(path)
        return real(path, *arguments, **more)
    monkeypatch.setattr(os, "open", without_proc)
    made = write("oci-archive", IMAGE, tmp_path)
    with open_source(made.reference) as source:
        streams = [layer.open() for layer in source.resolve().layers]
        heads = [stream.read(5) for stream in streams]
        assert [sha256(head + stream.read()) for head, stream in zip(heads, streams, strict=True)] == [
            blob.digest for blob in made.layers
        ]
        for stream in streams:
            stream.close()


# -- docker-archive ---------------------------------------------------------------------------------------------------

def test_a_compressed_layer_of_a_docker_archive_has_the_digest_of_its_stored_bytes(tmp_path):
    made = IMAGE.write_docker_archive(tmp_path / "d.tar", compress=True)
    image = resolve(made.reference)
    assert [layer.descriptor.digest for layer in image.layers] == [blob.digest for blob in made.layers]
    assert [layer.descriptor.media_type for layer in image.layers] == [blob.media_type for blob in made.layers]
    assert image.layers[0].descriptor.digest != image.layers[0].diff_id


def test_the_synthesised_manifest_depends_on_nothing_but_the_content(tmp_path):
    one = resolve(IMAGE.write_docker_archive(tmp_path / "one.tar", "a:1").reference)
    two = resolve(IMAGE.write_docker_archive(tmp_path / "two.tar", "b:2", others=[(Image([]), "c:3")]).reference)
    assert one.manifest == two.manifest


@pytest.mark.parametrize("tag", ["debian:12", "docker.io/library/debian:12", "docker.io/debian:12"])
@pytest.mark.parametrize("stored", ["debian:12", "docker.io/library/debian:12"])
def test_a_repo_tag_is_found_in_any_of_dockers_spellings(tag, stored, tmp_path):
    made = IMAGE.write_docker_archive(tmp_path / "d.tar", stored, others=[(Image([]), "debian:13")])
    found = resolve(f"docker-archive:{made.path}:{tag}")
    assert (found.config_digest, found.name) == (made.config_digest, stored)


def test_a_repository_alone_means_its_tag_latest(tmp_path):
    made = IMAGE.write_docker_archive(tmp_path / "d.tar", "localhost:5000/x:latest", others=[(Image([]), "y:1")])
    assert resolve(f"docker-archive:{made.path}:localhost:5000/x").config_digest == made.config_digest


def test_without_a_tag_several_images_of_a_docker_archive_are_an_error_that_lists_them(tmp_path):
    made = IMAGE.write_docker_archive(tmp_path / "d.tar", "a:1", others=[(Image([]), "b:2"), (Image([BASE]), None)])
    with pytest.raises(SourceError, match="a:1, b:2, @2"):
        resolve(f"docker-archive:{made.path}")


def test_an_image_without_a_repo_tag_is_reached_by_its_position(tmp_path):
    other = Image([BASE])
    made = IMAGE.write_docker_archive(tmp_path / "d.tar", "a:1", others=[(other, None)])
    assert [layer.diff_id for layer in resolve(f"docker-archive:{made.path}:@1").layers] == [BASE.diff_id]
    with pytest.raises(SourceError, match="position 2"):
        resolve(f"docker-archive:{made.path}:@2")


def test_an_unknown_repo_tag_is_an_error_whose_hint_lists_those_that_are_there(tmp_path):
    made = IMAGE.write_docker_archive(tmp_path / "d.tar", "a:1")
    with pytest.raises(SourceError) as caught:
        resolve(f"docker-archive:{made.path}:b:1")
    assert "a:1" in caught.value.hint


def test_a_layer_that_is_a_symbolic_link_inside_the_archive_is_followed(tmp_path):
    made = Image([BASE, BASE]).write_docker_archive(tmp_path / "d.tar", links=True)
    with tarfile.open(made.path) as archive:
        assert any(info.issym() for info in archive)
    with open_source(made.reference) as source:
        assert [sha256(layer.open().read()) for layer in source.resolve().layers] == [BASE.diff_id] * 2


@pytest.mark.parametrize("kind, link, what", [
    (tarfile.SYMTYPE, "../../etc/passwd", "not a regular file"), (tarfile.SYMTYPE, "/etc/passwd", "not a regular file"),
    (tarfile.SYMTYPE, "layer", "more than 8"), (tarfile.LNKTYPE, "layer", "more than 8"),
    (tarfile.SYMTYPE, "absent", "'absent'"), (tarfile.LNKTYPE, "absent", "'absent'"),
])
def test_links_that_lead_outside_or_nowhere_or_in_a_circle_are_refused(kind, link, what, tmp_path):
    made = Image([BASE]).write_docker_archive(
        tmp_path / "d.tar", edit_manifest=lambda listing: listing[0].update(Layers=["layer"])
    )
    repack(made.path, lambda members: members.append(member("layer", type=kind, linkname=link)))
    with pytest.raises(SourceError, match=what):
        resolve(made.reference)


@pytest.mark.parametrize("edit, what", [
    (lambda listing: listing.clear(), "not a list"), (lambda listing: listing.append(7), "image 1"),
    (lambda listing: listing[0].pop("Config"), "no Config"), (lambda listing: listing[0].update(Layers="x"), "Layers"),
    (lambda listing: listing[0].update(RepoTags=[1]), "RepoTags"),
    (lambda listing: listing[0].update(Config="../x"), r"'\.\./x'"),
    (lambda listing: listing[0].update(Layers=["/etc/passwd"]), "'/etc/passwd'"),
    (lambda listing: listing[0].update(Layers=["absent"]), "'absent'"),
    (lambda listing: listing[0].update(Config="absent"), "no file 'absent'"),
])
def test_a_listing_that_is_not_right_is_refused(edit, what, tmp_path):
    made = Image([BASE]).write_docker_archive(tmp_path / "d.tar", edit_manifest=edit)
    with pytest.raises(SourceError, match=what):
        resolve(made.reference)


def test_a_config_that_is_not_what_its_name_promises_fails_its_digest(tmp_path):
    made = IMAGE.write_docker_archive(tmp_path / "d.tar")
    def change(members):
        at = next(n for n, (info, _) in enumerate(members) if info.name.endswith(".json") and len(info.name) == 69)
        members[at] = (members[at][0], members[at][1] + b" ")
    repack(made.path, change)
    with pytest.raises(DigestMismatchError):
        resolve(made.reference)


def test_an_oci_archive_opened_as_a_docker_archive_is_refused_with_the_right_form_as_hint(tmp_path):
    made = IMAGE.write_oci_archive(tmp_path / "a.tar")
    with pytest.raises(SourceError, match="manifest.json") as caught:
        resolve(f"docker-archive:{made.path}")
    assert "oci-archive:" in caught.value.hint


def test_a_layer_stored_with_a_compression_of_no_layer_type_is_refused(tmp_path):
    made = Image([Layer(tar=bz2.compress(BASE.tar_bytes()))]).write_docker_archive(tmp_path / "d.tar")
    with pytest.raises(UnsupportedMediaTypeError, match="bzip2"):
        resolve(made.reference)


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("honest", [True, False])
def test_a_layer_that_is_named_as_a_blob_as_docker_25_does_must_have_that_digest(compress, honest, tmp_path):
    name = BASE.diff_id if not compress else sha256(BASE.blob_bytes())
    name = f"blobs/sha256/{name[7:] if honest else '0' * 64}"
    made = Image([BASE]).write_docker_archive(
        tmp_path / "d.tar", compress=compress, edit_manifest=lambda listing: listing[0].update(Layers=[name])
    )
    repack(made.path, lambda members: setattr(members[0][0], "name", name))
    if honest:
        assert resolve(made.reference).layers[0].diff_id == BASE.diff_id
    else:
        with pytest.raises(DigestMismatchError):
            resolve(made.reference)


def test_a_compressed_layer_that_comes_often_is_digested_once(tmp_path, monkeypatch):
    image = Image([Layer({"big": Filler(1 << 20)}, level=1)] * 5)
    made = image.write_docker_archive(tmp_path / "d.tar", compress=True)
    read, preadv = [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, v, at: read.append(found := preadv(fd, v, at)) or found)
    assert len(resolve(made.reference).layers) == 5
    assert sum(read) < 2 * made.layers[0].size


def test_a_name_of_two_images_in_a_docker_archive_is_ambiguous(tmp_path):
    made = IMAGE.write_docker_archive(tmp_path / "d.tar", "a:1", others=[(Image([]), "a:1")])
    with pytest.raises(SourceError, match="several images that are called 'a:1'"):
        resolve(made.reference)


def test_a_compressed_layer_under_two_names_and_two_diff_ids_is_refused(tmp_path):
    made = Image([BASE, BASE], edit_config=lambda c: c["rootfs"]["diff_ids"].__setitem__(1, sha256(b""))).write_docker_archive(
        tmp_path / "d.tar", compress=True, edit_manifest=lambda listing: listing[0]["Layers"].__setitem__(1, "other.tar")
    )
    def copy(members):
        members.append(member("other.tar", next(data for info, data in members if info.name.endswith(".tar"))))
    repack(made.path, copy)
    with pytest.raises(SourceError, match=sha256(b"")):
        resolve(made.reference)


# -- the imagemaker itself: other tests stand on it -------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_the_same_image_is_written_with_the_same_bytes(kind, tmp_path):
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        written.append(write(kind, IMAGE, tmp_path / name, "t:1").path.read_bytes())
    assert written[0] == written[1]


def test_a_tag_that_is_written_again_moves(tmp_path):
    IMAGE.write_oci(tmp_path / "image", "t")
    made = Image([BASE]).write_oci(tmp_path / "image", "t")
    assert resolve(made.reference).config_digest == made.config_digest


# -- other people's tools ---------------------------------------------------------------------------------------------

def skopeo(*arguments):
    subprocess.run([SKOPEO, "--insecure-policy", "--tmpdir", "/tmp", *arguments], check=True, capture_output=True)


@needs_skopeo
@pytest.mark.parametrize("target", ["oci:{}/other:t", "oci-archive:{}/other.tar:t", "docker-archive:{}/other.tar:x:t"])
def test_what_skopeo_makes_of_an_image_resolves_to_the_same_layers(target, tmp_path):
    made = Image([BASE, Layer({"b": b"B"}), BASE]).write_oci(tmp_path / "image", "t")
    target = target.format(tmp_path)
    skopeo("copy", made.reference, target)
    with open_source(target) as source:
        image = source.resolve()
        assert [layer.diff_id for layer in image.layers] == list(made.diff_ids)
        assert image.config_digest == made.config_digest
        for layer in image.layers:
            with layer.open() as stream:
                assert sha256(stream.read()) == layer.descriptor.digest


@needs_skopeo
def test_skopeo_finds_what_the_imagemaker_made(tmp_path):
    made = Image([BASE, BASE]).write_docker_archive(tmp_path / "d.tar", "x:1")
    skopeo("copy", made.reference, f"oci:{tmp_path}/other:t")
    assert [layer.diff_id for layer in resolve(f"oci:{tmp_path}/other:t").layers] == list(made.diff_ids)


# -- whatever comes -------------------------------------------------------------------------------------------------------

def json_values():
    leaves = st.none() | st.booleans() | st.integers(-2, 2**64) | st.floats() | st.text(max_size=20) | st.sampled_from(
        [INDEX, MANIFEST, CONFIG, "sha256:" + "0" * 64, "sha512:00", "layers", "linux", "../x"]
    )
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["mediaType", "digest", "size", "layers", "manifests", "config", "rootfs", "diff_ids", "os",
                         "platform", "annotations", "schemaVersion", "Config", "Layers", "RepoTags"]), inner), max_leaves=12)


def places(document, at=()):
    yield at
    items = document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    for key, value in items:
        yield from places(value, (*at, key))


def put(document, at, value):
    if not at:
        return value
    inner = document
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return document


@pytest.fixture(scope="module")
def specimen(tmp_path_factory):
    return Image([BASE]).write_oci(tmp_path_factory.mktemp("fuzz") / "image", platform="linux/amd64")


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_document_resolves_or_raises_one_of_our_errors(data, specimen):
    """Anything at any place of index, manifest or config, each digested anew: parsed, or refused; nothing else."""
    documents = {"config": json.loads(specimen.config), "manifest": json.loads(specimen.manifest)}
    index = {"schemaVersion": 2, "manifests": [imagemaker.descriptor(b"", MANIFEST, platform="linux/amd64")]}
    which = data.draw(st.sampled_from(["config", "manifest", "index"]))
    document = {**documents, "index": index}[which]
    changed = put(document, data.draw(st.sampled_from(list(places(document)))), data.draw(json_values()))
    files = []
    if which == "config":
        documents["config"] = changed
        config = json.dumps(changed).encode()
        documents["manifest"]["config"].update(digest=sha256(config), size=len(config))
        files.append(config)
    elif which == "manifest":
        documents["manifest"] = changed
    manifest = json.dumps(documents["manifest"]).encode()
    files.append(manifest)
    if which == "index":
        index = changed
    else:
        index["manifests"][0].update(digest=sha256(manifest), size=len(manifest))
    paths = [blob_path(specimen.path, sha256(file)) for file in files]
    new = [path for path in paths if not path.exists()]
    for path, file in zip(paths, files, strict=True):
        path.write_bytes(file)
    (specimen.path / "index.json").write_bytes(json.dumps(index).encode())
    try:
        resolve(specimen.reference)
    except LayerstoreError as error:
        assert str(error) and error.hint
        assert len(str(error)) < 2000
    finally:
        for path in new:
            path.unlink()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_archive_with_bytes_changed_resolves_or_raises_one_of_our_errors(data, tmp_path_factory):
    kind = data.draw(st.sampled_from(["oci-archive", "docker-archive"]))
    top = tmp_path_factory.mktemp("fuzz")
    made = write(kind, Image([BASE]), top)
    content = bytearray(made.path.read_bytes())
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), min_size=1)):
        content[at] = value
    made.path.write_bytes(content)
    try:
        with open_source(made.reference) as source:
            for layer in source.resolve().layers:
                layer.open().read()
    except LayerstoreError as error:
        assert str(error)
    finally:
        shutil.rmtree(top)


def test_making_a_stream_runs_no_code_whose_interrupt_would_be_dropped(tmp_path, monkeypatch):
    from layerstore.sources import window
    from layerstore.system.descriptors import Descriptor

    (tmp_path / "file").write_bytes(b"0123456789")
    seek, asked = window._Window.seek, []
    monkeypatch.setattr(window._Window, "seek", lambda self, *where: asked.append(where) or seek(self, *where))
    with window.open_window(Descriptor(tmp_path / "file", os.O_RDONLY), 2, 6, "it") as stream:
        assert asked == []
        assert (stream.read(2), stream.tell()) == (b"23", 2)
        assert (stream.seek(-1, os.SEEK_END), stream.read()) == (5, b"7")
