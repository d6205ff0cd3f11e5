"""Opening: making a store, refusing what cannot be one, one handle a process, forks, namespaces, read-only, full disks."""

import json
import os
import subprocess
import sys
import unicodedata

import pytest

import layerjournal.txn
import layerstore
from layerstore import errors
from layerstore.system import filesystem
from storekit import add, differ, image, in_child, killed_at


def test_a_store_is_made_in_an_absent_or_empty_directory(tmp_path):
    layerstore.open(tmp_path / "absent").close()
    (tmp_path / "empty").mkdir()
    layerstore.open(tmp_path / "empty").close()
    assert os.stat(tmp_path / "absent").st_mode & 0o777 == 0o700


def test_a_stores_path_need_not_be_utf_8(tmp_path):
    root = os.path.join(tmp_path, os.fsdecode(b"caf\xe9"))
    with layerstore.open(root) as store:
        layer = add(store)
        store.checkpoint()
    with layerstore.open(root) as store:
        assert [each.id for each in store.layers()] == [layer.id]
        assert store.check(depth="content").findings == ()


def test_a_directory_with_other_things_in_it_is_refused_and_untouched(tmp_path):
    (tmp_path / "precious").write_text("x")
    with pytest.raises(errors.InvalidArgumentError, match="precious"):
        layerstore.open(tmp_path)
    assert os.listdir(tmp_path) == ["precious"]


