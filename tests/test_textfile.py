"""One textfile of several writers, and several stores in one registry: nothing is counted twice, lost, or out of date."""

import fcntl
import os
import threading
import time

import pytest
from prometheus_client import CollectorRegistry, Info
from prometheus_client.parser import text_string_to_metric_families

import layerstore
from layerstore.cli import main
from layerstore.observing import Metrics, textfile
from layerstore.system import fs
from test_observing import APPLIED, counting, values


@pytest.fixture
def target(tmp_path):
    (tmp_path / "collected").mkdir()
    return tmp_path / "collected" / "layerstore.prom"


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(textfile, "WAIT_SECONDS", 2.0, raising=False)


def applied(metrics):
    metrics.event("applied", created=True, bytes=10)


def checked_at(metrics, seconds, monkeypatch, **findings):
    monkeypatch.setattr(time, "time", lambda: seconds)
    metrics.event("check-ended", depth="content", findings=findings, layers=9, looked_at=int(seconds), recent=0, left=0,
                  left_unsound=0, unread=0, complete_since_ns=int(seconds * 1e9), seconds=1.0)


def of_the_check(target):
    found = values(target.read_text())
    told = lambda name, more="": found.get(f'layerstore_check_{name}{{{more}depth="content",store="/srv/layers"}}')
    ended = told("end_timestamp_seconds")
    assert told("complete_since_timestamp_seconds") == ended
    assert found['layerstore_check_layers{depth="content",store="/srv/layers",what="looked_at"}'] == int(ended)
    return ended, told("findings", 'code="old",'), told("findings", 'code="new",')


def test_of_two_checks_in_one_textfile_the_later_one_stays_whoever_writes_last(target, monkeypatch):
    daemon, command = counting(0), counting(0)
    checked_at(daemon, 100.25, monkeypatch, old=3)
    daemon.write_textfile(target)
    checked_at(command, 200.5, monkeypatch, new=1)
    command.write_textfile(target)
    assert of_the_check(target) == (200.5, 0, 1)
    daemon.write_textfile(target)
    assert of_the_check(target) == (200.5, 0, 1)
    checked_at(daemon, 300.75, monkeypatch, old=2)
    daemon.write_textfile(target)
    command.write_textfile(target)
    assert of_the_check(target) == (300.75, 2, 0)


def test_a_check_of_a_time_that_is_still_to_come_gives_way(target, monkeypatch):
    """The clock was set back: else nothing would be told of checks until then."""
    one, other = counting(0), counting(0)
    checked_at(one, 300.5, monkeypatch, old=1)
    one.write_textfile(target)
    checked_at(other, 200.5, monkeypatch)
    other.write_textfile(target)
    assert of_the_check(target)[:2] == (200.5, 0)


def test_who_locks_the_directory_holds_nobody_up(target, tmp_path):
    with fs.open_dir(str(target.parent)) as held, layerstore.open(tmp_path / "store") as store:
        fcntl.flock(held, fcntl.LOCK_EX)
        for path in (target, os.path.join(store.root, "layerstore.prom")):   # the root's lock is the store's own
            writer = threading.Thread(target=counting(1).write_textfile, args=(path,), daemon=True)
            writer.start()
            writer.join(20)
            assert os.path.exists(path)
    assert os.listdir(target.parent) == ["layerstore.prom"]


def test_a_writer_that_does_not_end_is_waited_for_so_long_and_told_of_and_the_command_ends_as_it_does(
    target, tmp_path, monkeypatch, capsys,
):
    monkeypatch.setattr(textfile, "WAIT_SECONDS", 0.05)
    watched = ["--root", str(tmp_path / "store"), "--metrics-textfile", str(target)]
    layerstore.open(tmp_path / "store").close()
    with open(f"{target}.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError):
            counting(1).write_textfile(target)
        assert main([*watched, "recover"]) == 0
        assert "layerstore.prom" in capsys.readouterr().err
        assert main([*watched, "rm", "no-such-image"]) == 1
        assert "no-such-image" in capsys.readouterr().err
    assert not target.exists()
    assert main([*watched, "recover"]) == 0
    assert target.exists()
    assert os.listdir(target.parent) == ["layerstore.prom"]


def test_only_its_user_may_hold_the_lock(target, monkeypatch):
    found, rename = [], os.rename

    def look(*names):
        found.append(os.stat(f"{target}.lock").st_mode & 0o777)
        rename(*names)

    monkeypatch.setattr(os, "rename", look)
    counting(1).write_textfile(target)
    assert found == [0o600]


def test_the_directory_may_be_a_symbolic_link_and_is_the_same_one(target, tmp_path):
    os.symlink(target.parent, tmp_path / "link")
    metrics = counting(2)
    metrics.write_textfile(tmp_path / "link" / "layerstore.prom")
    metrics.write_textfile(target)
    assert values(target.read_text())[APPLIED] == 2


def test_what_a_killed_writer_left_beside_it_is_replaced(target):
    for left in (f"{target}.{os.getpid()}.part", f"{target}.part", f"{target}.lock"):
        with open(left, "w") as file:
            file.write("left")
    counting(2).write_textfile(target)
    assert values(target.read_text())[APPLIED] == 2
    assert not os.path.exists(f"{target}.part")


def test_an_interrupt_just_after_the_file_was_replaced_counts_nothing_twice(target, monkeypatch):
    metrics, rename = counting(2), os.rename

    def interrupted(*names):
        rename(*names)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        metrics.write_textfile(target)
    monkeypatch.undo()
    metrics.write_textfile(target)
    assert values(target.read_text())[APPLIED] == 2


def test_what_could_not_be_written_is_counted_the_next_time(target, monkeypatch):
    metrics = counting(2)

    def failing(*_names):
        raise OSError(28, "no space")

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="no space"):
        metrics.write_textfile(target)
    monkeypatch.undo()
    metrics.write_textfile(target)
    assert values(target.read_text())[APPLIED] == 2


