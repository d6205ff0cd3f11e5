"""Extraction: a chain of layer trees becomes the tree that laying them over each other gives."""

import errno
import os
import random
import resource
import socket
import stat
import subprocess
import traceback

import pytest
from reference_extract import apply_trees
from treediff import assert_same, snapshot

from layerstore.system import faults, kernel
from layerstore.trees import merge
from layerstore.errors import InvalidArgumentError, IoError, LayerstoreError, PrivilegeError
from layerstore.trees.extract import ExtractReport, extract_chain

IS_ROOT = os.geteuid() == 0
FORM = "trusted" if IS_ROOT else "user"
needs_root = [pytest.mark.root, pytest.mark.skipif(not IS_ROOT, reason="needs root: owners and device nodes")]
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service=ep
NS = 1_234_567_891_234_567_891


def needing_root(test):
    for mark in needs_root:
        test = mark(test)
    return test


class Tree:
    """A layer's tree in overlay on-disk form, made by hand."""

    def __init__(self, path, form=FORM):
        self.path, self.form = path, form
        path.mkdir(parents=True)

    def __fspath__(self):
        return str(self.path)

    def file(self, name, data=b"", mode=0o644, mtime=NS):
        path = self._place(name)
        path.write_bytes(data)
        path.chmod(mode)
        os.utime(path, ns=(mtime, mtime))
        return self

    def dir(self, name, mode=0o755, opaque=False):
        path = self._place(name)
        path.mkdir(exist_ok=True)
        path.chmod(mode)
        if opaque:
            os.setxattr(path, f"{self.form}.overlay.opaque", b"y")
        return self

    def symlink(self, name, target):
        os.symlink(target, self._place(name))
        return self

    def link(self, name, target):
        os.link(self.path / target, self._place(name), follow_symlinks=False)
        return self

    def whiteout(self, name):
        os.mknod(self._place(name), stat.S_IFCHR, 0)
        return self

    def node(self, name, kind, device=0):
        os.mknod(self._place(name), kind | 0o640, device)
        return self

    def _place(self, name):
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        return self.path / name


@pytest.fixture
def layers(tmp_path):
    """Call it for one more layer, on top; ``layers.all`` are those so far, base first."""
    def more():
        more.all.append(Tree(tmp_path / f"layer{len(more.all)}"))
        return more.all[-1]

    more.all = []
    return more


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def run(layers, out, **more):
    return extract_chain([os.fspath(each) for each in layers.all], os.fspath(out), **more)


def names(out):
    return sorted(os.path.relpath(os.path.join(d, n), out) for d, ds, fs in os.walk(out) for n in ds + fs)


# -- what hides and what replaces ----------------------------------------------------------------------------


def test_a_whiteout_hides_a_lower_file_and_a_lower_directory_with_all_in_it(layers, out):
    layers().file("file").file("dir/inside").file("kept")
    layers().whiteout("file").whiteout("dir")
    run(layers, out)
    assert names(out) == ["kept"]


def test_a_whiteout_of_nothing_leaves_nothing(layers, out):
    layers().whiteout("never").file("dir/kept").whiteout("dir/never")
    run(layers, out)
    assert names(out) == ["dir", "dir/kept"]


def test_what_comes_back_above_a_whiteout_has_nothing_of_what_was_below_it(layers, out):
    layers().file("dir/old")
    layers().whiteout("dir")
    layers().file("dir/new")
    run(layers, out)
    assert names(out) == ["dir", "dir/new"]


def test_an_opaque_directory_hides_what_all_lower_layers_have_in_it(layers, out):
    layers().file("dir/base")
    layers().file("dir/middle")
    layers().dir("dir", opaque=True).file("dir/own")
    layers().file("dir/top")
    run(layers, out)
    assert names(out) == ["dir", "dir/own", "dir/top"]


def test_an_opaque_root_hides_all_lower_layers(layers, out):
    layers().file("old")
    layers().dir(".", opaque=True).file("new")
    run(layers, out)
    assert names(out) == ["new"]


def test_with_a_form_named_the_other_forms_attribute_means_nothing(layers, out):
    layers().file("dir/old")
    upper = layers()
    upper.form = "user"
    upper.dir("dir", opaque=True)
    run(layers, out, overlay_form="user")
    assert names(out) == ["dir"]
    if IS_ROOT:
        run(layers, out.with_name("other"), overlay_form="trusted")
        assert names(out.with_name("other")) == ["dir", "dir/old"]


