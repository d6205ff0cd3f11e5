"""Trees that belong to an ordinary user's subordinate ids: outside of their user namespace, they can be removed again."""

import os
import threading
import time

import pytest
from namespaces import FULL, SUBIDS, as_user, in_namespace, users_directory
from storekit import digest
from tarmaker import END, directory, file, symlink

import layerstore
from layerstore import TarDiffer
from layerstore.system import faults, namespace
from layerstore.errors import PendingError, PrivilegeError
from layerstore.system.fs import open_dir
from layerstore.model import Descriptor

LAYER = (
    directory(b"d", uid=5, gid=6, mode=0o700) + file(b"d/f", b"content", uid=1000, gid=1001, mode=0o600)
    + directory(b"d/e", uid=7, gid=7, mode=0) + symlink(b"d/e/l", b"x", uid=7, gid=7) + file(b"own", b"1")
) + END

pytestmark = pytest.mark.root            # the ids have to be somebody's


@pytest.fixture
def home():
    with users_directory() as path:
        yield path


@pytest.fixture
def layer(home):
    """Committed in the namespace, and named."""
    in_namespace(lambda: put(home / "s"), FULL)
    with layerstore.open(home / "s", readonly=True) as store:
        return store.layers()[0].id


def put(root):
    with layerstore.open(root) as store, store.stage(TarDiffer(LAYER)) as staged:
        store.apply_staged_layer(staged, names=["it"])


def trash(root):
    return os.listdir(root / "trash")


def test_what_is_made_in_the_namespace_belongs_to_its_ids(home, layer):
    found = os.stat(home / "s" / "layers" / layer / "diff" / "d" / "f")
    assert (found.st_uid, found.st_gid) == (SUBIDS + 999, SUBIDS + 1000)


def test_a_deleted_layer_leaves_the_trash_without_the_namespace(home, layer):
    def work():
        with layerstore.open(home / "s") as store:
            store.delete_layer(layer)
            assert store.checkpoint().emptied == 1
            assert not trash(home / "s")
            assert store.check().sound

    as_user(work, subids=SUBIDS)


def test_garbage_collection_removes_it(home, layer):
    def work():
        with layerstore.open(home / "s") as store:
            store.drop_name("it")
            assert store.collect_garbage(grace=0).layers == (layer,)
        assert not trash(home / "s")

    as_user(work, subids=SUBIDS)


def test_recovery_removes_what_a_killed_process_was_staging(home):
    in_namespace(lambda: left_behind(home / "s"), FULL)

    def work():
        with layerstore.open(home / "s") as store:
            assert [action.do.value for action in store.recovery.actions] == ["sweep"]
            assert not store.recovery.deferred
        assert not os.listdir(home / "s" / "staging")

    as_user(work, subids=SUBIDS)


def left_behind(root):
    """What is left when a process is killed with a tree in hand that nobody else could ask for: it has no content key."""
    pid = os.fork()
    if not pid:
        with layerstore.open(root) as store:
            faults.install(lambda point, when: os._exit(9) if (point, when) == ("stage.sync", "before") else None)
            store.apply_staged_layer(store.stage(TarDiffer(LAYER)))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


@pytest.mark.parametrize("why", ["no range", "no newuidmap", "somebody else's"])
def test_without_the_ids_a_typed_error_says_what_to_do_and_nothing_else_is_kept_from_being_done(
    home, layer, monkeypatch, why,
):
    def work():
        if why == "no newuidmap":
            monkeypatch.setenv("PATH", "/nowhere")
        with layerstore.open(home / "s") as store:
            below = store.apply_staged_layer(store.stage(TarDiffer(file(b"other") + END))).id
            for each in (layer, below):
                store.delete_layer(each)
            with pytest.raises(PrivilegeError) as caught:
                store.checkpoint()
            assert "uidmap" in caught.value.hint
            assert "/etc/subuid" in caught.value.hint
            assert len(trash(home / "s")) == 1   # the other one has gone
            assert not store.layers()
            store.apply_staged_layer(store.stage(TarDiffer(file(b"more") + END)))
        with layerstore.open(home / "s") as store:
            assert len(store.layers()) == 1
            with pytest.raises(PendingError, match="space"):
                store.collect_garbage(grace=0)

    as_user(work, subids={"no range": 0, "no newuidmap": SUBIDS, "somebody else's": SUBIDS + 10_000_000}[why])

    def later():
        with layerstore.open(home / "s") as store:
            store.checkpoint()
        assert not trash(home / "s")

    as_user(later, subids=SUBIDS)