class _Late(dict):
    """What was written is known of only when another thread has written as well, or waits to."""

    def __init__(self, other):
        super().__init__()
        self._other = other

    def __setitem__(self, path, counts):
        if self._other.ident is None:
            self._other.start()
            self._other.join(0.3)
        super().__setitem__(path, counts)


def test_threads_that_write_one_object_count_nothing_twice(target):
    metrics = counting(2)
    other = threading.Thread(target=metrics.write_textfile, args=(target,))
    metrics._textfile._written = _Late(other)
    metrics.write_textfile(target)
    other.join()
    assert values(target.read_text())[APPLIED] == 2


def test_a_forked_child_leaves_to_its_parent_what_that_has_counted(target):
    metrics = counting(2)
    metrics.write_textfile(target)
    applied(metrics)
    with metrics._textfile._lock:   # a thread of the parent's writes just then
        child = os.fork()
        if child == 0:
            status = 1
            try:
                applied(metrics)
                metrics.write_textfile(target)
                applied(metrics)
                metrics.write_textfile(target)
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
    metrics.write_textfile(target)
    assert values(target.read_text())[APPLIED] == 5


def test_several_stores_in_one_registry_have_each_family_once(tmp_path, target):
    registry = CollectorRegistry()
    several = [Metrics(registry, store=str(tmp_path / name)) for name in ("one", "two")]
    for metrics in several:
        applied(metrics)
        with layerstore.open(tmp_path / "store", observer=metrics) as store:
            metrics.watch(store)
        with layerstore.open(tmp_path / "other") as store:
            metrics.watch(store)
    text = several[0].text()
    types = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types))
    families = {each.name: each for each in text_string_to_metric_families(text)}
    assert [each.labels["store"] for each in families["layerstore_layers"].samples] == [
        str(tmp_path / "one"), str(tmp_path / "two")]
    assert len(families["layerstore_up"].samples) == 2, "a store that is watched twice is told of once"
    several[1].write_textfile(target)
    assert set(values(target.read_text())) == {each for each in values(text) if "_created" not in each}


def test_two_that_could_not_be_told_apart_are_refused_in_one_registry():
    registry = CollectorRegistry()
    Metrics(registry)
    Metrics(registry, store="/srv/layers")
    with pytest.raises(ValueError, match="store"):
        Metrics(registry)
    with pytest.raises(ValueError, match="/srv/layers"):
        Metrics(registry, store="/srv/layers")


def test_metrics_of_the_programs_own_are_there_once(target):
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    Info("app", "What program it is.", registry=registry).info({"version": "3"})
    for _ in range(3):
        metrics.write_textfile(target)
    assert target.read_text().count("app_info{") == target.read_text().count("TYPE app_info") == 1


class _Unread:
    root = os.fsdecode(b"/srv/st\xffre\r")

    def gauges(self):
        raise layerstore.errors.ClosedError("closed")


def test_a_path_that_is_no_utf_8_is_told_with_its_bytes_escaped(target):
    metrics = Metrics(store=_Unread.root)
    metrics.watch(_Unread())
    for _ in range(2):
        applied(metrics)
        metrics.write_textfile(target)
    for text in (metrics.text(), target.read_bytes().decode()):
        found = {each.name: each for family in text_string_to_metric_families(text) for each in family.samples}
        assert found["layerstore_up"].labels["store"] == "/srv/st\\udcffre\r"
        assert found["layerstore_layers_total"].labels["store"] == "/srv/st\\udcffre\r"
        assert found["layerstore_layers_total"].value == 2


def test_only_an_opening_of_the_store_for_writing_says_that_it_is_poisoned_no_more(tmp_path):
    metrics = Metrics()
    said = lambda: values(metrics.text())["layerstore_poisoned"]
    with layerstore.open(tmp_path / "bad", observer=metrics) as store:
        store._handle.set_poison("a sync failed")
    assert said() == 1
    layerstore.open(tmp_path / "good", observer=metrics).close()
    layerstore.open(tmp_path / "bad", observer=metrics, readonly=True).close()
    assert said() == 1
    layerstore.open(tmp_path / "bad", observer=metrics).close()
    assert said() == 0
