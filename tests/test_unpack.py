"""Unpacking: what a tar becomes on disk, and that nothing it says reaches outside."""

import errno
import io
import os
import stat
import subprocess
import tarfile
import threading
import traceback
import tracemalloc
import types

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tarmaker import END, chunks, directory, file, hardlink, header, pax, symlink

from layerstore.system import faults
from layerstore.errors import ArchiveError, LayerstoreError, LimitExceededError
from layerstore.formats.manifest import XATTR, final_entries
from layerstore.trees.verify import tree_problems
from layerstore.model import DiffTarget, Limits
from layerstore.trees.unpack import unpack

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: other owners and devices")
FORM = "trusted" if os.geteuid() == 0 else "user"


class Tree:
    """A staging directory to unpack into, and eyes to look at it with."""

    def __init__(self, path, alone=None):
        self.path, self.alone = path, alone
        self.diff = path / "diff"
        self.diff.mkdir(parents=True)
        self.fds = [os.open(p, os.O_RDONLY) for p in (path, self.diff)]

    def unpack(self, data, *, end=True, chunk=1 << 20, form=FORM, limits=None, **more):
        target = DiffTarget(*self.fds, overlay_form=form, limits=limits or Limits(), **more)
        self.result = unpack(chunks(data + (END if end else b""), chunk), target, alone=self.alone)
        return self.result

    def sound(self):
        """The manifest describes the tree."""
        assert list(tree_problems(self.fds[0], self.result.manifest_digest, content=True)) == []
        return self

    def manifest(self):
        return {e.path: e for e in final_entries(str(self.path / "manifest"))}

    def names(self):
        return sorted(
            os.path.relpath(os.path.join(d, n), self.diff) for d, ds, fs in os.walk(self.diff) for n in ds + fs
        )

    def stat(self, name):
        return os.lstat(self.diff / name)

    def is_whiteout(self, name):
        s = self.stat(name)
        return stat.S_ISCHR(s.st_mode) and s.st_rdev == 0

    def is_opaque(self, name="."):
        path = self.diff / name
        return any(n.endswith(".overlay.opaque") and os.getxattr(path, n) == b"y" for n in os.listxattr(path))

    def close(self):
        for fd in self.fds:
            os.close(fd)


@pytest.fixture(params=[None, 0], ids=["", "by-threads"])
def tree(tmp_path, request):
    tree = Tree(tmp_path / "layer", alone=request.param)
    yield tree
    tree.close()


