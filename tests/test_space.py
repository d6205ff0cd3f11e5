"""Space: what is told of it, quotas, the estimate before a pull, and the reserve for a disk that is full."""

import json
import os
import subprocess
import threading
from contextlib import nullcontext

import pytest

import imagemaker
import layerstore
from crash.failing import full
from crash.remote import remotely
from layerstore import PullOptions, TarDiffer
from layerstore.opening import reserve
from layerstore.system import room
from layerstore.verbs import space
from layerstore.cli import main
from layerstore.errors import DamagedError, InvalidArgumentError, LimitExceededError, NoSpaceError, QuotaError
from layerstore.testing.children import telling
from test_limits import Chunked, pattern_bomb
from storekit import add, differ, failing_at, image, in_child, killed_at, states, tree_names

BIG = {"big": os.urandom(200_000)}


# -- the report ------------------------------------------------------------------------------------------------------


def test_space_tells_of_each_part_of_the_store(store, root):
    layer = add(store, BIG)
    store.stage(differ({"left": b"1" * 50_000}, keyed=True)).release()
    store.delete_layer(add(store, {"gone": os.urandom(100_000)}).id)
    found = store.space()
    assert found.layers == layer.diff_size
    assert found.counted > layer.diff_size + 50_000, "what is staged counts"
    assert 50_000 < found.staging < 100_000
    assert 100_000 < found.trash < 150_000
    assert found.journal >= os.path.getsize(root / "journal" / "data.mdb")
    assert found.segments == found.quarantine == found.uppers == found.images == 0
    assert found.quota is None
    assert 0 < found.free <= found.total
    store.checkpoint(archive=True)
    after = store.space()
    assert after.trash == 0
    assert after.segments > 0


def test_space_and_quota_on_the_command_line(root, capsys):
    with layerstore.open(root) as store:
        counted = add(store, BIG).diff_size
    run = lambda *words: (main(["--root", str(root), *words]), capsys.readouterr().out)
    assert run("quota") == (0, f"{counted} bytes of no quota\n")
    assert run("quota", "2M") == (0, f"{counted} bytes of 2000000\n")
    status, out = run("space", "--json")
    assert json.loads(out)["quota"] == 2_000_000
    assert "free\t" in run("space")[1]
    assert run("quota", "none") == (0, f"{counted} bytes of no quota\n")
    assert main(["--root", str(root), "quota", "much"]) == 2


# -- quotas ----------------------------------------------------------------------------------------------------------


def test_a_layer_over_the_quota_is_refused_while_it_is_staged_and_nothing_is_left(store, root):
    layer = add(store, {"a": b"1"})
    store.set_quota(layer.diff_size + 50_000)
    with pytest.raises(QuotaError) as caught:
        store.stage(differ(BIG, keyed=True))
    assert (caught.value.quota, caught.value.used) == (layer.diff_size + 50_000, layer.diff_size)
    assert isinstance(caught.value, NoSpaceError)
    assert tree_names(root, "staging") == []
    assert add(store, {"small": b"2"}).created
    store.set_quota(None)
    assert add(store, BIG).created


def test_bytes_are_counted_as_they_come_and_not_only_at_the_end(store):
    store.set_quota(300_000)
    read = []
    data = imagemaker.make_tar({f"f{n}": os.urandom(100_000) for n in range(40)})
    with pytest.raises(QuotaError):
        store.stage(TarDiffer(data), progress=read.append)
    assert sum(read) < len(data) // 2


