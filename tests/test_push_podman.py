"""podman takes every form of image that we send, in every compression, under the ID and with the layers that it had."""

import json

import pytest

import layerstore
from podmanrun import Podman
from storekit import image

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

COMPRESSIONS = ["as-it-came", "none", "gzip", "zstd", "zstd:chunked"]
NAMES = {   # what an archive is told to call its image, and what podman then calls it
    None: [], "foo": ["localhost/foo:latest"], "a/foo:1": ["localhost/a/foo:1"], "example.test/foo:2": ["example.test/foo:2"],
    "example.test:5000/foo": ["example.test:5000/foo:latest"],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("sent")


@pytest.fixture(scope="module")
def made(home):
    """Images with a layer of each compression, no layer in two of them: podman would not look at one that it has."""
    found = [image(home, name=f"image{n}", salt=f"{n} ") for n in range(5)]
    with layerstore.open(home / "store") as store:
        for n, each in enumerate(found):
            store.pull(each.reference, names=[f"image{n}:1"])
    return found


@pytest.fixture(scope="module")
def podman(home):
    with layerstore.open(home / "empty") as store:
        store.view(home / "view")
    with Podman(home / "podman", home / "view") as podman:
        yield podman


def taken(podman, commands):
    """What podman has when it has taken images: diffIDs and names, by the digest of the config. Then they are removed."""
    told = podman.script("\n".join(f"{each} >&2" for each in commands) + "\npodman image inspect $(podman images -q)\n"
                         "podman rmi -af >&2")
    return {f"sha256:{each['Id']}": (tuple(each["RootFS"]["Layers"]), each["RepoTags"]) for each in json.loads(told)}


@pytest.mark.parametrize(("target", "command"), [
    ("oci:{}/out{}:tag", "podman pull -q oci:{}/out{}:tag"), ("oci-archive:{}/out{}.tar:tag", "podman load -q -i {}/out{}.tar"),
], ids=["oci", "oci-archive"])
def test_podman_takes_a_layout_in_every_compression(made, podman, home, target, command):
    with layerstore.open(home / "store") as store:
        for n, compression in enumerate(COMPRESSIONS):
            store.push(f"image{n}:1", target.format(home, n), compression=compression)
    found = taken(podman, [command.format(home, n) for n in range(5)])
    assert {digest: layers for digest, (layers, _) in found.items()} == {each.config_digest: each.diff_ids for each in made}


def test_podman_loads_a_docker_archive_and_calls_the_image_as_it_was_told(made, podman, home):
    """A name without a tag would make it refuse the whole archive."""
    with layerstore.open(home / "store") as store:
        for n, name in enumerate(NAMES):
            store.push(f"image{n}:1", f"docker-archive:{home}/docker{n}.tar" + (f":{name}" if name is not None else ""))
    found = taken(podman, [f"podman load -q -i {home}/docker{n}.tar" for n in range(5)])
    assert found == {each.config_digest: (each.diff_ids, called) for each, called in zip(made, NAMES.values(), strict=True)}
