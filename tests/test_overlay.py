"""Mounting with overlayfs: what is seen, what is refused, and that nothing stays mounted.

All mounts are made in a child with a mount namespace of its own.
"""

import errno
import functools
import os
import random
import stat
import sys
import traceback

import pytest
from test_extract import CAPABILITY, IS_ROOT, Grower, Tree, as_nobody, needing_root
from treediff import assert_same, snapshot

from layerstore.system import faults, kernel
from layerstore.errors import (
    BusyError, HostError, InvalidArgumentError, IoError, LayerstoreError, PrivilegeError, UnknownMountError,
)
from layerstore.trees.extract import extract_chain
from layerstore.trees.mounted import is_overlay_mounted, mounts_at, topmost
from layerstore.trees.overlay import mount_overlay, unmount

NEWNS, NEWUSER = 0x20000, 0x10000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000


def in_namespace(test=None, *, user=False):
    """Run a test, as root, in a child with its own mount (and user) namespace, and report what it raises."""
    if test is None:
        return functools.partial(in_namespace, user=user)

    @functools.wraps(test)
    def wrapper(*args, **kwargs):
        reader, writer = os.pipe()
        sys.stdout.flush()
        child = os.fork()
        if not child:
            try:
                kernel.unshare(NEWNS | (NEWUSER if user else 0))
                if user:
                    with open("/proc/self/uid_map", "w") as file:
                        file.write("0 0 1")
                    with open("/proc/self/setgroups", "w") as file:
                        file.write("deny")
                    with open("/proc/self/gid_map", "w") as file:
                        file.write("0 0 1")
                kernel.mount("none", "/", None, MS_REC | MS_PRIVATE, None)
                test(*args, **kwargs)
            except BaseException:
                os.write(writer, traceback.format_exc().encode()[-8000:])
            os._exit(0)
        os.close(writer)
        with open(reader, "rb") as file:
            problem = file.read().decode()
        os.waitpid(child, 0)
        assert not problem, problem

    return needing_root(wrapper)


@pytest.fixture
def place(tmp_path):
    """A place to work in; afterwards nothing may be mounted beneath it, as seen from here."""
    yield Place(tmp_path)
    with open("/proc/self/mountinfo") as file:
        assert str(tmp_path) not in file.read()


class Place:
    def __init__(self, path):
        self.path, self.layers = path, []
        for name in ("target", "empty", "upper", "work"):
            (path / name).mkdir()
        self.target, self.empty = path / "target", path / "empty"

    def layer(self, **more):
        self.layers.append(Tree(self.path / f"layer{len(self.layers)}", **more))
        return self.layers[-1]

    def mount(self, *, writable=False, form="trusted", **more):
        if writable:
            more.update(upper=str(self.path / "upper"), work=str(self.path / "work"))
        lowers = [os.fspath(each) for each in reversed(self.layers)]
        mount_overlay(lowers, str(self.target), overlay_form=form, empty_dir=str(self.empty), **more)

    def names(self):
        return sorted(os.listdir(self.target))

    def options(self):
        with open("/proc/self/mountinfo") as file:
            line = next(line for line in file if f" {self.target} " in line)
        return set(line.split()[5].split(",") + line.split()[-1].split(","))


@pytest.fixture(params=["by pieces", "at once"])
def way(request, monkeypatch):
    """Both ways to mount: Linux 6.8's, and what older kernels (or sandboxes) leave."""
    if request.param == "at once":
        monkeypatch.setattr(kernel, "fsopen", fails(errno.ENOSYS))


def fails(number):
    def call(*_args, **_more):
        raise OSError(number, os.strerror(number))

    return call


# -- what is seen --------------------------------------------------------------------------------------------


@in_namespace
def test_the_upper_layer_hides_the_lower(place, way):
    place.layer().file("both", b"low").file("low").file("gone")
    place.layer().file("both", b"high").whiteout("gone")
    place.mount()
    assert place.names() == ["both", "low"]
    assert (place.target / "both").read_bytes() == b"high"


@in_namespace
def test_a_single_layer_can_be_mounted_and_its_whiteouts_are_no_devices(place, way):
    place.layer().file("f").whiteout("gone")
    place.mount()
    assert place.names() == ["f"]


