"""What a stranger's signatures may not do: to the place that they are pulled from, and to the place that they are sent to."""

import json
from dataclasses import replace

import pytest

import imagemaker
import layerstore
import signing
from imagemaker import MANIFEST
from layerstore import Limits, PullOptions, errors
from layerstore.model import Descriptor
from layerstore.sources import oci
from layerstore.sources.attached import is_signature
from layerstore.sources.documents import Listed
from layerstore.sources.files import read_blob
from signing import by_another_manifest, refer, referrer
from storekit import image

PLAIN = ("none",)   # what goes out as the very manifest that came


def manifests(image):
    return [each.manifest for each in image.signatures]


def files(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.parent.name != "journal"}


def hostile(made, kind=signing.BUNDLE, **said):
    """A layout's signature whose manifest says what it should not; the index says that it is one."""
    manifest, blobs = referrer(made.manifest_digest)
    manifest = imagemaker.encode({**json.loads(manifest), **said})
    signing.put_blobs(made.path, manifest, *blobs)
    signing.listed(made.path, **signing.described(imagemaker.MANIFEST, manifest, artifactType=kind))
    return manifest


@pytest.mark.parametrize("said", [
    {"annotations": {"n": 1}}, {"annotations": "x"}, {"annotations": ["x"]}, {"artifactType": ["x"]}, {"artifactType": {}},
    {"artifactType": 7},
], ids=repr)
def test_a_signature_with_annotations_or_a_type_that_are_none_is_refused(store, root, tmp_path, said):
    made = image(tmp_path)
    hostile(made, **said)
    before = files(root)
    with pytest.raises(errors.SourceError, match="annotation|artifactType"):
        store.pull(made.reference)
    assert files(root) == before


def test_what_is_no_signature_by_its_own_manifest_is_left(store, tmp_path):
    made = image(tmp_path, compression=PLAIN)
    hostile(made, artifactType="foo")
    hostile(made, artifactType="")                       # then its config's type says what it is
    there = refer(made.path, made.manifest_digest)
    assert manifests(store.pull(made.reference)) == [there]


@pytest.mark.parametrize("key", [imagemaker.REF_NAME, "io.containerd.image.name"])
def test_a_signature_takes_no_name_where_it_is_sent(store, tmp_path, key):
    made = image(tmp_path, compression=PLAIN)
    kept = {"dev.sigstore.bundle.content": "message-signature"}
    hostile(made, annotations={key: "free", **kept})
    store.pull(made.reference, names=["one"])
    assert store.push("one", f"oci:{tmp_path}/out:tag").signatures == 1
    (_, entry) = json.loads((tmp_path / "out" / "index.json").read_text())["manifests"]
    assert entry["annotations"] == kept
    with layerstore.open(tmp_path / "other") as other:
        assert len(other.pull(f"oci:{tmp_path}/out").signatures) == 1
        with pytest.raises(errors.SourceError, match="no image with the tag"):
            other.pull(f"oci:{tmp_path}/out:free")


def test_long_annotations_of_a_signature_do_not_go_into_the_index(store, tmp_path):
    """Five such would make a layout's index longer than what is read of one."""
    made = image(tmp_path, compression=PLAIN)
    there = hostile(made, annotations={"x": "x" * 900_000})
    store.pull(made.reference, names=["one"])
    assert store.push("one", f"oci:{tmp_path}/out:tag").signatures == 1
    assert (tmp_path / "out" / "index.json").stat().st_size < 2_000
    with layerstore.open(tmp_path / "other") as other:
        assert manifests(other.pull(f"oci:{tmp_path}/out:tag")) == [there]


@pytest.mark.parametrize("entry", [{"artifactType": ["x"]}, {"annotations": {imagemaker.REF_NAME: ["x"]}}], ids=repr)
def test_an_index_that_is_none_is_not_added_to(store, tmp_path, entry):
    made = image(tmp_path, compression=PLAIN)
    refer(made.path, made.manifest_digest)
    store.pull(made.reference, names=["one"])
    store.push("one", f"oci:{tmp_path}/out:tag", signatures=False)
    signing.listed(tmp_path / "out", **signing.described(imagemaker.MANIFEST, b"another"), **entry)
    before = (tmp_path / "out" / "index.json").read_bytes()
    with pytest.raises(errors.SourceError, match="is none"):
        store.push("one", f"oci:{tmp_path}/out:tag")
    assert (tmp_path / "out" / "index.json").read_bytes() == before


@pytest.mark.parametrize("more", ["x", "\n", "; not=one"], ids=repr)
@pytest.mark.parametrize("kind", [signing.BUNDLE, signing.NOTARY, "application/vnd.dev.cosign.artifact.sig.v1+json",
                                  "application/vnd.dev.sigstore.bundle+json;version=0.2"])
