"""A reader waits for no lock of a writer: counted in a trace of the reader, while a writer is held where it hurts.

The writer stands still, once by a fault point that stops it (SIGSTOP) just before its syncfs or inside its transaction,
once because strace holds it within the very system call: the syncfs, or the flush that LMDB's commit makes with the
writer's lock held. Nothing is timed: what is counted are calls that can block, calls that were refused, and sleeps.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

import layerstore
from bench.store import stores, tracing
from storekit import add

READER = stores.worker("read")
SLEEPS = ("nanosleep", "clock_nanosleep", "poll", "ppoll", "select", "pselect6", "epoll_wait")
WRITER = """
import sys, layerstore
from bench.store import worker
with layerstore.open(sys.argv[1]) as store, store.stage(layerstore.TarDiffer(worker.layer("the writer's"))) as staged:
    store.apply_staged_layer(staged)
"""


@pytest.fixture
def readable(root):
    """A store of some layers with one file each, as the worker that reads expects them."""
    with layerstore.open(root) as store:
        for number in range(3):
            add(store, {"file": b"%d" % number})
    return root


def _wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the writer never got to where it was to be held"
        time.sleep(0.01)


def _stopped(root, point):
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(root)], env={**stores.environment(), "LAYERSTORE_FAULT": f"{point}:before:stop"})
    _wait_until(lambda: _state(writer.pid) == "T")
    return writer


def _state(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def _held_within(root, call, log):
    """A writer that strace keeps inside *call*, entered and not yet carried out, for longer than any test takes."""
    writer = subprocess.Popen(
        ["strace", "-f", "-q", "-o", str(log), "-e", f"trace={call}", "-e", f"inject={call}:delay_enter=3600000000",
         sys.executable, "-c", WRITER, str(root)], env=stores.environment(), start_new_session=True)
    _wait_until(lambda: log.exists() and f" {call}(" in log.read_text())
    return writer


@pytest.fixture(params=["stop txn.begin", "stop stage.sync", "stop txn.claim", "within syncfs", "within fdatasync"])
def held_writer(request, readable, tmp_path):
    how, where = request.param.split()
    writer = _stopped(readable, where) if how == "stop" else _held_within(readable, where, tmp_path / "writer.trace")
    yield writer
    if how == "stop":
        writer.kill()
    else:
        os.killpg(writer.pid, signal.SIGKILL)
    writer.wait()


def test_reading_goes_on_without_a_wait_while_a_writer_is_held(readable, held_writer):
    """Listing, look-up, opening a file and exporting, three rounds of each."""
    calls, out = tracing.run(
        [*READER, str(readable), "3"], {*tracing.LOCKS, *SLEEPS}, env=stores.environment(), timeout=120)
    assert '"export"' in out, "the reader did not finish"
    assert held_writer.poll() is None, "the writer was to be held meanwhile"
    inside = tracing.between_marks(calls)
    assert [call.name for call in inside].count("flock") >= 2 * 3, "nothing was locked: this traced no reading"
    assert tracing.lock_waits(calls) == []
    assert [call.text for call in inside if "_WAIT" in call.text or call.name in SLEEPS] == []


def test_opening_to_read_asks_for_each_lock_once_while_a_writer_is_held(readable, held_writer):
    """It finds locks taken (the pid namespace's file, coming and leaving; the tree that it looks whether anybody owns), and goes on."""
    calls, out = tracing.run(
        [*READER, str(readable), "1"], {*tracing.LOCKS, *SLEEPS}, env=stores.environment(), timeout=120)
    assert '"export"' in out, "the reader did not finish"
    assert held_writer.poll() is None
    refused = [call.text.rpartition("<")[2] for call in calls if call.name == "flock" and "EAGAIN" in call.result]
    assert refused
    asked = Counter(refused)
    asked.subtract(each for each in set(refused) if "/pidns>" in each)   # the last who leaves is alone
    assert max(asked.values()) <= 1, "a lock was polled for"
    assert [call.name for call in calls if "nanosleep" in call.name] == []
    assert [call.text for call in calls if call.name.startswith("futex") and "_WAIT" in call.text] == []


def test_a_reader_that_is_refused_a_lock_is_counted(tmp_path):
    """The control: what polls for a lock that somebody has does not pass for one that waits for nobody."""
    code = "import fcntl, os, sys\ntry: fcntl.flock(os.open(sys.argv[1], 0), fcntl.LOCK_SH | fcntl.LOCK_NB)\nexcept OSError: pass"
    held = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        calls, _ = tracing.run([sys.executable, "-c", code, str(tmp_path)], tracing.LOCKS)
    finally:
        os.close(held)
    assert len([wait for wait in tracing.lock_waits(calls) if str(tmp_path) in wait]) == 1
