"""How a check goes: what a caller is told of each layer and its bytes, and what is seen on a terminal."""

import os
import pty
import subprocess
import sys
import threading
from collections import defaultdict

import pytest

import layerstore
from storekit import add


class Watch:
    """What a progress is told."""

    def __init__(self):
        self.states, self.sizes, self.bytes = defaultdict(list), {}, defaultdict(list)

    def layer(self, layer, *, state, size):
        self.states[layer].append(state)
        self.sizes[layer] = size

    def advance(self, layer, n):
        self.bytes[layer].append(n)


def test_a_caller_is_told_of_each_layer_and_of_bytes_within_a_large_one(store):
    large = add(store, {"large": bytes(3_000_000)}, big_data={"key": b"12345"})
    small = add(store, {"small": b"123"})
    watch = Watch()
    store.check(depth="content", progress=watch)
    assert watch.states == dict.fromkeys((large.id, small.id), ["waiting", "checking", "checked"])
    assert (sum(watch.bytes[large.id]), sum(watch.bytes[small.id])) == (3_000_005, 3)
    assert len(watch.bytes[large.id]) > 10
    assert watch.sizes == {large.id: large.diff_size, small.id: small.diff_size}


def test_a_caller_is_told_of_each_layer_at_depths_that_hash_nothing(store):
    layer = add(store, {"f": b"123"})
    for depth in ("structure", "metadata"):
        watch = Watch()
        store.check(depth=depth, progress=watch)
        assert (watch.states, watch.sizes, watch.bytes) == ({layer.id: ["waiting", "checking", "checked"]}, {layer.id: 0}, {})


def test_a_caller_is_told_what_was_left_out(store):
    layers = {add(store, {"f": bytes([n])}).id for n in range(2)}
    watch = Watch()
    store.check(depth="content", budget=0.0, progress=watch)
    assert sorted(states[-1] for states in watch.states.values()) == ["checked", "left"]
    watch = Watch()
    store.check(depth="content", since_ns=1, progress=watch)
    assert sorted(states[-1] for states in watch.states.values()) == ["checked", "recent"]
    assert set(watch.states) == layers


def test_a_tally_keeps_a_check_as_figures(store):
    layer = add(store, {"f": bytes(1000)})
    tally = layerstore.Tally()
    store.check(depth="content", progress=tally)
    assert (tally.layers()[layer.id].state, tally.layers()[layer.id].fetched) == ("checked", 1000)


class Enough(Exception):
    pass


@pytest.mark.parametrize(("raised", "comes_out"), [(Enough(), Enough), (BrokenPipeError(), layerstore.errors.HostError)],
                         ids=["its own", "an OSError"])
def test_what_a_progress_raises_ends_the_check_and_is_no_damage(store, raised, comes_out, monkeypatch):
    monkeypatch.setattr(sys.modules["layerstore.verbs.check.hashing"], "_FULL", 1)
    add(store, {f"f{n}": bytes(1000) for n in range(10)})

    class Watch(layerstore.Quiet):
        def advance(self, layer, n):
            raise raised

    with pytest.raises(comes_out):
        store.check(depth="content", workers=2, progress=Watch())
    assert not [each for each in threading.enumerate() if each.name == "layerstore-check"]


def run_check(root, *options, stderr):
    return subprocess.Popen(
        [sys.executable, "-m", "layerstore", "--root", root, "check", *options], stdout=subprocess.PIPE, stderr=stderr,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )


def shown(root, *options):
    """What such a check writes on a terminal that its standard error is; and on its standard output."""
    ours, theirs = pty.openpty()
    process = run_check(root, *options, stderr=theirs)
    os.close(theirs)
    seen = b""
    try:
        while piece := os.read(ours, 4096):
            seen += piece
    except OSError:                      # the other end is closed
        pass
    os.close(ours)
    out = process.communicate()[0]
    assert process.returncode == 0
    return seen.decode(), out.decode()


def test_a_terminal_shows_how_a_check_goes_and_nothing_else_does(root):
    with layerstore.open(root) as store:
        for n in range(3):
            add(store, {"f": bytes([n])})
        store.checkpoint()
    seen, said = shown(root, "--content")
    assert "3 of 3 layers" in seen and "layers" not in said.replace("3 layers, 0 images: sound", "")
    assert shown(root, "--content", "--json")[0] == ""
    assert run_check(root, "--content", stderr=subprocess.PIPE).communicate()[1] == b""


def test_the_bar_counts_each_byte_and_layer_once():
    from layerstore.cli.terminal import CheckBar

    bar = CheckBar()
    for layer, size in (("a", 100), ("b", 50)):
        bar.layer(layer, state="waiting", size=size)
    bar.layer("a", state="checking", size=100)
    bar.advance("a", 60)
    task = bar._bar.tasks[0]
    assert (task.fields["layers"], task.completed, task.total) == ("0 of 2 layers", 60, 150)
    bar.advance("a", 60)                 # big data is no part of the tar
    assert task.completed == 100
    bar.layer("a", state="checked", size=100)
    bar.layer("b", state="left", size=50)
    assert (task.fields["layers"], task.completed) == ("2 of 2 layers", 150)
