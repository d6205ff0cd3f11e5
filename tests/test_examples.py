"""The example programs do what they say, and what a kill leaves of them is cleared up."""

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_overlay import in_namespace

import imagemaker
import layerstore
import signing
from layerstore.cli.commands import run as cli
from storekit import image

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, *arguments, status=0, **options):
    done = subprocess.run([sys.executable, EXAMPLES / name, *map(str, arguments)], capture_output=True, text=True, check=False,
                          **options)
    assert done.returncode == status, (done.stdout, done.stderr)
    return done


# -- the puller --------------------------------------------------------------------------------------------------------


def test_the_puller_pulls_and_says_what_it_had(root, tmp_path):
    one, two = image(tmp_path, name="one"), image(tmp_path, name="two", salt="other")
    first = run("puller.py", root, one.reference, two.reference)
    assert len(re.findall(r"^new ", first.stdout, re.MULTILINE)) == 2
    assert first.stdout.count(" staged (") == 6
    again = run("puller.py", root, one.reference)
    assert (again.stdout.count("\nhad "), again.stdout.count(" present (")) == (1, 3)


def test_the_puller_goes_on_where_it_was_killed(root, tmp_path):
    made = image(tmp_path)
    killed = run("puller.py", root, made.reference, status=-9, env={**os.environ, "LAYERSTORE_FAULT": "txn.claim:after:kill"})
    assert "new" not in killed.stdout
    again = run("puller.py", root, made.reference)
    assert again.stdout.startswith("recovered: ")
    with layerstore.open(root, readonly=True) as store:
        assert [each.id for each in store.images()] == [made.config_digest[7:]]
        assert store.check(content=True).sound


def test_the_puller_lets_go_of_what_lost_its_name(root, tmp_path):
    (tmp_path / "later").mkdir()
    old, new = image(tmp_path), image(tmp_path / "later", salt="other")
    run("puller.py", root, old.reference)
    assert "deleted" not in run("puller.py", root, new.reference, "--keep", 1).stdout   # the name "image:latest" goes to it
    assert f"deleted {old.config_digest[7:19]} and 3 layers" in run("puller.py", root, new.reference).stdout
    with layerstore.open(root, readonly=True) as store:
        assert [each.id for each in store.images()] == [new.config_digest[7:]]


def test_the_puller_says_what_is_wrong_and_what_to_do(root, tmp_path):
    done = run("puller.py", root, f"oci:{tmp_path}/nothing", status=1)
    assert "hint: " in done.stderr


# -- who verifies ------------------------------------------------------------------------------------------------------


def pulled_with(root, key, made, capsys):
    """Whether ``pull --verify`` takes the image; what it says if not."""
    command = f"{sys.executable} {EXAMPLES / 'verify.py'} {key}"
    status = cli(["--root", str(root), "pull", made.reference, "--quiet", "--verify", command])
    capsys.readouterr()
    return status == 0


def test_the_verifier_takes_what_the_key_signed_and_nothing_else(root, tmp_path, capsys):
    private, public = signing.key_pair(tmp_path)
    _, another = signing.key_pair(tmp_path, "another")
    made = image(tmp_path)
    assert not pulled_with(root, public, made, capsys)          # nobody signed it
    signing.sign_with(private, made.path, made.manifest_digest)
    assert not pulled_with(root, another, made, capsys)
    with layerstore.open(root, readonly=True) as store:
        assert store.images() == []
    assert pulled_with(root, public, made, capsys)


def test_the_verifier_does_not_take_a_good_signature_of_another_image(root, tmp_path, capsys):
    private, public = signing.key_pair(tmp_path)
    made = image(tmp_path)
    signing.sign_with(private, made.path, made.manifest_digest, said="sha256:" + "0" * 64)
    assert not pulled_with(root, public, made, capsys)


