"""Where a registry's credentials are looked for: ``auth.json`` and ``config.json`` as the field's tools leave them.

Files, order and keys: containers-auth.json(5); docs/registry.md has them for users. Nothing of a file's content is ever
shown but where in it something is wrong.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from layerstore.errors import InvalidArgumentError, SourceError
from layerstore.sources.registry.helpers import ask_helper
from layerstore.sources.registry.names import Name
from layerstore.sources.registry.secrets import Credentials

__all__ = ["auth_files", "find_credentials", "look_up"]

_MAX_BYTES = 1 << 20
_URL_SLASHES = 3   # in https://HOST/v1


def find_credentials(name: Name, auth_file: str | None) -> Credentials | None:
    """The credentials for a repository, or None; SourceError for a file or helper that fails.

    *auth_file* is the only file looked at, and must be there. None: the usual ones, those that exist.
    """
    for path, required in auth_files(auth_file):
        document = _read(path, required=required)
        found = look_up(document, name, path) if document else None
        if found:
            return found
    return None


def auth_files(auth_file: str | None) -> Iterator[tuple[str, bool]]:
    """The files to look at, in order, and whether each must be there."""
    given = auth_file or os.environ.get("REGISTRY_AUTH_FILE")
    if given:
        yield given, True
        return
    home = os.path.expanduser("~")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    yield f"{runtime}/containers/auth.json" if runtime else f"/run/containers/{os.getuid()}/auth.json", False
    yield f"{os.environ.get('XDG_CONFIG_HOME') or home + '/.config'}/containers/auth.json", False
    yield f"{os.environ.get('DOCKER_CONFIG') or home + '/.docker'}/config.json", False


def _read(path: str, *, required: bool) -> Mapping[str, Any] | None:
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        if not required:
            return None
        raise SourceError(f"the file with credentials {path} is not there", hint="correct --authfile") from None
    except OSError as error:
        if not required and isinstance(error, PermissionError) and not os.access(os.path.dirname(path), os.X_OK):
            return None                  # in a directory of somebody else's, as root's podman makes /run/containers
        raise SourceError(f"cannot read the file with credentials {path}: {error.strerror}") from None
    try:
        document = json.loads(data) if len(data) <= _MAX_BYTES else None
    except (ValueError, RecursionError):   # not chained: a JSONDecodeError has the whole document
        document = None
    if not isinstance(document, dict):
        raise SourceError(f"the file with credentials {path} is not a JSON object of at most 1 MiB", hint="log in again")
    return document


def look_up(document: Mapping[str, Any], name: Name, path: str) -> Credentials | None:
    """The credentials in one file's *document*. *path* is for messages. Raises as ``find_credentials``."""
    helpers, entries = _table(document, "credHelpers", path), _table(document, "auths", path)
    for key in (*name.hosts, *name.login):
        if key in helpers and (found := ask_helper(helpers[key], key)):
            return found
    for key in (*_keys(name), *_urls(name, entries)):
        if key in entries and (found := _decode(entries[key], path)):
            return found
    return _from_store(document, name)


def _from_store(document: Mapping[str, Any], name: Name) -> Credentials | None:
    """Docker's store for all hosts. Its configuration travels to machines that lack the program: then it has none."""
    store = document.get("credsStore")
    return ask_helper(store, (*name.login, name.host)[0], required=False) if store else None


def _table(document: Mapping[str, Any], key: str, path: str) -> Mapping[str, Any]:
    value = document.get(key)
    if value is not None and not isinstance(value, dict):
        raise SourceError(f"{key!r} in {path} is not an object", hint="log in again")
    return value or {}


def _keys(name: Name) -> Iterator[str]:
    """The repository, then each namespace around it, then the host; each under every name of the registry."""
    path = f"/{name.repository}"
    while True:
        yield from (f"{host}{path}" for host in name.hosts)
        if not path:
            return
        path = path.rpartition("/")[0]


def _urls(name: Name, entries: Iterable[str]) -> list[str]:
    """Keys that are the registry's URL, as docker login writes them. One with more of a path may be for something else."""
    urls = [key for key in entries if key.startswith(("https://", "http://")) and key.split("/")[2] in name.hosts]
    return sorted(urls, key=lambda url: url.rstrip("/").count("/") > _URL_SLASHES)


def _decode(entry: Any, path: str) -> Credentials | None:
    if not isinstance(entry, dict):
        raise SourceError(f"an entry of 'auths' in {path} is not an object", hint="log in again")
    token, encoded = entry.get("identitytoken"), entry.get("auth")
    if isinstance(token, str) and token:
        return Credentials(identity_token=token)
    if not encoded:   # what docker login writes where a helper has the secret
        return _plain(entry, path)
    try:
        username, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        if not colon:
            raise ValueError
        return Credentials(username, password.strip("\0"))
    except (ValueError, TypeError, InvalidArgumentError):   # not chained: UnicodeDecodeError has the bytes
        raise SourceError(f"an entry of 'auths' in {path} is not base64 of user:password", hint="log in again") from None


def _plain(entry: Mapping[str, Any], path: str) -> Credentials | None:
    """What is written by hand, and read by docker: the user and the password as they are."""
    username, password = entry.get("username"), entry.get("password")
    if not username or not password:
        return None
    try:
        if not isinstance(username, str) or not isinstance(password, str):
            raise TypeError
        return Credentials(username, password)
    except (TypeError, InvalidArgumentError):
        raise SourceError(f"an entry of 'auths' in {path} has an unusable user or password", hint="log in again") from None
