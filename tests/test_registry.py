"""Pulling from registries: the real one as its users run it, documents and layers by the rules that hold everywhere."""

import json
import subprocess
import threading
import time

import imagemaker
import pytest

import layerstore
from layerstore import Credentials, PullOptions, RegistryOptions, errors
from layerstore.cli import main
from layerstore.sources import open_source
from layerstore.sources.registry import connect
from layerstore.sources.registry.names import parse_name
from registries import PASSWORD, PROGRAM, USER, Authority, Fake, Registry, push, quick
from storekit import image


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("registries")


needs_the_real_one = pytest.mark.skipif(PROGRAM is None, reason="docker-registry is not installed")


@pytest.fixture(scope="module")
def registry(directory):
    if PROGRAM is None:
        pytest.skip("docker-registry is not installed")
    with Registry(directory) as running:
        yield running


@pytest.fixture(scope="module")
def made(directory):
    return image(directory)


@pytest.fixture(scope="module")
def authority(directory):
    return Authority(directory / "authority")


def options(**changes):
    return PullOptions(registry=quick(**changes))


# -- the real one ---------------------------------------------------------------------------------------------------

def test_an_image_pushed_by_hand_is_pulled_and_has_the_name_it_was_asked_for_by(registry, made, store):
    push(registry, "some/thing", "t", made)
    pulled = store.pull(f"docker://{registry.host}/some/thing:t", options=options())
    assert pulled.id == made.config_digest[7:]
    assert pulled.names == (f"{registry.host}/some/thing:t",)
    assert [layer.diff_id for layer in store.chain(pulled.layers[-1])] == list(made.diff_ids)
    assert store.image_documents(pulled.id) == (made.manifest, made.config)
    assert store.check(content=True).sound


def test_an_image_that_skopeo_pushed_is_pulled_without_a_tag_as_latest(registry, made, store):
    there = f"docker://{registry.host}/by/skopeo"
    subprocess.run(["skopeo", "copy", "-q", "--dest-tls-verify=false", made.reference, there], check=True)
    assert store.pull(there, options=options()).names == (f"{registry.host}/by/skopeo:latest",)


def test_a_second_pull_fetches_the_documents_and_no_layer(registry, made, store):
    push(registry, "some/thing", "again", made)
    first = store.pull(f"docker://{registry.host}/some/thing:again", options=options())
    with open_source(f"docker://{registry.host}/some/thing:again", registry=quick()) as source:
        source.resolve()
        documents = source.fetched
    assert documents == len(made.manifest) + len(made.config)
    again = store.pull(f"docker://{registry.host}/some/thing:again", options=options())
    assert first.created and not again.created


def test_a_digest_names_an_image_and_is_kept_in_its_name(registry, made, store):
    push(registry, "some/thing", "t", made)
    pulled = store.pull(f"docker://{registry.host}/some/thing@{made.manifest_digest}", options=options())
    assert pulled.names == (f"{registry.host}/some/thing@{made.manifest_digest}",)
    assert pulled.manifest_digest == made.manifest_digest


def test_of_an_index_the_image_for_the_platform_is_pulled(registry, tmp_path, store):
    entries, ids = [], {}
    for architecture in ("amd64", "arm64"):
        one = imagemaker.Image([imagemaker.Layer({"for": architecture.encode()})],
                               config={"architecture": architecture}).write_oci(tmp_path / architecture, tag="t")
        push(registry, "many/platforms", f"only-{architecture}", one)
        ids[architecture] = one.config_digest[7:]
        entries.append({"mediaType": imagemaker.MANIFEST, "digest": one.manifest_digest, "size": len(one.manifest),
                        "platform": {"os": "linux", "architecture": architecture}})
    index = {"schemaVersion": 2, "mediaType": imagemaker.INDEX, "manifests": entries}
    push(registry, "many/platforms", "all", one, index=index)
    for architecture, expected in ids.items():
        pulled = store.pull(f"docker://{registry.host}/many/platforms:all", names=[],
                            options=PullOptions(platform=f"linux/{architecture}", registry=quick()))
        assert pulled.id == expected
    with pytest.raises(errors.NoMatchingPlatformError):
        store.pull(f"docker://{registry.host}/many/platforms:all",
                   options=PullOptions(platform="linux/s390x", registry=quick()))