def test_a_file_replaces_a_directory(layers, out):
    layers().file("x/inside")
    layers().file("x", b"file")
    run(layers, out)
    assert names(out) == ["x"]
    assert (out / "x").read_bytes() == b"file"


def test_a_directory_replaces_a_file(layers, out):
    layers().file("x", b"file")
    layers().file("x/inside")
    run(layers, out)
    assert names(out) == ["x", "x/inside"]


def test_a_file_between_two_directories_hides_the_lower_one_for_good(layers, out):
    layers().file("x/lowest")
    layers().file("x", b"file")
    layers().file("x/highest")
    run(layers, out)
    assert names(out) == ["x", "x/highest"]


@pytest.mark.parametrize("target", ["outside", "{outside}", "other"])
def test_a_directory_replaces_a_symbolic_link_and_never_follows_it(layers, out, tmp_path, target):
    (tmp_path / "outside").mkdir()
    layers().symlink("lib", target.format(outside=tmp_path / "outside")).file("other/kept")
    layers().file("lib/new")
    run(layers, out)
    assert names(out) == ["lib", "lib/new", "other", "other/kept"]
    assert not os.path.islink(out / "lib")
    assert os.listdir(tmp_path / "outside") == []


def test_a_symbolic_link_replaces_a_directory_and_is_copied_as_it_is(layers, out):
    layers().file("lib/old")
    layers().symlink("lib", "/etc")
    run(layers, out)
    assert names(out) == ["lib"]
    assert os.readlink(out / "lib") == "/etc"


def test_directories_merge_and_the_upper_ones_attributes_win(layers, out):
    layers().file("dir/low").dir("dir", mode=0o700)
    layers().file("dir/high").dir("dir", mode=0o711)
    os.utime(layers.all[1].path / "dir", ns=(NS, NS))
    run(layers, out)
    assert names(out) == ["dir", "dir/high", "dir/low"]
    assert stat.S_IMODE(os.stat(out / "dir").st_mode) == 0o711
    assert os.stat(out / "dir").st_mtime_ns == NS


# -- hard links ----------------------------------------------------------------------------------------------


def test_files_that_are_one_stay_one_across_directories(layers, out):
    layers().file("a/one", b"x").link("b/two", "a/one").link("three", "a/one")
    report = run(layers, out)
    assert len({os.stat(out / n).st_ino for n in ("a/one", "b/two", "three")}) == 1
    assert report.bytes == 1, "a file of many names is copied once"


def test_of_links_that_an_upper_layer_replaces_in_part_the_rest_stay_one(layers, out):
    layers().file("a", b"low").link("b", "a").link("c", "a")
    layers().file("a", b"high")
    run(layers, out)
    assert (out / "a").read_bytes() == b"high"
    assert (out / "a").stat().st_nlink == 1
    assert (out / "b").read_bytes() == b"low"
    assert os.path.samefile(out / "b", out / "c")


def test_files_shared_between_layers_become_two_files(layers, out):
    lower, upper = layers().file("a", b"x"), layers()
    os.link(lower.path / "a", upper.path / "b")
    run(layers, out)
    assert not os.path.samefile(out / "a", out / "b")


def test_symbolic_links_and_fifos_can_be_hard_linked_too(layers, out):
    layers().symlink("s", "nowhere").link("s2", "s").node("f", stat.S_IFIFO).link("f2", "f")
    run(layers, out)
    for one, two in (("s", "s2"), ("f", "f2")):
        assert os.lstat(out / one).st_ino == os.lstat(out / two).st_ino


def test_links_into_a_directory_that_nobody_may_enter_are_made(layers, out):
    layers().file("a/one").link("b/two", "a/one").dir("a", mode=0o000).dir("b", mode=0o555)
    if not IS_ROOT:
        pytest.skip("the ordinary user's own test makes such trees")
    run(layers, out)
    assert (out / "b/two").stat().st_nlink == 2


# -- content -------------------------------------------------------------------------------------------------


def sparse(path, size, *segments):
    with open(path, "wb") as file:
        file.truncate(size)
        for at, data in segments:
            file.seek(at)
            file.write(data)


