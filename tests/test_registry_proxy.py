"""Registries that are had through a proxy, as the environment says. Whatever the host is called, it is one of ours on loopback."""

import socket
import threading

import imagemaker
import pytest

from layerstore import Credentials, PullOptions, errors
from layerstore.sources.registry.proxies import Proxies
from registries import Authority, Fake, quick

REFERENCE = "docker://registry.test/some/image"
VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    image = imagemaker.Image([imagemaker.Layer({"f": imagemaker.Filler(200_000)}, compression="none")])
    return image.write_oci(tmp_path_factory.mktemp("image") / "i", tag="t")


@pytest.fixture
def environment(monkeypatch):
    for each in VARIABLES:
        monkeypatch.delenv(each, raising=False)
        monkeypatch.delenv(each.upper(), raising=False)
    return monkeypatch.setenv


class Tunnel(threading.Thread):
    """A proxy that does CONNECT: whatever is asked for, it leads to *port*. ``heads`` are the requests that came."""

    def __init__(self, port, answer=b"HTTP/1.1 200 Connection established\r\n\r\n"):
        super().__init__(daemon=True)
        self._port, self._answer, self.heads = port, answer, []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"

    def run(self):
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(1)
            self.heads.append(head.decode())
            client.sendall(self._answer)
            if b" 200 " not in self._answer:
                client.close()
                continue
            there = socket.create_connection(("127.0.0.1", self._port))
            for one, other in ((client, there), (there, client)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, one, other):
        try:
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


def test_plain_http_goes_through_the_proxy_with_whole_urls_and_its_password(store, made, environment):
    with Fake(made) as proxy:   # a proxy is asked for all hosts, and this one knows all
        environment("HTTP_PROXY", f"http://me:se%20cret@{proxy.host}")
        store.pull(REFERENCE, options=PullOptions(registry=quick()))
    assert len(proxy.asked("/blobs/")) == 2
    for _method, path, headers in proxy.requests:
        assert path.startswith("http://registry.test/v2/some/image/") and headers["host"] == "registry.test"
        assert headers["proxy-authorization"] == Credentials("me", "se cret").basic() and "authorization" not in headers


def test_tls_goes_through_a_tunnel_and_is_verified_and_the_registry_sees_nothing_of_the_proxys_password(
        store, made, environment, tmp_path):
    authority = Authority(tmp_path / "a")
    with Fake(made, tls=authority) as fake, Tunnel(int(fake.host.rpartition(":")[2])) as proxy:
        environment("HTTPS_PROXY", proxy.url.replace("//", "//me:secret@"))
        fake.hook = lambda r: r.headers.get("Authorization") is None and not r.answer(401, WWW_Authenticate='Basic realm="x"')
        options = quick(plain_http=False, ca_file=authority.ca, credentials=Credentials("user", "pass"))
        store.pull(REFERENCE, options=PullOptions(registry=options))
        assert {head.splitlines()[0] for head in proxy.heads} == {"CONNECT registry.test:443 HTTP/1.1"} or {
            head.splitlines()[0] for head in proxy.heads} == {"CONNECT registry.test:443 HTTP/1.0"}
        assert all(Credentials("me", "secret").basic() in head for head in proxy.heads)
        assert not any(Credentials("user", "pass").basic() in head for head in proxy.heads)
        assert fake.requests and not any("proxy-authorization" in headers for _m, _p, headers in fake.requests)
        with pytest.raises(errors.RegistryError, match="cannot be verified"):
            store.pull(REFERENCE, options=PullOptions(registry=quick(plain_http=False)))


def test_a_proxy_that_refuses_is_an_error_that_does_not_show_its_password(store, environment):
    with Tunnel(1, answer=b"HTTP/1.1 403 Forbidden\r\n\r\n") as proxy:
        environment("HTTPS_PROXY", proxy.url.replace("//", "//me:secret@"))
        with pytest.raises(errors.RegistryUnavailableError) as caught:
            store.pull(REFERENCE, options=PullOptions(registry=quick(plain_http=False, retries=0)))
    assert "secret" not in str(caught.value) and "proxy" in str(caught.value)


def test_what_is_on_this_machine_is_never_asked_for_through_a_proxy(store, made, environment):
    for each in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        environment(each, "http://127.0.0.1:1")
    with Fake(made) as fake:
        assert store.pull(fake.reference, options=PullOptions(registry=quick())).id


@pytest.mark.parametrize(("said", "scheme", "host", "proxy"), [
    ({"https": "http://p:3128"}, "https", "r.test", "http://p:3128"), ({"https": "http://p:3128"}, "http", "r.test", None),
    ({"https": "p:3128"}, "https", "r.test", "http://p:3128"), ({"all": "https://p"}, "http", "r.test", "https://p"),
    ({"https": "http://p", "no": "r.test"}, "https", "r.test", None), ({"https": "http://p", "no": ".test"}, "https", "r.test", None),
    ({"https": "http://p", "no": "r.test:5000"}, "https", "r.test", "http://p"), ({"https": "http://p", "no": "*"}, "https", "r.test", None),
    ({"https": "http://p", "no": "r.test:443"}, "https", "r.test", None), ({"https": "http://p", "no": "x, 10.0.0.0/8"}, "https", "10.1.2.3", None),
    ({"https": "http://p", "no": "st"}, "https", "r.test", "http://p"), ({"https": "http://p", "no": "10.0.0.0/8"}, "https", "11.1.2.3", "http://p"),
    ({"https": "http://p", "no": "other"}, "https", "r.test", "http://p"), ({}, "https", "r.test", None),
    ({"https": "http://p"}, "https", "127.8.9.1", None), ({"https": "http://p"}, "https", "::1", None),
    ({"https": "http://p"}, "https", "localhost", None), ({"https": "http://[::2]:1"}, "https", "r.test", "http://[::2]:1"),
])
def test_the_variables_are_read_as_elsewhere(said, scheme, host, proxy):
    found = Proxies(said).of(scheme, host, 443)
    assert (found and found.url) == proxy


@pytest.mark.parametrize("said", ["socks5://p:1", "http://", "http://p:99999", "http://[::1", "ftp://p"])
def test_a_variable_that_names_no_usable_proxy_is_named_in_the_error_without_its_content(said):
    with pytest.raises(errors.SourceError) as caught:
        Proxies({"https": said.replace("://", "://me:secret@")}).of("https", "r.test", 443)
    assert "https" in str(caught.value) and "secret" not in f"{caught.value} {caught.value.hint}"
