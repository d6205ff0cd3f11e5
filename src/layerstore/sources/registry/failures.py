"""What may be said of a request that failed: never a query, never a header, never a server's own words.

A server chooses its texts, and could have us print what we sent to it. Of its error documents only a code in
capitals is shown (distribution-spec, "Error Codes").
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import NoReturn
from urllib.parse import urlencode, urlsplit, urlunsplit

from layerstore.errors import RegistryAccessError, RegistryError

__all__ = ["Broken", "code_of", "origin", "refuse", "shown", "with_query"]

_CODE = re.compile(r"[A-Z][A-Z_]{2,39}\Z")
_PORTS = {"http": 80, "https": 443}


class Broken(Exception):  # noqa: N818 - never leaves this package
    """A request failed in a way that another try may mend. *after*: seconds that the server asked for."""

    def __init__(self, what: str, url: str, *, status: int | None = None, after: float | None = None) -> None:
        super().__init__(what)
        self.what, self.url, self.status, self.after = what, url, status, after


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: what credentials are good for. ValueError for what is no URL of HTTP."""
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError("not an HTTP URL")
    return parts.scheme, parts.hostname.lower(), parts.port or _PORTS[parts.scheme]


def with_query(url: str, more: Sequence[tuple[str, str]]) -> str:
    """*url* with *more* in its query, behind what is there, which stays as its author wrote it: it may be signed."""
    parts = urlsplit(url)
    query = "&".join(filter(None, (parts.query, urlencode(more))))
    return urlunsplit(parts._replace(query=query, fragment=""))


def shown(url: str, home: str) -> str:
    """*url* for a message: without user and query and, unless it is the same server as *home*, without its path."""
    try:
        there = origin(url)
    except ValueError:
        return "(no URL)"
    parts = urlsplit(url)
    path = parts.path if there == origin(home) else "/…"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}"


def code_of(body: bytes) -> str:
    """The code of a registry's error document, with a space before it; empty if there is none to be shown."""
    try:
        code = json.loads(body)["errors"][0]["code"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return ""
    return f" {code}" if isinstance(code, str) and _CODE.match(code) else ""


def refuse(status: int, url: str, code: str = "", method: str = "GET") -> NoReturn:
    """Raise what a status means that no other try will mend. *url* is as ``shown``."""
    if status == 401:
        raise RegistryAccessError(
            f"the registry wants to know who asks, and does not take what it was given: {method} {url}: {status}{code}",
            status=status, url=url, hint="log in (skopeo login, podman login, docker login), or give --creds",
        )
    if status == 403:
        raise RegistryAccessError(
            f"the registry does not allow it: {method} {url}: {status}{code}", status=status, url=url,
            hint="use credentials that may do that in this repository",
        )
    if status == 404:
        raise RegistryError(
            f"the registry does not have it: {method} {url}: {status}{code}", status=status, url=url,
            hint="check the repository, and the tag or digest; some registries say this for want of credentials",
        )
    raise RegistryError(f"the registry refuses: {method} {url}: {status}{code}", status=status, url=url)
