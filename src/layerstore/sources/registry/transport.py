"""One HTTP request and its response, over kept connections: the only module that knows urllib3.

No redirect is followed here, nothing is tried again, and nothing is decoded. What fails comes out as
``Broken`` (another try may help) or RegistryError (it will not), without what the library would say: its texts hold
URLs with their queries, and so do its log records, from which they are taken out.
"""

from __future__ import annotations

import http.client
import logging
import socket
import ssl
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

from layerstore.errors import RegistryError, SourceError
from layerstore.sources.registry import RegistryOptions
from layerstore.sources.registry.failures import Broken, code_of, origin, shown
from layerstore.sources.registry.pace import TERMS, Paced, Terms
from layerstore.sources.registry.proxies import Proxies, Proxy
from layerstore.sources.registry.tls import make_context

try:
    import urllib3
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.exceptions import HTTPError, SSLError
except ImportError as _missing:
    raise SourceError("docker:// needs urllib3", hint="pip install 'layerstore[registry]'") from _missing

__all__ = ["Reply", "Transport"]

_HOSTS = 8               # whose connections are kept
_CONNECTIONS = 32        # that are kept for each: more than anybody should open at once
_SMALL = 16 << 10        # what is read to keep a connection
_NEVER = (ssl.SSLCertVerificationError,)


class _Response(http.client.HTTPResponse):
    """Read through ``Paced``."""

    def __init__(self, sock: Any, *arguments: Any, **named: Any) -> None:
        self._paced = Paced(sock)
        super().__init__(cast("socket.socket", self._paced), *arguments, **named)   # only its makefile is called

    def begin(self) -> None:
        super().begin()
        self._paced.in_headers = False


class _Plain(HTTPConnection):
    response_class = _Response


class _Tls(HTTPSConnection):
    response_class = _Response


class _PlainPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Plain


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _Tls


def _without_query(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple):
        record.args = tuple(a.partition("?")[0] if isinstance(a, str) else a for a in record.args)
    return True


for _name in ("urllib3.connectionpool", "urllib3.connection"):
    logging.getLogger(_name).addFilter(_without_query)


class Transport:
    """Requests to any host. Safe to use from threads. ``fetched`` counts the bytes of all bodies, read or thrown away."""

    def __init__(self, options: RegistryOptions, home: str, host: str) -> None:
        """*home* is the registry's URL, *host* its ``HOST[:PORT]``. SourceError for certificates that cannot be used."""
        self.fetched = 0
        self.home, self._home_origin = home, origin(home)
        self._lock = threading.Lock()
        self._contexts: dict[bool, ssl.SSLContext] = {}
        self._host, self._ca_file, self._least_rate = host, options.ca_file, options.least_rate
        if not options.plain_http:
            self._context(home=True)
        self._timeout = urllib3.Timeout(connect=options.connect_timeout, read=options.idle_timeout)
        self._proxies = Proxies()
        self._managers: dict[Proxy | None, urllib3.PoolManager] = {}

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: str | bytes | BinaryIO | None = None,
        stops: Sequence[threading.Event] = (),
    ) -> Reply:
        """Send a request; return the response, its body not yet read, to be closed. Raises Broken and RegistryError.

        Once one of *stops* is set, waiting for the response, and reading it, end soon with Broken.
        """
        before = TERMS.set(Terms(stops, self._least_rate))
        try:
            scheme, host, port = there = origin(url)
            more: dict[str, Any] = {}
            if scheme == "https":
                more["ssl_context"] = self._context(home=there == self._home_origin)
            proxy = self._proxies.of(scheme, host, port)
            pool = self._manager(proxy).connection_from_host(host, port, scheme, pool_kwargs=more)
            asked = _path(url) if proxy is None or scheme == "https" else url.partition("#")[0]   # RFC 9112, 3.2.2
            response = pool.urlopen(
                method, asked, body=body, headers=headers, retries=False, redirect=False, assert_same_host=False,
                preload_content=False, decode_content=False,
            )
        except (HTTPError, OSError, ValueError, http.client.HTTPException) as error:
            raise self._failed(error, method, url) from None
        finally:
            TERMS.reset(before)
        return Reply(self, response, url)

    def close(self) -> None:
        """Close the connections that nobody uses."""
        with self._lock:
            managers = list(self._managers.values())
        for each in managers:
            for key in each.pools.keys():   # noqa: SIM118 - it is no mapping to iterate over
                pool = each.pools.get(key)
                if pool is not None:
                    pool.close()   # or its finalizer would, in which an interrupt is lost
            each.clear()

    def count(self, n: int) -> None:
        with self._lock:
            self.fetched += n

    def _manager(self, proxy: Proxy | None) -> urllib3.PoolManager:
        """What keeps the connections that go through *proxy*."""
        more: dict[str, Any] = {"maxsize": _CONNECTIONS, "timeout": self._timeout, "retries": False}
        with self._lock:
            if proxy not in self._managers:
                if proxy is None:
                    made = urllib3.PoolManager(_HOSTS, **more)
                else:
                    said = {"Proxy-Authorization": proxy.credentials.basic()} if proxy.credentials else {}
                    made = urllib3.ProxyManager(proxy.url, _HOSTS, proxy_headers=said, **more)
                made.pool_classes_by_scheme = {"http": _PlainPool, "https": _TlsPool}
                self._managers[proxy] = made
            return self._managers[proxy]

    def _context(self, *, home: bool) -> ssl.SSLContext:
        with self._lock:
            if home not in self._contexts:
                self._contexts[home] = make_context(self._ca_file, self._host if home else None)
            return self._contexts[home]

    def _failed(self, error: Exception, method: str, url: str) -> Exception:
        where = shown(url, self.home)
        cause = next((a for a in error.args if isinstance(a, ssl.SSLError)), None) or error.__cause__
        if isinstance(cause, _NEVER):
            return RegistryError(
                f"the certificate of {where} cannot be verified: {cause.verify_message}", url=where,
                hint="name the file with the certificate of its authority: --tls-ca FILE",
            )
        if isinstance(error, SSLError) and "WRONG_VERSION_NUMBER" in str(cause):
            return RegistryError(
                f"{where} does not speak TLS", url=where, hint="if it is meant to be so, say --plain-http",
            )
        if isinstance(error, ValueError):   # a URL that cannot be one
            return RegistryError(f"cannot ask for {where}: it is no usable URL", url=where)
        return Broken(f"{method} {where}: {reason(error)}", where)