@pytest.fixture
def outside(tmp_path):
    """A directory beside the tree, which must stay as it is."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    yield tmp_path / "outside"
    assert sorted(os.listdir(tmp_path / "outside")) == ["secret"]
    assert (tmp_path / "outside" / "secret").read_bytes() == b"secret"
    assert os.stat(tmp_path / "outside" / "secret").st_nlink == 1


def refused(tree, data, match, error=ArchiveError, **more):
    with pytest.raises(error, match=match) as caught:
        tree.unpack(data, **more)
    return caught.value


# -- ordinary content


@pytest.mark.parametrize("chunk", [100, 513, 1 << 20])
def test_files_get_content_mode_and_time(tree, chunk):
    tree.unpack(file(b"a", b"x" * 5000, mode=0o640, mtime=77) + file(b"empty", mode=0o600), chunk=chunk)
    assert (tree.diff / "a").read_bytes() == b"x" * 5000
    assert (tree.diff / "empty").read_bytes() == b""
    assert stat.S_IMODE(tree.stat("a").st_mode) == 0o640
    assert tree.stat("a").st_mtime_ns == 77 * 10**9
    tree.sound()


@pytest.mark.parametrize("umask", [0, 0o077, pytest.param(0o777, marks=ROOT)])   # one that shuts even the owner out
def test_modes_do_not_depend_on_the_umask(tree, umask):
    old = os.umask(umask)
    try:
        tree.unpack(file(b"a", mode=0o7777) + directory(b"d", mode=0o1777) + header(b"p", b"6", mode=0o666))
    finally:
        os.umask(old)
    assert [stat.S_IMODE(tree.stat(n).st_mode) for n in "adp"] == [0o7777, 0o1777, 0o666]


def test_times_are_exact_to_the_nanosecond_for_files_links_and_directories(tree):
    time = (b"mtime", b"1234567890.123456789")
    tree.unpack(pax(time) + directory(b"d") + pax(time) + file(b"d/f", b"1") + pax(time) + symlink(b"d/l", b"f")
                + pax(time) + header(b"d/p", b"6"))
    assert {tree.stat(n).st_mtime_ns for n in ("d", "d/f", "d/l", "d/p")} == {1234567890123456789}
    tree.sound()


def test_a_directorys_time_survives_what_is_made_and_replaced_in_it_later(tree):
    tree.unpack(directory(b"d", mtime=5) + directory(b"d/e", mtime=6) + file(b"d/e/f") + file(b"d/e/f") + file(b"d/g"))
    assert (tree.stat("d").st_mtime, tree.stat("d/e").st_mtime) == (5, 6)


def test_the_root_entry_describes_the_tree_itself(tree):
    tree.unpack(directory(b"./", mode=0o711, mtime=3) + file(b"./a"))
    assert (stat.S_IMODE(tree.stat(".").st_mode), tree.stat(".").st_mtime) == (0o711, 3)
    assert tree.names() == ["a"]
    tree.sound()


def test_missing_parents_are_made_the_same_way_every_time(tree):
    tree.unpack(file(b"a/b/f"))
    for name in (".", "a", "a/b"):
        assert (stat.S_IMODE(tree.stat(name).st_mode), tree.stat(name).st_mtime_ns) == (0o755, 0)
    assert [tree.manifest()[p].implicit for p in (b"", b"a", b"a/b", b"a/b/f")] == [True, True, True, False]


def test_a_parent_that_comes_after_its_children_is_as_it_says(tree):
    tree.unpack(file(b"a/f") + directory(b"a", mode=0o700, mtime=9))
    assert (stat.S_IMODE(tree.stat("a").st_mode), tree.stat("a").st_mtime) == (0o700, 9)
    assert tree.names() == ["a", "a/f"]
    assert not tree.sound().manifest()[b"a"].implicit


def test_symlinks_are_verbatim_wherever_they_point(tree):
    tree.unpack(symlink(b"a", b"/etc/passwd") + symlink(b"b", b"../../../x") + symlink(b"c", b"nowhere/./x//"))
    assert [os.readlink(tree.diff / n) for n in "abc"] == ["/etc/passwd", "../../../x", "nowhere/./x//"]
    tree.sound()


def test_hard_links_are_the_same_file_and_change_nothing_of_it(tree):
    tree.unpack(file(b"a", b"data", mode=0o640, mtime=5) + hardlink(b"d/b", b"./a", mode=0o777, mtime=9))
    a, b = tree.stat("a"), tree.stat("d/b")
    assert (a.st_ino, a.st_nlink, stat.S_IMODE(b.st_mode), b.st_mtime) == (b.st_ino, 2, 0o640, 5)
    assert tree.sound().manifest()[b"d/b"].linkname == b"a"


def test_a_hard_link_to_a_symlink_is_a_link_to_the_link(tree):
    tree.unpack(symlink(b"l", b"/etc/passwd") + hardlink(b"h", b"l"))
    assert os.readlink(tree.diff / "h") == "/etc/passwd"
    assert tree.stat("h").st_ino == tree.stat("l").st_ino
    tree.sound()


def test_a_hard_link_to_itself_changes_nothing(tree):
    tree.unpack(file(b"a", b"x") + hardlink(b"a", b"a") + hardlink(b"b", b"a") + hardlink(b"b", b"a"))
    assert (tree.diff / "b").read_bytes() == b"x"
    tree.sound()


def test_holes_stay_holes_and_are_hashed_as_zeros(tree):
    import hashlib

    size = 64 << 20
    tree.unpack(pax((b"GNU.sparse.size", b"%d" % size), (b"GNU.sparse.numblocks", b"2"), (b"GNU.sparse.map", b"0,512,33554432,512"))
                + header(b"s", size=1024) + b"A" * 512 + b"B" * 512)
    content = (tree.diff / "s").read_bytes()
    assert (len(content), content[:512], content[1 << 25:(1 << 25) + 512]) == (size, b"A" * 512, b"B" * 512)
    assert content.count(0) == size - 1024
    assert tree.stat("s").st_blocks * 512 < 1 << 20
    assert tree.sound().manifest()[b"s"].sha256 == hashlib.sha256(content).digest()


BLOCK = 1 << 16
FULL = b"full" * (BLOCK // 4)
ZEROS = {   # content, blocks of it that must be on the disk at most
    "all": (bytes(40 * BLOCK), 0),
    "middle": (FULL + bytes(30 * BLOCK) + FULL, 2),
    "start": (bytes(30 * BLOCK) + FULL, 1),
    "end": (FULL + bytes(30 * BLOCK), 1),
    "end, and a bit": (FULL + bytes(30 * BLOCK + 777), 1),
    "out of step": (b"x" * 1_000 + bytes(30 * BLOCK) + b"y" * 1_000, 2),
    "all but one byte": (bytes(20 * BLOCK) + b"x" + bytes(20 * BLOCK), 1),
    "zeros where it is looked": (b"".join(bytes(1) + b"x" * (BLOCK // 2 - 1) + bytes(1) + b"x" * (BLOCK // 2 - 2) + bytes(1) for _ in range(9)), 9),
    "every other": ((FULL + bytes(BLOCK)) * 10, 10),
}


@pytest.mark.parametrize("chunk", [1 << 20, 100_000, 64 << 20], ids=["pieces", "out of step", "whole"])
@pytest.mark.parametrize("kind", ZEROS)
def test_zeros_of_a_larger_file_take_no_blocks(tree, kind, chunk):
    content, most = ZEROS[kind]
    tree.unpack(file(b"before", b"x" * 3_000) + file(b"f", content), chunk=chunk)
    assert (tree.diff / "f").read_bytes() == content
    assert tree.stat("f").st_blocks * 512 <= most * BLOCK + 8_192   # what the file system needs to list them
    tree.sound()


def test_zeros_of_a_small_file_are_written(tree):
    tree.unpack(file(b"f", bytes(4 * BLOCK)))
    assert tree.stat("f").st_blocks * 512 >= 4 * BLOCK


def test_a_large_file_without_zeros_is_written_piece_by_piece(tree, monkeypatch):
    calls = []
    for name in ("write", "lseek", "ftruncate"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, real=real, name=name: calls.append(name) or real(*args))
    tree.unpack(file(b"f", FULL * 48), chunk=1 << 20)
    content = 48 * BLOCK
    assert calls.count("write") == -(-(512 + content) // (1 << 20)) and {*calls} == {"write"}


def test_a_sparse_file_whose_segments_cross_chunks_is_whole(tree):
    data = os.urandom(5120)
    tree.unpack(pax((b"GNU.sparse.size", b"90000"), (b"GNU.sparse.numblocks", b"2"), (b"GNU.sparse.map", b"100,2560,70000,2560")) + header(b"s", size=5120)
                + data, chunk=700)
    content = (tree.diff / "s").read_bytes()
    assert (content[100:2660], content[70000:72560], len(content)) == (data[:2560], data[2560:], 90000)
    tree.sound()


def test_fifos_are_made(tree):
    tree.unpack(header(b"p", b"6", mode=0o622, mtime=4))
    assert (tree.stat("p").st_mode, tree.stat("p").st_mtime) == (stat.S_IFIFO | 0o622, 4)
    tree.sound()


@pytest.mark.root
@ROOT
def test_owners_devices_and_setuid_are_as_the_archive_says(tree):
    tree.unpack(
        directory(b"d", uid=5, gid=6, mode=0o2775) + file(b"d/f", b"1", uid=1000, gid=1001, mode=0o6755)
        + header(b"c", b"3", major=1, minor=3, mode=0o666) + header(b"b", b"4", major=8, minor=1000, uid=3)
        + symlink(b"l", b"x", uid=7, gid=8)
    )
    owner = lambda n: (tree.stat(n).st_uid, tree.stat(n).st_gid)  # noqa: E731
    assert [owner(n) for n in ("d", "d/f", "b", "l")] == [(5, 6), (1000, 1001), (3, 0), (7, 8)]
    assert stat.S_IMODE(tree.stat("d/f").st_mode) == 0o6755
    assert stat.S_IMODE(tree.stat("d").st_mode) == 0o2775
    assert (tree.stat("c").st_rdev, tree.stat("b").st_rdev) == (os.makedev(1, 3), os.makedev(8, 1000))
    assert (tree.result.unset, tree.result.uids) == (0, (0, 3, 5, 7, 1000))
    tree.sound()


@pytest.mark.root
@ROOT
def test_nothing_is_inherited_from_a_setgid_directory(tree):
    os.chown(tree.diff, 0, 1234)
    os.chmod(tree.diff, 0o2777)
    tree.unpack(file(b"f") + directory(b"d") + file(b"d/g"))
    assert {tree.stat(n).st_gid for n in ("f", "d", "d/g", ".")} == {0}
    assert stat.S_IMODE(tree.stat("d").st_mode) == 0o755


@pytest.mark.root
@ROOT
def test_capabilities_survive_the_change_of_owner(tree):
    cap = bytes.fromhex("0100000200200000000000000000000000000000")
    tree.unpack(pax((b"SCHILY.xattr.security.capability", cap)) + file(b"ping", b"elf", uid=5, mode=0o755))
    assert os.getxattr(tree.diff / "ping", "security.capability") == cap
    tree.sound()


@pytest.mark.root
@ROOT
@pytest.mark.parametrize("value, taken", [
    (b"\1\0\0\2" + bytes(16), True), (b"\0\0\0\2" + b"\xff" * 16, True),
    (b"\1\0\0\3" + bytes(16), False), (b"\1\0\0\1" + bytes(8), False), (b"\2\0\0\2" + bytes(16), False), (b"v", False),
    (b"\1\0\0\2" + bytes(20), False), (b"\1\0\0\4" + bytes(16), False),
])
def test_capabilities_are_refused_that_this_kernel_refuses_and_no_others(tree, value, taken):
    (tree.path / "probe").touch()
    try:
        os.setxattr(tree.path / "probe", "security.capability", value)
    except OSError as error:
        assert error.errno == errno.EINVAL and not taken
        refused(tree, pax((b"SCHILY.xattr.security.capability", value)) + file(b"f"), "capabilities of a file")
    else:
        assert taken
        tree.unpack(pax((b"SCHILY.xattr.security.capability", value)) + file(b"f"))
        assert os.listxattr(tree.diff / "f") == ["security.capability"]
        tree.sound()


@pytest.mark.root
@ROOT
@pytest.mark.parametrize("root", [0, 1000, 0xffff_ffff])
def test_capabilities_that_name_a_hosts_id_of_a_root_are_kept_in_the_manifest(tree, root):
    """That means nothing here, and the kernel gives back another value, by who asks (capabilities(7))."""
    value = b"\1\0\0\3" + bytes(16) + root.to_bytes(4, "little")
    tree.unpack(pax((b"SCHILY.xattr.security.capability", value)) + file(b"f"))
    assert os.listxattr(tree.diff / "f") == []
    found = tree.sound().manifest()[b"f"]
    assert found.xattrs == {b"security.capability": value} and found.unset & XATTR


def test_user_attributes_are_kept_with_any_bytes(tree):
    tree.unpack(pax((b"SCHILY.xattr.user.a", b"\0\xff\n")) + file(b"f") + pax((b"SCHILY.xattr.user.b", b"")) + directory(b"d"))
    assert os.getxattr(tree.diff / "f", "user.a") == b"\0\xff\n"
    assert os.getxattr(tree.diff / "d", "user.b") == b""
    tree.sound()


@pytest.mark.parametrize("name", [
    "trusted.overlay.opaque", "user.overlay.opaque", "user.overlay.redirect", "trusted.overlay.redirect",
    "trusted.overlay.metacopy", "user.overlay.overlay.opaque", "user.containers.override_stat", "security.selinux",
    "user.fuseoverlayfs.opaque", "security.fuseoverlayfs.override_stat", "trusted.overlay.overlay.opaque", "system.other",
])
@pytest.mark.parametrize("entry", [file, directory])
def test_attributes_that_a_mount_would_interpret_are_never_taken(tree, name, entry):
    tree.unpack(pax((b"SCHILY.xattr." + name.encode(), b"y"), (b"SCHILY.xattr.user.ok", b"1")) + entry(b"x"))
    assert os.listxattr(tree.diff / "x") == ["user.ok"]
    assert list(tree.sound().manifest()[b"x"].xattrs) == [b"user.ok"]
    assert tree.result.unset == 0


ACL = bytes.fromhex("02000000 01000600ffffffff 02000600e8030000 04000000ffffffff 10000600ffffffff 20000000ffffffff")   # acl(5)


@pytest.mark.parametrize("name", ["trusted.x", "system.posix_acl_access", "system.posix_acl_default"])
@pytest.mark.parametrize("entry", [file, directory])
def test_attributes_that_no_tree_of_ours_has_are_counted_and_kept_in_the_manifest(tree, name, entry):
    tree.unpack(pax((b"SCHILY.xattr." + name.encode(), ACL), (b"SCHILY.xattr.user.ok", b"1")) + entry(b"x"))
    assert name not in os.listxattr(tree.diff / "x")
    found = tree.sound().manifest()[b"x"]
    assert found.xattrs == {name.encode(): ACL, b"user.ok": b"1"}
    assert found.unset & XATTR
    assert tree.result.unset == 1 or os.geteuid() != 0


# -- later entries


@pytest.mark.parametrize("first", [
    file(b"x", b"old"), symlink(b"x", b"/etc"), directory(b"x") + file(b"x/deep/f"), header(b"x", b"6"),
    header(b".wh.x"),
], ids=["file", "symlink", "dir", "fifo", "whiteout"])
@pytest.mark.parametrize("second, kind", [
    (file(b"x", b"new"), stat.S_IFREG), (symlink(b"x", b"t"), stat.S_IFLNK), (header(b"x", b"6"), stat.S_IFIFO),
    (directory(b"x", mode=0o711), stat.S_IFDIR), (hardlink(b"x", b"other"), stat.S_IFREG),
], ids=["file", "symlink", "fifo", "dir", "hardlink"])
def test_a_later_entry_replaces_an_earlier_one(tree, first, second, kind):
    tree.unpack(file(b"other", b"other") + first + second)
    assert stat.S_IFMT(tree.stat("x").st_mode) == kind
    if not (kind == stat.S_IFDIR and b"deep" in first):
        assert tree.names() == ["other", "x"]
    tree.sound()


def test_a_directory_on_a_directory_merges(tree):
    tree.unpack(directory(b"d", mode=0o700) + file(b"d/f") + pax((b"SCHILY.xattr.user.b", b"2")) + directory(b"d", mode=0o711))
    assert tree.names() == ["d", "d/f"]
    assert stat.S_IMODE(tree.stat("d").st_mode) == 0o711
    tree.sound()


def test_attributes_of_a_directorys_earlier_entry_do_not_stay(tree):
    tree.unpack(pax((b"SCHILY.xattr.user.a", b"1")) + directory(b"d") + pax((b"SCHILY.xattr.user.b", b"2")) + directory(b"d"))
    assert os.listxattr(tree.diff / "d") == ["user.b"]
    tree.sound()


def test_what_was_beneath_a_replaced_directory_is_gone_from_the_manifest_too(tree):
    tree.unpack(directory(b"d") + file(b"d/a/f") + file(b"d/g") + file(b"d", b"now") + file(b"e"))
    assert sorted(tree.sound().manifest()) == [b"", b"d", b"e"]


def test_a_link_keeps_the_content_that_its_target_had(tree):
    tree.unpack(file(b"a", b"one") + hardlink(b"b", b"a") + hardlink(b"c", b"b") + file(b"a", b"two"))
    assert [(tree.diff / n).read_bytes() for n in "abc"] == [b"two", b"one", b"one"]
    found = tree.sound().manifest()
    assert (found[b"b"].type, found[b"c"].linkname) == ("file", b"b")


def test_a_replaced_directory_is_not_written_to_through_a_kept_descriptor(tree):
    tree.unpack(file(b"d/a") + file(b"d/b") + symlink(b"d", b"e") + directory(b"e") + file(b"d/c"))
    assert tree.names() == ["d", "e", "e/c"]
    tree.sound()


# -- paths that try to leave


ESCAPES = {
    "an absolute link as parent": symlink(b"a", b"/") + file(b"a/OUT/new", b"1"),
    "a climbing link as parent": symlink(b"a", b"../../outside") + file(b"a/new", b"1"),
    "a deep climbing link": directory(b"d") + symlink(b"d/a", b"../../../outside") + file(b"d/a/secret", b"1"),
    "a link of links": symlink(b"a", b"b") + symlink(b"b", b"../../outside") + file(b"a/secret", b"1"),
    "a link in the middle": symlink(b"a", b"..") + directory(b"a/../../outside/x") ,
    "a hard link through a link": symlink(b"a", b"../../outside") + hardlink(b"h", b"a/secret"),
    "a whiteout through a link": symlink(b"a", b"../../outside") + header(b"a/.wh.secret"),
    "an opaque mark through a link": symlink(b"a", b"../../outside") + header(b"a/.wh..wh..opq"),
    "a directory through a link": symlink(b"a", b"../../outside") + directory(b"a/new"),
    "a device through a link": symlink(b"a", b"../../outside") + header(b"a/new", b"6"),
}


@pytest.mark.parametrize("data", ESCAPES.values(), ids=ESCAPES)
def test_no_path_leaves_the_tree(tree, outside, data):
    with pytest.raises(ArchiveError):
        tree.unpack(data.replace(b"OUT", b"out"))


def test_a_link_to_the_root_is_the_trees_root(tree):
    tree.unpack(symlink(b"a", b"/") + directory(b"etc") + file(b"a/etc/x", b"1"))
    assert tree.names() == ["a", "etc", "etc/x"]
    assert b"etc/x" in tree.sound().manifest()


def test_a_link_above_the_root_is_the_trees_root(tree):
    tree.unpack(directory(b"d") + symlink(b"d/a", b"../../../..") + file(b"d/a/x", b"1"))
    assert tree.names() == ["d", "d/a", "x"]
    tree.sound()


def test_a_parent_may_be_a_link_of_the_same_layer(tree):
    tree.unpack(directory(b"usr/lib") + symlink(b"lib", b"usr/lib") + file(b"lib/x", b"1") + hardlink(b"y", b"lib/x"))
    assert tree.names() == ["lib", "usr", "usr/lib", "usr/lib/x", "y"]
    found = tree.sound().manifest()
    assert (b"usr/lib/x" in found, b"lib/x" in found, found[b"y"].linkname) == (True, False, b"usr/lib/x")


def test_a_link_whose_target_is_not_in_the_layer_is_no_parent(tree):
    refused(tree, symlink(b"lib", b"usr/lib") + file(b"lib/x"), "not in this layer")


@pytest.mark.parametrize("beneath", [
    file(b"l/x"), directory(b"l/x"), header(b"l/.wh.x"), hardlink(b"h", b"l/x"), file(b"l/further/x"),
], ids=["file", "directory", "whiteout", "hard link", "implied directory"])
@pytest.mark.parametrize("target", [b"n" * 256, b"/d/../" + b"n" * 256 + b"/..", b"n" * 4095])
def test_a_link_whose_target_has_a_component_that_no_file_can_have_is_no_parent(tree, target, beneath):
    link = symlink(b"l", target) if len(target) <= 100 else pax((b"linkpath", target)) + symlink(b"l", b"")
    refused(tree, directory(b"d") + link + beneath, "longer than 255 bytes")


def test_a_link_whose_target_no_file_can_have_is_kept_as_it_is(tree):
    tree.unpack(pax((b"linkpath", b"n" * 256)) + symlink(b"l", b""))
    assert os.readlink(tree.diff / "l") == "n" * 256


def test_links_that_go_round_are_refused(tree):
    refused(tree, symlink(b"a", b"b") + symlink(b"b", b"a") + file(b"a/x"), "too many symbolic links")


def test_links_cannot_be_stacked_into_a_tree_too_deep_to_remove(tree):
    deep = b"/".join([b"d"] * 40)
    data = directory(deep) + symlink(b"s0", deep)
    for n in range(10):
        data += directory(b"s%d/" % n + deep) + symlink(b"s%d" % (n + 1), b"s%d/" % n + deep)
    refused(tree, data, "max_depth", LimitExceededError, limits=Limits(max_depth=100))


def long_by_links():
    """A name of few bytes whose way, through a link of the layer, is longer than a path may be."""
    deep = b"/".join([b"n" * 255] * 15)
    return (pax((b"path", deep)) + directory(b"d") + pax((b"linkpath", deep)) + symlink(b"l", b"d")
            + pax((b"path", b"l/" + deep + b"/f")) + file(b"f", b"far"))


@pytest.mark.parametrize("last", [file, directory])
@pytest.mark.parametrize("longest, accepted", [(21, False), (22, True)])
def test_a_path_by_way_of_links_is_no_longer_than_any_path(tree, last, longest, accepted):
    data = directory(b"d" * 10) + symlink(b"l", b"d" * 10) + directory(b"l/" + b"e" * 9) + last(b"l/" + b"e" * 9 + b"/f")
    if accepted:
        tree.unpack(data, limits=Limits(max_path_length=longest))
    else:
        error = refused(tree, data, "max_path_length", LimitExceededError, limits=Limits(max_path_length=longest))
        assert "by way of symbolic links" in str(error)


def test_links_cannot_lead_where_no_path_can(tree):
    refused(tree, long_by_links(), "max_path_length", LimitExceededError)


def test_what_lies_deeper_than_a_path_can_name_is_described_and_looked_at_all_the_same(tree):
    tree.unpack(long_by_links(), limits=Limits(max_path_length=10_000))
    tree.sound()


def test_a_file_replaces_a_link_and_is_not_written_through_it(tree, outside):
    tree.unpack(symlink(b"a", b"../../outside/secret") + file(b"a", b"new"))
    assert (tree.diff / "a").read_bytes() == b"new"


def test_a_directory_replaces_a_link_to_a_directory(tree, outside):
    tree.unpack(symlink(b"a", b"../../outside") + directory(b"a", mode=0o700) + file(b"a/f"))
    assert tree.names() == ["a", "a/f"]


@pytest.mark.parametrize("data, match", [
    (file(b"a") + file(b"a/b"), "not a directory"),
    (hardlink(b"h", b"missing"), "not in this layer before it"),
    (hardlink(b"h", b"no/such"), "not in this layer"),
    (hardlink(b"h", b"h"), "not in this layer before it"),
    (directory(b"d") + hardlink(b"h", b"d"), "a directory"),
    (file(b"d/f") + hardlink(b"d", b"d/f"), "would replace"),
    (header(b".wh.x") + hardlink(b"h", b"x"), "a whiteout"),
    (header(b".wh.x") + hardlink(b"h", b".wh.x"), "not in this layer"),
    (header(b"c", b"3"), "device 0:0"),
    (header(b".wh."), "whiteout of nothing"),
    (header(b".wh..."), "whiteout of nothing"),
    (file(b".wh.x/y"), "beneath"),
    (header(b".", b"6"), "root is a fifo"),
    (symlink(b".", b"x"), "root is a symlink"),
])
def test_what_cannot_be_meant_is_refused(tree, data, match):
    refused(tree, data, match)


# -- whiteouts


def test_a_whiteout_is_a_device_0_0(tree):
    tree.unpack(file(b"d/.wh.gone"))
    assert tree.is_whiteout("d/gone")
    assert tree.names() == ["d", "d/gone"]
    assert tree.sound().manifest()[b"d/gone"].type == "whiteout"


def test_an_opaque_mark_is_an_attribute_of_its_directory(tree):
    tree.unpack(file(b"d/.wh..wh..opq") + directory(b"d", mode=0o711) + file(b"e/f"))
    assert (tree.is_opaque("d"), tree.is_opaque("e")) == (True, False)
    assert (tree.manifest()[b"d"].opaque, tree.manifest()[b"d"].mode) == (True, 0o711)
    assert tree.names() == ["d", "e", "e/f"]
    tree.sound()


@pytest.mark.parametrize("form", ["user", pytest.param("trusted", marks=[ROOT, pytest.mark.root])])
def test_the_opaque_attribute_has_the_stores_form(tree, form):
    tree.unpack(file(b"d/.wh..wh..opq"), form=form)
    assert os.listxattr(tree.diff / "d") == [f"{form}.overlay.opaque"]


def test_a_whiteout_hides_only_lower_layers(tree):
    tree.unpack(file(b"f", b"mine") + file(b".wh.f") + file(b".wh.g") + file(b"g", b"mine"))
    assert [(tree.diff / n).read_bytes() for n in "fg"] == [b"mine", b"mine"]
    tree.sound()


@pytest.mark.parametrize("data", [
    directory(b"d") + file(b"d/f") + file(b".wh.d"), file(b".wh.d") + directory(b"d") + file(b"d/f"),
    file(b".wh.d") + file(b"d/f"),
], ids=["after", "before", "implied"])
def test_a_directory_that_is_whited_out_in_its_own_layer_is_opaque(tree, data):
    tree.unpack(data)
    assert tree.is_opaque("d")
    assert tree.names() == ["d", "d/f"]
    tree.sound()


def test_aufs_bookkeeping_is_skipped(tree):
    tree.unpack(directory(b".wh..wh.plnk") + file(b".wh..wh.plnk/1.2", b"x") + file(b".wh..wh.aufs") + file(b"a"))
    assert tree.names() == ["a"]


# -- limits, cancelling, faults


def test_parents_that_are_only_implied_count_as_entries(tree):
    error = refused(tree, file(b"a/b/c/d") + file(b"e/f/g/h"), "max_entries", LimitExceededError,
                    limits=Limits(max_entries=5))
    assert error.limit == "max_entries"


def test_a_cancelled_unpacking_stops(tree):
    cancelled = threading.Event()

    def progress():
        yield file(b"a")
        cancelled.set()
        yield file(b"b") + END

    with pytest.raises(LayerstoreError, match="cancelled"):
        unpack(progress(), DiffTarget(*tree.fds, overlay_form=FORM, cancelled=cancelled))


def test_every_entry_passes_its_fault_point(tree):
    passed = []
    previous = faults.install(lambda name, when: passed.append((name, when)))
    try:
        tree.unpack(file(b"a") + file(b"b"))
    finally:
        faults.install(previous)
    assert passed == [("unpack.entry", "before"), ("unpack.entry", "after")] * 2


def test_no_descriptor_is_left_open_after_an_error(tree):
    before = set(os.listdir("/proc/self/fd"))
    refused(tree, b"".join(file(b"d%d/f" % n, b"x") for n in range(200)) + file(b"../x"), r"\.\.")
    assert set(os.listdir("/proc/self/fd")) == before


def test_descriptors_stay_few_however_many_directories_there_are(tree):
    most = 0

    def hook(_name, _when):
        nonlocal most
        most = max(most, len(os.listdir("/proc/self/fd")))

    before = len(os.listdir("/proc/self/fd"))
    previous = faults.install(hook)
    try:
        tree.unpack(b"".join(file(b"d%d/f" % n) for n in range(300)) + pax((b"path", b"/".join([b"x"] * 250))) + file(b"x"))
    finally:
        faults.install(previous)
    assert most - before <= 170   # what is cached, and what files being made keep open
    tree.sound()


# -- an ordinary user


def as_nobody(work):
    """Run *work* in a child as uid 65534; its exception, as text, fails the test."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(read_end)
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            work()
            code = 0
        except BaseException:
            os.write(write_end, traceback.format_exc()[-8000:].encode())
        finally:
            os._exit(code)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        text = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0, text


