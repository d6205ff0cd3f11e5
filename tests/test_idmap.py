"""Stores with a map of ids: the manifest and the tar have the archive's, the tree has the host's, and both ways are exact."""

import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st
from namespaces import FULL, NEWNS, PRIVATE, SUBIDS, in_namespace
from storekit import digest, in_child, put_layer
from tarmaker import END, directory, file, header, pax, symlink
from treediff import assert_same

import layerstore
from layerstore import TarDiffer
from layerstore.system import idmap, kernel
from layerstore.errors import DamagedError, InvalidArgumentError
from layerstore.formats.manifest import final_entries
from layerstore.model import Descriptor

MAP = [(0, SUBIDS, 1000), (1000, 3_000_000, 500)]
CAP = bytes.fromhex("0100000200200000000000000000000000000000")
LAYER = (
    directory(b"d", uid=5, gid=6) + file(b"d/f", b"content", uid=1000, gid=1001, mode=0o6755) + file(b"root", b"1")
    + symlink(b"l", b"d/f", uid=7, gid=8) + header(b"null", b"3", major=1, minor=3) + header(b"p", b"6", uid=9)
    + pax((b"SCHILY.xattr.security.capability", CAP)) + file(b"ping", b"elf") + file(b".wh.gone")
) + END
KEY = Descriptor("application/vnd.oci.image.layer.v1.tar", digest(LAYER), len(LAYER))
ODD = file(b"odd", b"x", uid=1500, gid=3, mode=0o4755) + END

needs_root = pytest.mark.root


def put(root, data=LAYER, **options):
    return put_layer(root, data, **options)


def owners(root, layer, *names):
    found = [os.lstat(os.path.join(root, "layers", layer, "diff", name)) for name in names]
    return [(each.st_uid, each.st_gid) for each in found]


# -- a store that root runs


@needs_root
def test_the_tree_has_host_ids_and_the_manifest_the_archives(home):
    layer = put(home / "s", uid_map=MAP)
    assert owners(home / "s", layer, "", "d", "d/f", "l", "null", "p") == [
        (SUBIDS, SUBIDS), (SUBIDS + 5, SUBIDS + 6), (3_000_000, 3_000_001), (SUBIDS + 7, SUBIDS + 8),
        (SUBIDS, SUBIDS), (SUBIDS + 9, SUBIDS),
    ]
    found = {e.path: (e.uid, e.gid, e.unset) for e in final_entries(str(home / "s" / "layers" / layer / "manifest"))}
    assert (found[b"d/f"], found[b"l"]) == ((1000, 1001, 0), (7, 8, 0))
    with layerstore.open(home / "s") as store:
        assert store.layer(layer).uids == (0, 5, 7, 9, 1000)
        assert stat.S_IMODE(os.stat(home / "s" / "layers" / layer / "diff" / "d" / "f").st_mode) == 0o6755


@needs_root
def test_groups_can_have_a_map_of_their_own(home):
    layer = put(home / "s", uid_map=MAP, gid_map=[(0, 5_000_000, 65536)])
    assert owners(home / "s", layer, "d/f") == [(3_000_000, 5_001_001)]


@needs_root
def test_capabilities_are_those_of_the_containers_root(home):
    layer = put(home / "s", uid_map=MAP)
    found = os.getxattr(home / "s" / "layers" / layer / "diff" / "ping", "security.capability")
    assert found == b"\x01\0\0\x03" + CAP[4:] + SUBIDS.to_bytes(4, "little")


@needs_root
def test_check_compares_by_way_of_the_map(home):
    layer = put(home / "s", uid_map=MAP)
    with layerstore.open(home / "s") as store:
        report = store.check(content=True)
        assert (report.findings, report.unread) == ((), 0)
        os.chown(home / "s" / "layers" / layer / "diff" / "root", 0, 0)
        assert ["owner 0:0" in f.message for f in store.check(content=True).findings] == [True]


@needs_root
def test_export_is_exact_and_extracting_gives_the_archives_ids_back(home):
    layer = put(home / "s", uid_map=MAP)
    put(home / "plain", overlay_form="user")
    for name in ("s", "plain"):
        with layerstore.open(home / name) as store:
            with store.diff(layer) as chunks:
                assert b"".join(chunks) == LAYER
            assert store.extract(layer, home / f"{name}-out").unset == 0
    assert_same(home / "s-out", home / "plain-out")


