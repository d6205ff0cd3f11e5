"""References to images in registries, as users write them. Pure functions over text.

Source: distribution's reference grammar (lower-case repositories, tags of at most 128 characters), as containers/image
applies it to ``docker://``, with one difference: the host must be there. The field fills in a default host, and so asks
a stranger for what was meant to be one's own. Where that host is written, it means what it means in the field, and a name
has the form that distribution gives it there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from layerstore.errors import InvalidArgumentError

__all__ = ["PREFIX", "Name", "parse_name"]

PREFIX = "docker://"
_FORM = "write docker://HOST[:PORT]/REPOSITORY[:TAG|@sha256:DIGEST]"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_LABEL = r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{{1,5}})?\Z")
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")   # one registry: its names in the field; the last answers
_HUB_LOGIN = "https://index.docker.io/v1/"                        # what docker logs in to there


@dataclass(frozen=True, slots=True)
class Name:
    """A repository, with its host (and port, if one was written), and a tag or a digest."""

    host: str
    repository: str
    tag: str | None
    digest: str | None

    @property
    def label(self) -> str:
        """``host/repository``, for messages."""
        return f"{self.host}/{self.repository}"

    @property
    def hosts(self) -> tuple[str, ...]:
        """The host, and the registry's other names, under any of which its credentials may be."""
        return (self.host, *(other for other in _HUB if other != self.host)) if self.host in _HUB else (self.host,)

    @property
    def login(self) -> tuple[str, ...]:
        """What docker has credentials under that is none of ``hosts``."""
        return (_HUB_LOGIN,) if self.host in _HUB else ()

    @property
    def server(self) -> str:
        """The host, and port if one was written, that is asked."""
        return _HUB[-1] if self.host in _HUB else self.host

    def __str__(self) -> str:
        return f"{self.label}@{self.digest}" if self.digest else f"{self.label}:{self.tag}"


def parse_name(text: str) -> Name:
    """Parse ``docker://…``; InvalidArgumentError, with the form as its hint, for anything else.

    Without tag and digest the tag is ``latest``. Both together are refused, as in containers/image.
    """
    rest = text.removeprefix(PREFIX)
    host, _slash, path = rest.partition("/")
    if "@" in host:   # do not repeat it: it may be a password
        raise InvalidArgumentError("a reference to a registry holds no user or password", hint="give them as --creds")
    if not _is_host(host) or not ("." in host or ":" in host or host == "localhost"):
        raise InvalidArgumentError(f"{text!r} begins with no registry's host: there is no default", hint=_FORM)
    name, at, digest = path.partition("@")
    repository, colon, tag = name.partition(":")
    if at and colon:
        raise InvalidArgumentError(f"{text!r} has both a tag and a digest", hint="leave the tag out: the digest says more")
    if not _REPOSITORY.match(repository) or len(repository) > 255:
        raise InvalidArgumentError(f"{text!r} names no repository (they are in lower case)", hint=_FORM)
    if at and not _DIGEST.match(digest):
        raise InvalidArgumentError(f"{text!r} has a digest that is not 'sha256:' and 64 lowercase hex digits", hint=_FORM)
    if colon and not _TAG.match(tag):
        raise InvalidArgumentError(f"{text!r} has an unusable tag {tag!r}", hint=_FORM)
    if host == _HUB[1]:                  # distribution's legacyDefaultDomain; the third name it leaves as it is
        host = _HUB[0]
    if host == _HUB[0] and "/" not in repository:
        repository = f"library/{repository}"
    return Name(host, repository, None if at else tag or "latest", digest if at else None)


def _is_host(text: str) -> bool:
    try:
        return bool(_HOST.match(text)) and urlsplit(f"//{text}").port != 0   # ValueError: no port, or no address
    except ValueError:
        return False
