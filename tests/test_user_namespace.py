"""Stores inside a user namespace: with one ID, and with a range of them; trees take the form that mounts there can read."""

import os
import stat
import subprocess
import sys
import threading

import pytest
from namespaces import FULL, IS_ROOT, ONE, USER, as_user, in_namespace, users_directory
from storekit import digest
from tarmaker import END, directory, file, header, pax

import layerstore
from layerstore import TarDiffer
from layerstore.system import kernel, privilege
from layerstore.trees.dress import Dresser
from layerstore.model import Descriptor
from layerstore.formats.tar import Entry

CAP = bytes.fromhex("0100000200200000000000000000000000000000")
LOWER = directory(b"d") + file(b"d/old", b"old") + file(b"gone", b"x") + file(b"kept", b"k") + END
UPPER = (
    directory(b"d", uid=5) + file(b"d/.wh..wh..opq") + file(b"d/new", b"new", uid=1000, gid=1001, mode=0o4755) + file(b".wh.gone")
    + header(b"null", b"3", major=1, minor=3, mode=0o666)
    + pax((b"SCHILY.xattr.security.capability", CAP)) + file(b"ping", b"elf")
) + END


def _namespaces_are_allowed():
    try:
        in_namespace(lambda: None)
    except AssertionError:
        return False
    return True


pytestmark = pytest.mark.skipif(not IS_ROOT and not _namespaces_are_allowed(), reason="this system forbids user namespaces")
ids = pytest.mark.parametrize("ids", [ONE, pytest.param(FULL, marks=pytest.mark.root)], ids=["one", "range"])


@pytest.fixture
def home():
    with users_directory() as path:
        yield path


def both(root):
    with layerstore.open(root) as store:
        below = store.apply_staged_layer(store.stage(TarDiffer(LOWER)))
        above = store.apply_staged_layer(store.stage(TarDiffer(UPPER)), parent=below.id, names=["both"])
        return above


@ids
def test_a_layer_unpacks_exports_and_is_sound_in_a_user_namespace(home, ids):
    def work():
        layer = both(home / "s")
        with layerstore.open(home / "s") as store:
            with store.diff(layer.id) as chunks:
                assert b"".join(chunks) == UPPER
            report = store.check(content=True)
            assert (report.findings, report.unread) == ((), 0)
        found = os.stat(home / "s" / "layers" / layer.id / "diff" / "d" / "new")
        assert (found.st_uid, found.st_gid) == ((1000, 1001) if ids is FULL else (0, 0))
        # with a range only the device lacks; with one ID also the owners of d and d/new
        assert layer.unset == (1 if ids is FULL else 3)

    in_namespace(work, ids)


@ids
def test_whiteouts_and_opaque_directories_have_the_form_that_is_seen_there(home, ids):
    def work():
        layer = both(home / "s")
        at = home / "s" / "layers" / layer.id / "diff"
        assert os.getxattr(at / "d", "user.overlay.opaque") == b"y"
        assert stat.S_ISCHR(os.lstat(at / "gone").st_mode)
        assert os.lstat(at / "gone").st_rdev == 0

    in_namespace(work, ids)


@ids
def test_what_was_unpacked_in_a_namespace_mounts_in_it_and_reads_right(home, ids):
    def work():
        both(home / "s")
        (home / "mnt").mkdir()
        with layerstore.open(home / "s") as store:
            store.mount("both", home / "mnt", writable=True)
            try:
                assert sorted(os.listdir(home / "mnt")) == ["d", "kept", "null", "ping"]
                assert os.listdir(home / "mnt" / "d") == ["new"]
                assert (home / "mnt" / "kept").read_bytes() == b"k"
                assert os.getxattr(home / "mnt" / "ping", "security.capability") == CAP
                found = os.stat(home / "mnt" / "d" / "new")
                assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (1000 if ids is FULL else 0, 0o4755)
                os.unlink(home / "mnt" / "kept")
                (home / "mnt" / "made").write_bytes(b"here")
                assert sorted(os.listdir(home / "mnt")) == ["d", "made", "null", "ping"]
            finally:
                store.unmount(home / "mnt")

    in_namespace(work, ids)


