"""A real Debian image of several layers: pulled, extracted and mounted, and compared with GNU tar's extraction.

Made with debootstrap from Debian's packages, through the machine's own apt configuration. Needs root.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess

import pytest

import imagemaker
import readings
import layerstore
import reference_extract
import treediff
from layerstore import PullOptions
from layerstore.trees.pack import pack_tree
from podmanrun import RUN, Podman
from storekit import killed_at

pytestmark = [pytest.mark.debian, pytest.mark.timeout(900)]


def mirror():
    """Where this machine gets its packages from."""
    told = subprocess.run(["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)"], capture_output=True, text=True,
                          check=True).stdout
    sites = re.findall(r"^(\S+/debian)/? ", told, re.MULTILINE)
    if not sites:
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        told = subprocess.run(["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)"], capture_output=True,
                              text=True, check=True).stdout
        sites = re.findall(r"^(\S+/debian)/? ", told, re.MULTILINE)
    return sites[0] if sites else None


def awkward(upper):
    """Everything that a layer can hold: written into an overlay upper directory through its mount."""
    top = upper / "opt" / "t"
    top.mkdir(parents=True)
    shutil.copy(upper / "bin" / "cat", top / "capable")
    subprocess.run(["setcap", "cap_net_raw+ep", top / "capable"], check=True)
    shutil.rmtree(upper / "usr" / "share" / "doc")
    (upper / "usr" / "bin" / "perl").unlink()
    shutil.rmtree(upper / "usr" / "share" / "locale")
    (upper / "usr" / "share" / "locale").mkdir()                 # opaque
    (upper / "usr" / "share" / "locale" / "new").write_text("x")
    for n in range(50):
        (top / f"x{n}").write_text(str(n))
        os.setxattr(top / f"x{n}", "user.note", b"%d" % n)
        os.chown(top / f"x{n}", 1000 + n, 2000)
        os.link(top / f"x{n}", top / f"hard{n}")
        os.symlink(f"../t/x{n}", top / f"sym{n}")
    os.mknod(top / "null", 0o020666, os.makedev(1, 3))
    os.mknod(top / "blk", 0o060600, os.makedev(7, 9))
    os.mkfifo(top / "fifo")
    with open(top / "sparse", "wb") as sparse:
        sparse.truncate(64 << 20)
        sparse.seek(32 << 20)
        sparse.write(b"data")
    deep = top / ("n" * 120) / ("m" * 120)
    deep.mkdir(parents=True)
    (deep / "ünïcode-名前.txt").write_text("deep")
    shutil.copy(upper / "bin" / "cat", top / "setuid")
    os.chmod(top / "setuid", 0o4755)
    (top / "sticky").mkdir()
    os.chmod(top / "sticky", 0o1777)
    os.utime(top / "x1", ns=(1_234_567_890_123_456_789, 1_234_567_890_123_456_789))


def overlay_layer(lowers, work, change):
    """Run *change* in an overlay mount over *lowers*; the upper directory it leaves."""
    for name in ("upper", "work", "merged"):
        (work / name).mkdir(parents=True)
    options = f"lowerdir={':'.join(map(str, lowers))},upperdir={work}/upper,workdir={work}/work"
    subprocess.run(["mount", "-t", "overlay", "none", "-o", options, work / "merged"], check=True)
    try:
        change(work / "merged")
    finally:
        subprocess.run(["umount", work / "merged"], check=True)
    return work / "upper"


def pack(directory, out):
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with open(out, "wb") as file:
            for chunk in pack_tree(fd, 255):
                file.write(chunk)
    finally:
        os.close(fd)
    return out


def install_python(merged):
    """A layer as dpkg makes one: packages unpacked over the base system."""
    debs = merged / "tmp"
    subprocess.run(["apt-get", "download", "-qq", "python3-minimal", "libpython3.11-minimal", "python3.11-minimal",
                    "libexpat1", "media-types"], cwd=debs, check=True, env={**os.environ, "APT_CONFIG": os.devnull})
    for deb in sorted(debs.glob("*.deb")):
        # not dpkg-deb -x, which puts a directory in the place of the link /lib: then nothing runs in the image
        data = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "--keep-directory-symlink", "-C", merged], input=data, check=True)
        deb.unlink()


@pytest.fixture(scope="module")
def debian(tmp_path_factory):
    """An OCI image of three layers: a base system (gzip), packages (zstd), everything awkward (plain)."""
    work = tmp_path_factory.mktemp("debian")
    rootfs = work / "rootfs"
    site = mirror()
    command = ["debootstrap", "--variant=minbase", "bookworm", str(rootfs), *([site] if site else [])]
    subprocess.run(command, check=True, capture_output=True)
    subprocess.run(["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-cf", work / "0.tar", "-C", rootfs, "."],
                   check=True)     # the base layer by GNU tar, as most are made
    second = overlay_layer([rootfs], work / "two", install_python)
    third = overlay_layer([second, rootfs], work / "three", awkward)
    layers = [
        imagemaker.Layer(tar=work / "0.tar", compression="gzip", level=1),
        imagemaker.Layer(tar=pack(second, work / "1.tar"), compression="zstd"),
        imagemaker.Layer(tar=pack(third, work / "2.tar"), compression="none"),
    ]
    made = imagemaker.Image(layers).write_oci(work / "image", tag="debian")
    for name in ("0.tar", "1.tar", "2.tar"):
        (work / name).unlink()
    shutil.rmtree(rootfs)
    return made


@pytest.fixture(scope="module")
def oracle(debian, tmp_path_factory):
    """The same layers by GNU tar, in order."""
    dest = tmp_path_factory.mktemp("oracle") / "tree"
    dest.mkdir()
    implied = reference_extract.apply_layout(debian.path, dest, tag="debian")
    assert not implied, "every directory of these layers has an entry of its own"
    return dest


def test_a_debian_image_pulls_and_extracts_to_what_gnu_tar_makes_of_it(debian, oracle, tmp_path):
    with layerstore.open(tmp_path / "s") as store:
        pulled = store.pull(debian.reference)
        assert len(pulled.layers) == 3
        report = store.extract(pulled.id, tmp_path / "out")
        assert report.unset == 0
        assert report.entries > 5_000
        assert store.check(content=True).sound
    treediff.assert_same(tmp_path / "out", oracle)


def test_the_comparison_can_fail(oracle, tmp_path):
    subprocess.run(["cp", "-a", oracle, tmp_path / "copy"], check=True)
    treediff.assert_same(tmp_path / "copy", oracle)
    for change in (
        lambda top: os.utime(top / "opt/t/x2", ns=(0, 1)), lambda top: os.removexattr(top / "opt/t/x3", "user.note"),
        lambda top: os.chown(top / "opt/t/x4", 1, 1), lambda top: (top / "opt/t/x5").write_text("?"),
        lambda top: (top / "opt/t/hard6").unlink(), lambda top: os.chmod(top / "bin/cat", 0o700),
    ):
        before = len(treediff.differences(tmp_path / "copy", oracle))
        change(tmp_path / "copy")
        assert len(treediff.differences(tmp_path / "copy", oracle)) > before


def test_the_mounted_image_is_the_extracted_one(debian, oracle, tmp_path):
    (tmp_path / "mnt").mkdir()
    with layerstore.open(tmp_path / "s") as store:
        pulled = store.pull(debian.reference)
        store.mount(pulled.id, tmp_path / "mnt")
        try:
            treediff.assert_same(tmp_path / "mnt", oracle, phantoms=True)
        finally:
            store.unmount(tmp_path / "mnt")


def test_a_pull_killed_in_the_middle_and_pulled_again_gives_the_same_tree(debian, oracle, tmp_path):
    root = tmp_path / "s"

    def scenario():
        with layerstore.open(root) as store:
            store.pull(debian.reference, options=PullOptions(workers=1))

    killed_at("unpack.entry", "before", scenario, nth=3_000)
    killed_at("publish.rename", "after", scenario, nth=2)
    with layerstore.open(root) as store:
        (pulled,) = store.images()
        store.extract(pulled.id, tmp_path / "out")
    treediff.assert_same(tmp_path / "out", oracle)


def test_podman_runs_debian_from_a_view_and_saves_the_layers_that_came(debian, tmp_path):
    with layerstore.open(tmp_path / "s") as store:
        store.pull(debian.reference, names=["debian:12"])
        store.view(tmp_path / "view")
    with Podman(tmp_path / "podman", tmp_path / "view") as podman:
        out = podman.script(f"{RUN} debian:12 sh -c '. /etc/os-release; echo $VERSION_CODENAME; cat /opt/t/x7; ls /usr/bin/perl'"
                            " 2>&1 || true\n"
                            f"{RUN} debian:12 python3.11 -S -c 'import sys; print(sys.version_info[:2])'\n"
                            f"podman save -q --format oci-dir --uncompressed -o {podman.home}/saved debian:12", readonly=True)
        assert out.splitlines() == [
            "bookworm", "7ls: cannot access '/usr/bin/perl': No such file or directory", "(3, 11)"]
        blobs = podman.home / "saved" / "blobs" / "sha256"
        (listed,) = json.loads((podman.home / "saved" / "index.json").read_text())["manifests"]
        manifest = json.loads((blobs / listed["digest"].removeprefix("sha256:")).read_text())
        assert manifest["config"]["digest"] == debian.config_digest
        assert tuple(layer["digest"] for layer in manifest["layers"]) == debian.diff_ids
        for each in (manifest["config"], *manifest["layers"]):
            with open(blobs / each["digest"].removeprefix("sha256:"), "rb") as file:
                assert "sha256:" + hashlib.file_digest(file, "sha256").hexdigest() == each["digest"]


# -- every layer, under every compression, against the readers of the field


def blobs(image):
    """The plain tar of each layer of *image*, base first: as a file beside it."""
    index = json.loads((image.path / "index.json").read_text())
    blob = lambda digest: image.path / "blobs" / "sha256" / digest.removeprefix("sha256:")   # noqa: E731
    for n, layer in enumerate(json.loads(blob(index["manifests"][0]["digest"]).read_text())["layers"]):
        plain = image.path.parent / f"plain-{n}.tar"
        if not plain.exists():
            with open(plain, "wb") as file:
                reference_extract._decompress(blob(layer["digest"]), file)
        yield plain


COMPRESSORS = {
    "none": ["cat"], "gzip": ["gzip", "-1"], "zstd": ["zstd", "-1", "-q"], "xz": ["xz", "-0", "-T2"], "bzip2": ["bzip2", "-1"],
}


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_every_layer_is_exported_to_the_byte_under_every_compression(compression, debian, tmp_path):
    # one of the layers is nearly all zeros
    options = layerstore.StageOptions(limits=layerstore.Limits(max_ratio=100_000))
    with layerstore.open(tmp_path / "s") as store:
        for plain in blobs(debian):
            packed = tmp_path / "packed"
            with open(plain, "rb") as source, open(packed, "wb") as made:
                subprocess.run(COMPRESSORS[compression], stdin=source, stdout=made, check=True)
            with store.stage(layerstore.TarDiffer(packed), options=options) as staged:
                layer = store.apply_staged_layer(staged, id=hashlib.sha256(str(plain).encode()).hexdigest())
            assert layer.compression == compression
            with open(plain, "rb") as original, store.diff(layer.id) as chunks:
                assert all(original.read(len(chunk)) == chunk for chunk in chunks)
                assert original.read(1) == b""


def test_tarfile_and_libarchive_read_the_same_members_as_we_do(debian, tmp_path):
    for plain in blobs(debian):
        ours, theirs, libarchives = readings.members(plain), readings.members_by_tarfile(plain), readings.members_by_bsd(plain, tmp_path)
        assert len(ours) > 100
        assert ours == theirs
        for one, other in zip(ours, libarchives, strict=True):
            assert {**one, "xattrs": None} == {**other, "xattrs": None}