@pytest.mark.parametrize("by_kernel", [True, False])
@pytest.mark.parametrize("segments", [
    [], [(0, b"start")], [(1 << 20, b"middle")], [((4 << 20) - 3, b"end")],
    [(0, b"a" * 9000), (2 << 20, b"b" * 5)],
], ids=["all hole", "start", "middle", "end", "two"])
def test_holes_stay_holes(layers, out, monkeypatch, segments, by_kernel):
    if not by_kernel:
        monkeypatch.setattr(os, "copy_file_range", refuse)
    source = layers().path / "sparse"
    sparse(source, 4 << 20, *segments)
    run(layers, out)
    assert (out / "sparse").read_bytes() == source.read_bytes()
    assert os.stat(out / "sparse").st_blocks <= os.stat(source).st_blocks


def refuse(*_args):
    raise OSError(errno.EXDEV, "refused by a test")


@pytest.mark.parametrize("by_kernel", [True, False])
def test_content_is_copied_in_pieces_and_progress_adds_up(layers, out, monkeypatch, by_kernel):
    if not by_kernel:
        monkeypatch.setattr(os, "copy_file_range", refuse)
    monkeypatch.setattr(merge, "_CHUNK", 1000)
    data = random.Random(1).randbytes(10_001)
    layers().file("f", data).file("empty")
    told = []
    report = run(layers, out, progress=told.append)
    assert (out / "f").read_bytes() == data
    assert sum(told) == report.bytes == len(data)
    assert len(told) == 11


def test_a_kernel_that_copies_nothing_is_not_believed(layers, out, monkeypatch):
    monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    layers().file("f", b"content")
    run(layers, out)
    assert (out / "f").read_bytes() == b"content"


def test_a_file_that_ends_too_early_is_an_error_and_not_a_short_copy(layers, out, monkeypatch):
    layers().file("f", b"content")
    monkeypatch.setattr(os, "copy_file_range", refuse)
    monkeypatch.setattr(os, "pread", lambda *_: b"")
    with pytest.raises(IoError, match="'f' became shorter"):
        run(layers, out)


# -- attributes ----------------------------------------------------------------------------------------------


def test_times_are_kept_to_the_nanosecond_directories_too(layers, out):
    tree = layers().file("d/e/f").symlink("d/s", "f").node("d/p", stat.S_IFIFO)
    for name in ("d/e/f", "d/s", "d/p", "d/e", "d", "."):
        os.utime(tree.path / name, ns=(NS, NS + len(name)), follow_symlinks=False)
    run(layers, out)
    for name in ("d/e/f", "d/s", "d/p", "d/e", "d", "."):
        assert os.lstat(out / name).st_mtime_ns == NS + len(name), name


def test_modes_are_kept_with_all_their_bits_whatever_the_umask(layers, out):
    layers().file("f", mode=0o4711).dir("d", mode=0o3777).node("p", stat.S_IFIFO).dir(".", mode=0o751)
    before = os.umask(0o077)
    try:
        run(layers, out)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(os.stat(out / n).st_mode) for n in ("f", "d", "p", ".")]
    assert modes == [0o4711, 0o3777, 0o640, 0o751]


def test_attributes_of_the_user_are_copied_and_overlays_own_are_not(layers, out):
    tree = layers().file("f").dir("d", opaque=True)
    for name in ("f", "d"):
        os.setxattr(tree.path / name, "user.mine", b"value\0")
        os.setxattr(tree.path / name, "user.overlay.origin", b"")
    run(layers, out)
    assert [os.listxattr(out / n) for n in ("f", "d")] == [["user.mine"]] * 2
    assert os.getxattr(out / "f", "user.mine") == b"value\0"


@needing_root
def test_owners_devices_and_capabilities_are_kept_by_root(layers, out):
    tree = layers().file("f", mode=0o6755).symlink("s", "f").dir("d")
    tree.node("null", stat.S_IFCHR, os.makedev(1, 3)).node("disk", stat.S_IFBLK, os.makedev(7, 99))
    for n, name in enumerate(("f", "s", "null", "disk", "d", ".")):
        os.chown(tree.path / name, 1000 + n, 2000 + n, follow_symlinks=False)
    (tree.path / "f").chmod(0o6755)
    os.setxattr(tree.path / "f", "security.capability", CAPABILITY)
    report = run(layers, out)
    assert_same(tree.path, out)
    assert os.getxattr(out / "f", "security.capability") == CAPABILITY
    assert report == ExtractReport(entries=5, bytes=0, unset=0)


def test_sockets_are_kept_as_a_mount_shows_them(layers, out, monkeypatch):
    tree = layers()
    monkeypatch.chdir(tree.path)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("sock")
    run(layers, out)
    assert stat.S_ISSOCK(os.lstat(out / "sock").st_mode)


