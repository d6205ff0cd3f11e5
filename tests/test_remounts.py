"""Whoever has mounted what a repair changes is told to mount again: by this store, through a view, or by himself."""

import contextlib
import json
import os

import pytest
from click.testing import CliRunner

import layerstore
from layerstore.cli.commands import cli
from layerstore.system import kernel
from layerstore.trees import mounted, overlay
from layerstore.trees.attach import escape
from namespaces import MS_BIND, NEWNS, PRIVATE
from storekit import add, image
from test_check import flip


@contextlib.contextmanager
def in_another_namespace(mount):
    """Run *mount* in a child with a mount namespace of its own, which stays while this lasts: its pid."""
    told, end = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(end[1])
            kernel.unshare(NEWNS)
            kernel.mount("none", "/", None, PRIVATE, None)
            mount()
            os.write(told[1], b"1")
            os.read(end[0], 1)
        finally:
            os._exit(1)
    try:
        os.close(told[1])
        assert os.read(told[0], 1) == b"1"
        yield pid
    finally:
        for fd in (told[0], *end):
            os.close(fd)
        os.waitpid(pid, 0)


def damaged(store):
    layer, spare = add(store, {"file": b"1" * 100}), add(store, {"copy": b"1" * 100})
    flip(os.path.join(store.root, "layers", layer.id, "diff", "file"))
    return layer, spare


@pytest.mark.root
def test_overlays_that_others_mounted_over_a_layer_are_named_however_they_name_it(store, tmp_path):
    layer, spare = damaged(store)
    diff, other = (os.path.join(store.root, "layers", each.id, "diff") for each in (layer, spare))
    home, odd, link, empty = (tmp_path / name for name in ("home", "o,d:d \\x", "link", "empty"))
    targets = {name: home / name / "merged" for name in ("plain", "link", "bind", "bind-at-once", "relative", "not")}
    for path in (*targets.values(), home / "l", odd, empty):
        path.mkdir(parents=True)
    os.symlink(diff, link)
    os.symlink(diff, home / "l" / "ABC")

    def pieces(name, lower):
        overlay.mount_overlay([str(lower)], str(targets[name]), overlay_form="trusted", empty_dir=str(empty))

    def at_once(name, lower):
        lowers = f"lowerdir={escape(str(lower))}:{escape(str(empty))}"
        kernel.mount("overlay", str(targets[name]), "overlay", 1, lowers)

    def mount():
        kernel.mount(diff, str(odd), None, MS_BIND, None)
        pieces("plain", diff)
        at_once("link", link)
        pieces("bind", odd)
        at_once("bind-at-once", odd)
        os.chdir(home)
        at_once("relative", "l/ABC")
        pieces("not", other)

    with in_another_namespace(mount) as pid:
        expected = sorted(f"/proc/{pid}/root{targets[name]}" for name in targets if name != "not")
        assert sorted(store.repair(dry_run=True).remount) == expected
        report = store.repair()
        assert (report.mended, sorted(report.remount)) == ((layer.id,), expected)
        assert store.repair().remount == ()
    assert mounted.overlays_over([diff]) == []


@pytest.mark.root
def test_what_is_mounted_in_the_same_namespace_is_named_by_its_path_and_once(store, tmp_path):
    layer, _ = damaged(store)
    diff = os.path.join(store.root, "layers", layer.id, "diff")
    for name in ("target", "empty"):
        (tmp_path / name).mkdir()
    found = os.pipe()

    def mount():
        overlay.mount_overlay([diff], str(tmp_path / "target"), overlay_form="trusted", empty_dir=str(tmp_path / "empty"))
        os.write(found[1], json.dumps(mounted.overlays_over([diff])).encode())

    with in_another_namespace(mount):
        assert json.loads(os.read(found[0], 1 << 16)) == [str(tmp_path / "target")]
    for fd in found:
        os.close(fd)


def test_without_proc_a_repair_tells_what_it_knows_itself(store, monkeypatch):
    layer, _ = damaged(store)

    def gone(_process="self", **_around):
        raise FileNotFoundError(2, "there is no /proc")

    monkeypatch.setattr(mounted, "table", gone)
    report = store.repair()
    assert (report.mended, report.remount) == ((layer.id,), ())


def test_a_view_that_shows_what_was_repaired_is_named_and_only_if_what_it_shows_changed(root, tmp_path):
    with layerstore.open(root) as store:
        pulled = store.pull(image(tmp_path).reference)
        store.view(tmp_path / "view")
        (lease,) = store.leases()
        top = os.path.join(store.root, "layers", pulled.layers[0])
        flip(os.path.join(top, "layer"), at=20)              # beside what it shows
        report = store.repair()
        assert (report.mended, report.remount, report.views) == ((pulled.layers[0],), (), ())
        os.chmod(os.path.join(top, "diff", "layer0"), 0o4777)
        assert store.repair(dry_run=True).views == (lease.name,)
    done = CliRunner().invoke(cli, ["--root", str(root), "repair"])
    assert done.exit_code == 0 and f"shown by {lease.name}" in done.output, done.output