def reason(error: Exception) -> str:
    """Why a connection failed, in words of our own or of the system's."""
    names = {
        "NameResolutionError": "the host's name cannot be resolved", "ConnectTimeoutError": "no connection in time",
        "ReadTimeoutError": "nothing, or hardly anything, came for too long", "SSLError": "TLS failed",
        "ProxyError": "the proxy cannot be reached, or refuses",
        "ProtocolError": "the connection ended early, or what came is not HTTP",
    }
    under = error.__cause__ or next((a for a in error.args if isinstance(a, OSError)), None)
    system = under.strerror if isinstance(under, OSError) and under.errno else None
    return system or names.get(type(error).__name__, "the connection failed")


def _path(url: str) -> str:
    return urllib3.util.parse_url(url).request_uri


class Reply:
    """A response. Leaving its ``with`` gives the connection back if hardly anything is left to read, else closes it."""

    def __init__(self, transport: Transport, response: urllib3.BaseHTTPResponse, url: str) -> None:
        self._transport, self._response, self._url = transport, response, url
        self.status = response.status
        self._ended = False
        self.url = shown(url, transport.home)

    @property
    def target(self) -> str:
        """The URL that was asked for, as it is: never for a message."""
        return self._url

    @property
    def length(self) -> int | None:
        """How many bytes are still to come; None if the server did not say."""
        return self._response.length_remaining

    def header(self, name: str) -> str:
        """A header's value, those of several joined by ", "; empty without it."""
        return self._response.headers.get(name, "")

    def read(self, count: int) -> bytes:
        """At most *count* (more than none) bytes, at least one; none at the end. Broken if it ends before it should."""
        try:
            data = self._response.read(count, decode_content=False)
        except (HTTPError, OSError, ValueError, http.client.HTTPException) as error:
            raise Broken(f"GET {self.url}: {reason(error)}", self.url) from None
        self._transport.count(len(data))
        self._ended = not data
        return data

    def code(self) -> str:
        """The code of the registry's error document, if this is one."""
        try:
            return code_of(self.read(min(self.length, _SMALL))) if self.length else ""
        except Broken:
            return ""

    def close(self) -> None:
        """Let go of it."""
        try:
            if not self._ended and self.length is not None and self.length <= _SMALL:
                self.read(self.length or 1)   # the library does not see an end that nobody read, not even of nothing
        except Broken:
            pass
        finally:
            if self.length != 0 and not self._ended:
                self._response.close()
            self._response.release_conn()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None,
    ) -> None:
        self.close()