def test_a_store_whose_garbage_cannot_be_removed_opens_and_says_so(home):
    in_namespace(lambda: left_behind(home / "s"), FULL)

    def work():
        for _ in range(2):
            with layerstore.open(home / "s") as store:
                assert ["remov" in action.why for action in store.recovery.deferred] == [True]
                assert store.apply_staged_layer(store.stage(TarDiffer(file(b"f") + END)))
        assert len(os.listdir(home / "s" / "staging")) == 1

    as_user(work, subids=0)


def test_staged_trees_are_discarded(home):
    def stage():
        with layerstore.open(home / "s") as store:
            key = Descriptor("application/vnd.oci.image.layer.v1.tar", digest(LAYER), len(LAYER))
            store.stage(TarDiffer(LAYER, expect=key)).release()

    def work():
        with layerstore.open(home / "s") as store:
            assert len(store.collect_garbage(retention=0).staged) == 1
        assert not os.listdir(home / "s" / "staging")

    in_namespace(stage, FULL)
    as_user(work, subids=SUBIDS)


def test_what_rm_cannot_do_in_the_namespace_is_told_in_its_words(home):
    """A directory of somebody else's, whose ids no range of this user holds."""
    os.makedirs(home / "kept" / "of root", mode=0o700)
    os.chown(home / "kept", *(os.stat(home).st_uid, os.stat(home).st_gid))
    (home / "kept" / "of root" / "file").touch()

    def work():
        with open_dir(str(home)) as fd:
            assert "of root" in namespace.remove_as_subids(fd, "kept")
            assert not namespace.remove_as_subids(fd, "what is not there")

    as_user(work, subids=SUBIDS)
    assert os.listdir(home / "kept" / "of root") == ["file"]


def test_threads_that_a_fork_handler_starts_do_not_keep_it_from_being_removed(home, layer):
    def work():
        os.register_at_fork(after_in_child=lambda: threading.Thread(target=time.sleep, args=(60,), daemon=True).start())
        with layerstore.open(home / "s") as store:
            store.delete_layer(layer)
            assert store.checkpoint().emptied == 1
        assert not trash(home / "s")

    as_user(work, subids=SUBIDS)


@pytest.mark.parametrize(("text", "found"), [
    ("nobody:5:6\n", [(5, 6)]), ("65534:5:6\n65534:100:1\n", [(5, 6), (100, 1)]), ("other:5:6\n", []), ("", []),
    ("nobody:5\nnobody:x:1\nnobody:1:0\n\n# nobody:1:2\n", []),
])
def test_ranges_are_read_as_subuid_has_them(tmp_path, monkeypatch, text, found):
    monkeypatch.setattr(os, "getuid", lambda: 65534)
    (tmp_path / "subuid").write_text(text)
    assert namespace.ranges(str(tmp_path / "subuid")) == found


# -- looking at what may not be read


def test_check_calls_nothing_damaged_that_it_may_not_read_and_says_how_much_that_is(home, layer):
    def work():
        with layerstore.open(home / "s") as store:
            report = store.check(content=True)
        assert not report.findings
        assert report.unread > 0

    as_user(work)
    with layerstore.open(home / "s") as store:
        assert store.check(content=True).unread == 0


def test_a_sealed_tree_that_cannot_be_read_here_is_not_thrown_away(home):
    key = Descriptor("application/vnd.oci.image.layer.v1.tar", digest(LAYER), len(LAYER))

    def stage():
        with layerstore.open(home / "s") as store:
            staged = store.stage(TarDiffer(LAYER, expect=key))
            staged.seal()
            staged.release()

    def work():
        with layerstore.open(home / "s") as store:
            staged = store.stage(TarDiffer(LAYER, expect=key))
            assert staged.adopted
            staged.release()

    in_namespace(stage, FULL)
    as_user(work)


@pytest.mark.parametrize("act", ["extract", "export"])
def test_what_may_not_be_read_is_refused_by_a_typed_error_that_says_what_to_do(home, layer, act):
    def work():
        with layerstore.open(home / "s") as store, pytest.raises(PrivilegeError) as caught:
            if act == "extract":
                store.extract(layer, home / "out")
            else:
                with store.diff(layer) as chunks:
                    b"".join(chunks)
        assert "root" in caught.value.hint
        assert "namespace" in caught.value.hint

    as_user(work)
