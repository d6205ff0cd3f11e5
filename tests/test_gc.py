"""Garbage: what goes, in which order, how much that frees, how fast it goes. (Beside live work: test_delete.)"""

import os
import signal

import pytest

import layerstore
from layerstore.system import fs
from layerstore.testing import violations
from layerstore.verbs import checkpoint, gc
from layerstore.cli import main
from layerstore.errors import InvalidArgumentError
from layerstore.system.removing import remove_tree
from storekit import add, differ, image, in_child, tree_names

ALL = {"retention": 0, "grace": 0}


def archived(store, times):
    """A store whose log has been archived so many times."""
    names = []
    for n in range(times):
        add(store, {"f": bytes([n])})
        names.append(store.checkpoint(archive=True).archived)
    return names


def test_layers_go_children_first_and_a_dry_run_names_them_in_the_same_order(store):
    below = add(store)
    middle = add(store, {"middle": b""}, parent=below.id)
    tops = [add(store, {f"top{n}": b""}, parent=middle.id).id for n in range(2)]
    dry = store.collect_garbage(**ALL, dry_run=True)
    assert set(dry.layers[:2]) == set(tops)
    assert dry.layers[2:] == (middle.id, below.id)
    assert store.collect_garbage(**ALL).layers == dry.layers


def test_a_parent_stays_while_one_of_its_children_does(store):
    below = add(store)
    add(store, {"goes": b""}, parent=below.id)
    stays = add(store, {"stays": b""}, parent=below.id, names=["it"])
    assert len(store.collect_garbage(**ALL).layers) == 1
    assert {layer.id for layer in store.layers()} == {below.id, stays.id}


def test_a_dry_run_says_what_the_run_then_frees_and_changes_nothing(store, root):
    add(store, {"large": os.urandom(300_000), "small": b"x"})
    store.stage(differ({"staged": os.urandom(200_000)}, keyed=True)).release()
    gone = add(store, {"gone": os.urandom(100_000)})
    store.delete_layer(gone.id)
    dry = store.collect_garbage(**ALL, dry_run=True)
    assert tree_names(root, "trash"), "the deleted layer's tree still waits"
    assert len(store.layers()) == 1
    done = store.collect_garbage(**ALL)
    assert dry.freed == done.freed >= 600_000
    assert dry.emptied == done.emptied == 2
    assert (dry.staged, dry.layers) == (done.staged, done.layers)
    assert store.collect_garbage(**ALL).freed == 0


def test_only_so_many_segments_of_the_archived_log_stay_the_newest(store, root):
    names = archived(store, 4)
    dry = store.collect_garbage(segments=1, dry_run=True)
    done = store.collect_garbage(segments=1)
    assert done.segments == dry.segments == tuple(names[:3])
    assert done.freed == dry.freed >= 3 * 4096
    assert os.listdir(os.path.join(root, "journal", "segments")) == names[3:]
    assert store.check(content=True).sound


def test_the_log_is_kept_whole_unless_it_is_asked_for(store):
    archived(store, 2)
    assert store.collect_garbage(**ALL).segments == ()


@pytest.mark.parametrize("policy", [{"segments": 0}, {"rate": 0.0}, {"rate": -1.0}, {"rate": float("nan")}])
def test_a_policy_under_which_nothing_could_be_right_is_refused(store, policy):
    layer = add(store)
    with pytest.raises(InvalidArgumentError):
        store.collect_garbage(**ALL, **policy)
    assert [each.id for each in store.layers()] == [layer.id]


