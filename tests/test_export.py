"""What was accepted comes out again byte for byte, from the tree on disk; and never anything else."""

import base64
import gzip
import hashlib
import io
import json
import os
import random
import subprocess
import sys
import tarfile
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import layerstore
from fuzz import nasties
from layerstore import Descriptor, DirectoryDiffer, Limits, StageOptions, TarDiffer
from layerstore.formats.crc64 import _plain, crc64
from layerstore.formats.packed import PackedWriter, open_regular
from layerstore.formats.tarsplit import MAGIC, VERSION, Member
from layerstore.trees.assemble import Content
from layerstore.errors import ArchiveError, InvalidArgumentError, LayerDamagedError, LimitExceededError
from nasty_tars import member, sparse_tars
from storekit import image
from test_unpack import ACL


def put(store, data, **options):
    with store.stage(TarDiffer(data)) as staged:
        return store.apply_staged_layer(staged, **options)


def exported(store, layer_id):
    with store.diff(layer_id) as chunks:
        return b"".join(chunks)


def rebuilt(store, layer):
    """By a reader of the Go tools' format that is written here, from the tree alone."""
    with store.tar_split(layer.id) as lines, store.layer_paths(layer.id) as paths:
        out = b""
        names = []
        for number, line in enumerate(b"".join(lines).splitlines()):
            entry = json.loads(line)
            assert entry["position"] == number
            if entry["type"] == 2:
                out += base64.b64decode(entry["payload"])
                continue
            name = entry["name"].encode() if "name" in entry else base64.b64decode(entry["name_raw"])
            names.append(os.path.normpath(name))
            if not entry.get("size"):
                assert entry["payload"] is None
                continue
            with open(os.path.join(os.fsencode(paths[-1]), name.lstrip(b"/")), "rb") as file:
                data = file.read()
            assert len(data) == entry["size"]
            assert base64.b64decode(entry["payload"]) == crc64(data, 0).to_bytes(8, "big")
            out += data
        assert len(names) == len(set(names)), "a reader of Go's refuses a name that comes twice"
        return out


SIMPLE = member("dir/", kind=tarfile.DIRTYPE) + member("dir/file", b"content") + nasties.END


def test_a_layer_comes_out_as_the_tar_it_was(store):
    layer = put(store, SIMPLE)
    assert exported(store, layer.id) == SIMPLE
    assert rebuilt(store, layer) == SIMPLE


@pytest.mark.parametrize("pack", [gzip.compress, bytes], ids=["gzip", "plain"])
def test_what_comes_out_is_the_uncompressed_tar(store, pack):
    layer = put(store, pack(SIMPLE))
    assert exported(store, layer.id) == SIMPLE


@pytest.mark.parametrize("label, data", [
    ("no end marker's padding", SIMPLE), ("much padding", SIMPLE + bytes(10_240)),
    ("a name twice", member("a", b"one") + member("a", b"two") + member("a", b"three") + nasties.END),
    ("a file for a directory", member("d/", kind=tarfile.DIRTYPE) + member("d/in", b"inside") + member("d", b"x") + nasties.END),
    ("a directory for a file", member("d", b"was") + member("d/", kind=tarfile.DIRTYPE) + member("d/in", b"is") + nasties.END),
    ("deep below what is replaced", member("d/e/f/", kind=tarfile.DIRTYPE) + member("d/e/f/g", b"deep") + member("d/e/h", b"h")
     + member("d", b"flat") + nasties.END),
    ("replaced beneath a hard link", member("a", b"one") + member("b", kind=tarfile.LNKTYPE, link="a") + member("a", b"two") + nasties.END),
    ("a hard link replaced", member("a", b"one") + member("b", kind=tarfile.LNKTYPE, link="a") + member("b", b"two") + nasties.END),
    ("replaced by a symlink", member("a", b"one") + member("a", kind=tarfile.SYMTYPE, link="x") + nasties.END),
    ("replaced and made again", member("a", b"1") + member("a", kind=tarfile.SYMTYPE, link="x") + member("a", b"2") + nasties.END),
    ("an unreadable file replaced", member("a", b"one", mode=0) + member("a", b"two", mode=0o644) + nasties.END),
    ("names that are not clean", member("./a", b"1") + member(".//d///b", b"2") + member("/c", b"3") + nasties.END),
    ("through a symlink", member("real/", kind=tarfile.DIRTYPE) + member("l", kind=tarfile.SYMTYPE, link="real")
     + member("l/file", b"through") + nasties.END),
    ("through an absolute symlink", member("real/", kind=tarfile.DIRTYPE) + member("l", kind=tarfile.SYMTYPE, link="/real")
     + member("l/file", b"through") + nasties.END),
    ("whiteouts with data", member(".wh.x", b"data in a whiteout") + member("d/.wh..wh..opq", b"and here") + nasties.END),
    ("AUFS's own", member(".wh..wh.plnk", b"bookkeeping") + member("a", b"1") + nasties.END),
    ("a name that is not UTF-8", nasties.file(b"\xff\xfe", b"bytes") + nasties.END),
    ("an empty archive", nasties.END),
])
def test_it_comes_out_byte_for_byte(store, label, data):
    layer = put(store, data)
    assert exported(store, layer.id) == data
    assert rebuilt(store, layer) == data
    assert store.check(content=True).sound


