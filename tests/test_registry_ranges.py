"""Registries that refuse a range, or answer another: what was begun goes on without, and no pull is stuck for ever."""

import json
from pathlib import Path
from types import SimpleNamespace

import imagemaker
import pytest

import layerstore
from layerstore import PullOptions, Tally, errors
from layerstore.sources import open_source
from registries import Fake, part, quick

SIZE = 1_500_000
CHUNKED = Path(__file__).parent / "data" / "zstd-chunked" / "v1-current"
REFUSALS = (400, 403, 405, 416, 501)


def refusing(status):
    return lambda r, data: r.answer(status)


def another(r, data):
    """A 206 that says nothing of which range it is."""
    start, end = r.wanted[0]
    r.answer(206, data[start:end])


def shifted(r, data):
    start, end = r.wanted[0]
    r.answer(206, data[start + 1 : end + 1], Content_Range=f"bytes {start + 1}-{end}/{len(data)}")


def in_parts(r, data):
    start, end = r.wanted[0]
    r.answer(206, part(data, start, end) + b"\r\n--THIS--\r\n", Content_Type="multipart/byteranges; boundary=THIS")


def all_of_it(r, data):
    r.answer(200, data)


ANSWERS = {**{str(status): refusing(status) for status in REFUSALS}, "no Content-Range": another, "another range": shifted,
           "one part of many": in_parts, "ignored": all_of_it}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    image = imagemaker.Image([imagemaker.Layer({"f": imagemaker.Filler(SIZE)}, compression="none")])
    return image.write_oci(tmp_path_factory.mktemp("image") / "i", tag="t")


@pytest.fixture(scope="module")
def chunked():
    """An image whose layer is zstd:chunked."""
    (listed,) = json.loads((CHUNKED / "index.json").read_text())["manifests"]
    manifest = (CHUNKED / "blobs/sha256" / listed["digest"][7:]).read_bytes()
    return SimpleNamespace(path=CHUNKED, manifest=manifest, layer=json.loads(manifest)["layers"][0]["digest"])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with layerstore.open(tmp_path_factory.mktemp("store") / "store") as opened:
        yield opened


def to_ranges(answer, layer=None):
    return lambda r: bool(r.wanted) and (layer is None or layer in r.path) and answer(r, r.stored) is not False


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_a_chunked_layer_is_pulled_as_a_whole(store, chunked, answer):
    with Fake(chunked) as fake:
        fake.hook = to_ranges(answer)
        pulled = store.pull(fake.reference, options=PullOptions(registry=quick()))
        assert any("range" in each for each in fake.asked(chunked.layer))
    assert store.check(content=True).sound
    assert store.layer(pulled.layers[0]).toc_digest is None   # the diffID came from all of it
    store.delete_image(pulled.id)


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_a_plain_pull_that_broke_in_the_middle_is_finished(store, made, answer):
    """What was fetched is kept, so every later pull asks for the rest: that must not be refused for ever."""
    with Fake(made) as fake:
        def broken(request):
            data = request.stored or b""
            if len(data) < SIZE:
                return False
            request.answer(200, data[: SIZE // 2], Content_Length=str(len(data)))
            request.cut()
            return True

        fake.hook = broken
        with pytest.raises(errors.RegistryUnavailableError):
            store.pull(fake.reference, options=PullOptions(registry=quick(retries=0)))
        fake.hook = to_ranges(answer)
        tally = Tally()
        pulled = store.pull(fake.reference, options=PullOptions(registry=quick(retries=0)), progress=tally)
        assert tally.total().resumed > SIZE // 4
        assert "range" in fake.asked("/blobs/")[-2] or answer is all_of_it
    assert store.check(content=True).sound
    store.delete_image(pulled.id)


@pytest.mark.parametrize("status", [403, 416])
def test_a_chunked_pull_that_broke_is_finished_where_ranges_are_refused_since(store, chunked, status):
    """The table of contents came in ranges: all else comes with the whole."""
    with Fake(chunked) as fake:
        served = []

        def breaking(request):
            if not request.wanted or served.append(request) or len(served) < 2:
                return False
            return not request.answer(503)

        fake.hook = breaking
        with pytest.raises(errors.RegistryUnavailableError):
            store.pull(fake.reference, options=PullOptions(registry=quick(retries=0)))
        fake.hook, before = to_ranges(refusing(status)), len(fake.asked(chunked.layer))
        pulled = store.pull(fake.reference, options=PullOptions(registry=quick(retries=0)))
        assert any("range" in each for each in fake.asked(chunked.layer)[before:])
    assert store.check(content=True).sound
    store.delete_image(pulled.id)


@pytest.mark.parametrize(("status", "error"), [(403, errors.RegistryAccessError), (416, errors.RegistryError)])
def test_what_is_refused_as_a_whole_too_is_that_error(store, made, status, error):
    with Fake(made) as fake, open_source(fake.reference, registry=quick()) as source:
        blob = source.resolve().layers[0].blob
        fake.hook = lambda r: not r.answer(status)
        with pytest.raises(error) as caught:
            blob.open(100).read()
        assert caught.value.status == status and len(fake.asked(blob._digest)) == 2


@pytest.mark.parametrize(("status", "error"), [(403, errors.RegistryAccessError), (416, errors.RegistryError)])
def test_a_range_refused_after_others_came_is_an_error_that_has_the_status(made, status, error):
    with Fake(made) as fake, open_source(fake.reference, registry=quick()) as source:
        blob = source.resolve().layers[0].blob
        source._opened.together = False
        found = blob.ranges([(5, 10), (500, 10)])
        assert len(next(found)[1]) == 10
        fake.hook = to_ranges(refusing(status))
        with pytest.raises(error) as caught:
            next(found)
        assert caught.value.status == status