@pytest.fixture
def nobodys(tmp_path_factory):
    import shutil
    import tempfile

    path = tempfile.mkdtemp(dir="/var/tmp")
    os.chown(path, 65534, 65534)
    import pathlib

    yield pathlib.Path(path)
    shutil.rmtree(path)


@pytest.mark.root
@ROOT
def test_an_ordinary_user_gets_what_is_allowed_and_the_manifest_keeps_the_rest(nobodys):
    def work():
        tree = Tree(nobodys / "layer")
        cap = bytes.fromhex("0100000200200000000000000000000000000000")
        tree.unpack(
            directory(b"d", uid=65534, gid=65534) + file(b"d/mine", b"1", uid=65534, gid=65534, mode=0o4711)
            + file(b"roots", b"2") + pax((b"SCHILY.xattr.security.capability", cap), (b"SCHILY.xattr.user.a", b"1"))
            + file(b"ping", b"3") + header(b"null", b"3", major=1, minor=3, mode=0o666) + hardlink(b"null2", b"null")
            + file(b".wh.gone") + header(b"p", b"6", uid=65534, gid=65534), form="user",
        )
        assert tree.is_whiteout("gone")
        assert stat.S_IMODE(tree.stat("d/mine").st_mode) == 0o4711
        assert tree.names() == ["d", "d/mine", "gone", "null", "null2", "p", "ping", "roots"]
        assert os.getxattr(tree.diff / "ping", "user.a") == b"1"
        found = tree.sound().manifest()
        assert (found[b"roots"].uid, found[b"null"].devminor, found[b"ping"].xattrs[b"security.capability"]) == (0, 3, cap)
        # the root's own directory, roots, ping (owner and capability), null (the device, and its owner)
        assert tree.result.unset == 6

    as_nobody(work)


