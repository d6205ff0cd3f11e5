"""Random trees by the tar writers of the field: staged and extracted they are the tree, and exported the very bytes.

The readers of the field, GNU tar and libarchive, extract the same archive beside us.
"""

import collections
import os
import shutil

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings

import layerstore
import randomtrees
import readings
import treediff
import writers
from layerstore import DirectoryDiffer, TarDiffer

pytestmark = pytest.mark.root

EXAMPLES = 7     # trees of each writer and format
DECOMPOSED = "e\u0301".encode()
written = collections.Counter()
MODEST = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],   # a tree costs too much to be made smaller for minutes
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with layerstore.open(tmp_path_factory.mktemp("shared") / "store") as store:
        yield store


class Case:
    """One tree as one archive, and what everybody makes of it."""

    def __init__(self, store, where, made, writer, form):
        self.tree, self.ours = where / "tree", where / "ours"
        self.tree.mkdir()
        randomtrees.build(made, self.tree)
        self.data = writers.write(writer, form, self.tree)
        self.where = where
        if self.data is not None:
            written[writer, form] += 1
            with store.stage(TarDiffer(self.data)) as staged:
                layer = store.apply_staged_layer(staged, id=os.urandom(32).hex())
            self.layer = layer.id
            store.extract(layer.id, self.ours)
            with store.diff(layer.id) as chunks:
                self.exported = b"".join(chunks)


@pytest.mark.parametrize("writer, form", writers.WRITERS, ids=lambda v: v)
def test_a_random_tree_by_any_writer_is_extracted_as_it_was_and_exported_to_the_byte(writer, form, shared, tmp_path_factory):
    @settings(MODEST, max_examples=EXAMPLES if form != "v7" else 3 * EXAMPLES)   # into which few trees fit
    @given(randomtrees.trees(privileged=os.geteuid() == 0))
    def every(made):
        where = tmp_path_factory.mktemp("case")
        try:
            case = Case(shared, where, made, writer, form)
            if case.data is None:
                return
            assert case.exported == case.data
            treediff.assert_same(writers.as_written(writer, form, treediff.snapshot(case.tree)), case.ours)
            (where / "gnu").mkdir()
            worked, said = writers.extract_gnu(case.data, where / "gnu")
            assert worked, said
            # of libarchive's attributes GNU tar reads only those in star's form, whose names come encoded
            treediff.assert_same(where / "gnu", case.ours, ignore=("xattrs",) if (writer, form) == ("bsd", "pax") else ())
        finally:
            shutil.rmtree(where)

    every()
    assert written[writer, form] >= 2, "too few trees fitted this format to say anything"


def test_names_of_attributes_are_taken_as_go_takes_them_also_where_gnu_tar_would_decode_them(shared, tmp_path):
    """GNU tar writes ``%`` as ``%25`` in star's records and reads it back; star, Go and libarchive take it as it stands."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a").write_bytes(b"")
    os.setxattr(tree / "a", "user.50%", b"x")
    data = writers.write("gnu", "posix 1.0", tree)
    with shared.stage(TarDiffer(data)) as staged:
        layer = shared.apply_staged_layer(staged, id=os.urandom(32).hex())
    shared.extract(layer.id, tmp_path / "ours")
    assert os.listxattr(tmp_path / "ours" / "a") == ["user.50%25"]


def test_libarchive_extracts_the_same_names_types_and_contents(shared, tmp_path_factory):
    """Of its own archives. Times before 1970 it writes as others (``writers``); composed and decomposed letters are one to it."""
    @MODEST
    @given(randomtrees.trees(privileged=os.geteuid() == 0))
    def every(made):
        assume(not any(DECOMPOSED in path for path in made))
        where = tmp_path_factory.mktemp("case")
        try:
            case = Case(shared, where, made, "bsd", "pax")
            if case.data is not None:
                (where / "bsd").mkdir()
                worked, said = writers.extract_bsd(case.data, where / "bsd")
                assert worked, said
                treediff.assert_same(where / "bsd", case.ours, ignore=("mtime_ns", "xattrs"))
        finally:
            shutil.rmtree(where)

    every()


def test_the_tar_of_a_directory_is_the_tree_to_every_reader(shared, tmp_path_factory):
    """The canonical one, which we write: GNU tar and libarchive extract it, tarfile reads it."""
    @settings(MODEST, max_examples=10)
    @given(randomtrees.trees(privileged=os.geteuid() == 0))
    def every(made):
        where = tmp_path_factory.mktemp("case")
        try:
            tree = where / "tree"
            tree.mkdir()
            randomtrees.build(made, tree)
            with shared.stage(DirectoryDiffer(tree)) as staged:
                layer = shared.apply_staged_layer(staged, id=os.urandom(32).hex())
            with shared.diff(layer.id) as chunks, open(where / "tar", "wb") as file:
                file.writelines(chunks)
            data = (where / "tar").read_bytes()
            for who, ignored in (("gnu", ()), ("bsd", ("mtime_ns",) if any(e["mtime_ns"] < 0 for e in made.values()) else ())):
                (where / who).mkdir()
                worked, said = writers.READERS[who](data, where / who)
                assert worked, said
                os.utime(where / who, ns=(10**18, 10**18))   # libarchive leaves the time of its own directory
                if not any(DECOMPOSED in path for path in made) or who == "gnu":
                    treediff.assert_same(tree, where / who, ignore=ignored)
            assert readings.members_by_tarfile(where / "tar") == readings.members(where / "tar")
        finally:
            shutil.rmtree(where)

    every()


def test_a_random_tree_that_is_mounted_is_the_tree_that_is_extracted(shared, tmp_path_factory):
    @settings(MODEST, max_examples=4)
    @given(randomtrees.trees(privileged=True))
    def every(made):
        where = tmp_path_factory.mktemp("case")
        case = Case(shared, where, made, "gnu", "posix 1.0")
        (where / "mounted").mkdir()
        shared.mount(case.layer, where / "mounted")
        try:
            treediff.assert_same(where / "mounted", case.ours)
        finally:
            shared.unmount(where / "mounted")
            shutil.rmtree(where)

    every()
    assert written["gnu", "posix 1.0"] >= 2


def test_the_comparison_can_fail(shared, tmp_path):
    made = {b"a": {"kind": "file", "mode": 0o644, "size": 9, "owner": None, "mtime_ns": 10**18, "xattrs": {}, "to": b"", "segments": []}}
    case = Case(shared, tmp_path, made, "gnu", "posix 1.0")
    expected = writers.as_written("gnu", "posix 1.0", treediff.snapshot(case.tree))
    treediff.assert_same(expected, case.ours)
    os.utime(case.ours / "a", ns=(1, 1))
    with pytest.raises(AssertionError, match="mtime_ns"):
        treediff.assert_same(expected, case.ours)
