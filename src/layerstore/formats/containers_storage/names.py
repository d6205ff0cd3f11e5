"""How containers/storage calls things: references, links, files of big data. Pure functions over text."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable

__all__ = ["big_data_file", "image_names", "link_name", "manifest_key"]

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST = re.compile(r"(?:[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*|\[[0-9A-Fa-f:]+\])(?::[0-9]+)?\Z")
_PATH = re.compile(rf"{_PART}(?:/{_PART})*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_PLAIN = re.compile(r"[.0-9a-z]+\Z")


def link_name(layer_id: str) -> str:
    """The short name beside ``l/`` that stands for a layer in mount options: 26 characters of base 32, from its ID.

    containers/storage draws it at random. A container remembers it, so a view must give the same at each refresh.
    """
    return base64.b32encode(hashlib.sha256(f"layerstore:{layer_id}".encode()).digest())[:26].decode()


def manifest_key(digest: str) -> str:
    """Under which an image keeps the manifest of that digest."""
    return f"manifest-{digest}"


def big_data_file(key: str) -> str:
    """The file of big data called *key* (makeBigDataBaseName): itself, or ``=`` and its base 64."""
    return key if _PLAIN.match(key) else "=" + base64.b64encode(key.encode()).decode()


def image_names(names: Iterable[str]) -> dict[str, str]:
    """What podman is to call images, for each of *names* that it can call something: ``host/path:tag``.

    A name without a host is of this machine: ``localhost/…``; one without a tag is ``…:latest``. Where two come to
    the same, the one that was so already has it, else the first in order.
    """
    taken: dict[str, str] = {}
    for name in sorted(names):
        called = _called(name)
        if called is not None and (called not in taken or called == name):
            taken[called] = name
    return {name: called for called, name in taken.items()}


def _called(name: str) -> str | None:
    host, slash, rest = name.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost") or not _HOST.match(host):
        host, rest = "localhost", name
    path, colon, tag = rest.partition(":")
    tag = tag if colon else "latest"
    return f"{host}/{path}:{tag}" if _PATH.match(path) and _TAG.match(tag) and len(host) + len(path) < 255 else None
