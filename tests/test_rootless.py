"""Layers without root: what cannot be set is kept, and comes back; nothing that only cannot be looked at is called damaged."""

import os
import stat

import pytest
from namespaces import GROUP, USER, as_user
from storekit import digest, put_layer
from tarmaker import END, directory, file, hardlink, header, pax, symlink
from treediff import assert_same

import layerstore
from layerstore import TarDiffer
from layerstore.trees import override
from layerstore.formats.manifest import final_entries
from layerstore.model import Descriptor

OVERRIDE = override.NAME.decode()
CAP = bytes.fromhex("0100000200200000000000000000000000000000")
LAYER = (
    directory(b"d", uid=5, gid=6, mode=0o2775) + file(b"d/f", b"content", uid=1000, gid=1001, mode=0o6755)
    + file(b"mine", b"1", uid=USER, gid=GROUP, mode=0o640) + file(b"shut", b"secret", mode=0) + directory(b"locked", mode=0)
    + file(b"locked/in", b"x", uid=7) + header(b"null", b"3", major=1, minor=3, mode=0o666, uid=3, mtime=9)
    + hardlink(b"null2", b"null") + header(b"disk", b"4", major=8, minor=1000, mode=0o660, gid=6)
    + header(b"pipe", b"6", mode=0o622, uid=8) + symlink(b"link", b"d/f", uid=9, gid=10) + hardlink(b"link2", b"link")
    + pax((b"SCHILY.xattr.security.capability", CAP)) + file(b"ping", b"elf", mode=0o755) + file(b".wh.gone")
    + file(b"big", bytes(100_000), uid=4_000_000_000, gid=4_000_000_000)
) + END

needs_root = pytest.mark.root


def put(root, data=LAYER, **options):
    return put_layer(root, data, **options)


def exported(root, layer_id):
    with layerstore.open(root) as store, store.diff(layer_id) as chunks:
        return b"".join(chunks)


def diff(root, layer_id, *parts):
    return os.path.join(root, "layers", layer_id, "diff", *parts)


def said(path):
    return os.getxattr(path, OVERRIDE).decode()


def owner(path):
    found = os.lstat(path)
    return found.st_uid, found.st_gid


def findings(root):
    with layerstore.open(root, readonly=True) as store:
        return store.check(content=True).findings


# -- the attribute


def test_an_ordinary_users_tree_says_what_it_is_meant_to_be_in_the_fields_own_attribute(home):
    def work():
        at = lambda *parts: diff(home / "s", layer, *parts)  # noqa: E731
        layer = put(home / "s")
        assert said(at()) == "0:0:0755:dir"
        assert said(at("d")) == "5:6:2775:dir"
        assert said(at("d", "f")) == "1000:1001:6755:file"
        assert said(at("shut")) == "0:0:0000:file"
        assert said(at("locked")) == "0:0:0000:dir"
        assert said(at("big")) == "4000000000:4000000000:0644:file"
        assert said(at("mine")) == f"{USER}:{GROUP}:0640:file"   # all have it: so fuse-overlayfs wants it
        assert OVERRIDE not in os.listxattr(at("link"), follow_symlinks=False)
        assert not findings(home / "s")

    as_user(work)


def test_an_empty_file_stands_for_a_device_that_may_not_be_made(home):
    def work():
        layer = put(home / "s")
        for name, text in (("null", "3:0:0666:char-1-3"), ("disk", "0:6:0660:block-8-1000")):
            found = os.lstat(diff(home / "s", layer, name))
            assert stat.S_ISREG(found.st_mode)
            assert found.st_size == 0
            assert said(diff(home / "s", layer, name)) == text
        assert os.path.samefile(diff(home / "s", layer, "null"), diff(home / "s", layer, "null2"))
        assert os.lstat(diff(home / "s", layer, "null")).st_mtime == 9

    as_user(work)


