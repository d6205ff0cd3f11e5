"""Asking one registry for one repository's things: authentication, redirects, and tries that are bounded.

Credentials go to the registry's own scheme, host and port, and nowhere else. A redirect may lead anywhere but from https
to http, or to something that is not HTTP; at most five in a row.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import BinaryIO, NoReturn
from urllib.parse import urljoin, urlsplit

from layerstore.errors import ClosedError, RegistryError, RegistryUnavailableError
from layerstore.sources.registry import RegistryOptions
from layerstore.sources.registry.authfiles import find_credentials
from layerstore.sources.registry.challenges import parse_challenges
from layerstore.sources.registry.failures import Broken, origin, refuse
from layerstore.sources.registry.names import Name
from layerstore.sources.registry.pace import SLICE
from layerstore.sources.registry.secrets import Credentials
from layerstore.sources.registry.tokens import Authority, retry_after
from layerstore.sources.registry.transport import Reply, Transport

__all__ = ["Attempts", "Client"]

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 5
_PROGRESS = 1 << 20      # bytes after which earlier failures are forgotten
_AGAIN = 2               # times its size that a blob is read again
_ALWAYS = {"User-Agent": "layerstore", "Accept-Encoding": "identity"}


class Client:
    """Safe to use from threads. After ``close`` nothing more is asked for; replies that are being read go on."""

    def __init__(self, name: Name, options: RegistryOptions, *, push: bool = False) -> None:
        self.name, self._options = name, options
        self.home = f"{'http' if options.plain_http else 'https'}://{name.server}/v2/"
        self._origin = origin(self.home)
        self.stopped = threading.Event()
        self._slots = threading.BoundedSemaphore(max(1, options.connections))
        self.together = True   # whether this server is asked for several ranges at once
        self._transport = Transport(options, self.home, name.host)
        self._authority = Authority(
            self._transport, name.repository, self._credentials, plain_http=options.plain_http, push=push)

    @property
    def fetched(self) -> int:
        """Bytes of all bodies that came so far, also of those that were thrown away."""
        return self._transport.fetched

    def attempts(self, stops: Sequence[threading.Event] = ()) -> Attempts:
        """A fresh count of tries, for one thing to be fetched, until one of *stops* is set."""
        return Attempts(self._options, self.stopped, stops)

    @contextmanager
    def slot(self, attempts: Attempts) -> Iterator[None]:
        """One of the connections that layers may be read over at once; waits for it. ClosedError if that is to end."""
        while not self._slots.acquire(timeout=SLICE):
            if attempts.is_over():
                raise ClosedError(f"the source {self.name} is closed, or nobody wants the layer any more")
        try:
            yield
        finally:
            self._slots.release()

    def get(
        self, path: str, headers: Mapping[str, str], attempts: Attempts, accept: Collection[int] = (200,),
    ) -> Reply:
        """The reply, to be closed, to a GET of *path* below the repository, once its status is one of *accept*.

        Raises RegistryError and its kind, SourceError (credentials that cannot be read), ClosedError.
        """
        url = f"{self.home}{self.name.repository}/{path}"
        while True:
            if self.stopped.is_set():
                raise ClosedError(f"the source {self.name} is closed", hint="read its layers before closing the source")
            try:
                reply = self._redirected(url, {**_ALWAYS, **headers}, attempts.stops)
                if reply.status in accept:
                    return reply
                with reply:
                    code = reply.code()
                    if reply.status not in (408, 429) and reply.status < 500:
                        refuse(reply.status, reply.url, code)
                    raise Broken(
                        f"GET {reply.url}: {reply.status}{code}", reply.url, status=reply.status, after=retry_after(reply),
                    )
            except Broken as broken:
                attempts.failed(broken)

    def once(
        self, method: str, url: str, headers: Mapping[str, str], accept: Collection[int],
        body: bytes | BinaryIO | None = None,
    ) -> Reply:
        """The reply, to be closed, to one request of any method; no redirect is followed. For what is not simply read.

        Raises Broken (all of it may be tried again, from where it began), RegistryError and its kind, ClosedError.
        """
        if self.stopped.is_set():
            raise ClosedError(f"the target {self.name} is closed")
        reply = self._authorized(url, {**_ALWAYS, **headers}, method, body)
        if reply.status in accept:
            return reply
        with reply:
            code = reply.code()
            if reply.status not in (408, 429) and reply.status < 500:
                refuse(reply.status, reply.url, code, method)
            raise Broken(
                f"{method} {reply.url}: {reply.status}{code}", reply.url, status=reply.status, after=retry_after(reply))

    def has(self, path: str) -> bool:
        """Whether the repository says, by one HEAD of *path* below it, that it is there; raises as ``once``.

        Storage elsewhere that it refers to is asked, too. If that says neither, nobody knows, and so it is not there.
        """
        url = f"{self.home}{self.name.repository}/{path}"
        with self.once("HEAD", url, {}, (200, 404, *_REDIRECTS)) as reply:
            if reply.status not in _REDIRECTS:
                return reply.status == 200
            target = self._follow(reply)
        try:
            with self._redirected(target, _ALWAYS, (), "HEAD") as reply:
                return reply.status == 200
        except Broken:
            return False

    def close(self) -> None:
        """End the pauses between tries, and close what is not in use. May be called again."""
        self.stopped.set()
        self._transport.close()

    def _credentials(self) -> Credentials | None:
        """Looked for when the registry asks, and not before: a helper may ask a person."""
        return self._options.credentials or find_credentials(self.name, self._options.auth_file)

    def _redirected(
        self, url: str, headers: Mapping[str, str], stops: Sequence[threading.Event], method: str = "GET",
    ) -> Reply:
        for _ in range(_MAX_REDIRECTS + 1):
            reply = self._authorized(url, headers, method, stops=stops)
            if reply.status not in _REDIRECTS:
                return reply
            with reply:
                url = self._follow(reply)
        raise RegistryError(
            f"more than {_MAX_REDIRECTS} redirects in a row: {method} {reply.url}: {reply.status}",
            status=reply.status, url=reply.url,
        )

    def _follow(self, reply: Reply) -> str:
        """Where a redirect leads, if it may be followed."""
        try:
            target = urljoin(reply.target, reply.header("Location"))
            scheme, _host, _port = origin(target)
            usable = bool(reply.header("Location")) and "@" not in urlsplit(target).netloc
        except ValueError:
            scheme, usable = "", False
        if not usable or (scheme == "http" and reply.target.startswith("https:")):
            why = "from https to http" if usable else "to what is no usable HTTP URL"
            raise RegistryError(
                f"a redirect leads {why}: GET {reply.url}: {reply.status}", status=reply.status, url=reply.url,
                hint="this is not followed; ask who runs the registry",
            )
        return target

    def _authorized(
        self, url: str, headers: Mapping[str, str], method: str = "GET", body: bytes | BinaryIO | None = None,
        stops: Sequence[threading.Event] = (),
    ) -> Reply:
        if origin(url) != self._origin:
            return self._transport.send(method, url, headers, body, stops)
        said = self._authority.header(stops)
        reply = self._transport.send(method, url, {**headers, "Authorization": said} if said else headers, body, stops)
        if reply.status != 401:
            return reply
        with reply:
            challenges = parse_challenges(reply.header("WWW-Authenticate"))
            shown = reply.url
        if not challenges:   # some say how to authenticate only here (distribution-spec, "Determining Support")
            with self._transport.send("GET", self.home, _ALWAYS, stops=stops) as ping:
                challenges = parse_challenges(ping.header("WWW-Authenticate"))
        said = self._authority.answer(challenges, said, shown, stops)
        if body is not None and not isinstance(body, bytes):
            body.seek(0)
        return self._transport.send(method, url, {**headers, "Authorization": said}, body, stops)


class Attempts:
    """How often one thing may fail. Failures with a megabyte between them are not in a row.

    *stopped* ends the tries, and so does each of *stops*, which also end what is being read.
    """

    def __init__(self, options: RegistryOptions, stopped: threading.Event, stops: Sequence[threading.Event] = ()) -> None:
        self._options, self._stopped, self.stops = options, stopped, stops
        self._failed = self._since = self._again = 0

    def progress(self, count: int) -> None:
        """*count* more bytes came that had not come before."""
        self._since += count
        if self._since >= _PROGRESS:
            self._failed = 0

    def again(self, count: int, size: int, url: str) -> None:
        """*count* bytes, of *size* in all, had to be read once more; RegistryUnavailableError if that comes too often.

        Or a server that knows no ranges, and breaks off after every megabyte, would send the square of the size.
        """
        self._again += count
        if self._again > _AGAIN * size:
            what = f"the server knows no ranges, and breaks off so often that it sent {self._again} bytes again: GET {url}"
            raise RegistryUnavailableError(what, url=url)

    def failed(self, broken: Broken) -> None:
        """Wait until it may be tried again; RegistryUnavailableError if it may not."""
        self._failed, self._since = self._failed + 1, 0
        if self._failed > self._options.retries or self.is_over():
            self._give_up(broken)
        pause = self._options.backoff * 2 ** (self._failed - 1) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        self._wait(min(max(pause, broken.after or 0.0), self._options.longest_wait))
        if any(each.is_set() for each in self.stops):
            self._give_up(broken)

    def _give_up(self, broken: Broken) -> NoReturn:
        tries = "" if self._failed == 1 else f" ({self._failed} times in a row)"
        raise RegistryUnavailableError(f"{broken.what}{tries}", status=broken.status, url=broken.url) from None

    def is_over(self) -> bool:
        """Whether nothing is to be tried any more."""
        return self._stopped.is_set() or any(each.is_set() for each in self.stops)

    def _wait(self, seconds: float) -> None:
        while self.stops and seconds > SLICE and not self.is_over():
            self._stopped.wait(SLICE)
            seconds -= SLICE
        if not self.is_over():
            self._stopped.wait(seconds)
