"""The real podman and buildah run from a view: as root and rootless, from a read-only mount, and wherever it was killed."""

import hashlib
import json
import os
import subprocess
import tarfile

import pytest

import layerstore
import namespaces
import treediff
from crash.disk.kernel_calls import own_mounts
from layerstore.testing import kill_at, passings, telling
from podmanrun import CREATE, RUN, SAYS, Podman, program, says_image
from test_view import Scene

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def says(tmp_path_factory):
    return program(tmp_path_factory.mktemp("says"))


@pytest.fixture(scope="module")
def shown(says, tmp_path_factory):
    """A podman, the view that it reads, the store below, and the image in it."""
    home = tmp_path_factory.mktemp("shown")
    made = says_image(home, says)
    with layerstore.open(home / "store") as store:
        store.pull(made.reference, names=["says:1"])
        store.view(home / "view")
    with Podman(home / "podman", home / "view") as podman:
        yield podman, home / "store", made


def check_saved(archive, made):
    """A docker-archive of podman's: the config byte for byte, and each layer's tar."""
    with tarfile.open(archive) as saved:
        (listed,) = json.load(saved.extractfile("manifest.json"))
        assert saved.extractfile(listed["Config"]).read() == made.config
        tars = [saved.extractfile(name).read() for name in listed["Layers"]]
    assert tuple("sha256:" + hashlib.sha256(tar).hexdigest() for tar in tars) == made.diff_ids


def test_podman_lists_and_runs_an_image_from_a_read_only_view(shown):
    podman, _store, made = shown
    out = podman.script(f"podman images --no-trunc --format '{{{{.Repository}}}}:{{{{.Tag}}}} {{{{.ID}}}} {{{{.ReadOnly}}}}'\n"
                        f"{RUN} says:1", readonly=True)
    assert out == f"localhost/says:1 {made.config_digest} true\n{SAYS}"


def test_podman_saves_every_layer_and_the_config_byte_for_byte(shown):
    podman, _store, made = shown
    podman.script(f"rm -f {podman.home}/saved.tar\npodman save -q --format docker-archive -o {podman.home}/saved.tar says:1",
                  readonly=True)
    check_saved(podman.home / "saved.tar", made)


@pytest.mark.parametrize("readonly", [False, True])
def test_a_container_mounted_by_podman_or_buildah_is_the_image(shown, tmp_path, readonly):
    podman, root, made = shown
    with layerstore.open(root, readonly=True) as store:
        store.extract("says:1", tmp_path / "out")
    podman.script(f"c=$({CREATE} says:1)\ncp -a $(podman mount $c) {tmp_path}/podman\npodman umount $c\npodman rm $c\n"
                  f"b=$(buildah from --pull-never says:1)\ncp -a $(buildah mount $b) {tmp_path}/buildah\nbuildah umount $b\n"
                  "buildah rm $b", readonly=readonly)
    for name in ("podman", "buildah"):
        differences = treediff.differences(tmp_path / name, tmp_path / "out")
        # what podman and buildah themselves put in
        assert [each for each in differences if not str(each).startswith((".", "etc", "dev", "proc", "sys", "run"))] == []


def test_a_container_goes_on_after_the_view_was_refreshed(shown, says, tmp_path):
    podman, root, _made = shown
    first = podman.script(f"{CREATE} --name kept says:1")
    with layerstore.open(root) as store:
        added = store.pull(says_image(tmp_path, says, name="more", motd="more\n").reference, names=["more:1"])
        store.view(podman.view)
    assert first and podman.script(f"podman start -a kept\n{RUN} more:1\npodman rm kept >&2") == SAYS + SAYS.replace(
        "from the upper layer", "more")
    with layerstore.open(root) as store:
        store.delete_image(added.id)
        store.view(podman.view)


MOUNTED = "(cd $m; cat etc/motd; test ! -e gone; echo opaque/*; stat -c %u:%g owned)\n"


