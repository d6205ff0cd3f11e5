"""How often the disk is made to flush: counted, not timed. By the product's own points, and from outside by strace.

A durable commit of LMDB is one fdatasync of ``data.mdb`` and one write of its meta page through a descriptor that was
opened with O_DSYNC.
"""

import sys

import imagemaker
import pytest

import layerstore
from crash import strace
from layerstore import PullOptions
from storekit import add, differ, image, observed

PROGRAM = """
import os, sys
sys.path[:0] = {path!r}
import layerstore
from storekit import add, differ
with layerstore.open({root!r}) as store:
    os.write(2, b"BEGUN")
    {what}
    os.write(2, b"ENDED")
"""
PULL = "store.pull({reference!r}, options=layerstore.PullOptions(workers={workers}))"
COUNTED = strace.SYNCS | {"openat", "write", "pwrite64"}


def of_layers(tmp_path, number):
    """An image of so many layers that no other image has."""
    return imagemaker.Image([imagemaker.Layer({f"f{n}": f"{number} {n}".encode()}, compression="gzip")
                             for n in range(number)]).write_oci(tmp_path / f"of-{number}", tag="t").reference


def barriers(passed):
    return [name for name in passed if name.startswith("txn.") or name.endswith(".sync")]


def flushes(root, tmp_path, what):
    """What a process that does *what* to an open store asks the kernel to flush: the calls, and the O_DSYNC writes."""
    program = PROGRAM.format(root=str(root), what=what, path=sys.path)
    traced = strace.trace([sys.executable, "-c", program], str(tmp_path / "strace.log"), names=COUNTED)
    assert traced.status == 0, traced.stderr
    calls = list(traced.calls)
    meta = {call.result.split("<")[0] for call in calls if call.name == "openat" and "O_DSYNC" in call.text}
    assert meta, "LMDB opens its meta pages with O_DSYNC, or nothing is counted here"
    marks = [n for n, call in enumerate(calls) if call.name == "write" and ('"BEGUN"' in call.text or '"ENDED"' in call.text)]
    within = calls[marks[0]:marks[1]]
    counts = {}
    for call in within:
        synchronous = call.name == "pwrite64" and call.text.split("<")[0] in meta and "data.mdb" in call.text
        if call.name in strace.SYNCS or synchronous:
            kind = "meta" if synchronous else call.name
            if call.name == "fdatasync":
                assert "/journal/data.mdb>" in call.text, call
            counts[kind] = counts.get(kind, 0) + 1
    return counts


DURABLY_THREE = {"syncfs": 1, "fdatasync": 3, "meta": 3}


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("number", [1, 5, 40])
def test_a_pull_of_any_number_of_new_layers_costs_one_syncfs_and_three_durable_commits(root, tmp_path, number, workers):
    reference = of_layers(tmp_path, number)
    layerstore.open(root).close()
    assert flushes(root, tmp_path, PULL.format(reference=reference, workers=workers)) == DURABLY_THREE
    with layerstore.open(root) as store:
        assert len(store.layers()) == number


@pytest.mark.parametrize("number", [1, 5, 40])
def test_the_points_that_a_pull_passes_say_the_same(store, tmp_path, number):
    with observed([]) as passed:
        store.pull(of_layers(tmp_path, number))
    assert barriers(passed) == ["txn.begin", "stage.sync", "txn.claim", "txn.commit"]


def test_a_single_stage_and_apply_costs_no_more(root, tmp_path):
    layerstore.open(root).close()
    assert flushes(root, tmp_path, "add(store)") == DURABLY_THREE
    with layerstore.open(root) as store, observed([]) as passed:
        add(store, {"another": b""})
    assert barriers(passed) == ["txn.begin", "stage.sync", "txn.claim", "txn.commit"]


def test_a_batch_of_staged_layers_is_synced_once(store):
    with store.stage(differ({"a": b""})) as one, store.stage(differ({"b": b""})) as two, observed([]) as passed:
        store.apply_batch([layerstore.LayerSpec(one), layerstore.LayerSpec(two)])
    assert barriers(passed) == ["stage.sync", "txn.claim", "txn.commit"]


def test_big_data_of_the_callers_costs_its_own_syncs_and_one_commit_more(root, tmp_path):
    layerstore.open(root).close()
    done = flushes(root, tmp_path, "add(store, big_data={'one': b'1', 'two': b'2'})")
    assert done == {"syncfs": 1, "fdatasync": 4, "meta": 4, "fsync": 2 + 2}, "two files, their directory, the tree"


@pytest.mark.parametrize("number", [1, 5])
def test_a_deletion_syncs_its_two_directories_once_for_all_layers(store, tmp_path, number):
    pulled = store.pull(of_layers(tmp_path, number))
    with observed([]) as passed:
        store.delete_image(pulled.id)
    assert barriers(passed) == ["txn.delete", *["txn.delete.gone"] * number, "delete.sync", "delete.sync"]


def test_gc_leaves_that_to_its_checkpoint(store):
    add(store)
    with observed([]) as passed:
        store.collect_garbage(grace=0)
    assert "delete.sync" not in passed
    assert passed.index("delete.rename") < passed.index("checkpoint.sync")


def test_what_is_there_already_costs_nothing(root, tmp_path):
    reference = of_layers(tmp_path, 3)
    with layerstore.open(root) as store:
        store.pull(reference)
    assert flushes(root, tmp_path, PULL.format(reference=reference, workers=2)) == {}


def test_a_layer_that_is_there_already_costs_no_syncfs(root, tmp_path):
    with layerstore.open(root) as store:
        add(store)
    assert flushes(root, tmp_path, "add(store)") == {"fdatasync": 2, "meta": 2}, "its row, made and dropped"


def test_a_pull_that_is_to_seal_early_does_so_for_each_layer(store, tmp_path):
    with observed([]) as passed:
        store.pull(image(tmp_path).reference, options=PullOptions(workers=1, seal_every=0))
    each = ["stage.sync", "txn.seal"]
    assert barriers(passed) == ["txn.begin", *each, *each, *each, "txn.claim", "txn.commit"]


@pytest.mark.parametrize("workers", [1, 4])
def test_a_pull_that_is_to_seal_later_than_it_takes_does_not(store, tmp_path, workers):
    with observed([]) as passed:
        store.pull(image(tmp_path).reference, options=PullOptions(workers=workers, seal_every=3600))
    assert barriers(passed).count("stage.sync") == 1
