"""Registries that answer wrongly, slowly, partly or not at all: each a typed error or a documented fallback, soon.

Whatever happens, nothing is visible in the store that was not before (``refused`` looks).
"""

import io
import threading
import time

import imagemaker
import pytest

import layerstore
from layerstore import Credentials, PullOptions, errors
from layerstore.sources import open_source
from layerstore.sources.registry import pace
from layerstore.sources.registry.blobs import RegistryBlob
from registries import Authority, Fake, part, quick

SIZE = 3 << 20


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One layer, plain, of some three megabytes."""
    image = imagemaker.Image([imagemaker.Layer({"f": imagemaker.Filler(SIZE)}, compression="none")])
    return image.write_oci(tmp_path_factory.mktemp("image") / "i", tag="t")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One for all: ``refused`` and ``pulls`` leave it empty."""
    with layerstore.open(tmp_path_factory.mktemp("store") / "store") as opened:
        yield opened


@pytest.fixture
def fake(made):
    with Fake(made) as running:
        yield running


def of_layers(answer):
    """A hook for requests of the layer only: *answer* gets (request, data, how many of them came before)."""
    came = []

    def hook(request):
        if "/blobs/" not in request.path or len(request.stored or b"") < SIZE:
            return False
        came.append(request)
        return answer(request, request.stored, len(came) - 1) is not False

    return hook


def refused(store, fake, error, **changes):
    with pytest.raises(error) as caught:
        store.pull(fake.reference, options=PullOptions(registry=quick(**changes)))
    assert not store.images() and not store.layers()
    assert store.check(content=True).sound
    return caught.value


def pulls(store, fake, **changes):
    pulled = store.pull(fake.reference, options=PullOptions(registry=quick(**changes)))
    assert store.check(content=True).sound
    store.delete_image(pulled.id)
    assert not store.images() and not store.layers()


def layer(fake, **changes):
    """The layer's blob and the bytes that it must have; its source is left open for the test."""
    source = open_source(fake.reference, registry=quick(**changes))
    return source, source.resolve().layers[0].blob, fake.made.layer_path(0).read_bytes()


def start(request):
    return request.wanted[0][0] if request.wanted else 0


# -- statuses -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("status", "error"), [
    (401, errors.RegistryAccessError), (403, errors.RegistryAccessError), (404, errors.RegistryError),
    (400, errors.RegistryError), (410, errors.RegistryError), (416, errors.RegistryError), (204, errors.RegistryError),
    (304, errors.RegistryError), (300, errors.RegistryError),
])
@pytest.mark.parametrize("part_of", ["manifests", "blobs"])
def test_a_status_that_no_other_try_mends_is_an_error_at_once(fake, store, status, error, part_of):
    fake.hook = lambda r: f"/{part_of}/" in r.path and not r.answer(status, b'{"errors":[{"code":"SOME_CODE"}]}' * (status > 400))
    caught = refused(store, fake, error)
    assert caught.status == status and type(caught) is error
    assert f"/{part_of}/" in caught.url
    assert len(fake.asked(f"/{part_of}/")) == 1
    if status > 401:
        assert "SOME_CODE" in str(caught)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_status_that_may_pass_is_tried_again_and_not_for_ever(fake, store, status):
    fake.hook = lambda r: not r.answer(status)
    caught = refused(store, fake, errors.RegistryUnavailableError)
    assert caught.status == status
    assert len(fake.requests) == 3
    fake.hook = lambda r: len(fake.requests) % 3 and not r.answer(status)
    pulls(store, fake)


@pytest.mark.parametrize(("said", "pause"), [("7", 7.0), ("999999999", 20.0), ("-5", 0.0), ("1e9", 0.0), ("soon", 0.0), ("²", 0.0)])
def test_retry_after_is_waited_for_within_bounds(fake, said, pause, monkeypatch):
    pauses = []
    fake.hook = lambda r: len(fake.requests) == 1 and not r.answer(429, Retry_After=said)
    from layerstore.sources.registry import connect
    from layerstore.sources.registry.names import parse_name

    client = connect(parse_name(fake.reference), quick(longest_wait=20.0))
    monkeypatch.setattr(client.stopped, "wait", pauses.append)
    client.get("manifests/latest", {}, client.attempts()).close()
    client.close()
    assert pauses == [pause]