def test_files_are_removed_at_the_rate_that_was_given(store, monkeypatch):
    """On a clock of its own: 40 files at 10 a second take four seconds of it."""
    now = [0.0]
    monkeypatch.setattr(gc.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(gc.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    add(store, {f"f{n}": b"" for n in range(40)})
    store.collect_garbage(**ALL, rate=10)
    assert 4.0 <= now[0] <= 6.0


def test_staged_trees_go_at_the_rate_too(store, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(gc.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(gc.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    store.stage(differ({f"f{n}": b"" for n in range(40)}, keyed=True)).release()
    assert len(store.collect_garbage(**ALL, rate=10).staged) == 1
    assert 4.0 <= now[0] <= 6.0


def test_a_large_file_counts_for_as_many_as_it_takes_the_disk(tmp_path):
    with open(tmp_path / "large", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 130 << 20)
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 40)
    counted = []
    with fs.open_dir(tmp_path) as fd:
        for name in ("large", "sparse"):
            remove_tree(fd, name, point="checkpoint.empty.unlink", pause=counted.append)
    assert counted == [1 + 2, 1] and os.listdir(tmp_path) == []


def files_in(root, name):
    return sum(len(files) for _, _, files in os.walk(os.path.join(root, name)))


def test_what_a_verb_deletes_in_passing_is_little_and_the_rest_goes_with_the_next_ones(root, monkeypatch):
    monkeypatch.setattr(checkpoint, "EVERY", 0)
    with layerstore.open(root) as store:
        layers = [add(store, {f"{n}/{m}": b"" for m in range(120)}) for n in range(2)]
        store.checkpoint()
        monkeypatch.setattr(checkpoint, "IN_PASSING", 50)
        store.delete_layer(layers[0].id)
        had = files_in(root, "trash")
        assert 70 <= had < 120
        monkeypatch.setattr(checkpoint, "EVERY", 1 << 30)    # no checkpoint is due any more
    with layerstore.open(root) as store:                     # and another process goes on
        store.delete_layer(layers[1].id)
        assert had + 60 <= files_in(root, "trash") < had + 120, "only what a checkpoint covers"
        for n in range(8):
            add(store, {f"more{n}": b""})
        assert len(tree_names(root, "trash")) == 1 and files_in(root, "trash") >= 120
        monkeypatch.setattr(checkpoint, "EVERY", 0)
        add(store, {"last": b""})
        assert 0 < files_in(root, "trash") < 120
        store.collect_garbage(retention=0, grace=3600)
        assert tree_names(root, "trash") == []
    assert violations(root) == []


def test_a_kill_between_two_portions_leaves_the_rest_for_the_next(root, monkeypatch):
    monkeypatch.setattr(checkpoint, "EVERY", 0)
    monkeypatch.setattr(checkpoint, "IN_PASSING", 50)

    def work():
        with layerstore.open(root) as store:
            store.delete_layer(add(store, {f"f{m}": b"" for m in range(120)}).id)
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work) == -signal.SIGKILL
    assert 0 < files_in(root, "trash") < 120
    with layerstore.open(root) as store:
        assert store.recovery.actions == ()
        store.checkpoint()
        assert tree_names(root, "trash") == []
    assert violations(root) == []


def test_a_slow_disk_is_not_made_good_for_by_a_burst(monkeypatch):
    now, slept = [0.0], []
    monkeypatch.setattr(gc.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(gc.time, "sleep", lambda seconds: (slept.append(seconds), now.__setitem__(0, now[0] + seconds)))
    pause = gc.pace(10)
    pause()
    now[0] += 100
    for _ in range(30):
        pause()
    assert len(slept) >= 19, "at most one second's files at once"


def test_the_command_tells_what_would_go_and_then_what_went(root, tmp_path, capsys):
    with layerstore.open(root) as store:
        store.pull(image(tmp_path).reference)
        add(store, {"loose": b""})
        archived(store, 2)
    assert main(["--root", str(root), "gc", "--grace", "0", "--segments", "1", "--dry-run"]) == 0
    would = capsys.readouterr().out
    assert main(["--root", str(root), "gc", "--grace", "0", "--segments", "1", "--rate", "100000"]) == 0
    went = capsys.readouterr().out
    assert would.replace("would go", "gone").replace("would be ", "") == went
    assert "3 layers" in went
    assert "1 segments" in went
