"""Interrupts and failures at awkward moments: what was promised is kept, what was not leaves nothing, nobody hangs."""

import os
import threading
import time

import pytest

import layerstore
from layerstore import errors
from layerstore.system import faults
from layerstore.verbs import checkpoint
from layerstore.testing import Passing, passings, violations
from storekit import add, differ, failing_at, finished, image, states, tree_names


def raising_at(passing, error):
    """A hook that raises *error* at the given passing, once."""
    left = [passing.nth]

    def hook(name, when):
        if (name, when) == (passing.point, passing.when):
            left[0] -= 1
            if left[0] == 0:
                raise error

    return hook


def everything(root, made):
    with layerstore.open(root) as store:
        with store.stage(differ({"a": b"1"}, keyed=True)) as staged:
            base = store.apply_staged_layer(staged, big_data={"k": b"v"}, names=["a"])
        add(store, {"b": b"2"}, parent=base.id)
        store.pull(made.reference, options=layerstore.PullOptions(workers=1))
        store.delete_image(store.images()[0].id)
        store.checkpoint(archive=True)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_at_any_fault_point_leaves_a_store_that_opens_sound(tmp_path, error):
    made = image(tmp_path, layers=2)
    points = passings(lambda: everything(str(tmp_path / "trial"), made))
    assert len(points) > 150
    for number, passing in enumerate(points):
        root = str(tmp_path / f"s{number}")
        previous = faults.install(raising_at(passing, error))
        try:
            with pytest.raises((error, errors.LayerstoreError)):
                everything(root, made)
        finally:
            faults.install(previous)
        if os.path.exists(os.path.join(root, "store.json")):
            assert violations(root) == [], str(passing)
            with layerstore.open(root) as store:
                assert not [x for x in store.layers() if x.state != "committed"], str(passing)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["EIO", "ENOSPC"])
def test_a_failing_effect_at_any_fault_point_is_a_typed_error_with_a_hint(tmp_path, name):
    made = image(tmp_path, layers=2)
    import errno

    points = [p for p in passings(lambda: everything(str(tmp_path / "trial"), made)) if p.when == "before"]
    for number, passing in enumerate(points):
        root = str(tmp_path / f"s{number}")
        code = getattr(errno, name)
        previous = faults.install(raising_at(passing, OSError(code, os.strerror(code))))
        try:
            everything(root, made)
        except errors.LayerstoreError as error:
            assert error.hint, str(passing)
        finally:
            faults.install(previous)
        if os.path.exists(os.path.join(root, "store.json")):
            assert violations(root) == [], str(passing)
            with layerstore.open(root) as store:
                assert not [x for x in store.layers() if x.state != "committed"], str(passing)


def test_ctrl_c_right_after_the_commit_point_keeps_the_promise(root):
    with layerstore.open(root) as store:
        previous = faults.install(raising_at(Passing("txn.claim", "after", 1), KeyboardInterrupt()))
        try:
            with pytest.raises(KeyboardInterrupt), store.stage(differ()) as staged:
                store.apply_staged_layer(staged)
        finally:
            faults.install(previous)
    with layerstore.open(root) as store:
        assert [x.state for x in store.layers()] == ["committed"]


def test_a_stage_that_failed_right_after_its_row_was_written_holds_nobody_up(root):
    with layerstore.open(root) as store:
        with failing_at("txn.begin", "EDQUOT", when="after"), pytest.raises(errors.LayerstoreError):
            store.stage(differ(keyed=True))
    with layerstore.open(root) as store:
        with store.stage(differ(keyed=True), options=layerstore.StageOptions(wait=5)) as staged:
            assert store.apply_staged_layer(staged).created


def test_a_row_whose_tree_vanished_holds_nobody_up(root):
    with layerstore.open(root) as store:
        store.stage(differ(keyed=True)).release()
        (txid,) = tree_names(root, "staging")
        os.rename(root / "staging" / txid, root.parent / "elsewhere")
        with store.stage(differ(keyed=True), options=layerstore.StageOptions(wait=5)) as staged:
            assert not staged.adopted