def test_pauses_grow_are_jittered_and_are_capped(fake, monkeypatch):
    from layerstore.sources.registry.client import Attempts
    from layerstore.sources.registry.failures import Broken

    pauses = []
    stopped = threading.Event()
    monkeypatch.setattr(stopped, "wait", pauses.append)
    attempts = Attempts(quick(retries=9, backoff=1.0, longest_wait=30.0), stopped)
    for _ in range(9):
        attempts.failed(Broken("it broke", "url"))
    for n, pause in enumerate(pauses):
        assert min(0.5 * 2**n, 30) <= pause <= min(2**n, 30)
    assert any(pause < 2**n for n, pause in enumerate(pauses[:5]))
    with pytest.raises(errors.RegistryUnavailableError, match="10 times in a row"):
        attempts.failed(Broken("it broke", "url"))


def test_nobody_there_is_an_error_after_some_tries(store, made):
    fake = Fake(made)
    fake._server.server_close()
    assert refused(store, fake, errors.RegistryUnavailableError).status is None


# -- streams --------------------------------------------------------------------------------------------------------

def test_a_stream_that_is_cut_once_goes_on_where_it_was(fake, store):
    def hook(request, data, before):
        if before:
            return False
        request.answer(200, data[: SIZE // 2], Content_Length=str(len(data)))
        request.cut()

    fake.hook = of_layers(hook)
    with open_source(fake.reference, registry=quick()) as source:
        blob = source.resolve().layers[0].blob
        documents = source.fetched
        assert blob.open().read() == fake.made.layer_path(0).read_bytes()
        assert source.fetched - documents == blob.size   # no byte came twice
    assert fake.asked("/blobs/")[-1]["range"] == f"bytes={SIZE // 2}-{blob.size - 1}"
    fake.hook = of_layers(hook)
    pulls(store, fake)


def test_a_stream_that_is_always_cut_is_given_up(fake, store):
    def hook(request, data, before):
        request.answer(206 if start(request) else 200, data[start(request) : start(request) + 1000],
                       Content_Length=str(len(data) - start(request)),
                       Content_Range=f"bytes {start(request)}-{len(data) - 1}/{len(data)}")
        request.cut()

    fake.hook = of_layers(hook)
    refused(store, fake, errors.RegistryUnavailableError)
    assert len(fake.asked("/blobs/")) == 1 + 3   # the config, and three tries


def test_a_stream_that_is_cut_after_each_megabyte_comes_to_its_end(fake):
    def hook(request, data, before):
        at = start(request)
        request.answer(206 if at else 200, data[at : at + (1 << 20)], Content_Length=str(len(data) - at),
                       Content_Range=f"bytes {at}-{len(data) - 1}/{len(data)}")
        request.cut()

    fake.hook = of_layers(hook)
    source, blob, data = layer(fake, retries=1)
    with source:
        assert blob.open().read() == data


def test_a_server_that_is_cut_and_ignores_range_is_read_from_the_beginning(fake):
    def hook(request, data, before):
        request.answer(200, data if before else data[: SIZE // 2], Content_Length=str(len(data)))
        if not before:
            request.cut()

    fake.hook = of_layers(hook)
    source, blob, data = layer(fake)
    with source:
        assert blob.open().read() == data
        assert blob.open(12345).read() == data[12345:]


def test_a_server_that_ignores_range_and_breaks_off_after_each_megabyte_is_given_up(fake):
    """Each megabyte of progress forgives what failed before, and costs all that was before it."""
    size, sent = 40 << 20, []

    def hook(request, data, before):
        request.answer(200, Content_Length=str(size))
        for _ in range(before + 1):
            request.wfile.write(bytes(1 << 20))
            sent.append(1 << 20)
        request.cut()

    source, blob, _data = layer(fake)
    with source:
        blob = RegistryBlob(blob._client, blob._digest, size, "large")
        fake.hook = of_layers(hook)
        with blob.open() as stream, pytest.raises(errors.RegistryUnavailableError, match="sent .* again"):
            while stream.read(1 << 20):
                pass
    assert sum(sent) < 4 * size


@pytest.mark.parametrize("told", ["bytes 5-{last}/{size}", "bytes {at}-{last}/9", "bytes {at}-9/{size}", "bytes {at}-{last}", "", "x",
                                  "bytes {at}-{last}/{size}, bytes 0-1/{size}", "bytes -1-{last}/{size}", "BYTES=1"])
def test_another_range_than_asked_for_is_refused(fake, told):
    def hook(request, data, before):
        at = start(request)
        request.answer(206, data[at:], Content_Range=told.format(at=at, last=len(data) - 1, size=len(data)))

    fake.hook = of_layers(hook)
    source, blob, _data = layer(fake)
    with source:
        with pytest.raises(errors.RegistryError, match="another range"):
            blob.open(100).read()
        with pytest.raises(errors.RangesUnsupportedError, match="another range"):
            list(blob.ranges([(100, 50)]))


@pytest.mark.parametrize("change", [-1, 1])
def test_a_range_of_another_length_than_it_says_is_refused(fake, change):
    def hook(request, data, before):
        told = f"bytes {start(request)}-{len(data) - 1}/{len(data)}"
        request.answer(206, data[start(request) :], Content_Range=told, Content_Length=str(len(data) - start(request) + change))

    fake.hook = of_layers(hook)
    source, blob, _data = layer(fake)
    with source, pytest.raises(errors.RegistryError, match="another range"):
        blob.open(100).read()


def test_a_range_of_unsaid_total_is_taken(fake):
    fake.hook = of_layers(lambda r, data, n: r.answer(206, data[start(r) :], Content_Range=f"bytes {start(r)}-{len(data) - 1}/*"))
    source, blob, data = layer(fake)
    with source:
        assert blob.open(100).read() == data[100:]


@pytest.mark.parametrize("change", [-1, 1, 1 << 50])
def test_another_length_than_the_layers_is_refused_before_it_is_read(fake, store, change):
    fake.hook = of_layers(lambda r, data, n: r.answer(200, data[:100], Content_Length=str(len(data) + change)))
    refused(store, fake, errors.SizeMismatchError)


def test_a_layer_in_chunks_without_end_is_read_to_its_size_and_no_further(fake, store):
    sent = []

    def hook(request, data, before):
        request.answer(200, say_length=False, Transfer_Encoding="chunked")
        while True:
            piece = data[:65536] if sent else data
            request.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            sent.append(len(piece))

    fake.hook = of_layers(hook)
    pulls(store, fake)
    assert sum(sent) < len(fake.made.layer_path(0).read_bytes()) + (64 << 20)


@pytest.mark.parametrize("ending", [b"", b"zz\r\n", b"5\r\nab"])
def test_a_layer_in_chunks_that_break_off_is_given_up(fake, store, ending):
    def hook(request, data, before):
        request.answer(200, say_length=False, Transfer_Encoding="chunked")
        request.wfile.write(b"64\r\n" + data[:100] + b"\r\n" + ending)
        request.cut()

    fake.hook = of_layers(hook)
    refused(store, fake, errors.RegistryUnavailableError)


def test_a_layer_that_ends_where_its_connection_does_is_resumed(fake):
    def hook(request, data, before):
        if before:
            return False
        request.answer(200, data[:5000], say_length=False, Connection="close")
        request.cut()

    fake.hook = of_layers(hook)
    source, blob, data = layer(fake)
    with source:
        assert blob.open().read() == data


def test_other_bytes_are_refused(fake, store):
    fake.hook = of_layers(lambda r, data, n: r.answer(200, bytes(len(data))))
    refused(store, fake, (errors.DigestMismatchError, errors.ArchiveError))


def test_other_bytes_the_second_time_are_refused(fake, store):
    def hook(request, data, before):
        if before:
            changed = data[:-100_000] + bytes(50_000) + data[-50_000:]
            return request.answer(206, changed[start(request) :],
                                  Content_Range=f"bytes {start(request)}-{len(data) - 1}/{len(data)}")
        request.answer(200, data[: SIZE // 2], Content_Length=str(len(data)))
        return request.cut()

    fake.hook = of_layers(hook)
    refused(store, fake, errors.DigestMismatchError)


def test_a_content_encoding_is_not_undone(fake, store):
    import gzip

    bomb = gzip.compress(bytes(100 << 20), 1)   # made before anybody waits for it
    fake.hook = of_layers(lambda r, data, n: r.answer(200, bomb, Content_Encoding="gzip"))
    refused(store, fake, errors.SizeMismatchError)
    fake.hook = of_layers(lambda r, data, n: r.answer(200, data, Content_Encoding="gzip"))   # some say it of what is stored
    pulls(store, fake)


# -- time -----------------------------------------------------------------------------------------------------------

def hanging(request, seconds=30):
    """Say nothing more until the other side is gone; *seconds* at most."""
    request.wfile.flush()
    request.connection.settimeout(seconds)
    request.rfile.read(1)
    request.close_connection = True


@pytest.mark.parametrize("at", ["before", "inside"])
def test_a_server_that_hangs_is_given_up(fake, store, at):
    def hook(request, data, before):
        if at == "inside":
            request.answer(200, data[:1000], Content_Length=str(len(data)))
        hanging(request)

    fake.hook = of_layers(hook)
    refused(store, fake, errors.RegistryUnavailableError, idle_timeout=0.05, retries=1)


def dripping(request, data, *, every=0.02):
    try:
        for n in range(2000):
            request.wfile.write(data[n : n + 1] or b"x")
            time.sleep(every)
    finally:
        request.close_connection = True


@pytest.mark.parametrize("where", ["headers", "body"])
def test_a_server_that_sends_a_byte_now_and_then_is_given_up(fake, store, where):
    def hook(request, data, before):
        if where == "body":
            request.answer(200, data[:1], Content_Length=str(len(data)))
        dripping(request, b"HTTP/1.1 200 OK\r\nX: ")

    fake.hook = of_layers(hook)
    began = time.monotonic()
    refused(store, fake, errors.RegistryUnavailableError, idle_timeout=0.2, retries=0)
    assert time.monotonic() - began < 30   # of the 40 s that it would take


class Socket(io.RawIOBase):
    """A socket that gives *count* bytes a read, each of them after *waits* seconds of a clock of its own."""

    def __init__(self, count, waits):
        self._count, self._waits, self.now = count, waits, 0.0

    def makefile(self, *_arguments, **_named):
        return self

    def gettimeout(self):
        return 30.0

    def settimeout(self, _seconds):
        pass

    def monotonic(self):
        return self.now

    def recv_into(self, buffer):
        self.now += self._waits
        buffer[: self._count] = bytes(self._count)
        return self._count


@pytest.mark.parametrize(("count", "waits", "seconds"), [(1, 1.0, 31), (999, 1.0, 31), (1000, 1.0, None), (29_000, 29.0, None)])
def test_a_body_that_comes_more_slowly_than_the_least_rate_is_too_slow(monkeypatch, count, waits, seconds):
    sock = Socket(count, waits)
    monkeypatch.setattr(pace.time, "monotonic", sock.monotonic)
    before = pace.TERMS.set(pace.Terms(least_rate=1000.0))
    paced = pace.Paced(sock)
    pace.TERMS.reset(before)
    paced.in_headers = False
    if seconds is None:
        for _ in range(1000):
            paced.readinto(bytearray(2000))
        return
    with pytest.raises(TimeoutError):
        for _ in range(1000):
            paced.readinto(bytearray(2000))
    assert sock.now == seconds


def test_headers_that_do_not_come_in_the_idle_time_altogether_are_too_slow(monkeypatch):
    sock = Socket(1000, 1.0)
    monkeypatch.setattr(pace.time, "monotonic", sock.monotonic)
    paced = pace.Paced(sock)
    with pytest.raises(TimeoutError):
        for _ in range(1000):
            paced.readinto(bytearray(2000))
    assert sock.now == 31


def test_a_reader_that_takes_its_time_is_not_taken_for_a_slow_server(fake, monkeypatch):
    source, blob, data = layer(fake)
    with source, blob.open() as stream:
        got = stream.read(1000)
        now = time.monotonic()
        monkeypatch.setattr(pace.time, "monotonic", lambda: now + 10**6)   # as long as you like between two reads
        assert got + stream.read() == data


@pytest.mark.parametrize("line", [b"X: " + b"y" * (1 << 20), b"X: y\r\n" * 100_000, b"HTTP/1.1 100 Continue\r\n\r\n" * 100_000])
def test_headers_without_end_are_given_up(fake, line):
    sent = []

    def hook(request):
        request.wfile.write(b"" if line.startswith(b"HTTP") else b"HTTP/1.1 200 OK\r\n")
        for _ in range(200):
            request.wfile.write(line)
            sent.append(len(line))

    fake.hook = hook
    with open_source(fake.reference, registry=quick(retries=0)) as source, pytest.raises(errors.RegistryUnavailableError):
        source.resolve()
    assert sum(sent) < 20 << 20


@pytest.mark.parametrize("said", [b"nonsense\r\n\r\n", b"\0" * 1000, b"HTTP/1.1 9999 X\r\n\r\n", b"HTTP/1.1 200\r\nContent-Length: x\r\n\r\n",
                                  b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", b""])
def test_what_is_not_http_is_an_error(fake, said):
    def hook(request):
        request.wfile.write(said)
        request.cut()
        return True

    fake.hook = hook
    with open_source(fake.reference, registry=quick()) as source, pytest.raises(errors.SourceError):
        source.resolve()
    assert len(fake.requests) <= 3


# -- redirects ------------------------------------------------------------------------------------------------------

def asking(fake, answer):
    """A hook that wants Basic, then goes on with *answer*."""

    def hook(request):
        if request.headers.get("Authorization") is None:
            return not request.answer(401, WWW_Authenticate='Basic realm="x"')
        return answer(request)

    fake.hook = hook


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_server_is_followed_without_credentials(fake, made, store, status):
    with Fake(made) as elsewhere:
        asking(fake, lambda r: "/blobs/" in r.path and not r.answer(status, Location=f"{elsewhere.url}{r.path}?signed=1"))
        pulls(store, fake, credentials=Credentials("user", "secret"))
        assert len(elsewhere.requests) == 2
        for _method, path, headers in elsewhere.requests:
            assert path.endswith("?signed=1")
            assert "authorization" not in headers
        assert all("authorization" in headers for headers in fake.asked("/v2/")[1:])


def test_a_server_that_was_redirected_to_and_asks_gets_nothing(fake, made, store):
    with Fake(made) as elsewhere:
        asking(elsewhere, lambda r: False)
        asking(fake, lambda r: "/blobs/" in r.path and not r.answer(307, Location=f"{elsewhere.url}{r.path}"))
        refused(store, fake, errors.RegistryAccessError, credentials=Credentials("user", "secret"))
        assert [headers.get("authorization") for headers in elsewhere.asked("")] == [None]


def test_a_redirect_takes_the_range_along(fake, made):
    with Fake(made) as elsewhere:
        fake.hook = of_layers(lambda r, data, n: r.answer(307, Location=f"{elsewhere.url}{r.path}"))
        source, blob, data = layer(fake)
        with source:
            assert b"".join(piece for _at, piece in blob.ranges([(5, 10), (50, 10)])) == data[5:15] + data[50:60]
        assert elsewhere.asked("")[-1]["range"] == "bytes=5-14,50-59"


def test_redirects_in_a_circle_end(fake, store):
    fake.hook = lambda r: not r.answer(307, Location=r.path)
    refused(store, fake, errors.RegistryError)
    assert len(fake.requests) == 6


@pytest.mark.parametrize("where", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher:x", "http://user:pw@127.0.0.1/", "https://", "http://[::1",
                                   "http://127.0.0.1:99999/", "data:,x", "http://:80/", "javascript:x", ""])
def test_a_redirect_to_something_that_is_not_http_is_refused(fake, store, where):
    fake.hook = lambda r: not r.answer(307, Location=where)
    refused(store, fake, errors.RegistryError)
    assert len(fake.requests) == 1


def test_a_redirect_from_https_to_http_is_refused(made, store, tmp_path):
    authority = Authority(tmp_path / "a")
    with Fake(made) as elsewhere, Fake(made, tls=authority) as fake:
        fake.hook = lambda r: "/blobs/" in r.path and not r.answer(307, Location=f"{elsewhere.url}{r.path}")
        refused(store, fake, errors.RegistryError, plain_http=False, ca_file=authority.ca)
        assert not elsewhere.requests


# -- ranges ---------------------------------------------------------------------------------------------------------

WANTED = [(n * 10_000, 1 + n) for n in range(200)] + [(2_100_000, 900_000)]
FEW = WANTED[:9] + WANTED[-1:]


def in_ranges(fake, wanted=WANTED, **changes):
    source, blob, data = layer(fake, **changes)
    with source:
        before = source.fetched
        pieces = list(blob.ranges(wanted))
        fetched = source.fetched - before
    assert [at for at, _piece in pieces] == sorted(at for at, _piece in pieces)
    assert max((len(piece) for _at, piece in pieces), default=0) <= 1 << 20
    assert all(any(a <= at and at + len(piece) <= a + n for a, n in wanted) for at, piece in pieces)
    assert b"".join(piece for _at, piece in pieces) == b"".join(data[a : a + n] for a, n in wanted)
    return fetched


def asked_for(fake):
    return [headers["range"].count(",") + 1 for headers in fake.asked("/blobs/")[1:]]


def test_many_ranges_come_in_few_requests(fake):
    in_ranges(fake)
    assert asked_for(fake) == [128, 73]


@pytest.mark.parametrize("answer", [
    lambda r, data: r.answer(200, data), lambda r, data: r.answer(400), lambda r, data: r.answer(416),
    lambda r, data: r.answer(431), lambda r, data: r.answer(206, data[:5], Content_Range=f"bytes 7-11/{len(data)}"),
    lambda r, data: r.answer(206, b"", Content_Type="multipart/byteranges; boundary=X"),
    lambda r, data: r.answer(206, part(data, 0, SIZE), Content_Type="multipart/byteranges; boundary=THIS"),
    lambda r, data: r.answer(206, part(data, 5, 6), Content_Type="multipart/byteranges; boundary=THIS"),
    lambda r, data: r.answer(206, part(data, 0, 1, told="bytes 0-0/5"), Content_Type="multipart/byteranges; boundary=THIS"),
    lambda r, data: r.answer(206, b"x" * 99_999, Content_Type="multipart/byteranges; boundary=THIS"),
    lambda r, data: r.answer(206, b"\r\n--THIS\r\n" + b"X: y\r\n" * 9_999, Content_Type="multipart/byteranges; boundary=THIS"),
    lambda r, data: r.answer(206, part(data, 0, 1)[:-1], Content_Type="multipart/byteranges; boundary=THIS"),
    lambda r, data: r.answer(206, b"\r\n--THIS--\r\n", Content_Type="multipart/byteranges; boundary=THIS"),
], ids=["ignored", "400", "416", "431", "another", "empty", "merged", "wrong part", "wrong total", "no parts", "headers", "short part", "end only"])
def test_a_server_that_cannot_many_at_once_is_asked_for_one_by_one(fake, answer):
    fake.hook = of_layers(lambda r, data, n: answer(r, data) if len(r.wanted) > 1 else False)
    in_ranges(fake, FEW)
    counts = asked_for(fake)
    several = [count for count in counts if count > 1]
    assert several == [len(FEW)]
    assert counts.count(1) == len(FEW)


def test_parts_that_go_wrong_in_the_middle_cost_none_that_came(fake):
    def hook(request, data, before):
        if len(request.wanted) == 1:
            return False
        body = b"".join(part(data, a, b) for a, b in request.wanted[:5]) + part(data, 7, 9) + b"\r\n--THIS--\r\n"
        return request.answer(206, body, Content_Type='multipart/byteranges; charset=x; boundary="THIS"')

    fake.hook = of_layers(hook)
    in_ranges(fake, FEW)
    assert asked_for(fake) == [len(FEW)] + [1] * (len(FEW) - 5)


def test_headers_of_a_part_without_end_are_not_read_to_it(fake):
    sent = []

    def hook(request, data, before):
        if len(request.wanted) == 1:
            return False
        request.answer(206, b"\r\n--THIS\r\n", say_length=False, Content_Type="multipart/byteranges; boundary=THIS")
        for _ in range(1000):
            request.wfile.write(b"X: y\r\n" * 10_000)
            sent.append(60_000)

    fake.hook = of_layers(hook)
    in_ranges(fake, FEW)
    assert sum(sent) < 40_000_000


def test_a_server_that_answers_only_the_first_range_is_asked_for_the_others(fake):
    def hook(request, data, before):
        a, b = request.wanted[0]
        request.answer(206, data[a:b], Content_Range=f"bytes {a}-{b - 1}/{len(data)}")

    fake.hook = of_layers(hook)
    in_ranges(fake, FEW)
    assert asked_for(fake) == [len(FEW)] + [1] * (len(FEW) - 1)


def test_parts_that_are_cut_are_asked_for_from_where_they_were(fake):
    def hook(request, data, before):
        if before:
            return False
        body = b"".join(part(data, a, b) for a, b in request.wanted[:50])
        request.answer(206, body, Content_Type="multipart/byteranges; boundary=THIS", Content_Length="9999999")
        return request.cut()

    fake.hook = of_layers(hook)
    in_ranges(fake)
    assert asked_for(fake) == [128, 128, 23]


def test_a_range_that_is_cut_inside_goes_on_inside(fake):
    def hook(request, data, before):
        if before:
            return False
        a, b = request.wanted[0]
        request.answer(206, data[a : a + 1_000_000], Content_Range=f"bytes {a}-{b - 1}/{len(data)}", Content_Length=str(b - a))
        return request.cut()

    fake.hook = of_layers(hook)
    assert in_ranges(fake, [(1000, 2_000_000)]) == 2_000_000
    assert fake.asked("/blobs/")[-1]["range"] == "bytes=1001000-2000999"


def test_a_server_without_ranges_says_so_before_the_first_piece(fake, store):
    fake.hook = of_layers(lambda r, data, n: r.answer(200, data))
    source, blob, data = layer(fake)
    with source:
        for wanted in (WANTED, [(5, 10)]):
            with pytest.raises(errors.RangesUnsupportedError):
                next(blob.ranges(wanted))
        assert b"".join(piece for _at, piece in blob.ranges([(0, blob.size)])) == data   # that is all of it
        assert not list(blob.ranges([]))


def test_a_server_that_has_ranges_only_at_first_is_an_error(fake):
    fake.hook = of_layers(lambda r, data, n: r.answer(200, data) if n else r.answer(
        206, data[5:15], Content_Range=f"bytes 5-14/{len(data)}"))
    source, blob, _data = layer(fake)
    with source:
        found = blob.ranges([(5, 10), (500, 10)])
        assert len(next(found)[1]) == 10
        with pytest.raises(errors.RegistryError, match="after it did not"):
            next(found)


def test_ranges_that_are_left_give_their_connection_up(fake):
    source, blob, data = layer(fake)
    with source:
        for _ in range(20):
            found = blob.ranges([(0, 1_000_000), (1_500_000, 10)])
            assert next(found) == (0, data[:1_000_000])
            found.close()
            stream = blob.open()
            assert stream.read(10) == data[:10]
            stream.close()


def test_memory_is_bounded_whatever_comes(fake):
    import tracemalloc

    zeros, size = bytes(64 << 10), 64 << 20

    def hook(request, data, before):
        length = request.wanted[0][1] - request.wanted[0][0] if request.wanted else size
        told = {"Content_Range": f"bytes {request.wanted[0][0]}-{request.wanted[0][1] - 1}/{size}"} if request.wanted else {}
        request.answer(206 if told else 200, Content_Length=str(length), **told)
        for _ in range(length // len(zeros)):
            request.wfile.write(zeros)

    source, blob, _data = layer(fake)
    with source:
        blob = RegistryBlob(blob._client, blob._digest, size, "large")
        fake.hook = of_layers(hook)
        tracemalloc.start()
        try:
            assert sum(len(piece) for _at, piece in blob.ranges([(0, 32 << 20), (33 << 20, 16 << 20)])) == 48 << 20
            with blob.open() as stream:
                assert sum(iter(lambda: len(stream.read(1 << 20)), 0)) == size
            assert tracemalloc.get_traced_memory()[1] < 12 << 20
        finally:
            tracemalloc.stop()


def test_threads_share_a_client(fake):
    source, blob, data = layer(fake)
    wrong = []

    def read(n):
        if b"".join(piece for _at, piece in blob.ranges([(n, 1000), (1_000_000 + n, 5)])) != data[n : n + 1000] + data[
                1_000_000 + n : 1_000_005 + n]:
            wrong.append(n)

    with source:
        threads = [threading.Thread(target=read, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
