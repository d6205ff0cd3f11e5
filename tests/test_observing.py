"""Who watches a store is told what happened, when it is durable, and cannot disturb it."""

import gc
import json
import logging
import os
import pathlib
import re
import subprocess
import sys
import threading
import time

import pytest

import layerstore
from layerstore.verbs import checkpoint
from layerstore.cli import main
from layerstore.observe import EVENTS
from layerstore.observing import Both, JsonLines, Logs
from storekit import add, differ, failing_at, image, killed_at

PAGE = (pathlib.Path(__file__).parent.parent / "docs" / "observing.md").read_text()


class Told:
    def __init__(self):
        self.events = []

    def event(self, what, **fields):
        self.events.append((what, fields))

    def of(self, what):
        return [fields for name, fields in self.events if name == what]


@pytest.fixture
def told():
    return Told()


def a_life(root, observer, tmp_path):
    """Most of what can happen to a store."""
    with layerstore.open(root, observer=observer) as store:
        pulled = store.pull(image(tmp_path).reference)
        base = add(store, {"a": b"1"}, big_data={"note": b"kept"})
        store.set_name("base", base.id)
        store.stage(differ({"left": b"1"}, keyed=True)).release()
        store.stage(differ({"left": b"1"}, keyed=True)).discard()
        store.delete_image(pulled.id)
        store.checkpoint(archive=True)
    return base


def test_every_event_has_the_fields_that_are_promised_and_is_one_of_the_table(root, told, tmp_path):
    a_life(root, told, tmp_path)
    with layerstore.open(root, observer=told) as store:
        store.check()
        mended, lost = add(store, {"same": b"1" * 80}), add(store, {"same": b"1" * 80, "alone": b"nowhere else"})
        for each, name in ((mended, "same"), (lost, "alone")):
            os.truncate(os.path.join(store.root, "layers", each.id, "diff", name), 0)
        store.repair(layers=[mended.id, lost.id])
    assert [(each["layer_id"], each["steps"]) for each in told.of("repaired")] == [(mended.id, 1)]
    assert [(each["layer_id"], each["files"]) for each in told.of("quarantined")] == [(lost.id, 1)]
    assert [each["number"] for each in told.of("checked")][-2:] == [1, 2]
    assert {what for what, _ in told.events} == set(EVENTS) - {"recovery", "checkpoint-failed", "noted", "poisoned"}
    for what, fields in told.events:
        assert set(fields) == set(EVENTS[what]), what