def test_where_there_can_be_no_directory_is_a_typed_error(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(errors.HostError):
            layerstore.open(path)


def test_what_is_not_there_is_not_made_for_a_reader(tmp_path):
    for options in ({"readonly": True}, {"create": False}):
        with pytest.raises(errors.CallerError):
            layerstore.open(tmp_path / "nothing", **options)
    assert not (tmp_path / "nothing").exists()


def test_a_second_open_in_the_same_process_is_refused(root):
    with layerstore.open(root):
        with pytest.raises(errors.AlreadyOpenError):
            layerstore.open(root)
    layerstore.open(root).close()


def test_a_closed_store_says_so(root):
    store = layerstore.open(root)
    store.close()
    store.close()
    for call in (store.layers, store.checkpoint, lambda: store.stage(differ())):
        with pytest.raises(errors.ClosedError):
            call()


def test_a_handle_used_after_fork_says_so_and_the_child_can_open_its_own(root):
    with layerstore.open(root) as store:
        def child():
            with pytest.raises(errors.ForkedError):
                store.layers()
            with pytest.raises(errors.ForkedError):
                store.stage(differ())
            with layerstore.open(root) as own:
                add(own)

        assert in_child(child) == 0
        assert len(store.layers()) == 1
        add(store, {"b": b""})


def test_a_forked_child_does_not_keep_its_parents_locks(root):
    """A child that lives on after its parent was killed must not hold up recovery."""
    code = f"""
import os, sys, time; sys.path.insert(0, {os.path.dirname(__file__)!r})
import layerstore
from storekit import differ
store = layerstore.open({str(root)!r})
staged = store.stage(differ(keyed=True))
child = os.fork()
if child == 0:
    sys.stdout.close(); os.close(1)
    time.sleep(60)
print(child, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    child = int(done.stdout)
    try:
        with layerstore.open(root) as store, store.stage(
            differ(keyed=True), options=layerstore.StageOptions(wait=5),
        ) as staged:
            assert staged.adopted
    finally:
        os.kill(child, 9)


@pytest.mark.parametrize(("change", "readonly_works"), [
    (lambda c: c["features"]["incompatible"].append("new"), False),
    (lambda c: c["features"]["read_only_compatible"].append("new"), True),
    (lambda c: c.update(format=[2, 0]), False),
], ids=["incompatible", "read-only-compatible", "newer-major"])
def test_a_store_of_a_newer_format_is_refused_or_read_only(root, change, readonly_works):
    with layerstore.open(root) as store:
        add(store)
    config = json.loads((root / "store.json").read_text())
    change(config)
    (root / "store.json").write_text(json.dumps(config))
    with pytest.raises(errors.UnsupportedFormatError):
        layerstore.open(root)
    if readonly_works:
        with layerstore.open(root, readonly=True) as store:
            assert len(store.layers()) == 1
    else:
        with pytest.raises(errors.UnsupportedFormatError):
            layerstore.open(root, readonly=True)


def test_a_feature_that_is_compatible_does_not_matter(root):
    layerstore.open(root).close()
    config = json.loads((root / "store.json").read_text())
    config["features"]["compatible"].append("new")
    (root / "store.json").write_text(json.dumps(config))
    with layerstore.open(root) as store:
        add(store)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\0" * 400, b'{"magic": "other"}'])
def test_a_damaged_store_json_is_damage_and_nothing_is_touched(root, content):
    layerstore.open(root).close()
    (root / "store.json").write_bytes(content)
    with pytest.raises(errors.DamagedError):
        layerstore.open(root)
    assert (root / "store.json").read_bytes() == content


@pytest.mark.parametrize("damage", [
    lambda data: data[:len(data) // 2], lambda data: b"", lambda data: b"\0" * len(data), lambda data: os.urandom(8192),
    lambda data: data[:4096],
], ids=["half", "empty", "zeros", "garbage", "one-page"])
def test_a_damaged_journal_is_a_typed_error_and_never_kills_the_process(root, damage):
    """R8."""
    with layerstore.open(root) as store:
        for n in range(10):
            add(store, {f"f{n}": b""})
    path = root / "journal" / "data.mdb"
    path.write_bytes(damage(path.read_bytes()))

    def child():
        with pytest.raises((errors.DamagedError, errors.HostError)):
            layerstore.open(root)

    assert in_child(child) == 0


@pytest.mark.parametrize(("magic", "name"), [(0x6969, "nfs"), (0x65735546, "fuse"), (0xFF534D42, "cifs"), (0x1234, "unknown(0x1234)")])
def test_a_file_system_that_cannot_keep_the_promises_is_refused_unless_named(tmp_path, monkeypatch, magic, name):
    monkeypatch.setattr(filesystem.kernel, "filesystem_magic", lambda fd: magic)
    with pytest.raises(errors.UnsafeFilesystemError, match=name.split("(")[0]) as caught:
        layerstore.open(tmp_path / "s")
    assert name in caught.value.hint
    with layerstore.open(tmp_path / "s", allow_filesystem=(name,)) as store:
        assert store.durability == "unproven"


def test_tmpfs_works_and_is_labelled(tmp_path):
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory, layerstore.open(f"{directory}/s") as store:
        assert (store.filesystem, store.durability) == ("tmpfs", "unproven")
        add(store)


@pytest.mark.root
def test_a_second_pid_namespace_is_refused_while_the_first_has_it_open(root):
    code = "import sys, layerstore\nlayerstore.open(sys.argv[1]).close()"
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code, str(root)]
    with layerstore.open(root):
        other = subprocess.run(command, capture_output=True, text=True, check=False)
        assert other.returncode != 0
        assert "PidNamespaceError" in other.stderr
    assert subprocess.run(command, check=False).returncode == 0, "and afterwards it may"
    layerstore.open(root).close()


@pytest.mark.root
def test_a_read_only_file_system_can_be_read_and_says_so_when_written(root, tmp_path):
    with layerstore.open(root) as store:
        layer = add(store)
    code = f"""
import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})
import layerstore, pytest
from layerstore import errors
from storekit import differ
with layerstore.open({str(root)!r}, readonly=True) as store:
    assert [x.id for x in store.layers()] == [{layer.id!r}]
    with pytest.raises(errors.ReadOnlyError):
        store.stage(differ())
with pytest.raises((errors.ReadOnlyError, errors.HostError)):
    layerstore.open({str(root)!r})
"""
    script = f"mount --bind {root} {root} && mount -o remount,ro,bind {root} && exec {sys.executable} - "
    done = subprocess.run(["unshare", "-m", "--propagation", "private", "sh", "-c", script], input=code, text=True, check=False)
    assert done.returncode == 0


@pytest.mark.root
@pytest.mark.timeout(300)
def test_a_full_disk_is_a_typed_error_at_every_size_and_nothing_is_lost(tmp_path):
    """R9: a tmpfs of growing size; whatever does not fit leaves nothing, and afterwards there is room again."""
    from layerstore.testing import violations

    code = f"""
