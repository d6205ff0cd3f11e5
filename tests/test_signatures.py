"""Signatures come and go with their image, byte for byte; who verifies it decides before anything of it is here."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import imagemaker
import layerstore
import layerjournal
import signing
from layerstore import Limits, PullOptions, errors
from layerstore.cli.commands import run
from layerstore.cli.verifying import by_command
from layerstore.formats import records
from layerstore.opening import config
from layerstore.testing import violations
from registries import Fake, Registry, quick
from signing import attached, refer, referrer, sign
from storekit import image, killed_at

EXAMPLES = Path(__file__).parent.parent / "examples"
PLAIN = ("none",)   # what goes out as the very manifest that came


@pytest.fixture
def signed(tmp_path):
    """An image with one signature of each kind; their manifests."""
    made = image(tmp_path, compression=PLAIN)
    return made, [sign(made.path, made.manifest_digest), refer(made.path, made.manifest_digest)]


def manifests(image):
    return [each.manifest for each in image.signatures]


def tree(root):
    """Every path of a store with its content, without what LMDB keeps of its readers and pages."""
    return {path: path.read_bytes() if path.is_file() else b"" for path in sorted(root.rglob("*"))
            if path.parent.name != "journal"}


def dump(store):
    return layerjournal.canonical_dump(store._handle.journal.fold())


# -- kept with the image -----------------------------------------------------------------------------------------------


def test_what_a_layout_offers_is_kept_as_it_came(store, signed):
    made, offered = signed
    pulled = store.pull(made.reference)
    assert manifests(pulled) == offered
    assert [(each.kind, each.subject) for each in pulled.signatures] == [
        ("attached", made.manifest_digest), ("referrer", made.manifest_digest)]
    assert [each.blobs for each in pulled.signatures] == [
        attached(made.manifest_digest)[1], referrer(made.manifest_digest)[1]]
    assert pulled.indexes == ()


def test_they_are_there_when_the_store_is_opened_again_and_in_its_side_file(root, signed):
    with layerstore.open(root) as store:
        pulled = store.pull(signed[0].reference)
        store.checkpoint(archive=True)
    with layerstore.open(root, readonly=True) as store:
        assert store.image(pulled.id).signatures == pulled.signatures
        side = records.read((root / "images" / pulled.id).read_bytes(), "it")
        assert [each["manifest"] for each in side["signatures"]] == signed[1]


@pytest.mark.parametrize("kind", [signing.BUNDLE, signing.NOTARY, "application/vnd.dev.sigstore.bundle+json;version=0.2"])
@pytest.mark.parametrize("by_tag", [False, True])
def test_a_referrer_is_known_by_its_type_in_the_index_or_in_the_list_under_a_tag(store, tmp_path, kind, by_tag):
    made = image(tmp_path)
    there = refer(made.path, made.manifest_digest, kind=kind, by_tag=by_tag)
    assert manifests(store.pull(made.reference)) == [there]


def test_what_else_refers_to_an_image_is_left(store, tmp_path):
    made = image(tmp_path)
    refer(made.path, made.manifest_digest, kind="application/spdx+json")
    refer(made.path, "sha256:" + "0" * 64)                       # of another image
    sign(made.path, "sha256:" + "0" * 64)
    assert store.pull(made.reference).signatures == ()


def test_an_image_without_any_leaves_what_it_left_before(store, root, tmp_path):
    pulled = store.pull(image(tmp_path).reference)
    assert "signatures" not in records.read((root / "images" / pulled.id).read_bytes(), "it")
    with store._handle.read() as view:
        assert not {"signatures", "indexes"} & set(view.get("images", pulled.id))


def test_of_a_signed_index_the_index_is_kept_too(store, tmp_path):
    made = image(tmp_path, compression=PLAIN)
    layout = tmp_path / "image"
    entry = signing.described(imagemaker.MANIFEST, made.manifest, platform={"os": "linux", "architecture": "amd64"})
    index = imagemaker.encode({"schemaVersion": 2, "mediaType": imagemaker.INDEX, "manifests": [entry]})
    signing.put_blobs(layout, index)
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [
        signing.described(imagemaker.INDEX, index, annotations={imagemaker.REF_NAME: "latest"})]}))
    digest = imagemaker.digest_of(index)
    there = sign(layout, digest)
    seen = []
    pulled = store.pull(made.reference, options=PullOptions(verify=seen.append))
    assert (manifests(pulled), pulled.indexes, seen[0].indexes) == ([there], (index,), (index,))
    assert pulled.signatures[0].subject == digest
    assert store.push(pulled.id, f"oci:{tmp_path}/out:tag").signatures == 0   # the index does not go out


def test_a_layout_with_signatures_still_has_one_image_without_a_tag(store, signed):
    assert store.pull(f"oci:{signed[0].path}").manifest_digest == signed[0].manifest_digest


def test_a_pull_that_asks_for_none_looks_for_none(store, signed):
    assert store.pull(signed[0].reference, options=PullOptions(signatures=False)).signatures == ()


def test_what_is_too_much_or_damaged_is_refused_and_nothing_is_left(store, root, signed):
    made, (cosign, _) = signed
    before = tree(root)
    with pytest.raises(errors.LimitExceededError) as caught:
        store.pull(made.reference, options=PullOptions(limits=Limits(max_signature_bytes=500)))
    assert caught.value.limit == "max_signature_bytes" and "--no-signatures" in caught.value.hint
    path = imagemaker.blob_path(made.path, imagemaker.digest_of(cosign))
    path.write_bytes(path.read_bytes().replace(b"c2ln", b"c2lm"))
    with pytest.raises(errors.DigestMismatchError):
        store.pull(made.reference)
    assert tree(root) == before


def test_deleting_the_image_deletes_them(store, root, signed):
    pulled = store.pull(signed[0].reference)
    store.delete_image(pulled.id)
    store.checkpoint()
    assert os.listdir(root / "images") == []
    with store._handle.read() as view:
        assert view.get("images", pulled.id) is None


# -- whoever verifies --------------------------------------------------------------------------------------------------


def test_the_hook_is_shown_all_that_there_is_before_anything_is_written(store, root, signed):
    made, offered = signed
    seen, before = [], tree(root)

    def verify(image):
        assert tree(root) == before
        seen.append(image)

    store.pull(made.reference, options=PullOptions(verify=verify))
    (image,) = seen
    assert (image.reference, image.manifest, image.manifest_digest) == (made.reference, made.manifest, made.manifest_digest)
    assert f"sha256:{hashlib.sha256(image.config).hexdigest()}" == made.config_digest
    assert [each.manifest for each in image.signatures] == offered


def refuse(_image):
    raise ValueError("signed by nobody that is known here")


def test_what_is_refused_changes_nothing(store, root, signed):
    made, _ = signed
    before, records_before = tree(root), dump(store)
    with pytest.raises(errors.ImageRefusedError, match="by nobody that is known here") as caught:
        store.pull(made.reference, options=PullOptions(verify=refuse))
    assert isinstance(caught.value, errors.InputError)
    assert (caught.value.reference, caught.value.manifest_digest) == (made.reference, made.manifest_digest)
    assert isinstance(caught.value.__cause__, ValueError)
    assert (tree(root), dump(store)) == (before, records_before)
    assert store.pull(made.reference).created


def test_no_layer_of_what_is_refused_is_asked_for(store, tmp_path):
    made = image(tmp_path)
    with Fake(made) as fake, pytest.raises(errors.ImageRefusedError):
        store.pull(fake.reference, options=PullOptions(verify=refuse, registry=quick()))
    assert {path for _, path, _ in fake.requests if "/blobs/" in path} == {f"/v2/some/image/blobs/{made.config_digest}"}


def test_an_image_that_is_here_is_verified_again_and_gets_no_name_when_it_is_refused(store, signed):
    made, offered = signed
    store.pull(made.reference, names=["good"])
    seen = []

    def verify(image):
        seen.append(image)
        raise errors.ImageRefusedError("no", reference=image.reference, manifest_digest=image.manifest_digest)

    with pytest.raises(errors.ImageRefusedError, match="^no$"):
        store.pull(made.reference, names=["better"], options=PullOptions(verify=verify))
    assert [each.manifest for each in seen[0].signatures] == offered
    assert [each.names for each in store.images()] == [("good",)]


def test_an_interrupt_in_the_hook_is_not_a_refusal(store, signed):
    def verify(_image):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.pull(signed[0].reference, options=PullOptions(verify=verify))
    assert store.pull(signed[0].reference).created


CHECK = """
import hashlib, json, os, sys
where = sys.argv[-1]
told = json.load(open(f"{where}/image.json"))
assert os.environ["LAYERSTORE_VERIFY"] == where
assert os.environ["LAYERSTORE_DIGEST"] == told["manifest_digest"] == "sha256:" + hashlib.sha256(
    open(f"{where}/{told['manifest']}", "rb").read()).hexdigest()