def test_an_ordinary_users_layer_exports_to_the_byte(home):
    """Files that nobody may read, and directories that nobody may enter, included."""

    def work():
        assert exported(home / "s", put(home / "s")) == LAYER

    as_user(work)


def test_a_tree_that_was_all_set_says_so_and_lacks_nothing(home):
    def work():
        mine = {"uid": USER, "gid": GROUP}
        data = directory(b"./", **mine) + file(b"f", b"1", mode=0o6755, **mine) + symlink(b"l", b"f", **mine) + END
        layer = put(home / "s", data)
        assert said(diff(home / "s", layer, "f")) == f"{USER}:{GROUP}:6755:file"
        with layerstore.open(home / "s") as store:
            assert store.layer(layer).unset == 0

    as_user(work)


def test_the_attribute_never_comes_from_an_archive(home):
    def work():
        planted = (b"SCHILY.xattr." + override.NAME, b"0:0:4755:file")
        data = pax(planted) + file(b"f", b"1", uid=USER, gid=GROUP) + pax(planted) + file(b"g", b"1", uid=3) + END
        layer = put(home / "s", data)
        assert said(diff(home / "s", layer, "f")) == f"{USER}:{GROUP}:0644:file"
        assert said(diff(home / "s", layer, "g")) == "3:0:0644:file"
        assert exported(home / "s", layer) == data

    as_user(work)


@pytest.mark.parametrize("change", ["removed", "changed"])
def test_check_finds_an_attribute_that_is_not_as_it_was_made(home, change):
    def work():
        layer = put(home / "s")
        path = diff(home / "s", layer, "d")
        if change == "removed":
            os.removexattr(path, OVERRIDE)
        else:
            os.setxattr(path, OVERRIDE, b"0:0:4755:file")
        assert [(f.code, OVERRIDE in f.message) for f in findings(home / "s")] == [("path-metadata", True)]

    as_user(work)


@needs_root
def test_roots_tree_has_no_such_attribute_and_check_finds_one_that_was_added(home):
    layer = put(home / "s")
    for path, names, files in os.walk(diff(home / "s", layer)):
        for name in (path, *(os.path.join(path, each) for each in names + files)):
            assert OVERRIDE not in os.listxattr(name, follow_symlinks=False)
    os.setxattr(diff(home / "s", layer, "mine"), OVERRIDE, b"0:0:4755:file")
    assert [(f.code, OVERRIDE in f.message) for f in findings(home / "s")] == [("path-metadata", True)]


def test_check_finds_content_in_what_stands_for_a_device(home):
    def work():
        layer = put(home / "s")
        with open(diff(home / "s", layer, "disk"), "ab") as file:
            file.write(b"x")
        assert ["disk" in f.message and "size" in f.message for f in findings(home / "s")] == [True]

    as_user(work)


def test_the_same_archive_makes_the_same_tree_and_manifest_twice(home):
    def work():
        layers = [put(home / name) for name in ("s", "t")]
        manifests = [list(final_entries(os.path.join(home, name, "layers", layers[0], "manifest"))) for name in ("s", "t")]
        assert layers[0] == layers[1]
        assert manifests[0] == manifests[1]

    as_user(work)


def test_a_tree_that_an_ordinary_user_left_staged_is_adopted_by_it(home):
    def work():
        key = Descriptor("application/vnd.oci.image.layer.v1.tar", digest(LAYER), len(LAYER))
        with layerstore.open(home / "s") as store:
            store.stage(TarDiffer(LAYER, expect=key)).release()
            with store.stage(TarDiffer(LAYER, expect=key)) as staged:
                assert staged.adopted

    as_user(work)


def test_a_device_that_nothing_could_stand_for_is_kept_by_the_manifest(home, monkeypatch):
    """As on a file system without such attributes."""
    monkeypatch.setattr(override, "write", lambda *_: False)

    def work():
        layer = put(home / "s")
        assert not os.path.lexists(diff(home / "s", layer, "null"))
        assert not os.listxattr(diff(home / "s", layer))
        assert not findings(home / "s")
        assert exported(home / "s", layer) == LAYER

    as_user(work)


