"""Pushing to a registry: Debian's docker-registry, and one that misbehaves."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

import layerstore
from layerstore import Credentials, PullOptions, Tally, errors
from layerstore.cli.commands import run
from registries import PASSWORD, USER, Authority, Fake, Registry, quick
from storekit import digest, image

KEEP = PullOptions(keep_blobs=True)


@pytest.fixture
def made(tmp_path, store):
    made = image(tmp_path)
    store.pull(made.reference, names=["one:1"], options=KEEP)
    return made


def test_pull_push_pull_elsewhere_keeps_every_digest(store, made, tmp_path):
    with Registry(tmp_path) as registry:
        where = f"docker://{registry.host}/some/where:1"
        report = store.push("one:1", where, registry=quick())
        assert report.kept and report.manifest_digest == made.manifest_digest
        assert store.push("one:1", where, registry=quick()).blobs == report.blobs   # all is there
        with layerstore.open(tmp_path / "other") as other:
            again = other.pull(where, options=PullOptions(registry=quick()))
        assert (again.id, again.manifest_digest) == (made.config_digest[7:], made.manifest_digest)
        told = subprocess.run(["skopeo", "inspect", "--tls-verify=false", "--raw", where], capture_output=True, check=True)
        assert told.stdout == made.manifest


def test_blobs_that_were_not_kept_are_pushed_anew_and_pulled_again(store, tmp_path):
    made = image(tmp_path, name="lost", salt="l", compression=("gzip",))
    store.pull(made.reference, names=["lost:1"])
    with Registry(tmp_path) as registry:
        report = store.push("lost:1", f"docker://{registry.host}/lost:1", compression="zstd", registry=quick())
        assert report.kept is False
        with layerstore.open(tmp_path / "other") as other:
            again = other.pull(f"docker://{registry.host}/lost:1", options=PullOptions(registry=quick()))
            assert again.manifest_digest == report.manifest_digest and again.config_digest == made.config_digest
            assert tuple(other.layer(each).diff_id for each in again.layers) == made.diff_ids


def test_images_pushed_as_zstd_chunked_are_pulled_elsewhere_in_parts(store, tmp_path):
    fixtures = Path(__file__).parent / "data" / "zstd-chunked"
    with Registry(tmp_path) as registry, layerstore.open(tmp_path / "other") as other:
        options = PullOptions(registry=quick())
        for version in ("v1", "v2"):
            where, tally = f"docker://{registry.host}/family:{version}", Tally()
            here = store.pull(f"oci:{fixtures}/{version}-2022:t", names=[version])   # of which other blobs are made
            report = store.push(version, where, registry=quick())
            assert (report.plain, report.kept) == ((), False)
            there = other.pull(where, options=options, progress=tally)
            assert (there.id, there.layers, there.manifest_digest) == (here.id, here.layers, report.manifest_digest)
        assert tally.total().fetched < 0.12 * tally.total().size
        assert other.check(content=True).sound
        told = subprocess.run(["skopeo", "inspect", "--tls-verify=false", where], capture_output=True, check=True)
        assert json.loads(told.stdout)["Layers"] == list(report.blobs)
        subprocess.run(["skopeo", "copy", "-q", "--insecure-policy", "--src-tls-verify=false", where, f"oci:{tmp_path}/copied:x"],
                       check=True)
    with layerstore.open(tmp_path / "third") as third:
        assert third.pull(f"oci:{tmp_path}/copied:x").manifest_digest == report.manifest_digest


@pytest.fixture
def nothing_in_tmpdir(monkeypatch):
    def refuse(*_arguments, **_named):
        raise AssertionError("a layer would lie in $TMPDIR, which may be memory")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)


@pytest.mark.parametrize("compression", ["as-it-came", "zstd"])
def test_what_is_sent_lies_on_the_stores_disk_meanwhile_and_leaves_nothing_there(root, store, made, nothing_in_tmpdir, compression):
    with Fake() as fake:
        sizes = taking(fake)
        report = store.push("one:1", f"docker://{fake.host}/x:1", compression=compression, registry=quick())
    assert report.kept == (compression == "as-it-came") and set(report.blobs) <= set(sizes)
    assert len(report.blobs) == len(made.layers)
    assert not report.kept or [sizes[layer.digest] for layer in made.layers] == [layer.size for layer in made.layers]
    assert not [*(root / "staging").iterdir()] and store.check(content=True).sound


def test_a_store_whose_disk_cannot_be_written_to_uses_the_usual_place(tmp_path):
    from layerstore.targets.files import scratch

    with scratch(str(tmp_path / "absent")) as file:
        file.write(b"x")
    with scratch(str(tmp_path)) as file:
        file.write(b"x")
        file.seek(0)
        assert file.read() == b"x" and not [*tmp_path.iterdir()]


def test_a_kept_blob_that_has_rotted_is_never_sent_as_a_whole(store, made):
    (here,) = store.images()
    with open(f"{store.root}/layers/{here.layers[0]}/big-data/layer-blob", "r+b") as file:
        file.write(b"!")
    with Fake() as fake:
        sizes = taking(fake)
        with pytest.raises(errors.LayerDamagedError, match="big-data"):
            store.push("one:1", f"docker://{fake.host}/x:1", registry=quick())
    assert made.layers[0].digest not in sizes and not fake.asked("/manifests/")


def taking(fake):
    """Have *fake* take blobs that are what they are said to be; the sizes of those that came whole, by what was said."""
    sizes = {}

    def hook(request):
        length = int(request.headers.get("Content-Length", 0))
        if request.command == "HEAD":
            request.send_response(404)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return True
        if request.command == "POST":
            request.answer(202, Location="/v2/x/blobs/uploads/1")
            return True
        data = request.rfile.read(length)
        if len(data) < length:
            request.close_connection = True
            return True
        if "digest=" in request.path:
            said = request.path.rpartition("digest=")[2].replace("%3A", ":")
            sizes[said] = length
            if said != digest(data):
                request.answer(400)
                return True
        request.answer(201)
        return True

    fake.hook = hook
    return sizes


@pytest.mark.root
def test_podman_pulls_what_was_pushed_as_zstd_chunked(store, made, tmp_path):
    from podmanrun import Podman

    with layerstore.open(tmp_path / "empty") as empty:
        empty.view(tmp_path / "view")
    with Registry(tmp_path) as registry, Podman(tmp_path / "podman", tmp_path / "view") as podman:
        report = store.push("one:1", f"docker://{registry.host}/one:1", compression="zstd:chunked", registry=quick())
        assert report.plain == ()
        podman.script(f"podman pull -q --tls-verify=false {registry.host}/one:1")
        layers = json.loads((podman.home / "graph/overlay-layers/layers.json").read_text())
    assert {(each["compressed-diff-digest"], each["diff-digest"]) for each in layers} == set(
        zip(report.blobs, made.diff_ids, strict=True))


def test_credentials_and_tls_are_those_of_pulling(store, made, tmp_path):
    authority = Authority(tmp_path / "tls")
    with Registry(tmp_path, htpasswd=True, tls=authority) as registry:
        where = f"docker://{registry.host}/one:1"
        options = quick(plain_http=False, ca_file=authority.ca, credentials=Credentials(USER, PASSWORD))
        assert store.push("one:1", where, registry=options).kept
        wrong = quick(plain_http=False, ca_file=authority.ca, credentials=Credentials(USER, "wrong"))
        with pytest.raises(errors.RegistryAccessError):
            store.push("one:1", where, registry=wrong)


def test_a_token_is_asked_for_to_push_with(tmp_path):
    from layerstore.sources.registry import connect
    from layerstore.sources.registry.names import parse_name

    name = parse_name("docker://127.0.0.1:1/one:1")
    scopes = [connect(name, quick(), push=push)._authority._scope for push in (False, True)]
    assert scopes == ["repository:one:pull", "repository:one:pull,push"]


class Writable(Fake):
    """Takes uploads. ``trouble`` is what to answer instead, once each: (command or part of the path, status, headers)."""

    def __init__(self, trouble=()):
        super().__init__()
        self.stored, self.trouble, self.puts = {}, list(trouble), []
        self.hook = self.answer

    def answer(self, request):
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        for each in self.trouble:
            wanted, status, headers = each
            if wanted == request.command or wanted in request.path:
                self.trouble.remove(each)   # before the answer: who gets it looks at once
                request.answer(status, **headers)
                return True
        if request.command == "HEAD":
            request.answer(200 if request.path.rsplit("/", 1)[1] in self.stored else 404)
        elif request.command == "POST":
            request.answer(202, Location="/v2/one/blobs/uploads/1?state=x")
        elif "/manifests/" in request.path:
            self.stored["manifest"] = body
            request.answer(201)
        else:
            self.puts.append(request.path)
            self.stored[request.path.rsplit("digest=", 1)[1].replace("%3A", ":")] = body
            request.answer(201)
        return True


def where(fake):
    return f"docker://{fake.url.partition('//')[2]}/one:1"


def test_what_breaks_is_tried_again_from_its_beginning(store, made):
    with Writable([(command, 503, {}) for command in ("HEAD", "POST", "PUT")]) as fake:
        assert store.push("one:1", where(fake), registry=quick()).kept
        assert set(fake.stored) == {made.config_digest, "manifest", *(layer.digest for layer in made.layers)}
        assert fake.stored["manifest"] == made.manifest


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("there", [True, False])
def test_whether_a_blob_is_there_is_asked_where_the_question_is_led_to(store, made, status, there):
    with Fake(made if there else None) as elsewhere, Writable() as fake:
        fake.trouble = [("HEAD", status, {"Location": f"{elsewhere.url}/v2/x/blobs/{each}?signed=1"})
                        for each in (made.config_digest, *(layer.digest for layer in made.layers))]
        assert store.push("one:1", where(fake), registry=quick(credentials=Credentials("user", "secret"))).kept
        assert len(fake.puts) == (0 if there else 1 + len(made.layers))
        assert {method for method, _path, _headers in elsewhere.requests} == {"HEAD"}
        assert not any("authorization" in headers for _method, _path, headers in elsewhere.requests)


def test_a_blob_that_is_led_to_nobody_is_sent(store, made):
    with Writable([("HEAD", 307, {"Location": "http://127.0.0.1:1/x"})]) as fake:
        assert store.push("one:1", where(fake), registry=quick()).kept
        assert len(fake.puts) == 1 + len(made.layers)


@pytest.mark.parametrize("query", ["state=a%2Fb%20c&flag=&_=~", ""])
def test_the_place_of_an_upload_is_used_as_it_was_named(store, made, query):
    with Writable([("POST", 202, {"Location": f"/v2/one/blobs/uploads/1?{query}"})]) as fake:
        assert store.push("one:1", where(fake), registry=quick()).kept
        path, _mark, said = fake.puts[0].partition("?")
        assert path == "/v2/one/blobs/uploads/1"
        assert said.replace("%3A", ":") == (query and query + "&") + f"digest={made.config_digest}"


def test_a_registry_that_goes_on_failing_is_given_up(store, made):
    with Writable([("PUT", 503, {})] * 9) as fake:
        with pytest.raises(errors.RegistryUnavailableError, match="PUT .*503"):
            store.push("one:1", where(fake), registry=quick())
        assert "manifest" not in fake.stored


def test_an_upload_is_not_led_from_https_or_to_nowhere(store, made):
    for location in ("", "ftp://example.test/x", "http://user:pass@127.0.0.1/x"):
        with Writable([("POST", 202, {"Location": location})]) as fake:
            with pytest.raises(errors.RegistryError, match="no usable place"):
                store.push("one:1", where(fake), registry=quick())


def test_a_registry_that_takes_the_manifest_for_another_is_found_out(store, made):
    other = {"Docker-Content-Digest": "sha256:" + "0" * 64}
    with Writable([("/manifests/", 201, other)]) as fake:
        with pytest.raises(errors.RegistryError, match="for another"):
            store.push("one:1", where(fake), registry=quick())


def test_a_refusal_is_not_tried_again_and_says_what_was_done(store, made):
    with Writable([("POST", 403, {})] * 2) as fake:
        with pytest.raises(errors.RegistryAccessError, match="POST .*403"):
            store.push("one:1", where(fake), registry=quick())
        assert len(fake.trouble) == 1


def test_a_push_to_a_digest_is_refused(store, made):
    with pytest.raises(errors.InvalidArgumentError, match="names a digest"):
        store.push("one:1", "docker://example.test/one@sha256:" + "0" * 64)


def test_the_command_takes_the_options_of_pull(root, store, made, tmp_path, capsys):
    store.close()
    with Registry(tmp_path) as registry:
        assert run(["--root", str(root), "push", "one:1", f"docker://{registry.host}/one:2", "--plain-http", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["manifest_digest"] == made.manifest_digest