def test_a_type_that_only_begins_as_a_signatures_is_none(kind, more):
    entry = Listed(Descriptor(MANIFEST, "sha256:" + "0" * 64, 1), None, None, kind)
    assert is_signature(entry)
    assert not is_signature(replace(entry, artifact_type=kind + more))


def test_a_type_with_a_version_without_end_is_none():
    kind = signing.BUNDLE.replace("v0.3", "v" + "0.3" * 1000)
    assert not is_signature(Listed(Descriptor(MANIFEST, "sha256:" + "0" * 64, 1), None, None, kind))


# -- how much ------------------------------------------------------------------------------------------------------------


def behind_index(made, padding=0):
    """The layout's image is had by an index, of which *padding* bytes are white space; the index."""
    entry = signing.described(MANIFEST, made.manifest, platform={"os": "linux", "architecture": "amd64"})
    index = imagemaker.encode({"schemaVersion": 2, "mediaType": imagemaker.INDEX, "manifests": [entry]}) + b" " * padding
    signing.put_blobs(made.path, index)
    (made.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [
        signing.described(imagemaker.INDEX, index, annotations={imagemaker.REF_NAME: "latest"})]}))
    return index


def test_signatures_of_other_images_in_a_layout_do_not_count_and_each_is_read_once(store, tmp_path, monkeypatch):
    made = image(tmp_path)
    index = behind_index(made)
    others = [refer(made.path, "sha256:" + "0" * 64, salt=str(n)) for n in range(10)]
    there = [refer(made.path, made.manifest_digest), refer(made.path, imagemaker.digest_of(index))]
    read = []
    monkeypatch.setattr(oci, "read_blob", lambda files, found, *more: read.append(found.digest) or read_blob(files, found, *more))
    limit = sum(len(blob) for manifest in [*there, index] for blob in (manifest, b"{}", b"x" * 80))
    assert limit < sum(map(len, others))
    options = PullOptions(limits=Limits(max_signature_bytes=limit))
    assert manifests(store.pull(made.reference, options=options)) == there
    assert all(read.count(imagemaker.digest_of(each)) == 1 for each in [*others, *there])


@pytest.mark.parametrize("by_tag", [False, True])
def test_one_that_is_listed_several_times_is_one(store, tmp_path, by_tag):
    made = image(tmp_path)
    there = [refer(made.path, made.manifest_digest, by_tag=several) for several in (False, False, by_tag)]
    assert manifests(store.pull(made.reference)) == there[:1]


def test_an_index_that_would_be_kept_counts_before_a_layer_is_fetched(store, root, tmp_path):
    made = image(tmp_path)
    index = behind_index(made, padding=1 << 20)
    refer(made.path, made.manifest_digest)
    assert store.pull(made.reference).indexes == ()      # none of them is signed
    store.delete_image(made.config_digest.removeprefix("sha256:"))
    refer(made.path, imagemaker.digest_of(index))
    before = files(root)
    with pytest.raises(errors.LimitExceededError, match="max_signature_bytes"):
        store.pull(made.reference)
    assert store.images() == []
    assert files(root) == before


# -- an image that is here by another manifest -----------------------------------------------------------------------------


def test_what_was_verified_does_not_vouch_for_what_is_here_by_another_manifest(store, root, tmp_path):
    made = image(tmp_path)
    first = store.pull(made.reference, names=["first"])
    another = by_another_manifest(made)
    seen, before = [], files(root)
    with pytest.raises(errors.ImageRefusedError, match=f"with the manifest {made.manifest_digest}") as caught:
        store.pull(made.reference, names=["second"], options=PullOptions(verify=seen.append))
    assert (caught.value.manifest_digest, seen[0].manifest_digest) == (another, another)
    assert (caught.value.reference, caught.value.hint) == (made.reference, "delete it, and pull again")
    assert (files(root), store.image(first.id).names) == (before, ("first",))
    assert store.pull(made.reference, names=["second"]).manifest_digest == made.manifest_digest   # nobody verifies
    store.delete_image(first.id)
    assert store.pull(made.reference, options=PullOptions(verify=seen.append)).manifest_digest == another


@pytest.mark.parametrize("moment", ["verified", "fetched"])
def test_nor_for_what_came_by_another_manifest_meanwhile(store, tmp_path, moment):
    made = image(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    again = image(tmp_path / "elsewhere")
    by_another_manifest(again)
    others = [lambda: store.pull(made.reference, names=["first"])]

    def reached(now):
        if now == moment and others:
            others.pop()()

    class Told(layerstore.Quiet):
        def layer(self, *_what, **_more):
            reached("fetched")

    with pytest.raises(errors.ImageRefusedError, match="with the manifest"):
        store.pull(again.reference, names=["second"], progress=Told(),
                   options=PullOptions(verify=lambda _image: reached("verified")))
    assert [each.names for each in store.images()] == [("first",)]