import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})
import layerstore, imagemaker
from layerstore import errors
from layerstore.testing import violations
from storekit import add, differ
root = sys.argv[1] + "/s"
outcome = "whole"
try:
    with layerstore.open(root) as store:
        add(store, imagemaker.many_files(40, size=5000))
except (errors.NoSpaceError, errors.PendingError, errors.OutcomeUnknownError) as error:
    outcome = type(error).__name__
import os
os.unlink(sys.argv[1] + "/ballast")
with layerstore.open(root) as store:
    if outcome == "NoSpaceError":
        assert store.layers() == [], "it said that nothing happened"
    add(store, imagemaker.many_files(40, size=5000))
assert violations(root) == [], violations(root)
print(outcome)
"""
    seen = set()
    for kib in [*range(40, 400, 20), 1000]:
        place = tmp_path / "small"
        place.mkdir(exist_ok=True)
        script = (f"mount -t tmpfs -o size=4m none {place} && fallocate -l $((4096-{kib}))k {place}/ballast && "
                  f"exec {sys.executable} - {place}")
        done = subprocess.run(["unshare", "-m", "--propagation", "private", "sh", "-c", script], input=code, text=True,
                              capture_output=True, check=False)
        assert done.returncode == 0, (kib, done.stderr)
        seen.add(done.stdout.strip())
    assert {"whole", "NoSpaceError"} <= seen
    assert violations


def test_what_was_in_flight_is_told_by_a_read_only_open_and_not_touched(root):
    def scenario():
        with layerstore.open(root) as store:
            store.stage(differ())

    killed_at("unpack.entry", "after", scenario)
    with layerstore.open(root, readonly=True) as store:
        assert store.recovery.planned_only
        assert [a.do.value for a in store.recovery.actions] == ["sweep"]
        assert os.listdir(root / "staging")


def test_opening_reads_no_row_of_an_image_that_is_at_rest(root, tmp_path, monkeypatch):
    """Each has its manifest and config in it: ten thousand are a hundred megabytes."""
    with layerstore.open(root) as store:
        for n in range(3):
            store.pull(image(tmp_path, layers=1, name=f"image{n}", salt=f"{n}-").reference)
        store.checkpoint()
    (root / "images" / "stray").write_text("x")
    read, load = [], layerjournal.txn.load_row
    monkeypatch.setattr(layerjournal.txn, "load_row", lambda table, *rest: (read.append(table), load(table, *rest))[1])
    with layerstore.open(root) as store:
        assert [action.key for action in store.recovery.actions] == ["images/stray"]
        assert "images" not in read
        assert len(store.images()) == 3
    assert read.count("images") >= 3


def test_importing_is_cheap_in_modules():
    """The measured time is in bench/; here only that the extras are not imported by the library."""
    code = "import layerstore.store, sys; print([m for m in ('click', 'rich', 'asyncio', 'http') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("fold", [str.lower, lambda name: unicodedata.normalize("NFC", name)], ids=["case", "composition"])
def test_a_directory_that_takes_two_names_for_one_is_refused(fold, monkeypatch, tmp_path):
    """As ext4's casefold and ZFS's normalization do: one file of a layer would silently replace another."""
    found = filesystem._found
    monkeypatch.setattr(filesystem, "_found", lambda fd, name: found(fd, fold(name)))
    with pytest.raises(errors.UnsafeFilesystemError, match="for one name"):
        layerstore.open(tmp_path / "s")
    assert not any(name.startswith(".probe") for name in os.listdir(tmp_path / "s"))


def test_what_is_in_a_store_is_out_of_reach_for_everybody_else(root):
    """A set-user-ID file of a layer is one on disk too: nobody but the owner gets to it, staged or committed."""
    with layerstore.open(root) as store:
        with store.stage(differ()) as staged:
            ways = [root, root / "staging" / staged._staging.txid]
            assert [os.stat(way).st_mode & 0o777 for way in ways] == [0o700, 0o700]
            layer = store.apply_staged_layer(staged)
        assert os.stat(root / "layers" / layer.id).st_mode & 0o777 == 0o700
