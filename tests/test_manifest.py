"""The manifest: what is written is read, what is damaged is refused, and a changed tree is found out."""

import hashlib
import os

import msgpack
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tarmaker import directory, file, hardlink, header, pax, symlink
from test_unpack import FORM, ROOT, Tree

from layerstore.errors import DamagedError
from layerstore.formats.manifest import (
    ManifestEntry,
    ManifestWriter,
    final_entries,
    manifest_digest,
    read_manifest,
)
from layerstore.trees.verify import tree_problems, verify_tree

FILE = ManifestEntry(b"f", "file", 0o644, 1, 2, 3, -5, sha256=b"d" * 32, xattrs={b"user.a": b"\0"}, unset=3)
DIR = ManifestEntry(b"d", "dir", 0o755, opaque=True, implicit=True)


@pytest.fixture
def tree(tmp_path):
    tree = Tree(tmp_path / "layer")
    yield tree
    tree.close()


def write(path, *records):
    """A manifest of entries, ``("gone", path)`` and fold counts; its digest."""
    fd = os.open(path, os.O_RDONLY)
    try:
        writer = ManifestWriter(fd)
        for record in records:
            if isinstance(record, ManifestEntry):
                writer.add(record)
            elif isinstance(record, int):
                writer.folds += record
            else:
                writer.gone(record[1])
        return writer.finish()
    finally:
        os.close(fd)


def written(path, objects):
    """A manifest file of any msgpack objects."""
    data = b"".join(map(msgpack.packb, objects))
    (path / "manifest").write_bytes(zstandard.ZstdCompressor().compress(data))
    return str(path / "manifest")


def test_what_is_written_is_read(tmp_path):
    write(tmp_path, FILE, DIR)
    assert list(read_manifest(str(tmp_path / "manifest"))) == [FILE, DIR]


def test_the_digest_is_that_of_the_file(tmp_path):
    digest = write(tmp_path, FILE)
    fd = os.open(tmp_path, os.O_RDONLY)
    assert digest == manifest_digest(fd) == "sha256:" + hashlib.sha256((tmp_path / "manifest").read_bytes()).hexdigest()
    os.close(fd)


def test_the_same_records_give_the_same_bytes(tmp_path):
    (tmp_path / "other").mkdir()
    assert write(tmp_path, FILE, DIR) == write(tmp_path / "other", FILE, DIR)


def test_a_manifest_is_never_overwritten(tmp_path):
    write(tmp_path, FILE)
    with pytest.raises(FileExistsError):
        write(tmp_path, FILE)


def test_reading_leaves_a_descriptors_position_alone(tmp_path):
    write(tmp_path, FILE)
    fd = os.open(tmp_path / "manifest", os.O_RDONLY)
    assert list(read_manifest(fd)) == list(final_entries(fd)) == [FILE]
    os.close(fd)


def test_a_later_record_of_a_path_wins(tmp_path):
    write(tmp_path, FILE, FILE._replace(mode=0o600), 1)
    assert [e.mode for e in final_entries(str(tmp_path / "manifest"))] == [0o600]


def test_what_is_gone_takes_what_is_beneath_it_along_but_not_its_neighbours(tmp_path):
    write(tmp_path, *(FILE._replace(path=p) for p in (b"a/b/c", b"a/b", b"a.b", b"ab")), ("gone", b"a"))
    assert [e.path for e in final_entries(str(tmp_path / "manifest"))] == [b"a.b", b"ab"]


def test_a_link_whose_target_was_replaced_becomes_the_file(tmp_path):
    link = ManifestEntry(b"l", "hardlink", linkname=b"f")
    write(tmp_path, FILE, link, link._replace(path=b"m"), FILE._replace(sha256=b"n" * 32), 1)
    found = {e.path: e for e in final_entries(str(tmp_path / "manifest"))}
    assert (found[b"f"].sha256, found[b"l"].sha256, found[b"m"].linkname) == (b"n" * 32, b"d" * 32, b"l")


HEAD = ["layerstore-manifest", 1]
GOOD = [b"f", "file", 0o644, 0, 0, 0, 0, b"", 0, 0, {}, b"d" * 32, 0, 0]