def test_what_lies_deeper_than_a_path_can_name_is_exported_checked_extracted_and_deleted(store, tmp_path):
    deep = b"/".join([b"n" * 255] * 15)
    data = (nasties.pax({"path": deep}) + nasties.header(b"d", b"5", mode=0o755)
            + nasties.pax({"linkpath": deep}) + nasties.header(b"l", b"2")
            + nasties.pax({"path": b"l/" + deep + b"/f"}) + nasties.file(b"f", b"far") + nasties.END)
    with store.stage(TarDiffer(data), options=StageOptions(limits=Limits(max_path_length=10_000))) as staged:
        layer = store.apply_staged_layer(staged)
    assert exported(store, layer.id) == data
    assert store.check(content=True).sound
    assert store.usage() is not None
    assert store.extract(layer.id, tmp_path / "out").entries == 32
    store.delete_layer(layer.id)
    assert store.layers() == []


WITH_ATTRIBUTES = (
    nasties.pax({"SCHILY.xattr.trusted.mine": b"1", "SCHILY.xattr.system.posix_acl_access": ACL}) + nasties.file(b"f", mode=0o660)
    + nasties.pax({"SCHILY.xattr.system.posix_acl_default": ACL, "SCHILY.xattr.security.selinux": b"x"}) + nasties.header(b"d", b"5", mode=0o775)
    + nasties.pax({"SCHILY.xattr.system.posix_acl_access": b"none"}) + nasties.file(b"bad") + nasties.END
)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: trusted.*")
def test_what_only_the_manifest_has_of_attributes_is_set_where_a_layer_is_extracted(store, tmp_path):
    layer = put(store, WITH_ATTRIBUTES)
    assert layer.unset == 3
    report = store.extract(layer.id, tmp_path / "out")
    assert report.unset == 1, "what is no ACL"
    assert os.getxattr(tmp_path / "out" / "f", "trusted.mine") == b"1"
    assert os.getxattr(tmp_path / "out" / "f", "system.posix_acl_access") == ACL
    assert os.getxattr(tmp_path / "out" / "d", "system.posix_acl_default") == ACL
    assert [oct(os.stat(tmp_path / "out" / name).st_mode)[-3:] for name in ("f", "d")] == ["660", "775"]
    assert store.check(content=True).sound
    with store.stage(DirectoryDiffer(tmp_path / "out")) as staged:
        packed = store.apply_staged_layer(staged)
    assert b"SCHILY.xattr.system.posix_acl_default=" + ACL in exported(store, packed.id)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: security.capability")
def test_capabilities_that_name_a_hosts_root_are_in_no_tree_and_set_where_a_layer_is_extracted(store, tmp_path):
    value = b"\1\0\0\3" + bytes(16) + (1000).to_bytes(4, "little")
    data = nasties.pax({"SCHILY.xattr.security.capability": value}) + nasties.file(b"f") + nasties.END
    layer = put(store, data)
    assert layer.unset == 1 and store.check(content=True).sound and exported(store, layer.id) == data
    assert store.extract(layer.id, tmp_path / "out").unset == 0
    assert os.getxattr(tmp_path / "out" / "f", "security.capability") == value
    expect = Descriptor("x", digest="sha256:" + hashlib.sha256(data).hexdigest(), size=len(data))
    store.stage(TarDiffer(data, expect=expect)).release()
    with store.stage(TarDiffer(b"", expect=expect)) as staged:
        assert staged.adopted


@pytest.mark.root
def test_what_nobody_sets_keeps_no_tree_from_being_adopted(store):
    expect = Descriptor("x", digest="sha256:" + hashlib.sha256(WITH_ATTRIBUTES).hexdigest(), size=len(WITH_ATTRIBUTES))
    store.stage(TarDiffer(WITH_ATTRIBUTES, expect=expect)).release()
    with store.stage(TarDiffer(b"", expect=expect)) as staged:
        assert staged.adopted