def test_ranges_are_had_many_at_once_and_nothing_else_is_fetched(registry, tmp_path):
    large = imagemaker.Image([imagemaker.Layer({"f": imagemaker.Filler(3 << 20)}, compression="none")])
    made = large.write_oci(tmp_path / "large", tag="t")
    push(registry, "large", "t", made)
    data = made.layer_path(0).read_bytes()
    wanted = [(n * 5000, 40) for n in range(300)] + [(1_600_000, 1_300_000)]
    with open_source(f"docker://{registry.host}/large:t", registry=quick()) as source:
        blob = source.resolve().layers[0].blob
        before = source.fetched
        pieces = list(blob.ranges(wanted))
        assert max(len(piece) for _at, piece in pieces) <= 1 << 20
        assert b"".join(piece for _at, piece in pieces) == b"".join(data[a : a + n] for a, n in wanted)
        assert all(data[at : at + len(piece)] == piece for at, piece in pieces)
        assert source.fetched - before < 1_300_000 + 300 * 250
        assert blob._client.together


def test_a_stream_begins_at_any_byte(registry, made):
    push(registry, "some/thing", "t", made)
    with open_source(f"docker://{registry.host}/some/thing:t", registry=quick()) as source:
        blob = source.resolve().layers[0].blob
        data = made.layer_path(0).read_bytes()
        for offset in (0, 1, blob.size - 1, blob.size):
            with blob.open(offset) as stream:
                assert stream.read() == data[offset:]
        assert blob.remote and blob.size == len(data)


@needs_the_real_one
def test_over_tls_with_a_custom_authority_and_basic_authentication(directory, made, authority, store, tmp_path):
    (tmp_path / "r").mkdir()
    with Registry(tmp_path / "r", htpasswd=True, tls=authority) as registry:
        push(registry, "some/thing", "t", made)
        there = f"docker://{registry.host}/some/thing:t"
        with pytest.raises(errors.RegistryError, match="certificate") as caught:
            store.pull(there, options=options(plain_http=False))
        assert "--tls-ca" in caught.value.hint
        trusting = {"plain_http": False, "ca_file": authority.ca}
        with pytest.raises(errors.RegistryAccessError) as caught:
            store.pull(there, options=options(**trusting))
        assert caught.value.status == 401
        with pytest.raises(errors.RegistryAccessError):
            store.pull(there, options=options(**trusting, credentials=Credentials(USER, "wrong")))
        assert not store.images() and not store.layers()
        pulled = store.pull(there, options=options(**trusting, credentials=Credentials(USER, PASSWORD)))
        assert pulled.id == made.config_digest[7:]


@needs_the_real_one
def test_the_command_line_pulls_with_its_own_options(made, authority, root, tmp_path, capsys, monkeypatch):
    (tmp_path / "r").mkdir()
    with Registry(tmp_path / "r", htpasswd=True, tls=authority) as registry:
        push(registry, "some/thing", "t", made)
        command = ["--root", str(root), "pull", "--tls-ca", authority.ca, f"docker://{registry.host}/some/thing:t"]
        assert main([*command, "--creds", f"{USER}:{PASSWORD}"]) == 0
        assert made.config_digest[7:] in capsys.readouterr().out
        subprocess.run(["skopeo", "login", "--authfile", str(tmp_path / "auth.json"), "--tls-verify=false", "-u", USER,
                        "-p", PASSWORD, registry.host], check=True, capture_output=True)
        assert main([*command, "--authfile", str(tmp_path / "auth.json"), "--name", "other"]) == 0
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "none.json"))
        assert main([*command, "--name", "third"]) == 1
        assert "none.json" in capsys.readouterr().err


# -- documents ------------------------------------------------------------------------------------------------------

def test_a_manifest_of_another_digest_than_pinned_is_refused(made, store):
    with Fake(made) as fake:
        fake.hook = lambda r: "/manifests/" in r.path and not r.answer(200, made.manifest + b" ", Content_Type=imagemaker.MANIFEST)
        with pytest.raises(errors.DigestMismatchError):
            store.pull(f"{fake.reference}@{made.manifest_digest}", options=options())
        assert len(fake.requests) == 1   # nothing that it says is believed