def test_names_are_bytes(layers, out):
    odd = [b"new\nline", b"\xff\xfe", b"sp ace", "ü".encode(), b"-rf", b"a\\b", b"x" * 255]
    tree = layers()
    for name in odd:
        with open(os.path.join(os.fsencode(tree), name), "wb"):
            pass
    run(layers, out)
    assert sorted(os.listdir(os.fsencode(out))) == sorted(odd)


# -- an ordinary user ----------------------------------------------------------------------------------------


def as_nobody(tmp_path, act):
    """Run *act* in a child that is an ordinary user; what it raises is raised here, as text."""
    if IS_ROOT:
        os.chmod(tmp_path, 0o777)
        for parent in tmp_path.parents:
            os.chmod(parent, os.stat(parent).st_mode | 0o011)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            if IS_ROOT:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
            act()
        except BaseException:
            os.write(writer, traceback.format_exc().encode()[-4000:])
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        problem = file.read().decode()
    os.waitpid(child, 0)
    assert not problem, problem


@needing_root
def test_what_a_user_cannot_set_is_counted_and_what_it_cannot_own_is_not_set_user_id(layers, out, tmp_path):
    tree = layers().file("f", b"x", mode=0o6755)
    tree.node("null", stat.S_IFCHR, os.makedev(1, 3)).link("null2", "null")
    os.setxattr(tree.path / "f", "security.capability", CAPABILITY)

    def act():
        report = run(layers, out)
        assert sorted(os.listdir(out)) == ["f"]
        assert stat.S_IMODE(os.stat(out / "f").st_mode) == 0o755
        assert os.stat(out / "f").st_uid == 65534
        # the owners of f and of the root, f's capability, the device and its second name
        assert report == ExtractReport(entries=1, bytes=1, unset=5)

    as_nobody(tmp_path, act)


def test_a_user_can_extract_into_directories_that_forbid_to_be_entered_or_written(tmp_path):
    def act():
        tree = Tree(tmp_path / "own", "user").file("a/one", b"1").link("b/two", "a/one").file("c/d/f")
        tree.file("b/three").dir("b", mode=0o555).dir("a", mode=0o555)
        tree.dir("c/d", mode=0o500).dir("c", mode=0o500)
        out = tmp_path / "out"
        extract_chain([os.fspath(tree)], str(out))
        assert_same(tree, out)

    as_nobody(tmp_path, act)


@needing_root
def test_a_users_directories_that_it_can_read_only_as_one_of_the_others_are_filled(layers, out, tmp_path):
    """In the result they are its own, and closed to it: their modes come last, and the deepest first."""
    tree = layers()
    for n in range(200):  # more than are kept open
        tree.file(f"a/b/{n}/f").link(f"a/c{n}", f"a/b/{n}/f").dir(f"a/b/{n}", mode=0o005)
    tree.dir("a/b", mode=0o005).dir("a", mode=0o005)
    as_nobody(tmp_path, lambda: run(layers, out))
    assert_same(tree, out, ignore=("uid", "gid"))


def test_a_file_that_may_not_be_read_is_an_error_that_names_it_and_the_way_out(tmp_path):
    def act():
        tree = Tree(tmp_path / "own", "user").file("etc/shadow", b"secret", mode=0)
        with pytest.raises(PrivilegeError, match="etc/shadow") as caught:
            extract_chain([os.fspath(tree)], str(tmp_path / "out"))
        assert "unshare --user" in caught.value.hint

    as_nobody(tmp_path, act)


def test_who_cannot_see_which_directories_are_opaque_is_refused(layers, out, tmp_path):
    layers().file("f")

    def act():
        with pytest.raises(PrivilegeError, match="deleted files would return"):
            run(layers, out, overlay_form="trusted")
        assert not out.exists()

    as_nobody(tmp_path, act)


# -- the destination -----------------------------------------------------------------------------------------


def test_an_absent_destination_is_made_and_an_empty_one_used(layers, out):
    layers().file("f")
    run(layers, out)
    os.unlink(out / "f")
    run(layers, out)
    assert names(out) == ["f"]


def test_an_existing_destination_is_refused_when_told_so(layers, out):
    layers().file("f")
    out.mkdir()
    with pytest.raises(InvalidArgumentError, match="exists already"):
        run(layers, out, into_existing_empty=False)
    assert names(out) == []


