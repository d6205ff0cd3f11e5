"""An OCI layout that others write to as well, or that holds what is not what its name says: nobody spoils another's push."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading

import pytest

import layerstore
from layerstore import errors
from layerstore.targets.parts import Part
from storekit import image, killed_at

PUSH = "import sys, layerstore; layerstore.open(sys.argv[1]).push('one:1', sys.argv[2], compression='gzip')"
NAME = "org.opencontainers.image.ref.name"


@pytest.fixture
def pulled(store, tmp_path):
    made = image(tmp_path)
    store.pull(made.reference, names=["one:1"])
    return made


def listed(layout):
    """(tag, digest) of each image that the index lists; all that it leads to is there, and is what its name says."""
    found = []
    for each in json.loads((layout / "index.json").read_text())["manifests"]:
        manifest = json.loads((layout / "blobs/sha256" / each["digest"][7:]).read_bytes())
        found.append((each.get("annotations", {}).get(NAME), each["digest"]))
        assert all((layout / "blobs/sha256" / one["digest"][7:]).exists() for one in [manifest["config"], *manifest["layers"]])
    assert wrong(layout) == []
    return sorted(found, key=str)


def wrong(layout):
    """The blobs that are not what their names say."""
    return [each.name for each in (layout / "blobs/sha256").iterdir() if hashlib.sha256(each.read_bytes()).hexdigest() != each.name]


def elsewhere(tmp_path, reference):
    with layerstore.open(tmp_path / "elsewhere") as other:
        again = other.pull(reference)
        return tuple(other.layer(each).diff_id for each in again.layers)


# -- several at once ---------------------------------------------------------------------------------------------------

POINTS = ["push.layout.sync", "push.document.sync", "push.blob.sync", "push.blob.rename", "push.index.sync"]


@pytest.mark.parametrize("point", ["push.document.sync", "push.blob.sync"])
def test_a_process_that_pushes_the_same_image_meanwhile_spoils_nothing(root, store, pulled, tmp_path, point):
    env = {**os.environ, "LAYERSTORE_FAULT": f"{point}:before:stop"}
    out = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", PUSH, root, f"oci:{out}:theirs"], env=env) as other:
        _pid, status = os.waitpid(other.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        store.push("one:1", f"oci:{out}:ours", compression="gzip")
        other.send_signal(signal.SIGCONT)
        assert other.wait() == 0
    assert [tag for tag, _ in listed(out)] == ["ours", "theirs"]


@pytest.mark.parametrize("point", ["push.layout.sync", "push.document.sync", "push.blob.rename"])
def test_a_thread_that_pushes_the_same_image_meanwhile_spoils_nothing(store, pulled, tmp_path, armed, point):
    out, failed = tmp_path / "out", []
    there, on = threading.Event(), threading.Event()

    def hook(name, when):
        if (name, when) == (point, "before") and threading.current_thread() is thread and not there.is_set():
            there.set()
            on.wait()

    def push():
        try:
            store.push("one:1", f"oci:{out}:theirs", compression="gzip")
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=push)
    armed(hook)
    thread.start()
    there.wait()
    try:
        store.push("one:1", f"oci:{out}:ours", compression="gzip")
    finally:
        on.set()
        thread.join()
    assert not failed
    assert [tag for tag, _ in listed(out)] == ["ours", "theirs"]


@pytest.mark.parametrize("target", ["oci-archive:{}:x", "docker-archive:{}"])
def test_two_that_write_one_archive_leave_one_of_both_whole(store, pulled, tmp_path, armed, target):
    out, told = tmp_path / "out.tar", []

    def hook(name, when):
        if (name, when) == ("push.archive.sync", "before") and not told:
            told.append(name)
            store.push("one:1", target.format(out), compression="none")

    armed(hook)
    store.push("one:1", target.format(out), compression="none")
    assert told
    with layerstore.open(tmp_path / "elsewhere") as other:
        assert other.pull(f"{target.split(':')[0]}:{out}", names=["x"]).config_digest == pulled.config_digest
    assert [each for each in os.listdir(tmp_path) if each.startswith("out")] == ["out.tar"]


def test_what_a_kill_left_is_cleared_by_the_next_push_and_what_is_being_written_is_not(root, store, pulled, tmp_path):
    store.close()
    out = tmp_path / "out"

    def push():
        with layerstore.open(root) as opened:
            opened.push("one:1", f"oci:{out}:x", compression="gzip")

    for point in POINTS:
        killed_at(point, "before", push)
    killed_at("push.archive.sync", "before", lambda: layerstore.open(root).push("one:1", f"oci-archive:{tmp_path}/a.tar:x"))
    parts = [each for each in out.rglob("*.part")]
    assert parts and [name for name in os.listdir(tmp_path) if name.startswith("a.tar.")]
    with layerstore.open(root) as opened, Part(str(out / "blobs/sha256/.layer"), point="test") as part:
        opened.push("one:1", f"oci:{out}:x", compression="gzip")
        assert [os.stat(each).st_ino for each in out.rglob("*.part")] == [os.fstat(part.file.fileno()).st_ino]
        opened.push("one:1", f"oci-archive:{tmp_path}/a.tar:x")
    assert not [*out.rglob("*.part")] and [each for each in os.listdir(tmp_path) if each.startswith("a.tar")] == ["a.tar"]
    assert [tag for tag, _ in listed(out)] == ["x"]


def test_files_of_others_that_look_nearly_so_stay(store, pulled, tmp_path):
    others = ["out.tar.part", "out.tar.1.part", "other.tar.0123456789abcdef.part", "out.tar.0123456789abcdef.part.gz"]
    for each in others:
        (tmp_path / each).touch()
    store.push("one:1", f"oci-archive:{tmp_path}/out.tar:x")
    assert all((tmp_path / each).exists() for each in others)


# -- names -------------------------------------------------------------------------------------------------------------


def test_a_push_without_a_tag_takes_no_tag_from_the_same_image(store, pulled, tmp_path):
    out = tmp_path / "out"
    for tag in (":a", ":b", ""):
        digest = store.push("one:1", f"oci:{out}{tag}").manifest_digest
    assert listed(out) == [("a", digest), ("b", digest)]
    assert elsewhere(tmp_path, f"oci:{out}:a") == pulled.diff_ids


def test_an_image_without_a_tag_is_listed_once_and_a_tag_is_given_to_that_entry(store, pulled, tmp_path):
    out = tmp_path / "out"
    digests = {store.push("one:1", f"oci:{out}").manifest_digest for _ in range(2)}
    index = json.loads((out / "index.json").read_text())
    index["manifests"][0] |= {"platform": {"os": "linux", "architecture": "amd64"}, "annotations": {"mine": "kept"}}
    (out / "index.json").write_text(json.dumps(index))
    store.push("one:1", f"oci:{out}:a")
    (entry,) = json.loads((out / "index.json").read_text())["manifests"]
    assert {entry["digest"]} == digests and entry["annotations"] == {"mine": "kept", NAME: "a"} and entry["platform"]


def test_an_entry_that_others_name_in_their_way_stays(store, pulled, tmp_path):
    out = tmp_path / "out"
    digest = store.push("one:1", f"oci:{out}").manifest_digest
    index = json.loads((out / "index.json").read_text())
    index["manifests"][0]["annotations"] = {"io.containerd.image.name": "example.test/x:1"}
    (out / "index.json").write_text(json.dumps(index))
    store.push("one:1", f"oci:{out}")
    assert json.loads((out / "index.json").read_text()) == index
    store.push("one:1", f"oci:{out}:a")
    assert listed(out) == [("a", digest), (None, digest)]


# -- what is there already ---------------------------------------------------------------------------------------------

SPOILT = [   # one after the other
    lambda path: os.truncate(path, os.path.getsize(path) // 2),
    lambda path: os.truncate(path, 0),
    lambda path: path.write_bytes(path.read_bytes()[:-1] + b"!"),
]


def test_what_is_not_what_its_name_says_is_written_again(store, pulled, tmp_path):
    out = tmp_path / "out"
    store.push("one:1", f"oci:{out}:x", compression="none")
    blobs = list((out / "blobs/sha256").iterdir())
    assert len(blobs) == 2 + len(pulled.layers)
    for spoil in SPOILT:
        for each in blobs:
            spoil(each)
        assert len(wrong(out)) == len(blobs)
        store.push("one:1", f"oci:{out}:x", compression="none")
        assert len(listed(out)) == 1


def test_a_kept_blob_that_is_cut_short_there_is_sent_again(store, tmp_path):
    made, out = image(tmp_path, name="kept", salt="k"), tmp_path / "out"
    store.pull(made.reference, names=["kept:1"], options=layerstore.PullOptions(keep_blobs=True))
    store.push("kept:1", f"oci:{out}:x")
    os.truncate(out / "blobs/sha256" / made.layers[0].digest[7:], 10)
    assert store.push("kept:1", f"oci:{out}:x").kept
    assert listed(out) == [("x", made.manifest_digest)]


def test_something_else_at_a_blobs_name_is_an_error_that_says_so(store, pulled, tmp_path):
    out = tmp_path / "out"
    store.push("one:1", f"oci:{out}:x")
    (out / "blobs/sha256" / pulled.config_digest[7:]).unlink()
    (out / "blobs/sha256" / pulled.config_digest[7:]).mkdir()
    with pytest.raises(errors.LayerstoreError):
        store.push("one:1", f"oci:{out}:x")
