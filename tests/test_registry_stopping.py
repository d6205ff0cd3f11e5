"""A pull that is interrupted, or of which one layer failed, does not wait for a registry that hangs, or that asks for patience.

The registry waits for the pull to end: whoever waited for it in turn would do so until its own time is over (``PATIENCE``).
"""

import gc
import json
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import imagemaker
import pytest

import layerstore
from layerstore import PullOptions, Tally, errors
from layerstore.sources.registry import transport
from registries import Fake, quick

PATIENCE = 120.0
SIZE = 400_000
CHUNKED = Path(__file__).parent / "data" / "zstd-chunked" / "v1-current"
SLOW = {"idle_timeout": 10 * PATIENCE, "longest_wait": 10 * PATIENCE, "retries": 1}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    image = imagemaker.Image([imagemaker.Layer({f"f{n}": imagemaker.Filler(SIZE + n)}, compression="none") for n in range(2)])
    made = image.write_oci(tmp_path_factory.mktemp("image") / "i", tag="t")
    return SimpleNamespace(path=made.path, manifest=made.manifest, layers=[made.layer_path(n).name for n in range(2)])


@pytest.fixture(scope="module")
def chunked():
    (listed,) = json.loads((CHUNKED / "index.json").read_text())["manifests"]
    manifest = (CHUNKED / "blobs/sha256" / listed["digest"][7:]).read_bytes()
    return SimpleNamespace(path=CHUNKED, manifest=manifest, layers=[json.loads(manifest)["layers"][0]["digest"][7:]])