@needs_root
def test_an_id_that_the_map_lacks_becomes_the_containers_root_and_is_recorded(home):
    layer = put(home / "s", ODD, uid_map=MAP)
    path = home / "s" / "layers" / layer / "diff" / "odd"
    assert owners(home / "s", layer, "odd") == [(SUBIDS, SUBIDS)]
    assert os.getxattr(path, "user.containers.override_stat") == b"1500:3:4755:file"
    with layerstore.open(home / "s") as store:
        assert store.check(content=True).sound
        assert store.extract(layer, home / "out").unset == 0
    assert (os.stat(home / "out" / "odd").st_uid, os.stat(home / "out" / "odd").st_gid) == (1500, 3)


@needs_root
def test_a_staged_tree_of_a_store_with_a_map_is_adopted(home):
    for _ in range(2):
        with layerstore.open(home / "s", uid_map=MAP) as store:
            staged = store.stage(TarDiffer(LAYER, expect=KEY))
            adopted = staged.adopted
            staged.release()
    assert adopted


@needs_root
def test_a_store_with_a_map_is_of_the_form_that_user_namespaces_can_read(home):
    put(home / "s", uid_map=MAP)
    put(home / "t")
    with layerstore.open(home / "s") as one, layerstore.open(home / "t") as other:
        assert (one._handle.overlay_form, other._handle.overlay_form) == ("user", "trusted")


@needs_root
def test_a_container_in_a_namespace_with_that_map_sees_its_own_ids(home):
    layer = put(home / "s", uid_map=[(0, SUBIDS, 65536)])
    for path in (home, home / "s", home / "s" / "layers", home / "s" / "layers" / layer):
        os.chmod(path, 0o755)

    def work():
        assert owners(home / "s", layer, "d/f", "root") == [(1000, 1001), (0, 0)]

    in_namespace(work, [(0, SUBIDS, 65536)], user=SUBIDS)


@needs_root
def test_the_root_of_a_writable_mount_is_the_containers(home):
    layer = put(home / "s", uid_map=MAP)
    (home / "mnt").mkdir()

    def work():
        with layerstore.open(home / "s") as store:
            store.mount(layer, home / "mnt", writable=True)
            try:
                found = os.stat(home / "mnt")
                assert (found.st_uid, found.st_gid) == (SUBIDS, SUBIDS)
                assert os.stat(home / "mnt" / "d" / "f").st_uid == 3_000_000
            finally:
                store.unmount(home / "mnt")

    alone(work)


def alone(work):
    """Run *work* in a child with a mount namespace of its own."""
    def child():
        kernel.unshare(NEWNS)
        kernel.mount("none", "/", None, PRIVATE, None)
        work()

    assert in_child(child) == 0


@pytest.mark.parametrize("bad", [
    [], [(0, 1)], [(0, 100, 0)], [(-1, 100, 1)], [(0, 100, 10), (5, 500, 10)], [(0, 100, 10), (20, 105, 10)],
    [(0, 1 << 32, 1)], [("0", 1, 1)], [(n, n, 1) for n in range(341)],
])
def test_a_map_that_cannot_be_is_refused_and_no_store_is_made(tmp_path, bad):
    with pytest.raises(InvalidArgumentError):
        layerstore.open(tmp_path / "s", uid_map=bad, gid_map=[(0, 0, 1)])
    assert not (tmp_path / "s" / "store.json").exists()


def test_a_map_in_store_json_that_cannot_be_understood_is_damage(tmp_path):
    with layerstore.open(tmp_path / "s", uid_map=[(0, os.getuid(), 1)], gid_map=[(0, os.getgid(), 1)]):
        pass
    config = (tmp_path / "s" / "store.json").read_text()
    assert '"id-map"' in config              # an older layerstore refuses it
    (tmp_path / "s" / "store.json").write_text(config.replace('"gid"', '"other"'))
    with pytest.raises(DamagedError):
        layerstore.open(tmp_path / "s")


# -- in user namespaces, and out of them again