@pytest.mark.root
@ROOT
def test_an_ordinary_user_can_read_what_it_unpacks_whatever_its_mode(nobodys):
    def work():
        tree = Tree(nobodys / "layer")
        mine = {"uid": 65534, "gid": 65534}
        tree.unpack(
            directory(b"./", mode=0o500, **mine) + directory(b"d", mode=0, **mine) + directory(b"d/e", mode=0o000, **mine)
            + file(b"d/e/f", b"x", mode=0, **mine) + hardlink(b"g", b"d/e/f"), form="user",
        )
        assert tree.result.unset == 3    # the modes of d, d/e, f; ./ can be read as it is
        assert [stat.S_IMODE(tree.stat(n).st_mode) for n in (".", "d", "d/e", "d/e/f", "g")] == [0o500] * 3 + [0o400] * 2
        assert {tree.sound().manifest()[n].mode for n in (b"d", b"d/e", b"d/e/f")} == {0}

    as_nobody(work)


@pytest.mark.root
@ROOT
def test_a_device_that_could_not_be_made_can_be_replaced(nobodys):
    def work():
        tree = Tree(nobodys / "layer")
        null = header(b"x", b"3", major=1, minor=3)
        tree.unpack(null + file(b"x", b"1") + null + null + directory(b"y") + header(b"y/z", b"3", major=1, minor=3)
                    + file(b"y", b"2"), form="user")
        assert tree.names() == ["x", "y"]
        assert tree.stat("x").st_size == 0
        found = tree.sound().manifest()
        assert sorted(found) == [b"", b"x", b"y"]
        assert found[b"x"].type == "char"

    as_nobody(work)