# -- extracting


@needs_root
@pytest.mark.parametrize("writes", [True, False], ids=["by the attribute", "by the manifest alone"])
def test_root_extracts_an_ordinary_users_layer_as_if_root_had_made_it(home, tmp_path, monkeypatch, writes):
    if not writes:
        monkeypatch.setattr(override, "write", lambda *_: False)
    as_user(lambda: put(home / "s", overlay_form="user"))
    layer = put(tmp_path / "roots", overlay_form="user")
    reports = []
    for root, out in ((tmp_path / "roots", tmp_path / "one"), (home / "s", tmp_path / "two")):
        with layerstore.open(root) as store:
            reports.append(store.extract(layer, out))
    # that two names were one device is known only if something stands for it
    assert_same(tmp_path / "one", tmp_path / "two", ignore=() if writes else ("link_group",))
    assert owner(tmp_path / "two" / "link") == (9, 10)
    assert os.getxattr(tmp_path / "two" / "ping", "security.capability") == CAP
    assert os.stat(tmp_path / "two" / "null").st_rdev == os.makedev(1, 3)
    assert reports[0] == reports[1]
    assert reports[1].unset == 0


def test_an_ordinary_user_extracts_what_it_may_and_is_told_of_the_rest(home):
    def work():
        layer = put(home / "s")
        with layerstore.open(home / "s") as store:
            report = store.extract(layer, home / "out")
        assert sorted(os.listdir(home / "out")) == ["big", "d", "link", "link2", "locked", "mine", "ping", "pipe", "shut"]
        assert stat.S_IMODE(os.stat(home / "out" / "shut").st_mode) == 0
        assert stat.S_IMODE(os.stat(home / "out" / "d" / "f").st_mode) == 0o755   # not set-user-ID for the wrong user
        # owners of the root, d, d/f, shut, locked, locked/in, pipe, link, ping, big; two devices, a link; a capability
        assert report.unset == 14
        os.chmod(home / "out" / "locked", 0o700)

    as_user(work)


@needs_root
def test_of_two_layers_the_upper_ones_device_hides_the_lower_ones_file(home, tmp_path):
    def work():
        with layerstore.open(home / "s") as store:
            below = store.apply_staged_layer(store.stage(TarDiffer(file(b"null", b"a file") + END)))
            store.apply_staged_layer(store.stage(TarDiffer(LAYER)), parent=below.id, names=["both"])

    as_user(work)
    with layerstore.open(home / "s") as store:
        store.extract("both", tmp_path / "out")
    assert stat.S_ISCHR(os.stat(tmp_path / "out" / "null").st_mode)


# -- the format


@pytest.mark.parametrize(("text", "found"), [
    (b"0:0:0755:dir", override.Stat(0, 0, 0o755, stat.S_IFDIR)),
    (b"1000:1001:6755:file", override.Stat(1000, 1001, 0o6755, stat.S_IFREG)),
    (b"1:2:00644:pipe", override.Stat(1, 2, 0o644, stat.S_IFIFO)),
    (b"1:2:0644:char-5-1", override.Stat(1, 2, 0o644, stat.S_IFCHR, os.makedev(5, 1))),
    (b"1:2:0644:block-8-1000", override.Stat(1, 2, 0o644, stat.S_IFBLK, os.makedev(8, 1000))),
    (b"1:2:0644", None), (b"1:2:0944:file", None), (b"1:2:0644:char", None), (b"1:2:0644:file-1-2", None),
    (b"-1:2:0644:file", None), (b"1:2:17777777:file", None), (b"1:2:0644:\xff", None), (b"", None),
])
def test_the_attribute_is_read_exactly(text, found):
    assert override.parse(text) == found