def test_the_page_has_every_event_and_every_field(told):
    for what, fields in EVENTS.items():
        (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{what}` |")]
        assert set(re.findall(r"`(\w+)`", row.split("|")[2])) == set(fields), what


def test_a_transition_is_told_when_it_is_durable_and_in_the_order_of_the_log(root, told):
    with layerstore.open(root, observer=told) as store:
        with failing_at("txn.claim", "EIO"), pytest.raises(layerstore.errors.OutcomeUnknownError):
            add(store)
        assert [t["trigger"] for t in told.of("transition")] == ["begin"], "what failed is not told"
        assert len(told.of("poisoned")) == 1
    told.events.clear()
    with layerstore.open(root, observer=told) as store:
        layer = add(store)
        assert store.layer(layer.id)
    mine = [(t["trigger"], t["source"], t["state"]) for t in told.of("transition") if t["key"] == layer.txid]
    assert mine == [
        ("begin", "absent", "staging"), ("seal", "staging", "staged"), ("claim", "staged", "creating"),
        ("promise", "creating", "incomplete"), ("commit", "incomplete", "committed"),
    ]
    assert [t["seq"] for t in told.of("transition")] == sorted(t["seq"] for t in told.of("transition"))
    assert told.of("transition")[-1]["layer_id"] == layer.id


def test_every_barrier_is_told_with_its_seconds(root, told, tmp_path):
    a_life(root, told, tmp_path)
    names = [b["name"] for b in told.of("barrier")]
    assert {"stage.sync", "txn.begin", "txn.claim", "txn.commit", "txn.promise", "apply.big-data.write", "apply.big-data.sync",
            "checkpoint.sync", "txn.checkpoint", "txn.empty", "archive.write", "archive.sync", "txn.archive"} <= set(names)
    assert all(b["seconds"] > 0 for b in told.of("barrier"))
    assert names.count("txn.claim") == len([t for t in told.of("transaction") if t["label"] == "claim"])


def test_a_transaction_that_changes_nothing_is_no_barrier(root, told):
    with layerstore.open(root, observer=told) as store:
        told.events.clear()
        store._handle.update("idle", lambda txn: None)
        assert told.events == []


def test_layers_are_told_with_their_bytes(root, told, tmp_path):
    base = a_life(root, told, tmp_path)
    (applied,) = [a for a in told.of("applied") if a["layer_id"] == base.id]
    (staged,) = [s for s in told.of("staged") if s["txid"] == base.txid]
    assert applied["bytes"] == staged["bytes"] == base.diff_size
    assert applied["created"]
    (deleted,) = told.of("deleted")
    assert deleted["bytes"] == sum(a["bytes"] for a in told.of("applied") if a["layer_id"] in deleted["layers"]) > 0


def test_what_recovery_does_is_told(root, told):
    killed_at("publish.rename", "before", lambda: add(layerstore.open(root)))
    with layerstore.open(root, observer=told):
        pass
    assert [(r["action"]) for r in told.of("recovery")] == ["finish"]
    assert told.of("opened")[0]["actions"] == 1


def test_a_verb_that_fails_ends_with_its_error(root, told):
    with layerstore.open(root, observer=told) as store, pytest.raises(layerstore.errors.UnknownLayerError):
        store.layer("0" * 64)
    begun, ended = told.of("verb-begun")[-1], told.of("verb-ended")[-1]
    assert begun["number"] == ended["number"]
    assert ended["error"] == "UnknownLayerError"


def test_a_checkpoint_that_fails_by_itself_is_told(root, told, monkeypatch):
    monkeypatch.setattr(checkpoint, "EVERY", 1)
    with layerstore.open(root, observer=told) as store, failing_at("checkpoint.sync", "EIO"):
        add(store)
    assert "checkpoint" not in [what for what, _ in told.events]
    assert len(told.of("checkpoint-failed")) == 1


class Broken:
    def event(self, what, **fields):
        raise RuntimeError(what)


def test_an_observer_that_raises_disturbs_nothing_and_is_logged_once(root, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "layerstore"):
        layer = a_life(root, Broken(), tmp_path)
    assert len(caplog.records) == 1
    assert caplog.records[0].exc_info
    with layerstore.open(root, readonly=True) as store:
        assert store.layer(layer.id)
        assert store.check().sound


def test_one_of_several_observers_that_raises_does_not_silence_the_others(root, told):
    with layerstore.open(root, observer=Both(Broken(), told)):
        pass
    assert told.of("opened")


def test_when_nobody_watches_nothing_is_gathered(root, monkeypatch):
    from layerstore.opening import handle
    from layerstore.verbs import delete

    def never(*_args):
        raise AssertionError("gathered for nobody")

    monkeypatch.setattr(handle, "transitions", never)
    monkeypatch.setattr(handle, "Timed", never)
    with layerstore.open(root) as store:
        store.delete_layer(add(store).id)
        assert delete._bytes(store._handle, [("no such tree", "")]) == {}


# -- the ready-made ones ---------------------------------------------------------------------------------------------


def test_logs_are_lines_of_json(root, tmp_path):
    logger = logging.Logger("mine", logging.INFO)
    lines = []
    handler = logging.Handler()
    handler.setFormatter(JsonLines())
    handler.emit = lambda record: lines.append(json.loads(handler.format(record)))
    logger.addHandler(handler)
    base = a_life(root, Logs(logger), tmp_path)
    (applied,) = [each for each in lines if each.get("layer_id") == base.id]
    assert applied["event"] == "applied"
    assert applied["level"] == "INFO"
    assert applied["bytes"] == base.diff_size
    assert applied["time"].endswith("Z")
    assert not [each for each in lines if each["event"] in ("barrier", "transition")], "these are for whoever looks for them"


def test_a_failing_verb_is_a_warning_and_other_records_have_their_message(root, caplog):
    with caplog.at_level(logging.DEBUG, "layerstore.events"):
        with layerstore.open(root, observer=Logs()) as store, pytest.raises(layerstore.errors.UnknownLayerError):
            store.layer("0" * 64)
    assert [r.layerstore["verb"] for r in caplog.records if r.levelno == logging.WARNING] == ["layer"]
    plain = logging.LogRecord("x", logging.INFO, "", 0, "told %s", ("so",), None)
    assert json.loads(JsonLines().format(plain))["message"] == "told so"


def test_metrics_count_layers_bytes_transitions_and_barriers(root, tmp_path):
    from layerstore.observing import Metrics

    metrics = Metrics()
    a_life(root, metrics, tmp_path)
    text = metrics.text()
    assert 'layerstore_layers_total{what="applied"} 4.0' in text
    assert 'layerstore_layers_total{what="deleted"} 3.0' in text
    assert 'layerstore_transitions_total{kind="layer",state="committed",trigger="commit"} 4.0' in text
    assert re.search(r'layerstore_barrier_seconds_count\{name="stage.sync"\} [23]\.0', text)
    assert re.search(r'layerstore_verb_seconds_count\{error="",verb="pull"\} 1\.0', text)
    with layerstore.open(root, readonly=True) as store:
        low = store.recovery.low_water
    assert f"layerstore_journal_low_water {float(low)}" in text
    for name in re.findall(r"^# TYPE (\w+?)(?:_total|_created)? ", text, re.M):
        assert f"`{name}" in PAGE, name


def test_metrics_tell_of_recovery_and_poison(root):
    from layerstore.observing import Metrics

    killed_at("publish.rename", "before", lambda: add(layerstore.open(root)))
    metrics = Metrics()
    with layerstore.open(root, observer=metrics) as store:
        with failing_at("txn.claim", "EIO"), pytest.raises(layerstore.errors.OutcomeUnknownError):
            add(store, {"other": b""})
    assert 'layerstore_recovery_actions_total{action="finish"} 1.0' in metrics.text()
    assert "layerstore_poisoned 1.0" in metrics.text()


def test_a_textfile_is_replaced_whole(tmp_path, monkeypatch):
    from layerstore.observing import Metrics

    target = tmp_path / "layerstore.prom"
    target.write_text("old\n")
    monkeypatch.setattr("os.rename", lambda *_names: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Metrics().write_textfile(target)
    assert os.listdir(tmp_path) == ["layerstore.prom"]
    assert target.read_text() == "old\n"
    monkeypatch.undo()
    Metrics().write_textfile(target)
    assert "# HELP layerstore_layers_total" in target.read_text()


def counting(number):
    from layerstore.observing import Metrics

    metrics = Metrics(store="/srv/layers")
    for _ in range(number):
        metrics.event("applied", created=True, bytes=10)
    return metrics


def values(text):
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}


APPLIED = 'layerstore_layers_total{store="/srv/layers",what="applied"}'


def test_what_several_processes_count_adds_up_in_one_textfile(tmp_path):
    target = tmp_path / "layerstore.prom"
    one, other = counting(2), counting(3)
    one.write_textfile(target)
    other.write_textfile(target)
    one.event("applied", created=True, bytes=10)
    one.event("verb-ended", verb="pull", error=None, seconds=0.2)
    one.write_textfile(target)
    one.write_textfile(target)
    found = values(target.read_text())
    assert found[APPLIED] == 6
    assert found['layerstore_layer_bytes_total{store="/srv/layers",what="applied"}'] == 60
    assert [found[f'layerstore_verb_seconds_bucket{{error="",le="{le}",store="/srv/layers",verb="pull"}}']
            for le in ("0.1", "0.5", "+Inf")] == [0, 1, 1]
    target.write_text("# half of a li")
    one.event("applied", created=True, bytes=10)
    one.write_textfile(target)
    assert values(target.read_text())[APPLIED] == 1, "what cannot be understood begins anew"


def test_writers_of_one_textfile_at_once_lose_nothing(tmp_path):
    target = tmp_path / "layerstore.prom"

    def write():
        for _ in range(5):
            counting(1).write_textfile(target)

    writers = [threading.Thread(target=write) for _ in range(4)]
    for each in writers:
        each.start()
    for each in writers:
        each.join()
    assert values(target.read_text())[APPLIED] == 20
    assert os.listdir(tmp_path) == ["layerstore.prom"]


def test_gauges_that_nobody_has_set_say_nothing():
    from layerstore.observing import Metrics

    assert set(values(Metrics().text())) == {"layerstore_blob_bytes_total", "layerstore_blob_bytes_created"}


def test_what_a_check_found_stays_in_the_textfile_until_the_next_at_that_depth(root, tmp_path):
    from layerstore.observing import Metrics

    target = tmp_path / "layerstore.prom"

    def checked(depth):
        metrics = Metrics(store=str(root))
        with layerstore.open(root, observer=metrics) as store:
            store.check(depth=depth)
        metrics.write_textfile(target)
        return values(target.read_text())

    with layerstore.open(root) as store:
        layer = add(store, {"a": b"right"})
    before = time.time()
    path = root / "layers" / layer.id / "diff" / "a"
    times = os.stat(path)
    path.write_bytes(b"wrong")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    name = f'layerstore_check_findings{{code="path-content",depth="content",store="{root}"}}'
    since = f'layerstore_check_complete_since_timestamp_seconds{{depth="content",store="{root}"}}'
    assert checked("content")[name] == 1
    found = checked("structure")
    assert found[name] == 1
    assert before <= found[since] <= time.time()
    path.write_bytes(b"right")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert checked("content")[name] == 0


def test_gauges_of_a_store_are_read_when_they_are_asked_for(root):
    from layerstore.observing import Metrics

    metrics = Metrics()
    with layerstore.open(root) as store:
        metrics.watch(store)
        layer = add(store, {"only": b"here" * 100})
        store.stage(differ({"left": b"1"}, keyed=True)).release()
        store.set_quota(1 << 20)
        text = metrics.text()
        found = values(text)
        here = lambda name: found[f'layerstore_{name}{{store="{root}"}}']
        trees = lambda state: found[f'layerstore_trees{{state="{state}",store="{root}"}}']
        assert here("up") == 1
        assert (trees("committed"), trees("staging"), trees("incomplete"), trees("quarantined")) == (1, 1, 0, 0)
        assert here("quota_bytes") == 1 << 20
        assert layer.diff_size < here("quota_used_bytes") == store.space().counted
        assert here("reserve_bytes") == here("reserve_wanted_bytes") > 0
        assert 0 < here("disk_free_bytes") <= here("disk_size_bytes")
        assert here("journal_bytes") == os.path.getsize(root / "journal" / "data.mdb")
        assert here("journal_uncovered_records") > 0
        os.truncate(root / "layers" / layer.id / "diff" / "only", 0)
        store.repair()
        store.checkpoint(archive=True)
        found = values(metrics.text())
        assert (trees("committed"), trees("quarantined")) == (0, 1)
        assert here("segments") == 1
        assert here("segment_bytes") > 0
        for name in re.findall(r"^# TYPE (\w+?)(?:_total|_created)? ", text, re.M):
            assert f"`{name}" in PAGE, name
    assert [line for line in values(metrics.text()).items() if line[0].startswith("layerstore_up")] == [
        (f'layerstore_up{{store="{root}"}}', 0)], "it is closed"


def test_gauges_wait_for_no_writer(root):
    """They are read while a transaction is open, by the thread that has it open: any lock it took would be waited for for ever."""
    with layerstore.open(root) as store:
        add(store)
        found = store._handle.update("held", lambda _txn: store.gauges())
    assert found.trees["committed"] == 1


@pytest.fixture
def spans():
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from layerstore.observing import Tracing

    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    yield Tracing(tracer), tracer, exporter.get_finished_spans
    # while it lives, each child that a later test forks begins with a thread of its own, and may not have a namespace
    provider.shutdown()
    del exporter, provider, tracer
    gc.collect()


def test_spans_are_verbs_with_barriers_as_events(root, tmp_path, spans):
    tracing, _, finished = spans
    a_life(root, tracing, tmp_path)
    (pull,) = [span for span in finished() if span.name == "layerstore.pull"]
    names = [event.attributes["name"] for event in pull.events if event.name == "layerstore.barrier"]
    assert names == ["txn.begin", "stage.sync", "txn.claim", "txn.commit"]
    assert len([event for event in pull.events if event.name == "layerstore.staged"]) == 3, "its threads' are its own"
    assert tracing._open == {}


def test_a_span_is_the_child_of_the_one_around_it_and_an_error_is_its_status(root, spans):
    tracing, tracer, finished = spans
    with layerstore.open(root, observer=tracing) as store, tracer.start_as_current_span("mine") as mine:
        with pytest.raises(layerstore.errors.UnknownLayerError):
            store.chain("0" * 64)
    (span,) = [each for each in finished() if each.name == "layerstore.chain"]
    assert span.parent.span_id == mine.get_span_context().span_id
    assert span.status.status_code.name == "ERROR"
    assert span.attributes["error.type"] == "UnknownLayerError"


def test_the_optional_libraries_are_not_imported_by_the_package(root):
    script = ("import layerstore, layerstore.observing, sys; layerstore.open(sys.argv[1]).close(); "
              "print([m for m in sys.modules if m.split('.')[0] in ('opentelemetry', 'prometheus_client')])")
    done = subprocess.run([sys.executable, "-c", script, root], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- the command line ------------------------------------------------------------------------------------------------


def test_a_command_writes_metrics_and_a_log(root, tmp_path, capsys):
    metrics, log = tmp_path / "layerstore.prom", tmp_path / "log.json"
    watch = ["--root", str(root), "--metrics-textfile", str(metrics), "--log-json", str(log)]
    assert main([*watch, "pull", image(tmp_path).reference, "-q"]) == 0
    found = values(metrics.read_text())
    assert found[f'layerstore_layers_total{{store="{root}",what="applied"}}'] == 3
    assert found[f'layerstore_trees{{state="committed",store="{root}"}}'] == 3, "when the command is over"
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert events.count("applied") == 3
    assert "barrier" in events
    assert main([*watch, "rm", "no-such-image"]) == 1
    found = values(metrics.read_text())
    assert found[f'layerstore_verb_seconds_count{{error="UnknownImageError",store="{root}",verb="resolve"}}'] == 1
    assert found[f'layerstore_layers_total{{store="{root}",what="applied"}}'] == 3, "the command before is counted, too"
    os.rename(root / "journal" / "data.mdb", tmp_path / "lost")
    assert main([*watch, "images"]) == 3
    found = values(metrics.read_text())
    assert found[f'layerstore_up{{store="{root}"}}'] == 0
    assert f'layerstore_trees{{state="committed",store="{root}"}}' not in found, "nothing is known of it"
    os.rename(tmp_path / "lost", root / "journal" / "data.mdb")
    capsys.readouterr()
    assert main(["--root", str(root), "metrics"]) == 0
    assert values(capsys.readouterr().out)[f'layerstore_up{{store="{root}"}}'] == 1
    assert main(["--root", str(root), "--log-json", "-", "images"]) == 0
    assert '"event": "opened"' in capsys.readouterr().err


def test_metrics_without_their_library_are_an_error_that_says_so(root, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "layerstore.observing.metrics", raising=False)
    assert main(["--root", str(root), "--metrics-textfile", "x", "images"]) == 1
    assert "layerstore[metrics]" in capsys.readouterr().err
