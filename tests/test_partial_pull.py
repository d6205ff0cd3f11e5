"""Images with tables of contents, pulled from a real registry: of the second only what differs, and the same trees as ever."""

import hashlib
import json
import socket
import subprocess
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import tocs
from disks import on_disk
from registries import Registry, quick
from storekit import observed
from treediff import snapshot

import layerstore
from layerstore import PullOptions, Tally
from layerstore.cli import main

FIXTURES = Path(__file__).parent / "data" / "zstd-chunked"
FORMS = ("current", "2022")
AROUND = 8_000                           # bytes of manifest, config, and what is said around them and the ranges
SHARING = {"ext4": False, "xfs": True, "btrfs": True}


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    with Registry(tmp_path_factory.mktemp("partial")) as running:
        for version in ("v1", "v2"):
            for form in FORMS:
                subprocess.run(
                    ["skopeo", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false",
                     f"oci:{FIXTURES}/{version}-{form}:t", f"docker://{running.host}/family:{version}-{form}"], check=True,
                )
        yield running


def reference(registry, version, form):
    return f"docker://{registry.host}/family:{version}-{form}"


def pull(store, registry, version, form, *, partial=True):
    """Pull it; its only layer, and the figures of the transfer."""
    tally = Tally()
    options = PullOptions(registry=quick(), partial=partial)
    image = store.pull(reference(registry, version, form), options=options, progress=tally)
    return image.layers[0], tally.total()


def layer_of(version, form):
    """The descriptor and the bytes of a fixture's only layer."""
    blobs = FIXTURES / f"{version}-{form}" / "blobs" / "sha256"
    index = json.loads((blobs.parent.parent / "index.json").read_text())
    manifest = json.loads((blobs / index["manifests"][0]["digest"].removeprefix("sha256:")).read_text())
    (layer,) = manifest["layers"]
    return layer, (blobs / layer["digest"].removeprefix("sha256:")).read_bytes()


def least_of(version, form, *, here=(), count=tocs.least):
    """Bytes that must be fetched of a fixture, by who has the fixtures *here*: read by nothing of ours."""
    there = set()
    for each in here:
        layer, blob = layer_of(each, form)
        there |= tocs.digests(layer["annotations"], blob)
    layer, blob = layer_of(version, form)
    return count(layer["annotations"], blob, there)


@contextmanager
def wire(monkeypatch):
    """Counts what goes over this process's sockets while it lasts: ``bytes`` (of requests, headers, parts, all) in one list."""
    passed = [0]
    receive, send = socket.socket.recv_into, socket.socket.sendall

    def receiving(self, *args):
        count = receive(self, *args)
        passed[0] += count
        return count

    def sending(self, data, *args):
        passed[0] += len(data)
        return send(self, data, *args)

    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "recv_into", receiving)
        patch.setattr(socket.socket, "sendall", sending)
        yield passed


def family(directory, registry, form):
    """v1 and v2 pulled in parts, and v2 as a whole into another store; what there is to compare."""
    with layerstore.open(f"{directory}/parts") as store, layerstore.open(f"{directory}/whole") as other:
        pull(store, registry, "v1", form)
        with observed([]) as passed:
            layer, told = pull(store, registry, "v2", form)
        same, _ = pull(other, registry, "v2", "current", partial=False)   # the older form's maker lost the tar's end
        trees = [snapshot(f"{directory}/{name}/layers/{layer}/diff") for name in ("parts", "whole")]
        return {
            "same layer": layer == same, "same trees": trees[0] == trees[1], "shared": "dedup.clone" in passed,
            "sound": store.check(content=True).sound, "in parts": told.fetched < 0.8 * told.size,
        }


@pytest.mark.root
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["ext4", "xfs", "btrfs"])
def test_a_second_image_is_pulled_in_parts_and_is_the_same_tree_as_pulled_whole(registry, name, form):
    assert on_disk(name, lambda directory: family(directory, registry, form)) == {
        "same layer": True, "same trees": True, "shared": SHARING[name], "sound": True, "in parts": True,
    }


@pytest.mark.parametrize("form", FORMS)
def test_of_the_second_image_hardly_more_is_fetched_than_what_is_not_there(store, registry, monkeypatch, form):
    pull(store, registry, "v1", form)
    with wire(monkeypatch) as passed:
        _, told = pull(store, registry, "v2", form)
    least = least_of("v2", form, here=["v1"])
    assert least <= told.fetched <= 1.05 * least
    on_the_wire = least_of("v2", form, here=["v1"], count=tocs.least_in_ranges)
    assert told.fetched < passed[0] <= 1.05 * on_the_wire + AROUND


def test_a_repair_fetches_of_a_chunked_layer_only_the_ranges_that_no_layer_has(store, registry):
    layer, told = pull(store, registry, "v1", "current")
    diff = Path(store.root) / "layers" / layer / "diff"
    before = snapshot(str(diff))
    digests = Counter(hashlib.sha256(p.read_bytes()).digest() for p in diff.rglob("*") if p.is_file() and not p.is_symlink())
    alone = [p for p in sorted(diff.rglob("*")) if p.is_file() and not p.is_symlink() and p.stat().st_nlink == 1
             and 100 < p.stat().st_size < 20_000 and digests[hashlib.sha256(p.read_bytes()).digest()] == 1]
    alone[0].write_bytes(b"rot")
    assert store.repair(source=reference(registry, "v1", "current"), options=PullOptions(registry=quick())).mended == (layer,)
    idle = store.repair(source=reference(registry, "v1", "current"), options=PullOptions(registry=quick()))
    assert snapshot(str(diff)) == before
    alone[0].write_bytes(b"rot")
    report = store.repair(source=reference(registry, "v1", "current"), options=PullOptions(registry=quick()))
    beside = least_of("v1", "current", here=["v1"])
    assert report.fetched - idle.fetched < beside + 40_000 < told.fetched


def test_a_first_image_claims_to_have_found_nothing_here(store, registry):
    _, told = pull(store, registry, "v1", "current")
    assert told.spared == 0


def test_whole_layers_are_fetched_when_that_is_asked_for(store, registry):
    pull(store, registry, "v1", "current")
    _, told = pull(store, registry, "v2", "current", partial=False)
    assert (told.fetched, told.spared) == (told.size, 0)


def test_the_command_line_says_what_was_fetched_and_what_was_here(root, registry, capsys):
    for version in ("v1", "v2"):
        assert main(["--root", str(root), "pull", "--plain-http", "--json", reference(registry, version, "current")]) == 0
    told = json.loads(capsys.readouterr().out.split("\n}\n")[1] + "\n}")["transfer"]
    assert told["fetched"] + told["found_locally"] <= told["size"]
    assert told["found_locally"] > 0.3 * told["size"]