def test_a_destination_that_holds_something_is_refused_and_left_as_it_is(layers, out):
    layers().file("f")
    out.mkdir(mode=0o755)
    (out / "mine").write_text("mine")
    with pytest.raises(InvalidArgumentError, match="not empty"):
        run(layers, out)
    assert names(out) == ["mine"]
    assert stat.S_IMODE(out.stat().st_mode) == 0o755


@pytest.mark.parametrize("dest", ["file", "file/below", "absent/below", "layer0", "layer0/in/it", ""])
def test_a_destination_that_will_not_do_is_the_callers_fault(layers, tmp_path, dest):
    layers().file("in/f")
    (tmp_path / "file").write_text("")
    before = snapshot(tmp_path)
    with pytest.raises(InvalidArgumentError):
        run(layers, tmp_path / dest if dest else "")
    assert snapshot(tmp_path) == before


def test_no_layers_and_an_unknown_form_are_the_callers_fault(layers, out):
    with pytest.raises(InvalidArgumentError, match="no layer"):
        run(layers, out)
    layers()
    with pytest.raises(InvalidArgumentError, match="'aufs'"):
        run(layers, out, overlay_form="aufs")


def test_a_missing_layer_is_an_error_and_not_an_empty_one(layers, out):
    layers().file("f")
    layers().path.rmdir()
    with pytest.raises(LayerstoreError, match="No such file"):
        run(layers, out)


# -- failing half way ----------------------------------------------------------------------------------------


@pytest.fixture
def hook():
    """Install a fault hook, and take it away again."""
    yield faults.install
    faults.install(None)


@pytest.mark.parametrize("exists", [False, True])
def test_the_destination_is_closed_to_others_until_it_is_complete(layers, out, hook, exists):
    layers().dir(".", mode=0o755).file("f", mode=0o4755)
    if exists:
        out.mkdir()
        out.chmod(0o777)
    seen = []
    hook(lambda _point, _when: seen.append(stat.S_IMODE(out.stat().st_mode)))
    run(layers, out)
    assert seen == [0o700, 0o700]
    assert stat.S_IMODE(out.stat().st_mode) == 0o755


def test_every_entry_but_the_root_passes_the_fault_point(layers, out, hook):
    layers().file("d/f").link("d/g", "d/f").symlink("s", "x").file("gone")
    layers().whiteout("gone")
    passed = []
    hook(lambda point, when: passed.append((point, when)))
    report = run(layers, out)
    assert passed == [("extract.entry", "before"), ("extract.entry", "after")] * 4
    assert report.entries == 4


def test_an_error_half_way_is_typed_names_the_entry_and_leaves_what_was_copied_private(layers, out, hook):
    layers().file("a").file("b").dir(".", mode=0o755)

    def fail(_point, when):
        if when == "before" and (out / "a").exists():
            raise OSError(errno.EIO, "Input/output error")

    hook(fail)
    with pytest.raises(IoError, match="extracting 'b' to .*Input/output error"):
        run(layers, out)
    assert names(out) == ["a"]
    assert stat.S_IMODE(out.stat().st_mode) == 0o700


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), MemoryError()])
def test_no_descriptor_stays_open_whatever_is_raised(layers, out, hook, error):
    layers().file("a/b/c").link("d/e", "a/b/c")
    layers().file("a/b/d")
    before = os.listdir("/proc/self/fd")
    for nth in range(1, 7):
        count = iter(range(1, 100))

        def fail(_point, when):
            if when == "before" and next(count) == nth:
                raise error

        hook(fail)
        with pytest.raises((LayerstoreError, KeyboardInterrupt, MemoryError)):
            run(layers, out.with_name(f"out{nth}"))
        faults.install(None)
    assert os.listdir("/proc/self/fd") == before


# -- size ----------------------------------------------------------------------------------------------------