@pytest.mark.parametrize("lists", [True, False])
def test_the_verifier_takes_a_signature_of_the_index_if_that_lists_the_image(tmp_path, lists, capsys):
    private, public = signing.key_pair(tmp_path)
    manifest = "sha256:" + "1" * 64
    index = imagemaker.encode({"manifests": [{"digest": manifest if lists else "sha256:" + "2" * 64}]})
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "index-0.json").write_bytes(index)
    (layout := tmp_path / "layout" / "blobs" / "sha256").mkdir(parents=True)
    (tmp_path / "layout" / "index.json").write_text('{"manifests": []}')
    signing.sign_with(private, tmp_path / "layout", imagemaker.digest_of(index))
    (entry,) = json.loads((tmp_path / "layout" / "index.json").read_text())["manifests"]
    document = (layout / entry["digest"][7:]).read_bytes()
    (tmp_path / "image" / "manifest.json").write_bytes(document)
    payload = json.loads(document)["layers"][0]["digest"]
    shutil.copy(layout / payload[7:], tmp_path / "image" / "payload")
    (tmp_path / "image" / "image.json").write_text(json.dumps({
        "reference": "r", "manifest_digest": manifest, "indexes": ["index-0.json"], "signatures": [
            {"kind": "attached", "subject": imagemaker.digest_of(index), "manifest": "manifest.json",
             "blobs": ["payload", "payload"]}]}))
    run("verify.py", public, tmp_path / "image", status=0 if lists else 1)


# -- the sandbox -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_system(tmp_path_factory):
    """This machine's sh and cat, and what they are linked with, as a store with one layer."""
    tree = tmp_path_factory.mktemp("system") / "tree"
    for program in ("sh", "cat", "sleep"):
        path = os.path.realpath(shutil.which(program))
        libraries = re.findall(r"(/\S+) \(0x", subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout)
        for source, target in ((path, f"/bin/{program}"), *((each, each) for each in libraries)):
            where = Path(f"{tree}{target}")
            where.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, where)
    (tree / "proc").mkdir()
    root = tree.parent / "store"
    with layerstore.open(root) as store, store.stage(layerstore.DirectoryDiffer(tree)) as staged:
        store.apply_staged_layer(staged, names=["system"])
    return root


@pytest.mark.root
@in_namespace
def test_the_sandbox_runs_a_command_in_the_image_and_discards_what_it_wrote(small_system):
    done = run("sandbox.py", small_system, "system", "/bin/sh", "-c", "echo $$ > /mine; cat /mine; cat /proc/1/comm")
    assert done.stdout == "1\nsh\n"            # the first process of its own namespace
    with layerstore.open(small_system) as store:
        assert store.mounts() == []
        store.extract("system", (out := small_system.parent / "out"))
    assert not (out / "mine").exists()
    assert os.listdir(small_system / "uppers") == []


@pytest.mark.root
@in_namespace
def test_the_sandbox_passes_the_status_on(small_system):
    run("sandbox.py", small_system, "system", "/bin/sh", "-c", "exit 7", status=7)


@pytest.mark.root
@in_namespace
def test_the_sandbox_keeps_what_was_written_as_an_image(small_system):
    kept = run("sandbox.py", "--keep", "kept:1", small_system, "system", "/bin/sh", "-c", "echo so > /mine")
    with layerstore.open(small_system, readonly=True) as store:
        assert store.resolve("kept:1") == ("image", kept.stdout.strip())
    assert run("sandbox.py", small_system, "kept:1", "/bin/cat", "/mine").stdout == "so\n"


@pytest.mark.root
@in_namespace
def test_the_next_sandbox_clears_up_after_one_that_was_killed(small_system):
    child = subprocess.Popen([sys.executable, EXAMPLES / "sandbox.py", small_system, "system", "/bin/sh", "-c",
                              "echo ready; sleep 100000"], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"ready\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert child.stdout.read() == b""       # its end: whoever had it is dead
    run("sandbox.py", small_system, "system", "/bin/sh", "-c", "exit 0", status=0)
    with layerstore.open(small_system) as store:
        assert store.mounts() == []


@pytest.mark.root
@in_namespace
def test_a_sandbox_that_another_one_cleared_up_meanwhile_stops_nobody(small_system, monkeypatch):
    sys.path.insert(0, str(EXAMPLES))
    try:
        sandbox = importlib.import_module("sandbox")
    finally:
        sys.path.pop(0)
    with layerstore.open(small_system) as store:
        sandbox.RUNS.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = sandbox.RUNS / "left"
        target.mkdir()
        store.mount("system", target, writable=True)
        listed = store.mounts()
        store.unmount(target)
        target.rmdir()
        monkeypatch.setattr(store, "mounts", lambda: listed)      # as it was, when this one looked
        sandbox.clear_up(store)
    assert list(sandbox.RUNS.glob("left*")) == []