signed = json.load(open(f"{where}/{told['signatures'][0]['blobs'][1]}"))
print("this is not the command's own output")
sys.exit(signed["critical"]["image"]["docker-manifest-digest"] != told["manifest_digest"] or int(sys.argv[1]))
"""


def test_a_command_verifies_and_its_status_decides(root, tmp_path, signed, capfd):
    (tmp_path / "check.py").write_text(CHECK)
    command = f"{sys.executable} '{tmp_path}/check.py'"
    assert run(["--root", str(root), "pull", signed[0].reference, "--quiet", "--verify", f"{command} 3"]) == 1
    out, err = capfd.readouterr()
    assert "ended with status 3" in err and "hint:" in err and out == ""
    assert run(["--root", str(root), "pull", signed[0].reference, "--quiet", "--verify", f"{command} 0"]) == 0
    assert capfd.readouterr().out == signed[0].config_digest[7:] + "\n"
    assert run(["--root", str(root), "show", "image:latest", "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert [each["digest"] for each in shown["signatures"]] == [imagemaker.digest_of(each) for each in signed[1]]


@pytest.mark.parametrize("command", ["/nowhere/at/all", "kill-nobody-by-this-name"])
def test_a_command_that_cannot_be_run_lets_nothing_pass(root, signed, command, capsys):
    assert run(["--root", str(root), "pull", signed[0].reference, "--quiet", "--verify", command]) == 1
    assert "cannot be run" in capsys.readouterr().err
    with layerstore.open(root, readonly=True) as store:
        assert store.images() == []


@pytest.mark.parametrize("command", ["", "'unclosed"])
def test_a_command_that_is_none_is_an_error_of_the_callers(root, signed, command, capsys):
    assert run(["--root", str(root), "pull", signed[0].reference, "--quiet", "--verify", command]) == 2


# -- what crashes, older releases and lost files leave -----------------------------------------------------------------


@pytest.mark.parametrize("point", ["txn.claim", "publish.image-file.write", "publish.image-file.rename", "txn.commit"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_leaves_the_image_with_its_signatures_or_none(root, signed, point, when):
    def pull():
        with layerstore.open(root) as store:
            store.pull(signed[0].reference)

    killed_at(point, when, pull)
    with layerstore.open(root) as store:
        there = [manifests(each) for each in store.images()]
        assert there == ([] if (point, when) == ("txn.claim", "before") else [signed[1]])
        assert store.check(content=True).sound
    assert violations(str(root)) == []


def of_before(root, image_id):
    """The side file as a release wrote it that knew of no signatures."""
    path = root / "images" / image_id
    side = records.read(path.read_bytes(), "it")
    path.write_bytes(records.image_file(image_id, {key: side[key] for key in side if key != "signatures"}))


def test_a_side_file_that_an_older_release_finished_is_found_and_mended_from_the_row(root, signed):
    with layerstore.open(root) as store:
        pulled = store.pull(signed[0].reference)
        store.checkpoint(archive=True)     # the log has the promise no longer
        of_before(root, pulled.id)
        assert [each.code for each in store.check().findings] == ["image-file-damaged"]
        assert store.image(pulled.id).signatures == pulled.signatures
        store.repair()
        assert store.check().sound
        side = records.read((root / "images" / pulled.id).read_bytes(), "it")
        assert [each["manifest"] for each in side["signatures"]] == signed[1]


def test_an_older_release_that_finishes_a_pull_costs_no_signature(root, signed, monkeypatch):
    """An operating system with two halves goes back after a crash, and forward again."""
    def pull():
        with layerstore.open(root) as store:
            store.pull(signed[0].reference)

    killed_at("txn.claim", "after", pull)
    with monkeypatch.context() as older:
        older.setattr(records, "IF_SIGNED", ())
        older.setattr(config, "KNOWN_FEATURES", frozenset({"id-map"}))
        with layerstore.open(root) as store:
            (image,) = store.images()
    assert "signatures" not in records.read((root / "images" / image.id).read_bytes(), "it")
    with layerstore.open(root) as store:
        assert manifests(store.image(image.id)) == signed[1]
        assert store.check().sound
    assert violations(str(root)) == []


def test_recovery_puts_them_into_the_side_file_where_the_promise_is_in_the_log(root, signed):
    with layerstore.open(root) as store:
        pulled = store.pull(signed[0].reference)
    of_before(root, pulled.id)
    with layerstore.open(root) as store:
        assert [each.do.value for each in store.recovery.actions] == ["rewrite-image-file"]
        assert store.check().sound


def test_a_rebuild_from_the_files_alone_has_them(root, signed):
    with layerstore.open(root) as store:
        pulled = store.pull(signed[0].reference)
    (root / "journal" / "data.mdb").unlink()
    layerstore.rebuild(root)
    with layerstore.open(root) as store:
        assert store.image(pulled.id).signatures == pulled.signatures
        assert store.check().sound


# -- out again ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["oci:{}/out:tag", "oci-archive:{}/out.tar:tag"])
def test_they_go_out_with_the_image_and_come_in_again(store, signed, tmp_path, target):
    target = target.format(tmp_path)
    pulled = store.pull(signed[0].reference, names=["one"])
    report = store.push("one", target)
    assert (report.kept, report.signatures) == (True, 2)
    assert store.push("one", target).signatures == 2            # once more, and nothing is there twice
    with layerstore.open(tmp_path / "other") as other:
        assert other.pull(target).signatures == pulled.signatures
    told = subprocess.run(["skopeo", "inspect", "--raw", target], capture_output=True, check=True)
    assert told.stdout == signed[0].manifest


def test_they_do_not_go_out_with_another_manifest_or_unasked(store, signed, tmp_path, capsys):
    pulled = store.pull(signed[0].reference, names=["one"])
    assert store.push("one", f"oci:{tmp_path}/zstd:tag", compression="zstd").signatures == 0
    assert store.push("one", f"oci:{tmp_path}/bare:tag", signatures=False).signatures == 0
    assert store.push("one", f"docker-archive:{tmp_path}/docker.tar:x:y").signatures == 0
    for name in ("zstd", "bare"):
        (entry,) = json.loads((tmp_path / name / "index.json").read_text())["manifests"]
        assert (entry["digest"] == pulled.manifest_digest) == (name == "bare")
    store.close()
    assert run(["--root", store.root, "push", "one", f"oci:{tmp_path}/again:tag", "--compression", "zstd"]) == 0
    assert "2 of 2 signatures did not go out" in capsys.readouterr().err


def test_what_has_cosigns_tag_in_a_layout_keeps_it(store, signed, tmp_path):
    made, _ = signed
    store.pull(made.reference, names=["one"])
    store.push("one", f"oci:{tmp_path}/out:tag", signatures=False)
    theirs = sign(tmp_path / "out", made.manifest_digest, salt="theirs")
    assert store.push("one", f"oci:{tmp_path}/out:tag").signatures == 1
    with layerstore.open(tmp_path / "other") as other:
        assert manifests(other.pull(f"oci:{tmp_path}/out:tag"))[0] == theirs


def test_a_registry_of_before_referrers_has_them_by_tags(store, signed, tmp_path):
    pulled = store.pull(signed[0].reference, names=["one"])
    with Registry(tmp_path) as registry:
        where = f"docker://{registry.host}/some/where:1"
        assert store.push("one", where, registry=quick()).signatures == 2
        assert store.push("one", where, registry=quick()).signatures == 2
        with layerstore.open(tmp_path / "other") as other:
            again = other.pull(where, options=PullOptions(registry=quick()))
        assert (again.signatures, again.manifest_digest) == (pulled.signatures, pulled.manifest_digest)


def test_skopeo_passes_on_what_was_pushed_and_the_key_still_fits(store, tmp_path):
    """It makes cosign's manifest anew, of the blobs that it found. (Debian's does not verify any.)"""
    private, public = signing.key_pair(tmp_path)
    made = image(tmp_path, compression=PLAIN)
    signing.sign_with(private, made.path, made.manifest_digest)
    ours = store.pull(made.reference, names=["one"])
    (tmp_path / "registries.d").mkdir()
    (tmp_path / "registries.d" / "default.yaml").write_text("default-docker: {use-sigstore-attachments: true}")
    with Registry(tmp_path) as registry:
        where, there = (f"docker://{registry.host}/{name}:1" for name in ("pushed", "passed-on"))
        store.push("one", where, registry=quick())
        subprocess.run(["skopeo", "--insecure-policy", "--registries.d", tmp_path / "registries.d", "copy",
                        "--src-tls-verify=false", "--dest-tls-verify=false", where, there], check=True, capture_output=True)
        verify = by_command(f"{sys.executable} {EXAMPLES / 'verify.py'} {public}")
        with layerstore.open(tmp_path / "other") as other:
            theirs = other.pull(there, options=PullOptions(registry=quick(), verify=verify))
    assert theirs.signatures[0].blobs[1:] == ours.signatures[0].blobs[1:] != ()


def test_what_has_cosigns_tag_in_a_registry_keeps_it(tmp_path):
    first = None
    with Registry(tmp_path) as registry:
        where = f"docker://{registry.host}/some/where:1"
        for name, salt, expected in (("a", "theirs", 1), ("b", "ours", 0)):
            home = tmp_path / name
            home.mkdir()
            made = image(home, compression=PLAIN)
            there = sign(made.path, made.manifest_digest, salt=salt)
            with layerstore.open(home / "store") as store:
                store.pull(made.reference, names=["one"])
                assert store.push("one", where, registry=quick()).signatures == expected
            first = first or there
        with layerstore.open(tmp_path / "last") as store:
            assert manifests(store.pull(where, options=PullOptions(registry=quick()))) == [first]


def test_a_registry_with_referrers_is_asked_for_them(store, tmp_path):
    made = image(tmp_path)
    there, blobs = referrer(made.manifest_digest)
    signing.put_blobs(made.path, there, *blobs)
    entries = [signing.described(imagemaker.MANIFEST, there, artifactType=signing.BUNDLE),
               signing.described(imagemaker.MANIFEST, b"a bill", artifactType="application/spdx+json")]
    index = imagemaker.encode({"schemaVersion": 2, "mediaType": imagemaker.INDEX, "manifests": entries})
    with Fake(made) as fake:
        fake.hook = lambda request: "/referrers/" in request.path and (
            request.answer(200, index, Content_Type=imagemaker.INDEX) or True)
        assert manifests(store.pull(fake.reference, options=PullOptions(registry=quick()))) == [there]
    assert len(fake.asked("sha256-")) == 1   # cosign's tag


def pages(made, count, link):
    """A registry with a list of referrers of *count* pages, the last of them with a signature; *link* goes from one to the next."""
    there, blobs = referrer(made.manifest_digest)
    signing.put_blobs(made.path, there, *blobs)
    entries = [signing.described(imagemaker.MANIFEST, b"a bill", artifactType="application/spdx+json")] * (count - 1)
    entries.append(signing.described(imagemaker.MANIFEST, there, artifactType=signing.BUNDLE))

    def hook(request):
        if "/referrers/" not in request.path:
            return False
        number = int(request.path.partition("?n=")[2] or 0)
        page = imagemaker.encode({"schemaVersion": 2, "mediaType": imagemaker.INDEX, "manifests": [entries[number]]})
        more = {"Link": link.format(made.manifest_digest, number + 1)} if number + 1 < count else {}
        request.answer(200, page, Content_Type=imagemaker.INDEX, **more)
        return True

    return hook, there


@pytest.mark.parametrize("link", ['<?n={1}>; rel="next"', "</v2/some/image/referrers/{0}?n={1}>;rel=next"])
def test_referrers_are_read_to_the_last_page(store, tmp_path, link):
    made = image(tmp_path)
    with Fake(made) as fake:
        fake.hook, there = pages(made, 3, link)
        assert manifests(store.pull(fake.reference, options=PullOptions(registry=quick()))) == [there]


@pytest.mark.parametrize("link", [
    "<http://127.0.0.2/v2/some/image/referrers/{0}?n={1}>; rel=next", "</v2/other/x?n={1}>; rel=next", "<http://[>; rel=next",
    '</v2/other/x?n={1}>; title="more"; REL = "last next"',
])
def test_a_page_that_is_elsewhere_is_not_asked_for_and_does_not_pass_for_the_last(store, tmp_path, link):
    made = image(tmp_path)
    with Fake(made) as fake:
        fake.hook, _ = pages(made, 3, link)
        with pytest.raises(errors.SourceError, match="go on elsewhere") as caught:
            store.pull(fake.reference, options=PullOptions(registry=quick()))
        assert "--no-signatures" in caught.value.hint
        assert len(fake.asked("/other/")) == 0 and len(fake.asked("/referrers/")) == 1


@pytest.mark.parametrize("link", ["nonsense", "</v2/other/x>; rel=prev", "<x>; rel=nextish", "<x>; rel=prev, <y>; rel=first"])
def test_another_link_than_one_to_the_next_page_leads_nowhere(store, tmp_path, link):
    made = image(tmp_path)
    with Fake(made) as fake:
        fake.hook, _ = pages(made, 2, link)
        assert store.pull(fake.reference, options=PullOptions(registry=quick())).signatures == ()
        assert len(fake.asked("/referrers/")) == 1


@pytest.mark.parametrize("size", [(1 << 20) + 1, 1 << 62])
def test_signatures_that_are_longer_than_the_limit_are_refused_unread(store, tmp_path, size):
    made = image(tmp_path)
    document = json.loads(attached(made.manifest_digest)[0])
    document["layers"][0]["size"] = size
    with Fake(made) as fake:
        fake.beside[f"{made.manifest_digest.replace(':', '-')}.sig"] = imagemaker.encode(document)
        with pytest.raises(errors.LimitExceededError, match="max_signature_bytes"):
            store.pull(fake.reference, options=PullOptions(registry=quick()))
        assert not fake.asked(document["layers"][0]["digest"]) and not fake.asked(document["config"]["digest"])


def test_a_list_of_referrers_without_end_is_refused(store, tmp_path):
    made = image(tmp_path)
    with Fake(made) as fake:
        fake.hook, _ = pages(made, 100, "<?n={1}>; rel=next")
        with pytest.raises(errors.SourceError, match="have more than 32 pages"):
            store.pull(fake.reference, options=PullOptions(registry=quick()))
    assert store.images() == []


@pytest.mark.parametrize("answer", [lambda r: r.answer(404), lambda r: r.answer(405), lambda r: r.answer(
    200, b"<html>", Content_Type="text/html")], ids=["404", "405", "html"])
def test_a_registry_that_does_not_know_the_question_is_asked_by_tags(store, tmp_path, answer):
    made = image(tmp_path)
    there, blobs = referrer(made.manifest_digest)
    signing.put_blobs(made.path, there, *blobs)
    index = imagemaker.encode({"schemaVersion": 2, "mediaType": imagemaker.INDEX, "manifests": [
        signing.described(imagemaker.MANIFEST, there, artifactType=signing.BUNDLE)]})
    with Fake(made) as fake:
        fake.beside[made.manifest_digest.replace(":", "-")] = index
        fake.hook = lambda request: "/referrers/" in request.path and (answer(request) or True)
        assert manifests(store.pull(fake.reference, options=PullOptions(registry=quick()))) == [there]


def test_a_registry_that_fails_when_it_is_asked_for_signatures_fails_the_pull(store, root, tmp_path):
    made = image(tmp_path)
    before = tree(root)
    with Fake(made) as fake:
        fake.hook = lambda request: ".sig" in request.path and (request.answer(500) or True)
        with pytest.raises(errors.RegistryUnavailableError):
            store.pull(fake.reference, options=PullOptions(registry=quick()))
        assert tree(root) == before
        assert store.pull(fake.reference, options=PullOptions(registry=quick(), signatures=False)).created