@ids
def test_a_tree_staged_in_a_namespace_is_adopted_in_it(home, ids):
    """Its user 0 could not set everything, and can no more the second time."""
    key = Descriptor("application/vnd.oci.image.layer.v1.tar", digest(UPPER), len(UPPER))

    def work():
        for again in (False, True):
            with layerstore.open(home / "s") as store:
                staged = store.stage(TarDiffer(UPPER, expect=key))
                assert staged.adopted is again
                staged.release()

    in_namespace(work, ids)


@pytest.mark.root
@pytest.mark.parametrize("unset", ["owner", "device", "mode", "capability", "nothing"])
def test_root_makes_anew_what_it_can_make_better(home, unset):
    mine = {"uid": USER, "gid": USER}
    data = directory(b"./", **mine) + {
        "owner": file(b"f", b"1", uid=3, gid=USER),
        "device": header(b"null", b"3", major=1, minor=3, **mine),
        "mode": file(b"f", b"1", mode=0, **mine),
        "capability": pax((b"SCHILY.xattr.security.capability", CAP)) + file(b"f", b"1", **mine),
        "nothing": file(b"f", b"1", **mine),
    }[unset] + END
    key = Descriptor("application/vnd.oci.image.layer.v1.tar", digest(data), len(data))

    def work():
        with layerstore.open(home / "s") as store:
            store.stage(TarDiffer(data, expect=key)).release()

    as_user(work)
    with layerstore.open(home / "s") as store, store.stage(TarDiffer(data, expect=key)) as staged:
        assert staged.adopted is (unset == "nothing")
        assert staged.output.unset == 0


@ids
def test_what_this_process_may_do_is_asked_of_the_kernel(ids):
    def work():
        powers = privilege.Powers.of_this_process()
        assert (powers.uid, powers.chowns, powers.reads_all) == (0, True, True)
        assert (powers.makes_devices, powers.is_root) == (False, False)
        assert sorted(privilege.own_map("uid")) == sorted(ids)

    in_namespace(work, ids)


@pytest.mark.root
def test_a_root_that_lacks_some_of_roots_privileges_is_known_for_it(home):
    """As a container's root."""
    code = (
        "import os, sys; sys.path[:0] = %r; from layerstore.system import privilege; p = privilege.Powers.of_this_process();"
        "print(p.uid, p.chowns, p.reads_all, p.makes_devices)" % sys.path
    )
    done = subprocess.run(
        ["setpriv", "--bounding-set", "-all,+chown", "--inh-caps", "-all,+chown", "--ambient-caps", "-all,+chown",
         sys.executable, "-c", code], capture_output=True, text=True, check=False,
    )
    assert done.stdout.split() == ["0", "True", "False", "False"], done.stderr


def test_without_proc_the_user_id_decides(monkeypatch):
    monkeypatch.setattr(privilege, "_effective", lambda: None)
    assert privilege.Powers.of_this_process().chowns is (os.geteuid() == 0)


@pytest.mark.root
def test_one_dresser_serves_several_threads(home):
    """What creator threads need: nothing in it changes."""
    dresser, failed = Dresser(), []
    before = {name: getattr(dresser, name) for name in ("_powers", "_ids", "_mapped")}

    def work(number):
        for n in range(50):
            path = home / f"{number}-{n}"
            path.touch()
            entry = Entry(b"f", "file", 0o640, number, n, 0, 10**9, b"", 0, 0, {}, None, 0)
            fd = os.open(path, os.O_RDONLY)
            try:
                if dresser.open_file(fd, entry) or (os.fstat(fd).st_uid, os.fstat(fd).st_gid) != (number, n):
                    failed.append(path)
            finally:
                os.close(fd)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert before == {name: getattr(dresser, name) for name in before}


def test_trusted_attributes_are_not_asked_for_where_they_cannot_be_read(home):
    def work():
        assert not kernel.has_trusted_xattrs()
        with layerstore.open(home / "s") as store:
            assert store._handle.overlay_form == "user"

    in_namespace(work)