class Counting(int):
    """A number that counts what it is compared with."""

    compared = 0

    def __lt__(self, other):
        Counting.compared += 1
        return int(self) < int(other)

    def __gt__(self, other):
        Counting.compared += 1
        return int(self) > int(other)


def test_a_name_that_comes_50_000_times_costs_few_steps_for_each_member(tmp_path):
    (tmp_path / "diff").mkdir()
    fd = os.open(tmp_path, os.O_RDONLY)
    writer = PackedWriter(fd, "tar-split", MAGIC, VERSION)
    for number in range(50_000):
        writer.put((b"a", b"a", 1, None))
        writer.put(("kept", b"a", number, 1, bytes(32)))
    writer.put(("end", 50_000, 50_000))
    writer.finish()
    with open_regular("tar-split", fd) as split, Content(fd, split) as content:
        for number in (0, 1, 25_000, 49_999):
            Counting.compared = 0
            assert content.is_kept(Member(b"a", b"a"), Counting(2 * number)) == number
            assert 1 <= Counting.compared <= 17
        assert content.is_kept(Member(b"a", b"a"), 100_000) is None
        assert content.is_kept(Member(b"b", b"b"), 0) is None
    os.close(fd)


def test_a_file_whose_zeros_became_holes_comes_out_is_sound_and_counts_as_long_as_it_is(store, tmp_path):
    data = member("f", b"x" * 100_000 + bytes(30 << 20) + b"y") + nasties.END
    layer = put(store, data)
    assert exported(store, layer.id) == data
    assert rebuilt(store, layer) == data
    assert store.check(content=True).sound
    store.extract(layer.id, tmp_path / "out")
    with store.layer_paths(layer.id) as paths:
        assert all(os.stat(os.path.join(at, "f")).st_blocks * 512 < 1 << 20 for at in (paths[-1], tmp_path / "out"))
    assert store.space().counted == layer.diff_size == len(data), "a quota counts the tar"
    used = store.usage()
    assert (used.logical, used.allocated < 2 << 20) == (100_001 + (30 << 20), True)


@pytest.mark.parametrize("name, data", sparse_tars())
def test_sparse_files_of_every_kind_come_out_byte_for_byte(store, name, data):
    layer = put(store, data)
    assert exported(store, layer.id) == data
    assert rebuilt(store, layer) == data


def test_every_hand_made_nasty_that_is_accepted_comes_out_byte_for_byte(store):
    accepted = 0
    for number, data in enumerate(nasties.seeds("tar_reader")):
        try:
            layer = put(store, data, id=f"{number:064x}")
        except (ArchiveError, LimitExceededError):
            continue
        accepted += 1
        assert exported(store, layer.id) == data, number
    assert accepted > 25


NAMES = st.sampled_from(["a", "b", "d/", "d/a", "d/b", "d/e/", "d/e/c", "l", "l/a", "./a", ".wh.a", "d/.wh.b", "d/.wh..wh..opq"])
MEMBERS = st.tuples(NAMES, st.sampled_from("fdsl"), st.binary(max_size=700), st.sampled_from(["a", "d", "d/e", "/d", "b"]))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(MEMBERS, max_size=12))
def test_any_order_of_entries_that_replace_each_other_comes_out(tmp_path_factory, members):
    kinds = {"f": tarfile.REGTYPE, "d": tarfile.DIRTYPE, "s": tarfile.SYMTYPE, "l": tarfile.LNKTYPE}
    data = b"".join(
        member(name, content if kind == "f" and not name.endswith("/") else b"", kind=kinds[kind], link=link)
        for name, kind, content, link in members
    ) + nasties.END
    with layerstore.open(tmp_path_factory.mktemp("s") / "s") as store:
        try:
            layer = put(store, data)
        except ArchiveError:
            return
        assert exported(store, layer.id) == data
        assert rebuilt(store, layer) == data
        assert store.check(content=True).sound


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_random_trees_by_every_writer_come_out_byte_for_byte(store, tmp_path, format_):
    draw = random.Random(format_)
    tree = tmp_path / "tree"
    tree.mkdir()
    for n in range(120):
        directory = tree / f"d{draw.randrange(9)}" / ("x" * draw.choice((1, 90)))
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"f{n}").write_bytes(draw.randbytes(draw.choice((0, 1, 511, 512, 513, 70_000))))
        os.symlink("../f", directory / f"s{n}")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format_) as archive:
        archive.add(tree, arcname=".")
    layer = put(store, buffer.getvalue())
    assert exported(store, layer.id) == buffer.getvalue()
    gnu = subprocess.run(["tar", "-C", str(tree), "-cf", "-", "."], check=True, capture_output=True).stdout
    assert exported(store, put(store, gnu, id="9" * 64).id) == gnu


