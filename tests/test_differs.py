"""The differs, from a blob or a directory to a verified tree; and packing, the inverse."""

import gzip
import hashlib
import io
import os
import socket
import stat
import subprocess
import tarfile
import threading
import types

import pytest
import zstandard
from tarmaker import END, directory, file, hardlink, symlink
from test_unpack import FORM, ROOT, Tree, snapshot

from layerstore.differs import DirectoryDiffer, TarDiffer
from layerstore.errors import (
    BusyError,
    ArchiveError,
    CompressionError,
    DigestMismatchError,
    InvalidArgumentError,
    LimitExceededError,
    SizeMismatchError,
    SourceError,
)
from layerstore.trees.verify import tree_problems
from layerstore.model import Descriptor, DiffTarget, Limits
from layerstore.trees.pack import pack_tree

TAR = (
    directory(b"d", mtime=5) + file(b"d/f", b"x" * 100_000, mtime=6) + hardlink(b"h", b"d/f") + symlink(b"l", b"d")
    + file(b"d/.wh.gone") + file(b"d/.wh..wh..opq") + END
)


def sha(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def descriptor(data, **more):
    return Descriptor("x", **{"digest": sha(data), "size": len(data), **more})


@pytest.fixture(autouse=True)
def no_threads_left():
    before = {*threading.enumerate()}    # of another module's servers, which may end meanwhile
    yield
    assert {*threading.enumerate()} <= before


@pytest.fixture
def tree(tmp_path):
    tree = Tree(tmp_path / "layer")
    yield tree
    tree.close()


def apply(tree, differ, **more):
    tree.result = differ.apply_diff(DiffTarget(*tree.fds, overlay_form=FORM, **more))
    return tree.result


PACKED = {"none": bytes, "gzip": gzip.compress, "zstd": zstandard.ZstdCompressor().compress}


@pytest.mark.parametrize("kind", PACKED)
def test_the_output_says_what_the_blob_and_the_tar_are(tree, kind):
    blob = PACKED[kind](TAR)
    read = []
    out = apply(tree, TarDiffer(blob, expect=descriptor(blob), diff_id=sha(TAR)), progress=read.append)
    assert (out.blob_digest, out.blob_size, out.diff_id, out.diff_size) == (sha(blob), len(blob), sha(TAR), len(TAR))
    assert (out.compression, sum(read)) == (kind, len(blob))
    assert out.manifest_digest == sha((tree.path / "manifest").read_bytes())
    assert tree.names() == ["d", "d/f", "d/gone", "h", "l"]
    tree.sound()


@pytest.mark.parametrize("make", [
    lambda p: str(p), lambda p: p, lambda p: memoryview(p.read_bytes()), lambda p: bytearray(p.read_bytes()),
    lambda p: io.BytesIO(p.read_bytes()), lambda p: lambda: open(p, "rb"),
], ids=["str", "path", "memoryview", "bytearray", "file", "callable"])
def test_every_kind_of_source_gives_the_same(tree, tmp_path, make):
    (tmp_path / "blob").write_bytes(TAR)
    assert apply(tree, TarDiffer(make(tmp_path / "blob"))).diff_id == sha(TAR)


def test_a_source_that_was_opened_for_us_is_closed_even_after_an_error(tree):
    opened = io.BytesIO(TAR[:700])
    with pytest.raises(ArchiveError):
        apply(tree, TarDiffer(lambda: opened))
    assert opened.closed


def test_a_file_object_is_the_callers_to_close(tree):
    opened = io.BytesIO(TAR)
    apply(tree, TarDiffer(opened))
    assert not opened.closed


def test_the_content_key_is_the_promised_digest():
    assert TarDiffer(TAR, expect=descriptor(TAR)).content_key == sha(TAR)
    assert TarDiffer(TAR).content_key is None


def test_a_missing_blob_is_the_sources_fault(tree, tmp_path):
    with pytest.raises(SourceError, match="no-such"):
        apply(tree, TarDiffer(str(tmp_path / "no-such")))


def test_a_differ_is_good_for_one_use(tree):
    differ = TarDiffer(TAR)
    apply(tree, differ)
    with pytest.raises(InvalidArgumentError):
        apply(tree, differ)


@pytest.mark.parametrize("more", [{"diff_id": "sha256:short"}, {"expect": Descriptor("x", "md5:0", 1)},
                                  {"expect": Descriptor("x", "sha256:" + "0" * 64, -1)}])
def test_impossible_promises_are_refused_at_once(more):
    with pytest.raises(InvalidArgumentError):
        TarDiffer(TAR, **more)


@pytest.mark.parametrize("kind", PACKED)
def test_another_blob_than_promised_is_refused(tree, kind):
    blob = PACKED[kind](TAR)
    with pytest.raises(DigestMismatchError) as caught:
        apply(tree, TarDiffer(blob, expect=descriptor(blob, digest=sha(b"other"))))
    assert (caught.value.expected, caught.value.actual) == (sha(b"other"), sha(blob))


def test_another_tar_than_promised_is_refused(tree):
    with pytest.raises(DigestMismatchError) as caught:
        apply(tree, TarDiffer(gzip.compress(TAR), diff_id=sha(b"other")))
    assert caught.value.actual == sha(TAR)


@pytest.mark.parametrize("kind", PACKED)
def test_a_truncated_blob_is_too_short_rather_than_corrupt(tree, kind):
    blob = PACKED[kind](TAR)
    with pytest.raises(SizeMismatchError) as caught:
        apply(tree, TarDiffer(blob[:-7], expect=descriptor(blob)))
    assert (caught.value.expected, caught.value.actual) == (len(blob), len(blob) - 7)


def test_an_endless_blob_is_not_read_beyond_its_promised_size(tree):
    class Endless(io.RawIOBase):
        served = 0

        def read(self, n=-1):
            self.served += n
            return bytes(n)

    endless = Endless()
    with pytest.raises(SizeMismatchError):
        apply(tree, TarDiffer(endless, expect=Descriptor("x", sha(b""), 5000)))
    assert endless.served <= 1 << 20


@pytest.mark.parametrize("data, error", [
    (gzip.compress(TAR)[:-3], CompressionError), (gzip.compress(TAR) + b"junk", CompressionError),
    (TAR[:-1024], ArchiveError), (TAR + b"junk", ArchiveError), (b"\xfd7zXZ\0rest", CompressionError),
    (gzip.compress(bytes(64 << 20), 9), LimitExceededError), (b"", ArchiveError),
])
def test_bad_streams_are_refused(tree, data, error):
    with pytest.raises(error):
        apply(tree, TarDiffer(data), limits=Limits(max_ratio=100))


def test_a_tar_without_its_end_marker_is_accepted_where_its_digest_is_promised(tree):
    data = TAR[:-1024]
    assert apply(tree, TarDiffer(data, expect=descriptor(data))).diff_id == sha(data)


def test_errors_of_reading_come_through(tree):
    class Broken(io.RawIOBase):
        def read(self, n=-1):
            raise OSError(5, "broken")

    with pytest.raises(OSError, match="broken"):
        apply(tree, TarDiffer(Broken()))


def test_cancelling_stops_it(tree):
    cancelled = threading.Event()
    data = b"".join(file(b"f%d" % n, b"x" * 100_000) for n in range(300)) + END

    def progress(_n):
        cancelled.set()

    with pytest.raises(Exception, match="cancelled"):
        apply(tree, TarDiffer(data), progress=progress, cancelled=cancelled)


def test_errors_of_the_disk_come_through(tree, monkeypatch):
    from layerstore.system import faults

    def hook(name, _when):
        raise OSError(28, "No space left on device")

    previous = faults.install(hook)
    try:
        with pytest.raises(OSError, match="No space"):
            apply(tree, TarDiffer(b"".join(file(b"f%d" % n, b"x" * 1_000_000) for n in range(30)) + END))
    finally:
        faults.install(previous)


# -- packing


def packed(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        return b"".join(pack_tree(fd, 255))
    finally:
        os.close(fd)


@pytest.fixture
def source(tmp_path):
    """A directory with everything that an ordinary user can make."""
    root = tmp_path / "source"
    (root / "d" / "deep").mkdir(parents=True)
    (root / "d" / "f").write_bytes(b"x" * 3_000_000)
    os.link(root / "d" / "f", root / "d" / "deep" / "twin")
    (root / "a.b").write_bytes(b"")
    (root / ("n" * 120)).write_bytes(b"long")
    (root / "ünïcode").symlink_to("t" * 150)
    os.mkfifo(root / "fifo", 0o600)
    os.setxattr(root / "a.b", "user.a", b"\0\n")
    os.setxattr(root / "d", "user.overlay.origin", b"not content")
    os.chmod(root / "a.b", 0o4711)
    os.utime(root / "d", ns=(1, 1234567890_123456789))
    os.utime(root / "fifo", ns=(-1, -1_500_000_000))
    os.utime(root, ns=(5, 5))
    return root


def test_a_directory_comes_back_as_it_was(tree, source):
    out = apply(tree, DirectoryDiffer(source))
    assert snapshot(tree.diff) == snapshot(source)
    assert tree.stat(".").st_mtime_ns == 5
    assert os.getxattr(tree.diff / "a.b", "user.a") == b"\0\n"
    assert set(os.listxattr(tree.diff / "d")) <= {"user.containers.override_stat"}     # of an ordinary user's
    assert (out.blob_digest, out.blob_size, out.diff_id) == (None, None, sha(packed(source)))
    tree.sound()


def test_holes_of_a_directorys_files_stay_holes(tree, tmp_path):
    (tmp_path / "source").mkdir()
    with open(tmp_path / "source" / "f", "wb") as file_:
        file_.write(b"start")
        file_.truncate(20 << 20)
    apply(tree, DirectoryDiffer(tmp_path / "source"))
    assert (tree.stat("f").st_size, tree.stat("f").st_blocks * 512 <= 1 << 16) == (20 << 20, True)
    tree.sound()


def test_packing_is_reproducible_whatever_the_order_of_making(tmp_path):
    for name, order in (("one", "abcde"), ("two", "edcba")):
        (tmp_path / name).mkdir()
        for each in order:
            (tmp_path / name / each).write_bytes(each.encode())
            os.utime(tmp_path / name / each, ns=(7, 7))
        os.utime(tmp_path / name, ns=(8, 8))
    assert packed(tmp_path / "one") == packed(tmp_path / "two")


def test_what_is_packed_is_sorted_by_bytes_and_parents_come_first(source):
    names = tarfile.open(fileobj=io.BytesIO(packed(source))).getnames()
    assert names == [".", "a.b", "d", "d/deep", "d/deep/twin", "d/f", "fifo", "n" * 120, "ünïcode"]


def test_packing_unpacking_and_packing_again_gives_the_same_bytes(tree, source):
    apply(tree, DirectoryDiffer(source))
    assert packed(tree.diff) == packed(source)


def test_a_layers_tree_packs_back_to_its_whiteouts(tree):
    apply(tree, TarDiffer(TAR))
    names = tarfile.open(fileobj=io.BytesIO(packed(tree.diff))).getnames()
    assert names == [".", "d", "d/.wh..wh..opq", "d/f", "d/.wh.gone", "h", "l"]
    again = Tree(tree.path / "again")
    apply(again, TarDiffer(packed(tree.diff)))
    assert snapshot(again.diff) == snapshot(tree.diff)
    assert again.is_opaque("d")
    again.close()


def test_gnu_tar_agrees_on_what_was_packed(source, tmp_path):
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-C", tmp_path / "out", "-xpf", "-"], input=packed(source), check=True)
    assert snapshot(tmp_path / "out") == snapshot(source)


def test_sockets_are_left_out(tmp_path):
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(os.fspath(tmp_path / "s"))
        assert tarfile.open(fileobj=io.BytesIO(packed(tmp_path))).getnames() == ["."]


def test_names_that_would_be_whiteouts_are_refused(tmp_path):
    (tmp_path / ".wh.x").touch()
    with pytest.raises(SourceError, match="whiteout"):
        packed(tmp_path)


MARKS = [pytest.param(form, mark, marks=[pytest.mark.root, ROOT] if form == "trusted" else [])
         for form in ("trusted", "user") for mark in ("metacopy", "redirect")]


@pytest.mark.parametrize("form, mark", MARKS)
@pytest.mark.parametrize("kind", ["file", "directory", "root"])
def test_what_overlayfs_has_only_a_part_of_is_refused_by_its_name(tmp_path, form, mark, kind):
    (tmp_path / "dir" / "sub").mkdir(parents=True)
    (tmp_path / "dir" / "file").touch()
    os.truncate(tmp_path / "dir" / "file", 100_000)
    marked = {"file": tmp_path / "dir" / "file", "directory": tmp_path / "dir" / "sub", "root": tmp_path}[kind]
    os.setxattr(marked, f"{form}.overlay.{mark}", b"/elsewhere")
    with pytest.raises(SourceError, match=f"{form}.overlay.{mark}") as caught:
        packed(tmp_path)
    assert repr(os.path.relpath(marked, tmp_path)) in str(caught.value)


@pytest.mark.root
@ROOT
@pytest.mark.parametrize("mark", ["metacopy", "redirect"])
def test_an_upper_directory_in_which_the_kernel_left_only_a_part_is_refused(tmp_path, mark):
    for name in ("lower/d", "upper", "work", "at"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "lower" / "d" / "f").write_bytes(b"content" * 1000)
    change = {"metacopy": "chmod 600 d/f", "redirect": "mv d e"}[mark]
    script = (f"mount -t overlay o -o lowerdir=lower,upperdir=upper,workdir=work,redirect_dir=on,metacopy=on at"
              f" && cd at && {change} && cd .. && umount at")
    subprocess.run(["unshare", "-m", "sh", "-c", script], check=True, cwd=tmp_path)
    with pytest.raises(SourceError, match=f"overlay.{mark}"):
        packed(tmp_path / "upper")


def test_what_an_attribute_says_of_owner_and_type_is_left_out_and_not_heeded(tmp_path):
    (tmp_path / "f").write_bytes(b"content")
    os.chmod(tmp_path / "f", 0o640)
    os.setxattr(tmp_path / "f", "user.containers.override_stat", b"0:0:4755:file")
    member = tarfile.open(fileobj=io.BytesIO(packed(tmp_path))).getmember("f")
    assert (member.uid, member.mode, member.isreg()) == (os.geteuid(), 0o640, True)
    assert not any("override" in key for key in member.pax_headers)


@pytest.mark.root
@ROOT
def test_capabilities_of_a_user_namespaces_root_are_packed_as_those_of_any_root(tmp_path):
    """Of whose ID there the archive's reader knows nothing."""
    (tmp_path / "f").touch()
    os.setxattr(tmp_path / "f", "security.capability", bytes.fromhex("010000030020000000000000000000000000000040420f00"))
    member = tarfile.open(fileobj=io.BytesIO(packed(tmp_path))).getmember("f")
    said = member.pax_headers["SCHILY.xattr.security.capability"].encode("utf-8", "surrogateescape")
    assert said == bytes.fromhex("0100000200200000000000000000000000000000")


@pytest.mark.parametrize("name", [b"user.a=b", b"user.=", b"user.\xff"])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_an_attribute_that_no_tar_can_name_is_refused(tmp_path, name, kind):
    (tmp_path / "d").mkdir()
    (tmp_path / "f").touch()
    os.setxattr(tmp_path / {"file": "f", "directory": "d"}[kind], name, b"value")
    with pytest.raises(SourceError, match="no tar can have one of that name"):
        packed(tmp_path)


def test_attributes_with_odd_names_come_back(tree, tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "f").touch()
    names = ["user.two\nlines", "user.per%3Dcent", "user.ünï", "user. \"'"]
    for name in names:
        os.setxattr(tmp_path / "source" / "f", name, b"a=b\n=")
    apply(tree, DirectoryDiffer(tmp_path / "source"))
    assert sorted({*os.listxattr(tree.diff / "f")} - {"user.containers.override_stat"}) == sorted(names)
    assert {os.getxattr(tree.diff / "f", name) for name in names} == {b"a=b\n="}


@pytest.mark.parametrize("depth", [255, 256, 1_200])
def test_a_directory_is_packed_as_deep_as_the_limit_says_and_no_deeper(tree, tmp_path, depth):
    at = os.open(tmp_path, os.O_RDONLY)
    for name in ("source", *["d"] * depth):
        os.mkdir(name, dir_fd=at)
        at, above = os.open(name, os.O_RDONLY, dir_fd=at), at
        os.close(above)
    os.close(at)
    before = os.listdir("/proc/self/fd")
    try:
        if depth == 255:
            assert apply(tree, DirectoryDiffer(tmp_path / "source")).entries == 256
        else:
            with pytest.raises(LimitExceededError, match="max_depth"):   # whoever reads the tar would refuse it only later
                packed(tmp_path / "source")
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "source"], check=True)   # too deep for those who remove by recursion
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_links_in_a_directory_are_not_followed(tree, tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "l").symlink_to("/etc")
    apply(tree, DirectoryDiffer(tmp_path / "source"))
    assert os.readlink(tree.diff / "l") == "/etc"