@in_namespace
def test_a_read_only_mount_refuses_writes_and_devices(place, way):
    place.layer().file("f").node("null", stat.S_IFCHR, os.makedev(1, 3))
    place.mount()
    with pytest.raises(OSError, match="Read-only"):
        (place.target / "new").touch()
    with pytest.raises(PermissionError):
        (place.target / "null").open()
    assert {"ro", "nodev"} <= place.options()


@in_namespace
def test_set_user_id_and_capabilities_work_in_a_mount(place, way):
    tree = place.layer().file("f", mode=0o4755).file("g")
    os.setxattr(tree.path / "g", "security.capability", CAPABILITY)
    place.mount()
    assert (place.target / "f").stat().st_mode & stat.S_ISUID
    assert os.getxattr(place.target / "g", "security.capability") == CAPABILITY
    assert "nosuid" not in place.options()


@in_namespace
def test_what_is_written_goes_to_the_upper_directory_and_no_layer_changes(place, way):
    place.layer().file("f", b"low").file("d/g")
    before = snapshot(place.layers[0].path)
    place.mount(writable=True)
    (place.target / "f").write_bytes(b"high")
    os.unlink(place.target / "d/g")
    assert (place.path / "upper/f").read_bytes() == b"high"
    assert stat.S_ISCHR(os.lstat(place.path / "upper/d/g").st_mode)
    assert snapshot(place.layers[0].path) == before
    assert "nodev" in place.options()


@in_namespace
def test_an_upper_directory_holds_whole_files_at_their_own_names(place, way):
    """So that it can be packed as a layer."""
    place.layer().file("d/inside", b"x").file("f", b"content")
    place.mount(writable=True)
    with pytest.raises(OSError, match="cross-device"):
        os.rename(place.target / "d", place.target / "elsewhere")
    os.chmod(place.target / "f", 0o600)
    assert (place.path / "upper/f").stat().st_blocks > 0


@needing_root
@pytest.mark.parametrize("form", ["trusted", "user"])
def test_the_kernels_defaults_for_redirects_and_the_like_are_always_overruled(place, way, monkeypatch, form):
    place.layer()
    said = set()
    monkeypatch.setattr(kernel, "mount", lambda *args: said.update(args[4].split(",")))
    monkeypatch.setattr(kernel, "move_mount", lambda *_args: None)
    monkeypatch.setattr(kernel, "fsmount", lambda *_args: os.open("/", os.O_PATH))
    monkeypatch.setattr(kernel, "fsconfig", lambda _fd, _command, key=None, value=None: said.add(
        key if value is None else f"{key}={os.fsdecode(value)}"
    ))
    place.mount(form=form)
    assert {"redirect_dir=nofollow", "metacopy=off", "index=off"} <= said
    assert ("userxattr" in said) == (form == "user")


@in_namespace
def test_a_layer_that_asks_to_be_redirected_leads_nowhere_else(place, way):
    place.layer().file("secret/f")
    tree = place.layer().dir("d")
    os.setxattr(tree.path / "d", "trusted.overlay.redirect", b"/secret")
    place.mount()
    try:
        assert "f" not in os.listdir(place.target / "d")
    except PermissionError:
        pass  # the kernel refuses to look at it: as good


@in_namespace
def test_an_opaque_directory_hides_what_is_below_in_its_form(place, way):
    for form in ("trusted", "user"):
        place.layers.clear()
        place.layers += [
            Tree(place.path / form / "0", form).file("d/old"),
            Tree(place.path / form / "1", form).dir("d", opaque=True).file("d/new"),
        ]
        place.mount(form=form)
        assert os.listdir(place.target / "d") == ["new"]
        unmount(str(place.target))


@in_namespace
@pytest.mark.parametrize("writable", [False, True])
def test_an_opaque_root_hides_all_lower_layers(place, way, writable):
    place.layer().file("lowest")
    place.layer().dir(".", opaque=True).file("new")
    place.mount(writable=writable)
    assert place.names() == ["new"]
    unmount(str(place.target))
    place.layer().file("top")
    place.mount(writable=writable)
    assert place.names() == ["new", "top"]


