"""Layers that buildah, podman, skopeo and umoci made of real trees: pulled they are what GNU tar makes of them, and come out to the byte.

The trees hold what container tools have to say something about: what one layer hides of another, links, owners, attributes.
"""

import gzip
import hashlib
import json
import os
import shutil
import subprocess

import pytest
import zstandard

import layerstore
import reference_extract
import treediff

pytestmark = pytest.mark.root

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")   # cap_net_bind_service+ep (linux/capability.h)


class Tools:
    """The tools with a storage of their own, which makes no mounts."""

    def __init__(self, home):
        self.home = home
        (home / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        (home / "storage.conf").write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{home}/graph"\nrunroot = "{home}/run"\n')
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home), "LC_ALL": "C.UTF-8",
                            "CONTAINERS_STORAGE_CONF": f"{home}/storage.conf", "BUILDAH_ISOLATION": "chroot"}

    def run(self, *command):
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment, cwd=self.home)
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout.strip()

    def changed(self, image, change, name):
        """*image*, changed by *change(tree)*, as another image."""
        container = self.run("buildah", "from", "--pull-never", image)
        change(self.run("buildah", "mount", container))
        self.run("buildah", "commit", "-q", f"--signature-policy={self.home}/policy.json", "--rm", container, name)


def first(tree):
    """Much of what a layer can hold."""
    for each in ("bin", "etc/deep/er", "gone/with/all", "opaque/old", "x" * 120 + "/" + "y" * 120):
        os.makedirs(f"{tree}/{each}")
    for number, each in enumerate(("bin/tool", "etc/empty", "etc/deep/er/ünï-名前", "gone/with/all/f", "opaque/old/f", "replaced", "sized")):
        with open(f"{tree}/{each}", "wb") as file:
            file.write(each.encode() * 700 * (number != 1))
    os.link(f"{tree}/bin/tool", f"{tree}/bin/second")
    os.link(f"{tree}/bin/tool", f"{tree}/etc/third")
    os.symlink("../etc/deep", f"{tree}/bin/link")
    os.symlink("/" + "n" * 150, f"{tree}/bin/far")
    os.mkfifo(f"{tree}/etc/fifo")
    with open(f"{tree}/etc/sparse", "wb") as file:
        file.seek(3 << 20)
        file.write(b"end")
        file.truncate(5 << 20)
    os.chown(f"{tree}/etc/empty", 3_000_000, 2_097_152)
    os.chmod(f"{tree}/bin/tool", 0o4755)
    os.chmod(f"{tree}/gone", 0o1777)
    os.setxattr(f"{tree}/sized", "security.capability", CAPABILITY)
    os.setxattr(f"{tree}/etc/empty", "user.note", b"two\nlines=\0")
    os.utime(f"{tree}/replaced", ns=(123_456_789, -1_500_000_000))


def second(tree):
    """What a layer says of those below it."""
    shutil.rmtree(f"{tree}/gone")
    shutil.rmtree(f"{tree}/opaque")
    os.makedirs(f"{tree}/opaque/new")
    os.unlink(f"{tree}/replaced")
    os.makedirs(f"{tree}/replaced/now/a")
    os.unlink(f"{tree}/bin/second")
    with open(f"{tree}/bin/late", "wb") as file:
        file.write(b"late" * 1000)
    os.chmod(f"{tree}/etc", 0o700)


def third(tree):
    os.unlink(f"{tree}/sized")
    os.symlink("nowhere", f"{tree}/sized")
    os.unlink(f"{tree}/bin/late")
    os.link(f"{tree}/etc/empty", f"{tree}/etc/linked")


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """Layouts by what made them."""
    home = tmp_path_factory.mktemp("others")
    tools = Tools(home)
    policy = f"--signature-policy={home}/policy.json"
    tools.changed("scratch", first, "one")
    tools.changed("localhost/one", second, "two")
    tools.run("buildah", "push", "-q", policy, "localhost/two", f"oci:{home}/buildah:x")
    tools.run("podman", "save", "-q", "--format", "oci-archive", "-o", f"{home}/saved.tar", "localhost/two")
    tools.run("skopeo", "copy", "-q", "--insecure-policy", f"oci-archive:{home}/saved.tar", f"oci:{home}/podman:x")
    tools.run("skopeo", "copy", "-q", "--insecure-policy", "--dest-compress-format=zstd", "--dest-compress", f"oci:{home}/buildah:x",
              f"oci:{home}/skopeo:x")
    shutil.copytree(home / "buildah", home / "umoci")
    tools.run("umoci", "unpack", "--image", f"{home}/umoci:x", f"{home}/bundle")
    third(f"{home}/bundle/rootfs")
    tools.run("umoci", "repack", "--image", f"{home}/umoci:x", f"{home}/bundle")
    yield home
    shutil.rmtree(home)


def tars(layout):
    """The digest and size of each layer's tar, decompressed by nothing of ours."""
    def blob(descriptor):
        return (layout / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes()

    index = json.loads((layout / "index.json").read_bytes())
    for each in json.loads(blob(index["manifests"][-1]))["layers"]:
        data = blob(each)
        if data[:4] == b"\x28\xb5\x2f\xfd":
            data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
        elif data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        yield data


@pytest.mark.parametrize("maker, count", [("buildah", 2), ("podman", 2), ("skopeo", 2), ("umoci", 3)])
def test_the_layers_of_others_are_what_gnu_tar_makes_of_them_and_come_out_to_the_byte(layouts, maker, count, tmp_path):
    layout = layouts / maker
    with layerstore.open(tmp_path / "store") as store:
        image = store.pull(f"oci:{layout}:x", names=["x"])
        expected = list(tars(layout))
        assert len(expected) == len(image.layers) == count
        for data, layer in zip(expected, image.layers, strict=True):
            with store.diff(layer) as chunks:
                assert hashlib.sha256(b"".join(chunks)).digest() == hashlib.sha256(data).digest()
        store.extract("x", tmp_path / "ours")
    (tmp_path / "theirs").mkdir()
    made_up = {"."}   # directories that have no entry: nobody says when they were made
    for number, data in enumerate(expected):
        (tmp_path / f"{number}.tar").write_bytes(data)
        made_up |= reference_extract.apply_archive(tmp_path / f"{number}.tar", tmp_path / "theirs")
    differences = treediff.differences(tmp_path / "theirs", tmp_path / "ours")
    assert [each for each in differences if each.partition(": mtime_ns")[0] not in made_up] == []


def test_the_layers_hide_and_hold_what_was_meant(layouts, tmp_path):
    """Else the comparison would say little."""
    names = [subprocess.run(["tar", "-t"], input=data, capture_output=True, check=True).stdout for data in tars(layouts / "umoci")]
    assert all(b".wh.%s\n" % each in names[1] for each in (b"gone", b"second"))
    assert b"replaced/now/a/\n" in names[1]
    assert b".wh.late\n" in names[2]
    with layerstore.open(tmp_path / "store") as store:
        store.pull(f"oci:{layouts}/umoci:x", names=["x"])
        store.extract("x", tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out/opaque")) == ["new"]
    assert os.lstat(tmp_path / "out/bin/tool").st_nlink == 2
    assert os.readlink(tmp_path / "out/sized") == "nowhere"
    assert os.lstat(tmp_path / "out/etc/empty").st_uid == 3_000_000