def test_a_commit_during_a_checkpoints_sync_is_not_covered_by_it(root, tmp_path):
    """An image promised before the head was read, and committed while the sync ran: its file may still be lost."""
    made = image(tmp_path)
    with layerstore.open(root) as store:
        promised, synced = threading.Event(), threading.Event()

        def hook(name, when):
            if (name, when) == ("publish.image-file.write", "before"):
                promised.set()
                synced.wait(30)

        def pull():
            store.pull(made.reference)

        previous = faults.install(hook)
        try:
            puller = threading.Thread(target=pull)
            puller.start()
            promised.wait(30)
            original = store._handle.sync

            def sync(fd, *, point):
                original(fd, point=point)
                synced.set()
                puller.join(30)

            store._handle.sync = sync
            store.checkpoint()
        finally:
            faults.install(previous)
        (pulled,) = store.images()
    os.unlink(root / "images" / pulled.id)     # the power took it
    with layerstore.open(root) as store:
        assert [a.do.value for a in store.recovery.actions] == ["rewrite-image-file"]
        assert store.image_documents(pulled.id)


def test_two_threads_of_one_handle_do_not_finish_the_same_batch_at_once(store):
    entered, leave, failures = threading.Event(), threading.Event(), []

    def hook(name, when):
        if (name, when) == ("publish.rename", "before"):
            entered.set()
            leave.wait(30)

    def owner():
        try:
            add(store, id="a" * 64)
        except BaseException as error:
            failures.append(error)

    previous = faults.install(hook)
    try:
        thread = threading.Thread(target=owner)
        thread.start()
        entered.wait(30)
        threading.Timer(0.3, leave.set).start()
        store.recover()
        thread.join(30)
    finally:
        faults.install(previous)
    assert failures == []
    assert states(store) == ["committed"]


def test_concurrent_checkpoints_empty_the_same_trash_without_error(store):
    failures = []
    for n in range(5):
        store.delete_layer(add(store, {f"{n}-{m}": b"" for m in range(200)}).id)

    def run():
        try:
            store.checkpoint()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
    assert failures == []


def test_a_checkpoint_that_fails_by_itself_does_not_fail_the_verb(store, monkeypatch):
    monkeypatch.setattr(checkpoint, "EVERY", 1)
    with failing_at("checkpoint.sync", "EIO"):
        assert add(store).created
    assert len(store.layers()) == 1


def test_a_held_back_mark_does_not_make_every_verb_sync(store, monkeypatch):
    monkeypatch.setattr(checkpoint, "EVERY", 20)
    layer = add(store)
    with store.layer_paths(layer.id):
        store.delete_layer(layer.id, wait=0)
        seen = []
        monkeypatch.setattr(store._handle.observer, "event", lambda what, **f: seen.append(f.get("name")), raising=False)
        for n in range(20):
            add(store, {f"{n}": b""})
    assert seen.count("checkpoint.sync") <= 5


def test_closing_waits_for_the_calls_of_other_threads(root):
    store = layerstore.open(root)
    begun, go = threading.Event(), threading.Event()

    class Slow:
        content_key = "slow"

        def apply_diff(self, target):
            begun.set()
            go.wait(30)
            return differ().apply_diff(target)

    results = []
    thread = threading.Thread(target=lambda: results.append(store.stage(Slow())))
    thread.start()
    begun.wait(30)
    at = time.monotonic()
    threading.Timer(0.3, go.set).start()
    store.close()
    assert time.monotonic() - at > 0.2
    thread.join(30)
    assert len(results) == 1
    with layerstore.open(root) as again:
        assert again.recovery.clean
        assert len(finished(again)) == 1


def test_closing_from_inside_a_call_is_refused(store):
    class Closing:
        content_key = None

        def apply_diff(self, target):
            store.close()

    with pytest.raises(errors.BusyError):
        store.stage(Closing())
    assert add(store).created


def test_a_duplicate_gets_the_names_that_were_asked_for(store):
    first = add(store)
    again = add(store, names=["later"])
    assert (again.id, again.created, again.names) == (first.id, False, ("later",))
    with pytest.raises(errors.DuplicateNameError):
        add(store, {"other": b""}, names=["later"])


def test_a_duplicate_with_other_big_data_is_refused(store):
    add(store, big_data={"k": b"1"})
    with pytest.raises(errors.DuplicateLayerError):
        add(store, big_data={"k": b"2"})
    assert add(store, big_data={"k": b"1"}).created is False


