"""Answering a registry that wants to know who asks: Basic, or a token fetched from where it says (Bearer).

The scope is ours, never the registry's: a token for this one repository, whatever it would like to be shown. Tokens
and credentials go to the registry and to the token server that it names, over TLS unless plain HTTP was asked for.
Source: RFC 6750; Docker's token authentication and OAuth2 specifications.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode, urlsplit

from layerstore.errors import RegistryAccessError, RegistryError
from layerstore.sources.registry.challenges import Challenge
from layerstore.sources.registry.failures import Broken, origin, refuse, shown, with_query
from layerstore.sources.registry.secrets import Credentials
from layerstore.sources.registry.transport import Reply, Transport

__all__ = ["Authority", "retry_after"]

_MAX_BYTES = 1 << 20                 # of a token document
_SHORTEST, _LONGEST = 60, 3600       # seconds that a token is used for, whatever its server says
_USABLE = re.compile(r"[!-~]{1,65536}\Z")
_CLIENT = "layerstore"
Stops = Sequence[threading.Event]


class Authority:
    """What to say in ``Authorization`` to one registry, for one repository. Safe to use from threads."""

    def __init__(
        self, transport: Transport, repository: str, find: Callable[[], Credentials | None], *, plain_http: bool,
        push: bool = False,
    ) -> None:
        self._transport, self._find = transport, find
        self._scope, self._plain_http = f"repository:{repository}:{'pull,push' if push else 'pull'}", plain_http
        self._lock = threading.Lock()
        self._said: str | None = None
        self._until = float("inf")
        self._bearer: Challenge | None = None

    def header(self, stops: Stops = ()) -> str | None:
        """What to say unasked: what served before, renewed if its time is over. Raises as ``answer``."""
        with self._lock:
            if self._bearer is not None and time.monotonic() >= self._until:
                self._fetch(self._bearer, stops)
            return self._said

    def answer(self, challenges: Sequence[Challenge], refused: str | None, url: str, stops: Stops = ()) -> str:
        """What to say to these *challenges*, when *refused* was said before (None: nothing).

        A token is waited for until one of *stops* is set: then Broken.
        Raises RegistryAccessError (nothing to say, or the token server refuses), RegistryError, Broken, SourceError.
        """
        with self._lock:
            if self._said is not None and self._said != refused:   # another thread was here meanwhile
                return self._said
            for challenge in challenges:
                if challenge.scheme == "bearer":
                    return self._fetch(challenge, stops)
                if challenge.scheme == "basic":
                    return self._basic(refused, url)
        raise RegistryAccessError(
            f"the registry asks for an authentication that is neither Bearer nor Basic: GET {url}: 401",
            status=401, url=url, hint="only these two can be given",
        )

    def _basic(self, refused: str | None, url: str) -> str:
        found = self._find()
        said = found.basic() if found is not None and found.username else None
        if said is None:
            raise RegistryAccessError(
                f"the registry wants a user and a password, and there are none for it: GET {url}: 401", status=401, url=url,
            )
        if said == refused:
            refuse(401, url)
        self._said, self._until = said, float("inf")
        return said

    def _fetch(self, challenge: Challenge, stops: Stops) -> str:
        realm, service = challenge.parameters.get("realm", ""), challenge.parameters.get("service", "")
        where = shown(realm, self._transport.home)
        if not self._may_ask(realm):
            raise RegistryError(
                f"the registry names a token server that is not asked: {where}", url=where,
                hint="only https is, unless plain HTTP was asked for (--plain-http)",
            )
        with self._ask(realm, service, self._find(), stops) as reply:
            if reply.status in (408, 429) or reply.status >= 500:
                raise Broken(f"GET {where}: {reply.status}", where, status=reply.status, after=retry_after(reply))
            if reply.status != 200:
                refuse(reply.status if reply.status in (401, 403) else 401, where)
            token, seconds = _read_token(reply)
        self._bearer, self._said, self._until = challenge, f"Bearer {token}", time.monotonic() + seconds
        return self._said

    def _may_ask(self, realm: str) -> bool:
        try:
            scheme, _host, _port = origin(realm)
        except ValueError:
            return False
        return (scheme == "https" or self._plain_http) and "@" not in urlsplit(realm).netloc

    def _ask(self, realm: str, service: str, credentials: Credentials | None, stops: Stops) -> Reply:
        wanted = ([("service", service)] if service else []) + [("scope", self._scope)]
        headers = {"User-Agent": _CLIENT, "Accept": "application/json", "Accept-Encoding": "identity"}
        if credentials is not None and credentials.identity_token:
            form = [*wanted, ("grant_type", "refresh_token"), ("refresh_token", credentials.identity_token),
                    ("client_id", _CLIENT)]
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            return self._transport.send("POST", realm, headers, urlencode(form), stops)
        if credentials is not None and credentials.username:
            wanted.append(("account", credentials.username))
            headers["Authorization"] = credentials.basic()
        return self._transport.send("GET", with_query(realm, wanted), headers, stops=stops)


def retry_after(reply: Reply) -> float | None:
    """Seconds of ``Retry-After`` (not its form as a date, which needs equal clocks); None without it."""
    text = reply.header("Retry-After").strip()
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _read_token(reply: Reply) -> tuple[str, int]:
    data = b""
    while len(data) <= _MAX_BYTES and (chunk := reply.read(_MAX_BYTES + 1 - len(data))):
        data += chunk
    try:
        document: Any = json.loads(data) if len(data) <= _MAX_BYTES else None
    except (ValueError, RecursionError):   # not chained: a JSONDecodeError has the document
        document = None
    answer: Mapping[str, Any] = document if isinstance(document, dict) else {}
    token = answer.get("token") or answer.get("access_token")
    if not isinstance(token, str) or not _USABLE.match(token):
        raise RegistryError(f"the token server answered without a usable token: {reply.url}", status=200, url=reply.url)
    seconds = answer.get("expires_in")
    return token, min(max(seconds, _SHORTEST), _LONGEST) if type(seconds) is int else _SHORTEST
