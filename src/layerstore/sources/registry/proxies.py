"""Which proxy a request goes through, by the usual variables: ``HTTPS_PROXY``, ``HTTP_PROXY``, ``ALL_PROXY``, ``NO_PROXY``.

Read once, when a registry is connected to. What is on this machine (``localhost``, loopback addresses) is never asked for
through one, as in the field's tools. Nothing is sent here, and a proxy's password is in no message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment

from layerstore.errors import SourceError
from layerstore.sources.registry.secrets import Credentials

__all__ = ["Proxies", "Proxy"]


@dataclass(frozen=True, slots=True)
class Proxy:
    """Its URL, without a user, and what to say to it (None: nothing)."""

    url: str
    credentials: Credentials | None


class Proxies:
    """What the environment says. The lower-case variables come first; one without a scheme is an HTTP proxy."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._said = dict(getproxies_environment() if environment is None else environment)

    def of(self, scheme: str, host: str, port: int) -> Proxy | None:
        """The proxy for a request; None: it goes straight. SourceError for a variable that names no usable one."""
        said = self._said.get(scheme) or self._said.get("all")
        if not said or _is_here(host) or _is_left_out(host, port, self._said.get("no", "")):
            return None
        try:
            parts = urlsplit(said if "://" in said else f"http://{said}")
            usable = parts.scheme in ("http", "https") and bool(parts.hostname)
            place = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname
            url = f"{parts.scheme}://{place}" + (f":{parts.port}" if parts.port else "")
        except ValueError:
            usable = False
        if not usable:
            raise SourceError(
                f"the proxy for {scheme} is no usable URL", hint=f"correct {scheme}_proxy: http://HOST:PORT; or unset it",
            )
        user = parts.username
        return Proxy(url, Credentials(unquote(user), unquote(parts.password or "")) if user else None)


def _is_left_out(host: str, port: int, listed: str) -> bool:
    """Whether ``NO_PROXY`` lists it: by its name or one above it, with a port or without, by address or network, or all."""
    for each in filter(None, (part.strip().lower() for part in listed.split(","))):
        name = each.removesuffix(f":{port}").strip("[]").removeprefix("*").removeprefix(".")
        if each == "*" or host == name or (name and host.endswith(f".{name}")):
            return True
        try:
            if ip_address(host) in ip_network(each, strict=False):
                return True
        except ValueError:
            continue
    return False


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