@in_namespace
def test_whiteouts_in_a_directory_of_one_layer_only_cannot_be_looked_up(place):
    """They are listed, by every kernel so far, unless whoever made the tree marked the directory."""
    tree = place.layer().whiteout("d/gone").whiteout("marked/gone")
    os.setxattr(tree.path / "marked", "trusted.overlay.origin", b"")
    place.mount()
    assert not (place.target / "d/gone").exists()
    assert os.listdir(place.target / "marked") == []


@in_namespace
@pytest.mark.parametrize("seeds", [range(n, n + 10) for n in (0, 10, 20)])
def test_extraction_gives_what_a_mount_shows(place, seeds):
    for seed in seeds:
        base = place.path / f"seed{seed}"
        base.mkdir()
        form = ("trusted", "user")[seed % 2]
        diffs = Grower(seed, form=form).grow(base, random.Random(seed).randint(1, 6))
        extract_chain(diffs, str(base / "out"), overlay_form=form)
        mount_overlay(diffs[::-1], str(place.target), overlay_form=form, empty_dir=str(place.empty))
        try:
            assert_same(snapshot(place.target, phantoms=True), base / "out")
        except AssertionError as error:
            raise AssertionError(f"seed {seed}:\n{error}") from None
        unmount(str(place.target))


# -- long chains and odd paths -------------------------------------------------------------------------------


@in_namespace
@pytest.mark.parametrize("writable", [False, True])
def test_500_layers_can_be_mounted(place, way, writable):
    for n in range(500):
        place.layer().file("all", b"%d" % n).file(f"only{n}")
    here = os.getcwd()
    place.mount(writable=writable)
    assert len(place.names()) == 501
    assert (place.target / "all").read_text() == "499"
    assert os.getcwd() == here


@needing_root
def test_more_than_500_layers_are_refused_and_the_way_out_named(place):
    tree = place.layer()
    with pytest.raises(InvalidArgumentError, match="501 layers") as caught:
        mount_overlay([os.fspath(tree)] * 501, str(place.target), overlay_form="trusted")
    assert "layerstore extract" in caught.value.hint


@in_namespace
def test_layers_below_an_opaque_root_do_not_count(place):
    for _ in range(30):
        place.layer()
    place.layers[28].dir(".", opaque=True)
    lowers = [os.fspath(place.layers[29]), os.fspath(place.layers[28])] + [os.fspath(place.layers[0])] * 600
    mount_overlay(lowers, str(place.target), overlay_form="trusted")
    assert is_overlay_mounted(str(place.target))


ODD = [
    "co:lon", "com,ma", "back\\slash", "back\\:and,all\\", "sp ace", "tab\tnew\nline", "ha#sh", "ü", "\udcff",
    "a=b",
]


@in_namespace
@pytest.mark.parametrize("odd", ODD, ids=ascii)
@pytest.mark.parametrize("many", [False, True], ids=["few", "many"])
def test_odd_characters_in_paths_mean_nothing(place, way, odd, many):
    base = place.path / odd
    base.mkdir()
    strange = Place(base)
    for n in range(60 if many else 2):
        strange.layer().file(f"f{n}")
    strange.mount(writable=True)
    assert len(strange.names()) == len(strange.layers)
    (strange.target / "new").touch()
    assert (base / "upper/new").exists()
    assert is_overlay_mounted(str(strange.target))
    unmount(str(strange.target))
    assert not is_overlay_mounted(str(strange.target))


@in_namespace
def test_paths_may_be_longer_than_a_parameter(place, way):
    base = place.path.joinpath(*["back\\slash-" + "x" * 90] * 5)
    base.mkdir(parents=True)
    deep = Place(base)
    deep.layer().file("low")
    deep.layer().file("high")
    deep.mount(writable=True)
    assert deep.names() == ["high", "low"]
    (deep.target / "new").touch()
    assert (base / "upper/new").exists()


@in_namespace
def test_long_paths_are_no_reason_to_mount_the_old_way(place, monkeypatch):
    base = place.path.joinpath(*["x" * 90] * 3)
    base.mkdir(parents=True)
    deep = Place(base)
    deep.layer().file("f")
    monkeypatch.setattr(kernel, "mount", fails(errno.EINVAL))
    deep.mount(writable=True)
    assert deep.names() == ["f"]


