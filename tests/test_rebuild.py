"""A lost or damaged database: refused before it does harm, rebuilt from log, archive and disk; what is not proven is said.

The oracle of every case is ``rebuilt``: nothing that was there is lost, nothing that was deleted is back, what the
records prove is the same to the byte, the old database is kept.
"""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import lmdb
import pytest

import layerjournal
import layerstore
from crash import points
from layerjournal import DictView, Replay
from layerstore import errors
from layerstore.lifecycle import catalog
from layerstore.recovery import readopt, rebuilding, remains
from layerstore.system import fs
from layerstore.lifecycle.machine import fire
from layerstore.lifecycle.projection import CatalogProjector
from layerstore.lifecycle.states import Kind, Trigger
from layerstore.testing import ChildDiedError, copy_store, dump, killing, raising, run_child, telling, violations
from storekit import add, differ, failing_at, image, tree_names

PAGE = 4096
A, B, C, D, E = (digit * 64 for digit in "abcde")


class Made:
    """A store, closed; what was true at its end (``dump``, ``layers``, ``images``), and at its last archived record."""

    def __init__(self, root):
        self.root = str(root)
        with layerstore.open(self.root) as store:
            self.dump = dump(store)
            self.layers = {layer.id: (layer.txid, layer.names) for layer in store.layers()}
            self.images = {each.id: each.names for each in store.images()}
            with store._handle.read() as view:
                self.archived = view.meta()["archived"]
                self.head = view.head()[0]
            self.then = layerjournal.canonical_dump(store._handle.journal.fold(self.archived)) if self.archived else b""

    @property
    def data(self):
        return os.path.join(self.root, "journal", "data.mdb")

    def lose(self):
        os.unlink(self.data)

    def path(self, *parts):
        return os.path.join(self.root, *parts)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """An archive, and work of every kind after it; the database as it was at the archive is kept beside it."""
    home = tmp_path_factory.mktemp("rebuild")
    root = str(home / "store")
    with layerstore.open(root) as store:
        add(store, {"a": b"1"}, id=A, names=["base"])
        add(store, {"b": b"2"}, id=B, parent=A, names=["moved"])
        add(store, {"old": b"3"}, id=C)
        store.pull(image(home, name="first").reference, names=["app"])
        store.checkpoint(archive=True)
    shutil.copy(f"{root}/journal/data.mdb", home / "older")
    with layerstore.open(root) as store:
        add(store, {"d": b"4"}, id=D, parent=B, names=["new"], big_data={"k": b"v"})
        store.delete_layer(C)
        store.pull(image(home, name="second", salt="s").reference, names=["app2"])
    made = Made(root)
    made.home = home
    return made


@pytest.fixture
def made(original, tmp_path):
    """A copy of it to damage."""
    target = tmp_path / "store"
    copy_store(original.root, str(target))
    made = Made.__new__(Made)
    made.__dict__.update(original.__dict__, root=str(target))
    return made


def rebuilt(made, **options):
    """Rebuild, open, and look whether everything that must hold does; the report."""
    report = layerstore.rebuild(made.root, **options)
    assert wrong(made, report) == []
    return report


def wrong(made, report, gone=()):
    """What does not hold of a store that was rebuilt."""
    found = []
    with layerstore.open(made.root) as store:
        layers = {layer.id: layer.txid for layer in store.layers()}
        images = {each.id for each in store.images()}
        journal = store._handle.journal
        if report.whole and dump(store) != made.dump:
            found.append("the log was whole, and the catalog is another")
        if made.archived and report.archived >= made.archived:
            if layerjournal.canonical_dump(journal.fold(made.archived)) != made.then:
                found.append("at the last archived record the catalog was another")
        found += [f"{each.code}: {each.message}" for each in journal.verify().findings]
    found += [f"layer {i[:8]} is lost" for i, (txid, _) in made.layers.items() if layers.get(i) != txid and i not in gone]
    found += [f"layer {i[:8]} is back" for i in layers if i not in made.layers]
    found += [f"image {i[:8]} is lost" for i in made.images if i not in images and i not in gone]
    found += [f"image {i[:8]} is back" for i in images if i not in made.images]
    if report.kept is not None and not os.path.lexists(os.path.join(made.root, report.kept)):
        found.append("the old database is not kept")
    return found + violations(made.root)


def codes(report):
    return {(item.code, item.subject) for item in report.items}


def alter(made, old, new):
    """Change bytes of the database behind everybody's back."""
    data = Path(made.data).read_bytes()
    assert old in data and len(old) == len(new)
    Path(made.data).write_bytes(data.replace(old, new))


def refused(made):
    """Whether opening and looking is refused; for a child."""
    with layerstore.open(made.root, create=False) as store:
        found = store.check().findings
        return sorted({each.code for each in found})


# -- it is noticed before it does harm -----------------------------------------------------------------------------------