# -- against other implementations

parts = st.sampled_from(["a", "b", "c", "dd", "ünï", "x" * 60])
paths = st.lists(parts, min_size=1, max_size=3).map("/".join)
members = st.lists(
    st.tuples(paths, st.sampled_from(["file", "file", "dir", "symlink", "hardlink", "fifo"]), st.integers(0, 3),
              st.sampled_from([0o644, 0o4755, 0o000, 0o1777]), st.integers(0, 10**9)), min_size=1, max_size=12)


def snapshot(root):
    """Everything of a tree that tar can carry; inode groups as the first path of each."""
    found, groups = {}, {}
    for base, dirs, files in os.walk(root):
        dirs.sort()
        for name in sorted(dirs + files):
            path = os.path.join(base, name)
            s = os.lstat(path)
            rel = os.path.relpath(path, root)
            content = None
            if stat.S_ISREG(s.st_mode):
                with open(path, "rb") as f:
                    content = f.read()
            elif stat.S_ISLNK(s.st_mode):
                content = os.readlink(path)
            group = groups.setdefault(s.st_ino, rel) if not stat.S_ISDIR(s.st_mode) else rel
            found[rel] = (s.st_mode, s.st_uid, s.st_gid, s.st_mtime_ns, content, group)
    return found


@pytest.mark.root
@ROOT
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(members)
def test_the_tree_is_what_gnu_tar_makes_of_it(tmp_path_factory, members):
    out = io.BytesIO()
    kinds = {}
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, kind, n, mode, mtime in members:
            pieces = path.split("/")
            above = ["/".join(pieces[:i]) for i in range(1, len(pieces))]
            if any(kinds.get(p, "dir") != "dir" for p in above) or (path in kinds and "dir" in (kind, kinds[path])):
                continue   # GNU tar would follow, or not replace
            info = tarfile.TarInfo(path)
            info.mode, info.mtime, info.uid = mode, mtime + n / 4, n
            info.gid = n
            if kind == "hardlink":
                targets = sorted(p for p, k in kinds.items() if k == "file" and p != path)
                if not targets:
                    continue
                info.type, info.linkname = tarfile.LNKTYPE, targets[n % len(targets)]
            elif kind == "symlink":
                info.type, info.linkname = tarfile.SYMTYPE, "t" * (n + 1)
            elif kind == "file":
                info.size = n * 300
            else:
                info.type = {"dir": tarfile.DIRTYPE, "fifo": tarfile.FIFOTYPE}[kind]
            for p in above:
                if p not in kinds:   # what tar does with a missing parent depends on its umask and clock
                    parent = tarfile.TarInfo(p)
                    parent.type, parent.mode = tarfile.DIRTYPE, 0o755
                    tar.addfile(parent)
                    kinds[p] = "dir"
            tar.addfile(info, io.BytesIO(b"z" * info.size))
            kinds[path] = "file" if kind == "hardlink" else kind
    base = tmp_path_factory.mktemp("gnu")
    theirs = base / "theirs"
    theirs.mkdir()
    subprocess.run(["tar", "-C", theirs, "-xpf", "-", "--numeric-owner"], input=out.getvalue(), check=True)
    tree = Tree(base / "ours")
    try:
        tree.unpack(out.getvalue(), end=False)
        ours, expected = snapshot(tree.diff), snapshot(theirs)
        for found in (ours, expected):   # GNU tar sets a directory's time before the last of what it makes in it
            found.update({p: (*v[:3], *v[4:]) for p, v in found.items() if stat.S_ISDIR(v[0])})
        assert ours == expected
        tree.sound()
    finally:
        tree.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.E2BIG, errno.ERANGE])