@in_namespace
def test_relative_paths_are_relative_to_the_working_directory(place, way):
    for n in range(60):
        place.layer().file(f"f{n}")
    os.chdir(place.path)
    lowers = ["./" * 40 + each.path.name for each in place.layers]
    mount_overlay(lowers, "target", overlay_form="trusted")
    assert len(place.names()) == 60


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("more, match", [
    ({"lowers": []}, "no layer"), ({"lowers": ["{}/absent"]}, "absent"), ({"lowers": ["{}/file"]}, "file"),
    ({"lowers": ["{}/empty\0x"]}, "existing directory"), ({"target": "{}/absent"}, "mount point"),
    ({"target": "{}/file"}, "mount point"),
    ({"upper": "{}/upper"}, "neither"), ({"work": "{}/work"}, "neither"),
    ({"upper": "{}/absent", "work": "{}/work"}, "absent"), ({"overlay_form": "aufs"}, "aufs"),
    ({"empty_dir": None}, "empty directory"),
], ids=lambda v: str(v))
def test_what_cannot_be_right_is_the_callers_fault(place, more, match):
    (place.path / "file").touch()
    def fill(value):
        if isinstance(value, list):
            return [fill(each) for each in value]
        return value and value.format(place.path)

    given = {
        "lowers": [os.fspath(place.layer())], "target": str(place.target), "overlay_form": "user",
        "empty_dir": str(place.empty),
    } | {key: fill(value) for key, value in more.items()}
    with pytest.raises(InvalidArgumentError, match=match):
        mount_overlay(given.pop("lowers"), given.pop("target"), **given)


@pytest.mark.parametrize("form", ["trusted", "user"])
def test_an_ordinary_user_is_told_what_to_do_instead(place, way, form):
    place.layer(form="user").file("f")

    def act():
        with pytest.raises(PrivilegeError) as caught:
            place.mount(form=form)
        assert "layerstore extract" in caught.value.hint
        assert "user namespace" in caught.value.hint

    as_nobody(place.path, act)


@in_namespace(user=True)
def test_in_a_user_namespace_a_store_with_user_attributes_can_be_mounted(place, way):
    place.layer(form="user").file("d/old")
    place.layer(form="user").dir("d", opaque=True).file("d/new")
    place.mount(form="user")
    assert os.listdir(place.target / "d") == ["new"]


@in_namespace(user=True)
def test_in_a_user_namespace_trusted_attributes_are_refused_and_not_overlooked(place, way):
    place.layer(form="user").file("f")
    with pytest.raises(PrivilegeError, match="trusted"):
        place.mount(form="trusted")
    assert not is_overlay_mounted(str(place.target))


@in_namespace
def test_what_the_kernel_refuses_is_an_error_and_nothing_is_mounted(place, way):
    place.layer().file("f")
    kernel.mount("none", str(place.path / "work"), "tmpfs", 0, None)  # upper and work on two file systems
    with pytest.raises(IoError, match="mounting 1 layers at .*target"):
        place.mount(writable=True)
    assert not is_overlay_mounted(str(place.target))


@pytest.mark.parametrize("number, expected", [
    (errno.ENODEV, HostError), (errno.EPERM, PrivilegeError), (errno.EBUSY, BusyError), (errno.EIO, IoError),
])
def test_a_failing_call_is_a_typed_error(place, monkeypatch, number, expected):
    place.layer(form="user")
    monkeypatch.setattr(kernel, "fsopen", fails(number))
    monkeypatch.setattr(kernel, "mount", fails(number))
    with pytest.raises(expected) as caught:
        place.mount(form="user")
    assert caught.type is expected
    if number == errno.ENODEV:
        assert "modprobe overlay" in caught.value.hint


@in_namespace
def test_a_kernel_that_cannot_append_layers_is_served_by_mount2(place, monkeypatch):
    place.layer().file("f")
    real = kernel.fsconfig

    def fsconfig(fd, command, key=None, value=None):
        if key == "lowerdir+":
            raise OSError(errno.EINVAL, "Invalid argument")
        real(fd, command, key, value)

    monkeypatch.setattr(kernel, "fsconfig", fsconfig)
    place.mount()
    assert place.names() == ["f"]