def changed(**at):
    record = list(GOOD)
    for index, value in at.items():
        record[int(index[1:])] = value
    return [HEAD, record, ["end", 1, 0]]


@pytest.mark.parametrize("objects", [
    [], [HEAD], [HEAD, GOOD], [["layerstore-manifest", 2], ["end", 0, 0]], [HEAD, GOOD, ["end", 2, 0]],
    [HEAD, ["end", 0, 0], GOOD], [HEAD, "text", ["end", 0, 0]], [HEAD, GOOD[:13], ["end", 1, 0]],
    changed(_0="text"), changed(_0=b"../x"), changed(_0=b"/x"), changed(_0=b"a//b"), changed(_1="socket"),
    changed(_2=-1), changed(_2=True), changed(_5=-1), changed(_6="now"), changed(_10={"text": b""}), changed(_10=[]),
    changed(_10={b"a": "text"}), changed(_11=None), changed(_11="d" * 32), changed(_13=True), changed(_11=b"short"), changed(_1="dir"), changed(_12=4), changed(_13=64),
    changed(_1="hardlink", _11=None), changed(_1="hardlink", _11=None, _7=b"a/../b"),
    [HEAD, ["gone", "text"], ["end", 0, 1]], [HEAD, [b"l", "hardlink", 0, 0, 0, 0, 0, b"no", 0, 0, {}, None, 0, 0], ["end", 1, 1]],
])
def test_a_malformed_manifest_is_refused(tmp_path, objects):
    with pytest.raises(DamagedError):
        list(final_entries(written(tmp_path, objects)))