def truncated(made):
    with open(made.data, "r+b") as file:
        file.truncate(os.path.getsize(made.data) // PAGE // 2 * PAGE)


def of_another_store(made):
    other = made.path("..", "other")
    with layerstore.open(other) as store:
        add(store)
    shutil.copy(os.path.join(other, "journal", "data.mdb"), made.data)


DAMAGES = {
    "lost": lambda made: made.lose(),
    "empty": lambda made: Path(made.data).write_bytes(b""),
    "truncated": truncated,
    "rubbish": lambda made: Path(made.data).write_bytes(os.urandom(1 << 18)),
    "zeroed": lambda made: Path(made.data).write_bytes(bytes(1 << 18)),
    "of another store": of_another_store,
    "a directory": lambda made: (made.lose(), os.mkdir(made.data)),
    "a dangling link": lambda made: (made.lose(), os.symlink("nowhere", made.data)),
    "a row altered": lambda made: alter(made, b"born_named", b"born_nomed"),
    "the end of the log altered": lambda made: alter(made, link_of(made), bytes(32)),
    "an older copy": lambda made: older(made),
}


def link_of(made):
    with Replay.open([made.root], CatalogProjector()) as replay:
        return replay.head()[1]


def older(made):
    with layerstore.open(made.root) as store:
        store.checkpoint(archive=True)
    made.__dict__.update(Made(made.root).__dict__)
    shutil.copy(made.home / "older", made.data)


@pytest.mark.parametrize("readonly", [False, True], ids=["writable", "read-only"])
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_database_is_a_typed_error_that_names_the_way_out_and_no_process_dies(made, name, readonly):
    DAMAGES[name](made)

    def look():
        try:
            with layerstore.open(made.root, create=False, readonly=readonly) as store:
                store.layers()
        except errors.JournalDamagedError as error:
            return error.hint
        return None

    before = Path(made.data).read_bytes() if os.path.isfile(made.data) else None
    assert "layerstore rebuild" in (telling(look) or ""), "opened"
    assert before is None or Path(made.data).read_bytes() == before


@pytest.mark.parametrize("name", DAMAGES)
def test_each_of_them_is_rebuilt(made, name):
    DAMAGES[name](made)
    report = rebuilt(made)
    assert report.damage
    assert (report.kept is None) == (name == "lost")
    again = layerstore.open(made.root)
    with again as store:
        add(store, {"goes": b"on"})
        store.checkpoint(archive=True)
    assert violations(made.root) == []


@pytest.mark.parametrize("odd", [b"", b"\xff" * 100, None, bytes(80_000)], ids=["empty", "short", "absent", "zeroed"])
def test_an_odd_lock_file_is_made_anew(made, odd):
    os.unlink(made.path("journal", "lock.mdb"))
    if odd is not None:
        Path(made.path("journal", "lock.mdb")).write_bytes(odd)
    assert telling(lambda: violations(made.root)) == []


def test_a_row_in_flight_that_is_not_there_is_damage_and_recovery_does_not_stumble_over_it(made):
    with layerstore.open(made.root) as store:
        staged = store.stage(differ({"left": b"x"}, keyed=True))
        txid = staged._staging.txid
        staged.release()
    made.__dict__.update(Made(made.root).__dict__)
    with lmdb.open(made.path("journal"), max_dbs=32, lib_version=0) as env, env.begin(write=True) as txn:
        assert txn.delete(txid.encode(), db=env.open_db(b"layers", txn=txn, create=False))
    for readonly in (False, True):
        with pytest.raises(errors.JournalDamagedError, match=txid):
            layerstore.open(made.root, readonly=readonly)
    rebuilt(made)


# -- mistakes that are caught -----------------------------------------------------------------------------------------------


MISTAKES = {
    "nothing is adopted": ("_adopt_layers", lambda self, wanted: None),
    "what is gone is believed to be there": ("_missing_layers", lambda self, wanted: None),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_caught_when_the_database_is_lost(made, monkeypatch, name):
    made.lose()
    monkeypatch.setattr(readopt._Completion, *MISTAKES[name])
    assert wrong(made, layerstore.rebuild(made.root))


# -- what comes from where ----------------------------------------------------------------------------------------------


def test_from_the_log_everything_comes_back(made):
    alter(made, b"born_named", b"born_nomed")
    report = rebuilt(made)
    assert (report.whole, report.head, report.items) == (True, made.head, ())


def test_from_archive_and_disk_every_layer_and_image_comes_back_and_the_report_says_what_is_not_proven(made):
    made.lose()
    report = rebuilt(made)
    second = [i for i, names in made.images.items() if names == ("app2",)][0]
    assert (report.whole, report.archived, report.head, report.seen) == (False, made.archived, made.archived, None)
    assert codes(report) >= {("adopted-layer", D), ("deleted-since", C), ("adopted-image", second), ("name", "new"),
                             ("name", "app2"), ("unproven", f"after record {made.archived}")}
    with layerstore.open(made.root) as store:
        assert {i: (x.txid, x.names) for x in store.layers() for i in [x.id]} == made.layers
        assert {x.id: x.names for x in store.images()} == made.images
        assert store.layer(D).big_data == {"k": "sha256:" + __import__("hashlib").sha256(b"v").hexdigest()}
        record = [r for r in records(store) if r.trigger == "restore"][0]
        assert record.payload["old_head"] == made.archived


def records(store):
    with store._handle.read() as view:
        return list(view.records())


def test_without_an_archive_everything_on_disk_comes_back(made):
    made.lose()
    shutil.rmtree(made.path("journal", "segments"))
    os.mkdir(made.path("journal", "segments"))
    made.archived = 0
    report = rebuilt(made)
    assert (report.head, report.archived, report.layers, report.images) == (0, 0, len(made.layers), 2)


def test_a_journal_directory_without_segments_is_no_hindrance(made):
    made.lose()
    shutil.rmtree(made.path("journal", "segments"))
    made.archived = 0
    report = rebuilt(made)
    assert report.layers == len(made.layers)
    with layerstore.open(made.root) as store:
        assert store.checkpoint(archive=True).archived


def test_a_segment_that_is_not_good_is_put_aside_and_named(made):
    made.lose()
    (name,) = tree_names(made.root, "journal", "segments")
    path = Path(made.path("journal", "segments", name))
    path.write_bytes(path.read_bytes()[:-4])
    made.archived = 0
    report = rebuilt(made)
    assert [each for each, _ in report.bad_segments] == [name]
    assert f"segments-{name}-0" in tree_names(made.root, "quarantine")
    assert not tree_names(made.root, "journal", "segments")


def test_a_damaged_archive_beside_a_sound_database_is_no_reason_to_rebuild(made):
    (name,) = tree_names(made.root, "journal", "segments")
    os.unlink(made.path("journal", "segments", name))
    with pytest.raises(errors.InvalidArgumentError, match="is sound"):
        layerstore.rebuild(made.root)


def test_a_snapshot_is_gone_by_where_it_reaches_further(made, tmp_path):
    with layerstore.open(made.root) as store:
        store.snapshot(tmp_path / "snap")
    made.lose()
    report = rebuilt(made, source=tmp_path / "snap")
    assert (report.head, report.layers, report.images, report.whole) == (made.head, 0, 0, False)
    with layerstore.open(made.root) as store:
        assert layerjournal.canonical_dump(store._handle.journal.fold(made.head)) == made.dump


def test_a_snapshot_is_not_needed_where_the_log_is_whole(made, tmp_path):
    with layerstore.open(made.root) as store:
        store.snapshot(tmp_path / "snap")
        store.set_name("later", A)
    made.__dict__.update(Made(made.root).__dict__)
    alter(made, b"born_named", b"born_nomed")
    report = rebuilt(made, source=tmp_path / "snap")
    assert report.whole and len(tree_names(made.root, "journal", "segments")) == 1


@pytest.mark.parametrize("what", ["rubbish", "of another store"])
def test_what_is_no_snapshot_of_this_store_is_refused(made, tmp_path, what):
    with layerstore.open(tmp_path / "other") as store:
        add(store)
        store.snapshot(tmp_path / "snap")
    if what == "rubbish":
        (tmp_path / "snap").write_bytes(b"rubbish" * 20)
    made.lose()
    with pytest.raises(errors.InvalidArgumentError, match="no snapshot of this store"):
        layerstore.rebuild(made.root, source=tmp_path / "snap")
    rebuilt(made)


def test_an_old_copy_that_nothing_betrays_is_rebuilt_by_force(made):
    """No segment is younger than it: then only the disk shows it, and only who asks is told."""
    shutil.copy(made.home / "older", made.data)
    with layerstore.open(made.root, readonly=True) as store:
        assert ("ownerless", f"layers/{D}") in {(each.code, each.subject) for each in store.check().findings}
    with pytest.raises(errors.InvalidArgumentError, match="is sound"):
        layerstore.rebuild(made.root)
    report = rebuilt(made, force=True)
    assert not report.whole and ("adopted-layer", D) in codes(report)


def test_by_force_a_sound_store_stays_as_it_is(made):
    report = layerstore.rebuild(made.root, force=True)
    assert (report.layers, report.images) == (0, 0)
    assert wrong(made, report) == []
    with layerstore.open(made.root) as store:
        assert layerjournal.canonical_dump(store._handle.journal.fold(made.head)) == made.dump


def test_a_dry_run_says_the_same_and_changes_nothing(made):
    made.lose()
    before = everything(made.root)
    planned = layerstore.rebuild(made.root, dry_run=True)
    assert everything(made.root) == before
    done = layerstore.rebuild(made.root)
    assert planned.planned_only and not done.planned_only
    assert planned.items == done.items
    json.dumps(done.as_json())


def everything(root):
    return sorted((os.path.join(where, name), os.lstat(os.path.join(where, name)).st_mtime_ns)
                  for where, folders, files in os.walk(root) for name in (*folders, *files) if name not in ("pidns", "journal"))


# -- what the disk says -----------------------------------------------------------------------------------------------------


def test_a_deleted_layer_that_was_emptied_since_is_not_back(made):
    with layerstore.open(made.root) as store:
        store.checkpoint(archive=False)
    made.lose()
    assert ("deleted-since", C) in codes(rebuilt(made))


def test_a_tree_whose_deletion_is_on_record_is_not_back(made):
    copy_store(made.path("layers", D), made.path("kept"))
    with layerstore.open(made.root) as store:
        store.delete_layer(D)
        store.checkpoint()
        store.checkpoint(archive=True)   # its row is gone from the archive, too
    made.__dict__.update(Made(made.root).__dict__)
    made.lose()
    os.rename(made.path("kept"), made.path("layers", D))   # from a backup, say
    report = rebuilt(made)
    assert codes(report) >= {("contradiction", D), ("set-aside", f"layers/{D}")}
    assert os.path.exists(made.path("quarantine", f"layers-{D}-0", "diff"))


def test_a_tree_that_the_records_end_with_as_deleted_goes_to_trash_again(made):
    copy_store(made.path("layers", D), made.path("kept"))
    with layerstore.open(made.root) as store:
        store.delete_layer(D)
        store.checkpoint(archive=True)
    made.__dict__.update(Made(made.root).__dict__)
    made.lose()
    os.rename(made.path("kept"), made.path("layers", D))
    layerstore.rebuild(made.root)
    with layerstore.open(made.root) as store:
        assert D not in {x.id for x in store.layers()}


def test_a_layer_that_was_deleted_and_made_again_since_is_the_new_one(made):
    with layerstore.open(made.root) as store:
        store.delete_layer(D)
        store.delete_layer(B)
        add(store, {"other": b"content"}, id=B, parent=A, names=["moved"])
    made.__dict__.update(Made(made.root).__dict__)
    made.lose()
    report = rebuilt(made)
    assert codes(report) >= {("deleted-since", B), ("adopted-layer", B)}
    with layerstore.open(made.root) as store:
        assert store.layer(B).names == ("moved",)


def test_a_layer_that_is_missing_under_another_is_lost_and_not_deleted(made):
    made.lose()
    shutil.rmtree(made.path("layers", B))
    report = layerstore.rebuild(made.root)
    assert ("contradiction", B) in codes(report)
    with layerstore.open(made.root) as store:
        assert {x.id: x.state for x in store.layers()} | {A: "committed"} == {
            **{i: "committed" for i in made.layers}, B: "quarantined",
        }
        with pytest.raises(errors.LayerDamagedError, match="lost, not deleted"):
            store.layer(B)
        assert dict(catalog_rows(store, "quarantined"))


def catalog_rows(store, state):
    with store._handle.read() as view:
        return [(txid, row) for txid, row in view.scan("layers") if row["state"] == state]


def test_a_layer_that_was_quarantined_stays_so_with_and_without_a_tree(made):
    with layerstore.open(made.root) as store:
        rows = {row["layer_id"]: txid for txid, row in catalog_rows(store, "committed")}
        for layer_id in (A, D):
            store._handle.update("q", lambda txn, layer_id=layer_id: fire(
                txn, Kind.LAYER, rows[layer_id], Trigger.QUARANTINE, txid="q", payload={"why": "bad", "files": []}))
        store.checkpoint(archive=True)
    made.lose()
    shutil.rmtree(made.path("layers", A))
    layerstore.rebuild(made.root)
    with layerstore.open(made.root) as store:
        assert {x.id for x in store.layers() if x.state == "quarantined"} == {A, D}


def test_what_no_side_file_tells_of_is_put_aside_and_kept(made):
    made.lose()
    Path(made.path("layers", D, "layer")).write_bytes(b"torn")
    Path(made.path("layers", "stray")).write_text("a file")
    os.mkdir(made.path("layers", E))
    report = layerstore.rebuild(made.root)
    assert wrong(made, report, gone={D}) == []
    assert codes(report) >= {("set-aside", f"layers/{each}") for each in (D, E, "stray")}
    assert os.path.exists(made.path("quarantine", f"layers-{D}-0", "diff"))


@pytest.mark.parametrize("change, why", [
    (lambda root: os.rename(f"{root}/layers/{D}", f"{root}/layers/{E}"), "of the layer"),
    (lambda root: Path(f"{root}/layers/{D}/txid").write_text("0" * 32), "of the tree"),
], ids=["in another's place", "of another tree"])
def test_a_side_file_that_does_not_fit_its_tree_is_not_believed(made, change, why):
    made.lose()
    change(made.root)
    report = layerstore.rebuild(made.root)
    aside = [item.message for item in report.items if item.code == "set-aside"]
    assert why in aside[0]


def test_a_tree_of_another_form_is_not_adopted(made):
    made.lose()
    config = json.loads(Path(made.path("store.json")).read_text())
    config["overlay_form"] = {"user": "trusted", "trusted": "user"}[config["overlay_form"]]
    Path(made.path("store.json")).write_text(json.dumps(config))
    report = layerstore.rebuild(made.root)
    assert ("set-aside", f"layers/{D}") in codes(report)


@pytest.mark.parametrize("name", ["manifest", "tar-split"])
def test_a_tree_that_is_not_what_its_side_file_says_is_quarantined(made, name):
    made.lose()
    path = Path(made.path("layers", D, name))
    path.write_bytes(path.read_bytes()[:-1])
    report = layerstore.rebuild(made.root)
    assert codes(report) >= {("adopted-layer", D), ("quarantined", D)}
    with layerstore.open(made.root) as store, pytest.raises(errors.LayerDamagedError):
        store.layer(D)


def test_explain_tells_that_a_layer_came_back_from_its_side_file(made):
    made.lose()
    report = layerstore.rebuild(made.root)
    assert ("adopted-layer", D) in codes(report)
    with layerstore.open(made.root) as store:
        (step,) = [each for each in store.explain(D).steps if each.trigger == "adopt"]
    assert f"layer {D[:12]}" in step.about
    assert "rebuild.rename" in step.after


@pytest.mark.parametrize("change", [os.unlink, lambda path: (os.unlink(path), os.symlink("nowhere", path))],
                         ids=["missing", "a link"])
def test_a_tree_without_its_manifest_is_quarantined(made, change):
    made.lose()
    change(made.path("layers", D, "manifest"))
    assert ("quarantined", D) in codes(layerstore.rebuild(made.root))


def unreadable(monkeypatch, number):
    def fail(_fd, _name):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(remains, "file_digest", fail)


def test_a_manifest_that_the_device_does_not_give_is_no_reason_to_quarantine_a_layer(made, monkeypatch):
    made.lose()
    with monkeypatch.context() as once:
        unreadable(once, errno.EIO)
        report = rebuilt(made)
    assert codes(report) >= {("adopted-layer", D), ("unread", D)}
    assert not [item for item in report.items if item.code == "quarantined"]


def test_without_descriptors_nothing_is_rebuilt(made, monkeypatch):
    made.lose()
    with monkeypatch.context() as once:
        unreadable(once, errno.EMFILE)
        with pytest.raises(errors.BusyError):
            layerstore.rebuild(made.root)
    rebuilt(made)


@pytest.mark.parametrize("content", [False, True])
def test_a_file_that_rotted_is_found_if_it_is_asked_for(made, content):
    made.lose()
    with open(made.path("layers", D, "diff", "d"), "r+b") as file:
        file.write(b"5")
    report = layerstore.rebuild(made.root, content=content)
    assert (("quarantined", D) in codes(report)) == content
    assert ("adopted-layer", D) in codes(report)


def test_a_layer_whose_parent_is_nowhere_is_put_aside(made):
    shutil.rmtree(made.path("journal", "segments"))
    made.lose()
    made.archived = 0
    shutil.rmtree(made.path("layers", A))
    report = layerstore.rebuild(made.root)
    assert wrong(made, report, gone={A, B, D}) == []
    assert codes(report) >= {("set-aside", f"layers/{B}"), ("set-aside", f"layers/{D}")}


def test_a_promised_layer_that_was_not_in_place_yet_is_finished(made):
    def apply():
        with layerstore.open(made.root) as store, killing("publish.rename"):
            add(store, {"e": b"5"}, id=E, names=["promised"])

    run_child(apply)
    made.lose()
    report = layerstore.rebuild(made.root)
    assert ("adopted-layer", E) in codes(report)
    with layerstore.open(made.root) as store:
        assert store.layer(E).names == ("promised",)
    assert violations(made.root) == []


def test_a_promised_layer_whose_side_file_is_torn_is_kept_aside_and_not_swept(made):
    def apply():
        with layerstore.open(made.root) as store, killing("publish.rename"):
            add(store, {"e": b"5"}, id=E)

    run_child(apply)
    (txid,) = tree_names(made.root, "staging")
    Path(made.path("staging", txid, "layer")).write_bytes(b"torn")
    made.lose()
    rebuilt(made)
    assert tree_names(made.root, "quarantine")[-1:] == [f"staging-{txid}-0"]


def test_a_finished_tree_is_there_for_the_next_stage_of_its_content(made):
    with layerstore.open(made.root) as store:
        store.stage(differ({"left": b"x"}, keyed=True)).release()
        with store.stage(differ({"left": b"y"})) as nobody:
            nobody.release()
    made.lose()
    report = rebuilt(made)
    assert [item.code for item in report.items if item.code == "finished-tree"] == ["finished-tree"]
    with layerstore.open(made.root) as store, store.stage(differ({"left": b"x"}, keyed=True)) as staged:
        assert staged.adopted


def test_rows_of_what_was_being_made_at_the_archive_follow_what_became_of_it(made):
    """One is still there, one was applied since, one discarded, one applied and deleted."""
    with layerstore.open(made.root) as store:
        staged = {name: store.stage(differ({name: b"s"}, keyed=True)) for name in ("kept", "used", "gone", "dead")}
        staged["dead"].seal()
        store.checkpoint(archive=True)
        used = store.apply_staged_layer(staged["used"])
        dead = store.apply_staged_layer(staged["dead"])
        store.delete_layer(dead.id)
        staged["gone"].discard()
        staged["kept"].release()
    made.__dict__.update(Made(made.root).__dict__)
    made.lose()
    report = rebuilt(made)
    assert codes(report) >= {("adopted-layer", used.id)}
    with layerstore.open(made.root) as store:
        assert store.stage(differ({"kept": b"s"}, keyed=True)).adopted


def ending_with(made, change):
    """Let the records end with *change* (a function of the store), and lose what came after them."""
    with layerstore.open(made.root) as store:
        change(store)
        store._handle.update("t", lambda txn: fire(txn, Kind.NAME, "z", Trigger.TAKE, txid="t", payload={"kind": "layer", "id": A}))
        store._handle.update("t", lambda txn: fire(txn, Kind.NAME, "z", Trigger.DROP, txid="t"))
    alter(made, link_of(made), bytes(32))   # so the last record is not proven, nor that the one before was the last


def claim(store, txid, layer_id, *, names=(), parent=None):
    claimed = {"layer_id": layer_id, "parent": parent, "names": list(names), "replace_names": True, "batch": txid, "big_data": {}}
    store._handle.update("t", lambda txn: fire(txn, Kind.LAYER, txid, Trigger.CLAIM, txid=txid, payload=claimed))


def sealed(store, spec):
    staged = store.stage(differ(spec, keyed=True))
    staged.seal()
    staged.release()
    return staged._staging.txid


def apart(made, source, txid, layer_id):
    """A copy of a layer's tree, as that of another transaction and ID, with a side file to match; where it is."""
    from layerstore.formats import records as side

    target = made.path("apart")
    copy_store(made.path("layers", source), target)
    Path(target, "txid").write_text(txid)
    old = side.read(Path(target, "layer").read_bytes(), "it")
    row = {**old, "layer_id": layer_id, "born_named": old["names"]}
    Path(target, "layer").write_bytes(side.layer_file(txid, row))
    return target


def test_a_claim_that_the_records_end_with_is_released_and_its_tree_kept(made):
    found = {}

    def change(store):
        found["here"], found["gone"] = sealed(store, {"x": b"1"}), sealed(store, {"x": b"2"})
        claim(store, found["here"], E)
        claim(store, found["gone"], "f" * 64)

    ending_with(made, change)
    shutil.rmtree(made.path("staging", found["gone"]))
    report = layerstore.rebuild(made.root)
    assert not report.whole and report.head > made.archived
    with layerstore.open(made.root) as store:
        assert [row["state"] for _, row in catalog_rows(store, "staged")] == ["staged"]
    assert violations(made.root) == []


def test_a_claim_gives_way_to_the_layer_that_came_of_another(made):
    tree = apart(made, D, "5" * 32, E)
    ending_with(made, lambda store: claim(store, sealed(store, {"x": b"1"}), E, names=["other"]))
    os.rename(tree, made.path("layers", E))
    report = layerstore.rebuild(made.root)
    assert ("adopted-layer", E) in codes(report)
    with layerstore.open(made.root) as store:
        assert store.layer(E).txid == "5" * 32
    assert violations(made.root) == []


def test_a_name_that_is_claimed_stays_claimed(made):
    tree = apart(made, D, "5" * 32, E)
    ending_with(made, lambda store: claim(store, sealed(store, {"x": b"1"}), "f" * 64, names=["new"]))
    os.rename(tree, made.path("layers", E))
    report = layerstore.rebuild(made.root)
    assert ("adopted-layer", E) in codes(report) and ("name", "new") not in codes(report)
    assert violations(made.root) == []


def test_a_promise_and_a_deletion_that_the_records_end_with_and_whose_trees_are_gone(made):
    """Committed and deleted since, both; another layer has one's ID by now."""
    def change(store):
        txid = sealed(store, {"x": b"1"})
        claim(store, txid, E)
        store._handle.update("t", lambda txn: fire(txn, Kind.LAYER, txid, Trigger.PROMISE, txid=txid))
        (d,) = [t for t, row in catalog_rows(store, "committed") if row["layer_id"] == D]
        store._handle.update("t", lambda txn: fire(txn, Kind.LAYER, d, Trigger.DELETE, txid=d))
        found.append(txid)

    found = []
    again = apart(made, D, "5" * 32, D)
    ending_with(made, change)
    shutil.rmtree(made.path("staging", found[0]))
    shutil.rmtree(made.path("layers", D))
    os.rename(again, made.path("layers", D))
    report = layerstore.rebuild(made.root)
    assert codes(report) >= {("deleted-since", E), ("adopted-layer", D)}
    with layerstore.open(made.root) as store:
        assert store.layer(D).txid == "5" * 32
    assert violations(made.root) == []


def test_two_trees_of_one_layer_are_not_both_adopted(made):
    tree = apart(made, D, "5" * 32, D)
    made.lose()
    os.rename(tree, made.path("staging", "5" * 32))
    report = rebuilt(made)
    assert ("set-aside", f"staging/{'5' * 32}") in codes(report)


def test_two_finished_trees_of_one_content_are_not_both_kept(made):
    with layerstore.open(made.root) as store:
        store.stage(differ({"left": b"x"}, keyed=True)).release()
    made.lose()
    (txid,) = tree_names(made.root, "staging")
    copy_store(made.path("staging", txid), made.path("staging", "5" * 32))
    from layerstore.formats import records as side
    output = side.read(Path(made.path("staging", txid, "output")).read_bytes(), "it")
    Path(made.path("staging", "5" * 32, "txid")).write_text("5" * 32)
    Path(made.path("staging", "5" * 32, "output")).write_bytes(side.output_file("5" * 32, output["output"], 1))
    report = rebuilt(made)
    assert [item.code for item in report.items].count("finished-tree") == 1


def test_a_quarantined_layer_in_the_trash_under_another_is_kept_on_record(made):
    with layerstore.open(made.root) as store:
        (txid,) = [t for t, row in catalog_rows(store, "committed") if row["layer_id"] == A]
        store._handle.update("q", lambda txn: fire(
            txn, Kind.LAYER, txid, Trigger.QUARANTINE, txid="q", payload={"why": "bad", "files": []}))
        store.checkpoint(archive=True)
    made.lose()
    os.rename(made.path("layers", A), made.path("trash", txid))
    assert ("contradiction", A) in codes(layerstore.rebuild(made.root))


# -- images, names, leases, mounts ------------------------------------------------------------------------------------------


def second(made):
    return next(i for i, names in made.images.items() if names == ("app2",))


def first(made):
    return next(i for i, names in made.images.items() if names == ("app",))


@pytest.mark.parametrize("change", ["torn", "another's", "altered"])
def test_an_image_file_that_is_not_whole_is_put_aside(made, change):
    made.lose()
    path = made.path("images", second(made))
    if change == "torn":
        Path(path).write_bytes(Path(path).read_bytes()[:-1])
    elif change == "another's":
        os.rename(path, made.path("images", "f" * 64))
        path = made.path("images", "f" * 64)
    else:
        from layerstore.formats import records as side
        found = side.read(Path(path).read_bytes(), "it")
        found["manifest"] += b" "
        Path(path).write_bytes(side._seal(found))
    report = layerstore.rebuild(made.root)
    assert wrong(made, report, gone={second(made)}) == []
    assert ("set-aside", f"images/{os.path.basename(path)}") in codes(report)


def test_an_image_that_was_deleted_since_is_not_back(made):
    with layerstore.open(made.root) as store:
        store.delete_image(first(made))
    kept = {i: x for i, x in made.images.items() if i != first(made)}
    made.__dict__.update(Made(made.root).__dict__)
    assert made.images == kept
    made.lose()
    rebuilt(made)


def test_an_image_that_was_deleted_and_emptied_since_is_not_back_though_its_layers_are_kept(made):
    gone = first(made)
    with layerstore.open(made.root) as store:
        store.delete_image(gone, keep_layers=True)
        store.checkpoint(archive=False)
    made.__dict__.update(Made(made.root).__dict__)
    made.lose()
    assert ("deleted-since", gone) in codes(rebuilt(made))


def test_the_file_of_an_image_that_was_deleted_on_record_and_pulled_again_since_is_kept(made):
    again = first(made)
    with layerstore.open(made.root) as store:
        store.delete_image(again)
        store.checkpoint(archive=True)
        store.pull(image(made.home, name="first").reference)
        store.checkpoint()
        layers = {layer.id for layer in store.layers()}
    made.lose()
    report = layerstore.rebuild(made.root)
    assert ("set-aside", f"images/{again}") in codes(report)
    with layerstore.open(made.root) as store:
        store.checkpoint()
        assert {layer.id for layer in store.layers()} == layers
        assert again not in {each.id for each in store.images()}, "it is not proven that it was pulled again"
        assert os.path.exists(made.path("quarantine", f"images-{again}-0"))
    assert violations(made.root) == []


def test_an_image_one_of_whose_layers_is_nowhere_is_not_shown_and_its_file_is_kept(made):
    made.lose()
    with layerstore.open(made.home / "store", readonly=True) as store:
        (top,) = store.image(second(made)).layers[-1:]
        (other,) = store.image(first(made)).layers[-1:]
    shutil.rmtree(made.path("layers", top))
    shutil.rmtree(made.path("layers", other))
    report = layerstore.rebuild(made.root)
    assert wrong(made, report, gone={first(made), second(made), top, other}) == []
    assert tree_names(made.root, "quarantine") == sorted(f"images-{i}-0" for i in made.images)


def test_a_name_goes_to_what_was_created_with_it_last(made):
    with layerstore.open(made.root) as store:
        time.sleep(0.01)   # the order of two files' times is what is looked at
        add(store, {"x": b"x"}, id=E, names=["new"], replace_names=True)
        store.drop_name("base")
    made.lose()
    report = layerstore.rebuild(made.root)
    assert [item.subject for item in report.items if item.code == "name"].count("new") == 2
    with layerstore.open(made.root) as store:
        assert store.resolve("new") == ("layer", E)
        assert store.resolve("base") == ("layer", A), "that it was dropped is not known"
    assert violations(made.root) == []


def test_what_held_a_layer_that_is_gone_has_let_go_and_other_holders_stay(made):
    with layerstore.open(made.root) as store:
        store.take_lease("stays", [A])
        e = add(store, {"e": b"e"}, id=E)
        store.take_lease("goes", [e.id])
        for key, layers, state in (("m1", [E], "mounted"), ("m2", [E], "mounting"), ("m3", [A], "mounting")):
            payload = {"target": "/nowhere", "layers": layers, "writable": False, "boot_id": "b"}
            store._handle.update("t", lambda txn, key=key, payload=payload: fire(
                txn, Kind.MOUNT, key, Trigger.TAKE, txid="m", payload=payload))
            if state == "mounted":
                store._handle.update("t", lambda txn, key=key: fire(txn, Kind.MOUNT, key, Trigger.ATTACH, txid="m"))
        store.checkpoint(archive=True)
    made.lose()
    shutil.rmtree(made.path("layers", E))
    os.makedirs(made.path("uppers", "m9", "upper"))
    os.makedirs(made.path("uppers", "m3", "upper"))
    report = layerstore.rebuild(made.root)
    assert codes(report) >= {("released-since", "goes"), ("released-since", "m1"), ("released-since", "m2"),
                             ("set-aside", "uppers/m9")}
    assert os.path.isdir(made.path("quarantine", "uppers-m9-0", "upper"))
    with layerstore.open(made.root) as store:
        assert [lease.name for lease in store.leases()] == ["stays"]


# -- who may, and what else may go wrong ----------------------------------------------------------------------------------------


def test_a_store_that_somebody_has_open_is_left_alone(made):
    def hold(pipe):
        with layerstore.open(made.root):
            os.write(pipe, b"!")
            time.sleep(60)

    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        hold(write)
        os._exit(0)
    os.read(read, 1)
    try:
        with pytest.raises(errors.BusyError, match="is open in"):
            layerstore.rebuild(made.root, wait=0.05)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(read)
        os.close(write)
    with layerstore.open(made.root), pytest.raises(errors.AlreadyOpenError):
        layerstore.rebuild(made.root)


def test_on_a_file_system_that_is_mounted_read_only_it_can_only_be_planned(made, monkeypatch):
    made.lose()
    real = os.fstatvfs

    def read_only(fd):
        found = list(real(fd))
        found[8] |= os.ST_RDONLY
        return os.statvfs_result(found)

    monkeypatch.setattr(rebuilding.os, "fstatvfs", read_only)
    with pytest.raises(errors.ReadOnlyError):
        layerstore.rebuild(made.root)
    assert layerstore.rebuild(made.root, dry_run=True).layers


def test_a_database_of_another_store_beside_no_archive_is_known_by_its_uuid(made):
    shutil.rmtree(made.path("journal", "segments"))
    of_another_store(made)
    made.archived = 0
    assert "is of the journal" in rebuilt(made).damage[0]


def test_there_must_be_a_store(tmp_path):
    with pytest.raises(errors.InvalidArgumentError, match="no store"):
        layerstore.rebuild(tmp_path / "nowhere")
    with pytest.raises(errors.InvalidArgumentError, match="not a layerstore"):
        layerstore.rebuild(tmp_path)


@pytest.mark.parametrize("name, levels, floor", [
    ("rebuild", (1.0, 0.01), 36), ("rebuild-from", (0.3,), 8), ("rebuild-log", (0.3,), 6),
])
def test_a_rebuild_killed_anywhere_leaves_the_old_database_or_the_new_one(tmp_path, name, levels, floor, record_property):
    """And killed again, in the rebuild or the recovery after it (a sample): the same catalog in the end."""
    workload = points.workloads(str(tmp_path / "images"))[name]
    home = tmp_path / name
    home.mkdir()
    outcomes = list(points.explorer_of(workload, str(home)).explore(levels, workers=2))
    assert not [str(each) for each in outcomes if each.violations]
    assert sum(len(each.killed_at) == 1 for each in outcomes) >= floor
    record_property("states", len(outcomes))


POINTS = ("rebuild.mkdir", "journal.create.commit", "rebuild.set-aside", "rebuild.sync", "rebuild.keep", "rebuild.rename",
          "rebuild.journal.sync", "rebuild.clear")


def test_a_rebuild_that_goes_on_from_one_that_was_killed_keeps_the_old_database_once(made):
    alter(made, b"born_named", b"born_nomed")

    def die():
        with killing("rebuild.rename"):
            layerstore.rebuild(made.root)

    run_child(die)
    assert rebuilt(made).kept == "quarantine/journal-data.mdb-0"
    assert tree_names(made.root, "quarantine") == ["journal-data.mdb-0"]


def test_a_second_damaged_database_is_kept_beside_the_first(made):
    for number in range(2):
        truncated(made)
        assert layerstore.rebuild(made.root).kept == f"quarantine/journal-data.mdb-{number}"
    assert violations(made.root) == []


@pytest.mark.parametrize("errno_name", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("point", POINTS)
def test_a_call_that_fails_is_a_typed_error_and_the_next_rebuild_or_open_goes_on(made, point, errno_name):
    os.truncate(made.data, os.path.getsize(made.data) // PAGE // 2 * PAGE)
    os.mkdir(made.path("layers", E))
    nth = 2 if point == "rebuild.clear" else 1
    with raising(point, errno_name, nth=nth), pytest.raises(errors.LayerstoreError) as caught:
        layerstore.rebuild(made.root)
    assert not isinstance(caught.value, errors.CallerError)
    try:
        layerstore.open(made.root).close()
        assert point in ("rebuild.journal.sync", "rebuild.clear")
    except errors.JournalDamagedError:
        rebuilt(made)
    assert violations(made.root) == []
    assert [name for name in tree_names(made.root, "quarantine") if name.startswith("journal")] == ["journal-data.mdb-0"]


# -- snapshots and the command line ---------------------------------------------------------------------------------------------


def test_a_snapshot_beside_writers_is_of_one_moment_and_is_read_offline(tmp_path):
    root = tmp_path / "store"
    with layerstore.open(root) as store:
        stop = threading.Event()

        def write(who):
            for n in range(6):
                add(store, {f"{who}{n}": b"x"}, names=[f"{who}-{n}"])
            stop.set()

        writers = [threading.Thread(target=write, args=(f"w{n}",)) for n in range(4)]
        for each in writers:
            each.start()
        for number in range(3):
            store.snapshot(tmp_path / f"snap{number}")
        for each in writers:
            each.join()
        with pytest.raises(errors.InvalidArgumentError, match="there is something"):
            store.snapshot(tmp_path / "snap0")
    for number in range(3):
        with Replay.open([tmp_path / f"snap{number}"], CatalogProjector()) as replay:
            assert replay.verify().sound
            list(catalog.layers(DictView(replay.fold().tables)))
    done = command("--root", str(root), "snapshot", str(tmp_path / "more"))
    assert done.returncode == 0, done.stderr
    for verb in ("log", "state", "replay", "verify"):
        done = command("journal", verb, str(tmp_path / "more"))
        assert done.returncode == 0, done.stderr


def test_a_snapshot_can_be_made_read_only(made, tmp_path):
    with layerstore.open(made.root, readonly=True) as store:
        store.snapshot(tmp_path / "snap")
    assert (tmp_path / "snap").stat().st_size


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "layerstore", *arguments], capture_output=True, text=True, check=False,
    )


def test_the_command_says_what_is_wrong_what_to_do_and_what_it_did(made):
    made.lose()
    done = command("--root", made.root, "layers")
    assert done.returncode == 3 and "layerstore rebuild" in done.stderr
    planned = command("--root", made.root, "rebuild", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "would be taken" in planned.stdout and not os.path.exists(made.data)
    done = command("--root", made.root, "rebuild", "--json")
    assert done.returncode == 0, done.stderr
    assert {item["code"] for item in json.loads(done.stdout)["items"]} >= {"adopted-layer", "deleted-since"}
    again = command("--root", made.root, "rebuild")
    assert again.returncode == 2 and "is sound" in again.stderr
    alter(made, b"born_named", b"born_nomed")
    done = command("--root", made.root, "rebuild")
    assert "the old database is quarantine/journal-data.mdb-0" in done.stdout