def test_a_directory_becomes_the_same_tar_every_time(store, tmp_path):
    (tmp_path / "up" / "d").mkdir(parents=True)
    (tmp_path / "up" / "d" / "f").write_bytes(b"x" * 5000)
    made = []
    for layer_id in ("1" * 64, "2" * 64):
        with store.stage(DirectoryDiffer(tmp_path / "up")) as staged:
            made.append(exported(store, store.apply_staged_layer(staged, id=layer_id).id))
    assert made[0] == made[1]
    assert tarfile.open(fileobj=io.BytesIO(made[0])).getnames()[-1].endswith("d/f")


def test_a_changed_file_never_becomes_a_whole_tar(store):
    layer = put(store, SIMPLE)
    path = os.path.join(store.root, "layers", layer.id, "diff", "dir", "file")
    for change in (b"CONTENT", b"cont", None):
        if change is None:
            os.unlink(path)
        else:
            with open(path, "wb") as file:
                file.write(change)
        got = b""
        with pytest.raises(LayerDamagedError), store.diff(layer.id) as chunks:
            for chunk in chunks:
                got += chunk
        assert len(got) < len(SIMPLE)


DAMAGE = {   # what happens to dir/file of SIMPLE, which says "content"
    "a flipped bit": lambda path: write(path, b"conTent"), "cut short": lambda path: write(path, b"cont"), "gone": os.unlink,
}


def write(path, data):
    with open(path, "wb") as file:
        file.write(data)


@pytest.mark.parametrize("damage", sorted(DAMAGE))
def test_a_changed_file_never_becomes_a_whole_tar_split(store, damage):
    """Its checksums are of what the tree has: whoever reads it could not tell."""
    layer = put(store, SIMPLE)
    with store.tar_split(layer.id) as lines:
        whole = b"".join(lines)
    DAMAGE[damage](os.path.join(store.root, "layers", layer.id, "diff", "dir", "file"))
    got = b""
    with pytest.raises(LayerDamagedError, match=layer.id), store.tar_split(layer.id) as lines:
        for chunk in lines:
            got += chunk
    assert len(got) < len(whole)


@pytest.mark.parametrize("data", [
    member("a", b"one") + member("a", b"two"), member("./a", b"one") + member("a", kind=tarfile.DIRTYPE), member("./a", b"one"),
], ids=["kept", "kept, and a directory now", "in its place"])
def test_a_changed_file_that_a_tar_split_has_as_a_segment_is_damage_too(store, data):
    layer = put(store, data + nasties.END)
    diff, kept = (os.path.join(store.root, "layers", layer.id, *each) for each in (("diff", "a"), ("kept", "0")))
    write(kept if os.path.exists(kept) else diff, b"ONE")
    with pytest.raises(LayerDamagedError, match=layer.id), store.tar_split(layer.id) as lines:
        list(lines)


def test_a_changed_tar_split_is_damage_before_it_is_decoded_and_check_finds_it(store):
    layer = put(store, SIMPLE)
    path = os.path.join(store.root, "layers", layer.id, "tar-split")
    with open(path, "r+b") as file:
        file.seek(20)
        file.write(b"\0")
    with pytest.raises(LayerDamagedError, match="digest"), store.diff(layer.id) as chunks:
        list(chunks)
    assert any("tar-split" in f.message for f in store.check(content=True).findings)
    os.unlink(path)
    with pytest.raises(LayerDamagedError, match="missing"), store.diff(layer.id):
        pass


def test_check_finds_a_change_in_what_was_kept(store):
    layer = put(store, member("a", b"one") + member("a", b"two") + nasties.END)
    assert store.check(content=True).sound
    with open(os.path.join(store.root, "layers", layer.id, "kept", "0"), "wb") as file:
        file.write(b"ONE")
    assert [f.code for f in store.check(content=True).findings] == ["kept-wrong"]


def test_a_layer_whose_differ_wrote_no_tar_split_says_so(store):
    class Plain(TarDiffer):
        def apply_diff(self, target):
            import dataclasses

            return dataclasses.replace(super().apply_diff(target), tar_split_digest=None)

    with store.stage(Plain(SIMPLE)) as staged:
        layer = store.apply_staged_layer(staged)
    with pytest.raises(InvalidArgumentError, match="tar-split"), store.diff(layer.id):
        pass
    assert store.check(content=True).sound