# -- unmounting, and asking ----------------------------------------------------------------------------------


@in_namespace
def test_unmounting_leaves_the_target_as_it_was(place, way):
    place.layer().file("f")
    place.mount()
    assert is_overlay_mounted(str(place.target))
    unmount(str(place.target))
    assert not is_overlay_mounted(str(place.target))
    assert place.names() == []


@needing_root
def test_unmounting_what_is_not_mounted_is_the_callers_fault(place):
    with pytest.raises(UnknownMountError, match="no overlay"):
        unmount(str(place.target))


@in_namespace
def test_a_mount_of_another_kind_is_neither_seen_nor_unmounted(place):
    kernel.mount("none", str(place.target), "tmpfs", 0, None)
    assert not is_overlay_mounted(str(place.target))
    with pytest.raises(UnknownMountError):
        unmount(str(place.target))


@in_namespace
def test_a_mount_in_use_stays_mounted(place):
    place.layer().file("f")
    place.mount()
    with (place.target / "f").open(), pytest.raises(BusyError, match="target"):
        unmount(str(place.target))
    assert is_overlay_mounted(str(place.target))
    unmount(str(place.target))


@in_namespace
def test_a_covered_mount_is_still_seen_and_what_covers_it_is_not_unmounted(place):
    place.layer().file("f")
    place.mount()
    kernel.mount("none", str(place.target), "tmpfs", 0, None)
    assert is_overlay_mounted(str(place.target))
    with pytest.raises(BusyError, match="covered by a mount \\(tmpfs\\)"):
        unmount(str(place.target))
    kernel.umount2(str(place.target))
    unmount(str(place.target))


@in_namespace
def test_of_two_overlays_at_one_place_the_upper_one_is_meant(place):
    place.layer().file("f")
    place.mount()
    (first,) = mounts_at(str(place.target))
    place.mount()
    upper = topmost(mounts_at(str(place.target)))
    assert upper.parent == first.id
    unmount(str(place.target))
    assert mounts_at(str(place.target)) == [first]


@in_namespace
def test_a_directory_below_a_mount_is_not_a_mount(place):
    place.layer().file("d/f")
    place.mount()
    assert not is_overlay_mounted(str(place.target / "d"))


# -- failing half way ----------------------------------------------------------------------------------------


@in_namespace
@pytest.mark.parametrize("call", ["fsopen", "fsconfig", "fsmount", "move_mount"])
def test_nothing_is_mounted_and_no_descriptor_stays_open_whatever_fails(place, monkeypatch, call):
    place.layer().file("f")
    place.layer().file("g")
    before = os.listdir("/proc/self/fd")
    real = getattr(kernel, call)
    for error in (OSError(errno.ENOMEM, "no memory"), KeyboardInterrupt()):
        for nth in range(9):
            left = iter(range(nth, -1, -1))

            def failing(*args):
                if next(left, None) == 0:
                    raise error
                return real(*args)

            monkeypatch.setattr(kernel, call, failing)
            try:
                place.mount()
            except (LayerstoreError, KeyboardInterrupt):
                assert not is_overlay_mounted(str(place.target))
            else:
                unmount(str(place.target))
            assert os.listdir("/proc/self/fd") == before


@in_namespace
def test_the_short_way_leaves_no_descriptor_open(place, monkeypatch):
    monkeypatch.setattr(kernel, "fsopen", fails(errno.ENOSYS))
    for n in range(80):
        place.layer().file(f"f{n}")
    before = os.listdir("/proc/self/fd")
    place.mount()
    unmount(str(place.target))
    monkeypatch.setattr(kernel, "mount", fails(errno.EINVAL))
    with pytest.raises(IoError):
        place.mount()
    assert os.listdir("/proc/self/fd") == before


@in_namespace
def test_mounting_and_unmounting_pass_their_fault_points(place):
    place.layer()
    passed = []
    faults.install(lambda point, when: passed.append((point, when)))
    place.mount()
    unmount(str(place.target))
    assert passed == [(f"overlay.{what}", w) for what in ("mount", "unmount") for w in ("before", "after")]
