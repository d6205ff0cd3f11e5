"""Several processes and threads on one store: one unpacks, the others join; readers wait for nobody."""

import os
import signal
import subprocess
import sys
import threading
import time

import imagemaker
import pytest

import layerstore
from layerstore import PullOptions, errors
from layerstore.system import fs
from storekit import add, differ, image, states, tree_names

PULL = """
import os, sys, layerstore
class Watch:
    def layer(self, layer, *, state, size):
        print(state, layer, flush=True)
    def advance(self, layer, n): pass
with layerstore.open(sys.argv[1]) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    options = layerstore.PullOptions(workers=int(os.environ.get("WORKERS", "2")))
    print("done", store.pull(sys.argv[2], options=options, progress=Watch()).id, flush=True)
"""

LIST = """
import sys, time, layerstore
worst, seen = 0.0, set()
with layerstore.open(sys.argv[1], readonly=True) as store:
    print("ready", flush=True)
    end = time.monotonic() + float(sys.argv[2])
    while time.monotonic() < end:
        begun = time.perf_counter()
        for image in store.images():
            try:
                seen.add(len([store.layer(each) for each in image.layers]))
            except layerstore.LayerstoreError:
                assert image not in store.images(), "half an image"
        worst = max(worst, time.perf_counter() - begun)
print("worst", worst, sorted(seen))
"""


def spawn(code, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, **environment},
    )


def wait_until_stopped(process):
    """Until it has sent itself SIGSTOP: a SIGCONT that comes before that is lost, and it would stop for ever."""
    while (state := open(f"/proc/{process.pid}/stat").read().rpartition(")")[2].split()[0]) != "T":
        assert state != "Z", "it ended without having stopped"
        time.sleep(0.01)


def big_image(tmp_path, name="image", salt=0):
    return imagemaker.Image([
        imagemaker.Layer(imagemaker.many_files(300, prefix=f"l{n}", seed=n + salt), compression=c)
        for n, c in enumerate(("gzip", "zstd", "none"))
    ]).write_oci(tmp_path / name, tag="t")


def test_four_processes_that_pull_the_same_image_unpack_each_layer_once_and_all_succeed(root, tmp_path):
    made = big_image(tmp_path)
    layerstore.open(root).close()
    pullers = [spawn(PULL, root, made.reference) for _ in range(4)]
    for each in pullers:
        assert each.stdout.readline() == "ready\n"
    for each in pullers:
        each.stdin.write("\n")
        each.stdin.flush()
    lines = []
    for each in pullers:
        out, _ = each.communicate(timeout=120)
        assert each.returncode == 0
        lines += out.splitlines()
    assert len([line for line in lines if line.startswith("done")]) == 4
    assert len({line for line in lines if line.startswith("done")}) == 1
    staged = [line for line in lines if line.startswith("staging")]
    assert len(staged) == len(set(staged)) == 3, "each layer was unpacked once"
    with layerstore.open(root) as store:
        assert store.check(content=True).sound
        assert set(states(store)) == {"committed"}
        with store._handle.read() as view:
            assert len([r for r in view.records() if r.trigger == "commit"]) == 4


def test_pulls_of_images_that_share_layers_in_another_order_do_not_wait_in_a_circle(root, tmp_path):
    layers = [imagemaker.Layer(imagemaker.many_files(100, prefix=f"l{n}", seed=n)) for n in range(4)]
    images = [imagemaker.Image(order).write_oci(tmp_path / f"i{n}", tag="t")
              for n, order in enumerate((layers, layers[::-1], layers[2:] + layers[:2]))]
    layerstore.open(root).close()
    pullers = [spawn(PULL, root, made.reference) for made in images]
    for each in pullers:
        each.stdout.readline()
    for each in pullers:
        each.stdin.write("\n")
        each.stdin.flush()
    for each in pullers:
        each.communicate(timeout=120)
        assert each.returncode == 0
    with layerstore.open(root) as store:
        assert len(store.images()) == 3
        assert store.check(content=True).sound


def test_a_reader_never_waits_for_a_writer_that_holds_its_locks(root, tmp_path):
    """A puller is stopped in the middle of its syncfs, and again at its commit point: listing goes on."""
    made = image(tmp_path)
    with layerstore.open(root) as store:
        add(store)
    for point in ("stage.sync:before:stop", "publish.rename:before:stop"):
        puller = spawn(PULL, root, made.reference, LAYERSTORE_FAULT=point)
        puller.stdin.write("\n")
        puller.stdin.flush()
        wait_until_stopped(puller)
        reader = spawn(LIST, root, 0.3)
        out, _ = reader.communicate(timeout=30)
        assert reader.returncode == 0
        assert "worst" in out
        assert "[]" in out, "half an image was seen"
        puller.send_signal(signal.SIGCONT)
        puller.communicate(timeout=60)
        assert puller.returncode == 0
        with layerstore.open(root) as store:
            store.delete_image(store.images()[0].id)


def test_a_reader_beside_writers_sees_whole_images_only(root, tmp_path):
    made = [big_image(tmp_path, f"i{n}", salt=10 * n) for n in range(3)]
    layerstore.open(root).close()
    reader = spawn(LIST, root, 4)
    reader.stdout.readline()
    with layerstore.open(root) as store:
        for each in made:
            pulled = store.pull(each.reference)
            store.delete_image(pulled.id)
            store.pull(each.reference)
    out, _ = reader.communicate(timeout=60)
    assert reader.returncode == 0
    assert out.rstrip().endswith(("[]", "[3]")), out