def test_the_form_that_these_tests_bend_is_good(tmp_path):
    assert len(list(final_entries(written(tmp_path, changed())))) == 1


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused_or_the_same(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("m")
    write(path, FILE, DIR)
    whole = bytearray((path / "manifest").read_bytes())
    if data.draw(st.booleans()):
        del whole[data.draw(st.integers(0, len(whole) - 1)):]
    else:
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    (path / "manifest").write_bytes(whole)
    try:
        assert list(read_manifest(str(path / "manifest"))) == [FILE, DIR]
    except DamagedError:
        pass


# -- a tree against its manifest


def layer():
    return (
        directory(b"./") + directory(b"d", mtime=5) + file(b"d/f", b"content", mtime=6) + hardlink(b"d/h", b"d/f")
        + symlink(b"l", b"d/f", mtime=7) + pax((b"SCHILY.xattr.user.a", b"1")) + file(b"x", b"y", mtime=8)
        + file(b".wh.gone") + header(b"p", b"6") + file(b"o/.wh..wh..opq") + file(b"o/g", b"") + file(b"o/g", b"2")
    )


def keep_time(path, work):
    s = os.lstat(path)
    work()
    os.utime(path, ns=(s.st_atime_ns, s.st_mtime_ns), follow_symlinks=False)


def flip(root):
    keep_time(root / "d/f", lambda: (root / "d/f").write_bytes(b"cOntent"))


def in_dir(name, work):
    def change(root):
        keep_time(root / name, lambda: work(root))
    return change


def relink(root):
    s = os.lstat(root / "l")
    os.unlink(root / "l")
    os.symlink("d/h", root / "l")
    os.utime(root / "l", ns=(s.st_mtime_ns, s.st_mtime_ns), follow_symlinks=False)


def unlink_twin(root):
    data, s = (root / "d/h").read_bytes(), os.stat(root / "d/h")
    os.unlink(root / "d/h")
    (root / "d/h").write_bytes(data)
    os.chmod(root / "d/h", s.st_mode)
    os.utime(root / "d/h", ns=(s.st_mtime_ns, s.st_mtime_ns))


CHANGES = {
    "a flipped byte": (flip, b"d/f", "content changed"),
    "another size": (lambda r: keep_time(r / "x", lambda: (r / "x").write_bytes(b"")), b"x", "size 0, not 1"),
    "another mode": (lambda r: os.chmod(r / "x", 0o600), b"x", "mode 0600, not 0644"),
    "another time": (lambda r: os.utime(r / "x", (1, 1)), b"x", "mtime"),
    "a directory's time": (lambda r: os.utime(r / "d", (1, 1)), b"d", "mtime"),
    "another link target": (in_dir(".", relink), b"l", "link target"),
    "a lost attribute": (lambda r: os.removexattr(r / "x", "user.a"), b"x", "is missing"),
    "a changed attribute": (lambda r: os.setxattr(r / "x", "user.a", b"2"), b"x", "changed"),
    "a new attribute": (lambda r: os.setxattr(r / "x", "user.b", b"2"), b"x", "not its own"),
    "a missing file": (in_dir(".", lambda r: os.unlink(r / "x")), b"x", "missing"),
    "a missing whiteout": (in_dir(".", lambda r: os.unlink(r / "gone")), b"gone", "missing"),
    "a file for a whiteout": (
        in_dir(".", lambda r: (os.unlink(r / "gone"), (r / "gone").touch())), b"gone", "is a file, not a whiteout"),
    "a file too many": (in_dir("d", lambda r: (r / "d/new").touch()), b"d/new", "not in the manifest"),
    "a link too many": (in_dir("o", lambda r: os.link(r / "x", r / "o/new")), b"o/new", "not in the manifest"),
    "a separated hard link": (in_dir("d", unlink_twin), b"d/h", "no longer a hard link"),
    "an opaque mark lost": (
        lambda r: [os.removexattr(r / "o", n) for n in os.listxattr(r / "o")], b"o", "opaque is False"),
}


def test_an_untouched_tree_has_no_problems(tree):
    tree.unpack(layer())
    tree.sound()


@pytest.mark.parametrize("change, path, what", CHANGES.values(), ids=CHANGES)
def test_a_changed_tree_is_found_out(tree, change, path, what):
    digest = tree.unpack(layer()).manifest_digest
    change(tree.diff)
    (problem,) = tree_problems(tree.fds[0], digest, content=True, overlay_form=FORM)
    assert (problem.path, problem.unreadable) == (path, False)
    assert what in problem.what


def test_content_is_read_only_when_asked_for(tree):
    digest = tree.unpack(layer()).manifest_digest
    flip(tree.diff)
    assert list(tree_problems(tree.fds[0], digest, content=False)) == []


def test_a_link_put_in_a_directorys_place_is_not_followed(tree, tmp_path):
    digest = tree.unpack(layer()).manifest_digest
    os.rename(tree.diff / "d", tmp_path / "d")
    os.symlink(tmp_path / "d", tree.diff / "d")
    found = {p.path: p.what for p in tree_problems(tree.fds[0], digest, content=True)}
    assert found[b"d"] == "is a symlink, not a dir"
    assert found[b"d/f"] == "missing"


@pytest.mark.root
@ROOT
def test_another_owner_is_found_out(tree):
    digest = tree.unpack(layer()).manifest_digest
    os.chown(tree.diff / "x", 5, 6)
    assert ["owner 5:6" in p.what for p in tree_problems(tree.fds[0], digest, content=False)] == [True]


def test_another_manifest_is_found_out_by_its_digest(tree):
    tree.unpack(layer())
    (problem,) = tree_problems(tree.fds[0], "sha256:" + "0" * 64, content=True)
    assert problem.path == b"manifest"


@pytest.mark.parametrize("lost", ["manifest", "diff"])
def test_a_layer_without_its_parts_has_a_problem(tree, lost):
    digest = tree.unpack(layer()).manifest_digest
    os.rename(tree.path / lost, tree.path / "elsewhere")
    assert [p.what for p in tree_problems(tree.fds[0], digest, content=True)] == ["missing"]


def test_checking_changes_nothing_but_access_times(tree):
    digest = tree.unpack(layer()).manifest_digest
    stats = lambda: [(n, tree.stat(n).st_mtime_ns, tree.stat(n).st_ctime_ns) for n in tree.names()]  # noqa: E731
    before = stats()
    list(tree_problems(tree.fds[0], digest, content=True))
    assert stats() == before


def test_a_manifest_can_be_given_by_path(tree):
    tree.unpack(layer())
    assert list(verify_tree(tree.fds[1], str(tree.path / "manifest"), content=True)) == []