@pytest.fixture(autouse=True)
def interruptible():
    """Who is started in the background of a shell ignores the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def over():
    """Set by the test when the pull has ended."""
    event = threading.Event()
    yield event
    event.set()


def at_headers(request, over):
    over.wait(PATIENCE)
    request.close_connection = True


def at_body(request, over):
    data = request.stored
    start, end = request.wanted[0] if request.wanted else (0, len(data))
    told = {"Content_Range": f"bytes {start}-{end - 1}/{len(data)}"} if request.wanted else {}
    request.answer(206 if told else 200, data[start : start + 100], Content_Length=str(end - start), **told)
    at_headers(request, over)


def at_pause(request, _over):
    request.answer(503, Retry_After=str(int(PATIENCE)))


HANGS = {"headers": at_headers, "body": at_body, "pause": at_pause}


def interrupted(store, fake, workers):
    gc.collect()   # or the interrupt comes while Python closes what an earlier test left, and is lost there
    with pytest.raises(KeyboardInterrupt):
        store.pull(fake.reference, options=PullOptions(workers=workers, registry=quick(**SLOW)))


def interrupting(hang, layer, over, passed=0):
    """A hook that hangs at the layer, but for the first *passed* requests, once it has interrupted the main thread."""
    count = []

    def hook(request):
        if layer not in request.path:
            return False
        count.append(request)
        if len(count) <= passed:
            return False
        if len(count) == passed + 1:
            os.kill(os.getpid(), signal.SIGINT)
        return hang(request, over) is not False

    return hook


@pytest.mark.parametrize("where", HANGS)
@pytest.mark.parametrize(("kind", "passed"), [("plain", 0), ("chunked", 0), ("chunked", 1)], ids=["plain", "toc", "chunks"])
def test_an_interrupt_does_not_wait_for_it(store, plain, chunked, over, kind, passed, where):
    made = {"plain": plain, "chunked": chunked}[kind]
    with Fake(made) as fake:
        fake.hook = interrupting(HANGS[where], made.layers[0], over, passed)
        interrupted(store, fake, workers=2)
        assert len(fake.asked(made.layers[0])) == passed + 1   # it did not come to an end by itself
    assert not store.layers() and [t.name for t in threading.enumerate() if t.name.startswith("layerstore")] == []


def test_connections_are_closed_by_the_pull_and_not_by_a_finalizer_in_which_an_interrupt_would_be_lost(store, plain, monkeypatch):
    closed = []
    close = transport._PlainPool.close
    monkeypatch.setattr(transport._PlainPool, "close", lambda pool: closed.append(pool) or close(pool))
    with Fake(plain) as fake:
        store.pull(fake.reference, options=PullOptions(registry=quick()))
    assert closed and all(pool.pool is None for pool in closed)


def test_an_interrupt_does_not_wait_for_who_gives_tokens(store, plain, over):
    ended = []

    def hook(request):
        if request.path.startswith("/token"):
            os.kill(os.getpid(), signal.SIGINT)
            at_headers(request, over)
            ended.append(request)
        elif plain.layers[0] in request.path:
            request.answer(401, WWW_Authenticate=f'Bearer realm="http://{request.headers["Host"]}/token"')
        else:
            return False
        return True

    with Fake(plain) as fake:
        fake.hook = hook
        interrupted(store, fake, 2)
        assert not ended


def test_an_interrupt_of_the_thread_that_stages_does_not_wait_for_it(store, plain, over):
    with Fake(plain) as fake:
        fake.hook = interrupting(at_body, sorted(plain.layers)[0], over)
        interrupted(store, fake, workers=1)
    assert [t.name for t in threading.enumerate() if t.name.startswith("layerstore")] == []


@pytest.mark.parametrize("where", HANGS)
def test_the_failure_of_one_layer_does_not_wait_for_another(store, plain, over, where):
    bad, other = plain.layers
    hangs = threading.Event()

    def hook(request):
        if other in request.path:
            hangs.set()
            return HANGS[where](request, over) is not False
        if bad in request.path:
            hangs.wait(PATIENCE)
            request.answer(200, bytes(len(request.stored)))
            return True
        return False

    with Fake(plain) as fake:
        fake.hook = hook
        with pytest.raises((errors.DigestMismatchError, errors.ArchiveError)):
            store.pull(fake.reference, options=PullOptions(workers=2, registry=quick(**SLOW)))
        assert len(fake.asked(other)) == 1


class Interrupting(Tally):
    """Interrupts the main thread once something of a layer has come."""

    def advance(self, layer, n):
        super().advance(layer, n)
        if not self.done:
            self.done = True
            os.kill(os.getpid(), signal.SIGINT)

    done = False


def test_what_had_come_by_then_is_kept_and_the_next_pull_goes_on(store, plain, over):
    with Fake(plain) as fake:
        def half(request):
            data = request.stored or b""
            if plain.layers[0] not in request.path:
                return False
            request.answer(200, data[: SIZE // 2], Content_Length=str(len(data)))
            at_headers(request, over)
            return True

        fake.hook = half
        with pytest.raises(KeyboardInterrupt):
            options = PullOptions(workers=1, registry=quick(**SLOW))
            store.pull(fake.reference, options=options, progress=Interrupting())
        over.set()
        fake.hook, tally = None, Tally()
        store.pull(fake.reference, options=PullOptions(registry=quick()), progress=tally)
        assert tally.total().resumed > 0
    assert store.check(content=True).sound


def test_an_interrupt_while_a_thread_is_started_leaves_none_that_unpacks(store, plain, monkeypatch):
    """Python's pool of threads does not know of that thread, and so would not wait for it."""
    from layerstore.verbs import pull_layers

    start, begun, go_on = threading.Thread.start, threading.Event(), threading.Event()

    def starting(thread):
        start(thread)
        if thread.name == "layerstore-stage_1":
            begun.wait(1)
            raise KeyboardInterrupt

    def filling(*given, real=pull_layers.fill, **more):
        if threading.current_thread().name == "layerstore-stage_1":
            begun.set()
            go_on.wait(PATIENCE)
        return real(*given, **more)

    monkeypatch.setattr(threading.Thread, "start", starting)
    monkeypatch.setattr(pull_layers, "fill", filling)
    with Fake(plain) as fake:
        try:
            with pytest.raises(KeyboardInterrupt):
                store.pull(fake.reference, options=PullOptions(registry=quick()))
            assert not begun.is_set()
        finally:
            go_on.set()