def test_when_the_one_who_stages_dies_a_waiter_takes_over(root, tmp_path):
    made = image(tmp_path)
    layerstore.open(root).close()
    first = spawn(PULL, root, made.reference, LAYERSTORE_FAULT="unpack.entry:before:stop:2",
                  WORKERS="1")   # stopped as a whole: with more, another thread might hold the journal's lock
    first.stdin.write("\n")
    first.stdin.flush()
    while not states_of(root):
        time.sleep(0.01)
    second = spawn(PULL, root, made.reference)
    assert second.stdout.readline() == "ready\n"
    second.stdin.write("\n")
    second.stdin.flush()
    assert second.stdout.readline().startswith("waiting")
    time.sleep(0.2)
    assert second.poll() is None
    first.kill()
    first.communicate()
    out, _ = second.communicate(timeout=60)
    assert second.returncode == 0
    assert "done" in out
    with layerstore.open(root) as store:
        assert store.check(content=True).sound
        assert tree_names(root, "staging") == []


def states_of(root):
    with layerstore.open(root, readonly=True) as store:
        return states(store)


def test_threads_share_one_handle(store):
    failures = []

    def work(n):
        try:
            for m in range(5):
                layer = add(store, {f"{n}-{m}": b""})
                assert store.layer(layer.id)
                if m % 2:
                    store.delete_layer(layer.id)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert not failures
    assert len(store.layers()) == 18
    assert store.check(content=True).sound


def test_threads_that_pull_the_same_image_join_too(store, tmp_path):
    made = big_image(tmp_path)
    results = []
    threads = [threading.Thread(target=lambda: results.append(store.pull(made.reference).created)) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert sorted(results) == [False, False, True]
    with store._handle.read() as view:
        assert len([r for r in view.records() if r.trigger == "seal"]) == 3


def test_two_processes_apply_the_same_id_and_one_finds_it_there(root):
    """R5: the claim decides, and nobody is torn."""
    code = """
import sys; sys.path.insert(0, sys.argv[2])
import layerstore
from storekit import differ
with layerstore.open(sys.argv[1]) as store:
    with store.stage(differ()) as staged:
        print("ready", flush=True); sys.stdin.readline()
        print(store.apply_staged_layer(staged).created)
"""
    layerstore.open(root).close()
    here = os.path.dirname(__file__)
    both = [spawn(code, root, here) for _ in range(2)]
    for each in both:
        assert each.stdout.readline() == "ready\n"
    for each in both:
        each.stdin.write("\n")
        each.stdin.flush()
    assert sorted(each.communicate(timeout=60)[0] for each in both) == ["False\n", "True\n"]
    with layerstore.open(root) as store:
        assert set(states(store)) == {"committed"}


def test_opening_does_not_disturb_a_live_pull(root, tmp_path):
    """R7: a recovery looks at a tree that somebody is just making."""
    made = image(tmp_path)
    layerstore.open(root).close()
    puller = spawn(PULL, root, made.reference, LAYERSTORE_FAULT="stage.mkdir:after:stop")
    puller.stdin.write("\n")
    puller.stdin.flush()
    wait_until_stopped(puller)
    assert tree_names(root, "staging")
    for _ in range(3):
        layerstore.open(root).close()   # sweeps the directory: no row, no lock
    assert tree_names(root, "staging") == []
    puller.send_signal(signal.SIGCONT)
    puller.communicate(timeout=60)
    assert puller.returncode == 0, "it noticed, and made another"


def test_recovery_waits_for_a_live_holder_of_a_promise_and_finds_it_done(root, tmp_path):
    made = image(tmp_path)
    layerstore.open(root).close()
    puller = spawn(PULL, root, made.reference, LAYERSTORE_FAULT="publish.rename:before:stop")
    puller.stdin.write("\n")
    puller.stdin.flush()
    wait_until_stopped(puller)
    assert "incomplete" in states_of(root)
    begun = time.monotonic()
    threading.Timer(0.5, lambda: puller.send_signal(signal.SIGCONT)).start()
    with layerstore.open(root) as store:
        assert time.monotonic() - begun > 0.3
        assert len(store.images()) == 1
    puller.communicate(timeout=60)
    assert puller.returncode == 0


def test_a_wait_that_is_bounded_ends_in_a_busy_error(root):
    layerstore.open(root).close()
    code = """
import sys; sys.path.insert(0, sys.argv[2])
import layerstore
from storekit import differ
store = layerstore.open(sys.argv[1])
staged = store.stage(differ(keyed=True))
print("ready", flush=True); sys.stdin.readline()
"""
    other = spawn(code, root, os.path.dirname(__file__))
    assert other.stdout.readline() == "ready\n"
    with layerstore.open(root) as store:
        with pytest.raises(errors.BusyError):
            store.stage(differ(keyed=True), options=layerstore.StageOptions(wait=0.1))
        other.communicate("\n", timeout=30)
        with store.stage(differ(keyed=True)) as staged:
            assert staged.adopted
    assert fs
    assert PullOptions