def test_exporting_holds_up_neither_a_deletion_nor_a_new_layer(store):
    layer = put(store, SIMPLE)
    with store.diff(layer.id) as chunks:
        report = store.delete_layer(layer.id, wait=0.0)
        assert report.deferred == (layer.id,)
        put(store, SIMPLE + bytes(512), id="5" * 64)
        assert b"".join(chunks) == SIMPLE
    store.recover()
    assert [x.id for x in store.layers()] == ["5" * 64]


def test_memory_stays_small_for_a_large_file(store):
    import tracemalloc

    size = 64 << 20
    data = nasties.header(b"big", size=size) + bytes(size) + nasties.END
    layer = put(store, data)
    del data
    tracemalloc.start()
    digest = hashlib.sha256()
    with store.diff(layer.id) as chunks:
        for chunk in chunks:
            digest.update(chunk)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert f"sha256:{digest.hexdigest()}" == layer.diff_id
    assert peak < 16 << 20


def test_two_threads_export_at_once(store):
    layer = put(store, SIMPLE)
    got = []
    threads = [threading.Thread(target=lambda: got.append(exported(store, layer.id))) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert got == [SIMPLE] * 4


def test_the_checksum_is_gos_whichever_way_it_is_computed():
    assert _plain(b"123456789") == crc64(b"123456789", 0) == 0xB90956C775A41001
    assert crc64(b"6789", crc64(b"12345", 0)) == _plain(b"6789", _plain(b"12345")) == 0xB90956C775A41001


def test_without_the_wheel_the_checksum_is_computed_in_python():
    code = "import sys; sys.modules['fastcrc'] = None; from layerstore.formats import crc64 as c; assert c.crc64 is c._plain"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def by_the_byte(data, crc=0):
    """As ISO 3309 has it, one bit after the other."""
    crc ^= (1 << 64) - 1
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xD800000000000000 if crc & 1 else 0)
    return crc ^ (1 << 64) - 1


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.binary(max_size=40), st.binary(min_size=500, max_size=3_000)), st.integers(0, (1 << 64) - 1))
def test_the_checksum_in_python_is_that_of_every_bit(data, before):
    assert _plain(data, before) == by_the_byte(data, before) == crc64(data, before)


def test_the_checksum_in_python_takes_few_steps_for_much_data():
    data = random.Random(1).randbytes(200_000)
    steps = []

    def trace(_frame, event, _argument):
        if event == "line":
            steps.append(event)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        found = _plain(data)
    finally:
        sys.settrace(before)
    assert found == crc64(data, 0)
    assert len(steps) < 2_000


def run(root, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "layerstore", "--root", str(root), *map(str, arguments)], capture_output=True, check=False,
    )


def test_the_command_writes_the_tar_and_the_tar_split(root, tmp_path):
    with layerstore.open(root) as store:
        put(store, SIMPLE, names=["base"])
    done = run(root, "export", "base", "--tar", tmp_path / "t.tar", "--tar-split", tmp_path / "t.json")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "t.tar").read_bytes() == SIMPLE
    assert all(json.loads(line)["type"] in (1, 2) for line in (tmp_path / "t.json").read_text().splitlines())
    assert run(root, "export", "base", "--tar", "-").stdout == SIMPLE


def test_the_command_leaves_the_old_file_when_the_layer_is_damaged(root, tmp_path):
    with layerstore.open(root) as store:
        layer = put(store, SIMPLE)
    (root / "layers" / layer.id / "diff" / "dir" / "file").write_bytes(b"CONTENT")
    (tmp_path / "t.tar").write_bytes(b"old")
    for option in ("--tar", "--tar-split"):
        assert run(root, "export", layer.id, option, tmp_path / "t.tar").returncode == 3
        assert (tmp_path / "t.tar").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["store", "t.tar"]


def test_the_command_wants_a_layer_and_to_know_what_to_write(root, tmp_path):
    made = image(tmp_path)
    with layerstore.open(root) as store:
        store.pull(made.reference, names=["app"])
        assert run(root, "export", store.layers()[0].id).returncode == 2
        assert b"is an image" in run(root, "export", "app", "--tar", "-").stderr


def test_two_commands_that_write_one_file_leave_one_of_both_whole(tmp_path):
    from layerstore.cli.output import write_file

    out = tmp_path / "out"

    def chunks():
        yield b"outer " * 1000
        write_file(str(out), [b"inner"])
        yield b"outer " * 1000

    write_file(str(out), chunks())
    assert out.read_bytes() == b"outer " * 2000 and [each.name for each in tmp_path.iterdir()] == ["out"]