def test_an_attribute_that_is_too_large_for_the_file_system_is_kept_in_the_manifest(number, tree, monkeypatch):
    """ext4 has 4 kB for all attributes of a file, and says ENOSPC beyond."""
    def refuse(*_arguments, **_options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "setxattr", refuse)
    tree.unpack(pax((b"SCHILY.xattr.user.a", b"x" * 20_000)) + file(b"a"))
    monkeypatch.undo()
    assert tree.manifest()[b"a"].xattrs == {b"user.a": b"x" * 20_000}
    assert tree.manifest()[b"a"].unset & XATTR
    tree.sound()


def test_a_disk_that_is_full_is_not_taken_for_an_attribute_that_is_too_large(tree, monkeypatch):
    def refuse(*_arguments, **_options):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "setxattr", refuse)
    monkeypatch.setattr(os, "fstatvfs", lambda _fd: types.SimpleNamespace(f_bavail=3, f_frsize=4096))
    with pytest.raises(OSError, match="user.a"):
        tree.unpack(pax((b"SCHILY.xattr.user.a", b"x")) + file(b"a"))


def test_of_a_directory_little_is_remembered(tmp_path):
    """What is said of many is said once, and nothing is made for what few of them have."""
    tree, count, held = Tree(tmp_path / "layer"), 800, []

    def archive():
        for part in range(3):            # the first fills what is bounded
            yield b"".join(directory(b"d%d/%d" % (part, n), mtime=1 << 30) for n in range(count))
            held.append(tracemalloc.get_traced_memory()[0])
        yield END

    tracemalloc.start()
    try:
        unpack(archive(), DiffTarget(*tree.fds, overlay_form=FORM))
    finally:
        tracemalloc.stop()
        tree.close()
    assert (held[2] - held[1]) / count < 250