def test_opening_a_busy_store_comes_to_an_end(root):
    layerstore.open(root).close()
    import subprocess
    import sys

    code = f"""
import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})
import layerstore, os, time
from storekit import add
with layerstore.open({str(root)!r}) as store:
    end = time.monotonic() + 3
    n = 0
    while time.monotonic() < end:
        n += 1
        add(store, {{f"{{os.getpid()}}-{{n}}": b""}})
"""
    writers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
    opened = 0
    while any(w.poll() is None for w in writers):
        layerstore.open(root).close()
        opened += 1
    assert all(w.wait() == 0 for w in writers)
    assert opened > 2
    assert violations(str(root)) == []


def test_a_file_where_a_tree_should_be_does_not_stop_an_open(root):
    layerstore.open(root).close()
    (root / "staging" / ("a" * 32)).write_bytes(b"")
    (root / "trash" / "b").write_bytes(b"")
    with layerstore.open(root) as store:
        assert len(store.recovery.actions) == 2
        assert tree_names(root, "staging") == []


def test_a_tree_whose_row_says_that_it_is_elsewhere_is_set_aside(root):
    with layerstore.open(root) as store:
        layer = add(store)
        store.checkpoint()
    os.mkdir(root / "staging" / layer.txid)
    with layerstore.open(root) as store:
        assert [a.do.value for a in store.recovery.actions] == ["set-aside"]
    assert len(tree_names(root, "quarantine")) == 1


# -- found by interrupting every line (crash/lines), each here by itself -------------------------------------------------


@pytest.mark.parametrize("where", ["update", "get"])
def test_an_error_in_the_hashing_thread_comes_out_and_nobody_hangs(tmp_path, monkeypatch, where):
    from layerstore.differs import tar as differ_module

    def fail(*_args):
        if threading.current_thread().name == "layerstore-hash":
            raise MemoryError("no memory for hashing")
        return original(*_args)

    original = differ_module.Channel.get
    with layerstore.open(tmp_path / "s") as store:
        if where == "get":
            monkeypatch.setattr(differ_module.Channel, "get", fail)
        else:
            failing = type("Failing", (), {"update": fail, "hexdigest": lambda self: "0" * 64})
            monkeypatch.setattr(differ_module, "hashlib", type("Hashlib", (), {"sha256": failing}))
        with pytest.raises(MemoryError, match="hashing"):
            store.stage(differ({"a": os.urandom(20 << 20)}))
        monkeypatch.undo()
        add(store, {"a": b"again"})
    assert [t for t in threading.enumerate() if t.name.startswith("layerstore-")] == []
    assert violations(str(tmp_path / "s")) == []


def test_an_open_that_was_interrupted_can_be_done_again_in_the_same_process(tmp_path, monkeypatch):
    from layerjournal.engine import Engine

    with layerstore.open(tmp_path / "s") as store:
        add(store)
    for name in ("_database", "_begin"):
        original = getattr(Engine, name)

        def interrupted(self, *args, original=original, **options):
            original(self, *args, **options)
            raise KeyboardInterrupt

        monkeypatch.setattr(Engine, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            layerstore.open(tmp_path / "s")
        monkeypatch.undo()
        with layerstore.open(tmp_path / "s") as store:
            assert len(store.layers()) == 1


def test_a_close_that_was_interrupted_is_finished_by_the_next(tmp_path, monkeypatch):
    from layerjournal import Journal

    store = layerstore.open(tmp_path / "s")
    monkeypatch.setattr(Journal, "close", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.close()
    monkeypatch.undo()
    store.close()
    with layerstore.open(tmp_path / "s") as again:
        add(again)


def test_a_journal_whose_making_was_interrupted_at_its_close_leaves_no_descriptor_open(tmp_path, monkeypatch):
    from layerjournal.gate import Gate

    def open_files():
        found = (os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd"))
        return [os.readlink(fd) for fd in found if os.path.exists(fd) and str(tmp_path) in os.readlink(fd)]

    def interrupted(*_args):
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(Gate, "alone", interrupted)
    with pytest.raises(KeyboardInterrupt):
        layerstore.open(tmp_path / "s")
    assert open_files() == []
    with layerstore.open(tmp_path / "s") as store:
        add(store)