def test_a_config_of_another_digest_is_refused(made, store):
    with Fake(made) as fake:
        fake.hook = lambda r: made.config_digest in r.path and not r.answer(200, made.config.replace(b"l", b"L"))
        with pytest.raises(errors.DigestMismatchError):
            store.pull(fake.reference, options=options())


@pytest.mark.parametrize("said", [True, False])
def test_a_manifest_without_end_is_not_read_beyond_the_limit(made, said):
    def endless(request):
        request.answer(200, say_length=False, Content_Type=imagemaker.MANIFEST, Connection="close",
                       **({"Content_Length": str(1 << 40)} if said else {}))
        while True:
            request.wfile.write(bytes(64 << 10))

    limits = layerstore.Limits(max_manifest_json=100_000)
    with Fake(made) as fake:
        fake.hook = endless
        with open_source(fake.reference, registry=quick(), limits=limits) as source:
            with pytest.raises(errors.LimitExceededError):
                source.resolve()
            assert source.fetched <= 100_001


def test_a_generic_content_type_leaves_it_to_the_document_to_say_what_it_is(made, store):
    with Fake(made) as fake:
        fake.hook = lambda r: r.path.endswith("/manifests/latest") and not r.answer(
            200, made.manifest, Content_Type="text/plain")
        assert store.pull(fake.reference, options=options()).manifest_media_type == imagemaker.MANIFEST


@pytest.mark.parametrize("kind", ["text/html", "application/vnd.docker.distribution.manifest.v1+prettyjws"])
def test_a_document_of_another_type_is_refused(made, store, kind):
    with Fake(made) as fake:
        fake.hook = lambda r: "/manifests/" in r.path and not r.answer(200, made.manifest, Content_Type=kind)
        with pytest.raises(errors.UnsupportedMediaTypeError):
            store.pull(fake.reference, options=options())


def test_both_kinds_of_manifests_and_indexes_are_asked_for(made):
    with Fake(made) as fake, open_source(fake.reference, registry=quick()) as source:
        source.resolve()
        accept = fake.requests[0][2]["accept"]
    for kind in (imagemaker.MANIFEST, imagemaker.INDEX, imagemaker.DOCKER_MANIFEST, imagemaker.DOCKER_LIST):
        assert kind in accept


def test_one_connection_serves_a_whole_pull_by_one_worker(made, store):
    with Fake(made) as fake:
        store.pull(fake.reference, options=PullOptions(workers=1, registry=quick()))
        assert fake.connections == 1
        beside = 3   # cosign's tag, referrers, and the tag that lists them: there are none
        assert len(fake.requests) == 2 + beside + len(made.layers)


# -- references -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("rest", [
    "image", "debian", "library/image", "host.test", "host.test/", "host.test/UPPER", "host.test/a:", "host.test/a:t@" + "sha256:" + "0" * 64,
    "host.test/a@sha256:00", "host.test/a@sha512:" + "0" * 128, "host.test/../a", "host.test/a//b", "host.test:x/a",
    "host.test/a?b", "host.test/a:t g", "-host.test/a", "", "host.test:99999/a", "host.test:0/a", "[::::]/a", "[1.2]:5000/a",
])
def test_what_is_no_reference_to_a_registry_is_refused(rest):
    with pytest.raises(errors.InvalidArgumentError):
        open_source(f"docker://{rest}")


def test_a_password_in_a_reference_is_refused_and_not_repeated():
    with pytest.raises(errors.InvalidArgumentError) as caught:
        open_source("docker://me:hunter2@host.test/a")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("digest", ["sha256:" + "0" * 64, "sha512:" + "0" * 128, "nonsense", ""])
def test_the_digest_that_a_registry_says_is_not_believed(made, digest):
    """It may be by another algorithm, and registries are seen to get it wrong; what came is what a tag means."""
    with Fake(made) as fake:
        fake.hook = lambda request: "/manifests/" in request.path and not request.answer(
            200, made.manifest, Content_Type=json.loads(made.manifest)["mediaType"], Docker_Content_Digest=digest)
        with open_source(fake.reference, registry=quick()) as source:
            assert source.resolve().manifest_digest == made.manifest_digest