@pytest.mark.parametrize(("inside", "owner"), [(False, "0:0"), (True, "33:34")], ids=["without-subids", "with-subids"])
def test_a_rootless_podman_lists_runs_mounts_and_saves_from_its_own_users_store(says, home, inside, owner):
    """*inside* the user's namespace files have owners of their own; else all are the user's, who is root in containers."""
    made = says_image(home, says)

    def fill():
        with layerstore.open(home / "store") as store:
            store.pull(made.reference, names=["says:1"])
            assert set(store.view(home / "view").incomplete) <= {layer.id for layer in store.layers()}

    namespaces.in_namespace(fill, namespaces.FULL) if inside else namespaces.as_user(fill)
    with Podman(home / "podman", home / "view", rootless=True) as podman:
        (podman.home / "mounted").write_text(
            f"c=$({CREATE} says:1)\nm=$(podman mount $c)\n{MOUNTED}podman rm $c >&2\n"
            f"b=$(buildah from --pull-never says:1)\nm=$(buildah mount $b)\n{MOUNTED}buildah rm $b >&2\n")
        out = podman.script(f"podman info --format '{{{{.Host.Security.Rootless}}}}'\n"
                            "podman images --format '{{.Repository}}:{{.Tag}} {{.ReadOnly}}'\n"
                            f"{RUN} says:1\npodman unshare sh -e mounted\n"
                            f"podman save -q --format docker-archive -o {podman.home}/saved.tar says:1", readonly=True)
        mounted = f"from the upper layer\nopaque/new\n{owner}\n"
        assert out == f"true\nlocalhost/says:1 true\n{SAYS.replace('33:34', owner)}{2 * mounted}"
        check_saved(podman.home / "saved.tar", made)


@pytest.fixture
def scene(says, tmp_path):
    """One image in the view that stays, one that goes, and one in the store that is to come."""
    made = Scene(str(tmp_path / "scene"))
    os.mkdir(made.home)
    with layerstore.open(made.store) as store:
        store.pull(says_image(tmp_path, says, name="stays", motd="stays\n").reference, names=["stays:1"])
        goes = store.pull(says_image(tmp_path, says, name="goes", motd="goes\n").reference, names=["goes:1"])
        store.view(made.view)
        store.delete_image(goes.id)
        store.pull(says_image(tmp_path, says, name="comes", motd="comes\n").reference, names=["comes:1"])
    return made


OLD, NEW, NONE = {"stays", "goes"}, {"stays", "comes"}, set()


@pytest.mark.parametrize(("verb", "first", "switch", "before", "after", "every"), [
    ("view", False, "view.switch.rename", OLD, NEW, 12), ("view", True, "view.switch.rename", NONE, NEW, 25),
    ("remove_view", False, "view.remove.switch", OLD, NONE, 8),
], ids=["a refresh", "a first view", "a removal"])
def test_wherever_a_view_is_killed_podman_runs_each_image_that_it_shows(
        scene, tmp_path, record_property, verb, first, switch, before, after, every):
    """Where the directory is there: podman refuses to do anything if it is told of one that is not."""
    if first:
        scene.do("remove_view")
        os.mkdir(scene.view)
    scene.keep()
    points = [each for each in passings(lambda: scene.do(verb)) if each.when == "before"]
    points = points[:next((n + 1 for n, each in enumerate(points) if each.point == "view.remove.dir"), None)]
    at = next(n for n, each in enumerate(points) if each.point == switch)
    sample = {*range(3, len(points), every), at, at + 1, len(points) - 1}
    for n in sorted(each for each in sample if each < len(points)):
        scene.back()
        kill_at(points[n], lambda: scene.do(verb))
        with Podman(tmp_path / "podman", scene.view) as podman:
            out = podman.script(f"images=$(podman images --format '{{{{.Repository}}}}')\nfor i in $images; do {RUN} $i:1; done")
        ran = {line for line in out.splitlines() if not line.startswith(("gone", "owner"))}
        assert ran == (before if n <= at else after), f"killed at {points[n]}"
    record_property("states", len(sample))


def test_podman_runs_images_whose_layers_are_on_a_squashfs_beneath(says, tmp_path):
    """One that is all there, and one whose upper layer is the store's own."""
    def work():
        own_mounts()
        made, below = tmp_path / "made", tmp_path / "below"
        with layerstore.open(made) as store:
            store.pull(says_image(tmp_path, says, name="says").reference, names=["says:1"])
        below.mkdir()
        subprocess.run(["mksquashfs", made, tmp_path / "file", "-quiet", "-no-progress"], check=True)
        subprocess.run(["mount", "-t", "squashfs", "-o", "loop,ro", tmp_path / "file", below], check=True)
        with layerstore.open(tmp_path / "store", beneath=[below]) as store:
            newer = says_image(tmp_path, says, name="newer", motd="from the newer layer\n")
            own = set(store.pull(newer.reference, names=["newer:1"]).layers) - set(os.listdir(below / "layers"))
            store.view(tmp_path / "view")
        with Podman(tmp_path / "podman", tmp_path / "view") as podman:
            return len(own), podman.script(f"{RUN} says:1\n{RUN} newer:1")

    assert telling(work) == (1, SAYS + SAYS.replace("upper", "newer"))