def test_many_layers_need_few_descriptors(layers, out):
    for n in range(300):
        layers().file(f"a/b/c/{n % 7}", b"%d" % n).file(f"only{n}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = max(map(int, os.listdir("/proc/self/fd"))) + 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(spare, hard), hard))
    try:
        run(layers, out)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(names(out)) == 300 + 7 + 3
    assert (out / "a/b/c/0").read_text() == "294"


def test_deep_trees_are_no_trouble(layers, out):
    depth = 1500
    for tree in (layers(), layers()):
        fd = os.open(tree.path, os.O_RDONLY)
        for _ in range(depth):
            os.mkdir("d", dir_fd=fd)
            inner = os.open("d", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = inner
        os.close(fd)
    try:
        assert run(layers, out).entries == depth
    finally:  # pytest's own clearing up recurses
        subprocess.run(["rm", "-rf", out, *layers.all], check=True)


# -- against GNU tar -----------------------------------------------------------------------------------------


class Grower:
    """Random layers over few names, so that they hide, replace, merge and link in every combination."""

    def __init__(self, seed, *, form=FORM, privileged=IS_ROOT, link_nodes=True):
        self.random = random.Random(seed)
        self.form, self.privileged, self.link_nodes = form, privileged, link_nodes

    def grow(self, base, count):
        return [self._layer(os.path.join(base, f"grown{n}")) for n in range(count)]

    def _layer(self, root):
        r = self.random
        os.mkdir(root)
        self.others, self.dirs = [], [root]
        for _ in range(r.randint(1, 25)):
            path = os.path.join(r.choice(self.dirs), r.choice("abcd"))
            if not os.path.lexists(path):
                self._entry(path)
        for path in self.others:
            self._dress(path)
        for path in sorted(self.dirs, reverse=True):
            if r.random() < (0.1 if path == root else 0.2):
                os.setxattr(path, f"{self.form}.overlay.opaque", b"y")
            self._dress(path)
        return root

    def _entry(self, path):
        r = self.random
        kinds = {
            "dir": 4, "file": 3, "whiteout": 3, "link": 2, "symlink": 1, "fifo": 1, "node": 1, "sparse": 1,
        }
        kind, = r.choices(list(kinds), list(kinds.values()))
        if kind == "dir":
            os.mkdir(path)
            self.dirs.append(path)
        elif kind == "whiteout":
            os.mknod(path, stat.S_IFCHR, 0)
        elif kind == "link" and (targets := [p for p in self.others if self.link_nodes or not is_node(p)]):
            os.link(r.choice(targets), path, follow_symlinks=False)
            self.others.append(path)
        else:
            if kind == "symlink":
                os.symlink(r.choice(["a", "b/c", "/etc", "../..", "nowhere"]), path)
            elif kind == "fifo":
                os.mkfifo(path)
            elif kind == "node" and self.privileged:
                os.mknod(path, r.choice([stat.S_IFCHR, stat.S_IFBLK]), os.makedev(1, r.randint(1, 9)))
            elif kind == "sparse":
                sparse(path, 1 << 20, (r.randrange(1 << 20), r.randbytes(100)))
            else:
                with open(path, "wb") as file:
                    file.write(r.randbytes(r.choice([0, 1, 5000])))
            self.others.append(path)

    def _dress(self, path):
        r = self.random
        mode = os.lstat(path).st_mode
        if self.privileged:
            os.chown(path, r.randint(0, 3), r.randint(0, 3), follow_symlinks=False)
        if not stat.S_ISLNK(mode):
            wild = [0o644, 0o755, 0o4755, 0o600, 0o1777, 0o000]
            os.chmod(path, r.choice(wild if self.privileged else [0o755, 0o700]))
        if (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) and r.random() < 0.3:
            os.setxattr(path, "user.x", r.randbytes(3))
        if stat.S_ISREG(mode) and self.privileged and r.random() < 0.2:
            os.setxattr(path, "security.capability", CAPABILITY)
        when = r.randrange(10**9, 2 * 10**18)
        os.utime(path, ns=(when, when), follow_symlinks=False)


def is_node(path):
    return not stat.S_ISREG(os.lstat(path).st_mode) and not stat.S_ISLNK(os.lstat(path).st_mode)


@needing_root
@pytest.mark.parametrize("seed", range(25))
def test_random_layers_give_what_gnu_tar_gives_in_order(tmp_path, seed):
    # GNU tar itself does not keep hard links of devices and fifos
    diffs = Grower(seed, link_nodes=False).grow(tmp_path, random.Random(seed).randint(1, 6))
    (tmp_path / "tar").mkdir()
    apply_trees(diffs, str(tmp_path / "tar"))
    before = snapshot(diffs[-1])
    report = extract_chain(diffs, str(tmp_path / "out"))
    assert_same(tmp_path / "tar", tmp_path / "out")
    assert report.unset == 0
    assert snapshot(diffs[-1]) == before, "a layer was changed"


def test_a_privilege_is_tried_out_and_not_guessed():
    assert kernel.has_trusted_xattrs() == (IS_ROOT and os.stat("/proc/self/ns/user").st_ino == 0xEFFFFFFD)
