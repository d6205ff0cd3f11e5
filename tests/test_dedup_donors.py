"""Files that are linked in rather than written: the tree is the same, and nothing is taken for what it is not."""

import hashlib
import os
import stat

import pytest
from storekit import observed
from tarmaker import END, directory, file, hardlink, header, pax, symlink
from test_unpack import ROOT, Tree
from treediff import snapshot

from layerstore.system.descriptors import Descriptor
from layerstore.trees.donors import Donors
from layerstore.errors import DigestMismatchError

DATA = b"content" * 10_000


@pytest.fixture
def tree(tmp_path):
    tree = Tree(tmp_path / "layer")
    yield tree
    tree.close()


@pytest.fixture
def donors():
    with Donors() as donors:
        yield donors


def offer(donors, tree, path, data=DATA, *, said=None):
    """A nameless file with *data*, offered for *path*; its inode number."""
    made = Descriptor(".", os.O_TMPFILE | os.O_RDWR, dir_fd=tree.fds[1])
    os.write(made.fd, data)
    said = data if said is None else said
    donors.offer(path, made, len(said), hashlib.sha256(said).digest())
    return os.fstat(made.fd).st_ino


def test_the_file_is_the_donor(tree, donors):
    inode = offer(donors, tree, b"d/f")
    tree.unpack(directory(b"d") + file(b"d/f", DATA, mode=0o640, mtime=77), donors=donors)
    found = tree.sound().stat("d/f")
    assert (found.st_ino, stat.S_IMODE(found.st_mode), found.st_mtime) == (inode, 0o640, 77)
    assert (tree.diff / "d/f").read_bytes() == DATA


def test_the_tree_is_that_of_a_written_one(tmp_path, donors):
    data = (
        directory(b"d") + file(b"d/f", DATA) + hardlink(b"d/g", b"d/f") + file(b"h", b"old" * 50) + file(b"h", DATA)
        + symlink(b"l", b"d") + file(b"l/through", DATA) + file(b"last", b"x")
    )
    results = []
    for name in ("written", "given"):
        tree = Tree(tmp_path / name)
        if name == "given":
            for path in (b"d/f", b"l/through"):
                offer(donors, tree, path)
        tree.unpack(data, donors=donors)
        tree.sound()
        results.append((tree.result, snapshot(tree.diff)))
        tree.close()
    assert results[0] == results[1]
    assert donors.take(b"l/through") is None


def test_a_donor_takes_the_place_of_an_earlier_file_and_is_replaced_by_a_later_one(tree, donors):
    class Second(Donors):
        def take(self, path):
            return donors.take(path) if path == b"f" and os.path.exists(tree.diff / "f") else None

    offer(donors, tree, b"f")
    tree.unpack(file(b"f", b"old" * 100) + file(b"f", DATA), donors=Second())
    tree.sound()
    assert (tree.diff / "f").read_bytes() == DATA
    assert [p.read_bytes() for p in (tree.path / "kept").iterdir()] == [b"old" * 100]


def test_a_replaced_donor_is_kept_for_the_tar(tree, donors):
    offer(donors, tree, b"f")
    tree.unpack(file(b"f", DATA) + file(b"f", b"new" * 100), donors=donors)
    tree.sound()
    assert (tree.diff / "f").read_bytes() == b"new" * 100
    assert [p.read_bytes() for p in (tree.path / "kept").iterdir()] == [DATA]


def test_a_donor_follows_files_that_threads_are_making(tmp_path, donors):
    tree = Tree(tmp_path / "layer", alone=0)
    offer(donors, tree, b"f")
    tree.unpack(b"".join(file(b"f%d" % n, b"x") for n in range(30)) + file(b"f", b"old") + file(b"f", DATA)
                + hardlink(b"again", b"f") + END, donors=_Later(donors, 1), end=False)
    tree.sound()
    assert (tree.diff / "again").read_bytes() == DATA
    tree.close()


class _Later:
    """Donors that have nothing for the first *skip* files of a path."""

    def __init__(self, donors, skip):
        self.donors, self.skip = donors, skip

    def take(self, path):
        if path == b"f" and self.skip:
            self.skip -= 1
            return None
        return self.donors.take(path)


@pytest.mark.parametrize("stream", [DATA[:-1] + b"!", DATA + b"!", b""])
def test_a_donor_of_other_content_than_the_streams_is_refused(tree, donors, stream):
    offer(donors, tree, b"f")
    with pytest.raises(DigestMismatchError):
        tree.unpack(file(b"f", stream), donors=donors)
    assert tree.names() == []


def test_a_sparse_file_is_written_whatever_is_offered(tree, donors):
    offer(donors, tree, b"f")
    sparse = pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", b"f"),
                 (b"GNU.sparse.realsize", b"70000"))
    payload = b"1\n0\n512\n".ljust(512, b"\0") + b"x" * 512
    tree.unpack(sparse + header(b"GNUSparseFile.0/f", size=len(payload)) + payload, donors=donors)
    assert (tree.diff / "f").read_bytes() == (b"x" * 512).ljust(70000, b"\0")
    assert donors.take(b"f") is None


@ROOT
def test_a_donor_gets_owner_attributes_and_mode(tree, donors):
    offer(donors, tree, b"f")
    attribute = pax((b"SCHILY.xattr.user.note", b"value"))
    tree.unpack(attribute + file(b"f", DATA, uid=5, gid=6, mode=0o4755), donors=donors)
    found = tree.sound().stat("f")
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (5, 6, 0o4755)
    assert os.getxattr(tree.diff / "f", "user.note") == b"value"


def test_linking_in_is_a_fault_point(tree, donors):
    offer(donors, tree, b"f")
    with observed([]) as passed:
        tree.unpack(file(b"f", DATA), donors=donors)
    assert "unpack.donor.link" in passed


def test_what_nobody_took_is_closed(tree):
    before = set(os.listdir("/proc/self/fd"))
    with Donors() as donors:
        offer(donors, tree, b"f")
        assert set(os.listdir("/proc/self/fd")) != before
    assert set(os.listdir("/proc/self/fd")) == before


def test_only_so_many_wait(tree, donors):
    n = 0
    while donors.has_room():
        offer(donors, tree, b"%d" % n, b"x")
        n += 1
    assert n == 128
