"""Images in a registry: ``docker://HOST[:PORT]/REPOSITORY[:TAG|@DIGEST]`` over HTTP. The face; light to import.

Bottom up: ``secrets`` (credentials that never show), ``failures`` (what errors may say), ``names`` (references),
``authfiles`` and ``helpers`` (where credentials are found), ``challenges`` and ``tokens`` (how they are used), ``pace``,
``proxies``, ``tls`` and ``transport`` (one request; urllib3 is imported there and nowhere else), ``client`` (redirects,
tries), ``multipart`` and ``blobs`` (layers, whole and in parts), ``resolve`` (from a reference to an image).

Source: OCI distribution-spec 1.1, "Pull"; RFC 9110 (ranges, redirects), RFC 6750 and Docker's token specification.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from layerstore.sources.registry.secrets import Credentials

if TYPE_CHECKING:
    from layerstore.sources.registry.client import Client
    from layerstore.sources.registry.names import Name

__all__ = ["Credentials", "RegistryOptions", "connect"]


@dataclass(frozen=True, slots=True)
class RegistryOptions:
    """How to speak with a registry. Times are seconds.

    Args:
        credentials: what to answer with when the registry asks; None: looked for in the usual files.
        auth_file: the one file to look for them in, which must be there; None: see docs/registry.md.
        ca_file: certificates (PEM) to trust besides the system's, for every host spoken to.
        plain_http: speak HTTP without TLS. Never done unasked.
        connections: layers of one image that are read at once, each over one connection, however many workers there are.
        retries: failures in a row, without any progress to speak of, that are tried again.
        backoff: the first pause between two tries; it doubles up to *longest_wait*, which also bounds ``Retry-After``.
        longest_wait: the longest pause.
        connect_timeout: to connect, TLS included.
        idle_timeout: without a byte before the connection is given up; over such a time *least_rate* is looked at.
        least_rate: bytes a second of waiting, with less than which a connection is given up. Times that the reader
            takes do not count.

    """

    credentials: Credentials | None = None
    auth_file: str | None = None
    ca_file: str | None = None
    plain_http: bool = False
    connections: int = 6
    retries: int = 5
    backoff: float = 0.5
    longest_wait: float = 30.0
    connect_timeout: float = 15.0
    idle_timeout: float = 30.0
    least_rate: float = 1024.0


def connect(name: Name, options: RegistryOptions, *, push: bool = False) -> Client:
    """A client for one repository, for reading only unless *push*. Nothing is sent yet.

    SourceError without urllib3, or for an unusable *ca_file*.
    """
    from layerstore.sources.registry.client import Client  # noqa: PLC0415 - imports urllib3

    return Client(name, options, push=push)