def test_a_tag_is_asked_for_once_so_that_it_cannot_mean_two_things(made):
    with Fake(made) as fake, open_source(fake.reference, registry=quick()) as source:
        source.resolve()
        assert [method for method, path, _headers in fake.requests if "/manifests/" in path] == ["GET"]


@pytest.mark.parametrize(("rest", "name"), [
    ("host.test/a", "host.test/a:latest"), ("localhost/a/b_c", "localhost/a/b_c:latest"), ("h:5000/a:T_1", "h:5000/a:T_1"),
    ("[::1]:5000/a", "[::1]:5000/a:latest"), ("Host.test/a@sha256:" + "0" * 64, "Host.test/a@sha256:" + "0" * 64),
])
def test_references_are_parsed_as_in_the_field(rest, name):
    assert str(parse_name(f"docker://{rest}")) == name


@pytest.mark.parametrize(("rest", "name", "server"), [
    ("docker.io/debian:12", "docker.io/library/debian:12", "registry-1.docker.io"), ("docker.io/a/b", "docker.io/a/b:latest", "registry-1.docker.io"),
    ("index.docker.io/debian", "docker.io/library/debian:latest", "registry-1.docker.io"), ("docker.io:443/a", "docker.io:443/a:latest", "docker.io:443"),
    ("index.docker.io/a/b:1", "docker.io/a/b:1", "registry-1.docker.io"), ("registry-1.docker.io/a", "registry-1.docker.io/a:latest", "registry-1.docker.io"),
    ("index.docker.io:443/a", "index.docker.io:443/a:latest", "index.docker.io:443"), ("host.test/debian", "host.test/debian:latest", "host.test"),
])
def test_the_registry_with_an_alias_is_asked_where_it_answers_and_the_image_is_called_as_in_the_field(rest, name, server):
    client = connect(parse_name(f"docker://{rest}"), RegistryOptions())
    assert (str(client.name), client.home) == (name, f"https://{server}/v2/")


def test_without_urllib3_the_error_says_what_to_install(tmp_path):
    program = (
        "import sys; sys.modules['urllib3'] = None\n"
        "from layerstore import errors\n"
        "from layerstore.sources import open_source\n"
        "try: open_source('docker://host.test/a')\n"
        "except errors.SourceError as error: print(error.hint)\n"
    )
    import sys

    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "pip install 'layerstore[registry]'"


def test_urllib3_is_not_imported_before_a_registry_is_asked():
    import sys

    program = ("import sys, layerstore.verbs.pull, layerstore.sources.registry, layerstore.store, layerstore.cli.commands\n"
               "print('urllib3' in sys.modules, 'ssl' in sys.modules)")
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "False"]


def test_a_closed_source_asks_for_nothing_more(made):
    with Fake(made) as fake:
        with open_source(fake.reference, registry=quick()) as source:
            blob = source.resolve().layers[0].blob
        with pytest.raises(errors.ClosedError):
            blob.open().read()


# -- how many at once --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("connections", [1, 3])
def test_no_more_layers_are_read_at_once_than_connections_are_allowed(tmp_path, store, connections):
    """The first ones are held up, so that all others would have come by then."""
    layers = [imagemaker.Layer({f"f{n}": imagemaker.Filler(200_000 + n)}, compression="none") for n in range(12)]
    made = imagemaker.Image(layers).write_oci(tmp_path / "many", tag="t")
    names = {made.layer_path(n).name for n in range(12)}
    lock, full, now, most = threading.Lock(), threading.Event(), [0], [0]

    def hook(request):
        if request.path.rpartition(":")[2] not in names:
            return False
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
            if now[0] >= connections:
                full.set()
        full.wait(30)
        if most[0] == connections and len(fake.requests) < connections + 4:
            time.sleep(0.3)
        with lock:
            now[0] -= 1
        request.properly()
        return True

    with Fake(made) as fake:
        fake.hook = hook
        options = PullOptions(workers=16, registry=quick(connections=connections))
        pulled = store.pull(fake.reference, options=options)
        assert most[0] == connections
        assert fake.connections <= connections + 1
    assert len(pulled.layers) == 12
