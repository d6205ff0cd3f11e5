"""``check`` beside processes that are at work: what they have in passing is no finding; what the dead have left is."""

import os
import sys
from contextlib import contextmanager

import pytest

import layerstore
from layerstore.opening.handle import new_txid
from layerstore.system import flock
from layerstore.verbs import mount
from storekit import add


@pytest.fixture
def store(tmp_path):
    with layerstore.open(str(tmp_path / "store")) as opened:
        add(opened)
        opened.checkpoint()
        yield opened


@pytest.fixture
def meanwhile(monkeypatch):
    """Have something done between the beginning of the next check and its end."""
    structure, acted = sys.modules["layerstore.verbs.check.structure"], []

    def at(act):
        real = structure.journal

        def journal(handle, **options):
            acted.append(act())
            return real(handle, **options)

        monkeypatch.setattr(structure, "journal", journal)

    yield at
    assert acted


def pending(store):
    return [f.subject for f in store.check().findings if f.code == "pending-recovery"]


@contextmanager
def staging_directory(store):
    name = new_txid()
    path = os.path.join(store.root, "staging", name)
    os.mkdir(path)
    yield name
    os.rmdir(path)


def take(store, target):
    """The row of a mount, as it is before the kernel has the mount."""
    handle = store._handle
    return mount._take(handle, mount.chain_of(handle, "layer", next(iter(store.layers())).id), str(target), False, False, None)


def test_a_staging_directory_that_is_made_during_a_check_is_no_finding(store, meanwhile):
    meanwhile(lambda: os.mkdir(os.path.join(store.root, "staging", new_txid())))
    assert pending(store) == []


def test_a_staging_directory_whose_lock_is_taken_during_a_check_is_no_finding(store, meanwhile):
    with staging_directory(store) as name:
        locks = []
        meanwhile(lambda: locks.append(flock.lock_tree(store._handle.dirs["staging"], name, point="stage.lock")))
        assert pending(store) == []
        locks[0].close()


def test_a_staging_directory_that_nobody_holds_is_one(store):
    with staging_directory(store) as name:
        assert pending(store) == [f"staging/{name}"]


def test_a_mount_that_is_just_being_made_is_no_finding(store, tmp_path):
    with flock.locked_dir(store._handle.dirs["uppers"]):
        take(store, tmp_path)
        assert pending(store) == []


def test_a_mount_whose_row_comes_during_a_check_is_no_finding(store, meanwhile, tmp_path):
    meanwhile(lambda: take(store, tmp_path))
    assert pending(store) == []


def test_a_mount_that_never_came_to_be_is_one(store, tmp_path):
    mount_id = take(store, tmp_path)
    assert pending(store) == [mount_id]