def test_what_is_staged_at_once_is_decided_when_it_is_applied(store, root):
    store.set_quota(300_000)
    both = [threading.Event(), threading.Event()]

    class Slow:
        content_key = None

        def __init__(self, number):
            self.number = number

        def apply_diff(self, target):
            both[self.number].set()
            both[1 - self.number].wait(30)
            return differ({"big": os.urandom(200_000)}).apply_diff(target)

    staged = [None, None]

    def run(number):
        staged[number] = store.stage(Slow(number))

    threads = [threading.Thread(target=run, args=(n,)) for n in (0, 1)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    first = store.apply_staged_layer(staged[0])
    with pytest.raises(QuotaError) as caught:
        store.apply_staged_layer(staged[1])
    assert caught.value.used == first.diff_size
    store.delete_layer(first.id)
    assert store.apply_staged_layer(staged[1]).created, "the handle is good again, and what is gone does not count"


def test_a_quota_below_what_is_there_lets_nothing_in_and_everything_out(store):
    layer = add(store, BIG)
    store.set_quota(1_000)
    with pytest.raises(QuotaError):
        add(store, {"a": b""})
    store.delete_layer(layer.id)
    assert store.space().counted == 0


def test_a_layer_that_is_there_already_needs_no_quota(store):
    layer = add(store, BIG)
    staged = store.stage(differ(BIG))
    store.set_quota(layer.diff_size)
    assert not store.apply_staged_layer(staged).created


def test_the_count_is_right_after_any_kill(root):
    with layerstore.open(root) as store:
        store.set_quota(1 << 30)
    for point in ("txn.claim", "publish.rename", "txn.commit"):
        killed_at(point, "before", lambda: add(layerstore.open(root), {"n": point.encode()}))
        with layerstore.open(root) as store, store._handle.read() as view:
            assert store.space().counted == sum(
                row["output"]["diff_size"] for _, row in view.scan("layers") if "output" in row
            )


def test_another_limit_that_is_passed_is_no_quota(store):
    store.set_quota(1 << 30)
    options = layerstore.StageOptions(limits=layerstore.Limits(max_bytes=1_000))
    with pytest.raises(LimitExceededError):
        store.stage(differ(BIG), options=options)
    with pytest.raises(layerstore.errors.ArchiveError):
        store.stage(TarDiffer(b"no tar" * 1_000))


def test_a_quota_outlives_the_handle_and_is_seen_by_others(root):
    with layerstore.open(root) as store:
        store.set_quota(50_000)

    def other():
        with layerstore.open(root) as store, pytest.raises(QuotaError):
            add(store, BIG)

    assert in_child(other) == 0


@pytest.mark.parametrize("limit", [-1, 1.5, True, "1", 1 << 63])
def test_a_quota_is_a_number_of_bytes(store, limit):
    with pytest.raises(InvalidArgumentError):
        store.set_quota(limit)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"bytes": -1}', '{"bytes": true}', "\xff"])
