"""What a repair may conclude: mended only what was compared, quarantined only what is known to be bad."""

import io
import os
import shutil
import tarfile
from contextlib import nullcontext

import pytest
from click.testing import CliRunner

import imagemaker
import layerstore
from layerstore import errors
from layerstore.cli.commands import cli
from layerstore.trees import compare
from layerstore.verbs.repair import supply
from layerstore.verbs.repair.supply import Supply
from storekit import add, failing_at, image
from test_check import flip
from test_repair import tree


@pytest.fixture
def store(tmp_path):
    with layerstore.open(tmp_path / "store") as opened:
        yield opened


def quarantined(store):
    """A layer of which one file is bad for good, and which is quarantined for it."""
    layer = add(store, {"file": b"only here" * 20})
    flip(tree(store, layer, "diff", "file"))
    assert store.repair().quarantined == (layer.id,)
    return layer


def state_of(store, layer):
    return {each.id: each.state for each in store.layers()}[layer.id]


def unreadable(monkeypatch, name):
    """This process may not read files of that *name* any more."""
    real = compare.open_regular

    def opened(path, dir_fd):
        if path == name:
            raise PermissionError(13, "Permission denied")
        return real(path, dir_fd)

    monkeypatch.setattr(compare, "open_regular", opened)


@pytest.mark.parametrize("depth", ["structure", "metadata"])
def test_a_quarantined_layer_is_not_mended_by_who_does_not_look_at_its_content(store, depth):
    layer = quarantined(store)
    report = store.repair(depth=depth)
    assert (report.mended, report.quarantined, report.clean) == ((), (layer.id,), False)
    assert state_of(store, layer) == "quarantined"


def test_a_quarantined_layer_is_not_mended_by_who_may_not_read_it(store, monkeypatch):
    layer = quarantined(store)
    unreadable(monkeypatch, b"file")
    report = store.repair()
    assert (report.mended, list(report.failed), report.clean) == ((), [layer.id], False)
    assert "may not be read" in report.failed[layer.id]
    assert state_of(store, layer) == "quarantined"


def test_what_may_not_be_read_is_not_said_to_be_whole_because_something_else_was_mended(store, monkeypatch):
    layer = add(store, {"file": b"only here" * 20, "other": b"x"})
    with open(tree(store, layer, "layer"), "wb"):
        pass
    unreadable(monkeypatch, b"file")
    report = store.repair()
    assert (report.mended, list(report.failed)) == ((), [layer.id])
    assert state_of(store, layer) == "committed"
    monkeypatch.undo()
    assert store.check(content=True).sound


@pytest.mark.parametrize("part", ["manifest", "tar-split"])
def test_a_part_from_the_source_is_compared_before_it_takes_its_place(store, tmp_path, monkeypatch, part):
    """At the depth of structure nobody looks at it afterwards."""
    made = image(tmp_path)
    layer = store.layer(store.pull(made.reference).layers[1])
    os.unlink(tree(store, layer, part))
    monkeypatch.setattr(Supply, "part", lambda *_args: lambda: iter([b"another one"]))
    report = store.repair(depth="structure", source=made.reference)
    assert (report.mended, report.quarantined) == ((), (layer.id,))
    assert not os.path.exists(tree(store, layer, part))


def blob_of(made, layer):
    return os.path.join(made.path, "blobs", "sha256", layer.blob_digest.removeprefix("sha256:"))


def lost(store, tmp_path):
    """A pulled layer of which one file is bad, and where its image is."""
    made = image(tmp_path)
    layer = store.layer(store.pull(made.reference).layers[1])
    flip(tree(store, layer, "diff", "layer1"))
    return layer, made


def unavailable(monkeypatch, _store):
    def refusing(*_args, **_options):
        raise errors.RegistryUnavailableError("it answered 429 at every try", status=429, url="u")

    monkeypatch.setattr(supply, "stage", refusing)


FAILURES = {
    "unreachable": (unavailable, "429"),
    "a full disk": (lambda _m, _s: None, "no space"), "the quota": (lambda _m, s: s.set_quota(1), "quota"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_source_that_fails_for_now_quarantines_nothing_and_is_told(store, tmp_path, monkeypatch, failure):
    layer, made = lost(store, tmp_path)
    other = add(store, {"elsewhere": b"the same" * 40})
    ill = add(store, {"here": b"the same" * 40, "one": b"more"})
    flip(tree(store, ill, "diff", "here"))
    bring_about, word = FAILURES[failure]
    bring_about(monkeypatch, store)
    with failing_at("stage.mkdir", "ENOSPC") if failure == "a full disk" else nullcontext():
        report = store.repair(source=made.reference)
    assert (list(report.failed), report.quarantined, report.mended) == ([layer.id], (), (ill.id,)), report
    assert word in report.failed[layer.id].lower()
    assert (state_of(store, layer), state_of(store, other)) == ("committed", "committed")


def test_a_bare_error_of_the_system_while_the_source_is_staged_ends_no_repair(store, tmp_path, monkeypatch):
    layer, made = lost(store, tmp_path)

    def failing(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(supply, "stage", failing)
    report = store.repair(source=made.reference)
    assert (list(report.failed), report.quarantined) == ([layer.id], ())


def test_a_source_that_has_other_content_is_a_verdict_and_is_told(store, tmp_path):
    layer, made = lost(store, tmp_path)
    flip(blob_of(made, layer), at=40)
    report = store.repair(source=made.reference)
    assert (report.quarantined, list(report.refused), report.failed) == ((layer.id,), [layer.id], {})


def test_the_command_says_why_the_source_was_of_no_help(store, tmp_path, monkeypatch):
    layer, made = lost(store, tmp_path)
    store.close()
    flip(blob_of(made, layer), at=40)
    done = CliRunner().invoke(cli, ["--root", str(store.root), "repair", "--from", made.reference])
    assert (done.exit_code, f"no help from the source for {layer.id}" in done.output) == (3, True)
    unavailable(monkeypatch, store)
    done = CliRunner().invoke(cli, ["--root", str(store.root), "repair", "--from", made.reference])
    assert (done.exit_code, f"failed {layer.id}: from the source: it answered 429" in done.output) == (3, True)


KEPT_DAMAGE = {
    "the first": lambda kept: flip(os.path.join(kept, "0")), "the last": lambda kept: flip(os.path.join(kept, "69")),
    "one is gone": lambda kept: os.unlink(os.path.join(kept, "66")), "all are gone": shutil.rmtree,
    "a file in their place": lambda kept: (shutil.rmtree(kept), open(kept, "x").close()),
}


@pytest.mark.parametrize("damage", KEPT_DAMAGE.values(), ids=KEPT_DAMAGE)
def test_what_is_kept_for_the_tar_is_restored_from_the_source_however_much_it_is(store, tmp_path, damage):
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for number in range(71):         # each replaces the one before, which is kept
            info = tarfile.TarInfo("file")
            info.size = 100
            archive.addfile(info, io.BytesIO(b"%100d" % number))
    made = imagemaker.Image([imagemaker.Layer(tar=tar.getvalue())]).write_oci(tmp_path / "image", tag="latest")
    layer = store.layer(store.pull(made.reference).layers[0])
    damage(tree(store, layer, "kept"))
    assert store.repair(source=made.reference).mended == (layer.id,)
    assert len(os.listdir(tree(store, layer, "kept"))) == 70
    assert store.check(content=True).sound