@needs_root
def test_a_store_made_in_a_namespace_is_sound_from_outside_and_adds_up(home):
    """By root, who has all ids."""
    in_namespace(lambda: put(home / "s"), FULL)
    with layerstore.open(home / "s") as store:
        layer = store.layers()[0]
        report = store.check(content=True)
        assert (report.findings, report.unread) == ((), 0)
        assert store.extract(layer.id, home / "out").unset == 0
        other = store.apply_staged_layer(store.stage(TarDiffer(file(b"more", uid=77, gid=78) + END)))
    assert owners(home / "s", other.id, "more") == [(SUBIDS + 76, SUBIDS + 77)]
    assert os.stat(home / "out" / "d" / "f").st_uid == 1000


def sound(root):
    with layerstore.open(root) as store:
        report = store.check(content=True)
        assert (report.findings, report.unread) == ((), 0)


@needs_root
def test_ids_that_the_archive_has_and_the_namespace_lacks_are_recorded(home):
    def work():
        layer = put(home / "s", file(b"odd", b"x", uid=70_000, gid=3) + file(b"even", b"y", uid=70, gid=3) + END)
        assert owners(home / "s", layer, "odd", "even") == [(0, 0), (70, 3)]
        path = home / "s" / "layers" / layer / "diff"
        assert os.getxattr(path / "odd", "user.containers.override_stat") == b"70000:3:0644:file"
        assert os.listxattr(path / "even") == []
        assert os.listxattr(path) == []      # else fuse-overlayfs would want it on every file
        sound(home / "s")

    in_namespace(work, FULL)


@needs_root
def test_a_namespace_with_other_ids_calls_nothing_damaged(home):
    in_namespace(lambda: put(home / "s"), FULL)
    for path, _, _ in os.walk(home):
        os.chmod(path, 0o755)

    def work():
        with layerstore.open(home / "s") as store:
            assert not [f for f in store.check(content=True).findings if "owner" in f.message]

    in_namespace(work, [FULL[0], (1, SUBIDS + 100_000, 100)])


# -- maps


def test_seen_from_another_namespace_a_map_is_what_the_two_have_in_common():
    assert idmap.seen_from(((0, 1000, 1), (1, 100_000, 10)), ((0, 1000, 1), (1, 100_005, 100))) == ((0, 0, 1), (6, 1, 5))
    assert idmap.seen_from(((0, 1000, 1),), idmap.WHOLE) == ((0, 1000, 1),)
    assert idmap.seen_from(((0, 1000, 1),), ((0, 5, 1),)) == ()


def test_a_map_made_in_a_namespace_is_recorded_with_the_ids_outside():
    assert idmap.shown_outside(((0, 10, 4),), ((0, 1000, 1), (1, 100_000, 11), (12, 7, 5))) == ((0, 100_009, 2), (2, 7, 2))
    with pytest.raises(ValueError, match="10 … 13"):
        idmap.shown_outside(((0, 10, 4),), ((0, 1000, 11),))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.permutations(range(6)), st.integers(0, 400))
def test_there_and_back_is_the_same_id_or_none(sizes, order, number):
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    hosts = {n: 1000 + 60 * order[n] for n in range(len(sizes))}
    ids = idmap.IdMap(idmap.checked([(starts[n], hosts[n], sizes[n]) for n in range(len(sizes))]), None)
    host = ids.uid(number)
    assert (host is None) == (number >= sum(sizes))
    if host is not None:
        assert ids.container_uid(host) == number
    assert ids.gid(number) == ids.container_gid(number) == number


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300), st.integers(1, 60)), min_size=1, max_size=5),
       st.integers(0, 400))
def test_composing_is_looking_up_twice(ranges, number):
    try:
        one = idmap.checked(ranges)
    except ValueError:
        return
    own = ((0, 50, 100), (100, 200, 50))
    seen = idmap.IdMap(idmap.seen_from(one, own)).uid(number)
    host = idmap.IdMap(one).uid(number)
    assert seen == (None if host is None else idmap.IdMap(own).container_uid(host))


def test_a_map_is_the_same_only_where_every_id_that_is_seen_is_the_archives():
    from layerstore.system.idmap import IDENTITY, IdMap

    assert IDENTITY.same and IdMap(((0, 0, 1), (1, 1, 9)), ((0, 0, 10),)).same
    for uids, gids in ((((0, 5, 1),), ((0, 0, 1),)), (((0, 0, 1),), ((0, 5, 1),)), ((), ((0, 0, 1),)), (((0, 0, 1),), ())):
        assert not IdMap(uids, gids).same