def test_a_quota_that_cannot_be_understood_is_damage_and_can_be_set_again(store, root, text):
    (root / "quota.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DamagedError):
        add(store)
    store.set_quota(1 << 30)
    assert add(store).created


def test_a_kill_while_a_quota_is_set_leaves_the_old_one_or_the_new(root):
    with layerstore.open(root) as store:
        store.set_quota(1)
    for point, then in (("quota.write", 1), ("quota.rename", 1), ("quota.sync", 2)):
        killed_at(point, "before", lambda: layerstore.open(root).set_quota(2))
        with layerstore.open(root) as store:
            assert store.quota() == then


# -- before a pull -----------------------------------------------------------------------------------------------------


def free(monkeypatch, number):
    monkeypatch.setattr(space, "free_bytes", lambda fd: number)


def test_a_pull_that_cannot_fit_is_refused_before_a_byte_is_fetched(store, root, tmp_path, monkeypatch):
    made = image(tmp_path)
    before = store.space().counted
    free(monkeypatch, 20_000)
    with pytest.raises(NoSpaceError) as caught:
        store.pull(made.reference)
    assert caught.value.free == 20_000
    assert caught.value.needed > 20_000
    assert "no-preflight" in caught.value.hint
    assert tree_names(root, "staging") == []
    assert store.space().counted == before
    assert store.pull(made.reference, options=PullOptions(preflight=False)).created


def test_only_what_is_missing_is_estimated_and_what_is_known_exactly(store, tmp_path):
    made = image(tmp_path, compression=("none", "gzip", "zstd"))
    from layerstore.sources import open_source

    with open_source(made.reference, platform=None, limits=layerstore.Limits()) as source:
        layers = source.resolve().layers
        with layers[1].open() as blob:
            content = blob.read()
    with store._handle.read() as view:
        plain, gzipped, zstd = (space.estimate(view, each) for each in layers)
    assert plain == made.layers[0].diff_size
    assert gzipped == int(made.layers[1].size * 2.5)
    assert zstd == int(made.layers[2].size * 3.0)
    known = store.apply_staged_layer(store.stage(TarDiffer(content)))
    with store._handle.read() as view:
        assert space.estimate(view, layers[1]) == known.diff_size, "another layer has the same diff"
    pulled = store.pull(made.reference)
    store.delete_image(pulled.id)


def test_a_pull_over_the_quota_is_refused_before_it_begins(store, tmp_path):
    made = image(tmp_path, compression=("none",))
    store.set_quota(sum(each.diff_size for each in made.layers) - 1)
    with pytest.raises(QuotaError) as caught:
        store.pull(made.reference)
    assert caught.value.needed == sum(each.diff_size for each in made.layers)
    store.set_quota(sum(each.diff_size for each in made.layers))
    assert store.pull(made.reference).created


# -- the reserve -------------------------------------------------------------------------------------------------------


def test_the_reserve_is_made_before_anything_is_put_in_and_given_back_by_what_frees(store, root, monkeypatch):
    assert not (root / "reserve").exists()
    layer = add(store)
    assert (root / "reserve").stat().st_blocks * 512 >= reserve.SIZE
    store.delete_layer(layer.id)
    assert (root / "reserve").exists(), "there is room"
    layer = add(store)
    monkeypatch.setattr(reserve, "free_bytes", lambda fd: 0)
    store.delete_layer(layer.id)
    assert not (root / "reserve").exists()
    monkeypatch.undo()
    store.checkpoint()
    assert (root / "reserve").exists(), "there is room again"


def test_without_the_reserve_nothing_is_put_in(store, root):
    with failing_at("reserve.make", "ENOSPC", when="after"), pytest.raises(NoSpaceError) as caught:
        add(store)
    assert caught.value.needed == reserve.SIZE
    assert not (root / "reserve").exists(), "a part of it is not left"
    assert states(store) == []
    with failing_at("reserve.make", "EIO"), pytest.raises(layerstore.errors.IoError):
        add(store)
    assert add(store).created


def test_a_reserve_that_is_cut_short_is_made_whole(store, root):
    add(store)
    os.truncate(root / "reserve", 4096)
    add(store, {"b": b""})
    assert (root / "reserve").stat().st_size == reserve.SIZE


def test_where_a_quota_of_the_disk_is_full_the_reserve_is_given_back_and_it_is_tried_again(store, root):
    layer = add(store)
    with failing_at("txn.delete", "EDQUOT"):
        store.delete_layer(layer.id)
    assert not (root / "reserve").exists()
    layer = add(store)
    os.unlink(root / "reserve")
    with failing_at("txn.delete", "EDQUOT"), pytest.raises(NoSpaceError):
        store.delete_layer(layer.id)


def small_disk(tmp_path, fs, scenario):
    """Run *scenario(mountpoint, fill)* in a child, on a small disk of its own."""

    def child():
        full.unshare()
        disk, mounted = tmp_path / "disk.img", tmp_path / "mnt"
        megabytes, make = full.FILESYSTEMS[fs]
        mounted.mkdir()
        with open(disk, "wb") as file:
            file.truncate(megabytes << 20)
        subprocess.run([*make, disk], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["mount", "-o", "loop", disk, mounted], check=True)
        try:
            filler = full.Disk(str(mounted), fs, str(tmp_path / "images"), str(tmp_path / "ledger"))
            scenario(str(mounted / "store"), filler)
        finally:
            subprocess.run(["umount", "--lazy", mounted], check=True)
        return True

    assert telling(child)


def fill_up(disk):
    """To the last block: what the ballast leaves, small files take, directory entries and all."""
    disk.fill(0)
    for number in range(10_000):
        try:
            with open(f"{disk.path}/small{number}", "wb") as file:
                file.write(b"x" * 4096)
                os.fsync(file.fileno())
        except OSError:
            return


@pytest.mark.root
@pytest.mark.parametrize("fs", ["ext4", "xfs"])
def test_on_a_disk_filled_to_the_last_block_deleting_collecting_and_a_checkpoint_work(tmp_path, fs):
    def scenario(root, disk):
        with layerstore.open(root) as store:
            kept, first, second = (add(store, {f"f{n}": os.urandom(50_000)}) for n in range(3))
            image_ids = [store.pull(image(tmp_path, name=f"i{n}", salt=str(n)).reference).id for n in range(3)]
            fill_up(disk)
            with store._handle.read():   # a reader keeps the journal's free pages from use: it must grow
                store.delete_layer(first.id)
                store.delete_image(image_ids[0])
                store.checkpoint()
        os.unlink(f"{root}/journal/lock.mdb")
        with layerstore.open(root) as store:
            store.set_name("kept", kept.id)
            store.collect_garbage(grace=0)
            assert kept.id in [each.id for each in store.layers()]
            assert second.id not in [each.id for each in store.layers()]
            assert [each.id for each in store.images()] == sorted(image_ids[1:])
            assert store.check(content=True).sound

    small_disk(tmp_path, fs, scenario)


@pytest.mark.root
@pytest.mark.parametrize("fs", ["ext4", "xfs"])
def test_what_does_not_fit_is_rolled_back_on_a_disk_filled_to_the_last_block(tmp_path, fs):
    def scenario(root, disk):
        with layerstore.open(root) as store:
            kept = add(store, {"a": b"1"})
            fill_up(disk)
            for keyed in (False, True):
                with pytest.raises(NoSpaceError):
                    store.stage(differ({"more": os.urandom(3_000_000)}, keyed=keyed))
            assert tree_names(root, "staging") == []
            assert states(store) == ["committed"]
            assert store.layer(kept.id)

    small_disk(tmp_path, fs, scenario)


@pytest.mark.root
def test_a_bomb_with_the_usual_limits_is_stopped_before_the_disk_is_full_and_leaves_nothing(tmp_path):
    def scenario(root, disk):
        with layerstore.open(root) as store:
            free = lambda: room.free_bytes(store._handle.root_fd)
            before, least = free(), []
            with pytest.raises(NoSpaceError, match="would fill the disk") as caught:
                store.stage(TarDiffer(Chunked(pattern_bomb())), progress=lambda _n: least.append(free()))
            assert caught.value.free < reserve.margin(store._handle.root_fd)
            assert min(least) > 0
            assert tree_names(root, "staging") == []
            assert free() > before - (2 << 20)
            assert add(store, {"small": b"2"}).created

    small_disk(tmp_path, "ext4", scenario)


@pytest.mark.root
@pytest.mark.parametrize("point", ["publish.side-file.write", "publish.rename", "delete.rename"])
def test_recovery_works_on_a_disk_filled_to_the_last_block(tmp_path, point):
    def scenario(root, disk):
        with layerstore.open(root) as store:
            kept, goes = add(store, {"a": os.urandom(50_000)}), add(store, {"b": b"1"})
        if point == "delete.rename":
            killed_at(point, "before", lambda: layerstore.open(root).delete_layer(goes.id))
        else:
            killed_at(point, "before", lambda: add(layerstore.open(root), {"c": b"1"}))
        fill_up(disk)
        os.unlink(f"{root}/journal/lock.mdb")
        fill_up(disk)
        with layerstore.open(root) as store:
            assert len(store.recovery.actions) == 1
            assert store.layer(kept.id)
            assert len(store.layers()) == (1 if point == "delete.rename" else 3)
            assert store.check(content=True).sound

    small_disk(tmp_path, "ext4", scenario)


@pytest.mark.root
@pytest.mark.parametrize("share", [0.6, 1.2])
def test_what_is_kept_to_resume_from_gives_way_to_the_layer_where_the_disk_has_no_room_for_both(tmp_path, share):
    def scenario(root, disk):
        with layerstore.open(root) as store:
            free = room.free_bytes(store._handle.root_fd) - reserve.margin(store._handle.root_fd)
            made = imagemaker.Image([imagemaker.Layer({"big": os.urandom(int(free * share))}, compression="gzip")])
            made.write_oci(tmp_path / "image", tag="latest")
            pulled = nullcontext() if share < 1 else pytest.raises(NoSpaceError, match="would fill the disk")
            with remotely(), pulled:   # the guess before it is for content that can be compressed
                store.pull(f"oci:{tmp_path}/image:latest", options=PullOptions(preflight=False))
            assert tree_names(root, "staging") == []
            assert states(store) == ["committed"] * (share < 1)
            assert add(store, {"small": b"2"}).created

    small_disk(tmp_path, "ext4", scenario)