def test_a_missing_directory_is_the_sources_fault(tree, tmp_path):
    with pytest.raises(SourceError):
        apply(tree, DirectoryDiffer(tmp_path / "no-such"))


@pytest.mark.root
@ROOT
def test_devices_owners_and_large_numbers_are_packed(tree, tmp_path):
    root = tmp_path / "source"
    root.mkdir()
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (root / "f").touch()
    os.chown(root / "f", 3_000_000, 4_000_000_000)
    os.utime(root / "f", ns=(1, (1 << 33) * 10**9))
    apply(tree, DirectoryDiffer(root))
    assert snapshot(tree.diff) == snapshot(root)
    assert tree.stat("null").st_rdev == os.makedev(1, 3)


@pytest.mark.root
@ROOT
def test_a_real_directory_comes_back_as_it_was(tree):
    source = os.path.dirname(os.__file__) + "/json"
    apply(tree, DirectoryDiffer(source))
    assert snapshot(tree.diff) == snapshot(source)
    assert list(tree_problems(tree.fds[0], tree.result.manifest_digest, content=True)) == []


class _FailingHash:
    def __init__(self):
        self._real = hashlib.new("sha256")

    def update(self, _data):
        raise MemoryError("while hashing")

    def hexdigest(self):
        return self._real.hexdigest()


def test_what_fails_in_the_thread_that_hashes_is_not_lost(tree, monkeypatch):
    monkeypatch.setattr("layerstore.differs.tar.hashlib", types.SimpleNamespace(sha256=_FailingHash))
    with pytest.raises(MemoryError):
        apply(tree, TarDiffer(file(b"a", b"x" * 100) + END))


def test_no_thread_to_be_had_is_a_typed_error(tree, monkeypatch):
    start = threading.Thread.start

    def refuse(self):
        if self.name == "layerstore-read":
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(BusyError):
        apply(tree, TarDiffer(file(b"a", b"") + END))
